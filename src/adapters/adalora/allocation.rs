//! Gives the budget of ranks to the parts of the updates that matter most.
//!
//! A part is a row of A, an entry of E and a column of B. Its importance is that of its entry of E plus the means over its
//! row and its column; the importance of a number w with gradient g is the smoothed `|w g|` times its smoothed deviation
//! from that (equations 8 to 11). After an update, the entries of E of the least important parts are set to 0; parts may
//! come back until the last allocation.

use super::budget::Budget;
use super::{A, B, E};
use crate::adapters::training::TrainingPart;
use crate::error::{Error, Result};
use crate::nn::Param;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The parameters of one module.
struct Parts {
    module: String,
    /// A (R, in), E (R, 1), B (out, R)
    tensors: [Tensor; 3],
    /// Smoothed importance of each number, and its smoothed deviation; `None` before the first step.
    smoothed: [Option<[Tensor; 2]>; 3],
    /// (R, 1) true for parts that the last allocation removed; `None` before it.
    removed: Option<Tensor>,
}

/// AdaLoRA's part in a run.
pub(super) struct Allocation {
    modules: Vec<Parts>,
    budget: Budget,
    /// How much of the past the smoothed importance and deviation keep.
    betas: [f64; 2],
    /// The coefficient of the penalty.
    orthogonality: f64,
}

impl Allocation {
    /// Collects the parameters of an adapter. `budget` returns the schedule for the sum of all ranks and the number of
    /// modules.
    pub fn new(
        params: &mut dyn Iterator<Item = &Param>,
        betas: [f64; 2],
        orthogonality: f64,
        budget: impl FnOnce(i64, i64) -> Result<Budget>,
    ) -> Result<Self> {
        let mut found: BTreeMap<String, [Option<Tensor>; 3]> = BTreeMap::new();
        for p in params {
            let part = |(i, name): (usize, &str)| Some((i, p.name.strip_suffix(name)?.strip_suffix('.')?));
            let Some((i, module)) = [A, E, B].into_iter().enumerate().find_map(part) else { continue };
            found.entry(module.into()).or_default()[i] = Some(p.tensor.shallow_clone());
        }
        let modules = found.into_iter().map(|(module, tensors)| {
            let tensors = tensors.map(|t| t.expect("A, E and B are registered together"));
            Parts { module, tensors, smoothed: Default::default(), removed: None }
        });
        let modules: Vec<Parts> = modules.collect();
        let ranks = modules.iter().map(|m| m.tensors[1].size()[0]).sum();
        let budget = budget(ranks, modules.len() as i64)?;
        Ok(Self { modules, budget, betas, orthogonality })
    }

    fn smooth(&mut self) {
        let [of_importance, of_deviation] = self.betas;
        for m in &mut self.modules {
            for (t, smoothed) in m.tensors.iter().zip(&mut m.smoothed) {
                let gradient = t.grad();
                if !gradient.defined() {
                    continue;
                }
                let importance = (t.detach() * gradient).abs();
                let [mean, deviation] = smoothed.take().unwrap_or_else(|| [t.zeros_like(), t.zeros_like()]);
                let mean = mean.detach() * of_importance + &importance * (1.0 - of_importance);
                let far = (importance - &mean).abs();
                let deviation = deviation.detach() * of_deviation + far * (1.0 - of_deviation);
                *smoothed = Some([mean, deviation]);
            }
        }
    }

    /// Decides which parts are removed, so that `budget` of them remain. Does nothing while all of them may remain.
    fn allocate(&mut self, budget: i64) {
        let scores: Vec<Tensor> = self.modules.iter().map(Parts::score).collect();
        let all = Tensor::cat(&scores, 0);
        let fewer = all.size()[0] - budget;
        if fewer <= 0 {
            return;
        }
        let threshold = all.kthvalue(fewer, 0, false).0;
        for (m, score) in self.modules.iter_mut().zip(scores) {
            m.removed = Some(score.le_tensor(&threshold).unsqueeze(1));
        }
    }

    fn mask(&self) {
        for m in &self.modules {
            if let Some(removed) = &m.removed {
                let _ = m.tensors[1].shallow_clone().masked_fill_(removed, 0.0);
            }
        }
    }
}

impl Parts {
    /// Returns the importance of each part: (R).
    fn score(&self) -> Tensor {
        let along = |i: usize, dim: i64| {
            let Some([mean, deviation]) = &self.smoothed[i] else {
                return Tensor::zeros([self.tensors[1].size()[0]], (Kind::Float, self.tensors[1].device()));
            };
            (mean * deviation).mean_dim([dim].as_slice(), false, Kind::Float)
        };
        // E has one column, of which the mean is the entry itself.
        along(1, 1) + (along(0, 1) + along(2, 0))
    }

    /// Returns the names and tensors of the module's state.
    fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for (name, smoothed) in [A, E, B].iter().zip(&self.smoothed) {
            for (what, t) in SMOOTHED.iter().zip(smoothed.iter().flatten()) {
                state.push((format!("{}.{name}.{what}", self.module), t.shallow_clone()));
            }
        }
        state.extend(self.removed.as_ref().map(|t| (format!("{}.{REMOVED}", self.module), t.to_kind(Kind::Uint8))));
        state
    }
}

/// Names in a checkpoint.
const SMOOTHED: [&str; 2] = ["importance", "deviation"];
const REMOVED: &str = "removed";

impl TrainingPart for Allocation {
    fn penalty(&self) -> Option<(&'static str, Tensor)> {
        let mut norms = Vec::new();
        for Parts { tensors: [a, _, b], .. } in self.modules.iter().filter(|m| m.tensors[1].size()[0] > 0) {
            for product in [a.matmul(&a.tr()), b.tr().matmul(b)] {
                let one = Tensor::eye(product.size()[0], (product.kind(), product.device()));
                norms.push((product - one).norm());
            }
        }
        if self.orthogonality == 0.0 || norms.is_empty() {
            return None;
        }
        Some(("orthogonality", Tensor::stack(&norms, 0).mean(Kind::Float) * self.orthogonality))
    }

    fn after_update(&mut self, step: u64) {
        let _no_grad = tch::no_grad_guard();
        if self.budget.allocates_later(step) {
            self.smooth();
        }
        if let Some(budget) = self.budget.at(step) {
            self.allocate(budget);
            self.mask();
        } else if self.budget.is_final(step) {
            self.mask();
        }
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        self.modules.iter().flat_map(Parts::state).collect()
    }

    fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut used = 0;
        for m in &mut self.modules {
            let mut read = |name: &str, like: &Tensor| -> Result<Option<Tensor>> {
                let Some(t) = state.get(&format!("{}.{name}", m.module)) else { return Ok(None) };
                if t.size() != like.size() {
                    let err = Error::user(format!("checkpoint: `{}.{name}` has shape {:?}", m.module, t.size()));
                    return Err(err.hint("the recipe changed; start a new run"));
                }
                used += 1;
                Ok(Some(t.to_device(like.device())))
            };
            for ((name, t), smoothed) in [A, E, B].iter().zip(&m.tensors).zip(&mut m.smoothed) {
                let [mean, deviation] = SMOOTHED.map(|what| read(&format!("{name}.{what}"), t));
                *smoothed = mean?.zip(deviation?).map(|(mean, deviation)| [mean, deviation]);
            }
            m.removed = read(REMOVED, &m.tensors[1])?.map(|t| t.to_kind(Kind::Bool));
        }
        match used == state.len() {
            true => Ok(()),
            false => Err(Error::user("checkpoint: its tensors of AdaLoRA do not fit the adapter")
                .hint("the recipe changed what is adapted; start a new run")),
        }
    }
}
