//! DeepSeek-V2 and V2-Lite (DeepSeek-AI 2024, arXiv 2405.04434): multi-head latent attention, experts of which a part computes
//! every token, one MLP in the first layers.

use super::defaults::fill;
use super::llama;
use crate::error::Result;
use crate::models::blocks::{AttentionDesign, Design, ExpertDesign, LatentSizes, Projections, SharedExpertNames};
use crate::models::family::{Config, Family, FamilyLayers};
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["deepseek_v2"],
    architectures: &["DeepseekV2ForCausalLM"],
    key_names: &[("num_experts", "n_routed_experts")],
    foreign_keys: &[
        "decoder_sparse_step",
        "mlp_only_layers",
        "layer_types",
        "max_window_layers",
        "partial_rotary_factor",
        "shared_expert_intermediate_size",
        "sliding_window",
        "use_sliding_window",
    ],
    defaults: |config| {
        fill(
            config,
            [
                ("first_k_dense_replace", json!(0)),
                ("intermediate_size", json!(11008)),
                ("kv_lora_rank", json!(512)),
                ("max_position_embeddings", json!(2048)),
                ("moe_intermediate_size", json!(1407)),
                ("n_routed_experts", json!(64)),
                ("n_shared_experts", json!(2)),
                ("q_lora_rank", json!(1536)),
                ("qk_nope_head_dim", json!(128)),
                ("qk_rope_head_dim", json!(64)),
                ("routed_scaling_factor", json!(1.0)),
                ("topk_method", json!("greedy")),
                ("v_head_dim", json!(128)),
                // transformers computes no load balancing for this family.
                ("router_aux_loss_coef", json!(0.0)),
            ],
        );
        // The size of a head's query and key. In the file it is that of the rotated part.
        let size =
            |key: &str| config.get(key).and_then(Value::as_i64).filter(|n| (1..=1 << 24).contains(n)).unwrap_or(0);
        let head = size("qk_nope_head_dim") + size("qk_rope_head_dim");
        config.insert("head_dim".into(), json!(head));
    },
    extra_keys: &[
        "attention_bias",
        "first_k_dense_replace",
        "kv_lora_rank",
        "mlp_bias",
        "moe_intermediate_size",
        "n_group",
        "n_shared_experts",
        "num_experts",
        "num_experts_per_tok",
        "num_key_value_heads",
        "q_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "rope_theta",
        "routed_scaling_factor",
        "topk_group",
        "topk_method",
        "v_head_dim",
    ],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

fn design(c: &Config) -> Result<Design> {
    let llama = Design::llama(c)?;
    if c.num_key_value_heads != c.num_attention_heads {
        return Err(c
            .refuse(format!(
                "`num_key_value_heads` is {}, but each of the {} heads has keys and values of its own",
                c.num_key_value_heads, c.num_attention_heads
            ))
            .hint("is this the config.json that came with the model?"));
    }
    // The first is how the model's own code weights experts, and transformers does not; the second is in no published model.
    for (key, usual) in [("norm_topk_prob", json!(false)), ("moe_layer_freq", json!(1))] {
        if let Some(found) = c.settings.get(key).filter(|v| !v.is_null() && **v != usual) {
            return Err(c
                .refuse(format!("`{key}` is {found}, which is not supported"))
                .hint(format!("supported: {usual}, as in the published models")));
        }
    }
    let sizes = LatentSizes {
        query_rank: size(c, "q_lora_rank")?,
        key_value_rank: required(c, "kv_lora_rank")?,
        plain: required(c, "qk_nope_head_dim")?,
        rotated: required(c, "qk_rope_head_dim")?,
        value: required(c, "v_head_dim")?,
    };
    if sizes.value > sizes.plain + sizes.rotated {
        return Err(c
            .refuse(format!("`v_head_dim` is {}, more than the {} of a key", sizes.value, sizes.plain + sizes.rotated))
            .hint("values may be as long as keys, or shorter"));
    }
    let attention =
        AttentionDesign { projections: Projections::Latent(sizes), scale: scale(c, sizes), ..llama.attention };
    let shared = SharedExpertNames { module: "shared_experts", gate: None };
    let experts = ExpertDesign { shared, ..llama.experts };
    Ok(Design { attention, experts, ..llama })
}

/// Returns the size under a key; `None` if it is null.
fn size(c: &Config, key: &str) -> Result<Option<i64>> {
    let Some(found) = c.settings.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
    found.as_i64().filter(|n| (1..=1 << 24).contains(n)).map(Some).ok_or_else(|| {
        c.refuse(format!("`{key}` must be a positive integer, found {found}"))
            .hint("is this the config.json that came with the model?")
    })
}

fn required(c: &Config, key: &str) -> Result<i64> {
    size(c, key)?.ok_or_else(|| {
        c.refuse(format!("`{key}` is missing")).hint("is this the config.json that came with the model?")
    })
}

/// Returns the factor on the products of queries and keys. Where the rotary embedding is scaled, `mscale_all_dim` changes it
/// (YaRN: Peng et al. 2023, arXiv 2309.00071, equation 22).
fn scale(c: &Config, sizes: LatentSizes) -> f64 {
    let plain = ((sizes.plain + sizes.rotated) as f64).powf(-0.5);
    let section = ["rope_scaling", "rope_parameters"]
        .iter()
        .find_map(|key| c.settings.get(*key).and_then(Value::as_object).filter(|section| !section.is_empty()));
    let number = |key: &str| section.and_then(|section| section.get(key)).and_then(Value::as_f64);
    match (number("mscale_all_dim").filter(|m| *m != 0.0), number("factor")) {
        (Some(m), Some(factor)) if factor > 1.0 => plain * (0.1 * m * factor.ln() + 1.0).powi(2),
        _ => plain,
    }
}
