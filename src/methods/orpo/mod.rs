//! Odds-ratio preference optimisation: trains on the chosen answer, and raises its odds above those of the rejected
//! one. Needs no reference model. Items are pairs.

pub mod loss;
pub mod spec;
pub use spec::OrpoSpec;

use super::fixed::FixedDataRows;
use super::pairs::{self, AnswerSpans, PackedAnswers, PairStatistics};
use super::preference_alarms::PreferenceMonitor;
use super::{Alarm, BatchIndices, DataContext, Means, MethodRows, MicroBatch, Objective};
use crate::data::dataset::Dataset;
use crate::data::encode::{Example, PairExample, Supervise};
use crate::error::Result;
use crate::models::{Loss, Metrics, Model, Output};
use crate::nn::Tokens;
use tch::Kind;

/// The objective of ORPO.
pub struct Orpo {
    spec: OrpoSpec,
    watch: PreferenceMonitor,
}

/// Some pairs in one packed row.
struct OrpoBatch {
    spec: OrpoSpec,
    answers: PackedAnswers,
    /// The prompts of the chosen answers, if they are trained on.
    prompts: Option<AnswerSpans>,
    count: usize,
}

impl Orpo {
    pub fn new(spec: &OrpoSpec) -> Self {
        Self { spec: spec.clone(), watch: PreferenceMonitor::new("orpo", spec.beta) }
    }
}

impl Objective for Orpo {
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
        let sequences = pairs::sequences(items);
        let answers = PackedAnswers::pack(&sequences, model.device());
        let chosen_prompt = |i: usize, e: &Example, t: usize| i.is_multiple_of(2) && !e.supervised[t];
        let prompts = self.spec.learn_prompt.then(|| AnswerSpans::of(&sequences, chosen_prompt, model.device()));
        Ok(Box::new(OrpoBatch { spec: self.spec.clone(), answers, prompts, count: items.len() }))
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.watch.alarms(means)
    }
}

impl MicroBatch for OrpoBatch {
    fn tokens(&self) -> &Tokens {
        &self.answers.tokens
    }

    fn items(&self) -> f64 {
        self.count as f64
    }

    fn loss(&self, out: &Output) -> Loss {
        let scores = self.answers.spans.scores(out);
        let (sums, lengths) = (PairStatistics::of(&scores.log_probs), self.answers.lengths());
        let means = sums.zip_with(&lengths, |sum, n| sum / n);
        let nll = match &self.prompts {
            None => -&means.chosen,
            Some(prompts) => {
                let learnt = PairStatistics::of(&prompts.scores(out).log_probs).chosen + &sums.chosen;
                -learnt / (PairStatistics::of(&prompts.counts()).chosen + &lengths.chosen)
            }
        };
        let log_odds = loss::log_odds(&means);
        let ratio = log_odds.log_sigmoid();
        let sum = (&nll - &ratio * self.spec.beta).sum(Kind::Float);
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.items());
        pairs::add_preference_metrics(&mut metrics, &means.map(|m| m.detach() * self.spec.beta), &means);
        for (name, t) in [("nll_loss", &nll), ("log_odds_ratio", &ratio), ("log_odds_chosen", &log_odds)] {
            metrics.add(name, &t.sum(Kind::Double), self.items());
        }
        pairs::add_chosen(&mut metrics, &scores, &self.answers.spans);
        Loss { sum, metrics }
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &OrpoSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    let spec = spec.clone();
    Ok(Box::new(FixedDataRows::open(ground, Supervise::default(), move |_| Ok(Orpo::new(&spec)))?))
}
