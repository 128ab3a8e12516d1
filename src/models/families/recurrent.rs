//! Recurrent language models, which only ft writes and reads: an embedding, recurrent layers as in torch.nn.RNN, GRU and
//! LSTM, and an output head (Mikolov et al. 2010; Cho et al. 2014, arXiv 1406.1078; Hochreiter and Schmidhuber 1997).
//!
//! Layer l is `layers.l.input`, PyTorch's `weight_ih_l` and `bias_ih_l`, and `layers.l.recurrent`, its `weight_hh_l` and
//! `bias_hh_l`, with its order of gates.

use super::defaults::fill;
use crate::error::Result;
use crate::models::family::{Config, Decoder, Family, FamilyLayers};
use crate::nn::{Cell, Embedding, ForwardPass, Linear, ModelBuilder, ParamMapping, RecurrentLayer, Tokens};
use serde_json::{Map, Value, json};
use std::rc::Rc;
use tch::Tensor;

pub(super) const FAMILY: Family = Family {
    names: &["ft_rnn", "ft_gru", "ft_lstm"],
    architectures: &["FtRnn", "FtGru", "FtLstm"],
    key_names: &[],
    defaults,
    foreign_keys: OF_ATTENTION,
    extra_keys: &[],
    embedding: "embedding.weight",
    map_param: |name| Some(ParamMapping { name: name.into(), transposed: false }),
    stacked_experts: false,
    layers: FamilyLayers::Own(build),
};

/// Keys of config.json that mean nothing without attention and MLPs. A config with one of them is refused.
const OF_ATTENTION: &[&str] = &[
    "hidden_act",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "rope_local_base_freq",
    "sliding_window",
    "layer_types",
    "attention_bias",
    "mlp_bias",
    "dropout",
];

/// Fills in defaults, and the sizes that every config has: those of a model without heads and MLPs.
fn defaults(config: &mut Map<String, Value>) {
    fill(
        config,
        [("tie_word_embeddings", json!(true)), ("initializer_range", json!(0.1)), ("num_attention_heads", json!(1))],
    );
    if let Some(width) = config.get("hidden_size").cloned() {
        config.insert("intermediate_size".into(), width);
    }
}

fn build(c: &Config, b: &ModelBuilder) -> Result<Box<dyn Decoder>> {
    if let Some(key) = OF_ATTENTION.iter().find(|key| c.raw.get(**key).is_some_and(|v| !v.is_null())) {
        return Err(c
            .refuse(format!("`{key}` means nothing in a {} model", c.model_type))
            .hint("its keys: vocab_size, hidden_size, num_hidden_layers, tie_word_embeddings, initializer_range"));
    }
    let cell = match c.model_type.as_str() {
        "ft_rnn" => Cell::Rnn,
        "ft_gru" => Cell::Gru,
        _ => Cell::Lstm,
    };
    let root = b.root();
    let embedding = (&root / "embedding").embedding(c.vocab_size, c.hidden_size);
    // New weights of the layers have PyTorch's deviation, that of uniform numbers up to 1 / sqrt(D), whatever
    // `initializer_range` says for embedding and head.
    let spread = 1.0 / (3.0 * c.hidden_size as f64).sqrt() / c.initializer_range;
    let outputs = cell.gates() * c.hidden_size;
    let linear =
        |i: i64, name: &str| (&root / "layers" / i / name).scale_std(spread).linear(c.hidden_size, outputs, true);
    let layer = |i| RecurrentLayer { cell, input: linear(i, "input"), recurrent: linear(i, "recurrent") };
    let layers = (0..c.num_hidden_layers).map(layer).collect();
    let scope = b.root() / "lm_head";
    let head = if c.tie_word_embeddings {
        scope.tied_head(&embedding)
    } else {
        scope.output_head(c.hidden_size, c.vocab_size)
    };
    Ok(Box::new(Recurrent { cell, embedding, layers, head: Rc::new(head) }))
}

struct Recurrent {
    cell: Cell,
    embedding: Embedding,
    layers: Vec<RecurrentLayer>,
    head: Rc<Linear>,
}

impl Decoder for Recurrent {
    fn depth(&self) -> usize {
        self.layers.len()
    }
    fn embed(&self, tokens: &Tokens) -> Tensor {
        self.embedding.forward(&tokens.ids)
    }
    fn layer(&self, i: usize, x: &Tensor, pass: &mut ForwardPass) -> Tensor {
        self.layers[i].forward(i, x, pass)
    }
    fn finish(&self, x: &Tensor) -> Tensor {
        x.shallow_clone()
    }
    fn head(&self) -> &Rc<Linear> {
        &self.head
    }
    fn recurrence(&self) -> Option<Cell> {
        Some(self.cell)
    }
    fn has_gates(&self) -> bool {
        false
    }
}
