//! Matrices in the layout of bitsandbytes: blocks of 4 bits, or int8 rows.

use super::tensors::MatrixTensors;
use crate::error::Result;
use crate::native::quantised::{BLOCK, GROUP};
use crate::nn::quantised::{BlockScales, four_bit_values, scale_values};
use crate::nn::{QuantisedEntry, QuantisedFormat, QuantisedWeight};
use serde::Deserialize;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Ending of the tensor with the description of a matrix, without the name of its format.
pub const STATE: &str = ".weight.quant_state.bitsandbytes__";

/// Bytes that a description may have: it is a short JSON object.
const MOST_STATE: usize = 1 << 12;

/// The description of a matrix: JSON in a tensor of bytes.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: i64,
    shape: Vec<i64>,
    nested_blocksize: Option<i64>,
    nested_offset: Option<f64>,
}

/// Takes the tensors of a matrix in 4 bits. config.json says `format` and `double` (its scales are quantised).
pub fn four_bits(tensors: &mut MatrixTensors, format: QuantisedFormat, double: bool) -> Result<Rc<dyn QuantisedEntry>> {
    let part = format!("{STATE}{}", format.name());
    let Some(state) = tensors.take_if_there(&part) else {
        let said = format!("is missing, but config.json says that weights are {}", format.name());
        return Err(tensors.error(&part, &said));
    };
    let state = read_state(tensors, &part, &state)?;
    if state.quant_type != format.name() {
        return Err(
            tensors.error(&part, &format!("has the quant_type `{}`", crate::fsutil::excerpt(&state.quant_type)))
        );
    }
    if state.blocksize != BLOCK {
        let what = format!("has blocks of {}, and ft reads blocks of {BLOCK}", state.blocksize);
        let hint = "quantise the model with the default blocksize, or train over its full-precision weights with model.quantize";
        return Err(tensors.refusal(&part, &what, hint));
    }
    let shape = match state.shape[..] {
        [outputs, inputs] if outputs > 0 && inputs > 0 && outputs.checked_mul(inputs).is_some_and(|n| n < 1 << 40) => {
            [outputs, inputs]
        }
        _ => return Err(tensors.error(&part, &format!("has the shape {:?}, expected (out, in)", state.shape))),
    };
    let numbers = shape[0] * shape[1];
    let blocks = (numbers + BLOCK - 1) / BLOCK;
    let why = format!("a weight of {} x {} in blocks of {BLOCK}", shape[0], shape[1]);

    // The bytes may be declared as numbers of another dtype (`bnb_4bit_quant_storage`).
    let codes = tensors.take(".weight")?.contiguous().view([-1]).view_dtype(Kind::Uint8);
    let bytes = (numbers + 1) / 2;
    tensors.require(".weight", &codes, &[Kind::Uint8], &[bytes], &format!("the bytes of {why}"))?;
    let values = tensors.take_exactly(".weight.quant_map", Kind::Float, &[16], "the values of 4 bits")?;
    require_values(tensors, ".weight.quant_map", &values, four_bit_values(format))?;
    let scales = match double {
        false => BlockScales::Plain(tensors.take_exactly(".weight.absmax", Kind::Float, &[blocks], &why)?),
        true => {
            let (Some(GROUP), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
                let what = format!("has no nested_offset, or another nested_blocksize than {GROUP}");
                return Err(tensors.error(&part, &what));
            };
            let codes = tensors.take_exactly(".weight.absmax", Kind::Uint8, &[blocks], &why)?;
            let groups = (blocks + GROUP - 1) / GROUP;
            let scales = tensors.take_exactly(".weight.nested_absmax", Kind::Float, &[groups], &why)?;
            let map = ".weight.nested_quant_map";
            let values = tensors.take_exactly(map, Kind::Float, &[256], "the values of 8 bits")?;
            require_values(tensors, map, &values, scale_values())?;
            BlockScales::Double { codes, scales, offset: offset as f32 }
        }
    };
    Ok(Rc::new(BlockMatrix { format, shape, codes, scales }))
}

/// Parses the description in a tensor of bytes.
fn read_state(tensors: &MatrixTensors, part: &str, state: &Tensor) -> Result<QuantState> {
    let bytes: Option<Vec<u8>> = (state.kind() == Kind::Uint8 && state.numel() <= MOST_STATE && state.dim() == 1)
        .then(|| Vec::<u8>::try_from(state).ok())
        .flatten();
    let parsed = bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string()));
    match parsed {
        Some(Ok(state)) => Ok(state),
        Some(Err(e)) => Err(tensors.error(part, &format!("is not the description of a quantised weight: {e}"))),
        None => Err(tensors.error(part, "is not a short text in bytes")),
    }
}

/// Fails if a table of values differs from that of the format by more than its rounding.
fn require_values(tensors: &MatrixTensors, part: &str, found: &Tensor, expected: &[f32]) -> Result<()> {
    let gap = (found - Tensor::from_slice(expected)).abs().max().double_value(&[]);
    match gap <= 1e-6 {
        true => Ok(()),
        false => Err(tensors.error(part, &format!("has other values than the format has: by {gap:.1e}"))),
    }
}

/// Takes the tensors of a matrix in int8.
pub fn int8(tensors: &mut MatrixTensors) -> Result<Rc<dyn QuantisedEntry>> {
    let codes = tensors.take(".weight")?;
    let [outputs, inputs] = codes.size()[..] else {
        return Err(tensors.error(".weight", &format!("has shape {:?}, expected (out, in)", codes.size())));
    };
    tensors.require(".weight", &codes, &[Kind::Int8], &[outputs, inputs], "itself")?;
    let scales = tensors.take_exactly(".SCB", Kind::Float, &[outputs], &format!("a weight of {outputs} x {inputs}"))?;
    if let Some(layout) = tensors.take_if_there(".weight_format")
        && layout.to_kind(Kind::Int64).view([-1]).abs().sum(Kind::Int64).int64_value(&[]) != 0
    {
        let what = format!("is {layout}: the rows lie in an order for old GPUs, which ft does not read");
        let hint = "save the model again with a current bitsandbytes";
        return Err(tensors.refusal(".weight_format", &what, hint));
    }
    Ok(Rc::new(Int8Matrix { codes, scales }))
}

/// A matrix in 4 bits: views of the mapped file.
struct BlockMatrix {
    format: QuantisedFormat,
    shape: [i64; 2],
    codes: Tensor,
    scales: BlockScales,
}

impl QuantisedEntry for BlockMatrix {
    fn shape(&self) -> [i64; 2] {
        self.shape
    }

    fn bytes(&self) -> u64 {
        let scales = match &self.scales {
            BlockScales::Plain(scales) => 4 * scales.numel(),
            BlockScales::Double { codes, scales, .. } => codes.numel() + 4 * scales.numel(),
        };
        (self.codes.numel() + scales) as u64
    }

    fn read(&self, device: Device) -> Result<QuantisedWeight> {
        let scales = match &self.scales {
            BlockScales::Plain(scales) => BlockScales::Plain(scales.shallow_clone()),
            BlockScales::Double { codes, scales, offset } => {
                BlockScales::Double { codes: codes.shallow_clone(), scales: scales.shallow_clone(), offset: *offset }
            }
        };
        QuantisedWeight::of_blocks(self.format, self.shape, &self.codes, scales, device)
    }
}

/// A matrix in int8: views of the mapped file.
struct Int8Matrix {
    codes: Tensor,
    scales: Tensor,
}

impl QuantisedEntry for Int8Matrix {
    fn shape(&self) -> [i64; 2] {
        let size = self.codes.size();
        [size[0], size[1]]
    }

    fn bytes(&self) -> u64 {
        (self.codes.numel() + 4 * self.scales.numel()) as u64
    }

    fn read(&self, device: Device) -> Result<QuantisedWeight> {
        QuantisedWeight::of_int8_rows(&self.codes, &self.scales, device)
    }
}
