//! Converts ggml's number formats to float32, with the same bits as the `gguf` Python package.
//!
//! A tensor is a sequence of blocks; a block has a fixed number of elements in a fixed number of bytes. Notation in the
//! comments: `d` is the block's scale, `m` its offset, `q` the stored small integer.

use half::{bf16, f16};
use rayon::prelude::*;

/// The storage format of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(non_camel_case_types)] // the names that users of GGUF know
pub enum GgmlType {
    /// Float32.
    F32,
    /// Float16.
    F16,
    /// Bfloat16.
    BF16,
    /// 4 bits, scale.
    Q4_0,
    /// 4 bits, scale and offset.
    Q4_1,
    /// 5 bits, scale.
    Q5_0,
    /// 5 bits, scale and offset.
    Q5_1,
    /// 8 bits, scale.
    Q8_0,
    /// 2 bits, 16 groups with scale and offset.
    Q2_K,
    /// 3 bits, 16 groups with scale.
    Q3_K,
    /// 4 bits, 8 groups with scale and offset.
    Q4_K,
    /// 5 bits, 8 groups with scale and offset.
    Q5_K,
    /// 6 bits, 16 groups with scale.
    Q6_K,
    /// 4 bits, which choose among 16 levels that lie closer near zero, and scale.
    IQ4_NL,
    /// 4 bits with an exponent of their own (e2m1), and a power of two as scale (e8m0).
    MXFP4,
}

use GgmlType::*;

/// Each format with ggml's type number, the elements of a block and its bytes.
const KINDS: [(GgmlType, u32, usize, usize); 15] = [
    (F32, 0, 1, 4),
    (F16, 1, 1, 2),
    (BF16, 30, 1, 2),
    (Q4_0, 2, 32, 18),
    (Q4_1, 3, 32, 20),
    (Q5_0, 6, 32, 22),
    (Q5_1, 7, 32, 24),
    (Q8_0, 8, 32, 34),
    (Q2_K, 10, 256, 84),
    (Q3_K, 11, 256, 110),
    (Q4_K, 12, 256, 144),
    (Q5_K, 13, 256, 176),
    (Q6_K, 14, 256, 210),
    (IQ4_NL, 20, 32, 18),
    (MXFP4, 39, 32, 17),
];

/// Types of ggml that are not supported here; listed so that an error can name them.
const UNSUPPORTED: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
    (4, "Q4_2 (removed from ggml)"),
    (5, "Q4_3 (removed from ggml)"),
];

impl GgmlType {
    /// Returns the format with ggml's type number `id`; the error is the name of an unsupported type.
    pub fn from_id(id: u32) -> Result<Self, String> {
        if let Some(row) = KINDS.iter().find(|k| k.1 == id) {
            return Ok(row.0);
        }
        Err(UNSUPPORTED
            .iter()
            .find(|o| o.0 == id)
            .map_or_else(|| format!("number {id}, unknown to ggml,"), |o| o.1.to_string()))
    }

    fn row(self) -> &'static (GgmlType, u32, usize, usize) {
        KINDS.iter().find(|k| k.0 == self).expect("every kind has a row")
    }

    /// Returns true for the formats that store each number by itself.
    pub fn is_float(self) -> bool {
        matches!(self, F32 | F16 | BF16)
    }

    /// Returns the number of elements in a block.
    pub fn block_elements(self) -> usize {
        self.row().2
    }

    /// Returns the size of a block in bytes.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Returns where in a block its float16 scales and offsets begin; none for formats without blocks.
    pub fn scale_offsets(self) -> &'static [usize] {
        match self {
            F32 | F16 | BF16 | MXFP4 => &[],
            Q4_0 | Q5_0 | Q8_0 | IQ4_NL => &[0],
            Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
            Q2_K => &[80, 82],
            Q3_K => &[108],
            Q6_K => &[208],
        }
    }

    /// Returns ggml's number of the format.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// Returns the format with the name that llama.cpp prints; `None` if there is none.
    pub fn named(name: &str) -> Option<Self> {
        KINDS.iter().map(|k| k.0).find(|kind| kind.name() == name)
    }

    /// Returns the name as llama.cpp prints it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Returns all supported names, separated by commas, for messages.
    pub fn names() -> String {
        KINDS.map(|k| k.0.name()).join(", ")
    }
}

/// Returns the float32 values of `data`. Panics if `data` is not a whole number of blocks.
pub fn dequantise(kind: GgmlType, data: &[u8]) -> Vec<f32> {
    let (elements, bytes) = (kind.block_elements(), kind.block_bytes());
    assert!(data.len().is_multiple_of(bytes), "{} bytes are no whole number of {} blocks", data.len(), kind.name());
    let block = match kind {
        F32 => return each(data, f32::from_le_bytes),
        F16 => return each(data, |b| f16::from_le_bytes(b).to_f32()),
        BF16 => return each(data, |b| bf16::from_le_bytes(b).to_f32()),
        Q4_0 => q4_0,
        Q4_1 => q4_1,
        Q5_0 => q5_0,
        Q5_1 => q5_1,
        Q8_0 => q8_0,
        Q2_K => q2_k,
        Q3_K => q3_k,
        Q4_K => q4_k,
        Q5_K => q5_k,
        Q6_K => q6_k,
        IQ4_NL => iq4_nl,
        MXFP4 => mxfp4,
    };
    let mut values = vec![0f32; data.len() / bytes * elements];
    // Some thousand elements per task keep rayon's overhead small.
    let run = (1 << 14) / elements;
    values.par_chunks_mut(run * elements).zip(data.par_chunks(run * bytes)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(elements).zip(x.chunks_exact(bytes)) {
            block(x, y);
        }
    });
    values
}

/// Reads numbers that are stored each by itself.
fn each<const BYTES: usize>(data: &[u8], read: impl Fn([u8; BYTES]) -> f32 + Sync) -> Vec<f32> {
    let mut values = vec![0f32; data.len() / BYTES];
    let run = 1 << 14;
    values.par_chunks_mut(run).zip(data.par_chunks(run * BYTES)).for_each(|(y, x)| {
        let numbers = x.chunks_exact(BYTES).map(|b| read(b.try_into().expect("chunks have this length")));
        y.iter_mut().zip(numbers).for_each(|(y, x)| *y = x);
    });
    values
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Returns nibble `i` of 32: the low nibbles of 16 bytes come first, then the high ones.
fn nibble(b: &[u8], i: usize) -> u8 {
    (b[i % 16] >> (4 * (i / 16))) & 0x0F
}

/// Returns bit `i` of 32, shifted to be the fifth bit of a number.
fn fifth_bit(b: &[u8], i: usize) -> u8 {
    (b[i / 8] >> (i % 8) & 1) << 4
}

/// y = d (q − 8)
fn q4_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * (nibble(&b[2..], i) as i8 - 8) as f32;
    }
}

/// y = d q + m
fn q4_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * nibble(&b[4..], i) as f32 + m;
    }
}

/// y = d (q − 16)
fn q5_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * ((nibble(&b[6..], i) | fifth_bit(&b[2..], i)) as i8 - 16) as f32;
    }
}

/// y = d q + m
fn q5_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * (nibble(&b[8..], i) | fifth_bit(&b[4..], i)) as f32 + m;
    }
}

/// y = d q
fn q8_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (y, &q) in y.iter_mut().zip(&b[2..]) {
        *y = d * (q as i8) as f32;
    }
}

/// Returns the two bits of element `i` of 256; each 32 bytes hold four planes of 32 elements.
fn two_bits(b: &[u8], i: usize) -> u8 {
    (b[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3
}

/// 16 groups of 16: y = d s q − dmin t, with s and t the nibbles of one byte a group.
fn q2_k(b: &[u8], y: &mut [f32]) {
    let (scales, qs) = (&b[..16], &b[16..80]);
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    for (i, y) in y.iter_mut().enumerate() {
        let s = scales[i / 16];
        *y = d * (s & 0x0F) as f32 * two_bits(qs, i) as f32 - dmin * (s >> 4) as f32;
    }
}

/// 16 groups of 16: y = d (s − 32) (q − 4 where the mask bit is clear), six-bit s.
fn q3_k(b: &[u8], y: &mut [f32]) {
    let (mask, qs, scales) = (&b[..32], &b[32..96], &b[96..108]);
    let d = half_at(b, 108);
    for (i, y) in y.iter_mut().enumerate() {
        let g = i / 16;
        let low = (scales[g % 8] >> (4 * (g / 8))) & 0x0F;
        let high = (scales[8 + g % 4] >> (2 * (g / 4))) & 3;
        let s = (low | high << 4) as i8 - 32;
        let offset = if mask[i % 32] >> (i / 32) & 1 == 1 { 0 } else { 4 };
        *y = d * s as f32 * (two_bits(qs, i) as i8 - offset) as f32;
    }
}

/// Returns the six-bit scale and minimum of group `g` of 8; all are packed into 12 bytes.
fn scale_and_min(b: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (b[g] & 0x3F, b[4 + g] & 0x3F)
    } else {
        let low = b[4 + g];
        (low & 0x0F | b[g - 4] >> 2 & 0x30, low >> 4 | b[g] >> 2 & 0x30)
    }
}

/// 8 groups of 32: y = d s q − dmin t
fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let qs = &b[16..144];
    for (g, y) in y.chunks_exact_mut(32).enumerate() {
        let (s, t) = scale_and_min(&b[4..16], g);
        let (scale, min) = (d * s as f32, dmin * t as f32);
        for (i, y) in y.iter_mut().enumerate() {
            let q = qs[g / 2 * 32 + i] >> (4 * (g % 2)) & 0x0F;
            *y = scale * q as f32 - min;
        }
    }
}

/// As Q4_K, with a fifth bit of q from bit g of 32 further bytes.
fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let (qh, qs) = (&b[16..48], &b[48..176]);
    for (g, y) in y.chunks_exact_mut(32).enumerate() {
        let (s, t) = scale_and_min(&b[4..16], g);
        let (scale, min) = (d * s as f32, dmin * t as f32);
        for (i, y) in y.iter_mut().enumerate() {
            let q = qs[g / 2 * 32 + i] >> (4 * (g % 2)) & 0x0F | (qh[i] >> g & 1) << 4;
            *y = scale * q as f32 - min;
        }
    }
}

/// 16 groups of 16: y = d s (q − 32), signed eight-bit s.
fn q6_k(b: &[u8], y: &mut [f32]) {
    let (ql, qh, scales) = (&b[..128], &b[128..192], &b[192..208]);
    let d = half_at(b, 208);
    for (i, y) in y.iter_mut().enumerate() {
        let low = ql[i / 128 * 64 + i % 64] >> (4 * (i % 128 / 64)) & 0x0F;
        let q = (low | two_bits(qh, i) << 4) as i8 - 32;
        *y = d * (scales[i / 16] as i8) as f32 * q as f32;
    }
}

/// The levels of IQ4_NL.
pub(crate) const FOUR_BIT_LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// y = d v(q)
fn iq4_nl(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * f32::from(FOUR_BIT_LEVELS[usize::from(nibble(&b[2..], i))]);
    }
}

/// y = v[q] 2^(e - 128), with v the doubled values of e2m1. ggml has no negative zero.
fn mxfp4(b: &[u8], y: &mut [f32]) {
    const DOUBLED: [f32; 16] =
        [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];
    // 2^-128 and 2^-127 are no normal numbers.
    let scale = match b[0] {
        255 => f32::NAN,
        e @ (0 | 1) => f32::from_bits(1 << (21 + u32::from(e))),
        e => f32::from_bits(u32::from(e - 1) << 23),
    };
    for (i, y) in y.iter_mut().enumerate() {
        *y = DOUBLED[nibble(&b[1..], i) as usize] * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_made_q4_0_block() {
        let mut b = vec![0u8; 18];
        b[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        b[2] = 0xF0; // element 0 is 0 - 8, element 16 is 15 - 8
        let y = dequantise(Q4_0, &b);
        assert_eq!((y[0], y[16], y[1]), (-4.0, 3.5, -4.0));
    }

    #[test]
    fn a_hand_made_mxfp4_block() {
        let mut b = vec![0u8; 17];
        (b[0], b[1], b[16]) = (130, 0xF2, 0x0D); // a scale of 2^3; elements 0, 16 and 15
        let y = dequantise(MXFP4, &b);
        assert_eq!((y[0], y[16], y[15], y[1]), (8.0, -48.0, -24.0, 0.0));
        for (e, power) in [(0, -127), (1, -126), (127, 0), (254, 127)] {
            (b[0], b[1]) = (e, 2);
            assert_eq!(f64::from(dequantise(MXFP4, &b)[0]), 2f64.powi(power), "{e}");
        }
    }

    #[test]
    fn ids_round_trip_and_unknown_ones_are_named() {
        for (kind, id, ..) in KINDS {
            assert_eq!(GgmlType::from_id(id), Ok(kind));
        }
        assert_eq!(GgmlType::from_id(23), Err("IQ4_XS".to_string()));
        assert!(GgmlType::from_id(999).unwrap_err().contains("999"));
    }
}
