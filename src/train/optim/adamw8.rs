//! AdamW with moments in 8 bits (Dettmers et al. 2021, arXiv 2110.02861), block by block as in bitsandbytes.
//!
//! A moment is held as one byte a number, the index of the nearest entry of the dynamic map times the largest absolute
//! value of its block (float32, one a block). Each step widens a block, updates it, uses the exact new moments for the
//! parameter, and rounds them again. Parameters of less than [`SMALLEST`] numbers keep float32 moments.
//! One departure: a positive second moment never rounds to zero, which would let the next step run away.

use super::adamw::AdamW;
use super::rule::{Field, Form, Pace, Rule, Slot};
use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// Parameters below this many numbers gain nothing.
const SMALLEST: i64 = 4096;
/// Numbers that are wide at a time; a multiple of every block size.
const CHUNK: i64 = 1 << 20;

/// Two bytes a parameter, and eight for each block.
pub struct AdamW8 {
    pub exact: AdamW,
    /// Numbers that share a scale.
    block: i64,
    signed: Map,
    unsigned: Map,
}

/// The 256 values of a byte, in order, and the borders between them.
pub struct Map {
    pub values: Tensor,
    borders: Tensor,
}

impl Map {
    /// The dynamic map (section 1.3 of the paper; appendix F for the unsigned one): the exponent's bits are the leading
    /// zeros of the byte, what is left of it is a linear fraction between 0.1 and 1 of that power of ten; zero and one
    /// belong to it.
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

    /// (n) codes and (n / block) scales to (n / block, block) numbers.
    fn widen(&self, codes: &Tensor, scales: &Tensor, block: i64) -> Tensor {
        self.values.index_select(0, &codes.to_kind(Kind::Int)).view([-1, block]) * scales.unsqueeze(-1)
    }

    /// (blocks, block) numbers to codes and scales; with `positive`, what is above zero stays above zero.
    fn narrow(&self, numbers: &Tensor, positive: bool) -> (Tensor, Tensor) {
        let scales = numbers.abs().amax([-1i64].as_slice(), false);
        // A block of zeros has any scale.
        let share = numbers / scales.clamp_min(f64::from(f32::MIN_POSITIVE)).unsqueeze(-1);
        let mut codes = share.bucketize(&self.borders, true, false);
        if positive {
            codes = codes.maximum(&numbers.gt(0.0).to_kind(Kind::Int));
        }
        (codes.to_kind(Kind::Uint8).view([-1]), scales)
    }
}

impl AdamW8 {
    pub fn new(exact: AdamW, block: i64, device: Device) -> Self {
        Self { exact, block, signed: Map::dynamic(true, device), unsigned: Map::dynamic(false, device) }
    }

    fn step(&self, slot: &Slot, Pace { lr, decay, step }: Pace) {
        let (b1, b2) = self.exact.betas;
        let (c1, c2) = (1.0 - b1.powf(step as f64), 1.0 - b2.powf(step as f64));
        let n = slot.form.numel();
        let (param, grad) = (slot.param.view([-1]), slot.grad.reshape([-1]));
        for start in (0..n).step_by(CHUNK as usize) {
            let length = CHUNK.min(n - start);
            let (first_block, blocks) = (start / self.block, (length + self.block - 1) / self.block);
            let codes = |i: usize| slot.state[i].narrow(0, start, length);
            let scales = |i: usize| slot.state[i].narrow(0, first_block, blocks);
            // The last block may be short.
            let fill = blocks * self.block - length;
            let whole = |t: Tensor| if fill == 0 { t } else { t.constant_pad_nd([0, fill].as_slice()) };
            let g = whole(grad.narrow(0, start, length)).view([-1, self.block]);
            let mut m = self.signed.widen(&whole(codes(0)), &scales(1), self.block);
            m *= b1;
            m += &g * (1.0 - b1);
            let mut v = self.unsigned.widen(&whole(codes(2)), &scales(3), self.block);
            v *= b2;
            v += g.square() * (1.0 - b2);
            let u = &m / ((&v / c2).sqrt_() + self.exact.eps);
            let mut p = param.narrow(0, start, length);
            p *= 1.0 - lr * decay;
            p -= u.view([-1]).narrow(0, 0, length) * (lr / c1);
            for (i, (new, scale)) in [(0, self.signed.narrow(&m, false)), (2, self.unsigned.narrow(&v, true))] {
                codes(i).copy_(&new.narrow(0, 0, length));
                scales(i + 1).copy_(&scale);
            }
        }
    }
}

impl Rule for AdamW8 {
    fn layout(&self, form: &Form) -> Vec<Field> {
        let n = form.numel();
        if n < SMALLEST {
            return self.exact.layout(form);
        }
        let byte = |name| Field { name, shape: vec![n], kind: Kind::Uint8 };
        let scale = |name| Field::float(name, &[(n + self.block - 1) / self.block]);
        vec![byte("first"), scale("first_scale"), byte("second"), scale("second_scale")]
    }

    fn update(&self, slots: &[Slot], pace: Pace) -> Result<()> {
        let (small, large): (Vec<&Slot>, Vec<&Slot>) = slots.iter().partition(|s| s.form.numel() < SMALLEST);
        large.into_iter().for_each(|s| self.step(s, pace));
        self.exact.update(&small.into_iter().map(Slot::share).collect::<Vec<_>>(), pace)
    }
}
