//! What lies before and after the layers of Gemma 3n: one stream becomes several, and several become one.

use super::layer::Layer;
use super::{Settings, design};
use crate::error::Result;
use crate::models::blocks::{Norm, NormKind, ropes, rounded};
use crate::models::family::{Config, Decoder, MoreNumbers};
use crate::nn::{Attention, Embedding, ForwardPass, Linear, ModelBuilder, Producer, Tokens};
use std::rc::Rc;
use tch::Tensor;

/// The least mean square of a stream that it is scaled by.
const LEAST_SQUARE: f64 = 1e-5;

struct Gemma3n {
    embed: Embedding,
    embedding_scale: f64,
    inputs: LayerInputs,
    /// One for each stream but the first.
    into_streams: Vec<Linear>,
    layers: Vec<Layer>,
    out_of_streams: Vec<Linear>,
    norm: Norm,
    head: Rc<Linear>,
    more: MoreNumbers,
    vocabulary: i64,
}

/// The second table of tokens, and what is added to its rows.
struct LayerInputs {
    table: Embedding,
    projection: Linear,
    norm: Norm,
    depth: i64,
    /// P
    width: i64,
}

/// Builds the decoder.
pub fn build(c: &Config, b: &ModelBuilder) -> Result<Box<dyn Decoder>> {
    let (s, design) = (Settings::read(c)?, design(c)?);
    let ropes = ropes(c, b, &design)?;
    let (d, root) = (c.hidden_size, b.root() / "model");
    let embed = (&root / "embed_tokens").embedding(c.vocab_size, d);
    let all = c.num_hidden_layers * s.input;
    let inputs = LayerInputs {
        table: (&root / "embed_tokens_per_layer").other_token_table(s.vocabulary, all),
        projection: (&root / "per_layer_model_projection").linear(d, all, false),
        norm: Norm::build(NormKind::Rms, &(&root / "per_layer_projection_norm"), s.input, c.norm_eps),
        depth: c.num_hidden_layers,
        width: s.input,
    };
    let projections =
        |name: &str| (0..s.streams - 1).map(|i| (&root / name / i).linear(d, d, false)).collect::<Vec<_>>();
    let (into_streams, out_of_streams) = (projections("altup_projections"), projections("altup_unembed_projections"));
    let layer = |(i, rope)| Layer::build(c, &(&root / "layers" / i), (&design, &s), i, rope);
    let layers = ropes.iter().enumerate().map(layer).collect();
    let norm = Norm::build(design.norm, &(&root / "norm"), d, c.norm_eps);
    let scope = b.root() / "lm_head";
    let head = if c.tie_word_embeddings { scope.tied_head(&embed) } else { scope.output_head(d, c.vocab_size) };
    let layers_of_keys = &c.key_value_layers;
    let shared = (0..layers_of_keys.len()).filter(|i| layers_of_keys[i + 1..].contains(i)).count() as i64;
    let (n, p) = (s.streams, s.input);
    let sparse = design.sparsity.iter().filter(|share| **share > 0.0).count() as i64;
    let widths = c.intermediate_sizes.iter().sum::<i64>() / c.num_hidden_layers;
    let more = MoreNumbers {
        between_layers: d * (n - 1),
        // The streams; the inputs of norms and linear layers beside attention and MLP; what elementwise operations keep.
        kept: n * d + 9 * d + s.rank + 3 * p,
        kept_if_joined: 0,
        without_first_norms: false,
        // The activation's result, and of sparse gates their inputs.
        kept_in_mlp: widths + widths * sparse / c.num_hidden_layers,
        // Every layer's part of the table, in two forms; keys and values that are shared.
        handed_on: 2 * all + 2 * shared * c.num_key_value_heads * c.head_dim,
        around_layers: 4 * (n - 1) * d,
    };
    Ok(Box::new(Gemma3n {
        embed,
        embedding_scale: design.embedding_scale,
        inputs,
        into_streams,
        layers,
        out_of_streams,
        norm,
        head: Rc::new(head.with_logits(design.logits)),
        more,
        vocabulary: s.vocabulary,
    }))
}

impl Gemma3n {
    /// Returns n, the number of streams.
    fn streams(&self) -> i64 {
        self.into_streams.len() as i64 + 1
    }
}

/// Gives all streams (T, D) the root mean square of the first, token by token.
fn level(streams: &mut [Tensor]) {
    let width = streams[0].size()[1] as f64;
    // The gradient of a norm is 0 at 0, where that of a root is infinite.
    let target = streams[0].norm_scalaropt_dim(2.0, [-1i64].as_slice(), true) / width.sqrt(); // (T, 1)
    for x in &mut streams[1..] {
        let square = x.square().mean_dim([-1i64].as_slice(), true, x.kind());
        *x = &*x * &target / square.clamp_min(LEAST_SQUARE).sqrt();
    }
}

impl LayerInputs {
    /// Returns the part of each layer, (T, P) each: the rows of the table, plus projections of the embedded tokens x (T, D).
    fn of(&self, ids: &Tensor, x: &Tensor) -> Vec<Tensor> {
        let kind = x.kind();
        let by_layer = |t: Tensor| t.view([-1, self.depth, self.width]);
        // As in transformers: a token without a row has the first one. Rows of text never have such tokens (`known_tokens`).
        let known = ids.lt(self.table.count());
        let rows = by_layer(self.table.forward(&(ids * known))) * rounded((self.width as f64).sqrt(), kind);
        let scale = rounded((x.size()[1] as f64).powf(-0.5), kind);
        let projected = self.norm.forward(&by_layer(self.projection.forward(x) * scale)).x;
        let sum = (projected + rows) * rounded(0.5f64.sqrt(), kind); // (T, L, P)
        sum.unbind(1).iter().map(Tensor::contiguous).collect()
    }
}

impl Decoder for Gemma3n {
    fn depth(&self) -> usize {
        self.layers.len()
    }
    fn embed(&self, tokens: &Tokens) -> Tensor {
        let x = self.embed.forward(&tokens.ids);
        &x * rounded(self.embedding_scale, x.kind())
    }
    fn enter(&self, x: Tensor, tokens: &Tokens, pass: &mut ForwardPass) -> Tensor {
        pass.hand_on(Producer::Entrance, self.inputs.of(&tokens.ids, &x));
        let mut streams: Vec<Tensor> =
            std::iter::once(x.shallow_clone()).chain(self.into_streams.iter().map(|layer| layer.forward(&x))).collect();
        level(&mut streams);
        Tensor::cat(&streams, 1) // (T, n D)
    }
    fn layer(&self, i: usize, x: &Tensor, pass: &mut ForwardPass) -> Tensor {
        let streams = x.view([x.size()[0], self.streams(), -1]);
        self.layers[i].forward(i, &streams, pass).flatten(1, 2)
    }
    fn finish(&self, x: &Tensor) -> Tensor {
        let parts = x.chunk(self.streams(), 1);
        let others = parts[1..].iter().zip(&self.out_of_streams).map(|(x, layer)| layer.forward(&x.contiguous()));
        let mut streams: Vec<Tensor> = std::iter::once(parts[0].shallow_clone()).chain(others).collect();
        level(&mut streams);
        self.norm.forward(&Tensor::stack(&streams, 0).mean_dim([0i64].as_slice(), false, x.kind())).x
    }
    fn more_numbers(&self) -> MoreNumbers {
        self.more
    }
    fn known_tokens(&self) -> Option<i64> {
        Some(self.vocabulary)
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
}
