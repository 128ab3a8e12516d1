//! A decoder with llama's layers and a choice of how it knows positions, for models from random weights. Only ft writes and
//! reads it: other programs would compute llama's rotary embedding.

use super::defaults::{WINDOWS, fill};
use crate::error::Result;
use crate::models::blocks::{AttentionDesign, Design};
use crate::models::family::{Config, Family, FamilyLayers};
use crate::nn::{Alibi, ParamMapping};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["ft_decoder"],
    architectures: &["FtDecoder"],
    key_names: &[],
    foreign_keys: WINDOWS,
    defaults: |config| fill(config, [("max_position_embeddings", json!(2048)), (POSITIONS, json!("sinusoidal"))]),
    extra_keys: &["num_key_value_heads", "attention_bias", "head_dim", "mlp_bias", POSITIONS],
    embedding: "model.embed_tokens.weight",
    map_param: |name| Some(ParamMapping { name: name.into(), transposed: false }),
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

/// The key that says how the model knows positions.
const POSITIONS: &str = "positions";

fn design(c: &Config) -> Result<Design> {
    let llama = Design::llama(c)?;
    let chosen = c.settings.get(POSITIONS).and_then(|v| v.as_str()).unwrap_or_default();
    let alibi = Alibi { factor: 1.0, rounded: false };
    let (sinusoidal, alibi, rotates) = match chosen {
        "sinusoidal" => (true, None, false),
        "alibi" => (false, Some(alibi), false),
        "none" => (false, None, false),
        "rotary" => (false, None, true),
        _ => {
            let found = c.settings.get(POSITIONS).cloned().unwrap_or_default();
            return Err(c
                .refuse(format!("`{POSITIONS}` is {found}, which is not supported"))
                .hint("supported: sinusoidal, alibi, rotary, none"));
        }
    };
    // Section 3.4 of the paper: tokens' vectors are larger by the square root of D than those of the head that shares them.
    let embedding_scale = if sinusoidal { (c.hidden_size as f64).sqrt() } else { llama.embedding_scale };
    let rotates = vec![rotates; c.num_hidden_layers as usize];
    let attention = AttentionDesign { alibi, rotates, ..llama.attention };
    Ok(Design { attention, embedding_scale, sinusoidal_positions: sinusoidal, ..llama })
}
