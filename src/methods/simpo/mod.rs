//! Simple preference optimisation: the chosen answer's tokens should be likelier, on average, than those of the
//! rejected one, by a margin. Needs no reference model. Items are pairs.

pub mod loss;
pub mod spec;
pub use spec::SimpoSpec;

use super::fixed::FixedDataRows;
use super::pairs::{self, PackedAnswers, PairStatistics};
use super::preference_alarms::PreferenceMonitor;
use super::{Alarm, BatchIndices, DataContext, Means, MethodRows, MicroBatch, Objective};
use crate::data::dataset::Dataset;
use crate::data::encode::{PairExample, Supervise};
use crate::error::Result;
use crate::models::{Loss, Metrics, Model, Output};
use crate::nn::Tokens;
use tch::Kind;

/// The objective of SimPO.
pub struct Simpo {
    spec: SimpoSpec,
    watch: PreferenceMonitor,
}

/// Some pairs in one packed row.
struct SimpoBatch {
    spec: SimpoSpec,
    answers: PackedAnswers,
    count: usize,
}

impl Simpo {
    pub fn new(spec: &SimpoSpec) -> Self {
        Self { spec: spec.clone(), watch: PreferenceMonitor::new("simpo", spec.beta) }
    }
}

impl Objective for Simpo {
    type Item = PairExample;

    fn prepare_data(
        &mut self,
        _: &Model,
        train: &Dataset<PairExample>,
        valid: Option<&Dataset<PairExample>>,
    ) -> Result<()> {
        [Some(train), valid].into_iter().flatten().try_for_each(pairs::refuse_identical_answers)
    }

    fn batch(&mut self, model: &Model, items: &[PairExample], _: BatchIndices) -> Result<Box<dyn MicroBatch>> {
        let answers = PackedAnswers::pack_pairs(items, model.device());
        Ok(Box::new(SimpoBatch { spec: self.spec.clone(), answers, count: items.len() }))
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.watch.alarms(means)
    }
}

impl MicroBatch for SimpoBatch {
    fn tokens(&self) -> &Tokens {
        &self.answers.tokens
    }

    fn items(&self) -> f64 {
        self.count as f64
    }

    fn loss(&self, out: &Output) -> Loss {
        let scores = self.answers.spans.scores(out);
        let means = PairStatistics::of(&scores.log_probs).zip_with(&self.answers.lengths(), |sum, n| sum / n);
        let sum = loss::losses(&self.spec, &means).sum(Kind::Float);
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.items());
        pairs::add_preference_metrics(&mut metrics, &means.map(|m| m.detach() * self.spec.beta), &means);
        metrics.add("nll_loss", &-means.chosen.sum(Kind::Double), self.items());
        pairs::add_chosen(&mut metrics, &scores, &self.answers.spans);
        Loss { sum, metrics }
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &SimpoSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    let spec = spec.clone();
    Ok(Box::new(FixedDataRows::open(ground, Supervise::default(), move |_| Ok(Simpo::new(&spec)))?))
}
