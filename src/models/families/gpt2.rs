//! GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
//!
//! Trained position embeddings, LayerNorm before attention and MLP, one product for queries, keys and values, tanh
//! GELU. Checkpoints store the weights of linear layers as (in, out); names may or may not start with `transformer.`.

use crate::error::{Error, Result};
use crate::models::family::{Config, Decoder, Family, FamilyLayers};
use crate::nn::{
    Attention, Embedding, ForwardPass, LayerInput, LayerNorm, Linear, ModelBuilder, ModuleScope, ParamMapping, Tokens,
    by_tiles, ops,
};
use serde_json::{Map, Value, json};
use std::rc::Rc;
use tch::Tensor;

/// The `model_type` of the family.
pub const NAME: &str = "gpt2";

pub(super) const FAMILY: Family = Family {
    names: &[NAME],
    architectures: &["GPT2LMHeadModel"],
    key_names: &[
        ("hidden_size", "n_embd"),
        ("intermediate_size", "n_inner"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("hidden_act", "activation_function"),
    ],
    defaults,
    foreign_keys: &[
        "num_key_value_heads",
        "head_dim",
        "rope_scaling",
        "rope_parameters",
        "sliding_window",
        "layer_types",
    ],
    extra_keys: &[],
    embedding: "transformer.wte.weight",
    map_param,
    stacked_experts: false,
    layers: FamilyLayers::Own(build),
};

/// Fills in transformers' defaults for missing keys.
fn defaults(config: &mut Map<String, Value>) {
    if config.get("n_inner").is_none_or(Value::is_null)
        && let Some(width) = config.get("n_embd").and_then(Value::as_i64)
    {
        config.insert("n_inner".into(), json!(4 * width.clamp(0, 1 << 24)));
    }
    config.entry("n_positions").or_insert(json!(1024));
    config.entry("layer_norm_epsilon").or_insert(json!(1e-5));
    config.entry("activation_function").or_insert(json!("gelu_new"));
    config.entry("tie_word_embeddings").or_insert(json!(true));
}

/// Maps a checkpoint's name to the name in transformers: the first checkpoints lack the prefix `transformer.`. Causal
/// masks, which they also contain, are left out.
fn map_param(name: &str) -> Option<ParamMapping> {
    let mask = name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
    let whole = ["transformer.", "lm_head.", "score."].iter().any(|part| name.starts_with(part));
    let name = if whole { name.to_string() } else { format!("transformer.{name}") };
    let linear = ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"];
    let transposed = linear.iter().any(|l| name.ends_with(l));
    (!mask).then_some(ParamMapping { name, transposed })
}

/// Returns the factor on the products of queries and keys in layer `i`.
pub fn attention_scale(c: &Config, i: i64) -> f64 {
    let is = |key: &str, default: bool| c.raw.get(key).and_then(Value::as_bool).unwrap_or(default);
    let scale = if is("scale_attn_weights", true) { (c.head_dim as f64).powf(-0.5) } else { 1.0 };
    if is("scale_attn_by_inverse_layer_idx", false) { scale / (i + 1) as f64 } else { scale }
}

fn build(c: &Config, b: &ModelBuilder) -> Result<Box<dyn Decoder>> {
    let refuse = |what: String| Err(Error::user(format!("{}: {what}", c.file().display())));
    // All three names mean 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    if !["gelu_new", "gelu_pytorch_tanh", "gelu_fast"].contains(&c.hidden_act.as_str()) {
        return refuse(format!("activation_function `{}` is not supported, expected `gelu_new`", c.hidden_act));
    }
    if c.num_attention_heads * c.head_dim != c.hidden_size || c.num_key_value_heads != c.num_attention_heads {
        return refuse(format!("`n_embd` {} is not a multiple of `n_head` {}", c.hidden_size, c.num_attention_heads));
    }
    if c.raw.get("add_cross_attention") == Some(&Value::Bool(true)) {
        return refuse("`add_cross_attention` is true: only decoder-only models are supported".into());
    }
    let Some(positions) = c.max_position_embeddings.filter(|n| (1..1 << 24).contains(n)) else {
        return refuse("`n_positions` must be a positive integer".into());
    };
    let root = b.root() / "transformer";
    let tokens = (&root / "wte").embedding(c.vocab_size, c.hidden_size);
    let positions = (&root / "wpe").position_table(positions, c.hidden_size);
    let layers = (0..c.num_hidden_layers).map(|i| Gpt2Block::build(c, &(&root / "h" / i), i)).collect();
    let norm = (&root / "ln_f").layer_norm(c.hidden_size, c.norm_eps);
    let scope = b.root() / "lm_head";
    let head =
        if c.tie_word_embeddings { scope.tied_head(&tokens) } else { scope.output_head(c.hidden_size, c.vocab_size) };
    Ok(Box::new(Gpt2 { tokens, positions, layers, norm, head: Rc::new(head) }))
}

struct Gpt2 {
    tokens: Embedding,
    positions: Embedding,
    layers: Vec<Gpt2Block>,
    norm: LayerNorm,
    head: Rc<Linear>,
}

impl Decoder for Gpt2 {
    fn depth(&self) -> usize {
        self.layers.len()
    }
    fn embed(&self, tokens: &Tokens) -> Tensor {
        self.tokens.forward(&tokens.ids) + self.positions.forward(&tokens.positions)
    }
    fn embed_positions(&self, positions: &Tensor) -> Option<Tensor> {
        Some(self.positions.forward(positions))
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
    fn attention(&self, i: usize) -> Option<Attention> {
        Some(self.layers[i].attention.clone())
    }
    fn has_gates(&self) -> bool {
        false
    }
    fn longest(&self) -> Option<i64> {
        Some(self.positions.count())
    }
}

struct Gpt2Block {
    ln_1: LayerNorm,
    c_attn: Linear,
    attn_c_proj: Linear,
    ln_2: LayerNorm,
    mlp: Rc<Gpt2Mlp>,
    heads: i64,
    attention: Attention,
}

struct Gpt2Mlp {
    c_fc: Linear,
    c_proj: Linear,
}

impl Gpt2Mlp {
    fn forward(&self, input: LayerInput) -> Tensor {
        self.c_proj.forward(ops::gelu(&self.c_fc.forward(input)))
    }
}

impl Gpt2Block {
    fn build(c: &Config, s: &ModuleScope, i: i64) -> Self {
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (attn, mlp) = (s / "attn", s / "mlp");
        // Layers whose output is added to the residual stream start smaller, by the square root of the number of
        // additions.
        let residual = (2.0 * c.num_hidden_layers as f64).powf(-0.5);
        Self {
            ln_1: (s / "ln_1").layer_norm(d, c.norm_eps),
            c_attn: (&attn / "c_attn").linear(d, 3 * d, true),
            attn_c_proj: (&attn / "c_proj").scale_std(residual).linear(d, d, true),
            ln_2: (s / "ln_2").layer_norm(d, c.norm_eps),
            mlp: Rc::new(Gpt2Mlp {
                c_fc: (&mlp / "c_fc").linear(d, f, true),
                c_proj: (&mlp / "c_proj").scale_std(residual).linear(f, d, true),
            }),
            heads: c.num_attention_heads,
            attention: Attention::causal(attention_scale(c, i)),
        }
    }

    fn forward(&self, i: usize, x: &Tensor, pass: &mut ForwardPass) -> Tensor {
        let (rows, width) = x.size2().expect("a row of vectors");
        let qkv = self.c_attn.forward(self.ln_1.forward(x)).chunk(3, -1); // (T, D) each
        let split = |t: &Tensor| t.view([rows, self.heads, width / self.heads]); // (T, H, E)
        let y = pass.attend(i, &split(&qkv[0]), &split(&qkv[1]), &split(&qkv[2]), &self.attention);
        let x = x + self.attn_c_proj.forward(&y.view([rows, width]));
        let mlp = self.mlp.clone();
        &x + by_tiles(self.ln_2.forward(&x), &[], pass.mlp_tile(), move |input, _| mlp.forward(input))
    }
}
