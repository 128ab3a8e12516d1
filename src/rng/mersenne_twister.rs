//! The Mersenne Twister (Matsumoto and Nishimura 1998, MT19937), whose numbers torch draws on the CPU and Python in `random`.

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// The generator.
pub struct MersenneTwister {
    state: [u32; SIZE],
    next: usize,
}

impl MersenneTwister {
    /// Starts from one word (`init_genrand`).
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; SIZE];
        for i in 1..SIZE {
            state[i] = mixed(state[i - 1]).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: SIZE }
    }

    /// Starts from several words, at least one (`init_by_array`).
    pub fn of_words(words: &[u32]) -> Self {
        let Self { mut state, next } = Self::new(19_650_218);
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
        Self { state, next }
    }

    /// Draws 32 bits.
    pub fn draw(&mut self) -> u32 {
        if self.next == SIZE {
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
        for i in 0..SIZE {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % SIZE] & 0x7fff_ffff);
            let odd = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + SHIFT) % SIZE] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

fn mixed(word: u32) -> u32 {
    word ^ (word >> 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 10000th number of the reference implementation (and of std::mt19937) from the seed 5489.
    #[test]
    fn the_generator_is_the_reference() {
        let mut generator = MersenneTwister::new(5489);
        let last = (0..10_000).map(|_| generator.draw()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
