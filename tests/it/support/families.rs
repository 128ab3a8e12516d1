//! Small random models of every family that GGUF files can hold, as directories with a tokenizer. Their sizes are such that
//! llama.cpp loads them and that rows fill blocks of 32 numbers.

use super::{fixture, noise, save_tensors};
use ft::models::new_config::{self, VocabularyInfo};
use ft::models::{Config, Heads, LoadOptions, Model, Storage, TrainedPart};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Every `model_type` that can be written to GGUF.
pub const FAMILIES: [&str; 27] = [
    "llama",
    "mistral",
    "ministral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "olmo3",
    "smollm3",
    "granite",
    "cohere",
    "cohere2",
    "stablelm",
    "gpt_neox",
    "falcon",
    "gpt2",
    "bloom",
    "mpt",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "gpt_oss",
    "deepseek_v2",
];

/// Returns a small config of a family, to which `more` keys are added.
pub fn config(model_type: &str, more: Value) -> Map<String, Value> {
    let mut map = object(json!({
        "model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 5000.0,
    }));
    let own = match model_type {
        "gpt2" => {
            map = Map::new();
            json!({"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256, "vocab_size": 512})
        }
        "bloom" => {
            map = Map::new();
            json!({"hidden_size": 48, "n_layer": 4, "n_head": 6, "vocab_size": 512, "seq_length": 256})
        }
        "mpt" => {
            map = Map::new();
            json!({"d_model": 48, "n_layers": 4, "n_heads": 6, "max_seq_len": 256, "vocab_size": 512})
        }
        "qwen3" | "qwen3_moe" => json!({"head_dim": 32}),
        "gemma" => json!({"head_dim": 32, "num_key_value_heads": 2}),
        "gemma2" => json!({"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}),
        "gemma3_text" => json!({
            "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 7,
            "rope_local_base_freq": 1000.0,
        }),
        "gemma3n_text" => json!({
            "head_dim": 32, "sliding_window": 16, "num_hidden_layers": 7, "num_kv_shared_layers": 3, "laurel_rank": 16,
            "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 512, "rope_theta": null,
            "activation_sparsity_pattern": [0.8, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention",
                "full_attention", "sliding_attention"],
        }),
        "mistral" => json!({"sliding_window": 64, "head_dim": 32}),
        "ministral" => json!({"sliding_window": null, "head_dim": 32}),
        // llama.cpp has one base for both kinds of layers.
        "olmo3" => json!({"sliding_window": 16, "rope_local_base_freq": 5000.0}),
        "cohere2" => json!({"sliding_window": 16, "logit_scale": 0.25}),
        "cohere" => json!({"use_qk_norm": false, "logit_scale": 0.25}),
        "granite" => json!({
            "embedding_multiplier": 3.0, "attention_multiplier": 0.25, "residual_multiplier": 0.7, "logits_scaling": 2.5,
        }),
        "stablelm" => json!({"use_qkv_bias": true, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5}),
        "gpt_neox" => json!({"rotary_pct": 0.25, "layer_norm_eps": 1e-5}),
        "falcon" => json!({
            "new_decoder_architecture": true, "num_kv_heads": 2, "ffn_hidden_size": 96, "bias": false, "alibi": false,
        }),
        "mixtral" => json!({"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": null}),
        "qwen2_moe" => json!({
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64, "norm_topk_prob": false,
        }),
        "gpt_oss" => json!({
            "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32, "sliding_window": 16,
        }),
        "deepseek_v2" => json!({
            "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 32,
            "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
            "v_head_dim": 32, "routed_scaling_factor": 2.5, "topk_method": "greedy",
        }),
        "olmoe" => json!({
            "num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4, "norm_topk_prob": false,
        }),
        _ => json!({}),
    };
    map.extend(object(own));
    if model_type == "qwen3_moe" {
        map.extend(object(json!({
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": true,
        })));
    }
    map.insert("model_type".into(), model_type.into());
    map.extend(object(more));
    map
}

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { panic!("an object expected") };
    map
}

/// Writes a random model of a family to `folder`, with the tests' byte-level tokenizer. Every tensor has noise, norms and
/// biases too, so that none can be forgotten.
pub fn write(model_type: &str, more: Value, kind: Kind, folder: &Path) {
    write_with("tiny-tokenizer", model_type, more, kind, folder);
}

/// Does the same with the tokenizer in a folder of the fixtures.
pub fn write_with(tokenizer: &str, model_type: &str, more: Value, kind: Kind, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let vocabulary = VocabularyInfo { size: 400, bos: None, eos: Some(2), pad: Some(3) };
    let config = new_config::config(&config(model_type, more), vocabulary, Path::new("config")).unwrap();
    std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config.raw).unwrap()).unwrap();
    for file in std::fs::read_dir(fixture(tokenizer)).unwrap().flatten() {
        if file.path().extension().is_some_and(|e| e != "py") {
            std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
    }
    let tensors: BTreeMap<String, Tensor> = random_tensors(config, kind, folder);
    save_tensors(&folder.join("model.safetensors"), &tensors);
}

fn random_tensors(config: Config, kind: Kind, folder: &Path) -> BTreeMap<String, Tensor> {
    let centred = config.model_type.starts_with("gemma") && config.model_type != "gemma3n_text";
    let load = LoadOptions {
        device: Device::Cpu,
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: Some(&TrainedPart::All),
        adapters: Vec::new(),
        vocabulary: None,
        heads: Heads::Tokens,
    };
    let model = Model::initialise(config, folder, 1, load).unwrap();
    let made = |p: &ft::nn::Param| {
        let size = p.tensor.size();
        let normed = p.name.contains("norm") || p.name.contains("ln_");
        let noise = noise(&size, &p.name);
        let values = match (normed && p.name.ends_with("weight"), size.len()) {
            (true, _) => noise * 0.4 + if centred { 0.0 } else { 1.0 },
            (false, 1) => noise * 0.2,
            (false, _) => noise * 0.25,
        };
        (p.name.clone(), values.to_kind(kind))
    };
    model.params().base().map(made).collect()
}
