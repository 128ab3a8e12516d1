//! Llama and models with the same layers: SmolLM, Llama 2 and 3, Mistral (Touvron et al. 2023, arXiv 2302.13971).
//!
//! Families whose layers differ only in biases and norms use [`build`] with their own [`LlamaVariant`].

use super::feed_forward::{ExpertNames, FeedForward, USUAL_NAMES};
use crate::error::{Error, Result};
use crate::models::family::{Config, Decoder, Family};
use crate::nn::{
    Attention, Embedding, ForwardPass, Linear, ModelBuilder, ModuleScope, ParamMapping, RmsNorm, Rope, Tokens, ops,
};
use serde_json::{Map, Value, json};
use std::rc::Rc;
use tch::Tensor;

pub(super) const FAMILY: Family = Family {
    names: &["llama", "mistral"],
    architectures: &["LlamaForCausalLM", "MistralForCausalLM"],
    key_names: &[],
    defaults,
    extra_keys: &["num_key_value_heads", "rope_theta", "attention_bias", "head_dim", "mlp_bias"],
    embedding: "model.embed_tokens.weight",
    map_param,
    build: |c, b| {
        let bias = c.attention_bias;
        build(c, b, LlamaVariant { qkv_bias: bias, output_bias: bias, mlp_bias: c.mlp_bias, qk_norm: false })
    },
};

/// Fills in transformers' defaults for missing keys.
fn defaults(config: &mut Map<String, Value>) {
    if config["model_type"] == "mistral" {
        config.entry("sliding_window").or_insert(json!(4096));
        config.entry("num_key_value_heads").or_insert(json!(8));
        config.entry("max_position_embeddings").or_insert(json!(131072));
    }
    config.entry("max_position_embeddings").or_insert(json!(2048));
}

/// Keeps a checkpoint's names, and leaves out the rotary tables that old checkpoints contain.
pub(super) fn map_param(name: &str) -> Option<ParamMapping> {
    (!name.ends_with("rotary_emb.inv_freq")).then(|| ParamMapping { name: name.into(), transposed: false })
}

/// What differs between llama-like families.
#[derive(Clone, Copy)]
pub(super) struct LlamaVariant {
    /// Queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// The output of attention has a bias.
    pub output_bias: bool,
    /// The layers of the MLP have a bias.
    pub mlp_bias: bool,
    /// Queries and keys are normalised per head before rotary embedding.
    pub qk_norm: bool,
}

/// What only some families have besides a [`LlamaVariant`].
pub(super) struct LlamaExtension {
    /// The names of experts in checkpoints, for models that have some.
    pub experts: ExpertNames,
    /// The norms of queries and keys are over all heads together, not per head.
    pub whole_qk_norm: bool,
    /// Queries, keys and values are limited to this magnitude.
    pub clip_qkv: Option<f64>,
}

impl LlamaExtension {
    /// What most families have.
    pub const NONE: Self = Self { experts: USUAL_NAMES, whole_qk_norm: false, clip_qkv: None };
}

/// Builds a llama-like decoder. Fails for another activation than silu and for an odd head size.
pub(super) fn build(c: &Config, b: &ModelBuilder, wiring: LlamaVariant) -> Result<Box<dyn Decoder>> {
    build_extended(c, b, wiring, LlamaExtension::NONE)
}

/// Does the same for a family with another [`LlamaExtension`].
pub(super) fn build_extended(
    c: &Config,
    b: &ModelBuilder,
    wiring: LlamaVariant,
    extension: LlamaExtension,
) -> Result<Box<dyn Decoder>> {
    if c.hidden_act != "silu" {
        return Err(Error::user(format!("{}: hidden_act `{}` is not supported", c.file().display(), c.hidden_act))
            .hint("this family computes with silu"));
    }
    if c.head_dim < 2 || c.head_dim % 2 != 0 {
        return Err(Error::user(format!(
            "{}: a head size of {}, but rotary embedding needs an even one",
            c.file().display(),
            c.head_dim
        ))
        .hint("`head_dim`, or `hidden_size` / `num_attention_heads` where it is left out, must be even"));
    }
    let root = b.root() / "model";
    let embed = (&root / "embed_tokens").embedding(c.vocab_size, c.hidden_size);
    let rope = Rc::new(Rope::new(c.head_dim, c.rope_theta, &c.rope_scaling, b.device()));
    let layers = (0..c.num_hidden_layers as usize)
        .map(|i| LlamaBlock::build(c, &(&root / "layers" / i), i, &rope, wiring, &extension))
        .collect();
    let norm = (&root / "norm").rms_norm(c.hidden_size, c.norm_eps);
    let scope = b.root() / "lm_head";
    let head =
        if c.tie_word_embeddings { scope.tied_head(&embed) } else { scope.output_head(c.hidden_size, c.vocab_size) };
    Ok(Box::new(Llama { embed, layers, norm, head: Rc::new(head) }))
}

struct Llama {
    embed: Embedding,
    layers: Vec<LlamaBlock>,
    norm: RmsNorm,
    head: Rc<Linear>,
}

impl Decoder for Llama {
    fn depth(&self) -> usize {
        self.layers.len()
    }
    fn embed(&self, tokens: &Tokens) -> Tensor {
        self.embed.forward(&tokens.ids)
    }
    fn layer(&self, i: usize, x: &Tensor, pass: &mut ForwardPass) -> Tensor {
        self.layers[i].forward(i, x, pass)
    }
    fn finish(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x).x
    }
    fn head(&self) -> &Rc<Linear> {
        &self.head
    }
}

struct LlamaBlock {
    input_layernorm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    whole_qk_norm: bool,
    clip_qkv: Option<f64>,
    post_attention_layernorm: RmsNorm,
    feed_forward: FeedForward,
    rope: Rc<Rope>,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    attention: Attention,
}

impl LlamaBlock {
    fn build(
        c: &Config,
        s: &ModuleScope,
        i: usize,
        rope: &Rc<Rope>,
        wiring: LlamaVariant,
        extension: &LlamaExtension,
    ) -> Self {
        let LlamaVariant { qkv_bias, output_bias, mlp_bias, qk_norm } = wiring;
        let &LlamaExtension { experts, whole_qk_norm, clip_qkv } = extension;
        let (d, e) = (c.hidden_size, c.head_dim);
        let attn = s / "self_attn";
        let normed = |heads: i64| if whole_qk_norm { heads * e } else { e };
        Self {
            input_layernorm: (s / "input_layernorm").rms_norm(d, c.norm_eps),
            q: (&attn / "q_proj").linear(d, c.num_attention_heads * e, qkv_bias),
            k: (&attn / "k_proj").linear(d, c.num_key_value_heads * e, qkv_bias),
            v: (&attn / "v_proj").linear(d, c.num_key_value_heads * e, qkv_bias),
            o: (&attn / "o_proj").linear(c.num_attention_heads * e, d, output_bias),
            qk_norm: qk_norm
                .then(|| [("q_norm", c.num_attention_heads), ("k_norm", c.num_key_value_heads)])
                .map(|both| both.map(|(name, heads)| (&attn / name).rms_norm(normed(heads), c.norm_eps)).into()),
            whole_qk_norm,
            clip_qkv,
            post_attention_layernorm: (s / "post_attention_layernorm").rms_norm(d, c.norm_eps),
            feed_forward: FeedForward::build(c, s, i, experts, mlp_bias),
            rope: rope.clone(),
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: e,
            attention: Attention { scale: (e as f64).powf(-0.5) },
        }
    }

    fn forward(&self, i: usize, x: &Tensor, pass: &mut ForwardPass) -> Tensor {
        let [q, k, v] = Linear::forward_jointly([&self.q, &self.k, &self.v], self.input_layernorm.forward(x));
        let (q, k) = match &self.qk_norm {
            Some((q_norm, k_norm)) if self.whole_qk_norm => (q_norm.forward(&q).x, k_norm.forward(&k).x),
            _ => (q, k),
        };
        let [q, k, v] = match self.clip_qkv {
            Some(limit) => [q, k, v].map(|t| t.clamp(-limit, limit)),
            None => [q, k, v],
        };
        let q = q.view([-1, self.heads, self.head_dim]); // (T, H, E)
        let k = k.view([-1, self.kv_heads, self.head_dim]); // (T, K, E)
        let (q, k) = match &self.qk_norm {
            Some((q_norm, k_norm)) if !self.whole_qk_norm => (q_norm.forward(&q).x, k_norm.forward(&k).x),
            _ => (q, k),
        };
        let (cos, sin) = pass.angles(&self.rope, x.kind());
        let (q, k) = ops::rotate_both(q, k, &cos, &sin);
        let v = v.view([-1, self.kv_heads, self.head_dim]);
        let y = pass.attend(i, &q, &k, &v, self.attention);
        let y = self.o.forward(&y.view([-1, self.heads * self.head_dim]));
        let (x, normal) = self.post_attention_layernorm.forward_sum(x, &y);
        x + self.feed_forward.forward(i, normal, pass)
    }
}
