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
use tch::{Device, Kind, Tensor};

/// Parameters with fewer numbers keep float32 moments: 8 bits would save too little memory.
const SMALLEST: i64 = 4096;
/// Numbers that are dequantised at a time; a multiple of every block size.
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

    fn step(&self, slot: &ParameterUpdate, StepSize { lr, decay, step }: StepSize) {
        let (b1, b2) = self.exact.betas;
        let (c1, c2) = (1.0 - b1.powf(step as f64), 1.0 - b2.powf(step as f64));
        let n = slot.form.numel();
        let (param, grad) = (slot.param.view([-1]), slot.grad.reshape([-1]));
        for start in (0..n).step_by(CHUNK as usize) {
            let length = CHUNK.min(n - start);
            let (first_block, blocks) = (start / self.block, (length + self.block - 1) / self.block);
            let codes = |i: usize| slot.state[i].narrow(0, start, length);
            let scales = |i: usize| slot.state[i].narrow(0, first_block, blocks);
            // The last block may be incomplete: it is filled up with zeros, which are cut off again below.
            let fill = blocks * self.block - length;
            let whole = |t: Tensor| if fill == 0 { t } else { t.constant_pad_nd([0, fill].as_slice()) };
            let g = whole(grad.narrow(0, start, length)).view([-1, self.block]);
            let mut m = self.signed.dequantise(&whole(codes(0)), &scales(1), self.block);
            m *= b1;
            m += &g * (1.0 - b1);
            let mut v = self.unsigned.dequantise(&whole(codes(2)), &scales(3), self.block);
            v *= b2;
            v += g.square() * (1.0 - b2);
            let u = &m / ((&v / c2).sqrt_() + self.exact.eps);
            let mut p = param.narrow(0, start, length);
            p *= 1.0 - lr * decay;
            p -= u.view([-1]).narrow(0, 0, length) * (lr / c1);
            for (i, (new, scale)) in [(0, self.signed.quantise(&m, false)), (2, self.unsigned.quantise(&v, true))] {
                codes(i).copy_(&new.narrow(0, 0, length));
                scales(i + 1).copy_(&scale);
            }
        }
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

    fn update(&self, slots: &[ParameterUpdate], pace: StepSize) -> Result<()> {
        let (small, large): (Vec<&ParameterUpdate>, Vec<&ParameterUpdate>) =
            slots.iter().partition(|s| s.form.numel() < SMALLEST);
        large.into_iter().for_each(|s| self.step(s, pace));
        self.exact.update(&small.into_iter().map(ParameterUpdate::shallow_clone).collect::<Vec<_>>(), pace)
    }
}
