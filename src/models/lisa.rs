//! LISA (Pan et al. 2024, arXiv 2403.17919, algorithm 1): embeddings, output head and final norm are always trained, and of
//! the layers a few at a time, which are drawn at random every so many steps.
//!
//! Only the layers that are trained need gradients and optimiser state. All weights are float32 masters, because every
//! layer may be drawn.

use super::checkpoint::layer_number;
use super::model::Model;
use crate::rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Which layers are trained at a time, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LayerSampling {
    /// Layers that are trained at a time.
    #[schemars(range(min = 1))]
    pub layers: usize,
    /// Steps after which other layers are drawn.
    #[schemars(range(min = 1))]
    pub every: u64,
}

/// The paper's number of layers, and the interval of its implementation (LMFlow).
impl Default for LayerSampling {
    fn default() -> Self {
        Self { layers: 2, every: 20 }
    }
}

impl LayerSampling {
    /// Returns the layers, of `depth`, that are trained in `step`, counted from 0. They depend on seed and step alone.
    pub fn drawn(self, depth: usize, seed: u64, step: u64) -> BTreeSet<usize> {
        let mut chance = rng::stream(seed, "lisa", step / self.every);
        rand::seq::index::sample(&mut chance, depth, self.layers.min(depth)).into_iter().collect()
    }
}

impl Model {
    /// Lets only these layers be trained, and the parameters outside of layers. To be called between steps: the layers must
    /// have no gradients.
    pub fn train_layers(&self, layers: &BTreeSet<usize>) {
        for p in self.store.base() {
            let trained = layer_number(&p.name).is_none_or(|number| layers.contains(&number));
            let _ = p.tensor.shallow_clone().set_requires_grad(trained);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_drawn_by_seed_and_period_alone() {
        let lisa = LayerSampling { layers: 2, every: 5 };
        let drawn = |seed, step| lisa.drawn(12, seed, step);
        assert_eq!(drawn(7, 10), drawn(7, 14));
        let periods: BTreeSet<Vec<usize>> = (0..60).map(|n| drawn(7, 5 * n).into_iter().collect()).collect();
        assert!(periods.len() > 10 && periods.iter().all(|layers| layers.len() == 2), "{periods:?}");
        assert!((0..20).any(|n| drawn(7, 5 * n) != drawn(8, 5 * n)));
        let all: BTreeSet<usize> = periods.into_iter().flatten().collect();
        assert_eq!(all, (0..12).collect(), "every layer has its turn");
        assert_eq!(LayerSampling { layers: 20, every: 1 }.drawn(3, 0, 0).len(), 3);
    }
}
