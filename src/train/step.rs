//! Executes one optimiser step: the same code for a run and for a replay that verifies one.

use super::checkpoint::TrainingState;
use super::optim::Optimiser;
use super::schedule::LearningRate;
use crate::error::Result;
use crate::methods::contract::{Means, Method, MicroBatch};
use crate::models::non_finite::FirstNonFinite;
use crate::models::{EmbeddingNoise, LayerReplay, Metrics, Model};
use crate::recipe::{Plan, ReplayChoice};
use crate::rng;

/// Everything that a step reads and changes.
pub struct Stepper<'a> {
    pub plan: &'a Plan,
    pub model: &'a Model,
    pub lr: LearningRate,
    pub optim: Optimiser,
    pub state: TrainingState,
}

/// Calls `f` with the adapter that the batch asks for switched on; without a request, with the model as it is.
fn with_batch_adapter<R>(model: &Model, batch: &dyn MicroBatch, f: impl FnOnce(&Model) -> R) -> R {
    match batch.adapter() {
        Some(name) => model.with_adapter(Some(name), f),
        None => f(model),
    }
}

/// Numbers of one optimiser step.
pub struct StepOutcome {
    pub epoch: f64,
    /// Mean over the items of the step.
    pub loss: f64,
    pub lr: f64,
    /// Norm of all gradients before clipping.
    pub norm: f64,
    pub tokens: u64,
    /// Number of items that the loss is the mean of: supervised tokens, pairs, ….
    pub items: f64,
    /// The method's other means.
    pub means: Vec<(String, f64)>,
    /// True if loss and gradient norm are finite. If not, the parameters were not updated.
    pub finite: bool,
    /// For a step that is not finite: the first tensor with NaN or infinity, if repeating the step finds one.
    pub non_finite_origin: Option<FirstNonFinite>,
}

impl StepOutcome {
    /// Returns the means that a method's alarms read: its metrics and the loss.
    pub fn alarm_means(&self) -> Means {
        self.means.iter().cloned().chain([("loss".to_string(), self.loss)]).collect()
    }
}

impl Stepper<'_> {
    /// Executes the next step of the method: forward and backward over its micro-batches, clipping, update. If loss or
    /// norm are not finite, the update is left out and the step is repeated to find the first tensor that is not
    /// finite.
    pub fn advance(&mut self, method: &mut dyn Method) -> Result<StepOutcome> {
        let recipe = &self.plan.recipe;
        let replay = match recipe.run.replay {
            ReplayChoice::None => LayerReplay::None,
            ReplayChoice::Layers(n) => LayerReplay::First(n),
            ReplayChoice::All => LayerReplay::All,
        };
        let step = method.next_step(self.model)?;
        let items = step.items;
        let mut metrics = Metrics::default();
        let mut tokens = 0;
        for (i, b) in step.micro_batches.enumerate() {
            let b = b?;
            tokens += b.tokens().len() as u64;
            self.model.set_embedding_noise(recipe.optim.neftune.filter(|alpha| *alpha > 0.0).map(|alpha| {
                let at = (self.state.step << 20) + i as u64;
                EmbeddingNoise { alpha, seed: rng::derived_seed(recipe.run.seed, "neftune", at) }
            }));
            metrics
                .merge(with_batch_adapter(self.model, &*b, |m| m.learn(b.tokens(), items, replay, |out| b.loss(out)))?);
        }
        let norm = self.optim.clip(recipe.optim.max_norm)?.double_value(&[]);
        let lr = self.lr.at(self.state.step);
        let mut means = metrics.means();
        let loss = means.remove("loss").unwrap_or(f64::NAN);
        let means = means.into_iter().map(|(k, v)| (k.to_string(), v)).chain(step.means).collect();
        let finite = loss.is_finite() && norm.is_finite();
        let mut origin = None;
        if finite {
            self.optim.step(lr)?;
            self.state.skipped_in_a_row = 0;
        } else {
            for b in method.repeat_step(self.model)?.micro_batches {
                let b = b?;
                origin =
                    with_batch_adapter(self.model, &*b, |m| m.find_non_finite(b.tokens(), items, |out| b.loss(out)))?;
                if origin.is_some() {
                    break;
                }
            }
            self.state.skipped += 1;
            self.state.skipped_in_a_row += 1;
        }
        self.optim.zero_gradients();
        self.state.step += 1;
        self.state.tokens += tokens;
        self.state.cursor = method.cursor();
        Ok(StepOutcome { epoch: step.epoch, loss, lr, norm, tokens, items, means, finite, non_finite_origin: origin })
    }
}
