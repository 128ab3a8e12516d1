//! Python's `random.Random`, as far as lm-evaluation-harness draws examples with it: the Mersenne Twister MT19937 (Matsumoto and
//! Nishimura 1998) seeded by a whole number, and `sample`.

const SIZE: usize = 624;
const MIDDLE: usize = 397;

/// A generator with Python's numbers.
pub struct PythonRandom {
    state: [u32; SIZE],
    next: usize,
}

impl PythonRandom {
    /// Does what `random.Random(seed)` does (`init_by_array`).
    pub fn new(seed: u64) -> Self {
        let mut words = vec![seed as u32];
        if seed >> 32 != 0 {
            words.push((seed >> 32) as u32);
        }
        let mut state = [0u32; SIZE];
        state[0] = 19_650_218;
        for i in 1..SIZE {
            state[i] = mixed(state[i - 1]).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        let wrap = |state: &mut [u32; SIZE], i: &mut usize| {
            *i += 1;
            if *i == SIZE {
                state[0] = state[SIZE - 1];
                *i = 1;
            }
        };
        for _ in 0..SIZE.max(words.len()) {
            let turned = mixed(state[i - 1]).wrapping_mul(1_664_525);
            state[i] = (state[i] ^ turned).wrapping_add(words[j]).wrapping_add(j as u32);
            wrap(&mut state, &mut i);
            j = (j + 1) % words.len();
        }
        for _ in 0..SIZE - 1 {
            let turned = mixed(state[i - 1]).wrapping_mul(1_566_083_941);
            state[i] = (state[i] ^ turned).wrapping_sub(i as u32);
            wrap(&mut state, &mut i);
        }
        state[0] = 1 << 31;
        Self { state, next: SIZE }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == SIZE {
            for i in 0..SIZE {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % SIZE] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + MIDDLE) % SIZE] ^ (y >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Draws a whole number below `n`, which is at least 1 (`_randbelow_with_getrandbits`).
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.next_u32() >> (32 - bits)) as usize;
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

fn mixed(word: u32) -> u32 {
    word ^ (word >> 30)
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
