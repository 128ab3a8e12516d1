//! AdamW with moments in 8 bits (Dettmers et al. 2021, arXiv 2110.02861), block by block as in bitsandbytes.
//!
//! Each number of a moment is stored as one byte: the index of the nearest entry of the dynamic map, to be multiplied
//! by the largest absolute value of its block (float32, one per block). A step dequantises a block, updates the
//! moments, uses the exact new moments for the parameter, and quantises them again. Parameters of less than
//! [`SMALLEST`] numbers keep float32 moments. One departure: a positive second moment is never rounded to zero, which
//! would make the next step far too large.

use super::adamw::AdamW;
use super::rule::{ParameterInfo, ParameterUpdate, StateField, StepSize, UpdateRule};
use crate::error::Result;
use crate::native;
use tch::{Device, Kind, Tensor};

/// Parameters with fewer numbers keep float32 moments: 8 bits would save too little memory.
const SMALLEST: i64 = 4096;
/// Numbers that are dequantised at a time, of one large or of several small parameters; a multiple of every block size.
const CHUNK: i64 = 1 << 20;

/// AdamW with 8-bit moments: two bytes of state per parameter, and eight per block.
pub struct AdamW8 {
    /// Hyperparameters, and the rule for small tensors.
    pub exact: AdamW,
    /// Number of values that share a scale.
    block: i64,
    signed: DynamicMap,
    unsigned: DynamicMap,
}

/// The 256 values that a byte stands for, ascending, and the boundaries at which rounding changes from one to the next.
pub struct DynamicMap {
    /// The values of the code.
    pub values: Tensor,
    borders: Tensor,
}

impl DynamicMap {
    /// Computes the dynamic map (section 1.3 of the paper; appendix F for the unsigned one): the number of leading
    /// zeros of the byte is the exponent, the remaining bits are a linear fraction between 0.1 and 1 of that power of
    /// ten. Zero and one are among the values.
    pub fn dynamic(signed: bool, device: Device) -> Self {
        const EXPONENTS: i32 = 7;
        let mut values = vec![0.0f32, 1.0];
        for i in 0..EXPONENTS {
            let count = if signed { 1 << i } else { 1 << (i + 1) };
            let size = 10f64.powi(i + 1 - EXPONENTS);
            let edge = |k: i32| 0.1 + 0.9 * f64::from(k) / f64::from(count);
            for k in 0..count {
                let value = (size * (edge(k) + edge(k + 1)) / 2.0) as f32;
                values.extend([value].iter().chain(signed.then_some(&-value)));
            }
        }
        values.sort_by(f32::total_cmp);
        debug_assert_eq!(values.len(), 256);
        let borders: Vec<f32> = values.windows(2).map(|w| (w[0] + w[1]) / 2.0).collect();
        let tensor = |v: &[f32]| Tensor::from_slice(v).to_device(device);
        Self { values: tensor(&values), borders: tensor(&borders) }
    }

    /// Dequantises (n) codes with (n / block) scales; returns (n / block, block) numbers.
    fn dequantise(&self, codes: &Tensor, scales: &Tensor, block: i64) -> Tensor {
        self.values.index_select(0, &codes.to_kind(Kind::Int)).view([-1, block]) * scales.unsqueeze(-1)
    }

    /// Quantises (blocks, block) numbers; returns (blocks * block) codes and (blocks) scales. With `positive`, a number
    /// above zero stays above zero.
    fn quantise(&self, numbers: &Tensor, positive: bool) -> (Tensor, Tensor) {
        let scales = numbers.abs().amax([-1i64].as_slice(), false);
        // A block of zeros has the scale 0; the bound only avoids a division by zero.
        let share = numbers / scales.clamp_min(f64::from(f32::MIN_POSITIVE)).unsqueeze(-1);
        let mut codes = share.bucketize(&self.borders, true, false);
        if positive {
            codes = codes.maximum(&numbers.gt(0.0).to_kind(Kind::Int));
        }
        (codes.to_kind(Kind::Uint8).view([-1]), scales)
    }
}

impl AdamW8 {
    /// Creates the rule. `block`: numbers that share a scale.
    pub fn new(exact: AdamW, block: i64, device: Device) -> Self {
        Self { exact, block, signed: DynamicMap::dynamic(true, device), unsigned: DynamicMap::dynamic(false, device) }
    }

    /// Updates the numbers of some parameters together. If `skip`, a scalar on the device, is 1, nothing is changed.
    fn step(&self, pieces: &[Piece], StepSize { lr, decay, step }: StepSize, skip: Option<&Tensor>) -> Result<()> {
        let (b1, b2) = self.exact.betas;
        let (c1, c2) = (1.0 - b1.powf(step as f64), 1.0 - b2.powf(step as f64));
        // The last block of a parameter may be incomplete: it is filled up with zeros, which are cut off again below.
        let whole = |(piece, t): (&Piece, &Tensor)| match piece.blocks * self.block - piece.length {
            0 => t.shallow_clone(),
            fill => t.constant_pad_nd([0, fill].as_slice()),
        };
        let join =
            |parts: Vec<Tensor>| if parts.len() == 1 { parts[0].shallow_clone() } else { Tensor::cat(&parts, 0) };
        let numbers = |of: &[Tensor]| join(pieces.iter().zip(of).map(whole).collect());
        let each = |of: &dyn Fn(&Piece) -> Tensor| pieces.iter().map(of).collect::<Vec<Tensor>>();
        let states = [[0, 1], [2, 3]].map(|[i, j]| (each(&|p| p.codes(i)), each(&|p| p.scales(j))));
        let old = states
            .each_ref()
            .map(|(codes, scales)| (numbers(codes), join(scales.iter().map(Tensor::shallow_clone).collect())));
        let g = numbers(&each(&|p| p.grad())).view([-1, self.block]);
        let mut m = self.signed.dequantise(&old[0].0, &old[0].1, self.block);
        m *= b1;
        m += &g * (1.0 - b1);
        let mut v = self.unsigned.dequantise(&old[1].0, &old[1].1, self.block);
        v *= b2;
        v += g.square() * (1.0 - b2);
        let u = &m / ((&v / c2).sqrt_() + self.exact.eps);
        let mut change = u.view([-1]) * (lr / c1);
        let mut kept = Tensor::full([], 1.0 - lr * decay, (Kind::Float, g.device()));
        let mut new = [self.signed.quantise(&m, false), self.unsigned.quantise(&v, true)];
        if let Some(skip) = skip {
            let skip = skip.to_kind(Kind::Bool);
            let _ = (kept.masked_fill_(&skip, 1.0), change.masked_fill_(&skip, 0.0));
            for (new, old) in new.iter_mut().zip(&old) {
                *new = (old.0.where_self(&skip, &new.0), old.1.where_self(&skip, &new.1));
            }
        }
        let params = each(&|p| p.param());
        native::scale_all(&params, &kept)?;
        native::subtract_all(&params, &self.split(pieces, &change))?;
        let counts: Vec<i64> = pieces.iter().map(|p| p.blocks).collect();
        for ((codes, scales), (new_codes, new_scales)) in states.iter().zip(&new) {
            native::copy_all(codes, &self.split(pieces, new_codes))?;
            native::copy_all(scales, &new_scales.split_with_sizes(&counts, 0))?;
        }
        Ok(())
    }

    /// Splits the numbers of all pieces, in whole blocks, into those of each piece without its fill.
    fn split(&self, pieces: &[Piece], numbers: &Tensor) -> Vec<Tensor> {
        let sizes: Vec<i64> = pieces.iter().map(|p| p.blocks * self.block).collect();
        let parts = numbers.split_with_sizes(&sizes, 0);
        parts.iter().zip(pieces).map(|(t, p)| t.narrow(0, 0, p.length)).collect()
    }

    /// Cuts parameters into pieces of at most [`CHUNK`] numbers, and puts pieces of together at most so many into one
    /// list.
    fn pieces<'s>(&self, slots: &[&'s ParameterUpdate<'s>]) -> Vec<Vec<Piece<'s>>> {
        let (mut lists, mut room): (Vec<Vec<Piece>>, i64) = (Vec::new(), 0);
        for slot in slots {
            let n = slot.form.numel();
            for start in (0..n).step_by(CHUNK as usize) {
                let length = CHUNK.min(n - start);
                let blocks = (length + self.block - 1) / self.block;
                if room < blocks * self.block {
                    lists.push(Vec::new());
                    room = CHUNK;
                }
                room -= blocks * self.block;
                let first_block = start / self.block;
                lists.last_mut().expect("just made").push(Piece { slot, start, length, first_block, blocks });
            }
        }
        lists
    }
}

/// Consecutive numbers of a parameter that begin with a block.
struct Piece<'s> {
    slot: &'s ParameterUpdate<'s>,
    start: i64,
    length: i64,
    first_block: i64,
    /// Number of blocks; the last one may be incomplete.
    blocks: i64,
}

impl Piece<'_> {
    fn numbers(&self, t: &Tensor) -> Tensor {
        t.narrow(0, self.start, self.length)
    }

    fn param(&self) -> Tensor {
        self.numbers(&self.slot.param.view([-1]))
    }

    fn grad(&self) -> Tensor {
        self.numbers(&self.slot.grad.reshape([-1]))
    }

    fn codes(&self, i: usize) -> Tensor {
        self.numbers(&self.slot.state[i])
    }

    fn scales(&self, i: usize) -> Tensor {
        self.slot.state[i].narrow(0, self.first_block, self.blocks)
    }
}

impl UpdateRule for AdamW8 {
    fn layout(&self, form: &ParameterInfo) -> Vec<StateField> {
        let n = form.numel();
        if n < SMALLEST {
            return self.exact.layout(form);
        }
        let byte = |name| StateField { name, shape: vec![n], kind: Kind::Uint8 };
        let scale = |name| StateField::float(name, &[(n + self.block - 1) / self.block]);
        vec![byte("first"), scale("first_scale"), byte("second"), scale("second_scale")]
    }

    fn update(&self, slots: &[ParameterUpdate], pace: StepSize, skip: Option<&Tensor>) -> Result<()> {
        let (small, large): (Vec<&ParameterUpdate>, Vec<&ParameterUpdate>) =
            slots.iter().partition(|s| s.form.numel() < SMALLEST);
        self.pieces(&large).iter().try_for_each(|pieces| self.step(pieces, pace, skip))?;
        self.exact.update(&small.into_iter().map(ParameterUpdate::shallow_clone).collect::<Vec<_>>(), pace, skip)
    }
}
