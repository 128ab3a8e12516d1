//! Maps a GGUF model to Hugging Face's layout: builds config.json and gives each tensor its name and shape.
//!
//! The metadata implies the shape of every tensor; [`TensorMapper`] compares it with the file's.

use super::file::Gguf;
use super::rope_scaling;
use super::tensor_map::{LayoutChange, MappedTensor, TensorMapper};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// A mapped model: config.json without the keys that depend on the output, and the tensors in the model's order.
pub struct MappedModel {
    /// Contents of config.json.
    pub config: Map<String, Value>,
    /// The tensors, in the model's order.
    pub tensors: Vec<MappedTensor>,
}

/// The ids of a vocabulary that config.json contains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenIds {
    /// The token that begins a text.
    pub bos: Option<u64>,
    /// The padding token.
    pub pad: Option<u64>,
    /// Every token that ends an answer.
    pub stops: Vec<u64>,
    /// Number of ids; the embedding must have at least as many rows.
    pub size: usize,
}

/// The architectures that can be imported, by their names in GGUF files.
pub const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "gpt2"];

/// Maps a file of the architecture `arch`. Fails for an unknown architecture and for metadata or tensors that do not
/// fit it.
pub fn map_model(gguf: &Gguf, arch: &str, tokens: &TokenIds) -> Result<MappedModel> {
    match arch {
        "llama" | "qwen2" | "qwen3" => rotary_decoder(&mut TensorMapper::new(gguf, arch)?, tokens),
        "gpt2" => gpt2(&mut TensorMapper::new(gguf, arch)?, tokens),
        other => Err(Error::user(format!("{}: architecture `{other}` is not supported", gguf.path().display()))
            .hint(format!("ft import reads the architectures {}", ARCHITECTURES.join(", ")))),
    }
}

/// Returns the file's context length, in tokens. The tokenizer's settings need it too.
pub fn context_length(gguf: &Gguf, arch: &str) -> Result<u64> {
    TensorMapper::new(gguf, arch)?.number("context_length")
}

/// Returns the keys that every config.json has.
fn common_config(class: &str, model_type: &str, tokens: &TokenIds, vocab: u64, tied: bool) -> Map<String, Value> {
    let eos = match tokens.stops[..] {
        [] => Value::Null,
        [one] => json!(one),
        ref many => json!(many),
    };
    let Value::Object(map) = json!({
        "architectures": [class],
        "bos_token_id": tokens.bos,
        "eos_token_id": eos,
        "initializer_range": 0.02,
        "model_type": model_type,
        "pad_token_id": tokens.pad,
        "tie_word_embeddings": tied,
        "use_cache": true,
        "vocab_size": vocab,
    }) else {
        unreachable!("an object was written above")
    };
    map
}

fn extend(config: &mut Map<String, Value>, more: Value) {
    if let Value::Object(more) = more {
        config.extend(more);
    }
}

/// Maps Llama, Qwen2 and Qwen3: RMSNorm, rotary positions, gated MLP.
fn rotary_decoder(s: &mut TensorMapper, tokens: &TokenIds) -> Result<MappedModel> {
    let layers = s.number("block_count")?;
    let hidden = s.number("embedding_length")?;
    let inner = s.number("feed_forward_length")?;
    let heads = s.number("attention.head_count")?;
    let kv_heads = s.number_or("attention.head_count_kv", heads)?;
    let stated =
        s.gguf.unsigned(&s.key("attention.key_length"))?.or(s.gguf.unsigned(&s.key("rope.dimension_count"))?);
    let head_dim = stated.unwrap_or(hidden / heads);
    if heads % kv_heads != 0 || head_dim == 0 || head_dim % 2 != 0 || head_dim > 1 << 16 {
        return Err(
            s.unsupported(format!("{heads} heads, {kv_heads} key/value heads of size {head_dim} do not fit together"))
        );
    }
    for name in ["attention.value_length", "rope.dimension_count"] {
        let found = s.number_or(name, head_dim)?;
        if found != head_dim {
            return Err(
                s.unsupported(format!("metadata {}: {head_dim}, the head size, expected, found {found}", s.key(name)))
            );
        }
    }
    // Old files may lack the key; llama.cpp assumes this default.
    let theta = s.gguf.float(&s.key("rope.freq_base"))?.unwrap_or(10000.0);
    let scaling = rope_scaling::read(s.gguf, s.arch, head_dim, theta)?;
    s.skip(rope_scaling::FACTORS);
    let vocab = s.embedding_rows(tokens.size)?;

    let bias = s.arch == "qwen2" || s.has("blk.0.attn_q.bias");
    let output_bias = s.arch != "qwen2" && bias;
    let mlp_bias = s.arch == "llama" && s.has("blk.0.ffn_up.bias");
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let turned = |heads: u64| {
        if s.arch == "llama" { LayoutChange::Unpermute { heads: heads as usize } } else { LayoutChange::None }
    };
    let (q_rows, k_rows) = (turned(heads), turned(kv_heads));

    s.map_tensor("token_embd.weight", "model.embed_tokens.weight", &[vocab, hidden], LayoutChange::None)?;
    for i in 0..layers {
        let (blk, layer) = (format!("blk.{i}"), format!("model.layers.{i}"));
        let mut one = |from: &str, to: &str, shape: &[u64], change| {
            s.map_tensor(&format!("{blk}.{from}"), &format!("{layer}.{to}"), shape, change)
        };
        one("attn_norm.weight", "input_layernorm.weight", &[hidden], LayoutChange::None)?;
        for (from, to, rows, change, biased) in [
            ("attn_q", "self_attn.q_proj", q, q_rows, bias),
            ("attn_k", "self_attn.k_proj", kv, k_rows, bias),
            ("attn_v", "self_attn.v_proj", kv, LayoutChange::None, bias),
        ] {
            one(&format!("{from}.weight"), &format!("{to}.weight"), &[rows, hidden], change)?;
            if biased {
                one(&format!("{from}.bias"), &format!("{to}.bias"), &[rows], change)?;
            }
        }
        one("attn_output.weight", "self_attn.o_proj.weight", &[hidden, q], LayoutChange::None)?;
        if output_bias {
            one("attn_output.bias", "self_attn.o_proj.bias", &[hidden], LayoutChange::None)?;
        }
        if s.arch == "qwen3" {
            let mut one = |from: &str, to: &str| {
                s.map_tensor(&format!("{blk}.{from}"), &format!("{layer}.{to}"), &[head_dim], LayoutChange::None)
            };
            one("attn_q_norm.weight", "self_attn.q_norm.weight")?;
            one("attn_k_norm.weight", "self_attn.k_norm.weight")?;
        }
        let mut one = |from: &str, to: &str, shape: &[u64]| {
            s.map_tensor(&format!("{blk}.{from}"), &format!("{layer}.{to}"), shape, LayoutChange::None)
        };
        one("ffn_norm.weight", "post_attention_layernorm.weight", &[hidden])?;
        for (from, to, rows, columns) in [
            ("ffn_gate", "mlp.gate_proj", inner, hidden),
            ("ffn_up", "mlp.up_proj", inner, hidden),
            ("ffn_down", "mlp.down_proj", hidden, inner),
        ] {
            one(&format!("{from}.weight"), &format!("{to}.weight"), &[rows, columns])?;
            if mlp_bias {
                one(&format!("{from}.bias"), &format!("{to}.bias"), &[rows])?;
            }
        }
    }
    s.map_tensor("output_norm.weight", "model.norm.weight", &[hidden], LayoutChange::None)?;
    let tied = s.map_head(vocab, hidden)?;

    let class = match s.arch {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        _ => "Qwen3ForCausalLM",
    };
    let mut config = common_config(class, s.arch, tokens, vocab, tied);
    extend(
        &mut config,
        json!({
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": inner,
            "max_position_embeddings": s.number("context_length")?,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": s.float("attention.layer_norm_rms_epsilon")?,
            "rope_scaling": scaling,
            "rope_theta": theta,
        }),
    );
    match s.arch {
        "llama" => extend(
            &mut config,
            json!({"attention_bias": bias, "head_dim": head_dim, "mlp_bias": mlp_bias, "pretraining_tp": 1}),
        ),
        "qwen3" => extend(&mut config, json!({"attention_bias": bias, "head_dim": head_dim})),
        // Qwen2's class in transformers derives the head size; no key that every version reads can set another one.
        _ if head_dim != hidden / heads => {
            return Err(s.unsupported(format!(
                "qwen2 with head size {head_dim}: {} expected ({hidden} / {heads})",
                hidden / heads
            )));
        }
        _ => {}
    }
    if s.arch != "llama" {
        extend(&mut config, json!({"max_window_layers": layers, "sliding_window": null, "use_sliding_window": false}));
    }
    Ok(MappedModel { config, tensors: s.finish()? })
}

/// Maps GPT-2: LayerNorm, learned positions, fused q/k/v, `Conv1D` weights.
fn gpt2(s: &mut TensorMapper, tokens: &TokenIds) -> Result<MappedModel> {
    let layers = s.number("block_count")?;
    let hidden = s.number("embedding_length")?;
    let inner = s.number_or("feed_forward_length", 4 * hidden)?;
    let heads = s.number("attention.head_count")?;
    let context = s.number("context_length")?;
    if hidden % heads != 0 {
        return Err(s.unsupported(format!("embedding_length {hidden} is no multiple of the {heads} heads")));
    }
    let vocab = s.embedding_rows(tokens.size)?;

    s.map_tensor("token_embd.weight", "transformer.wte.weight", &[vocab, hidden], LayoutChange::None)?;
    s.map_tensor("position_embd.weight", "transformer.wpe.weight", &[context, hidden], LayoutChange::None)?;
    for i in 0..layers {
        for (from, to, rows, columns) in [
            ("attn_norm", "ln_1", hidden, None),
            ("attn_qkv", "attn.c_attn", 3 * hidden, Some(hidden)),
            ("attn_output", "attn.c_proj", hidden, Some(hidden)),
            ("ffn_norm", "ln_2", hidden, None),
            ("ffn_up", "mlp.c_fc", inner, Some(hidden)),
            ("ffn_down", "mlp.c_proj", hidden, Some(inner)),
        ] {
            let (from, to) = (format!("blk.{i}.{from}"), format!("transformer.h.{i}.{to}"));
            let (shape, change) = match columns {
                Some(columns) => (vec![rows, columns], LayoutChange::Transpose),
                None => (vec![rows], LayoutChange::None),
            };
            s.map_tensor(&format!("{from}.weight"), &format!("{to}.weight"), &shape, change)?;
            s.map_tensor(&format!("{from}.bias"), &format!("{to}.bias"), &[rows], LayoutChange::None)?;
        }
    }
    s.map_tensor("output_norm.weight", "transformer.ln_f.weight", &[hidden], LayoutChange::None)?;
    s.map_tensor("output_norm.bias", "transformer.ln_f.bias", &[hidden], LayoutChange::None)?;
    let tied = s.map_head(vocab, hidden)?;

    let mut config = common_config("GPT2LMHeadModel", "gpt2", tokens, vocab, tied);
    extend(
        &mut config,
        json!({
            "activation_function": "gelu_new",
            "attn_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "layer_norm_epsilon": s.float("attention.layer_norm_epsilon")?,
            "n_ctx": context,
            "n_embd": hidden,
            "n_head": heads,
            "n_inner": if inner == 4 * hidden { Value::Null } else { json!(inner) },
            "n_layer": layers,
            "n_positions": context,
            "resid_pdrop": 0.1,
            "scale_attn_weights": true,
        }),
    );
    Ok(MappedModel { config, tensors: s.finish()? })
}
