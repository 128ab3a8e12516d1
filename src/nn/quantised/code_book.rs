//! The values that codes of 4 and 8 bits stand for, with the bits that they have in bitsandbytes.

use super::settings::QuantisedFormat;
use std::sync::OnceLock;

/// NF4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E).
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];
/// FP4, times 12: sign, two bits of exponent, one of fraction.
const TWELVE_FP4: [f32; 16] =
    [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0];

/// A code of 4 bits.
pub struct FourBitCode {
    /// The value of each code.
    pub values: [f32; 16],
    /// The codes by ascending value; of equal values the first is the smaller code.
    pub order: [u8; 16],
    /// The middle between each value and the next larger one, ascending.
    pub borders: [f32; 15],
}

impl FourBitCode {
    fn new(values: [f32; 16]) -> Self {
        let mut order: [u8; 16] = std::array::from_fn(|i| i as u8);
        order.sort_by(|a, b| values[*a as usize].partial_cmp(&values[*b as usize]).expect("numbers"));
        let value = |i: usize| values[order[i] as usize];
        Self { values, order, borders: std::array::from_fn(|i| (value(i) + value(i + 1)) / 2.0) }
    }

    /// Returns the code of a 4-bit format.
    ///
    /// # Panics
    /// For int8, which has no table.
    pub fn of(format: QuantisedFormat) -> &'static Self {
        static CODES: OnceLock<[FourBitCode; 2]> = OnceLock::new();
        let [nf4, fp4] = CODES.get_or_init(|| [Self::new(NF4), Self::new(TWELVE_FP4.map(|x| x / 12.0))]);
        match format {
            QuantisedFormat::Nf4 => nf4,
            QuantisedFormat::Fp4 => fp4,
            QuantisedFormat::Int8 | QuantisedFormat::Fp8 => panic!("numbers of 8 bits have no table"),
        }
    }
}

/// The dynamic code of 8 bits (Dettmers et al. 2021, arXiv 2110.02861, section 1.3) with the bits of bitsandbytes, which
/// computes it in float32: the 256 values, ascending.
pub fn dynamic_values() -> &'static [f32; 256] {
    static VALUES: OnceLock<[f32; 256]> = OnceLock::new();
    VALUES.get_or_init(|| {
        let mut values = vec![0.0f32, 1.0];
        for exponent in 0..7 {
            let edges = evenly_spaced((1 << exponent) + 1);
            let size = 10f64.powi(exponent - 6) as f32;
            for pair in edges.windows(2) {
                let value = size * ((pair[0] + pair[1]) / 2.0);
                values.extend([value, -value]);
            }
        }
        values.sort_by(f32::total_cmp);
        values.try_into().expect("2 + 2 (1 + 2 + … + 64) values")
    })
}

/// Returns `count` numbers from 0.1 to 1 in float32, computed from both ends and rounded once, as libtorch's `linspace`
/// does on processors with fused multiplication and addition.
fn evenly_spaced(count: usize) -> Vec<f32> {
    let (start, end) = (0.1f32, 1.0f32);
    let step = (end - start) / (count - 1) as f32;
    let at = |i: usize| match i < count / 2 {
        true => step.mul_add(i as f32, start),
        false => step.mul_add(-((count - 1 - i) as f32), end),
    };
    (0..count).map(at).collect()
}
