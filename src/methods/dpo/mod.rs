//! Direct preference optimisation: the chosen answer of a pair should have gained more probability relative to the
//! reference than the rejected one. Items are pairs.

pub mod loss;
pub mod spec;
pub use spec::{DpoLoss, DpoSpec};

use super::fixed::FixedRows;
use super::pairs::{self, Answers, Sides};
use super::reference::{Asked, Keep, Source};
use super::watch::Watch;
use super::{Alarm, Batch, Ground, Means, Objective, Rows, Split, Which};
use crate::data::{Dataset, Pair, Supervise};
use crate::error::Result;
use crate::models::{Loss, Metrics, Model, Output};
use crate::nn::Tokens;
use tch::Kind;

/// The objective of DPO.
pub struct Dpo {
    spec: DpoSpec,
    source: Source,
    watch: Watch,
}

/// Some pairs in one packed row.
struct Pairs {
    spec: DpoSpec,
    answers: Answers,
    reference: Sides,
}

impl Dpo {
    pub fn new(spec: &DpoSpec, model: &Model, keep: &Keep) -> Result<Self> {
        Ok(Self { spec: spec.clone(), source: Source::new(keep, model)?, watch: Watch::new("dpo", spec.beta) })
    }
}

impl Objective for Dpo {
    type Item = Pair;

    fn begin(&mut self, model: &Model, train: &Dataset<Pair>, valid: Option<&Dataset<Pair>>) -> Result<()> {
        [Some(train), valid].into_iter().flatten().try_for_each(pairs::refuse_equal)?;
        let asked = [(Split::Train, Some(train)), (Split::Valid, valid)].into_iter();
        self.source.begin(model, asked.filter_map(|(split, rows)| Some(Asked::rows(split, rows?))))
    }

    fn batch(&mut self, model: &Model, items: &[Pair], which: Which) -> Result<Box<dyn Batch>> {
        let answers = Answers::of_pairs(items, model.device());
        let reference = self.source.log_probs(model, &answers, which.split, which.items)?;
        Ok(Box::new(Pairs { spec: self.spec.clone(), answers, reference: Sides::of(&reference) }))
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
        self.reference.chosen.size()[0] as f64
    }

    fn loss(&self, out: &Output) -> Loss {
        let scores = self.answers.spans.scores(out);
        let (policy, lengths) = (Sides::of(&scores.log_probs), self.answers.lengths());
        let losses = loss::losses(&self.spec, &policy, &self.reference, &lengths);
        let sum = losses.sum(Kind::Float);
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.items());
        let rewards = policy.with(&self.reference, |p, r| (p - r).detach() * self.spec.beta);
        pairs::add_metrics(&mut metrics, &rewards, &policy);
        let likelier = policy.gap().gt(0.0).sum(Kind::Double);
        metrics.add("logps/accuracies", &likelier, self.items());
        pairs::add_chosen(&mut metrics, &scores, &self.answers.spans);
        Loss { sum, metrics }
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &DpoSpec, ground: &Ground) -> Result<Box<dyn Rows>> {
    let (keep, spec) = (Keep::new(spec.reference, ground), spec.clone());
    let make = move |model: &Model| Dpo::new(&spec, model, &keep);
    Ok(Box::new(FixedRows::open(ground, Supervise::default(), make)?))
}
