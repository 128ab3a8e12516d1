//! Mixtral: Mistral's layers with experts in place of the MLP (Jiang et al. 2024, arXiv 2401.04088).

use super::defaults::fill;
use super::llama;
use crate::models::blocks::{Design, ExpertDesign};
use crate::models::family::{Family, FamilyLayers};
use crate::nn::GatedMlpForm;
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["mixtral"],
    architectures: &["MixtralForCausalLM"],
    key_names: &[("num_experts", "num_local_experts"), ("moe_intermediate_size", "intermediate_size")],
    foreign_keys: &[
        "attention_bias",
        "decoder_sparse_step",
        "layer_types",
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
                ("num_local_experts", json!(8)),
                ("num_experts_per_tok", json!(2)),
                ("num_key_value_heads", json!(8)),
                ("max_position_embeddings", json!(131072)),
                ("rms_norm_eps", json!(1e-5)),
            ],
        );
        if !config.contains_key("rope_parameters") {
            fill(config, [("rope_theta", json!(1e6))]);
        }
        // The weights of a token's experts always add up to 1.
        config.insert("norm_topk_prob".into(), json!(true));
    },
    extra_keys: &[
        "head_dim",
        "num_experts",
        "num_experts_per_tok",
        "num_key_value_heads",
        "rope_theta",
        "router_aux_loss_coef",
    ],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(|c| {
        let llama = Design::llama(c)?;
        let mlp = GatedMlpForm::Separate(["w1", "w3", "w2"]);
        let experts = ExpertDesign { module: "block_sparse_moe", mlp, ..llama.experts };
        Ok(Design { experts, ..llama })
    }),
};
