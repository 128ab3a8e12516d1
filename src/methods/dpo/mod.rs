//! Direct preference optimisation: the chosen answer of a pair should have gained more probability relative to the
//! reference than the rejected one. Items are pairs.

pub mod loss;
pub mod spec;
pub use spec::{DpoLoss, DpoSpec};

use super::fixed::FixedDataRows;
use super::pairs::{self, PackedAnswers, PairStatistics};
use super::preference_alarms::PreferenceMonitor;
use super::reference::{ReferenceRequest, ReferenceScorer, ReferenceSettings};
use super::{Alarm, BatchIndices, DataContext, Means, MethodRows, MicroBatch, Objective, Split};
use crate::data::dataset::Dataset;
use crate::data::encode::{PairExample, Supervise};
use crate::error::Result;
use crate::models::{Loss, Metrics, Model, Output};
use crate::nn::Tokens;
use tch::Kind;

/// The objective of DPO.
pub struct Dpo {
    spec: DpoSpec,
    source: ReferenceScorer,
    watch: PreferenceMonitor,
}

/// Some pairs in one packed row.
struct DpoBatch {
    spec: DpoSpec,
    answers: PackedAnswers,
    reference: PairStatistics,
}

impl Dpo {
    pub fn new(spec: &DpoSpec, model: &Model, keep: &ReferenceSettings) -> Result<Self> {
        Ok(Self {
            spec: spec.clone(),
            source: ReferenceScorer::new(keep, model)?,
            watch: PreferenceMonitor::new("dpo", spec.beta),
        })
    }
}

impl Objective for Dpo {
    type Item = PairExample;

    fn prepare_data(
        &mut self,
        model: &Model,
        train: &Dataset<PairExample>,
        valid: Option<&Dataset<PairExample>>,
    ) -> Result<()> {
        [Some(train), valid].into_iter().flatten().try_for_each(pairs::refuse_identical_answers)?;
        let asked = [(Split::Train, Some(train)), (Split::Valid, valid)].into_iter();
        self.source.prepare(model, asked.filter_map(|(split, rows)| Some(ReferenceRequest::all_rows(split, rows?))))
    }

    fn batch(&mut self, model: &Model, items: &[PairExample], which: BatchIndices) -> Result<Box<dyn MicroBatch>> {
        let answers = PackedAnswers::pack_pairs(items, model.device());
        let reference = self.source.log_probs(model, &answers, which.split, which.items)?;
        Ok(Box::new(DpoBatch { spec: self.spec.clone(), answers, reference: PairStatistics::of(&reference) }))
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.watch.alarms(means)
    }
}

impl MicroBatch for DpoBatch {
    fn tokens(&self) -> &Tokens {
        &self.answers.tokens
    }

    fn items(&self) -> f64 {
        self.reference.chosen.size()[0] as f64
    }

    fn loss(&self, out: &Output) -> Loss {
        let scores = self.answers.spans.scores(out);
        let (policy, lengths) = (PairStatistics::of(&scores.log_probs), self.answers.lengths());
        let losses = loss::losses(&self.spec, &policy, &self.reference, &lengths);
        let sum = losses.sum(Kind::Float);
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.items());
        let rewards = policy.zip_with(&self.reference, |p, r| (p - r).detach() * self.spec.beta);
        pairs::add_preference_metrics(&mut metrics, &rewards, &policy);
        let likelier = policy.difference().gt(0.0).sum(Kind::Double);
        metrics.add("logps/accuracies", &likelier, self.items());
        pairs::add_chosen(&mut metrics, &scores, &self.answers.spans);
        Loss { sum, metrics }
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &DpoSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    let (keep, spec) = (ReferenceSettings::new(spec.reference, ground), spec.clone());
    let make = move |model: &Model| Dpo::new(&spec, model, &keep);
    Ok(Box::new(FixedDataRows::open(ground, Supervise::default(), make)?))
}
