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
    /// Some matrices, whose errors matter more, have more bits.
    mix: Option<Mix>,
}

/// How many of the matrices whose errors matter more have more bits, in llama.cpp's letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mix {
    Small,
    Medium,
    Large,
}

const fn plain(name: &'static str, number: u32, main: GgmlType) -> FileFormat {
    FileFormat { name, number, main, mix: None }
}

const fn mixed(name: &'static str, number: u32, main: GgmlType, mix: Mix) -> FileFormat {
    FileFormat { name, number, main, mix: Some(mix) }
}

/// Every format.
pub const FORMATS: [FileFormat; 18] = [
    plain("F32", 0, GgmlType::F32),
    plain("F16", 1, GgmlType::F16),
    plain("BF16", 32, GgmlType::BF16),
    plain("Q8_0", 7, GgmlType::Q8_0),
    plain("Q4_0", 2, GgmlType::Q4_0),
    plain("Q4_1", 3, GgmlType::Q4_1),
    plain("IQ4_NL", 25, GgmlType::IQ4_NL),
    plain("Q5_0", 8, GgmlType::Q5_0),
    plain("Q5_1", 9, GgmlType::Q5_1),
    mixed("Q2_K", 10, GgmlType::Q2_K, Mix::Medium),
    mixed("Q3_K_S", 11, GgmlType::Q3_K, Mix::Small),
    mixed("Q3_K_M", 12, GgmlType::Q3_K, Mix::Medium),
    mixed("Q3_K_L", 13, GgmlType::Q3_K, Mix::Large),
    mixed("Q4_K_S", 14, GgmlType::Q4_K, Mix::Small),
    mixed("Q4_K_M", 15, GgmlType::Q4_K, Mix::Medium),
    mixed("Q5_K_S", 16, GgmlType::Q5_K, Mix::Small),
    mixed("Q5_K_M", 17, GgmlType::Q5_K, Mix::Medium),
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
        FORMATS.into_iter().find(|format| format.main == kind && format.mix.is_none()).unwrap_or(FORMATS[0])
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
        let wanted = self.mix.map_or(self.main, |mix| self.of_mix(mix, placed, shape));
        let smaller = match wanted {
            GgmlType::Q2_K | GgmlType::Q3_K => GgmlType::Q4_0,
            GgmlType::Q4_K => GgmlType::Q5_0,
            GgmlType::Q5_K => GgmlType::Q5_1,
            GgmlType::Q6_K => GgmlType::Q8_0,
            other => other,
        };
        let fits = |kind: &GgmlType| columns % kind.block_elements() == 0;
        [wanted, smaller].into_iter().find(fits).unwrap_or(GgmlType::F16)
    }

    /// Returns the format of a matrix in a mix, as `llama-quantize` chooses it.
    fn of_mix(self, mix: Mix, placed: &PlacedTensor, shape: &Shape) -> GgmlType {
        let name = placed.gguf.as_str();
        let (layers, falcon) = (shape.layers, shape.family.arch == "falcon");
        let layer = name.split('.').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        // The first and the last eighth of the layers, and every third one between them.
        let more = layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
        let first = layer < layers / 16;
        let eight_experts = shape.experts.is_some_and(|experts| experts.count == 8);
        let is = |part: &str| name.contains(part);
        let values = is("attn_v.") || is("attn_qkv.");
        use GgmlType::{Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0};
        use Mix::{Large, Medium, Small};
        if name == "output.weight" || (name == "token_embd.weight" && !shape.has_head()) {
            // Falcon's head has many rows for its width.
            return if falcon { Q8_0 } else { Q6_K };
        }
        let down = is("ffn_down");
        let result = is("attn_output.");
        // What llama.cpp calls a 70B model: its value matrices are small.
        let of_70b = layers == 80
            && (shape.family.arch == "qwen2" || shape.family.arch == "llama" && shape.heads > shape.kv_heads);
        let more_for_70b = |kind: GgmlType| match kind {
            Q3_K | Q4_K if of_70b && is("attn_v.") => Q5_K,
            kind => kind,
        };
        more_for_70b(match (self.main, mix) {
            _ if eight_experts && (is("attn_v.") || is("attn_k.")) => Q8_0,
            (Q2_K | Q3_K | Q4_K, Small | Medium) if eight_experts && result => Q5_K,
            (Q2_K, _) if values && shape.heads / shape.kv_heads.max(1) >= 4 => Q4_K,
            (Q2_K, _) if values || down || (result && !falcon) => Q3_K,
            (Q3_K, Medium) if values && layer < 2 => Q5_K,
            (Q3_K, Medium) if values => Q4_K,
            (Q3_K, Medium) if down && first => Q5_K,
            (Q3_K, Medium) if down && (!falcon || more) => Q4_K,
            (Q3_K, Medium) if result && !falcon => Q4_K,
            (Q3_K, Large) if falcon && (down || result) => Q4_K,
            (Q3_K, Large) if values || down || (result && !eight_experts) => Q5_K,
            (Q4_K, Small) if values && layer < 4 => Q5_K,
            (Q4_K, Small) if down && layer < layers / 8 && !falcon => Q5_K,
            (Q4_K, Medium) if down && falcon && first => Q6_K,
            (Q4_K, Medium) if down && falcon && more => Q5_K,
            (Q4_K, Medium) if down && falcon => Q4_K,
            (Q4_K | Q5_K, Medium) if (values || down) && more => Q6_K,
            _ => self.main,
        })
    }
}
