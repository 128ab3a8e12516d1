//! Executes optimiser steps: the same code for a run and for a replay that verifies one.
//!
//! A step has three parts: `compute` runs forward and backward, `update` changes the weights, `settle` returns the
//! step's numbers. On the CPU they follow each other. On a GPU the numbers of a step are copied to the host while the
//! next step is computed and are read before its update, so that the host waits once per step, for work that the GPU
//! has finished long ago. Invariant: a step whose loss or gradient norm is not finite changes no weight. On a GPU a
//! number on it decides that; on the CPU loss and norm are read before the update.

use super::checkpoint::{Checkpoints, MethodState, TrainingState};
use super::optim::Optimiser;
use super::prepare::cuda_graphs;
use super::recurrence::truncation;
use super::schedule::LearningRate;
use crate::adapters::TrainingPart;
use crate::error::{Error, Result, catch_libtorch};
use crate::methods::contract::{Means, Method, TrainingStep};
use crate::methods::parts::TRAINED_ADAPTER;
use crate::models::gradient_reach::metric_name;
use crate::models::loss::MetricNames;
use crate::models::non_finite::FirstNonFinite;
use crate::models::{EmbeddingNoise, LayerReplay, Metrics, MicroBatch, Model, RecordedLearning, RouterTerms};
use crate::native::{self, Download, OwnStream};
use crate::nn::LayerKind;
use crate::recipe::plan::Plan;
use crate::rng;
use crate::runs::history::StepPoint;
use std::collections::BTreeSet;
use std::time::Instant;
use tch::{Kind, Tensor};

/// Everything that a step reads and changes.
pub struct Stepper<'a> {
    /// The settings of the run.
    pub plan: &'a Plan,
    pub model: &'a Model,
    /// The learning rate of each step.
    pub lr: LearningRate,
    /// The optimiser.
    pub optim: Optimiser,
    /// What the adapter's kind does in training besides computing its layers.
    adapter: Option<Box<dyn TrainingPart>>,
    /// Progress of the run.
    pub state: TrainingState,
    /// Forward and backward as recorded passes (`run.cuda_graphs`), where the method trains on such.
    recorded: Option<RecordedLearning>,
    /// The last step, if its numbers were not returned yet.
    running: Option<RunningStep>,
    /// True between `compute` and `update`.
    computed: bool,
    /// When the numbers of a step were read last.
    settled: Instant,
    /// The stream that everything is computed on, if passes are recorded.
    _stream: Option<OwnStream>,
}

/// A step whose gradients are computed.
pub struct ComputedStep {
    began: Instant,
    items: f64,
    epoch: f64,
    tokens: u64,
    means: Vec<(String, f64)>,
    metrics: Metrics,
}

/// A step whose numbers are not known yet.
struct RunningStep {
    step: u64,
    computed: ComputedStep,
    lr: f64,
    /// Gradient norm and metrics, in the order of `names`.
    numbers: StepNumbers,
    names: MetricNames,
    /// The factor on the loss is among the numbers, after the metrics.
    loss_scaled: bool,
    /// A sample of the weights after the step, on its way from the GPU with the numbers.
    weights: bool,
}

enum StepNumbers {
    /// Read already; the optimiser was not called if they are not finite.
    Here(Vec<f64>),
    /// On their way from the GPU; the optimiser was called.
    Coming(Download),
}

/// Numbers of one optimiser step.
pub struct StepOutcome {
    /// The step, counted from 1.
    pub step: u64,
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
    /// Seconds from the step's beginning, or from when the numbers of the step before were read if that was later,
    /// until the numbers of this step were read.
    pub seconds: f64,
    /// Number of items that the loss is the mean of: supervised tokens, pairs, ….
    pub items: f64,
    /// The method's other means.
    pub means: Vec<(String, f64)>,
    /// True if loss and gradient norm are finite. If not, the parameters were not updated.
    pub finite: bool,
    /// The factor on the loss, if the model computes in float16.
    pub loss_scale: Option<f64>,
    /// A sample of the weights after the step: (N) float64 on the CPU, if `update` was given one.
    pub weights: Option<Tensor>,
    /// For a step that is not finite: the first tensor with NaN or infinity, if repeating the step finds one. `None` if
    /// only the factor on the loss was too large.
    pub non_finite_origin: Option<FirstNonFinite>,
}

impl StepOutcome {
    /// Returns the means that a method's alarms read: its metrics and the loss.
    pub fn alarm_means(&self) -> Means {
        self.means.iter().cloned().chain([("loss".to_string(), self.loss)]).collect()
    }

    /// Returns true if the gradients were too large for float16 because of the factor on the loss. The factor was halved
    /// then, which is how it finds its value.
    pub fn overflowed(&self) -> bool {
        !self.finite && self.loss.is_finite() && self.loss_scale.is_some_and(|factor| factor > 1.0)
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
        let _stream = if recipe.run.cuda_graphs { OwnStream::begin(model.device())? } else { None };
        // A checkpoint has the optimiser's state of the layers that were trained in its last step.
        if let Some(layers) = drawn_layers(plan, model, state.step.saturating_sub(1)) {
            model.train_layers(&layers);
        }
        let mut optim =
            Optimiser::with_extra_parameters(model.params(), &method.parameters(), &plan.optim(), recipe.run.seed)?;
        if model.kind() == Kind::Half {
            optim.scale_losses();
            model.set_loss_scale(optim.loss_scale().map(Tensor::shallow_clone));
        }
        model.set_router_terms(router_terms(plan, model)?);
        model.set_truncation(truncation(plan, model)?);
        let id = model.adapter_id(TRAINED_ADAPTER);
        let mut adapter = match recipe.adapter.as_ref().zip(id) {
            Some((spec, id)) => spec.training(&mut model.params().adapter(id), total)?,
            None => None,
        };
        if adapter.is_some() && optim.has_averages() {
            return Err(Error::user("the result of optim would be averaged weights, which bring removed ranks back")
                .hint("remove optim.ema and kind: schedule_free, or train another kind of adapter"));
        }
        if adapter.is_some() && optim.loss_scale().is_some() {
            return Err(Error::user(
                "this kind of adapter has a loss of its own, which float16's loss scale does not reach",
            )
            .hint("set model.dtype: f32, or train another kind of adapter"));
        }
        if state.step > 0 {
            let extra = checkpoints.restore(state.step, model, &mut optim)?;
            let (of_adapter, of_method): (MethodState, MethodState) =
                extra.into_iter().partition(|(name, _)| name.starts_with(OF_ADAPTER));
            let short = |(name, t): (String, Tensor)| (name[OF_ADAPTER.len()..].to_string(), t);
            if let Some(adapter) = &mut adapter {
                adapter.restore(&of_adapter.into_iter().map(short).collect())?;
            }
            method.rewind(state.cursor)?;
            method.restore(of_method)?;
        }
        let lr = LearningRate::new(&recipe.optim, plan.lr(), total);
        let recorded = cuda_graphs::records_passes(recipe).then(|| {
            optim.keep_gradients();
            RecordedLearning::new(model, optim.loss_scale())
        });
        let (running, computed, settled) = (None, false, Instant::now());
        Ok(Self { plan, model, lr, optim, adapter, state, recorded, running, computed, settled, _stream })
    }

    /// Returns the tensors of a checkpoint that are neither weights nor the optimiser's: those of the method and of the
    /// adapter's kind.
    pub fn other_state(&self, method: &dyn Method) -> MethodState {
        let of_adapter = self.adapter.iter().flat_map(|adapter| adapter.state());
        let of_adapter = of_adapter.map(|(name, t)| (format!("{OF_ADAPTER}{name}"), t));
        method.state().into_iter().chain(of_adapter).collect()
    }

    /// Executes the next step of the method and returns its numbers.
    pub fn advance(&mut self, method: &mut dyn Method) -> Result<StepOutcome> {
        let computed = self.compute(method)?;
        self.update(computed, method, |_| None)?;
        self.settle(method)?.ok_or_else(|| Error::bug("a step without numbers"))
    }

    /// Runs forward and backward over the micro-batches of the method's next step. `update` must follow.
    pub fn compute(&mut self, method: &mut dyn Method) -> Result<ComputedStep> {
        let began = Instant::now();
        let recipe = &self.plan.recipe;
        let replay = LayerReplay::from(recipe.run.replay);
        self.draw_layers(method)?;
        let TrainingStep { items, micro_batches, epoch, mut means } = method.next_step(self.model)?;
        self.computed = true;
        let mut metrics = Metrics::default();
        let mut tokens = 0;
        for (i, b) in micro_batches.enumerate() {
            let b = b?;
            tokens += b.token_count() as u64;
            if i == 0 && recipe.run.reach_every.is_some_and(|every| self.state.step.is_multiple_of(every)) {
                means.extend(self.gradients_by_distance(&*b)?);
            }
            self.model.set_embedding_noise(recipe.optim.neftune.filter(|alpha| *alpha > 0.0).map(|alpha| {
                let at = (self.state.step << 20) + i as u64;
                EmbeddingNoise { alpha, seed: rng::derived_seed(recipe.run.seed, "neftune", at) }
            }));
            if i > 0 {
                self.optim.begin_micro_batch()?;
            }
            metrics.merge(match &mut self.recorded {
                Some(recorded) => recorded.learn(self.model, &*b, items)?,
                None => self.model.learn(&*b, items, replay)?,
            });
        }
        self.optim.add_earlier_gradients()?;
        if let Some((name, term)) = self.adapter.as_ref().and_then(|adapter| adapter.penalty()) {
            native::backward(&[&term], &[&term.ones_like()])?;
            metrics.add(name, &term, 1.0);
        }
        Ok(ComputedStep { began, items, epoch, tokens, means, metrics })
    }

    /// Measures on a row of the step how much a loss depends on earlier states, as metrics.
    fn gradients_by_distance(&self, row: &dyn MicroBatch) -> Result<Vec<(String, f64)>> {
        let found = match row.adapter() {
            Some(name) => self.model.with_adapter(Some(name), |model| model.gradient_by_distance(row.tokens())),
            None => self.model.gradient_by_distance(row.tokens()),
        }?;
        Ok(found.into_iter().map(|(distance, norm)| (metric_name(distance), norm)).collect())
    }

    /// With layers that are trained in turn, lets those of the next step be trained.
    fn draw_layers(&mut self, method: &dyn Method) -> Result<()> {
        let step = self.state.step;
        let Some(layers) = drawn_layers(self.plan, self.model, step) else { return Ok(()) };
        if step == 0 || drawn_layers(self.plan, self.model, step - 1).is_some_and(|before| before == layers) {
            return Ok(());
        }
        self.model.train_layers(&layers);
        self.optim.follow(self.model.params(), &method.parameters(), &self.plan.optim())
    }

    /// Clips the gradients and updates the weights, unless loss or gradient norm are not finite. The numbers of the
    /// step before must have been read by `settle`, because the optimiser counts only steps that were finite.
    /// `sample(step)` may return numbers of the weights after the step (float64, on their device), which a GPU then
    /// copies together with those of the step.
    pub fn update(
        &mut self,
        computed: ComputedStep,
        method: &dyn Method,
        sample: impl FnOnce(u64) -> Option<Tensor>,
    ) -> Result<()> {
        let norm = self.optim.clip(self.plan.recipe.optim.max_norm)?;
        let lr = self.lr.at(self.state.step);
        let (scalars, names) = computed.metrics.scalars();
        let loss_scaled = self.optim.loss_scale().is_some();
        let scalars: Vec<&Tensor> = std::iter::once(&norm).chain(scalars).chain(self.optim.loss_scale()).collect();
        let loss = names.position(LOSS).map(|i| i + 1);
        let mut weights = None;
        // The adapter's part must know whether the step counts.
        let numbers = if self.model.device().is_cuda() && self.adapter.is_none() {
            let numbers = native::stack_scalars(&scalars);
            self.optim.step_unless(lr, Some(&not_finite(&numbers, loss)))?;
            weights = sample(self.state.step + 1);
            let all = weights.as_ref().map(|weights| Tensor::cat(&[&numbers, weights], 0));
            StepNumbers::Coming(Download::begin(&all.unwrap_or(numbers))?)
        } else {
            let numbers = native::read_scalars(&scalars);
            if loss.is_some_and(|loss| numbers[0].is_finite() && numbers[loss].is_finite()) {
                self.optim.step(lr)?;
                if let Some(adapter) = &mut self.adapter {
                    adapter.after_update(self.state.step + 1);
                }
            }
            StepNumbers::Here(numbers)
        };
        self.optim.zero_gradients();
        self.computed = false;
        self.state.step += 1;
        self.state.tokens += computed.tokens;
        self.state.cursor = method.cursor();
        let weights = weights.is_some();
        self.running = Some(RunningStep { step: self.state.step, computed, lr, numbers, names, loss_scaled, weights });
        Ok(())
    }

    /// Returns true if the numbers of a step can be read while the next step runs.
    pub fn runs_ahead(&self) -> bool {
        matches!(&self.running, Some(RunningStep { numbers: StepNumbers::Coming(_), .. }))
    }

    /// Returns the numbers of the last step that was updated, waiting for them if necessary; `None` if they were
    /// returned already. If they are not finite, runs the step again to find the first tensor that is not.
    pub fn settle(&mut self, method: &mut dyn Method) -> Result<Option<StepOutcome>> {
        let Some(running) = self.running.take() else { return Ok(None) };
        let RunningStep { step, computed, lr, numbers, names, loss_scaled, weights } = running;
        let (numbers, ahead) = match numbers {
            StepNumbers::Here(numbers) => (numbers, false),
            StepNumbers::Coming(copy) => (native::numbers(&copy.wait()?), true),
        };
        let metrics = 1 + names.count();
        let loss_scale = loss_scaled.then(|| numbers[metrics]);
        let weights = weights.then(|| Tensor::from_slice(&numbers[metrics + usize::from(loss_scaled)..]));
        let ComputedStep { began, items, epoch, tokens, means: given, .. } = computed;
        let norm = numbers[0];
        let mut means = names.means(&numbers[1..]);
        let loss = means.remove(LOSS).unwrap_or(f64::NAN);
        let factor = loss_scale.map(|factor| (StepPoint::LOSS_SCALE.to_string(), factor));
        let means = means.into_iter().map(|(k, v)| (k.to_string(), v)).chain(given).chain(factor).collect();
        let finite = loss.is_finite() && norm.is_finite();
        if !finite && ahead {
            self.optim.uncount_step();
        }
        let mut done = StepOutcome {
            step,
            epoch,
            loss,
            lr,
            norm,
            tokens,
            items,
            means,
            finite,
            loss_scale,
            weights,
            non_finite_origin: None,
            seconds: 0.0,
        };
        if finite {
            self.state.skipped_in_a_row = 0;
        } else {
            self.state.skipped += 1;
            if !done.overflowed() {
                done.non_finite_origin = self.find_non_finite(method, items)?;
                self.state.skipped_in_a_row += 1;
            }
        }
        done.seconds = began.max(self.settled).elapsed().as_secs_f64();
        self.settled = Instant::now();
        Ok(Some(done))
    }

    /// Runs the last updated step again to find the first tensor that is not finite. Its weights are still those of the
    /// step, because it changed none and no other step was updated since.
    fn find_non_finite(&self, method: &mut dyn Method, items: f64) -> Result<Option<FirstNonFinite>> {
        let search = || {
            for b in method.repeat_step(self.model, usize::from(self.computed))?.micro_batches {
                let found = self.model.find_non_finite(&*b?, items)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok(None)
        };
        // The gradients of the next step, which are set aside, may leave no room for a second set: the step is then reported without
        // its cause.
        match self.optim.with_gradients_set_aside(|| catch_libtorch(search)) {
            Err(e) if e.is_out_of_memory() => Ok(None),
            found => found,
        }
    }
}

/// Returns the terms of the loss for the routers of a run's model: those of the recipe, else the load balancing of
/// config.json if the routers are trained. Fails if the recipe has such terms and the model has no experts.
pub fn router_terms(plan: &Plan, model: &Model) -> Result<RouterTerms> {
    let optim = &plan.recipe.optim;
    let Some(experts) = &model.config().experts else {
        let asked = [("router_balance", optim.router_balance), ("router_z", optim.router_z)];
        let Some((key, _)) = asked.iter().find(|(_, asked)| asked.is_some()) else { return Ok(RouterTerms::default()) };
        return Err(Error::user(format!("optim.{key}: a {} model has no experts", model.config().model_type))
            .hint("remove the key: it is for models with layers of experts, such as mixtral"));
    };
    let trained = model.params().trained_in_run().any(|p| p.layer == LayerKind::Router);
    let usual = if trained { experts.balance } else { 0.0 };
    Ok(RouterTerms { balance: optim.router_balance.unwrap_or(usual), z: optim.router_z.unwrap_or(0.0) })
}

/// Returns the layers that are trained in `step`, counted from 0, if layers are trained in turn.
fn drawn_layers(plan: &Plan, model: &Model, step: u64) -> Option<BTreeSet<usize>> {
    let recipe = &plan.recipe;
    let sampling = recipe.model.trained.layer_sampling().filter(|_| recipe.adapter.is_none())?;
    Some(sampling.drawn(model.depth(), recipe.run.seed, step))
}

/// What the names of the tensors of the adapter's kind begin with in a checkpoint.
const OF_ADAPTER: &str = "adapter/";

/// The name of the loss among the metrics.
const LOSS: &str = "loss";

/// Returns 1 if the gradient norm, the first of `numbers` (N), or the loss, at index `loss`, is NaN or infinite, or if
/// there is no loss; otherwise 0. A float32 scalar on the device of the numbers.
fn not_finite(numbers: &Tensor, loss: Option<usize>) -> Tensor {
    let Some(loss) = loss else { return Tensor::ones([], (Kind::Float, numbers.device())) };
    let sum = numbers.get(0) + numbers.get(loss as i64);
    (sum * 0.0).ne(0.0).to_kind(Kind::Float) // 0 times NaN or infinity is NaN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_finite_is_found_in_norm_and_loss_alone() {
        let at = |numbers: &[f64], loss| not_finite(&Tensor::from_slice(numbers), loss).double_value(&[]);
        assert_eq!(at(&[1e30, 7.0, -2.0], Some(2)), 0.0);
        assert_eq!(at(&[1e30, f64::NAN, -2.0], Some(2)), 0.0, "another metric does not count");
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!((at(&[bad, 7.0, 1.0], Some(2)), at(&[1.0, bad], Some(1))), (1.0, 1.0), "{bad}");
        }
        assert_eq!(at(&[f64::INFINITY, f64::NEG_INFINITY], Some(1)), 1.0);
        assert_eq!(at(&[1.0], None), 1.0);
    }
}
