//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) over float32 parameters, and gradient clipping.
//!
//! Parameters are the model's float32 leaves, so bf16 runs update exact masters. The state is ours, so it can be saved.

use crate::error::{Error, Result};
use crate::native::{self, AdamW};
use crate::nn::ParamStore;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The settings that do not change from step to step.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub betas: (f64, f64),
    pub eps: f64,
    pub weight_decay: f64,
    /// Decay norms and biases too.
    pub decay_norms: bool,
}

/// The optimiser with its state.
pub struct Optimiser {
    settings: Settings,
    groups: Vec<Group>,
}

/// Parameters that share a weight decay.
struct Group {
    decay: f64,
    names: Vec<String>,
    params: Vec<Tensor>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    steps: Vec<Tensor>,
}

impl Optimiser {
    /// One state per trainable parameter.
    pub fn new(params: &ParamStore, settings: Settings) -> Result<Self> {
        let mut groups: Vec<Group> = [settings.weight_decay, 0.0].into_iter().map(Group::new).collect();
        for p in params.trainable() {
            let decayed = settings.decay_norms || p.is_matrix();
            groups[usize::from(!decayed)].add(&p.name, &p.tensor);
        }
        groups.retain(|g| !g.params.is_empty());
        if groups.is_empty() {
            return Err(Error::user("nothing is trainable")
                .hint("give an adapter with targets, or leave `adapter` out to train every weight"));
        }
        Ok(Self { settings, groups })
    }

    /// All gradients; a parameter that the loss did not reach has a zero one.
    fn gradients(&self) -> Vec<Tensor> {
        self.groups.iter().flat_map(|g| &g.params).map(gradient).collect()
    }

    /// Scales the gradients down to `max_norm` together (0: leaves them) and returns their norm before that.
    pub fn clip(&self, max_norm: f64) -> Result<Tensor> {
        let gradients = self.gradients();
        let norm = native::global_norm(&gradients)?;
        if max_norm > 0.0 {
            let scale = (max_norm / (&norm + 1e-6)).clamp_max(1.0);
            native::scale_all(&gradients, &scale)?;
        }
        Ok(norm)
    }

    /// One step at learning rate `lr`.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        let Settings { betas, eps, .. } = self.settings;
        let _no_grad = tch::no_grad_guard();
        for g in &mut self.groups {
            for s in &mut g.steps {
                *s += 1.0;
            }
            let gradients: Vec<Tensor> = g.params.iter().map(gradient).collect();
            let with = AdamW { lr, betas, decay: g.decay, eps };
            native::fused_adamw(&g.params, &gradients, &g.first, &g.second, &g.steps, with)?;
        }
        Ok(())
    }

    /// Forgets the gradients; call after the step.
    pub fn zero_gradients(&self) {
        native::drop_gradients(self.groups.iter().flat_map(|g| &g.params));
    }

    /// The state by name, for a checkpoint.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = BTreeMap::new();
        for g in &self.groups {
            for (i, name) in g.names.iter().enumerate() {
                for (what, t) in [("first", &g.first[i]), ("second", &g.second[i]), ("step", &g.steps[i])] {
                    state.insert(format!("{name}.{what}"), t.shallow_clone());
                }
            }
        }
        state
    }

    /// Puts a saved state back.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let mut used = 0;
        for g in &mut self.groups {
            for (i, name) in g.names.iter().enumerate() {
                for (what, to) in [("first", &mut g.first[i]), ("second", &mut g.second[i]), ("step", &mut g.steps[i])]
                {
                    let key = format!("{name}.{what}");
                    let from = state.get(&key).filter(|t| t.size() == to.size()).ok_or_else(|| {
                        Error::user(format!("checkpoint: optimiser state `{key}` is missing or of another shape"))
                            .hint("the recipe changed what is trained; start a new run")
                    })?;
                    to.copy_(from);
                    used += 1;
                }
            }
        }
        if used != state.len() {
            return Err(Error::user("checkpoint: it holds optimiser state for parameters that are not trained now")
                .hint("the recipe changed what is trained; start a new run"));
        }
        Ok(())
    }
}

impl Group {
    fn new(decay: f64) -> Self {
        Self { decay, names: vec![], params: vec![], first: vec![], second: vec![], steps: vec![] }
    }

    fn add(&mut self, name: &str, param: &Tensor) {
        self.names.push(name.to_string());
        self.params.push(param.shallow_clone());
        self.first.push(param.detach().zeros_like());
        self.second.push(param.detach().zeros_like());
        self.steps.push(Tensor::zeros([] as [i64; 0], (Kind::Float, param.device())));
    }
}

fn gradient(param: &Tensor) -> Tensor {
    let g = param.grad();
    if g.defined() { g } else { param.detach().zeros_like() }
}
