//! gpt-oss (OpenAI 2025, arXiv 2508.10925): experts whose gate and up alternate in one matrix, attention sinks, a window in
//! every second layer. Its files have the weights of a layer's experts in one tensor (`models::stacks`).

use super::defaults::{alternate, fill};
use super::llama;
use crate::models::blocks::{AttentionDesign, Design, ExpertDesign};
use crate::models::family::{Family, FamilyLayers};
use crate::nn::{ClippedSwiglu, GatedMlpForm};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["gpt_oss"],
    architectures: &["GptOssForCausalLM"],
    key_names: &[("num_experts", "num_local_experts"), ("moe_intermediate_size", "intermediate_size")],
    foreign_keys: &[
        "decoder_sparse_step",
        "max_window_layers",
        "mlp_bias",
        "mlp_only_layers",
        "shared_expert_intermediate_size",
        "use_sliding_window",
    ],
    defaults: |config| {
        fill(
            config,
            [
                ("attention_bias", json!(true)),
                ("head_dim", json!(64)),
                ("max_position_embeddings", json!(131072)),
                ("num_experts_per_tok", json!(4)),
                ("num_key_value_heads", json!(8)),
                ("num_local_experts", json!(128)),
                ("rms_norm_eps", json!(1e-5)),
                ("router_aux_loss_coef", json!(0.001)),
                ("sliding_window", json!(128)),
                ("swiglu_alpha", json!(1.702)),
                ("swiglu_limit", json!(7.0)),
            ],
        );
        alternate(config, 2);
        if !config.contains_key("rope_parameters") {
            fill(config, [("rope_theta", json!(150000.0)), ("rope_scaling", yarn())]);
        }
        // The softmax is over the logits of the chosen experts.
        config.insert("norm_topk_prob".into(), json!(true));
    },
    extra_keys: &[
        "attention_bias",
        "head_dim",
        "layer_types",
        "num_experts",
        "num_experts_per_tok",
        "num_key_value_heads",
        "rope_theta",
        "router_aux_loss_coef",
        "sliding_window",
        "swiglu_alpha",
        "swiglu_limit",
    ],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: true,
    layers: FamilyLayers::Shared(|c| {
        let llama = Design::llama(c)?;
        let attention = AttentionDesign { sinks: true, ..llama.attention };
        let bounds = ClippedSwiglu { alpha: c.number("swiglu_alpha", 1.702), limit: c.number("swiglu_limit", 7.0) };
        let mlp = GatedMlpForm::Interleaved { names: ["gate_up_proj", "down_proj"], bounds };
        let experts = ExpertDesign { router: "router", bias: true, mlp, ..llama.experts };
        Ok(Design { attention, experts, ..llama })
    }),
};

/// Returns the rotary scaling of a config.json that has none.
fn yarn() -> serde_json::Value {
    json!({
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": false,
        "original_max_position_embeddings": 4096,
    })
}
