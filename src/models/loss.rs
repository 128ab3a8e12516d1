//! What a method's loss gets from the model ([`Output`]) and what it returns ([`Loss`], with [`Metrics`]).

use super::activations::Activations;
use crate::native;
use crate::nn::{Linear, head, head::TargetScores};
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// A loss as a SUM over items (tokens, pairs, …). The loop counts the items of the whole optimiser step and divides
/// once, so that every item has the same weight even if micro-batches differ in size.
pub struct Loss {
    /// Scalar, float32.
    pub sum: Tensor,
    /// What is logged with the step.
    pub metrics: Metrics,
}

/// Metrics by name, accumulated over micro-batches: means, minima and maxima. Values stay tensors on their device, so
/// that adding to them does not wait for the GPU.
#[derive(Default)]
pub struct Metrics {
    sums: BTreeMap<&'static str, (Tensor, f64)>,
    extremes: BTreeMap<&'static str, (Tensor, Extreme)>,
}

/// Minimum or maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extreme {
    /// The smallest value.
    Minimum,
    /// The largest value.
    Maximum,
}

impl Metrics {
    /// Adds `sum` over `weight` items to the mean called `name`.
    pub fn add(&mut self, name: &'static str, sum: &Tensor, weight: f64) {
        let sum = sum.detach().to_kind(Kind::Double);
        match self.sums.get_mut(name) {
            Some((s, w)) => {
                *s += sum;
                *w += weight;
            }
            None => {
                self.sums.insert(name, (sum, weight));
            }
        }
    }

    /// Updates the minimum or maximum called `name` with all numbers in `values`. Empty `values` change nothing.
    pub fn add_extreme(&mut self, name: &'static str, values: &Tensor, which: Extreme) {
        if values.numel() == 0 {
            return;
        }
        let values = values.detach().to_kind(Kind::Double).view([-1]);
        let values = match self.extremes.get(name) {
            Some((earlier, _)) => Tensor::cat(&[&values, &earlier.view([1])], 0),
            None => values,
        };
        let one = if which == Extreme::Minimum { values.min() } else { values.max() };
        self.extremes.insert(name, (one, which));
    }

    /// Adds another micro-batch's metrics.
    pub fn merge(&mut self, other: Metrics) {
        for (name, (sum, weight)) in other.sums {
            self.add(name, &sum, weight);
        }
        for (name, (value, which)) in other.extremes {
            self.add_extreme(name, &value, which);
        }
    }

    /// Returns a copy, of means over `items` items.
    pub fn copy_for(&self, items: f64) -> Self {
        let sums = self.sums.iter().map(|(name, (sum, _))| (*name, (sum.copy(), items))).collect();
        let extremes = self.extremes.iter().map(|(name, (value, which))| (*name, (value.copy(), *which))).collect();
        Self { sums, extremes }
    }

    /// Returns the scalars that the means are computed from (float64, on their device), and what each stands for. Means
    /// without any items are left out.
    pub fn scalars(&self) -> (Vec<&Tensor>, MetricNames) {
        let counted = || self.sums.iter().filter(|(_, (_, weight))| *weight != 0.0);
        let scalars = counted().map(|(_, (sum, _))| sum).chain(self.extremes.values().map(|(value, _)| value));
        let means = counted().map(|(name, (_, weight))| (*name, *weight));
        let names = means.chain(self.extremes.keys().map(|name| (*name, 1.0)));
        (scalars.collect(), MetricNames(names.collect()))
    }

    /// Returns means, minima and maxima by name; waits for the GPU, once. Means without any items are left out.
    pub fn means(&self) -> BTreeMap<&'static str, f64> {
        let (scalars, names) = self.scalars();
        names.means(&native::read_scalars(&scalars))
    }
}

/// The names of metrics, each with what its number must be divided by.
pub struct MetricNames(Vec<(&'static str, f64)>);

impl MetricNames {
    /// Returns the number of scalars.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the index of a metric among the scalars.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|(own, _)| *own == name)
    }

    /// Returns the metrics, given the values of the scalars in their order.
    pub fn means(&self, values: &[f64]) -> BTreeMap<&'static str, f64> {
        self.0.iter().zip(values).map(|((name, weight), value)| (*name, value / weight)).collect()
    }
}

/// The model's result for one packed row, from which a loss computes log-probabilities, logits or scores.
pub struct Output {
    /// (T, D) after the final norm.
    pub hidden: Tensor,
    head: Rc<Linear>,
    score: Option<Rc<Linear>>,
    adapters: Rc<[String]>,
    /// Activations of the layers that `Model::expose` requested.
    pub activations: Rc<Activations>,
}

impl Output {
    pub(super) fn new(
        hidden: Tensor,
        head: Rc<Linear>,
        score: Option<Rc<Linear>>,
        adapters: Rc<[String]>,
        inside: Rc<Activations>,
    ) -> Self {
        Self { hidden, head, score, adapters, activations: inside }
    }

    /// Returns the log-probabilities of `targets` (N) as the next tokens after the rows `at` (N). Logits are computed
    /// in chunks of rows; those of all rows never exist.
    pub fn log_probs(&self, at: &Tensor, targets: &Tensor) -> TargetScores {
        head::log_probs(&self.head, &self.hidden.index_select(0, at), targets)
    }

    /// Returns the same at a sampling temperature above 0, in float32 as the sampler computes them; with `entropy`,
    /// also the entropies of the distributions.
    pub fn scores(&self, at: &Tensor, targets: &Tensor, temperature: f64, entropy: bool) -> TargetScores {
        head::target_scores(&self.head, &self.hidden.index_select(0, at), targets, temperature, entropy)
    }

    /// Returns the output head, for methods that process whole distributions in chunks (`nn::chunked`).
    pub fn head(&self) -> &Rc<Linear> {
        &self.head
    }

    /// Returns the logits of the rows `at` (N): (N, V) float32.
    pub fn logits(&self, at: &Tensor) -> Tensor {
        self.head.forward(&self.hidden.index_select(0, at)).to_kind(Kind::Float)
    }

    /// Returns the logits of all rows: (T, V) float32. For rows of single tokens, of which all are needed.
    pub fn all_logits(&self) -> Tensor {
        self.head.forward(&self.hidden).to_kind(Kind::Float)
    }

    /// Returns the scores of the rows `at` (N) by the scalar head of the active adapter (or of the base if none is
    /// active): (N). They are computed in float32, because in bfloat16 similar answers would get the same score.
    /// Panics without scalar head.
    pub fn scalar(&self, at: &Tensor) -> Tensor {
        self.score().forward(&self.hidden.index_select(0, at).to_kind(Kind::Float)).squeeze_dim(-1)
    }

    /// Returns the same by the scalar head of a named adapter, e.g. a value head on the policy's hidden states.
    pub fn scalar_of_adapter(&self, adapter: &str, at: &Tensor) -> Tensor {
        let id = self.adapters.iter().position(|n| n == adapter).unwrap_or_else(|| panic!("no adapter `{adapter}`"));
        self.score().forward_with_adapter(id, &self.hidden.index_select(0, at).to_kind(Kind::Float)).squeeze_dim(-1)
    }

    /// Returns a copy with detached hidden states, through which no gradient reaches the layers. It has no activations.
    pub fn detached(&self) -> Self {
        let (head, score) = (self.head.clone(), self.score.clone());
        Self { hidden: self.hidden.detach(), head, score, adapters: self.adapters.clone(), activations: Rc::default() }
    }

    fn score(&self) -> &Linear {
        self.score.as_ref().expect("the model was loaded with a scalar head")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn what_no_item_was_added_to_has_no_mean() {
        let none = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        let (mut metrics, mut empty) = (Metrics::default(), Metrics::default());
        empty.add("accuracy", &none.sum(Kind::Float), 0.0);
        empty.add_extreme("least", &none, Extreme::Minimum);
        assert!(empty.means().is_empty(), "{:?}", empty.means());
        metrics.add("accuracy", &Tensor::from(3.0), 4.0);
        metrics.add_extreme("least", &Tensor::from_slice(&[2.0, 5.0]), Extreme::Minimum);
        metrics.merge(empty);
        assert_eq!(metrics.means(), BTreeMap::from([("accuracy", 0.75), ("least", 2.0)]));
    }
}
