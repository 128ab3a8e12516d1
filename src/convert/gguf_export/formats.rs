//! Which format each tensor of a file has.

use crate::gguf::quant::GgmlType;
use crate::gguf::shape::{PlacedTensor, Shape};
use crate::gguf::writer::TensorEntry;

/// A format that a file can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFormat {
    /// Its name in llama.cpp.
    pub name: &'static str,
    /// Its number in `general.file_type`.
    pub number: u32,
    /// The format of most matrices.
    pub main: GgmlType,
    /// Some matrices, whose errors matter more, have more bits (llama.cpp's "M" mixes).
    mixed: bool,
}

const fn plain(name: &'static str, number: u32, main: GgmlType) -> FileFormat {
    FileFormat { name, number, main, mixed: false }
}

/// Every format.
pub const FORMATS: [FileFormat; 11] = [
    plain("F32", 0, GgmlType::F32),
    plain("F16", 1, GgmlType::F16),
    plain("BF16", 32, GgmlType::BF16),
    plain("Q8_0", 7, GgmlType::Q8_0),
    plain("Q4_0", 2, GgmlType::Q4_0),
    plain("Q4_1", 3, GgmlType::Q4_1),
    plain("Q5_0", 8, GgmlType::Q5_0),
    plain("Q5_1", 9, GgmlType::Q5_1),
    FileFormat { name: "Q4_K_M", number: 15, main: GgmlType::Q4_K, mixed: true },
    FileFormat { name: "Q5_K_M", number: 17, main: GgmlType::Q5_K, mixed: true },
    plain("Q6_K", 18, GgmlType::Q6_K),
];

impl FileFormat {
    /// Returns the format of this name, in any case; `None` if there is none.
    pub fn named(name: &str) -> Option<Self> {
        FORMATS.into_iter().find(|format| format.name.eq_ignore_ascii_case(name))
    }

    /// Returns the format of a file with the same matrices, but experts in MXFP4.
    pub fn with_mxfp4(self) -> Self {
        Self { name: "MXFP4", number: 38, ..self }
    }

    /// Returns the format in which every matrix is stored as `kind`.
    pub fn of_kind(kind: GgmlType) -> Self {
        FORMATS.into_iter().find(|format| format.main == kind && !format.mixed).unwrap_or(FORMATS[0])
    }

    /// Returns the entry of a tensor of a model. As in llama.cpp, vectors, norms, routers and tables of positions stay in
    /// float32, and matrices whose rows are no whole number of blocks get a format with smaller blocks, or float16.
    pub fn entry(self, placed: &PlacedTensor, shape: &Shape) -> TensorEntry {
        let name = placed.gguf.as_str();
        let plain = placed.stored.len() <= 1
            || !name.ends_with(".weight")
            || name.ends_with("_norm.weight")
            || name.contains("ffn_gate_inp")
            || name == "position_embd.weight";
        let kind = if plain { GgmlType::F32 } else { self.of_matrix(placed, shape) };
        TensorEntry { name: name.into(), shape: placed.stored.clone(), kind }
    }

    fn of_matrix(self, placed: &PlacedTensor, shape: &Shape) -> GgmlType {
        let columns = placed.stored.last().copied().unwrap_or(1) as usize;
        let wanted = if self.mixed { self.of_mix(placed, shape) } else { self.main };
        let smaller = match wanted {
            GgmlType::Q4_K => GgmlType::Q5_0,
            GgmlType::Q5_K => GgmlType::Q5_1,
            GgmlType::Q6_K => GgmlType::Q8_0,
            other => other,
        };
        let fits = |kind: &GgmlType| columns % kind.block_elements() == 0;
        [wanted, smaller].into_iter().find(fits).unwrap_or(GgmlType::F16)
    }

    /// Returns the format of a matrix in a mix, as `llama-quantize` chooses it: the head, and values and the MLP's last layer in
    /// the first, the last and every third other layer, have six bits.
    fn of_mix(self, placed: &PlacedTensor, shape: &Shape) -> GgmlType {
        let name = placed.gguf.as_str();
        let layer = || name.split('.').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let layers = shape.layers;
        let more = || {
            let i = layer();
            i < layers / 8 || i >= 7 * layers / 8 || (i - layers / 8) % 3 == 2
        };
        let is = |part: &str| name.contains(part);
        match () {
            () if name == "output.weight" || (name == "token_embd.weight" && !shape.has_head()) => GgmlType::Q6_K,
            () if is("attn_v.") && more() => GgmlType::Q6_K,
            () if is("ffn_down") && more() => GgmlType::Q6_K,
            () if is("attn_qkv.") && self.main == GgmlType::Q4_K => GgmlType::Q5_K,
            () if is("attn_qkv.") => GgmlType::Q6_K,
            () => self.main,
        }
    }
}
