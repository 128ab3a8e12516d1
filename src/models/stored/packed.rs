//! Matrices of whole numbers in groups of inputs, packed into 32-bit words: GPTQ (Frantar et al. 2022, arXiv 2210.17323) in
//! the layout of AutoGPTQ, and AWQ (Lin et al. 2023, arXiv 2306.00978) in that of AutoAWQ ("gemm").
//!
//! `qweight`: GPTQ packs along the inputs, (in · bits / 32, out); AWQ along the outputs, (in, out / 8). `qzeros` is packed
//! along the outputs in both: (groups, out · bits / 32). `scales`: (groups, out). `g_idx` (in) has the group of each input
//! of GPTQ, where groups are not neighbours ("act order").

use super::tensors::MatrixTensors;
use crate::error::{Error, Result};
use crate::nn::quantised::GroupedCodes;
use crate::nn::{QuantisedEntry, QuantisedWeight};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Bits of a word.
const WORD: i64 = 32;
/// The place in a word at which AWQ has each of 8 neighbouring outputs: they are packed in the order 0 2 4 6 1 3 5 7.
const AWQ_PLACES: [i64; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// A matrix in its file: views of the mapping.
struct PackedMatrix {
    packing: Packing,
    /// (out, in)
    shape: [i64; 2],
    group: i64,
    codes: Tensor,
    zeros: Tensor,
    scales: Tensor,
    groups: Option<Tensor>,
    name: String,
}

/// How numbers are packed.
enum Packing {
    Gptq { bits: i64, zeros_less_one: bool },
    Awq,
}

const SCALES: [Kind; 3] = [Kind::Half, Kind::BFloat16, Kind::Float];

/// Takes the tensors of a matrix of GPTQ; `group` and `bits` are those of config.json, `name` that of the format.
pub fn gptq(
    tensors: &mut MatrixTensors,
    bits: i64,
    group: Option<i64>,
    zeros_less_one: bool,
    name: String,
) -> Result<Rc<dyn QuantisedEntry>> {
    let codes = words(tensors, ".qweight")?;
    let (packed, outputs) = (codes.size()[0], codes.size()[1]);
    if packed * WORD % bits != 0 {
        return Err(
            tensors.error(".qweight", &format!("has {packed} rows, which hold no whole number of {bits}-bit inputs"))
        );
    }
    let shape = [outputs, packed * WORD / bits];
    let mut matrix = grouped(tensors, codes, shape, bits, group, Packing::Gptq { bits, zeros_less_one }, name)?;
    if let Some(groups) = tensors.take_if_there(".g_idx") {
        tensors.require(".g_idx", &groups, &[Kind::Int], &[shape[1]], &format!("{} inputs", shape[1]))?;
        matrix.groups = Some(groups);
    }
    Ok(Rc::new(matrix))
}

/// Takes the tensors of a matrix of AWQ.
pub fn awq(tensors: &mut MatrixTensors, group: Option<i64>, name: String) -> Result<Rc<dyn QuantisedEntry>> {
    let codes = words(tensors, ".qweight")?;
    let shape = [codes.size()[1] * 8, codes.size()[0]];
    Ok(Rc::new(grouped(tensors, codes, shape, 4, group, Packing::Awq, name)?))
}

/// Takes a matrix of words.
fn words(tensors: &mut MatrixTensors, part: &str) -> Result<Tensor> {
    let words = tensors.take(part)?;
    match (words.size().as_slice(), words.kind()) {
        ([rows, columns], Kind::Int) if *rows > 0 && *columns > 0 => Ok(words),
        _ => {
            let what = format!("has dtype {:?} and shape {:?}, expected a matrix of int32", words.kind(), words.size());
            Err(tensors.error(part, &what))
        }
    }
}

/// Takes the zeros and scales of a matrix (out, in).
fn grouped(
    tensors: &mut MatrixTensors,
    codes: Tensor,
    shape: [i64; 2],
    bits: i64,
    group: Option<i64>,
    packing: Packing,
    name: String,
) -> Result<PackedMatrix> {
    let [outputs, inputs] = shape;
    if inputs % 2 != 0 {
        return Err(tensors.error(".qweight", &format!("is for {inputs} inputs: ft reads even numbers only")));
    }
    let group = group.unwrap_or(inputs).min(inputs);
    let count = (inputs + group - 1) / group;
    let why = format!("a weight of {outputs} x {inputs} in {bits} bits and groups of {group}, as config.json says");
    let scales = tensors.take(".scales")?;
    tensors.require(".scales", &scales, &SCALES, &[count, outputs], &why)?;
    let packed = (outputs * bits + WORD - 1) / WORD;
    let zeros = tensors.take_exactly(".qzeros", Kind::Int, &[count, packed], &why)?;
    Ok(PackedMatrix { packing, shape, group, codes, zeros, scales, groups: None, name })
}

impl QuantisedEntry for PackedMatrix {
    fn shape(&self) -> [i64; 2] {
        self.shape
    }

    fn bytes(&self) -> u64 {
        let parts = [Some(&self.codes), Some(&self.zeros), Some(&self.scales), self.groups.as_ref()];
        parts.into_iter().flatten().map(|t| (t.numel() * t.kind().elt_size_in_bytes()) as u64).sum()
    }

    fn read(&self, device: Device) -> Result<QuantisedWeight> {
        let _no_grad = tch::no_grad_guard();
        let outputs = self.shape[0];
        let (codes, zeros, bits) = match self.packing {
            Packing::Gptq { bits, zeros_less_one } => {
                let zeros = if zeros_less_one { one_more(&self.zeros, bits) } else { unpacked(&self.zeros, bits) };
                let zeros = zeros.narrow(1, 0, outputs);
                (unpacked(&self.codes.tr().contiguous(), bits), zeros, bits)
            }
            Packing::Awq => {
                let in_order = |words: &Tensor| {
                    let places = Tensor::from_slice(&AWQ_PLACES);
                    let numbers = unpacked(words, 4);
                    numbers.view([words.size()[0], -1, 8]).index_select(2, &places).view(numbers.size().as_slice())
                };
                (in_order(&self.codes).tr(), in_order(&self.zeros), 4)
            }
        };
        let parts = GroupedCodes {
            bits: held_bits(bits),
            codes,
            scales: self.scales.tr(),
            zeros: zeros.tr(),
            group: self.group,
            order: self.groups.as_ref().map(|groups| self.order(groups)).transpose()?.flatten(),
        };
        QuantisedWeight::of_groups(&parts, self.name.clone(), device)
    }

    /// Unpacks nothing: only the order of the inputs is looked at.
    fn outline(&self) -> Result<QuantisedWeight> {
        let bits = match self.packing {
            Packing::Gptq { bits, .. } => held_bits(bits),
            Packing::Awq => 4,
        };
        let ordered = self.groups.as_ref().map(|groups| self.order(groups)).transpose()?.flatten().is_some();
        Ok(QuantisedWeight::outline_of_groups(self.shape, bits, self.group, ordered, self.name.clone()))
    }
}

/// Returns the bits in which numbers of so many bits are held in memory.
fn held_bits(bits: i64) -> i64 {
    if bits == 8 { 8 } else { 4 }
}

impl PackedMatrix {
    /// Returns the inputs in the order of their `groups` (in); `None` if they lie in it already. Fails if a group has another
    /// number of inputs than config.json says.
    fn order(&self, groups: &Tensor) -> Result<Option<Tensor>> {
        let inputs = self.shape[1];
        let refuse = |what: String| {
            Err(Error::user(format!("`g_idx` {what}"))
                .hint("the file is damaged, or config.json is that of another checkpoint: fetch the model again"))
        };
        let found = Vec::<i32>::try_from(groups)?;
        let count = (inputs + self.group - 1) / self.group;
        let mut sizes = vec![0; count as usize];
        for (input, group) in found.iter().enumerate() {
            match usize::try_from(*group).ok().and_then(|g| sizes.get_mut(g)) {
                Some(size) => *size += 1,
                None => return refuse(format!("puts input {input} into group {group}; there are {count} groups")),
            }
        }
        for (g, size) in sizes.iter().enumerate() {
            let expected = self.group.min(inputs - g as i64 * self.group);
            if *size != expected {
                return refuse(format!("puts {size} inputs into group {g}, expected {expected}"));
            }
        }
        if found.is_sorted() {
            return Ok(None);
        }
        let mut order: Vec<i64> = (0..inputs).collect();
        order.sort_by_key(|i| found[*i as usize]); // stable
        Ok(Some(Tensor::from_slice(&order)))
    }
}

/// Unpacks zeros that are stored less one, words (rows, n) of int32: (rows, n · 32 / bits) bytes.
///
/// gptqmodel, which transformers reads and writes such files with, takes the ones from whole words: under a zero of 0 the next
/// number of the word is one less. Adding them to whole words undoes this. Numbers of 3 bits, some of which lie in two words,
/// it takes one by one.
fn one_more(words: &Tensor, bits: i64) -> Tensor {
    if bits == 3 {
        return (unpacked(words, bits) + 1).bitwise_and((1 << bits) - 1);
    }
    let ones: i64 = (0..WORD / bits).map(|i| 1 << (i * bits)).sum();
    let sums = (words.to_kind(Kind::Int64) + ones).bitwise_and(0xffff_ffff_i64);
    // Back into the range of int32, whose bits are the same.
    let signed = &sums - sums.ge(1_i64 << 31).to_kind(Kind::Int64) * (1_i64 << 32);
    unpacked(&signed.to_kind(Kind::Int), bits)
}

/// Unpacks words (rows, n) of int32 into numbers (rows, n · 32 / bits) in bytes; the first is in the lowest bits. A number of
/// 3 bits may begin in one word and end in the next.
fn unpacked(words: &Tensor, bits: i64) -> Tensor {
    let (rows, n) = (words.size()[0], words.size()[1]);
    if bits == 3 {
        let starts = Tensor::arange(n * WORD / bits, (Kind::Int64, Device::Cpu)) * bits;
        let (word, shift) = (starts.divide_scalar_mode(WORD, "floor"), starts.remainder(WORD));
        let wide = words.to_kind(Kind::Int64).bitwise_and(0xffff_ffff_i64);
        let next = (&word + 1).clamp_max(n - 1);
        let (low, high) = (wide.index_select(1, &word), wide.index_select(1, &next));
        let pair = low.bitwise_or_tensor(&high.bitwise_left_shift_tensor_scalar(WORD));
        return pair.bitwise_right_shift(&shift).bitwise_and((1 << bits) - 1).to_kind(Kind::Uint8);
    }
    let bytes = words.contiguous().view_dtype(Kind::Uint8); // (rows, 4 n): words are little-endian
    let part = |i: i64| bytes.bitwise_right_shift_tensor_scalar(i * bits).bitwise_and((1 << bits) - 1);
    Tensor::stack(&(0..8 / bits).map(part).collect::<Vec<_>>(), -1).view([rows, n * WORD / bits])
}
