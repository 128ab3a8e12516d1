//! The factors of an adapter's changes in a merge.

use super::tensor_change::TensorChange;
use crate::adapters::update::{LowRankUpdate, WeightUpdate};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The factors of one adapter's changes: the same for all tensors, or some tensors have their own.
#[derive(Debug, Clone, PartialEq)]
pub struct PartWeights {
    common: f64,
    /// One factor, or one for each row of A of a low-rank change.
    own: BTreeMap<String, Vec<f64>>,
}

impl From<f64> for PartWeights {
    fn from(common: f64) -> Self {
        Self { common, own: BTreeMap::new() }
    }
}

impl PartWeights {
    /// Returns factors by the name of the base's tensor: one, or one for each component `bᵣ aᵣ` of a low-rank change, which has
    /// as many as its rank. All other tensors have 0.
    pub fn by_tensor(own: BTreeMap<String, Vec<f64>>) -> Self {
        Self { common: 0.0, own }
    }

    /// Returns the factor on all changes, if they have the same by definition.
    pub fn common(&self) -> Option<f64> {
        self.own.is_empty().then_some(self.common)
    }

    /// Returns the factor on the change of a tensor; of several components, their mean.
    pub fn mean(&self, tensor: &str) -> f64 {
        self.own.get(tensor).map_or(self.common, |list| list.iter().sum::<f64>() / list.len().max(1) as f64)
    }

    /// Returns the factor on the change of a tensor as [`PartWeights::weighted`] returns it.
    pub(super) fn factor(&self, tensor: &str) -> f64 {
        match self.components(tensor) {
            Some(_) => 1.0,
            None => self.mean(tensor),
        }
    }

    fn components(&self, tensor: &str) -> Option<&[f64]> {
        self.own.get(tensor).map(Vec::as_slice).filter(|list| list.len() > 1)
    }

    /// Returns the change of a tensor with its factor. Factors of components are multiplied into A.
    pub(super) fn weighted(&self, tensor: &str, update: Box<dyn WeightUpdate>) -> TensorChange {
        let weight = self.factor(tensor);
        let update = match (self.components(tensor), update.low_rank()) {
            (Some(components), Some(LowRankUpdate { a, b, scale, table })) => {
                let factors = Tensor::from_slice(components).to_kind(Kind::Float).unsqueeze(1); // (R, 1)
                let a = a.to_kind(Kind::Float) * factors;
                Box::new(LowRankUpdate { a, b: b.shallow_clone(), scale: *scale, table: *table })
            }
            _ => update,
        };
        TensorChange::Update { update, weight }
    }
}
