//! Builds config.json from the sizes and settings of a model.

use super::architecture::TokenIds;
use super::layout::{ExpertUse, RopeUse};
use super::rope_scaling::Scaling;
use super::shape::Shape;
use serde_json::{Map, Value, json};

/// Returns the contents of config.json, without the dtype.
pub fn of(shape: &Shape, tokens: &TokenIds) -> Map<String, Value> {
    let family = shape.family;
    let mut usual = object(json!({
        "attention_dropout": 0.0,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "max_position_embeddings": shape.context,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_eps,
    }));
    if let Some(activation) = family.activations.first() {
        usual.insert("hidden_act".into(), json!(activation));
    }
    if let Some(rope) = &shape.rope {
        usual.insert("rope_theta".into(), json!(rope.theta));
        usual.insert("rope_scaling".into(), rope.scaling.config(shape.context));
        if family.partial_rotary && !family.latent {
            usual.insert("partial_rotary_factor".into(), json!(rope.rotary as f64 / shape.head_dim as f64));
        }
        if let (RopeUse::Local | RopeUse::LocalUnscaled, Some(theta)) = (family.rope, rope.local_theta) {
            usual.insert("rope_local_base_freq".into(), json!(theta));
        }
    }
    if family.free_head_size && !family.latent {
        usual.insert("head_dim".into(), json!(shape.head_dim));
    }
    if let Some((window, layers)) = &shape.windows {
        usual.insert("sliding_window".into(), json!(window));
        if family.rope != RopeUse::Long {
            let kind = |window: &bool| if *window { "sliding_attention" } else { "full_attention" };
            usual.insert("layer_types".into(), layers.iter().map(kind).collect());
        }
    }
    experts(shape, &mut usual);
    own_keys(shape, &mut usual);
    for (key, value) in &shape.settings {
        match key.split_once('.') {
            Some((section, key)) => usual.entry(section).or_insert_with(|| json!({}))[key] = value.clone(),
            None => drop(usual.insert(key.clone(), value.clone())),
        }
    }
    let mut config = common(shape, tokens);
    config.extend(usual.into_iter().map(|(key, value)| (family.config_key(&key).to_string(), value)));
    config
}

/// Returns the keys that every config.json has.
fn common(shape: &Shape, tokens: &TokenIds) -> Map<String, Value> {
    let eos = match tokens.stops[..] {
        [] => Value::Null,
        [one] => json!(one),
        ref many => json!(many),
    };
    object(json!({
        "architectures": [shape.family.class],
        "bos_token_id": tokens.bos,
        "eos_token_id": eos,
        "initializer_range": 0.02,
        "model_type": shape.family.model_type,
        "pad_token_id": tokens.pad,
        "tie_word_embeddings": shape.tied,
        "use_cache": true,
        "vocab_size": shape.vocab,
    }))
}

fn experts(shape: &Shape, usual: &mut Map<String, Value>) {
    let (ExpertUse::Experts { own_width, renormalised, stated, later, .. }, Some(experts)) =
        (shape.family.experts, shape.experts)
    else {
        return;
    };
    usual.insert("num_experts".into(), json!(experts.count));
    usual.insert("num_experts_per_tok".into(), json!(experts.chosen));
    if own_width {
        usual.insert("moe_intermediate_size".into(), json!(experts.width));
    }
    if own_width && !later {
        usual.insert("decoder_sparse_step".into(), json!(1));
        usual.insert("mlp_only_layers".into(), json!([]));
    }
    if stated {
        usual.insert("norm_topk_prob".into(), json!(renormalised));
    }
    if later {
        usual.insert("first_k_dense_replace".into(), json!(experts.first));
        usual.insert("routed_scaling_factor".into(), json!(experts.scale));
        usual.insert("n_shared_experts".into(), json!(experts.shared.unwrap_or(0) / experts.width));
    } else if let Some(width) = experts.shared {
        usual.insert("shared_expert_intermediate_size".into(), json!(width));
    }
}

/// Adds the keys that only one family has, and takes out those that it does not have.
fn own_keys(shape: &Shape, usual: &mut Map<String, Value>) {
    let more = match shape.family.model_type {
        "llama" => json!({"attention_bias": shape.qkv_bias, "mlp_bias": shape.mlp_bias, "pretraining_tp": 1}),
        "granite" => json!({"attention_bias": shape.qkv_bias, "mlp_bias": shape.mlp_bias}),
        "qwen2" => windowless(shape),
        "qwen3" => with(windowless(shape), json!({"attention_bias": shape.qkv_bias})),
        "qwen2_moe" => with(windowless(shape), json!({"attention_bias": shape.qkv_bias})),
        "qwen3_moe" => json!({"attention_bias": false, "sliding_window": null, "use_sliding_window": false}),
        "mixtral" => json!({"sliding_window": null}),
        "olmoe" => json!({"attention_bias": false, "clip_qkv": null}),
        "olmo2" | "olmo3" | "gemma" => json!({"attention_bias": false}),
        "gemma2" | "gemma3_text" => json!({
            "attention_bias": false, "query_pre_attn_scalar": attention_scalar(shape),
        }),
        "smollm3" => json!({
            "attention_bias": false, "mlp_bias": false, "no_rope_layer_interval": UNROTATED,
            "no_rope_layers": rotated_layers(shape.layers).map(u8::from).collect::<Vec<_>>(),
            "sliding_window": null, "use_sliding_window": false,
        }),
        "cohere" => json!({"attention_bias": false, "use_qk_norm": shape.present.contains("attn_q_norm")}),
        "cohere2" => json!({"attention_bias": false}),
        "stablelm" => json!({"attention_bias": shape.qkv_bias, "qk_layernorm": false}),
        "gpt_neox" => json!({"attention_bias": true}),
        "falcon" => falcon(shape),
        "deepseek_v2" => latent(shape),
        "gpt_oss" => json!({"attention_bias": true, "swiglu_limit": 7.0}),
        "bloom" => json!({"apply_residual_connection_post_layernorm": false, "hidden_dropout": 0.0}),
        "mpt" => {
            json!({"attn_config": {"alibi": true}, "expansion_ratio": shape.inner / shape.hidden, "no_bias": true})
        }
        "phi3" => phi3(shape),
        _ => json!({
            "attn_pdrop": 0.1, "embd_pdrop": 0.1, "n_ctx": shape.context, "resid_pdrop": 0.1, "scale_attn_weights": true,
        }),
    };
    usual.extend(object(more));
    match shape.family.model_type {
        "gpt2" => {
            for key in ["attention_dropout", "num_key_value_heads"] {
                usual.remove(key);
            }
            if shape.inner == 4 * shape.hidden {
                usual.insert("intermediate_size".into(), Value::Null);
            }
        }
        "gpt_neox" => drop(usual.remove("num_key_value_heads")),
        "gpt_oss" => {
            for key in ["decoder_sparse_step", "mlp_only_layers"] {
                usual.remove(key);
            }
            // The files of this architecture do not say it, and every published model has it so.
            if let Some(rope) = usual.get_mut("rope_scaling").and_then(Value::as_object_mut) {
                rope.insert("truncate".into(), json!(false));
            }
        }
        "bloom" | "mpt" => ["intermediate_size", "num_key_value_heads"].iter().for_each(|key| drop(usual.remove(*key))),
        _ => {}
    }
}

/// Every how many layers SmolLM 3 has one that does not know positions; llama.cpp has the number in its code.
pub const UNROTATED: u64 = 4;

/// Returns, for each layer of a SmolLM 3, whether it has rotary embedding.
pub fn rotated_layers(layers: u64) -> impl Iterator<Item = bool> {
    (0..layers).map(|i| (i + 1) % UNROTATED != 0)
}

/// Returns the number whose square root divides the scores of Gemma 2 and 3 in llama.cpp: the head size, but in the largest
/// models, which it knows by their number of layers, `hidden_size` / `num_attention_heads`.
pub fn attention_scalar(shape: &Shape) -> u64 {
    let largest = [("gemma2", 46), ("gemma3_text", 62)].contains(&(shape.family.model_type, shape.layers));
    if largest { shape.hidden / shape.heads } else { shape.head_dim }
}

fn windowless(shape: &Shape) -> Value {
    json!({"max_window_layers": shape.layers, "sliding_window": null, "use_sliding_window": false})
}

fn latent(shape: &Shape) -> Value {
    let Some(latent) = shape.latent else { return json!({}) };
    json!({
        "attention_bias": false, "mlp_bias": false, "topk_method": "greedy", "q_lora_rank": latent.query_rank,
        "kv_lora_rank": latent.key_value_rank, "qk_nope_head_dim": shape.head_dim - latent.rotated,
        "qk_rope_head_dim": latent.rotated, "v_head_dim": latent.value,
    })
}

fn falcon(shape: &Shape) -> Value {
    let two_norms = shape.present.contains("attn_norm_2");
    let new = two_norms || ![1, shape.heads].contains(&shape.kv_heads);
    let mut more = json!({
        "alibi": false, "attention_bias": false, "multi_query": shape.kv_heads == 1, "new_decoder_architecture": new,
        "parallel_attn": true,
    });
    if new {
        more["num_ln_in_parallel_attn"] = json!(if two_norms { 2 } else { 1 });
    }
    more
}

fn phi3(shape: &Shape) -> Value {
    let original = match shape.rope.as_ref().map(|rope| &rope.scaling) {
        Some(Scaling::Long { original, .. }) => *original,
        _ => shape.context,
    };
    let window = shape.windows.as_ref().map(|(window, _)| *window);
    json!({"original_max_position_embeddings": original, "sliding_window": window})
}

fn with(value: Value, more: Value) -> Value {
    let mut map = object(value);
    map.extend(object(more));
    Value::Object(map)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
