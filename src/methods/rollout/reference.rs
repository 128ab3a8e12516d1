//! The model before training, which a policy is kept near to.

use super::packed::log_probs;
use super::{Learnt, Sample};
use crate::error::Result;
use crate::models::{Heads, Load, Model};
use crate::report;

/// Where the reference is.
pub enum Reference {
    /// An adapter is trained: the base without it.
    Base,
    /// Every weight is trained: a frozen copy of the base as it was.
    Copy(Box<Model>),
}

impl Reference {
    /// The reference of a model that has not been trained yet, or that a checkpoint will be put into.
    pub fn of(model: &Model) -> Result<Self> {
        if model.active().is_some() {
            return Ok(Self::Base);
        }
        report::info("every weight is trained, so the reference is a second copy of the base in memory");
        let load = Load {
            device: model.device(),
            kind: model.kind(),
            storage: model.storage(),
            train_base: false,
            adapters: Vec::new(),
            heads: Heads::Tokens,
        };
        Ok(Self::Copy(Box::new(Model::load(model.folder(), load)?)))
    }

    /// Runs `f` with the reference.
    pub fn with<R>(&self, model: &Model, f: impl FnOnce(&Model) -> R) -> R {
        match self {
            Self::Base => model.with(None, f),
            Self::Copy(copy) => f(copy),
        }
    }

    /// Log-probabilities of the answers' tokens under the reference, as `packed::log_probs` computes them.
    pub fn log_probs(
        &self,
        model: &Model,
        samples: &[Sample],
        temperature: f64,
        budget: usize,
    ) -> Result<Vec<Vec<f32>>> {
        let Learnt { log_probs, .. } = self.with(model, |m| log_probs(m, samples, temperature, budget, false))?;
        Ok(log_probs)
    }
}
