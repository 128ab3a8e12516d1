//! VeRA's random projections, which PEFT makes again from a seed if a file does not contain them.

use crate::rng::mersenne_twister::MersenneTwister;
use tch::Tensor;

/// Returns A (R, in) and B (out, R) as PEFT makes them from a seed: Kaiming uniform with the gain of a ReLU, both from one
/// generator on the CPU. libtorch's own cannot be used here: there is one per process, whose numbers belong to the run.
pub(super) fn from_seed(seed: u64, rank: i64, inputs: i64, outputs: i64) -> [Tensor; 2] {
    // torch takes the lowest 32 bits of a seed.
    let mut generator = MersenneTwister::new(seed as u32);
    [[rank, inputs], [outputs, rank]].map(|shape| {
        let bound = 3f64.sqrt() * (2f64.sqrt() / (shape[1] as f64).sqrt());
        let (from, to) = (-bound as f32, bound as f32);
        // torch takes the lowest 24 bits of each number.
        let uniform = |bits: u32| (bits & 0xff_ffff) as f32 * (1.0 / (1 << 24) as f32) * (to - from) + from;
        let numbers: Vec<f32> = (0..shape[0] * shape[1]).map(|_| uniform(generator.draw())).collect();
        Tensor::from_slice(&numbers).view(shape)
    })
}
