//! A decoder with llama's layers and a choice of how it knows positions, for models from random weights. Only ft writes and
//! reads it: other programs would compute llama's rotary embedding.

use super::defaults::{WINDOWS, fill};
use crate::error::Result;
use crate::models::blocks::{AttentionDesign, Design};
use crate::models::family::{Config, Family, FamilyLayers};
use crate::nn::{Alibi, ParamMapping, RelativeBuckets};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["ft_decoder"],
    architectures: &["FtDecoder"],
    key_names: &[],
    foreign_keys: WINDOWS,
    defaults: |config| {
        fill(config, [("max_position_embeddings", json!(2048)), (POSITIONS, json!("sinusoidal"))]);
        if config[POSITIONS] == RELATIVE {
            fill(config, [(BUCKETS, json!(32)), (MAX_DISTANCE, json!(128))]);
        }
    },
    extra_keys: &["num_key_value_heads", "attention_bias", "head_dim", "mlp_bias", POSITIONS],
    embedding: "model.embed_tokens.weight",
    map_param: |name| Some(ParamMapping { name: name.into(), transposed: false }),
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

/// The key that says how the model knows positions.
const POSITIONS: &str = "positions";
/// Its value for trained biases of scores, as T5 has them, whose keys are the next two.
const RELATIVE: &str = "relative";
const BUCKETS: &str = "relative_attention_num_buckets";
const MAX_DISTANCE: &str = "relative_attention_max_distance";

fn design(c: &Config) -> Result<Design> {
    let llama = Design::llama(c)?;
    let chosen = c.settings.get(POSITIONS).and_then(|v| v.as_str()).unwrap_or_default();
    let layers = c.num_hidden_layers as usize;
    let unrotated = AttentionDesign { rotates: vec![false; layers], ..llama.attention };
    let attention = match chosen {
        "sinusoidal" | "none" => unrotated,
        "alibi" => AttentionDesign { alibi: Some(Alibi { factor: 1.0, rounded: false }), ..unrotated },
        RELATIVE => AttentionDesign { relative: Some(buckets(c)?), ..unrotated },
        "rotary" => AttentionDesign { rotates: vec![true; layers], ..unrotated },
        _ => {
            let found = c.settings.get(POSITIONS).cloned().unwrap_or_default();
            return Err(c
                .refuse(format!("`{POSITIONS}` is {found}, which is not supported"))
                .hint("supported: sinusoidal, alibi, relative, rotary, none"));
        }
    };
    // Section 3.4 of the paper: tokens' vectors are larger by the square root of D than those of the head that shares them.
    let sinusoidal = chosen == "sinusoidal";
    let embedding_scale = if sinusoidal { (c.hidden_size as f64).sqrt() } else { llama.embedding_scale };
    Ok(Design { attention, embedding_scale, sinusoidal_positions: sinusoidal, ..llama })
}

/// Returns how distances are divided. Fails for numbers that leave no distance to the second half of the buckets.
fn buckets(c: &Config) -> Result<RelativeBuckets> {
    let whole = |key: &str, least: i64, what: &str| {
        let found = c.settings.get(key).cloned().unwrap_or_default();
        found.as_i64().filter(|n| (least..=1 << 20).contains(n)).ok_or_else(|| {
            c.refuse(format!("`{key}` must be a whole number from {least} to {}, found {found}", 1 << 20)).hint(what)
        })
    };
    let count = whole(BUCKETS, 2, "the first half of the buckets has one distance each, the others have ranges")?;
    let hint = "distances from it on are in the last bucket: it must be larger than half the number of buckets";
    Ok(RelativeBuckets { count, max_distance: whole(MAX_DISTANCE, count / 2 + 1, hint)? })
}
