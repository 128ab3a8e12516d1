//! The families whose layers mlx-lm calls as Hugging Face's files do, so that adapters of them can be written and read.

use crate::models::Config;

/// Their `model_type`.
pub(super) const FAMILIES: [&str; 11] =
    ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "smollm3", "mixtral", "olmoe"];

/// Returns true for the models whose results in mlx-lm were compared with ft's (tests/reference/check_mlx.py).
pub(in crate::convert) fn is_known(config: &Config) -> bool {
    FAMILIES.contains(&config.model_type.as_str())
}

/// Returns why adapters of a model are not written for mlx-lm; `None` if they are.
pub(super) fn refusal(config: &Config) -> Option<String> {
    (!is_known(config))
        .then(|| format!("its adapters are written for {}, not for {}", FAMILIES.join(", "), config.model_type))
}
