//! Attaches trained rows to the embedding and to an output head, and computes with them.

use crate::adapters::plan::AdaptedLayer;
use crate::error::{Error, Result};
use crate::nn::weight::{cast, product};
use crate::nn::{Adapter, Dense, LayerKind, Weight};
use std::cell::{Cell, RefCell};
use tch::{Kind, Tensor};

/// Attaches the trained rows to the embedding, and to an output head that shares its weight or has rows of its own.
pub(in crate::adapters) struct AttachTokenRows {
    /// Rows of the embedding.
    embedding: Vec<i64>,
    /// Rows of an output head with a weight of its own. For a head that shares the embedding's they are the same rows.
    head: Vec<i64>,
    /// Name of the rows within the module, in files.
    name: &'static str,
    /// The setting, for errors.
    key: &'static str,
    attached: RefCell<Option<TokenRows>>,
    head_attached: Cell<bool>,
}

impl AttachTokenRows {
    pub fn new(embedding: Vec<i64>, head: Vec<i64>, name: &'static str, key: &'static str) -> Self {
        Self { embedding, head, name, key, attached: RefCell::default(), head_attached: Cell::default() }
    }

    /// Returns true if no rows are trained.
    fn is_empty(&self) -> bool {
        self.embedding.is_empty() && self.head.is_empty()
    }

    /// Returns the adapter of the embedding or of an output head; `None` for other layers, and if no rows of it are
    /// trained.
    pub fn attach(&self, layer: &mut AdaptedLayer) -> Result<Option<Box<dyn Adapter>>> {
        if layer.site.tied && !self.head.is_empty() && self.head != self.embedding {
            return Err(layer.refusal(
                "embedding and output head share one weight, so rows of one cannot be trained without the other's",
                "name the same tokens for both, or only those of the embedding",
            ));
        }
        match layer.site.layer {
            LayerKind::Embedding if !self.embedding.is_empty() => {
                let rows = self.rows(layer, &self.embedding)?;
                *self.attached.borrow_mut() = Some(rows.shallow_clone());
                Ok(Some(Box::new(rows)))
            }
            LayerKind::Head if layer.site.tied => {
                self.head_attached.set(true);
                Ok(self.attached.borrow().as_ref().map(|rows| Box::new(rows.shallow_clone()) as _))
            }
            LayerKind::Head if !self.head.is_empty() => {
                self.head_attached.set(true);
                Ok(Some(Box::new(self.rows(layer, &self.head)?)))
            }
            _ => Ok(None),
        }
    }

    /// Registers the rows of the tokens `ids` of one table.
    fn rows(&self, layer: &mut AdaptedLayer, ids: &[i64]) -> Result<TokenRows> {
        let [vocabulary, _] = layer.matrix()?;
        if let Some(id) = ids.iter().find(|id| !(0..vocabulary).contains(*id)) {
            return Err(layer.refusal(
                &format!("the trained row of token {id} does not exist: the vocabulary has {vocabulary} tokens"),
                "ids count from 0; model.new_tokens adds tokens to tokenizer and model",
            ));
        }
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        if let Some([id, _]) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(layer.refusal(&format!("the row of token {id} is trained twice"), "name each token once"));
        }
        let ids = Tensor::from_slice(ids).to_device(layer.site.weight.device());
        let rows = layer.trained(self.name, layer.site.weight.rows(&ids).to_kind(Kind::Float));
        let places = Tensor::arange(ids.size()[0], (Kind::Int64, ids.device()));
        let place = Tensor::full([vocabulary], -1, (Kind::Int64, ids.device())).index_copy(0, &ids, &places);
        Ok(TokenRows { ids, rows, place })
    }

    /// Fails for an embedding or head that is adapted otherwise.
    pub fn refuse_adapted(&self, layer: &AdaptedLayer) -> Result<()> {
        let rows = match layer.site.layer {
            _ if layer.site.tied => !self.is_empty(),
            LayerKind::Embedding => !self.embedding.is_empty(),
            LayerKind::Head => !self.head.is_empty(),
            _ => false,
        };
        if !rows {
            return Ok(());
        }
        Err(layer.refusal(
            "rows of it are trained in full, and the same weight cannot have a low-rank update beside it",
            "leave it out of targets, or remove token_rows",
        ))
    }

    /// Called after all layers have been offered. Fails if the rows are part of a module that is trained in full.
    pub fn check(&self) -> Result<()> {
        let missed = match (self.embedding.is_empty() || self.attached.borrow().is_some(), self.head_attached.get()) {
            (false, _) => "embedding",
            (true, false) if !self.head.is_empty() => "output head",
            _ => return Ok(()),
        };
        Err(Error::user(format!("{}: the {missed} is trained in full, its rows included", self.key))
            .hint("leave it out of modules_to_save, or remove these tokens"))
    }
}

/// Trained rows of an embedding, or of the output head that shares its weight.
struct TokenRows {
    /// (k) the tokens.
    ids: Tensor,
    /// (k, D)
    rows: Tensor,
    /// (V) where each token's row is in `rows`; -1: its row is not trained.
    place: Tensor,
}

impl TokenRows {
    fn shallow_clone(&self) -> Self {
        let Self { ids, rows, place } = self;
        Self { ids: ids.shallow_clone(), rows: rows.shallow_clone(), place: place.shallow_clone() }
    }
}

impl Adapter for TokenRows {
    /// Computes the outputs of a head, in which those of the trained tokens are replaced.
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        let bias = base.bias.as_ref().map(|b| cast(&b.index_select(0, &self.ids), x.kind()));
        let trained = product(x, &cast(&self.rows, x.kind()), bias.as_ref()); // (…, k)
        base.forward(x).index_copy(-1, &self.ids, &trained)
    }

    fn embed(&self, ids: &Tensor, weight: &Weight) -> Tensor {
        let place = self.place.index_select(0, ids); // (T)
        let trained = self.rows.index_select(0, &place.clamp_min(0));
        trained.where_self(&place.ge(0).unsqueeze(1), &weight.rows(ids).to_kind(Kind::Float))
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        weight.index_copy(0, &self.ids, &cast(&self.rows, weight.kind()))
    }
}
