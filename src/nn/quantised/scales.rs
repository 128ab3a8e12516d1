//! The scales of 4-bit blocks: float32, or quantised themselves ("double quantisation", Dettmers et al. 2023, arXiv
//! 2305.14314, section 3).

use super::code_book::dynamic_values;
use super::stored::BlockScales;
use crate::error::{Error, Result};
use crate::native::quantised::{GROUP, ScaleTensors};
use std::ops::Range;
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// The scales of all blocks of a weight.
#[derive(Debug)]
pub enum Scales {
    /// (blocks) float32
    Plain(Tensor),
    /// `values[codes[b]] * scales[b / 256] + offset` for block b.
    Double {
        /// (blocks) uint8
        codes: Tensor,
        /// (blocks / 256, rounded up) float32
        scales: Tensor,
        /// The mean of the scales.
        offset: f32,
        /// The 256 values of the codes, on a GPU.
        values: Option<Tensor>,
    },
}

impl Scales {
    /// Stores the largest magnitudes of blocks, `(blocks)` float32 on the CPU, on `device`. Fails if one is not finite.
    pub fn new(largest: Tensor, double: bool, device: Device) -> Result<Self> {
        if largest.isfinite().all().int64_value(&[]) == 0 {
            return Err(not_finite());
        }
        if !double {
            return Ok(Self::Plain(largest.to_device(device)));
        }
        let largest = Vec::<f32>::try_from(&largest)?;
        let offset = mean(&largest);
        let rest: Vec<f32> = largest.iter().map(|x| x - offset).collect();
        let (codes, scales): (Vec<Vec<u8>>, Vec<f32>) = rest.chunks(GROUP as usize).map(quantise_group).unzip();
        let values = device.is_cuda().then(|| Tensor::from_slice(dynamic_values()).to_device(device));
        let codes = Tensor::from_slice(&codes.concat()).to_device(device);
        Ok(Self::Double { codes, scales: Tensor::from_slice(&scales).to_device(device), offset, values })
    }

    /// Takes scales (blocks) from a checkpoint to `device`. Fails if one is not finite.
    pub fn stored(scales: &Tensor, device: Device) -> Result<Self> {
        require_finite(scales)?;
        Ok(Self::Plain(scales.to_device(device)))
    }

    /// Takes scales that are quantised themselves. Fails if their scales or the offset are not finite.
    pub fn stored_double(codes: &Tensor, scales: &Tensor, offset: f32, device: Device) -> Result<Self> {
        require_finite(scales)?;
        if !offset.is_finite() {
            return Err(damaged_scales());
        }
        let values = device.is_cuda().then(|| Tensor::from_slice(dynamic_values()).to_device(device));
        Ok(Self::Double { codes: codes.to_device(device), scales: scales.to_device(device), offset, values })
    }

    /// Returns the scales as a checkpoint contains them.
    pub fn as_stored(&self) -> BlockScales {
        match self {
            Self::Plain(scales) => BlockScales::Plain(scales.shallow_clone()),
            Self::Double { codes, scales, offset, .. } => {
                BlockScales::Double { codes: codes.shallow_clone(), scales: scales.shallow_clone(), offset: *offset }
            }
        }
    }

    /// Returns the stored tensors that grow with the weight.
    pub fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Plain(scales) => vec![scales],
            Self::Double { codes, scales, .. } => vec![codes, scales],
        }
    }

    /// Returns the scales as the CPU's kernels read them.
    pub fn for_kernels(&self) -> ScaleTensors<'_> {
        match self {
            Self::Plain(scales) => ScaleTensors::Plain(scales),
            Self::Double { codes, scales, offset, .. } => {
                ScaleTensors::Double { codes, scales, values: dynamic_values(), offset: *offset }
            }
        }
    }

    /// Returns the scales of some blocks in float32, by libtorch's operations.
    pub fn of_blocks(&self, blocks: Range<i64>) -> Tensor {
        let part = |t: &Tensor| t.narrow(0, blocks.start, blocks.end - blocks.start);
        match self {
            Self::Plain(scales) => part(scales),
            Self::Double { codes, scales, offset, values } => {
                let own = || Tensor::from_slice(dynamic_values()).to_device(codes.device());
                let values = values.as_ref().map_or_else(own, Tensor::shallow_clone);
                let groups = Tensor::arange_start(blocks.start, blocks.end, (Kind::Int64, codes.device()));
                let scales = scales.index_select(0, &groups.divide_scalar_mode(GROUP, "floor"));
                values.index_select(0, &part(codes).to_kind(Kind::Int)) * scales + f64::from(*offset)
            }
        }
    }
}

/// Returns the error for weights with NaN or infinite values.
pub fn not_finite() -> Error {
    Error::user("the weight has NaN or infinite values, which cannot be quantised")
        .hint("the file is damaged, or the model was not trained stably: fetch it again")
}

/// Fails if a scale from a checkpoint is NaN or infinite.
pub fn require_finite(scales: &Tensor) -> Result<()> {
    if scales.isfinite().all().int64_value(&[]) == 0 { Err(damaged_scales()) } else { Ok(()) }
}

/// Returns the error for a checkpoint with NaN or infinite scales.
pub fn damaged_scales() -> Error {
    Error::user("the scales of the quantised weight have NaN or infinite values")
        .hint("the file is damaged: fetch it again")
}

/// Returns the mean in float32. The sum is that of float64, which does not depend on the order of the numbers; libtorch's
/// sum in float32, which bitsandbytes takes, depends on the processor and the number of threads in its last bits.
fn mean(numbers: &[f32]) -> f32 {
    numbers.iter().map(|x| f64::from(*x)).sum::<f64>() as f32 / numbers.len() as f32
}

/// Quantises the scales of a group of blocks. Returns their codes, and the largest magnitude among them.
///
/// As in bitsandbytes on the CPU, a number over the largest magnitude is rounded to one of 65536 evenly spaced points,
/// and each point belongs to a code.
fn quantise_group(numbers: &[f32]) -> (Vec<u8>, f32) {
    let largest = numbers.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    if largest == 0.0 {
        return (vec![0; numbers.len()], 0.0);
    }
    let inverse = 1.0 / largest;
    let code = |x: &f32| {
        let share = ((x * inverse).clamp(-1.0, 1.0) + 1.0) * 0.5;
        // The exact product and sum, rounded once to float32.
        let point = (f64::from(share) * 65535.0 + 0.5) as f32;
        codes_of_points()[point as u16 as usize]
    };
    (numbers.iter().map(code).collect(), largest)
}

/// Returns the code of each of 65536 evenly spaced points from -1 to 1.
fn codes_of_points() -> &'static [u8] {
    static CODES: OnceLock<Vec<u8>> = OnceLock::new();
    CODES.get_or_init(|| {
        let borders: Vec<f32> = dynamic_values().windows(2).map(|w| (w[0] + w[1]) * 0.5).collect();
        let point = |i: u32| 2.0 * i as f32 / 65535.0 - 1.0;
        (0..1 << 16).map(|i| borders.partition_point(|border| *border < point(i)) as u8).collect()
    })
}
