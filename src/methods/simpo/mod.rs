//! Simple preference optimisation: the chosen answer's tokens should be likelier, on average, than those of the
//! rejected one, by a margin. Needs no reference model. Items are pairs.

pub mod loss;
pub mod spec;
pub use spec::SimpoSpec;

use super::fixed::FixedRows;
use super::pairs::{self, Answers, Sides};
use super::watch::Watch;
use super::{Alarm, Batch, Ground, Means, Objective, Rows, Which};
use crate::data::{Dataset, Pair, Supervise};
use crate::error::Result;
use crate::models::{Loss, Metrics, Model, Output};
use crate::nn::Tokens;
use tch::Kind;

/// The objective of SimPO.
pub struct Simpo {
    spec: SimpoSpec,
    watch: Watch,
}

/// Some pairs in one packed row.
struct Pairs {
    spec: SimpoSpec,
    answers: Answers,
    count: usize,
}

impl Simpo {
    pub fn new(spec: &SimpoSpec) -> Self {
        Self { spec: spec.clone(), watch: Watch::new("simpo", spec.beta) }
    }
}

impl Objective for Simpo {
    type Item = Pair;

    fn begin(&mut self, _: &Model, train: &Dataset<Pair>, valid: Option<&Dataset<Pair>>) -> Result<()> {
        [Some(train), valid].into_iter().flatten().try_for_each(pairs::refuse_equal)
    }

    fn batch(&mut self, model: &Model, items: &[Pair], _: Which) -> Result<Box<dyn Batch>> {
        let answers = Answers::of_pairs(items, model.device());
        Ok(Box::new(Pairs { spec: self.spec.clone(), answers, count: items.len() }))
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.watch.see(means)
    }
}

impl Batch for Pairs {
    fn tokens(&self) -> &Tokens {
        &self.answers.tokens
    }

    fn items(&self) -> f64 {
        self.count as f64
    }

    fn loss(&self, out: &Output) -> Loss {
        let scores = self.answers.spans.scores(out);
        let means = Sides::of(&scores.log_probs).with(&self.answers.lengths(), |sum, n| sum / n);
        let sum = loss::losses(&self.spec, &means).sum(Kind::Float);
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.items());
        pairs::add_metrics(&mut metrics, &means.map(|m| m.detach() * self.spec.beta), &means);
        metrics.add("nll_loss", &-means.chosen.sum(Kind::Double), self.items());
        pairs::add_chosen(&mut metrics, &scores, &self.answers.spans);
        Loss { sum, metrics }
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &SimpoSpec, ground: &Ground) -> Result<Box<dyn Rows>> {
    let spec = spec.clone();
    Ok(Box::new(FixedRows::open(ground, Supervise::default(), move |_| Ok(Simpo::new(&spec)))?))
}
