//! Rows of the token embedding that are trained in full and saved with the adapter (`trainable_token_indices` of PEFT),
//! such as those of new or rarely used tokens.

use crate::adapters::plan::AdaptedLayer;
use crate::adapters::update::WeightUpdate;
use crate::error::{Error, Result};
use crate::nn::ops::embedding_rows;
use crate::nn::weight::{cast, product};
use crate::nn::{Adapter, Dense, LayerKind};
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// Name of the trained rows within the embedding's module.
pub(super) const TOKEN_ROWS: &str = "token_adapter.trainable_tokens_delta";

/// Attaches the trained rows to the embedding, and to an output head that shares its weight.
pub(super) struct AttachTokenRows {
    ids: Vec<i64>,
    attached: RefCell<Option<TokenRows>>,
}

impl AttachTokenRows {
    pub fn new(ids: &[i64]) -> Self {
        Self { ids: ids.to_vec(), attached: RefCell::default() }
    }

    /// Returns the adapter of the embedding or of a tied head; `None` for other layers, and if no rows are trained.
    pub fn attach(&self, layer: &mut AdaptedLayer) -> Result<Option<Box<dyn Adapter>>> {
        match layer.site.layer {
            _ if self.ids.is_empty() => Ok(None),
            LayerKind::Embedding => {
                let rows = self.rows(layer)?;
                *self.attached.borrow_mut() = Some(rows.shallow_clone());
                Ok(Some(Box::new(rows)))
            }
            LayerKind::Head if layer.site.tied => {
                Ok(self.attached.borrow().as_ref().map(|rows| Box::new(rows.shallow_clone()) as _))
            }
            _ => Ok(None),
        }
    }

    fn rows(&self, layer: &mut AdaptedLayer) -> Result<TokenRows> {
        let [vocabulary, _] = layer.matrix()?;
        if let Some(id) = self.ids.iter().find(|id| !(0..vocabulary).contains(*id)) {
            return Err(layer.refusal(
                &format!("the trained row of token {id} does not exist: the vocabulary has {vocabulary} tokens"),
                "ids count from 0; new tokens have to be added to tokenizer and model first",
            ));
        }
        let mut sorted = self.ids.clone();
        sorted.sort_unstable();
        if let Some([id, _]) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(layer.refusal(&format!("the row of token {id} is trained twice"), "name each id once"));
        }
        let ids = Tensor::from_slice(&self.ids).to_device(layer.site.weight.device());
        let weight = layer.site.weight.dense(layer.site.weight.kind());
        let rows = layer.trained(TOKEN_ROWS, weight.index_select(0, &ids).to_kind(Kind::Float));
        let places = Tensor::arange(self.ids.len() as i64, (Kind::Int64, ids.device()));
        let place = Tensor::full([vocabulary], -1, (Kind::Int64, ids.device())).index_copy(0, &ids, &places);
        Ok(TokenRows { ids, rows, place })
    }

    /// Fails for an embedding, or a head that shares its weight, that is adapted otherwise.
    pub fn refuse_adapted(&self, layer: &AdaptedLayer) -> Result<()> {
        let shared = layer.site.layer == LayerKind::Embedding || layer.site.tied;
        if self.ids.is_empty() || !shared {
            return Ok(());
        }
        Err(layer.refusal(
            "rows of the embedding are trained in full, and the same weight cannot have a low-rank update beside it",
            "leave it out of targets, or remove token_rows",
        ))
    }

    /// Called after all layers have been offered. Fails if the rows are part of a module that is trained in full.
    pub fn check(&self) -> Result<()> {
        if self.ids.is_empty() || self.attached.borrow().is_some() {
            return Ok(());
        }
        Err(Error::user("adapter.lora.token_rows: the embedding is trained in full, its rows included")
            .hint("leave it out of modules_to_save, or remove token_rows"))
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

    fn embed(&self, ids: &Tensor, weight: &Tensor) -> Tensor {
        let place = self.place.index_select(0, ids); // (T)
        let trained = self.rows.index_select(0, &place.clamp_min(0));
        trained.where_self(&place.ge(0).unsqueeze(1), &embedding_rows(weight, ids).to_kind(Kind::Float))
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        weight.index_copy(0, &self.ids, &cast(&self.rows, weight.kind()))
    }
}

/// Replaces rows of the embedding.
pub(super) struct TokenRowsUpdate {
    /// (k)
    pub ids: Vec<i64>,
    /// (k, D)
    pub rows: Tensor,
}

impl WeightUpdate for TokenRowsUpdate {
    fn add(&self, sum: &mut Tensor, base: &Tensor, factor: f64, _transposed: bool) {
        let ids = Tensor::from_slice(&self.ids);
        let change =
            self.rows.to_device(Device::Cpu).to_kind(Kind::Float) - base.index_select(0, &ids).to_kind(Kind::Float);
        let _ = sum.index_add_(0, &ids, &(change * factor));
    }

    fn fits(&self, shape: &[i64], _transposed: bool) -> bool {
        let &[count, width] = shape else { return false };
        self.rows.size() == [self.ids.len() as i64, width] && self.ids.iter().all(|id| (0..count).contains(id))
    }

    fn is_table(&self) -> bool {
        true
    }

    fn shape(&self) -> String {
        format!("{:?} for the tokens {:?}", self.rows.size(), self.ids)
    }
}
