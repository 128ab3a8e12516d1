//! The graph of a decoder: token ids, mask, positions and the keys and values of earlier tokens in; logits and all keys and values
//! out. Names and shapes are those of ONNX Runtime GenAI and of optimum.
//!
//! Letters in shapes: B sequences, S new tokens of each, L tokens with earlier ones, T = B * S; the others as in `nn`.

use super::Precision;
use super::attention::AttentionFrame;
use super::layout::DecoderLayout;
use super::rotation::Rotation;
use super::weights::WeightPlan;
use crate::models::Config;
use crate::models::blocks::FeedForwardLayers;
use crate::onnx::{Dimension, ElementType, Graph, GraphBuilder, Value};

/// The graph of a decoder that is being built.
pub struct DecoderGraph<'a> {
    pub(super) g: GraphBuilder,
    pub(super) config: &'a Config,
    pub(super) layout: &'a DecoderLayout,
    pub(super) precision: Precision,
    pub(super) weights: WeightPlan,
}

/// Returns the graph of a model, and the weights that it needs.
pub fn build(config: &Config, layout: &DecoderLayout, precision: Precision) -> (Graph, WeightPlan) {
    let (g, weights) = (GraphBuilder::default(), WeightPlan::default());
    let mut graph = DecoderGraph { g, config, layout, precision, weights };
    graph.decoder();
    (graph.g.finish(), graph.weights)
}

impl DecoderGraph<'_> {
    fn decoder(&mut self) {
        let shape = |length: &str| -> Vec<Dimension> { vec!["batch_size".into(), length.into()] };
        let ids = self.g.input("input_ids", ElementType::Int64, shape("sequence_length"));
        let mask = self.g.input("attention_mask", ElementType::Int64, shape("total_sequence_length"));
        let reads = self.layout.reads_positions();
        let positions = reads.then(|| self.g.input("position_ids", ElementType::Int64, shape("sequence_length")));
        self.g.enter("/mask");
        let frame = self.attention_frame(&ids, &mask);
        self.g.enter("/rotation");
        let rotations = self.rotations(positions.as_ref());
        self.g.enter("/embedding");
        let mut x = self.embedded(&ids, positions.as_ref());
        for i in 0..self.config.num_hidden_layers as usize {
            self.g.enter(format!("/layers.{i}"));
            let local = usize::from(self.config.windows[i].is_some());
            let rotation = rotations[local].as_ref().filter(|_| self.layout.design.attention.rotates[i]);
            x = self.layer(i, &x, &frame, rotation);
        }
        self.g.enter("/head");
        self.head(&x, &frame);
    }

    /// Returns the angles of layers without and with a window.
    fn rotations(&mut self, positions: Option<&Value>) -> [Option<Rotation>; 2] {
        let (config, rotates) = (self.config, &self.layout.design.attention.rotates);
        let needed = |local: bool| {
            let of = config.windows.iter().zip(rotates);
            of.into_iter().any(|(window, rotates)| *rotates && window.is_some() == local)
        };
        let [far, near] = [false, true].map(needed);
        let global = |graph: &mut Self, positions| graph.rotation(positions, config.rope_theta, &config.rope_scaling);
        let Some(positions) = positions else { return [None, None] };
        match &config.local_rope {
            Some((theta, scaling)) => {
                [far.then(|| global(self, positions)), near.then(|| self.rotation(positions, *theta, scaling))]
            }
            None => {
                let one = (far || near).then(|| global(self, positions));
                [one.clone(), one]
            }
        }
    }

    fn module(&self, name: &str) -> String {
        format!("{}.{name}", self.layout.design.names.trunk)
    }

    /// Returns the vectors of the tokens: (T, D).
    fn embedded(&mut self, ids: &Value, positions: Option<&Value>) -> Value {
        let (d, names) = (self.config.hidden_size, self.layout.design.names);
        let table = [self.config.vocab_size, d];
        let ids = self.g.reshape(ids, &[-1]);
        let mut x = self.table_rows(self.config.family().embedding, table, &ids, true);
        if let Some(name) = names.embedding_norm {
            x = self.norm(&x, &self.module(name), &[d]);
        }
        x = self.g.scale(&x, self.layout.design.embedding_scale);
        let Some(positions) = positions else { return x };
        if self.layout.design.sinusoidal_positions {
            let vectors = self.sinusoids(positions);
            x = self.g.add("Add", &[&x, &vectors]);
        }
        if let Some((name, count)) = self.layout.learned_positions {
            let at = self.g.reshape(positions, &[-1]);
            let vectors = self.table_rows(&format!("{}.weight", self.module(name)), [count, d], &at, false);
            x = self.g.add("Add", &[&x, &vectors]);
        }
        x
    }

    /// Computes layer `i`: (T, D) -> (T, D).
    fn layer(&mut self, i: usize, x: &Value, frame: &AttentionFrame, rotation: Option<&Rotation>) -> Value {
        let (d, wiring) = (self.config.hidden_size, self.layout.design.wiring);
        let module = self.module(&format!("{}.{i}", self.layout.design.names.layers));
        let norm = |graph: &mut Self, name: Option<&str>, x: &Value| match name {
            Some(name) => graph.norm(x, &format!("{module}.{name}"), &[d]),
            None => x.clone(),
        };
        let attention = format!("{module}.{}", self.layout.design.attention.module);
        let input = norm(self, wiring.before_attention, x);
        let y = self.attention(i, &attention, &input, frame, rotation);
        let y = norm(self, wiring.after_attention, &y);
        let y = self.g.scale(&y, self.layout.design.residual_scale);
        let sum = self.g.add("Add", &[x, &y]);
        let of_mlp = match (wiring.parallel, wiring.before_mlp) {
            (true, None) => input,
            (true, name) => norm(self, name, x),
            (false, name) => norm(self, name, &sum),
        };
        let y = match self.config.experts.as_ref().filter(|sizes| sizes.sparse[i]) {
            Some(sizes) => self.experts(&module, &of_mlp, sizes),
            None => self.feed_forward(&module, &of_mlp),
        };
        let y = norm(self, wiring.after_mlp, &y);
        let y = self.g.scale(&y, self.layout.design.residual_scale);
        self.g.add("Add", &[&sum, &y])
    }

    /// Computes the MLP of a layer: (T, D) -> (T, D).
    fn feed_forward(&mut self, layer: &str, x: &Value) -> Value {
        let design = self.layout.design.feed_forward;
        let (d, f, bias) = (self.config.hidden_size, self.config.intermediate_size, design.bias);
        let module = |name: &str| format!("{layer}.{}.{name}", design.module);
        let rows = self.rows(x);
        let (inner, down) = match design.layers {
            FeedForwardLayers::Plain([up, down]) => {
                let up = self.linear(&rows, &module(up), [d, f], bias);
                (self.activated(&up), down)
            }
            FeedForwardLayers::Gated => {
                let [gate, up] = ["gate_proj", "up_proj"].map(|name| self.linear(&rows, &module(name), [d, f], bias));
                (self.gated(&gate, &up), "down_proj")
            }
            FeedForwardLayers::FusedGate => {
                let both = self.linear(&rows, &module("gate_up_proj"), [d, 2 * f], bias);
                let [gate, up] = self.g.split(&both, [f, f], 1);
                (self.gated(&gate, &up), "down_proj")
            }
        };
        let rows = self.rows(&inner);
        self.linear(&rows, &module(down), [f, d], bias)
    }

    fn gated(&mut self, gate: &Value, up: &Value) -> Value {
        let gate = self.activated(gate);
        self.g.add("Mul", &[&gate, up])
    }

    /// Computes the logits (B, S, V) in float32.
    fn head(&mut self, x: &Value, frame: &AttentionFrame) {
        let (d, vocabulary, logits) = (self.config.hidden_size, self.config.vocab_size, self.layout.design.logits);
        let x = self.norm(x, &self.module(self.layout.design.names.final_norm), &[d]);
        let rows = self.rows(&x);
        let weight = if self.config.tie_word_embeddings { self.config.family().embedding } else { "lm_head.weight" };
        let y = self.product(&rows, weight, [vocabulary, d], false, None);
        let y = self.g.scale(&y, logits.scale);
        let y = match logits.softcap {
            Some(bound) => self.g.cap(&y, bound),
            None => y,
        };
        let shape = self.sequence_shape(frame, &[vocabulary]);
        let y = self.g.add_as("logits", "Reshape", &[&y, &shape], &[]);
        let shape = vec!["batch_size".into(), "sequence_length".into(), vocabulary.into()];
        self.g.output(&y, ElementType::Float, shape);
    }
}
