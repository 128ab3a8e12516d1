//! What a kind of adapter does in training besides computing its layers: a term of the loss, and work after each update.

use crate::error::Result;
use std::collections::BTreeMap;
use tch::Tensor;

/// The part of a kind in a run. The training loop asks it in every step; its state is saved with the checkpoints.
pub trait TrainingPart {
    /// Returns a term that is added to the mean loss of a step, as a differentiable scalar, and its name among the
    /// metrics. It is computed once per step, whatever the number of micro-batches.
    fn penalty(&self) -> Option<(&'static str, Tensor)>;

    /// Called after the update of `step`, counted from 1, while the parameters still have the gradients that the update
    /// used. Not called for a step that was skipped because its loss or gradient was not finite.
    fn after_update(&mut self, step: u64);

    /// Returns what the next call depends on, by name.
    fn state(&self) -> BTreeMap<String, Tensor>;

    /// Restores what `state` returned. Fails for missing, unexpected or wrongly shaped tensors.
    fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()>;
}
