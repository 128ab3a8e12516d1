//! Odds-ratio preference optimisation: trains on the chosen answer, and raises its odds above those of the rejected
//! one. Needs no reference model. Items are pairs.

pub mod loss;
pub mod spec;

pub use spec::OrpoSpec;

use super::pair_objective::{self, PairLoss, PairScores};
use super::pairs;
use super::rows::{DataContext, MethodRows};
use crate::error::Result;
use crate::models::{Loss, Metrics};
use tch::Kind;

impl PairLoss for OrpoSpec {
    const NAME: &'static str = "orpo";

    fn beta(&self) -> f64 {
        self.beta
    }

    fn scores_prompts(&self) -> bool {
        self.learn_prompt
    }

    fn loss(&self, pairs: &PairScores) -> Loss {
        let PairScores { policy: sums, lengths, count, .. } = pairs;
        let means = sums.zip_with(lengths, |sum, n| sum / n);
        let nll = match &pairs.prompts {
            None => -&means.chosen,
            Some((prompts, counts)) => -(&prompts.chosen + &sums.chosen) / (&counts.chosen + &lengths.chosen),
        };
        let log_odds = loss::log_odds(&means);
        let ratio = log_odds.log_sigmoid();
        let sum = (&nll - &ratio * self.beta).sum(Kind::Float);
        let mut metrics = Metrics::default();
        pairs::add_preference_metrics(&mut metrics, &means.map(|m| m.detach() * self.beta), &means);
        for (name, t) in [("nll_loss", &nll), ("log_odds_ratio", &ratio), ("log_odds_chosen", &log_odds)] {
            metrics.add(name, &t.sum(Kind::Double), *count);
        }
        Loss { sum, metrics }
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &OrpoSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    pair_objective::rows(spec.clone(), None, ground)
}
