//! The sizes and settings of a model that its GGUF file and its config.json both contain ([`Shape`]), and the tensors that
//! follow from them.

use super::layout::{BiasOf, BiasUse, Dim, Family, HeadUse, Layout, NormKind, Presence, TensorRule};
use super::rope_scaling::RopeKeys;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The sizes and settings of a model of one family.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Its family.
    pub family: &'static Family,
    /// Number of layers.
    pub layers: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width inside the MLP.
    pub inner: u64,
    /// Number of query heads.
    pub heads: u64,
    /// Number of key and value heads.
    pub kv_heads: u64,
    /// Size of a head.
    pub head_dim: u64,
    /// Rows of the embedding.
    pub vocab: u64,
    /// The context that the model was made for, in tokens.
    pub context: u64,
    /// The number that norms add to the variance.
    pub norm_eps: f64,
    /// Rotary embedding; `None`: positions have trained vectors.
    pub rope: Option<RopeKeys>,
    /// The window in tokens, and which layers have it.
    pub windows: Option<(u64, Vec<bool>)>,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// The projection of attention's result has a bias.
    pub output_bias: bool,
    /// The MLP's layers have biases.
    pub mlp_bias: bool,
    /// The head is the embedding.
    pub tied: bool,
    /// The experts of each layer.
    pub experts: Option<ExpertShape>,
    /// Names in GGUF files of the tensors of layers that not every model of the family has.
    pub present: BTreeSet<&'static str>,
    /// The family's own keys of config.json.
    pub settings: Map<String, Value>,
}

/// The sizes of layers of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertShape {
    /// Number of experts.
    pub count: u64,
    /// Number of experts that compute a token.
    pub chosen: u64,
    /// Width inside an expert.
    pub width: u64,
    /// Width inside the expert that computes every token.
    pub shared: Option<u64>,
}

/// A tensor of a model in both kinds of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedTensor {
    /// Name in the GGUF file.
    pub gguf: String,
    /// Shape in the GGUF file, outermost dimension first.
    pub stored: Vec<u64>,
    /// Names in a directory: one, or one for each expert.
    pub hf: Vec<String>,
    /// Shape of each in a directory.
    pub shape: Vec<u64>,
    /// How the file's numbers are arranged.
    pub layout: Layout,
}

impl Shape {
    /// Returns every tensor of the model but the head, in llama.cpp's order.
    pub fn tensors(&self) -> Vec<PlacedTensor> {
        let family = self.family;
        let mut placed = Vec::new();
        for rule in family.before {
            self.place(rule, "", "", &mut placed);
        }
        for i in 0..self.layers {
            let (blk, layer) = (format!("blk.{i}."), format!("{}.{i}.", family.layers));
            for rule in family.layer.iter().flat_map(|group| group.iter()) {
                self.place(rule, &blk, &layer, &mut placed);
            }
        }
        for rule in family.after {
            self.place(rule, "", "", &mut placed);
        }
        placed
    }

    /// Returns the head as a tensor of its own.
    pub fn head(&self) -> PlacedTensor {
        let shape = vec![self.vocab, self.hidden];
        let hf = vec!["lm_head.weight".into()];
        PlacedTensor { gguf: "output.weight".into(), stored: shape.clone(), hf, shape, layout: Layout::Same }
    }

    /// Returns true if a file has a tensor for the head.
    pub fn has_head(&self) -> bool {
        match self.family.head {
            HeadUse::Embedding => false,
            HeadUse::Required => true,
            HeadUse::Optional => !self.tied,
        }
    }

    fn place(&self, rule: &TensorRule, blk: &str, layer: &str, placed: &mut Vec<PlacedTensor>) {
        let has = |name: &&'static str| self.present.contains(*name);
        match rule.presence {
            Presence::With(name) if !has(&name) => return,
            Presence::Without(name) if has(&name) => return,
            _ => {}
        }
        let shape: Vec<u64> = rule.shape.iter().map(|dim| self.size(*dim)).collect();
        let experts = self.experts.map_or(0, |experts| experts.count);
        let (hf, stored): (Vec<String>, Vec<u64>) = match rule.layout {
            Layout::Stacked => {
                let names = (0..experts).map(|i| format!("{layer}{}.weight", rule.hf.replace('#', &i.to_string())));
                (names.collect(), [&[experts][..], &shape[..]].concat())
            }
            Layout::Flat => (vec![format!("{layer}{}.weight", rule.hf)], vec![shape.iter().product()]),
            Layout::Transposed => (vec![format!("{layer}{}.weight", rule.hf)], shape.iter().rev().copied().collect()),
            _ => (vec![format!("{layer}{}.weight", rule.hf)], shape.clone()),
        };
        let outputs = stored[0];
        placed.push(PlacedTensor {
            gguf: format!("{blk}{}.weight", rule.gguf),
            stored,
            hf,
            shape,
            layout: rule.layout,
        });
        let biased = match rule.bias {
            BiasOf::None => false,
            BiasOf::Qkv => self.qkv_bias,
            BiasOf::Output => self.output_bias,
            BiasOf::Mlp => self.mlp_bias,
            BiasOf::Norm => self.family.norm == NormKind::Layer { bias: true },
        };
        if biased {
            let layout = match rule.layout {
                Layout::Transposed | Layout::Norm => Layout::Same,
                other => other,
            };
            placed.push(PlacedTensor {
                gguf: format!("{blk}{}.bias", rule.gguf),
                stored: vec![outputs],
                hf: vec![format!("{layer}{}.bias", rule.hf)],
                shape: vec![outputs],
                layout,
            });
        }
    }

    fn size(&self, dim: Dim) -> u64 {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let experts = self.experts.unwrap_or(ExpertShape { count: 0, chosen: 0, width: 0, shared: None });
        match dim {
            Dim::One => 1,
            Dim::Vocab => self.vocab,
            Dim::Positions => self.context,
            Dim::Hidden => self.hidden,
            Dim::Inner => self.inner,
            Dim::TwiceInner => 2 * self.inner,
            Dim::Queries => queries,
            Dim::Keys => keys,
            Dim::Qkv => queries + 2 * keys,
            Dim::Head => self.head_dim,
            Dim::Heads => self.heads,
            Dim::KvHeads => self.kv_heads,
            Dim::Experts => experts.count,
            Dim::ExpertInner => experts.width,
            Dim::SharedInner => experts.shared.unwrap_or(0),
        }
    }
}

impl BiasUse {
    /// Returns true if a model has biases of a group; `found` says so where models differ.
    pub fn with(self, found: impl FnOnce() -> bool) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Some => found(),
        }
    }
}

impl Family {
    /// Returns the rules of a layer's tensors.
    pub fn layer_rules(&self) -> impl Iterator<Item = &'static TensorRule> {
        self.layer.iter().flat_map(|group| group.iter())
    }

    /// Returns the names in GGUF files of the tensors of layers that not every model has.
    pub fn variable_parts(&self) -> BTreeSet<&'static str> {
        self.layer_rules()
            .filter_map(|rule| match rule.presence {
                Presence::With(name) | Presence::Without(name) => Some(name),
                Presence::Always => None,
            })
            .collect()
    }
}
