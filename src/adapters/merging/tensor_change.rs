//! The change that an adapter makes to one tensor of a base: by its kind, or by a tensor that it saves.

use crate::adapters::update::{LowRankUpdate, WeightUpdate};
use tch::{Kind, Tensor};

/// Returns true if two tensors have equal values, whatever their dtypes.
pub fn equal_values(a: &Tensor, b: &Tensor) -> bool {
    a.size() == b.size() && a.to_kind(Kind::Float).equal(&b.to_kind(Kind::Float))
}

/// The change that one adapter makes to one tensor, and the adapter's weight in the merge.
pub(super) enum TensorChange {
    /// Adds the update of the adapter's kind.
    Update { update: Box<dyn WeightUpdate>, weight: f64 },
    /// Replaces a module that was trained in full.
    Replacement { tensor: Tensor, weight: f64 },
    /// Replaces the base weight by the different one that an update was trained on.
    BaseReplacement { tensor: Tensor, weight: f64 },
}

impl TensorChange {
    /// Adds the weighted change to `sum`, which starts as `base` in float32. `transposed`: both are stored as (in, out).
    pub(super) fn add(&self, sum: &mut Tensor, base: &Tensor, transposed: bool) {
        let (TensorChange::Update { weight, .. }
        | TensorChange::Replacement { weight, .. }
        | TensorChange::BaseReplacement { weight, .. }) = self;
        self.add_times(sum, base, *weight, transposed);
    }

    /// Adds the change times `factor` to `sum`, which is float32.
    pub(super) fn add_times(&self, sum: &mut Tensor, base: &Tensor, factor: f64, transposed: bool) {
        match self {
            TensorChange::Update { update, .. } => update.add(sum, base, factor, transposed),
            TensorChange::Replacement { tensor, .. } | TensorChange::BaseReplacement { tensor, .. } => {
                *sum += (tensor.to_kind(Kind::Float) - base.to_kind(Kind::Float)) * factor;
            }
        }
    }

    /// Returns the factors of an update that is a product.
    pub(super) fn low_rank(&self) -> Option<&LowRankUpdate> {
        match self {
            TensorChange::Update { update, .. } => update.low_rank(),
            _ => None,
        }
    }

    /// Returns true if the change is an update of a table of tokens or positions.
    pub(super) fn is_table(&self) -> bool {
        matches!(self, TensorChange::Update { update, .. } if update.is_table())
    }

    /// Returns true if the adapter saves the whole tensor in place of an update.
    pub(super) fn is_saved_whole(&self) -> bool {
        match self {
            TensorChange::Update { update, .. } => update.replacement().is_some(),
            TensorChange::Replacement { .. } => true,
            TensorChange::BaseReplacement { .. } => false,
        }
    }

    pub(super) fn fits(&self, shape: &[i64], transposed: bool) -> bool {
        match self {
            TensorChange::Update { update, .. } => update.fits(shape, transposed),
            TensorChange::Replacement { tensor, .. } | TensorChange::BaseReplacement { tensor, .. } => {
                shape == tensor.size()
            }
        }
    }

    pub(super) fn hint(&self) -> &'static str {
        match self {
            TensorChange::Update { update, .. } => update.hint(),
            _ => "was the adapter trained on another base?",
        }
    }

    pub(super) fn shape(&self) -> String {
        match self {
            TensorChange::Update { update, .. } => update.shape(),
            TensorChange::Replacement { tensor, .. } | TensorChange::BaseReplacement { tensor, .. } => {
                format!("{:?}", tensor.size())
            }
        }
    }
}
