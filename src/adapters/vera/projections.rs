//! VeRA's random projections, which PEFT makes again from a seed if a file does not contain them.

use tch::Tensor;

/// Returns A (R, in) and B (out, R) as PEFT makes them from a seed: Kaiming uniform with the gain of a ReLU, both from one
/// generator on the CPU.
pub(super) fn from_seed(seed: u64, rank: i64, inputs: i64, outputs: i64) -> [Tensor; 2] {
    let mut generator = MersenneTwister::new(seed);
    [[rank, inputs], [outputs, rank]].map(|shape| {
        let bound = 3f64.sqrt() * (2f64.sqrt() / (shape[1] as f64).sqrt());
        let (from, to) = (-bound as f32, bound as f32);
        // torch takes the lowest 24 bits of each number.
        let uniform = |bits: u32| (bits & 0xff_ffff) as f32 * (1.0 / (1 << 24) as f32) * (to - from) + from;
        let numbers: Vec<f32> = (0..shape[0] * shape[1]).map(|_| uniform(generator.next())).collect();
        Tensor::from_slice(&numbers).view(shape)
    })
}

/// The generator behind torch's on the CPU (Matsumoto & Nishimura 1998, mt19937). libtorch's own cannot be used here: there
/// is one per process, whose numbers belong to the run.
struct MersenneTwister {
    state: [u32; Self::SIZE],
    next: usize,
}

impl MersenneTwister {
    const SIZE: usize = 624;
    const SHIFT: usize = 397;

    /// Starts from the lowest 32 bits of a seed, as torch does.
    fn new(seed: u64) -> Self {
        let mut state = [seed as u32; Self::SIZE];
        for i in 1..Self::SIZE {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: Self::SIZE }
    }

    fn next(&mut self) -> u32 {
        if self.next == Self::SIZE {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..Self::SIZE {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % Self::SIZE] & 0x7fff_ffff);
            let odd = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + Self::SHIFT) % Self::SIZE] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 10000th number of the reference implementation (and of std::mt19937) from the seed 5489.
    #[test]
    fn the_generator_is_the_reference() {
        let mut generator = MersenneTwister::new(5489);
        let last = (0..10_000).map(|_| generator.next()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
