//! Executes one optimiser step: the same code for a run and for a replay that verifies one.

use super::checkpoint::{Checkpoints, TrainingState};
use super::optim::Optimiser;
use super::schedule::LearningRate;
use crate::error::Result;
use crate::methods::contract::{Means, Method};
use crate::models::non_finite::FirstNonFinite;
use crate::models::{EmbeddingNoise, LayerReplay, Metrics, Model};
use crate::recipe::plan::Plan;
use crate::recipe::sections::ReplayChoice;
use crate::rng;

/// Everything that a step reads and changes.
pub struct Stepper<'a> {
    /// The settings of the run.
    pub plan: &'a Plan,
    pub model: &'a Model,
    /// The learning rate of each step.
    pub lr: LearningRate,
    /// The optimiser.
    pub optim: Optimiser,
    /// Progress of the run.
    pub state: TrainingState,
}

/// Numbers of one optimiser step.
pub struct StepOutcome {
    /// Passes over the training rows so far.
    pub epoch: f64,
    /// Mean over the items of the step.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of all gradients before clipping.
    pub norm: f64,
    /// Tokens of the step.
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

impl<'a> Stepper<'a> {
    /// Creates the optimiser of a run of `total` steps that continues from `state`. If the state is not that before the
    /// first step, restores weights, optimiser, random generator and method from its checkpoint.
    pub fn begin(
        plan: &'a Plan,
        model: &'a Model,
        method: &mut dyn Method,
        total: u64,
        checkpoints: &Checkpoints,
        state: TrainingState,
    ) -> Result<Self> {
        let recipe = &plan.recipe;
        let mut optim =
            Optimiser::with_extra_parameters(model.params(), &method.parameters(), &recipe.optim, recipe.run.seed)?;
        if state.step > 0 {
            let extra = checkpoints.restore(state.step, model, &mut optim)?;
            method.rewind(state.cursor)?;
            method.restore(extra)?;
        }
        let lr = LearningRate::new(&recipe.optim, plan.lr(), total);
        Ok(Self { plan, model, lr, optim, state })
    }

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
            metrics.merge(self.model.learn(&*b, items, replay)?);
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
                origin = self.model.find_non_finite(&*b, items)?;
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
