//! Direct preference optimisation: the chosen answer of a pair should have gained more probability relative to the
//! reference than the rejected one. Items are pairs.

pub mod loss;
pub mod spec;

pub use spec::{DpoLoss, DpoSpec};

use super::pair_objective::{self, PairLoss, PairScores};
use super::pairs;
use super::reference::ReferenceSettings;
use super::rows::{DataContext, MethodRows};
use crate::error::Result;
use crate::models::{Loss, Metrics};
use tch::Kind;

impl PairLoss for DpoSpec {
    const NAME: &'static str = "dpo";

    fn beta(&self) -> f64 {
        self.beta
    }

    /// Expects a reference.
    fn loss(&self, pairs: &PairScores) -> Loss {
        let PairScores { policy, lengths, count, .. } = pairs;
        let reference = pairs.reference.as_ref().expect("DPO is opened with a reference");
        let sum = loss::losses(self, policy, reference, lengths).sum(Kind::Float);
        let mut metrics = Metrics::default();
        let rewards = policy.zip_with(reference, |p, r| (p - r).detach() * self.beta);
        pairs::add_preference_metrics(&mut metrics, &rewards, policy);
        metrics.add("logps/accuracies", &policy.difference().gt(0.0).sum(Kind::Double), *count);
        Loss { sum, metrics }
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &DpoSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    pair_objective::rows(spec.clone(), Some(ReferenceSettings::new(spec.reference, ground)), ground)
}
