//! Odds-ratio preference optimisation: trains on the chosen answer, and raises its odds above those of the rejected
//! one. Needs no reference model. Items are pairs.

pub mod loss;
pub mod spec;
pub use spec::OrpoSpec;

use super::fixed::FixedRows;
use super::pairs::{self, Answers, Sides, Spans};
use super::watch::Watch;
use super::{Alarm, Batch, Ground, Means, Objective, Rows, Which};
use crate::data::{Dataset, Example, Pair, Supervise};
use crate::error::Result;
use crate::models::{Loss, Metrics, Model, Output};
use crate::nn::Tokens;
use tch::Kind;

/// The objective of ORPO.
pub struct Orpo {
    spec: OrpoSpec,
    watch: Watch,
}

/// Some pairs in one packed row.
struct Pairs {
    spec: OrpoSpec,
    answers: Answers,
    /// The prompts of the chosen answers, if they are trained on.
    prompts: Option<Spans>,
    count: usize,
}

impl Orpo {
    pub fn new(spec: &OrpoSpec) -> Self {
        Self { spec: spec.clone(), watch: Watch::new("orpo", spec.beta) }
    }
}

impl Objective for Orpo {
    type Item = Pair;

    fn begin(&mut self, _: &Model, train: &Dataset<Pair>, valid: Option<&Dataset<Pair>>) -> Result<()> {
        [Some(train), valid].into_iter().flatten().try_for_each(pairs::refuse_equal)
    }

    fn batch(&mut self, model: &Model, items: &[Pair], _: Which) -> Result<Box<dyn Batch>> {
        let sequences = pairs::sequences(items);
        let answers = Answers::pack(&sequences, model.device());
        let chosen_prompt = |i: usize, e: &Example, t: usize| i.is_multiple_of(2) && !e.supervised[t];
        let prompts = self.spec.learn_prompt.then(|| Spans::of(&sequences, chosen_prompt, model.device()));
        Ok(Box::new(Pairs { spec: self.spec.clone(), answers, prompts, count: items.len() }))
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
        let (sums, lengths) = (Sides::of(&scores.log_probs), self.answers.lengths());
        let means = sums.with(&lengths, |sum, n| sum / n);
        let nll = match &self.prompts {
            None => -&means.chosen,
            Some(prompts) => {
                let learnt = Sides::of(&prompts.scores(out).log_probs).chosen + &sums.chosen;
                -learnt / (Sides::of(&prompts.counts()).chosen + &lengths.chosen)
            }
        };
        let log_odds = loss::log_odds(&means);
        let ratio = log_odds.log_sigmoid();
        let sum = (&nll - &ratio * self.spec.beta).sum(Kind::Float);
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.items());
        pairs::add_metrics(&mut metrics, &means.map(|m| m.detach() * self.spec.beta), &means);
        for (name, t) in [("nll_loss", &nll), ("log_odds_ratio", &ratio), ("log_odds_chosen", &log_odds)] {
            metrics.add(name, &t.sum(Kind::Double), self.items());
        }
        pairs::add_chosen(&mut metrics, &scores, &self.answers.spans);
        Loss { sum, metrics }
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &OrpoSpec, ground: &Ground) -> Result<Box<dyn Rows>> {
    let spec = spec.clone();
    Ok(Box::new(FixedRows::open(ground, Supervise::default(), move |_| Ok(Orpo::new(&spec)))?))
}
