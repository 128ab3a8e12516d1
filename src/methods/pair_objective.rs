//! Everything that methods on pairs of a chosen and a rejected answer share: packing, the reference, refusing useless
//! pairs, metrics and alarms. Such a method only says what the loss of scored pairs is.

use super::contract::{Alarm, Means};
use super::fixed::{BatchIndices, FixedDataRows, Objective, Split};
use super::pairs::{self, AnswerScores, AnswerSpans, PackedAnswers, PairStatistics};
use super::preference_alarms::{self, PreferenceMonitor};
use super::reference::{ReferenceRequest, ReferenceScorer, ReferenceSettings};
use super::rows::{DataContext, MethodRows};
use super::watch::Watch;
use crate::data::dataset::Dataset;
use crate::data::encode::{Example, PairExample, Supervise};
use crate::error::Result;
use crate::models::learning::MicroBatch;
use crate::models::{Loss, Model, Output};
use crate::nn::Tokens;
use std::rc::Rc;

/// The loss of a method on pairs.
pub trait PairLoss {
    /// The method's name in a recipe.
    const NAME: &'static str;

    /// Returns the scale of rewards, for the alarms.
    fn beta(&self) -> f64;

    /// Returns true if the loss needs the log-probabilities of the prompts of chosen answers.
    fn scores_prompts(&self) -> bool {
        false
    }

    /// Computes the SUM of the loss over the pairs, with metrics other than the loss itself. Pure.
    fn loss(&self, pairs: &PairScores) -> Loss;
}

/// Log-probabilities of P pairs.
pub struct PairScores {
    /// Log-probabilities of the answers, summed over their tokens; with gradient.
    pub policy: PairStatistics,
    /// The same under the reference, without gradient; `None` if the method has none.
    pub reference: Option<PairStatistics>,
    /// Number of tokens of each answer, at least 1.
    pub lengths: PairStatistics,
    /// Log-probability and number of tokens of each prompt, if they were asked for; only those of chosen answers count.
    pub prompts: Option<(PairStatistics, PairStatistics)>,
    /// P.
    pub count: f64,
}

/// The objective of a method on pairs.
pub struct PairObjective<L> {
    rule: Rc<L>,
    reference: Option<ReferenceScorer>,
    watch: Watch<PreferenceMonitor>,
}

impl<L: PairLoss> PairObjective<L> {
    /// Creates the objective; `reference` is where its reference log-probabilities come from, if it has any.
    pub fn new(rule: L, model: &Model, reference: Option<&ReferenceSettings>) -> Result<Self> {
        let reference = reference.map(|settings| ReferenceScorer::new(settings, model)).transpose()?;
        Ok(Self { reference, watch: preference_alarms::watch(L::NAME, rule.beta()), rule: Rc::new(rule) })
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows<L: PairLoss + 'static>(
    rule: L,
    reference: Option<ReferenceSettings>,
    ground: &DataContext,
) -> Result<Box<dyn MethodRows>> {
    let make = move |model: &Model| PairObjective::new(rule, model, reference.as_ref());
    Ok(Box::new(FixedDataRows::open(ground, Supervise::default(), make)?))
}

impl<L: PairLoss + 'static> Objective for PairObjective<L> {
    type Item = PairExample;
    type Shared = ();

    fn prepare_data(
        &mut self,
        model: &Model,
        train: &Dataset<PairExample>,
        valid: Option<&Dataset<PairExample>>,
    ) -> Result<()> {
        [Some(train), valid].into_iter().flatten().try_for_each(pairs::refuse_identical_answers)?;
        let Some(reference) = &mut self.reference else { return Ok(()) };
        let splits = [(Split::Train, Some(train)), (Split::Valid, valid)].into_iter();
        reference.prepare(model, splits.filter_map(|(split, rows)| Some(ReferenceRequest::all_rows(split, rows?))))
    }

    fn prepare_batches(&mut self, _: &Model, _: Split, _: &Dataset<PairExample>, _: &[Vec<usize>]) -> Result<()> {
        Ok(())
    }

    fn batch(
        &mut self,
        model: &Model,
        items: &[PairExample],
        which: BatchIndices,
        _: &(),
    ) -> Result<Box<dyn MicroBatch>> {
        let sequences = pairs::sequences(items);
        let answers = PackedAnswers::pack(&sequences, model.device());
        let of_row = |scorer: &ReferenceScorer| scorer.log_probs(model, &answers, which.split, which.items);
        let reference = self.reference.as_ref().map(of_row).transpose()?;
        let chosen_prompt = |i: usize, e: &Example, t: usize| i.is_multiple_of(2) && !e.supervised[t];
        let prompts = self.rule.scores_prompts().then(|| AnswerSpans::of(&sequences, chosen_prompt, model.device()));
        Ok(Box::new(PairBatch {
            rule: self.rule.clone(),
            reference: reference.map(|numbers| PairStatistics::of(&numbers)),
            prompts,
            answers,
            count: items.len() as f64,
        }))
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.watch.check(means)
    }
}

/// Some pairs in one packed row.
struct PairBatch<L> {
    rule: Rc<L>,
    answers: PackedAnswers,
    reference: Option<PairStatistics>,
    /// The prompts of the chosen answers, if the loss needs them.
    prompts: Option<AnswerSpans>,
    count: f64,
}

impl<L: PairLoss> MicroBatch for PairBatch<L> {
    fn tokens(&self) -> &Tokens {
        &self.answers.tokens
    }

    fn items(&self) -> f64 {
        self.count
    }

    fn loss(&self, out: &Output) -> Loss {
        let scores: AnswerScores = self.answers.spans.scores(out);
        let prompt = |spans: &AnswerSpans| {
            (PairStatistics::of(&spans.scores(out).log_probs), PairStatistics::of(&spans.counts()))
        };
        let mut loss = self.rule.loss(&PairScores {
            policy: PairStatistics::of(&scores.log_probs),
            reference: self.reference.as_ref().map(|r| r.map(|t| t.shallow_clone())),
            lengths: self.answers.lengths(),
            prompts: self.prompts.as_ref().map(prompt),
            count: self.count,
        });
        loss.metrics.add("loss", &loss.sum, self.count);
        pairs::add_chosen(&mut loss.metrics, &scores, &self.answers.spans);
        loss
    }
}
