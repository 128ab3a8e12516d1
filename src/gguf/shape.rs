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
    /// The vectors that keys, values and perhaps queries are made of.
    pub latent: Option<LatentShape>,
    /// Names in GGUF files of the tensors of layers that not every model of the family has.
    pub present: BTreeSet<&'static str>,
    /// The family's own keys of config.json.
    pub settings: Map<String, Value>,
}

/// The sizes of layers of experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertShape {
    /// Number of experts.
    pub count: u64,
    /// Number of experts that compute a token.
    pub chosen: u64,
    /// Width inside an expert.
    pub width: u64,
    /// Width inside the expert that computes every token.
    pub shared: Option<u64>,
    /// Number of layers before the first with experts.
    pub first: u64,
    /// Factor on the weights of a token's experts.
    pub scale: f64,
}

/// The sizes of multi-head latent attention. A head's key has a plain part and a rotated one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentShape {
    /// Width of the vector that queries are made of; `None`: of the layer's input.
    pub query_rank: Option<u64>,
    /// Width of the vector that keys and values are made of.
    pub key_value_rank: u64,
    /// Size of the rotated part of a key.
    pub rotated: u64,
    /// Size of a head's value.
    pub value: u64,
}

/// A tensor of a model in both kinds of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedTensor {
    /// Name in the GGUF file.
    pub gguf: String,
    /// Shape in the GGUF file, outermost dimension first.
    pub stored: Vec<u64>,
    /// Names of the parameters: one, or one for each expert. Another tensor may have other rows of the same.
    pub hf: Vec<String>,
    /// Shape of each.
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
            self.place(rule, 0, "", "", &mut placed);
        }
        for i in 0..self.layers {
            let (blk, layer) = (format!("blk.{i}."), format!("{}.{i}.", family.layers));
            for rule in family.layer.iter().flat_map(|group| group.iter()) {
                self.place(rule, i, &blk, &layer, &mut placed);
            }
        }
        for rule in family.after {
            self.place(rule, 0, "", "", &mut placed);
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

    /// Adds a tensor of layer `i`, and its bias.
    fn place(&self, rule: &TensorRule, i: u64, blk: &str, layer: &str, placed: &mut Vec<PlacedTensor>) {
        let has = |name: &&'static str| self.present.contains(*name);
        let sparse = self.experts.is_some_and(|experts| i >= experts.first);
        match rule.presence {
            Presence::Sparse if !sparse => return,
            Presence::Dense if sparse => return,
            Presence::With(name) if !has(&name) => return,
            Presence::Without(name) if has(&name) => return,
            _ => {}
        }
        let shape: Vec<u64> = rule.shape.iter().map(|dim| self.size(*dim)).collect();
        let experts = self.experts.map_or(0, |experts| experts.count);
        let names = |ending: &str| -> Vec<String> {
            let name = format!("{layer}{}{ending}", rule.hf);
            match rule.layout {
                Layout::Stacked | Layout::StackedRows(_) => {
                    (0..experts).map(|i| name.replace('#', &i.to_string())).collect()
                }
                _ => vec![name],
            }
        };
        // What the file has of a tensor whose shape is `shape` in a directory.
        let stored = |shape: &[u64]| match rule.layout {
            Layout::Stacked => [&[experts], shape].concat(),
            Layout::StackedRows(_) => [&[experts, shape[0] / 2], &shape[1..]].concat(),
            Layout::HeadKeys => vec![self.heads, shape[1], self.plain_keys()],
            Layout::HeadValues => vec![self.heads, shape[0] / self.heads - self.plain_keys(), shape[1]],
            Layout::Flat => vec![shape.iter().product()],
            Layout::Transposed => shape.iter().rev().copied().collect(),
            _ => shape.to_vec(),
        };
        let outputs = if rule.layout == Layout::Transposed { shape[shape.len() - 1] } else { shape[0] };
        placed.push(PlacedTensor {
            gguf: format!("{blk}{}.weight", rule.gguf),
            stored: stored(&shape),
            hf: names(if rule.layout == Layout::Bare { "" } else { ".weight" }),
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
                stored: stored(&[outputs]),
                hf: names(".bias"),
                shape: vec![outputs],
                layout,
            });
        }
    }

    /// Returns the size of the part of a head's key that is not rotated.
    pub fn plain_keys(&self) -> u64 {
        self.head_dim - self.latent.map_or(0, |latent| latent.rotated)
    }

    fn size(&self, dim: Dim) -> u64 {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let none = ExpertShape { count: 0, chosen: 0, width: 0, shared: None, first: 0, scale: 1.0 };
        let experts = self.experts.unwrap_or(none);
        let none = LatentShape { query_rank: None, key_value_rank: 0, rotated: 0, value: 0 };
        let latent = self.latent.unwrap_or(none);
        match dim {
            Dim::QueryRank => latent.query_rank.unwrap_or(0),
            Dim::KeyValueRank => latent.key_value_rank,
            Dim::KeyValueRankAndRotated => latent.key_value_rank + latent.rotated,
            Dim::PlainKeysAndValues => self.heads * (self.plain_keys() + latent.value),
            Dim::Values => self.heads * latent.value,
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
            Dim::TwiceExpertInner => 2 * experts.width,
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
                Presence::Always | Presence::Sparse | Presence::Dense => None,
            })
            .collect()
    }
}
