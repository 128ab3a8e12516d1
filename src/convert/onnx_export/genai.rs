//! The settings of ONNX Runtime GenAI (genai_config.json), which runs the graph token after token.

use super::MODEL_FILE;
use crate::data::chat::ChatTokenizer;
use crate::error::Result;
use crate::model_files::ModelFiles;
use crate::models::Config;
use crate::onnx::Graph;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The file's name.
pub const FILE: &str = "genai_config.json";

/// Context of a model whose config.json names none, in tokens.
const CONTEXT: i64 = 2048;

/// Keys of generation_config.json, which GenAI calls alike.
const SEARCH: [&str; 4] = ["temperature", "top_k", "top_p", "repetition_penalty"];

/// Returns the settings for the model in `folder`: the names of the graph's inputs and outputs, sizes, stop tokens, and how to choose
/// tokens: as generation_config.json says if the model samples, else the most likely one.
pub fn settings(config: &Config, folder: &Path, tokenizer: Option<&ChatTokenizer>, graph: &Graph) -> Result<Value> {
    let files = ModelFiles::open(folder)?;
    let generation: Map<String, Value> = files.json_or_default("generation_config.json")?;
    let context = config.max_position_embeddings.unwrap_or(CONTEXT);
    let mut inputs = Map::new();
    for port in &graph.inputs {
        let name = port.value.name();
        if !name.starts_with("past_key_values") {
            inputs.insert(name.into(), json!(name));
        }
    }
    inputs.insert("past_key_names".into(), json!("past_key_values.%d.key"));
    inputs.insert("past_value_names".into(), json!("past_key_values.%d.value"));
    let written = |key: &str| {
        let of = |map: &Map<String, Value>| map.get(key).filter(|value| !value.is_null()).cloned();
        of(&generation).or_else(|| of(config.raw.as_object()?))
    };
    let stops = tokenizer.map(ChatTokenizer::stop_ids).unwrap_or_default();
    let eos = match stops {
        [] => written("eos_token_id").unwrap_or(json!(0)),
        [one] => json!(one),
        stops => json!(stops),
    };
    let first = eos.as_array().map_or(eos.clone(), |list| list.first().cloned().unwrap_or_default());
    let of_tokenizer = |id: Option<u32>, key: &str| id.map(|id| json!(id)).or_else(|| written(key));
    let bos = of_tokenizer(tokenizer.and_then(ChatTokenizer::bos), "bos_token_id").unwrap_or(first.clone());
    let pad = of_tokenizer(tokenizer.and_then(ChatTokenizer::pad), "pad_token_id").unwrap_or(first);

    let samples = generation.get("do_sample").and_then(Value::as_bool) == Some(true);
    let mut search = json!({
        "diversity_penalty": 0.0,
        "do_sample": samples,
        "early_stopping": true,
        "length_penalty": 1.0,
        "max_length": context,
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        // Keys and values are outputs of their own, which have the length that was reached.
        "past_present_share_buffer": false,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": if samples { 50 } else { 1 },
        "top_p": 1.0,
    });
    for key in SEARCH.iter().filter(|_| samples) {
        if let Some(value) = generation.get(*key).filter(|value| value.is_number()) {
            search[*key] = value.clone();
        }
    }
    Ok(json!({
        "model": {
            "bos_token_id": bos,
            "context_length": context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL_FILE,
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "inputs": inputs,
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": config.num_key_value_heads,
            },
            "eos_token_id": eos,
            "pad_token_id": pad,
            // A decoder that is described by its inputs and outputs, of whatever family.
            "type": "decoder",
            "vocab_size": config.vocab_size,
        },
        "search": search,
    }))
}
