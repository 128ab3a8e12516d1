//! Adapters of mlx-lm, which runs models on Apple's processors: `ft export ADAPTER --to mlx` writes them, `ft import` reads them.
//!
//! families: the models that it calls the layers of as Hugging Face's files do. adapter_export, adapter_import: adapters out and in.

pub mod adapter_export;
pub mod adapter_import;
mod families;

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
