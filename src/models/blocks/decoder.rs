//! A decoder of blocks: embedding, layers, final norm and head.

use super::block::{Block, LayerPositions};
use super::design::{Design, FeedForwardLayers, QkNorm};
use super::norm::Norm;
use super::positions::SinusoidalPositions;
use crate::error::Result;
use crate::models::family::{Config, Decoder, MoreNumbers};
use crate::nn::{Attention, Embedding, ForwardPass, Linear, ModelBuilder, RelativeBias, Rope, Tokens};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// The module of trained biases of scores, by T5's name.
const RELATIVE_BIAS: &str = "relative_attention_bias";

struct BlockDecoder {
    embed: Embedding,
    embedding_norm: Option<Norm>,
    embedding_scale: f64,
    positions: Option<SinusoidalPositions>,
    layers: Vec<Block>,
    norm: Norm,
    head: Rc<Linear>,
    has_gates: bool,
    more: MoreNumbers,
}

/// Builds a decoder of this design. Fails for heads of an odd size.
pub fn build(c: &Config, b: &ModelBuilder, design: Design) -> Result<Box<dyn Decoder>> {
    let ropes = ropes(c, b, &design)?;
    let root = b.root() / design.names.trunk;
    let embed = (&root / design.names.embedding).embedding(c.vocab_size, c.hidden_size);
    let embedding_norm = design.names.embedding_norm;
    let embedding_norm =
        embedding_norm.map(|name| Norm::build(design.norm, &(&root / name), c.hidden_size, c.norm_eps));
    let biases = design.attention.relative.map(|buckets| {
        let table = (&root / RELATIVE_BIAS).bias_table(buckets.count, c.num_attention_heads);
        RelativeBias::new(table, buckets)
    });
    let block = |(i, rope): (usize, Rc<Rope>)| {
        let positions = LayerPositions { rope, biases: biases.clone() };
        Block::build(c, &(&root / design.names.layers / i), &design, i, &positions)
    };
    let layers = ropes.into_iter().enumerate().map(block).collect();
    let norm = Norm::build(design.norm, &(&root / design.names.final_norm), c.hidden_size, c.norm_eps);
    let scope = b.root() / "lm_head";
    let head =
        if c.tie_word_embeddings { scope.tied_head(&embed) } else { scope.output_head(c.hidden_size, c.vocab_size) };
    Ok(Box::new(BlockDecoder {
        embed,
        embedding_norm,
        embedding_scale: design.embedding_scale,
        positions: design.sinusoidal_positions.then(|| SinusoidalPositions::new(c.hidden_size, b.device())),
        layers,
        norm,
        head: Rc::new(head.with_logits(design.logits)),
        has_gates: !matches!(design.feed_forward.layers, FeedForwardLayers::Plain(_)),
        more: more_numbers(c, &design),
    }))
}

/// Returns what norms of queries and keys, and norms behind attention and MLP, keep beyond the two norms of other layers: their inputs.
fn more_numbers(c: &Config, design: &Design) -> MoreNumbers {
    let behind = [design.wiring.after_attention, design.wiring.after_mlp].into_iter().flatten().count() as i64;
    let heads = (c.num_attention_heads + c.num_key_value_heads) * c.head_dim;
    // A norm of all heads together reads columns of a matrix where they are; one of each head reads a copy.
    let [normed, kept_if_joined] = match design.attention.qk_norm {
        QkNorm::None => [0, 0],
        QkNorm::Whole => [heads, 0],
        _ => [heads, heads],
    };
    let without_first_norms = design.wiring.before_attention.is_none() && design.wiring.before_mlp.is_none();
    MoreNumbers { kept: behind * c.hidden_size + normed, kept_if_joined, without_first_norms, ..MoreNumbers::default() }
}

/// Returns the rotary embedding of each layer: layers with a window may have another one than the rest. Fails for heads of an
/// odd size.
pub fn ropes(c: &Config, b: &ModelBuilder, design: &Design) -> Result<Vec<Rc<Rope>>> {
    let rotates = design.attention.rotates.contains(&true);
    if rotates && (c.rotary_size < 2 || c.rotary_size % 2 != 0) {
        return Err(c
            .refuse(format!("a head size of {}, but rotary embedding needs an even one", c.rotary_size))
            .hint("`head_dim`, or `hidden_size` / `num_attention_heads` where it is left out, must be even"));
    }
    let rope = Rc::new(Rope::new(c.rotary_size, c.rope_theta, &c.rope_scaling, b.device()));
    let local = match &c.local_rope {
        Some((theta, scaling)) => Rc::new(Rope::new(c.rotary_size, *theta, scaling, b.device())),
        None => rope.clone(),
    };
    Ok(c.windows.iter().map(|window| if window.is_some() { local.clone() } else { rope.clone() }).collect())
}

impl Decoder for BlockDecoder {
    fn depth(&self) -> usize {
        self.layers.len()
    }
    fn embed(&self, tokens: &Tokens) -> Tensor {
        let x = self.embed.forward(&tokens.ids);
        let x = self.embedding_norm.as_ref().map_or(x.shallow_clone(), |norm| norm.forward(&x).x);
        let x = match self.embedding_scale {
            1.0 => x,
            scale => &x * rounded(scale, x.kind()),
        };
        match &self.positions {
            Some(vectors) => &x + vectors.of(&tokens.positions, x.kind()),
            None => x,
        }
    }
    fn embed_positions(&self, positions: &Tensor) -> Option<Tensor> {
        Some(self.positions.as_ref()?.of(positions, Kind::Float))
    }
    fn layer(&self, i: usize, x: &Tensor, pass: &mut ForwardPass) -> Tensor {
        self.layers[i].forward(i, x, self.layers.get(i + 1), pass)
    }
    fn finish(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x).x
    }
    fn head(&self) -> &Rc<Linear> {
        &self.head
    }
    fn attention(&self, i: usize) -> Option<Attention> {
        Some(self.layers[i].attention.settings())
    }
    fn rotation_switch(&self) -> Option<i64> {
        self.layers.iter().find_map(|layer| layer.attention.rotation_switch())
    }
    fn has_gates(&self) -> bool {
        self.has_gates
    }
    fn more_numbers(&self) -> MoreNumbers {
        self.more
    }
}

/// Rounds a number to a dtype, as transformers does with the factor on embeddings.
pub fn rounded(x: f64, kind: Kind) -> f64 {
    Tensor::from(x as f32).to_kind(kind).to_kind(Kind::Double).double_value(&[])
}
