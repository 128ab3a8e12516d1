//! Simple preference optimisation: the chosen answer's tokens should be likelier, on average, than those of the
//! rejected one, by a margin. Needs no reference model. Items are pairs.

pub mod loss;
pub mod spec;

pub use spec::SimpoSpec;

use super::pair_objective::{self, PairLoss, PairScores};
use super::pairs;
use super::rows::{DataContext, MethodRows};
use crate::error::Result;
use crate::models::{Loss, Metrics};
use tch::Kind;

impl PairLoss for SimpoSpec {
    const NAME: &'static str = "simpo";

    fn beta(&self) -> f64 {
        self.beta
    }

    fn loss(&self, pairs: &PairScores) -> Loss {
        let means = pairs.policy.zip_with(&pairs.lengths, |sum, n| sum / n);
        let sum = loss::losses(self, &means).sum(Kind::Float);
        let mut metrics = Metrics::default();
        pairs::add_preference_metrics(&mut metrics, &means.map(|m| m.detach() * self.beta), &means);
        metrics.add("nll_loss", &-means.chosen.sum(Kind::Double), pairs.count);
        Loss { sum, metrics }
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &SimpoSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    pair_objective::rows(spec.clone(), None, ground)
}
