//! Llama and its kin: SmolLM, Llama 2 and 3, Mistral (Touvron et al. 2023, arXiv 2302.13971).

use super::{Config, Decoder, Family};
use crate::error::{Error, Result};
use crate::nn::{Builder, Embedding, Linear, Pass, RmsNorm, Rope, Scope, ops};
use std::rc::Rc;
use tch::Tensor;

pub const FAMILY: Family = Family { names: &["llama", "mistral"], build };

fn build(c: &Config, b: &Builder) -> Result<Box<dyn Decoder>> {
    if c.hidden_act != "silu" {
        return Err(Error::user(format!("{}: hidden_act `{}` is not supported", c.file().display(), c.hidden_act))
            .hint("this family computes with silu"));
    }
    let root = b.root() / "model";
    let embed = (&root / "embed_tokens").embedding(c.vocab_size, c.hidden_size);
    let rope = Rc::new(Rope::new(c.head_dim, c.rope_theta, &c.rope_scaling, b.device()));
    let layers = (0..c.num_hidden_layers).map(|i| Block::build(c, &(&root / "layers" / i), &rope)).collect();
    let norm = (&root / "norm").rms_norm(c.hidden_size, c.norm_eps);
    let scope = b.root() / "lm_head";
    let head = if c.tie_word_embeddings { scope.tied_head(&embed) } else { scope.head(c.hidden_size, c.vocab_size) };
    Ok(Box::new(Llama { embed, layers, norm, head: Rc::new(head) }))
}

struct Llama {
    embed: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    head: Rc<Linear>,
}

impl Decoder for Llama {
    fn depth(&self) -> usize {
        self.layers.len()
    }
    fn embed(&self, ids: &Tensor) -> Tensor {
        self.embed.forward(ids)
    }
    fn layer(&self, i: usize, x: &Tensor, pass: &mut Pass) -> Tensor {
        self.layers[i].forward(i, x, pass)
    }
    fn finish(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }
    fn head(&self) -> &Rc<Linear> {
        &self.head
    }
}

struct Block {
    input_layernorm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    post_attention_layernorm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    rope: Rc<Rope>,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
}

impl Block {
    fn build(c: &Config, s: &Scope, rope: &Rc<Rope>) -> Self {
        let (d, f, e, bias) = (c.hidden_size, c.intermediate_size, c.head_dim, c.attention_bias);
        let (attn, mlp) = (s / "self_attn", s / "mlp");
        Self {
            input_layernorm: (s / "input_layernorm").rms_norm(d, c.norm_eps),
            q: (&attn / "q_proj").linear(d, c.num_attention_heads * e, bias),
            k: (&attn / "k_proj").linear(d, c.num_key_value_heads * e, bias),
            v: (&attn / "v_proj").linear(d, c.num_key_value_heads * e, bias),
            o: (&attn / "o_proj").linear(c.num_attention_heads * e, d, bias),
            post_attention_layernorm: (s / "post_attention_layernorm").rms_norm(d, c.norm_eps),
            gate: (&mlp / "gate_proj").linear(d, f, c.mlp_bias),
            up: (&mlp / "up_proj").linear(d, f, c.mlp_bias),
            down: (&mlp / "down_proj").linear(f, d, c.mlp_bias),
            rope: rope.clone(),
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: e,
        }
    }

    fn forward(&self, i: usize, x: &Tensor, pass: &mut Pass) -> Tensor {
        let h = self.input_layernorm.forward(x);
        let (q, k, v) = (self.q.forward(&h), self.k.forward(&h), self.v.forward(&h));
        let (cos, sin) = pass.angles(&self.rope, x.kind());
        let q = ops::rotate(&q.view([-1, self.heads, self.head_dim]), &cos, &sin); // (T, H, E)
        let k = ops::rotate(&k.view([-1, self.kv_heads, self.head_dim]), &cos, &sin); // (T, K, E)
        let v = v.view([-1, self.kv_heads, self.head_dim]);
        let y = pass.attend(i, &q, &k, &v, (self.head_dim as f64).powf(-0.5));
        let x = x + self.o.forward(&y.view([-1, self.heads * self.head_dim]));
        let h = self.post_attention_layernorm.forward(&x);
        let y = self.down.forward(&ops::swiglu(&self.gate.forward(&h), &self.up.forward(&h)));
        x + y
    }
}
