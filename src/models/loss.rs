//! What a method sees of the trunk, and what it gives back.

use super::Inside;
use crate::nn::{Linear, head, head::Scores};
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// A loss is a SUM over items (tokens, pairs, …); the loop counts the items of the whole optimiser step and divides
/// once, so that micro-batches of unequal size weigh right.
pub struct Loss {
    /// Scalar, float32.
    pub sum: Tensor,
    pub metrics: Metrics,
}

/// Sums and weights by name, added up over micro-batches. Sums stay tensors, so that nothing waits for the device.
#[derive(Default)]
pub struct Metrics {
    sums: BTreeMap<&'static str, (Tensor, f64)>,
    extremes: BTreeMap<&'static str, (Tensor, Extreme)>,
}

/// Which of several numbers stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extreme {
    Least,
    Most,
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

    /// Keeps the least or the most of all the numbers in `values` and of those given under this name before. No number
    /// has no extreme.
    pub fn keep(&mut self, name: &'static str, values: &Tensor, which: Extreme) {
        if values.numel() == 0 {
            return;
        }
        let values = values.detach().to_kind(Kind::Double).view([-1]);
        let values = match self.extremes.get(name) {
            Some((earlier, _)) => Tensor::cat(&[&values, &earlier.view([1])], 0),
            None => values,
        };
        let one = if which == Extreme::Least { values.min() } else { values.max() };
        self.extremes.insert(name, (one, which));
    }

    /// Joins another micro-batch's sums.
    pub fn merge(&mut self, other: Metrics) {
        for (name, (sum, weight)) in other.sums {
            self.add(name, &sum, weight);
        }
        for (name, (value, which)) in other.extremes {
            self.keep(name, &value, which);
        }
    }

    /// The means and the extremes; waits for the device. A mean over nothing is none, and its name is left out.
    pub fn means(&self) -> BTreeMap<&'static str, f64> {
        self.sums
            .iter()
            .filter(|(_, (_, weight))| *weight != 0.0)
            .map(|(name, (sum, weight))| (*name, sum.double_value(&[]) / weight))
            .chain(self.extremes.iter().map(|(name, (value, _))| (*name, value.double_value(&[]))))
            .collect()
    }
}

/// The trunk's result for one packed row.
pub struct Output {
    /// (T, D) after the final norm.
    pub hidden: Tensor,
    head: Rc<Linear>,
    score: Option<Rc<Linear>>,
    adapters: Rc<[String]>,
    /// What `Model::expose` shows of the layers.
    pub inside: Rc<Inside>,
}

impl Output {
    pub(super) fn new(
        hidden: Tensor,
        head: Rc<Linear>,
        score: Option<Rc<Linear>>,
        adapters: Rc<[String]>,
        inside: Rc<Inside>,
    ) -> Self {
        Self { hidden, head, score, adapters, inside }
    }

    /// Log-probabilities of `targets` (N) after the rows `at` (N); the vocabulary is seen in chunks of rows, full
    /// logits never exist.
    pub fn log_probs(&self, at: &Tensor, targets: &Tensor) -> Scores {
        head::log_probs(&self.head, &self.hidden.index_select(0, at), targets)
    }

    /// Log-probabilities of `targets` (N) after the rows `at` (N) at a sampling temperature above 0, in float32 as the
    /// sampler computes them; with `entropy`, the distributions' entropies too. Chunked as `log_probs`.
    pub fn scores(&self, at: &Tensor, targets: &Tensor, temperature: f64, entropy: bool) -> Scores {
        head::scores(&self.head, &self.hidden.index_select(0, at), targets, temperature, entropy)
    }

    /// The output head, for methods that look at whole distributions chunk by chunk (`nn::chunked`).
    pub fn head(&self) -> &Rc<Linear> {
        &self.head
    }

    /// Logits of the rows `at` (N): (N, V) float32.
    pub fn logits(&self, at: &Tensor) -> Tensor {
        self.head.forward(&self.hidden.index_select(0, at)).to_kind(Kind::Float)
    }

    /// What the scalar head of the adapter that is switched on (of the base, where none is) says of the rows `at` (N):
    /// (N) float32, and computed in it: in bf16 near answers would get the same score.
    pub fn scalar(&self, at: &Tensor) -> Tensor {
        self.score().forward(&self.hidden.index_select(0, at).to_kind(Kind::Float)).squeeze_dim(-1)
    }

    /// The same of a named adapter's head: a value head on the policy's hidden states.
    pub fn scalar_of(&self, adapter: &str, at: &Tensor) -> Tensor {
        let id = self.adapters.iter().position(|n| n == adapter).unwrap_or_else(|| panic!("no adapter `{adapter}`"));
        self.score().forward_under(id, &self.hidden.index_select(0, at).to_kind(Kind::Float)).squeeze_dim(-1)
    }

    /// The same states, through which no gradient reaches the trunk.
    pub fn detached(&self) -> Self {
        let (head, score) = (self.head.clone(), self.score.clone());
        Self { hidden: self.hidden.detach(), head, score, adapters: self.adapters.clone(), inside: Rc::default() }
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
        empty.keep("least", &none, Extreme::Least);
        assert!(empty.means().is_empty(), "{:?}", empty.means());
        metrics.add("accuracy", &Tensor::from(3.0), 4.0);
        metrics.keep("least", &Tensor::from_slice(&[2.0, 5.0]), Extreme::Least);
        metrics.merge(empty);
        assert_eq!(metrics.means(), BTreeMap::from([("accuracy", 0.75), ("least", 2.0)]));
    }
}
