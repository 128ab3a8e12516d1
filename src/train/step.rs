//! One optimiser step: the same for a run, and for a replay that checks one.

use super::checkpoint::State;
use super::optim::Optimiser;
use super::schedule::LearningRate;
use crate::error::Result;
use crate::methods::{Batch, Means, Method};
use crate::models::origin::Origin;
use crate::models::{EmbeddingNoise, Metrics, Model, Replay};
use crate::recipe::{Plan, ReplayChoice};
use crate::rng;

/// What a step moves.
pub struct Stepper<'a> {
    pub plan: &'a Plan,
    pub model: &'a Model,
    pub lr: LearningRate,
    pub optim: Optimiser,
    pub state: State,
}

/// Runs `f` with the adapter that the batch asks for.
fn under<R>(model: &Model, batch: &dyn Batch, f: impl FnOnce(&Model) -> R) -> R {
    match batch.adapter() {
        Some(name) => model.with(Some(name), f),
        None => f(model),
    }
}

/// What a step found.
pub struct Outcome {
    pub epoch: f64,
    /// Mean over the items of the step.
    pub loss: f64,
    pub lr: f64,
    /// Before clipping.
    pub norm: f64,
    pub tokens: u64,
    /// How many items the loss is a mean of: supervised tokens, pairs, ….
    pub items: f64,
    /// The method's other means.
    pub means: Vec<(String, f64)>,
    /// Loss and norm are finite; where not, the parameters were left as they were.
    pub finite: bool,
    /// Where they are not: the first tensor that is not finite, if the step run again meets one.
    pub origin: Option<Origin>,
}

impl Outcome {
    /// What a method's alarms look at.
    pub fn told(&self) -> Means {
        self.means.iter().cloned().chain([("loss".to_string(), self.loss)]).collect()
    }
}

impl Stepper<'_> {
    /// The next step of the method.
    pub fn advance(&mut self, method: &mut dyn Method) -> Result<Outcome> {
        let recipe = &self.plan.recipe;
        let replay = match recipe.run.replay {
            ReplayChoice::None => Replay::None,
            ReplayChoice::Layers(n) => Replay::First(n),
            ReplayChoice::All => Replay::All,
        };
        let step = method.next_step(self.model)?;
        let items: f64 = step.micro.iter().map(|b| b.items()).sum();
        let mut metrics = Metrics::default();
        let mut tokens = 0;
        for (i, b) in step.micro.iter().enumerate() {
            tokens += b.tokens().len() as u64;
            self.model.set_noise(recipe.optim.neftune.filter(|alpha| *alpha > 0.0).map(|alpha| {
                let at = (self.state.step << 20) + i as u64;
                EmbeddingNoise { alpha, seed: rng::number(recipe.run.seed, "neftune", at) }
            }));
            metrics.merge(under(self.model, &**b, |m| m.learn(b.tokens(), items, replay, |out| b.loss(out)))?);
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
            for b in &step.micro {
                origin = under(self.model, &**b, |m| m.origin(b.tokens(), items, |out| b.loss(out)))?;
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
        Ok(Outcome { epoch: step.epoch, loss, lr, norm, tokens, items, means, finite, origin })
    }
}
