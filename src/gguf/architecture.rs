//! Reads the sizes and settings of a GGUF file ([`Shape`]) and gives each of its tensors a name and shape of Hugging Face.
//!
//! The metadata implies the shape of every tensor; [`TensorMapper`] compares it with the file's.

use super::config_json;
use super::families::{self, FAMILIES, Family};
use super::file::Gguf;
use super::header::GgufValue;
use super::layout::{ExpertUse, FamilyKeyType, RopeUse, WindowUse};
use super::metadata::SOFTMAX;
use super::rope_scaling::{self, RopeKeys};
use super::shape::{ExpertShape, LatentShape, Shape};
use super::tensor_map::{MappedTensor, TensorMapper};
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

fn known() -> String {
    format!("ft reads the architectures {}", families::architectures().join(", "))
}

/// Returns a file's architecture, by its name in GGUF files. Fails if it is not supported, and for files that are only a
/// part of a model.
pub fn of(gguf: &Gguf) -> Result<&str> {
    let refuse = |what: String| Error::user(format!("{}: {what}", gguf.path().display()));
    let Some(arch) = gguf.text("general.architecture")? else {
        return Err(refuse("metadata general.architecture is missing".into()).hint(known()));
    };
    let kind = gguf.text("general.type")?.unwrap_or("model");
    // Projectors of older versions have no type.
    let kind = if arch == "clip" { "mmproj" } else { kind };
    if kind != "model" {
        return Err(refuse(format!("general.type is `{kind}`, `model` expected"))
            .hint("choose the GGUF of the model itself: an adapter or projector file is only a part of one"));
    }
    if !FAMILIES.iter().any(|family| family.arch == arch) {
        return Err(refuse(format!("architecture `{arch}` is not supported")).hint(known()));
    }
    Ok(arch)
}

/// Returns the family of a file of the architecture `arch`. Of those that share it, one with experts or windows is chosen if
/// the file has them.
fn family(gguf: &Gguf, arch: &str) -> Result<&'static Family> {
    let has = |key: &str| Ok::<_, Error>(gguf.float(&format!("{arch}.{key}"))?.is_some_and(|x| x > 0.0));
    let (experts, windows) = (has("expert_count")?, has("attention.sliding_window")?);
    let of_arch = || FAMILIES.iter().filter(|family| family.arch == arch);
    let fits = |family: &&&Family| {
        (experts && family.experts != ExpertUse::None)
            || (windows && matches!(family.windows, WindowUse::Period { always: true, .. }))
    };
    of_arch().find(fits).or_else(|| of_arch().next()).copied().ok_or_else(|| {
        Error::user(format!("{}: architecture `{arch}` is not supported", gguf.path().display())).hint(known())
    })
}

/// Maps a file of the architecture `arch`. Fails for an unknown architecture and for metadata or tensors that do not
/// fit it.
pub fn map_model(gguf: &Gguf, arch: &str, tokens: &TokenIds) -> Result<MappedModel> {
    let family = family(gguf, arch)?;
    let mut mapper = TensorMapper::new(gguf, family)?;
    let mut shape = read_shape(&mapper, family, tokens)?;
    for name in [rope_scaling::FACTORS].into_iter().chain(rope_scaling::LONG_FACTORS) {
        mapper.skip(name);
    }
    for placed in shape.tensors() {
        mapper.map_tensor(&shape, &placed)?;
    }
    shape.tied = mapper.map_head(&shape)?;
    let config = config_json::of(&shape, tokens);
    Ok(MappedModel { config, tensors: mapper.finish()? })
}

/// Returns the file's context length, in tokens. The tokenizer's settings need it too.
pub fn context_length(gguf: &Gguf, arch: &str) -> Result<u64> {
    TensorMapper::new(gguf, family(gguf, arch)?)?.number("context_length")
}

/// Reads the sizes and settings of a model. Whether the head is the embedding is not known yet.
fn read_shape(s: &TensorMapper, family: &'static Family, tokens: &TokenIds) -> Result<Shape> {
    let layers = s.number("block_count")?;
    let tensors = s.gguf.tensors().len() as u64;
    if layers > tensors {
        // Lists of the tensors that such a file should have would fill the memory.
        return Err(s.unsupported(format!("metadata {}: {layers} layers of {tensors} tensors", s.key("block_count"))));
    }
    let hidden = s.number("embedding_length")?;
    let inner = match family.rope {
        RopeUse::Learnt | RopeUse::Alibi => s.number_or("feed_forward_length", 4 * hidden)?,
        _ => s.number("feed_forward_length")?,
    };
    let heads = s.number("attention.head_count")?;
    let kv_heads = if family.latent { heads } else { s.number_or("attention.head_count_kv", heads)? };
    let latent = if family.latent { Some(read_latent(s)?) } else { None };
    let (head_dim, rotary) = match latent {
        Some((latent, head_dim)) => (head_dim, latent.rotated),
        None => head_sizes(s, family, hidden, heads, kv_heads)?,
    };
    let present = family.variable_parts().into_iter().filter(|name| s.has(&format!("blk.0.{name}.weight"))).collect();
    let in_first = |names: &[&str]| names.iter().any(|name| s.has(&format!("blk.0.{name}.bias")));
    let mut shape = Shape {
        family,
        layers,
        hidden,
        inner,
        heads,
        kv_heads,
        head_dim,
        vocab: s.embedding_rows(tokens.size)?,
        context: s.number("context_length")?,
        norm_eps: s.float(family.norm.eps_key())?,
        rope: read_rope(s, family, rotary)?,
        windows: read_windows(s, family, layers)?,
        qkv_bias: family.biases.qkv.with(|| in_first(&["attn_q", "attn_qkv"])),
        output_bias: family.biases.output.with(|| in_first(&["attn_output"])),
        mlp_bias: family.biases.mlp.with(|| in_first(&["ffn_up"])),
        tied: true,
        experts: read_experts(s, family, layers, inner)?,
        latent: latent.map(|(latent, _)| latent),
        present,
        settings: Map::new(),
    };
    shape.settings = read_settings(s, family, &shape)?;
    Ok(shape)
}

/// Returns the sizes of latent attention, and the size of a head's key.
fn read_latent(s: &TensorMapper) -> Result<(LatentShape, u64)> {
    // Where keys and values are separate tensors, the usual keys have the sizes of the vector that they are made of.
    let by_head = if s.has("blk.0.attn_k_b.weight") { "_mla" } else { "" };
    let size = |name: &str| s.number(&format!("attention.{name}_length{by_head}"));
    let (key, value, rotated) = (size("key")?, size("value")?, s.number("rope.dimension_count")?);
    if rotated >= key || rotated % 2 != 0 || value > key {
        return Err(s.unsupported(format!(
            "keys of {key} numbers, {rotated} of them rotated, and values of {value} do not fit together"
        )));
    }
    let query_rank = s.gguf.unsigned(&s.key("attention.q_lora_rank"))?.filter(|rank| *rank > 0);
    let low_rank = s.has("blk.0.attn_q_a.weight");
    if low_rank != query_rank.is_some() {
        return Err(
            s.unsupported(format!("metadata {} contradicts the tensors of queries", s.key("attention.q_lora_rank")))
        );
    }
    let key_value_rank = s.number("attention.kv_lora_rank")?;
    Ok((LatentShape { query_rank, key_value_rank, rotated, value }, key))
}

/// Returns the size of a head, and how much of it is rotated.
fn head_sizes(s: &TensorMapper, family: &Family, hidden: u64, heads: u64, kv_heads: u64) -> Result<(u64, u64)> {
    if !family.rope.is_rotary() {
        if hidden % heads != 0 {
            return Err(s.unsupported(format!("embedding_length {hidden} is no multiple of the {heads} heads")));
        }
        if family.rope == RopeUse::Alibi && kv_heads != heads {
            return Err(s.unsupported(format!("{kv_heads} key/value heads, {heads} expected")));
        }
        return Ok((hidden / heads, 0));
    }
    let rotated = s.gguf.unsigned(&s.key("rope.dimension_count"))?;
    let stated = s.gguf.unsigned(&s.key("attention.key_length"))?;
    let head_dim = stated.or(rotated.filter(|_| !family.partial_rotary)).unwrap_or(hidden / heads);
    if heads % kv_heads != 0 || head_dim == 0 || head_dim % 2 != 0 || head_dim > 1 << 16 {
        return Err(
            s.unsupported(format!("{heads} heads, {kv_heads} key/value heads of size {head_dim} do not fit together"))
        );
    }
    for name in ["attention.value_length", "rope.dimension_count"] {
        let found = s.number_or(name, head_dim)?;
        let part = name == "rope.dimension_count" && family.partial_rotary && found < head_dim && found % 2 == 0;
        if found != head_dim && !part {
            return Err(
                s.unsupported(format!("metadata {}: {head_dim}, the head size, expected, found {found}", s.key(name)))
            );
        }
    }
    // The class in transformers derives the head size; no key that every version reads can set another one.
    if !family.free_head_size && head_dim != hidden / heads {
        let arch = family.arch;
        return Err(s.unsupported(format!(
            "{arch} with head size {head_dim}: {} expected ({hidden} / {heads})",
            hidden / heads
        )));
    }
    Ok((head_dim, rotated.unwrap_or(head_dim)))
}

fn read_rope(s: &TensorMapper, family: &Family, rotary: u64) -> Result<Option<RopeKeys>> {
    if !family.rope.is_rotary() {
        return Ok(None);
    }
    // Old files may lack the key; llama.cpp assumes this default.
    let theta = s.gguf.float(&s.key("rope.freq_base"))?.unwrap_or(10000.0);
    let local = s.gguf.float(&s.key("rope.freq_base_swa"))?;
    let local_theta = match family.rope {
        RopeUse::Local => Some(local.unwrap_or(10000.0)),
        RopeUse::LocalUnscaled => Some(local.unwrap_or(theta)),
        _ if local.is_some_and(|local| local != theta) => {
            let key = s.key("rope.freq_base_swa");
            return Err(
                s.unsupported(format!("{key} is another base than rope.freq_base: such models are not supported"))
            );
        }
        _ => None,
    };
    let scaling = rope_scaling::read(s.gguf, s.arch, family.latent, rotary, theta)?;
    Ok(Some(RopeKeys { rotary, theta, local_theta, scaling }))
}

fn read_windows(s: &TensorMapper, family: &Family, layers: u64) -> Result<Option<(u64, Vec<bool>)>> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    let key = s.key("attention.sliding_window");
    let window = s.gguf.unsigned(&key)?.filter(|n| *n > 0);
    let period = match family.windows {
        WindowUse::None => return Ok(None),
        WindowUse::Ignored => return Ok(window.map(|window| (window, vec![true; layers as usize]))),
        WindowUse::Period { always, .. } if window.is_none() => {
            return if always { Err(s.unsupported(format!("metadata {key} is missing"))) } else { Ok(None) };
        }
        WindowUse::Period { period, .. } => period,
    };
    let every = |period: u64| (0..layers).map(|i| period == 0 || i % period < period - 1).collect::<Vec<bool>>();
    let pattern = match s.gguf.metadata_value(&s.key(PATTERN)) {
        None => every(period),
        Some(GgufValue::Array(_)) => s.gguf.bools(&s.key(PATTERN))?.unwrap_or_default(),
        Some(_) => every(s.gguf.unsigned(&s.key(PATTERN))?.unwrap_or(period)),
    };
    if pattern.len() as u64 != layers {
        let count = pattern.len();
        return Err(s.unsupported(format!("metadata {}: {layers} layers expected, found {count}", s.key(PATTERN))));
    }
    Ok(window.map(|window| (window, pattern)))
}

fn read_experts(s: &TensorMapper, family: &Family, layers: u64, inner: u64) -> Result<Option<ExpertShape>> {
    let ExpertUse::Experts { own_width, shared, later, .. } = family.experts else { return Ok(None) };
    let (count, chosen) = (s.number("expert_count")?, s.number("expert_used_count")?);
    if chosen > count || count > 4096 {
        return Err(s.unsupported(format!("{chosen} of {count} experts for each token do not fit together")));
    }
    let width = if own_width { s.number("expert_feed_forward_length")? } else { inner };
    let shared = match (shared, later) {
        (false, _) => None,
        (true, true) => Some(s.number("expert_shared_count")? * width),
        (true, false) => Some(s.number("expert_shared_feed_forward_length")?),
    };
    let (mut first, mut scale) = (0, 1.0);
    if later {
        first = s.gguf.unsigned(&s.key("leading_dense_block_count"))?.unwrap_or(0);
        scale = s.gguf.float(&s.key("expert_weights_scale"))?.unwrap_or(1.0);
        let gating = s.number_or("expert_gating_func", SOFTMAX)?;
        let normed = s.gguf.bool(&s.key("expert_weights_norm"))?.unwrap_or(false);
        if gating != SOFTMAX || normed || first > layers {
            return Err(s.unsupported(format!(
                "experts from layer {first} on, router {gating}, weights divided by their sum: {normed}; only routers of \
                 kind {SOFTMAX} without division are supported"
            )));
        }
    }
    Ok(Some(ExpertShape { count, chosen, width, shared, first, scale }))
}

/// Reads the family's own keys of config.json.
fn read_settings(s: &TensorMapper, family: &Family, shape: &Shape) -> Result<Map<String, Value>> {
    let mut settings = Map::new();
    for setting in family.settings {
        let value = match setting.kind {
            FamilyKeyType::Float => json!(s.float(setting.gguf)?),
            FamilyKeyType::Optional => json!(s.gguf.float(&s.key(setting.gguf))?),
            FamilyKeyType::Fixed(x) => match s.float(setting.gguf)? {
                found if found == x => json!(x),
                found => {
                    let key = s.key(setting.gguf);
                    return Err(s.unsupported(format!("{key} is {found}: only {x} is supported")));
                }
            },
            // Tensors decide it where layers may lack the norm.
            FamilyKeyType::Flag if family.variable_parts().contains("ffn_norm") => {
                json!(!shape.present.contains("ffn_norm"))
            }
            FamilyKeyType::Flag => match s.gguf.bool(&s.key(setting.gguf))? {
                Some(flag) => json!(flag),
                None => return Err(s.unsupported(format!("metadata {} is missing", s.key(setting.gguf)))),
            },
        };
        settings.insert(setting.config.into(), value);
    }
    Ok(settings)
}
