//! Optimisers: one update rule per file; groups, clipping, averages, rounding and saved state are written once, here.
//!
//! Invariant: the next step depends only on the parameters, their gradients and what `state` returns and `restore`
//! accepts. Trained parameters are float32 leaves, or bfloat16 leaves that are updated in float32 and then rounded
//! stochastically.

mod adafactor;
mod adamw;
pub mod adamw8;
mod conditional;
mod groups;
mod lion;
mod loss_scale;
pub mod muon;
mod rounding;
mod rule;
mod schedule_free;
mod sgd;

use loss_scale::LossScale;
pub use rule::{ParameterInfo, ParameterUpdate, StateField, StepSize, UpdateRule};

use crate::error::{Error, Result};
use crate::native;
use crate::nn::{Param, ParamStore, randomness};
use crate::recipe::optim::{OptimKind, OptimSection};
use crate::rng;
use std::collections::{BTreeMap, BTreeSet};
use tch::{Device, Kind, Tensor};

/// Returns the update rule of the recipe's `optim` section.
pub fn rule(optim: &OptimSection, device: Device) -> Box<dyn UpdateRule> {
    let betas = (optim.betas[0], optim.betas[1]);
    let adamw = adamw::AdamW { betas, eps: optim.eps };
    match &optim.kind {
        OptimKind::Adamw => Box::new(adamw),
        OptimKind::Adamw8(s) => Box::new(adamw8::AdamW8::new(adamw, i64::from(s.block), device)),
        OptimKind::Adafactor(s) => Box::new(adafactor::Adafactor {
            decay_rate: s.decay_rate,
            clip: s.clip,
            momentum: s.momentum,
            scale_parameter: s.scale_parameter,
        }),
        OptimKind::Lion(s) => Box::new(lion::Lion { betas: (s.betas[0], s.betas[1]) }),
        OptimKind::Muon(s) => {
            Box::new(muon::Muon { momentum: s.momentum, nesterov: s.nesterov, scale: s.scale, rest: adamw })
        }
        OptimKind::ScheduleFree => Box::new(schedule_free::ScheduleFree::new(betas, optim.eps)),
        OptimKind::Sgd(s) => Box::new(sgd::Sgd { momentum: s.momentum, nesterov: s.nesterov }),
    }
}

/// Returns the bytes of optimiser state and averages for these parameters.
pub fn state_bytes<'a>(optim: &OptimSection, params: impl Iterator<Item = &'a Param>) -> u64 {
    let rule = rule(optim, Device::Cpu);
    let average = if optim.ema.is_some() { 4 } else { 0 };
    params.map(ParameterInfo::of).map(|f| rule.bytes(&f) + average * f.numel() as u64).sum()
}

/// An update rule with the trained parameters and their state.
pub struct Optimiser {
    rule: Box<dyn UpdateRule>,
    groups: Vec<ParameterGroup>,
    /// Steps done.
    steps: u64,
    ema: Option<f64>,
    seed: u64,
    /// Factor by which `clip` scales gradients. Applied to bfloat16 gradients at their update; float32 gradients were
    /// already scaled in place.
    scale: Option<Tensor>,
    /// The factor on the loss, if the model computes in float16.
    loss_scale: Option<LossScale>,
    /// Gradients are set to zero after a step and not released.
    keeps_gradients: bool,
}

/// Parameters that share a learning rate and a weight decay.
struct ParameterGroup {
    share: groups::GroupSettings,
    members: Vec<OptimisedParameter>,
}

/// A parameter with its state.
struct OptimisedParameter {
    name: String,
    form: ParameterInfo,
    param: Tensor,
    /// State tensors in the order of the rule's layout.
    state: Vec<Tensor>,
    /// Exponential moving average of the parameter (`optim.ema`), float32.
    average: Option<Tensor>,
    /// Number of steps at which the parameter had no gradient.
    missed: u64,
    /// The last step was one of them.
    missed_last: bool,
    /// The gradient of earlier micro-batches of the step, while that of the next one is computed.
    earlier: Option<Tensor>,
}

impl OptimisedParameter {
    /// Returns the gradient; `None` if no loss depended on the parameter. The step then leaves it unchanged, as torch
    /// does: no weight decay, no momentum.
    fn grad(&self) -> Option<Tensor> {
        let g = self.param.grad();
        g.defined().then_some(g)
    }

    fn exact(&self) -> bool {
        self.param.kind() == Kind::Float
    }
}

impl Optimiser {
    /// Creates the state of every trainable parameter. `seed` is the run's seed; stochastic rounding uses its own
    /// stream of it.
    pub fn new(params: &ParamStore, optim: &OptimSection, seed: u64) -> Result<Self> {
        Self::with_extra_parameters(params, &[], optim, seed)
    }

    /// Like `new`, with further parameters that a method trains in addition to the model's.
    pub fn with_extra_parameters(params: &ParamStore, more: &[Param], optim: &OptimSection, seed: u64) -> Result<Self> {
        let Some(device) = params.trainable().next().map(|p| p.tensor.device()) else {
            return Err(Error::user("nothing is trainable")
                .hint("give an adapter with targets, or leave `adapter` out to train every weight"));
        };
        let (rule, groups) = (rule(optim, device), Vec::new());
        let mut new = Self {
            rule,
            groups,
            steps: 0,
            ema: optim.ema,
            seed,
            scale: None,
            loss_scale: None,
            keeps_gradients: false,
        };
        new.follow(params, more, optim)?;
        Ok(new)
    }

    /// Begins the state of parameters that are trained and have none, and drops that of parameters which are no longer
    /// trained. A parameter that returns later starts anew.
    pub fn follow(&mut self, params: &ParamStore, more: &[Param], optim: &OptimSection) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let params: Vec<&Param> = params.trained_in_run().chain(more).collect();
        let shares = groups::group_settings(&params, optim)?;
        let before = self.groups.drain(..).flat_map(|g| g.members).map(|m| (m.name.clone(), m));
        let mut before: BTreeMap<String, OptimisedParameter> = before.collect();
        // Dropped before the state of others is allocated.
        let trained: BTreeSet<String> = params.iter().filter(|p| p.trainable()).map(|p| state_name(p)).collect();
        before.retain(|name, _| trained.contains(name));
        for (p, share) in params.into_iter().zip(shares).filter(|(p, _)| p.trainable()) {
            let member = before.remove(&state_name(p)).unwrap_or_else(|| self.begin(p));
            match self.groups.iter_mut().find(|g| g.share == share) {
                Some(group) => group.members.push(member),
                None => self.groups.push(ParameterGroup { share, members: vec![member] }),
            }
        }
        Ok(())
    }

    /// Returns a parameter with its first state. All steps so far count as steps without a gradient.
    fn begin(&self, p: &Param) -> OptimisedParameter {
        let (form, param) = (ParameterInfo::of(p), p.tensor.shallow_clone());
        OptimisedParameter {
            name: state_name(p),
            state: self.rule.initial_state(&form, &param),
            average: self.ema.map(|_| param.to_kind(Kind::Float).copy()),
            form,
            param,
            missed: self.steps,
            missed_last: self.steps > 0,
            earlier: None,
        }
    }

    /// Expects gradients of a loss that is multiplied by [`Optimiser::loss_scale`], which adapts from step to step. To be
    /// called before the first step and before `restore`.
    pub fn scale_losses(&mut self) {
        self.loss_scale = Some(LossScale::new(self.device()));
    }

    /// Returns the factor that the loss of the next step is to be multiplied by, a float32 scalar on the device that
    /// follows later changes; `None`: no factor.
    pub fn loss_scale(&self) -> Option<&Tensor> {
        self.loss_scale.as_ref().map(LossScale::factor)
    }

    fn device(&self) -> Device {
        self.members().next().map_or(Device::Cpu, |m| m.param.device())
    }

    fn members(&self) -> impl Iterator<Item = &OptimisedParameter> {
        self.groups.iter().flat_map(|g| &g.members)
    }

    /// Divides the gradients by the factor on the loss, if there is one, then scales all of them so that their common norm
    /// is at most `max_norm` (0: no clipping). Returns the norm before clipping.
    pub fn clip(&mut self, max_norm: f64) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let (exact, narrow): (Vec<&OptimisedParameter>, Vec<&OptimisedParameter>) =
            self.members().partition(|m| m.exact());
        let exact: Vec<Tensor> = exact.into_iter().filter_map(OptimisedParameter::grad).collect();
        let narrow = narrow.into_iter().filter_map(OptimisedParameter::grad);
        let mut norms: Vec<Tensor> = narrow.map(|g| g.norm_scalaropt_dtype(2, Kind::Float)).collect();
        if !exact.is_empty() {
            norms.push(native::global_norm(&exact)?);
        }
        let mut norm = match norms.len() {
            0 => return Ok(Tensor::zeros([], (Kind::Float, self.device()))),
            1 => norms.remove(0),
            _ => Tensor::stack(&norms, 0).norm(),
        };
        // The factor is a power of two, so dividing by it does not round.
        let unscale = self.loss_scale().map(Tensor::reciprocal);
        if let Some(unscale) = &unscale {
            norm *= unscale;
        }
        let clip = (max_norm > 0.0).then(|| (max_norm / (&norm + 1e-6)).clamp_max(1.0));
        let scale = match (unscale, clip) {
            (Some(unscale), Some(clip)) => Some(unscale * clip),
            (unscale, clip) => unscale.or(clip),
        };
        if let Some(scale) = &scale
            && !exact.is_empty()
        {
            native::scale_all(&exact, scale)?;
        }
        self.scale = scale;
        Ok(norm)
    }

    /// Updates all parameters that have gradients. `lr` is the learning rate outside of groups; groups scale it.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        self.step_unless(lr, None)
    }

    /// Does the same, but changes no tensor if `skip`, a float32 scalar on the device, is 1. Once that is known,
    /// [`Optimiser::uncount_step`] must be called.
    pub fn step_unless(&mut self, lr: f64, skip: Option<&Tensor>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.steps += 1;
        self.rule.begin(lr);
        for m in self.groups.iter_mut().flat_map(|g| &mut g.members) {
            m.missed_last = m.grad().is_none();
            m.missed += u64::from(m.missed_last);
        }
        for g in &self.groups {
            // Bias corrections depend on how often a parameter was updated, so parameters are updated together with
            // those of the same count. Almost always all have the same.
            let mut slots: BTreeMap<u64, Vec<ParameterUpdate>> = BTreeMap::new();
            for m in g.members.iter().filter(|m| m.exact()) {
                let Some(grad) = m.grad() else { continue };
                let slot = ParameterUpdate { form: &m.form, param: m.param.shallow_clone(), grad, state: &m.state };
                slots.entry(self.steps - m.missed).or_default().push(slot);
            }
            for (step, slots) in slots {
                self.rule.update(&slots, g.share.step_size(lr, step), skip)?;
            }
        }
        self.step_bf16(lr, skip)?;
        if let Some(decay) = self.ema {
            // Early steps use a smaller decay, so that the initial weights lose their influence faster.
            let t = self.steps as f64;
            let share = 1.0 - decay.min((1.0 + t) / (10.0 + t));
            let share_on_device = skip.map(|skip| (1.0 - skip) * share);
            for m in self.members() {
                let mut average = m.average.as_ref().expect("made with ema").shallow_clone();
                let param = m.param.to_kind(Kind::Float);
                let _ = match &share_on_device {
                    Some(share) => average.lerp_tensor_(&param, share),
                    None => average.lerp_(&param, share),
                };
            }
        }
        if let (Some(loss_scale), Some(skip)) = (&self.loss_scale, skip) {
            loss_scale.adapt(skip);
        }
        Ok(())
    }

    /// Takes the last step out of the count of steps: its `skip` was 1.
    pub fn uncount_step(&mut self) {
        self.steps -= 1;
        self.rule.uncount();
        for m in self.groups.iter_mut().flat_map(|g| &mut g.members) {
            m.missed -= u64::from(m.missed_last);
        }
    }

    /// Updates bfloat16 parameters: one at a time in float32, then rounded stochastically, which changes no number that
    /// was skipped.
    fn step_bf16(&self, lr: f64, skip: Option<&Tensor>) -> Result<()> {
        let Some(first) = self.members().find(|m| !m.exact()) else { return Ok(()) };
        let seed = rng::derived_seed(self.seed, "stochastic rounding", self.steps);
        randomness::with_seed(first.param.device(), seed, || {
            for g in &self.groups {
                for m in g.members.iter().filter(|m| !m.exact()) {
                    let Some(grad) = m.grad() else { continue };
                    let mut grad = grad.to_kind(Kind::Float);
                    if let Some(scale) = &self.scale {
                        grad *= scale;
                    }
                    let param = m.param.to_kind(Kind::Float);
                    let slot = ParameterUpdate { form: &m.form, param: param.shallow_clone(), grad, state: &m.state };
                    self.rule.update(&[slot], g.share.step_size(lr, self.steps - m.missed), skip)?;
                    m.param.shallow_clone().copy_(&rounding::round_stochastically(&param));
                }
            }
            Ok(())
        })
    }

    /// Called before the backward of a step's second and later micro-batches. On a GPU it sets the gradients of an
    /// adapter aside, so that those of all its parameters are added by one operation and not by one for each. For
    /// every other model, whose gradients are too large to be held twice, autograd adds them.
    pub fn begin_micro_batch(&mut self) -> Result<()> {
        if !self.keeps_gradients && self.device().is_cuda() && self.members().all(|m| m.form.adapter) {
            self.add_earlier_gradients()?;
            for m in self.groups.iter_mut().flat_map(|g| &mut g.members) {
                m.earlier = m.grad();
            }
            native::drop_gradients(self.members().map(|m| &m.param));
        }
        Ok(())
    }

    /// Adds the gradients that `begin_micro_batch` set aside. Called after the last micro-batch of a step.
    pub fn add_earlier_gradients(&mut self) -> Result<()> {
        let (mut sums, mut more) = (Vec::new(), Vec::new());
        for m in self.groups.iter_mut().flat_map(|g| &mut g.members) {
            let Some(earlier) = m.earlier.take() else { continue };
            match m.grad() {
                Some(grad) => {
                    sums.push(grad);
                    more.push(earlier);
                }
                None => native::backward(&[&m.param], &[&earlier])?, // a leaf takes its gradient
            }
        }
        if sums.is_empty() { Ok(()) } else { Ok(native::add_all(&sums, &more)?) }
    }

    /// Runs `f` while no parameter has a gradient. Gradients that `f` leaves are dropped; those from before are put back.
    pub fn with_gradients_set_aside<R>(&self, f: impl FnOnce() -> R) -> R {
        let all = || self.members().map(|m| &m.param);
        let held: Vec<(&Tensor, Tensor)> = self.members().filter_map(|m| Some((&m.param, m.grad()?))).collect();
        native::drop_gradients(all());
        let result = f();
        native::drop_gradients(all());
        for (param, grad) in held {
            native::backward(&[param], &[&grad]).expect("a leaf takes its gradient");
        }
        result
    }

    /// Keeps the tensors of gradients from step to step, so that recorded passes find them where they were.
    pub fn keep_gradients(&mut self) {
        self.keeps_gradients = true;
    }

    /// Releases the gradients, or sets them to zero if they are kept. Must be called after every step.
    pub fn zero_gradients(&mut self) {
        self.scale = None;
        if self.keeps_gradients {
            let gradients: Vec<Tensor> = self.members().filter_map(OptimisedParameter::grad).collect();
            return native::zero_all(&gradients).expect("gradients can be written");
        }
        native::drop_gradients(self.members().map(|m| &m.param));
    }

    /// Ends training: if the optimiser has averaged weights, they permanently replace the model's.
    pub fn finish(self) {
        let _no_grad = tch::no_grad_guard();
        for m in self.members() {
            if let Some(average) = self.average(m) {
                m.param.shallow_clone().copy_(&average);
            }
        }
    }

    /// Returns true if averaged weights, not the trained ones, are measured and become the result.
    pub fn has_averages(&self) -> bool {
        self.members().next().is_some_and(|m| self.average(m).is_some())
    }

    fn average(&self, m: &OptimisedParameter) -> Option<Tensor> {
        let average = m.average.as_ref().map(Tensor::shallow_clone);
        average.or_else(|| self.rule.averaged(&m.param.detach(), &m.state))
    }

    /// Puts the averaged weights into the model until the returned guard is dropped. `None` if there are no averages:
    /// then the trained weights are measured themselves.
    pub fn use_averages(&self) -> Option<AveragedWeights> {
        let _no_grad = tch::no_grad_guard();
        let mut learning = Vec::new();
        for m in self.members() {
            let average = self.average(m)?;
            learning.push((m.param.shallow_clone(), m.param.detach().copy()));
            m.param.shallow_clone().copy_(&average);
        }
        Some(AveragedWeights { learning })
    }

    /// Returns the state by name, for a checkpoint.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = BTreeMap::from([(STEPS.to_string(), Tensor::from_slice(&[self.steps as i64]))]);
        state
            .extend(self.rule.scalar_state().into_iter().map(|(n, x)| (format!("{OWN}{n}"), Tensor::from_slice(&[x]))));
        if let Some(loss_scale) = &self.loss_scale {
            state.extend(loss_scale.state().map(|(name, t)| (format!("{OWN}{name}"), t.shallow_clone())));
        }
        for m in self.members() {
            let named = self.rule.layout(&m.form).into_iter().map(|f| f.name).zip(&m.state);
            for (what, t) in named.chain(m.average.as_ref().map(|a| (AVERAGE, a))) {
                state.insert(format!("{}.{what}", m.name), t.shallow_clone());
            }
            if m.missed > 0 {
                state.insert(format!("{}.{MISSED}", m.name), Tensor::from_slice(&[m.missed as i64]));
            }
        }
        state
    }

    /// Restores a saved state. Fails if a tensor is missing, unknown or of another shape.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for m in self.groups.iter_mut().flat_map(|g| &mut g.members) {
            m.missed = state.get(&format!("{}.{MISSED}", m.name)).map_or(0, |t| t.int64_value(&[0]) as u64);
        }
        let own = self.state();
        let differs = |key: &&String| {
            let (then, now) = (state.get(*key), own.get(*key));
            then.zip(now).is_none_or(|(a, b)| a.size() != b.size() || a.kind() != b.kind())
        };
        if let Some(key) = own.keys().chain(state.keys()).find(differs) {
            return Err(Error::user(format!(
                "checkpoint: optimiser state `{key}` is missing, unexpected or of another shape"
            ))
            .hint("the recipe changed what is trained, or another version of ft wrote it; start a new run"));
        }
        for (key, to) in &own {
            to.shallow_clone().copy_(&state[key]);
        }
        self.steps = state[STEPS].int64_value(&[0]) as u64;
        for (name, _) in self.rule.scalar_state() {
            self.rule.set_scalar(name, state[&format!("{OWN}{name}")].double_value(&[0]));
        }
        Ok(())
    }
}

/// Returns a parameter's name in a checkpoint. Further adapters on one base use the same names as the first, so their
/// id precedes the name.
fn state_name(p: &Param) -> String {
    match p.adapter {
        Some(id) if id > 0 => format!("{id}/{}", p.name),
        _ => p.name.clone(),
    }
}

/// Names in a checkpoint: the number of steps, the prefix of a rule's own numbers, and the suffixes of a parameter's
/// tensors.
const STEPS: &str = "optimiser.steps";
const OWN: &str = "optimiser.";
const AVERAGE: &str = "average";
/// Written only if it is not 0.
const MISSED: &str = "missed";

/// Guard during which the model holds averaged weights. When dropped, it restores the trained weights bit for bit.
pub struct AveragedWeights {
    learning: Vec<(Tensor, Tensor)>,
}

impl Drop for AveragedWeights {
    fn drop(&mut self) {
        let _no_grad = tch::no_grad_guard();
        for (param, learning) in &self.learning {
            param.shallow_clone().copy_(learning);
        }
    }
}
