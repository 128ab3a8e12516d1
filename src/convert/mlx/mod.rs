//! Models and adapters of mlx-lm, which runs models on Apple's processors: `ft export --to mlx` writes them, `ft import` reads them.
//!
//! families: the models that it calls the layers of as Hugging Face's files do. adapter_export, adapter_import: adapters out and in.
//! model_export, model_import: whole models out and in. model_config: their config.json, and what mlx-lm computes otherwise. affine:
//! matrices of few bits.

pub mod adapter_export;
pub mod adapter_import;
mod affine;
mod families;
pub(in crate::convert) mod model_config;
pub mod model_export;
pub mod model_import;

pub(in crate::convert) use families::is_known;
pub(in crate::convert) use model_config::difference;

use serde::{Deserialize, Serialize};

/// The file with an adapter's tensors.
pub const ADAPTER_TENSORS: &str = "adapters.safetensors";

/// adapter_config.json, as far as mlx-lm reads it to load an adapter.
#[derive(Debug, Serialize, Deserialize)]
struct MlxAdapterConfig {
    /// `lora`, `dora` or `full`; old files lack it.
    #[serde(default)]
    fine_tune_type: Option<String>,
    /// Of how many layers, counted from the last, linear layers may be adapted.
    #[serde(default)]
    num_layers: Option<i64>,
    lora_parameters: MlxLoraParameters,
}

/// Settings that all adapted layers share.
#[derive(Debug, Serialize, Deserialize)]
struct MlxLoraParameters {
    rank: i64,
    /// The factor on A B.
    scale: f64,
    #[serde(default)]
    dropout: f64,
    /// The names of the adapted modules, within a layer.
    #[serde(default)]
    keys: Vec<String>,
}
