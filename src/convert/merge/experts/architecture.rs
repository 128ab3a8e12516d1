//! The family that dense models are made into: which models fit it, the names of its tensors, and config.json.

use super::ExpertMerge;
use crate::convert::folder::config_file;
use crate::convert::merge::model_input::ModelInput;
use crate::error::{Error, Result};
use crate::models::Config;
use crate::recipe::merge_file::{ExpertArchitecture, ExpertMergeFile};
use serde_json::{Map, Value, json};
use std::path::Path;
use tch::Kind;

/// Part of the names of the tensors of an MLP.
pub(super) const MLP: &str = ".mlp.";

/// Returns the family of the result. Fails if the models are unlike, or if no family or not the wanted one fits them.
pub(super) fn choose(file: &ExpertMergeFile, inputs: &[ModelInput]) -> Result<ExpertArchitecture> {
    let base = &inputs[0];
    let model_type = base.config.model_type.as_str();
    let refuse = |what: String, hint: &str| Err(Error::user(what).hint(hint));
    if let Some(other) = inputs.iter().find(|input| input.config.model_type != model_type) {
        return refuse(
            format!(
                "{} is a {model_type} model, {} is a {} model",
                base.folder.display(),
                other.folder.display(),
                other.config.model_type
            ),
            "experts are made of models of one architecture",
        );
    }
    let sizes = |input: &ModelInput| {
        let c = &input.config;
        (c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.hidden_act.clone())
    };
    if let Some(other) = inputs.iter().find(|input| sizes(input) != sizes(base)) {
        return refuse(
            format!(
                "{} and {} have other sizes: (layers, hidden_size, intermediate_size, hidden_act) are {:?} and {:?}",
                base.folder.display(),
                other.folder.display(),
                sizes(base),
                sizes(other)
            ),
            "experts are made of models that were trained from the same base",
        );
    }
    let fitting = match model_type {
        "llama" | "mistral" => ExpertArchitecture::Mixtral,
        "qwen2" => ExpertArchitecture::Qwen2Moe,
        "qwen3" => ExpertArchitecture::Qwen3Moe,
        _ => {
            return refuse(
                format!("{}: no family of models with experts is made of {model_type} models", base.folder.display()),
                "llama and mistral models become mixtral, qwen2 becomes qwen2_moe, qwen3 becomes qwen3_moe",
            );
        }
    };
    if let Some(wanted) = file.architecture.filter(|wanted| *wanted != fitting) {
        return refuse(
            format!("`architecture`: {model_type} models become {}, not {}", fitting.model_type(), wanted.model_type()),
            "leave out `architecture`",
        );
    }
    match (fitting, &file.shared) {
        (ExpertArchitecture::Qwen2Moe, None) => refuse(
            "qwen2_moe has an expert that computes every token, and the file names none".into(),
            "e.g. `shared_experts: [{source_model: models/base, positive_prompts: [\"hello\"]}]`",
        ),
        (ExpertArchitecture::Mixtral | ExpertArchitecture::Qwen3Moe, Some(_)) => {
            refuse(format!("`shared_experts`: {} has no shared expert", fitting.model_type()), "leave it out")
        }
        _ if base.config.mlp_bias || base.config.attention_bias && fitting == ExpertArchitecture::Mixtral => refuse(
            format!("{}: its linear layers have biases, {} has none", base.folder.display(), fitting.model_type()),
            "choose models without biases",
        ),
        _ => Ok(fitting),
    }
}

/// Returns the name of a tensor of an MLP in an expert; the one after `count` experts is the shared one.
pub(super) fn expert_name(architecture: ExpertArchitecture, name: &str, expert: usize, count: usize) -> String {
    match architecture {
        ExpertArchitecture::Mixtral => name
            .replace(MLP, &format!(".block_sparse_moe.experts.{expert}."))
            .replace("gate_proj", "w1")
            .replace("up_proj", "w3")
            .replace("down_proj", "w2"),
        _ if expert == count => name.replace(MLP, ".mlp.shared_expert."),
        _ => name.replace(MLP, &format!(".mlp.experts.{expert}.")),
    }
}

/// Returns the name of a router's weight.
pub(super) fn router_name(architecture: ExpertArchitecture, layer: usize) -> String {
    match architecture {
        ExpertArchitecture::Mixtral => format!("model.layers.{layer}.block_sparse_moe.gate.weight"),
        _ => format!("model.layers.{layer}.mlp.gate.weight"),
    }
}

/// Returns the name of the weight that decides how much of the shared expert is added.
pub(super) fn shared_gate_name(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.shared_expert_gate.weight")
}

/// Writes config.json into `folder`: the base's, with the settings of experts and the format of the result. What the two families
/// fill in differently is written out.
pub(super) fn write_config(merge: &ExpertMerge, folder: &Path) -> Result<()> {
    let config = &merge.base().config;
    let mut raw = config.raw.clone();
    let map = raw.as_object_mut().ok_or_else(|| Error::bug("config.json was read and is no object"))?;
    write_out_defaults(config, map);
    let (count, per_token) = (merge.file.experts.len(), merge.file.experts_per_token);
    let width = config.intermediate_size;
    let mut set = |keys: &[(&str, Value)]| map.extend(keys.iter().map(|(key, value)| (key.to_string(), value.clone())));
    set(&[("model_type", json!(merge.architecture.model_type())), ("num_experts_per_tok", json!(per_token))]);
    match merge.architecture {
        ExpertArchitecture::Mixtral => set(&[
            ("architectures", json!(["MixtralForCausalLM"])),
            ("num_local_experts", json!(count)),
            ("sliding_window", Value::Null),
            ("output_router_logits", json!(false)),
        ]),
        ExpertArchitecture::Qwen2Moe => set(&[
            ("architectures", json!(["Qwen2MoeForCausalLM"])),
            ("num_experts", json!(count)),
            ("decoder_sparse_step", json!(1)),
            ("norm_topk_prob", json!(true)),
            ("moe_intermediate_size", json!(width)),
            ("shared_expert_intermediate_size", json!(width)),
            ("sliding_window", Value::Null),
            ("use_sliding_window", json!(false)),
            ("output_router_logits", json!(false)),
        ]),
        ExpertArchitecture::Qwen3Moe => set(&[
            ("architectures", json!(["Qwen3MoeForCausalLM"])),
            ("num_experts", json!(count)),
            ("decoder_sparse_step", json!(1)),
            ("norm_topk_prob", json!(true)),
            ("moe_intermediate_size", json!(width)),
            ("output_router_logits", json!(false)),
        ]),
    }
    for key in ["mlp_bias", "attention_bias", "pretraining_tp", "layer_types", "auto_map"] {
        if key != "attention_bias" || merge.architecture != ExpertArchitecture::Qwen3Moe {
            map.remove(key);
        }
    }
    let text = serde_json::to_string_pretty(&raw).map_err(|e| Error::bug(format!("config.json: {e}")))? + "\n";
    config_file::write_config(&Config::parse(config.file(), &text)?, folder, Some(written_kind(merge)))
}

/// Writes out the settings for which the two families have unlike defaults.
fn write_out_defaults(config: &Config, map: &mut Map<String, Value>) {
    let mut fill = |key: &str, value: Value| {
        if map.get(key).is_none_or(Value::is_null) {
            map.insert(key.into(), value);
        }
    };
    fill("num_key_value_heads", json!(config.num_key_value_heads));
    if config.model_type != "qwen2" {
        fill("head_dim", json!(config.head_dim));
    }
    fill("rms_norm_eps", json!(config.norm_eps));
    fill("hidden_act", json!(config.hidden_act));
    fill("tie_word_embeddings", json!(config.tie_word_embeddings));
    if let Some(length) = config.max_position_embeddings {
        fill("max_position_embeddings", json!(length));
    }
    if map.get("rope_parameters").is_none_or(Value::is_null) && map.get("rope_theta").is_none_or(Value::is_null) {
        map.insert("rope_theta".into(), json!(config.rope_theta));
    }
}

/// Returns the number format of most of the written numbers.
fn written_kind(merge: &ExpertMerge) -> Kind {
    let count = |kind: Kind| -> i64 {
        merge.tensors.iter().filter(|t| t.kind == kind).map(|t| t.shape.iter().product::<i64>()).sum()
    };
    [Kind::Half, Kind::BFloat16, Kind::Float].into_iter().max_by_key(|kind| count(*kind)).unwrap_or(Kind::Float)
}
