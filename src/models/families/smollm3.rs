//! SmolLM 3 (Bakouch et al. 2025): Llama's layers, of which every fourth does not know positions (Yang et al. 2025, arXiv
//! 2501.18795).

use super::defaults::{fill, fill_null};
use super::llama;
use crate::error::Result;
use crate::models::blocks::{AttentionDesign, Design};
use crate::models::family::{Config, Family, FamilyLayers};
use serde_json::{Value, json};

/// For each layer 1 if it has rotary embedding, 0 if it has not, whatever the name says.
const ROTATES: &str = "no_rope_layers";

pub(super) const FAMILY: Family = Family {
    names: &["smollm3"],
    architectures: &["SmolLM3ForCausalLM"],
    key_names: &[],
    foreign_keys: &["max_window_layers"],
    defaults: |config| {
        fill(
            config,
            [
                ("max_position_embeddings", json!(32768)),
                ("num_key_value_heads", json!(4)),
                ("tie_word_embeddings", json!(true)),
                ("use_sliding_window", json!(false)),
            ],
        );
        if !config.contains_key("rope_parameters") {
            fill(config, [("rope_theta", json!(2e6))]);
        }
        let count = |key: &str, default: u64| config.get(key).and_then(Value::as_u64).unwrap_or(default);
        let (layers, interval) = (count("num_hidden_layers", 0).min(10_000), count("no_rope_layer_interval", 4).max(1));
        let rotates: Vec<u8> = (0..layers).map(|i| ((i + 1) % interval != 0).into()).collect();
        fill_null(config, [(ROTATES, json!(rotates))]);
        // Where windows are used, the layers without positions have them.
        let windows =
            config["use_sliding_window"] == true && config.get("sliding_window").is_some_and(|w| !w.is_null());
        let kind = |rotates: &Value| if windows && *rotates == 0 { "sliding_attention" } else { "full_attention" };
        let kinds: Vec<&str> = config[ROTATES].as_array().into_iter().flatten().map(kind).collect();
        fill_null(config, [("layer_types", json!(kinds))]);
    },
    extra_keys: &["num_key_value_heads", "rope_theta", "attention_bias", "mlp_bias", ROTATES],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

fn design(c: &Config) -> Result<Design> {
    let llama = Design::llama(c)?;
    let list = c.settings.get(ROTATES).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let rotates: Vec<bool> = list.iter().filter_map(Value::as_i64).map(|n| n != 0).collect();
    if rotates.len() != list.len() || rotates.len() != c.windows.len() {
        return Err(c
            .refuse(format!("`{ROTATES}` must be a list with a 0 or 1 for each of the {} layers", c.windows.len()))
            .hint("is the file the one that came with the model?"));
    }
    Ok(Design { attention: AttentionDesign { rotates, ..llama.attention }, ..llama })
}
