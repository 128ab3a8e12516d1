//! Python's `random.Random`, as far as lm-evaluation-harness draws examples with it: seeded by a whole number, and `sample`.

use crate::rng::mersenne_twister::MersenneTwister;

/// A generator with Python's numbers.
pub struct PythonRandom(MersenneTwister);

impl PythonRandom {
    /// Does what `random.Random(seed)` does.
    pub fn new(seed: u64) -> Self {
        let words = [seed as u32, (seed >> 32) as u32];
        Self(MersenneTwister::of_words(if words[1] == 0 { &words[..1] } else { &words }))
    }

    /// Draws a whole number below `n`, which is at least 1 (`_randbelow_with_getrandbits`).
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.0.draw() >> (32 - bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// Draws `k` different numbers below `n`, in Python's order (`random.sample(range(n), k)`). `k` is at most `n`, and `n` below
    /// 2^32.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        let set_size = 21 + if k > 5 { 4usize.pow((((k * 3) as f64).ln() / 4f64.ln()).ceil() as u32) } else { 0 };
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let drawn = pool[j];
                    pool[j] = pool[n - i - 1];
                    drawn
                })
                .collect();
        }
        let mut drawn: Vec<usize> = Vec::with_capacity(k);
        while drawn.len() < k {
            let j = self.below(n);
            if !drawn.contains(&j) {
                drawn.push(j);
            }
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of Python 3.11.
    #[test]
    fn samples_are_those_of_python() {
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(4, 3), [3, 0, 2]);
        assert_eq!(random.sample(1000, 5), [92, 932, 965, 961, 826]);
        assert_eq!(random.sample(100, 8), [74, 4, 85, 88, 10, 12, 98, 45]);
        assert_eq!(PythonRandom::new(7 << 33).sample(50, 4), [19, 12, 13, 49]);
    }
}
