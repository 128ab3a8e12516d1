//! Kahneman-Tversky optimisation: answers labelled good or bad, one by one. A good answer should gain more probability
//! relative to the reference than answers do on average, a bad one less. Items are answers.
//!
//! The average is measured on mismatched answers: each prompt with the answer of an earlier item that has another
//! prompt. The data alone decides which one, so it does not depend on how a step is packed.

pub mod loss;
pub mod spec;

pub use spec::{KtoLoss, KtoSpec};

use super::contract::{Alarm, Means};
use super::fixed::{BatchIndices, FixedDataRows, Objective, Split};
use super::pairs::PackedAnswers;
use super::preference_alarms::{self, PreferenceMonitor};
use super::reference::{ReferenceRequest, ReferenceScorer, ReferenceSettings};
use super::rows::{DataContext, MethodRows};
use super::watch::Watch;
use crate::data::dataset::Dataset;
use crate::data::encode::{Example, Supervise, UnpairedExample};
use crate::error::{Error, Result};
use crate::models::learning::MicroBatch;
use crate::models::{Loss, Metrics, Model, Output};
use crate::native::upload_slice;
use crate::nn::Tokens;
use crate::report;
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// The objective of KTO.
pub struct Kto {
    spec: KtoSpec,
    source: ReferenceScorer,
    budget: usize,
    max_len: usize,
    /// For each item, the index of the item whose answer is its mismatched answer.
    others: BTreeMap<Split, Vec<u32>>,
    watch: Watch<PreferenceMonitor>,
}

/// Numbers that all batches of a step, or of a validation, share.
pub struct KtoStepStatistics {
    /// The reference point: the mean log-ratio of mismatched answers, at least zero. A float64 scalar on the device.
    reference_point: Tensor,
    /// Number of good answers.
    good: f64,
    /// Number of bad answers.
    bad: f64,
}

/// Labelled answers in one packed row.
struct KtoBatch {
    spec: KtoSpec,
    answers: PackedAnswers,
    /// (N) log-probabilities under the reference, float64.
    reference: Tensor,
    /// (N) float64, 1 where the answer is good.
    good: Tensor,
    /// Number of answers, and of good ones among them.
    counts: (f64, f64),
    survey: Rc<KtoStepStatistics>,
}

impl Kto {
    /// Creates the objective; packed rows have at most `budget` tokens, sequences at most `max_len`.
    pub fn new(spec: &KtoSpec, model: &Model, keep: &ReferenceSettings, budget: usize, max_len: usize) -> Result<Self> {
        Ok(Self {
            spec: spec.clone(),
            source: ReferenceScorer::new(keep, model)?,
            budget,
            max_len,
            others: BTreeMap::new(),
            watch: preference_alarms::watch("kto", spec.beta),
        })
    }

    /// Computes the log-ratios of the mismatched answers of `items`.
    fn mismatched(
        &self,
        model: &Model,
        split: Split,
        rows: &Dataset<UnpairedExample>,
        items: &[usize],
    ) -> Result<Vec<Tensor>> {
        let Some(others) = self.others.get(&split) else { return Ok(Vec::new()) };
        let mixed = items.iter().map(|&i| Ok((i, mismatched_example(rows, others, i, self.max_len)?)));
        let mixed = mixed.filter_map(|found| found.map(|(i, m)| Some((i, m?))).transpose());
        let (items, sequences): (Vec<usize>, Vec<Example>) = mixed.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let lengths: Vec<u32> = sequences.iter().map(|e| e.ids.len() as u32).collect();
        let order: Vec<u32> = (0..lengths.len() as u32).collect();
        let ratios = |row: Vec<usize>| {
            let (items, row): (Vec<usize>, Vec<Example>) =
                row.iter().map(|&n| (items[n], sequences[n].clone())).unzip();
            let answers = PackedAnswers::pack(&row, model.device());
            let policy = model.infer(&answers.tokens, |out| answers.spans.scores(out).log_probs)?;
            Ok(policy - self.source.log_probs_of(MISMATCHED, model, &answers, split, &items)?)
        };
        crate::data::batch::pack(&lengths, &order, self.budget.max(self.max_len)).into_iter().map(ratios).collect()
    }
}

/// The name of the mismatched answers in requests to the reference.
const MISMATCHED: &str = "mismatched";

/// Joins a row's prompt with another row's answer, truncated to `max_len`. `None` if the prompt alone fills it: no
/// token of the answer is left to score.
fn mismatched_example(
    rows: &Dataset<UnpairedExample>,
    others: &[u32],
    row: usize,
    max_len: usize,
) -> Result<Option<Example>> {
    let (item, other) = (rows.get(row)?, rows.get(others[row] as usize)?);
    let mut mixed = UnpairedExample { completion: other.completion, ..item }.sequence();
    mixed.ids.truncate(max_len);
    mixed.supervised.truncate(max_len);
    Ok(mixed.supervised.contains(&true).then_some(mixed))
}

/// Requests all mismatched answers of a split.
fn all_mixed<'a>(
    split: Split,
    rows: &'a Dataset<UnpairedExample>,
    others: &'a [u32],
    max_len: usize,
) -> Result<ReferenceRequest<'a>> {
    let length = |i| Ok(mismatched_example(rows, others, i, max_len)?.map_or(0, |e| e.ids.len() as u32));
    let content = [
        rows.hashes().iter().flat_map(|h| h.to_le_bytes()).collect::<Vec<u8>>(),
        others.iter().flat_map(|o| o.to_le_bytes()).collect(),
    ];
    Ok(ReferenceRequest {
        split,
        name: MISMATCHED,
        width: 1,
        lengths: (0..rows.len()).map(length).collect::<Result<_>>()?,
        content: content.concat(),
        sequences: Box::new(move |i| Ok(mismatched_example(rows, others, i, max_len)?.into_iter().collect())),
    })
}

/// Finds for each item another one that has another prompt. Consecutive items with one prompt (the two answers of a
/// pair) form a block; the k-th item of a block gets the k-th item of an earlier block, so that both good and bad
/// answers are used. An error if all rows have the same prompt.
fn mismatched_partners(rows: &Dataset<UnpairedExample>) -> Result<Vec<u32>> {
    let mut blocks: Vec<(Vec<u32>, std::ops::Range<usize>)> = Vec::new();
    for (i, item) in rows.iter().enumerate() {
        let item = item?;
        match blocks.last_mut() {
            Some((prompt, block)) if *prompt == item.prompt => block.end = i + 1,
            _ => blocks.push((item.prompt, i..i + 1)),
        }
    }
    let mut others = Vec::with_capacity(rows.len());
    for (b, (prompt, block)) in blocks.iter().enumerate() {
        let before = (1..blocks.len()).map(|k| &blocks[(b + blocks.len() - k) % blocks.len()]);
        let Some((_, other)) = before.into_iter().find(|(other, _)| other != prompt) else {
            return Err(Error::user(format!(
                "{}: every row has the same prompt, but KTO compares each answer with answers to other prompts",
                rows.summary.name()
            ))
            .hint(
                "use rows with different prompts, or set method.kto.loss: apo_zero, which needs no such comparison",
            ));
        };
        others.extend((0..block.len()).map(|k| (other.start + k % other.len()) as u32));
    }
    Ok(others)
}

impl Objective for Kto {
    type Item = UnpairedExample;
    type Shared = Rc<KtoStepStatistics>;

    fn prepare_data(
        &mut self,
        model: &Model,
        train: &Dataset<UnpairedExample>,
        valid: Option<&Dataset<UnpairedExample>>,
    ) -> Result<()> {
        let splits =
            || [(Split::Train, Some(train)), (Split::Valid, valid)].into_iter().filter_map(|(s, r)| Some((s, r?)));
        if self.spec.loss == KtoLoss::Kto {
            self.others =
                splits().map(|(split, rows)| Ok((split, mismatched_partners(rows)?))).collect::<Result<_>>()?;
        }
        let mut asked: Vec<ReferenceRequest> =
            splits().map(|(split, rows)| ReferenceRequest::all_rows(split, rows)).collect();
        for (split, rows) in splits() {
            if let Some(others) = self.others.get(&split) {
                asked.push(all_mixed(split, rows, others, self.max_len)?);
            }
        }
        self.source.prepare(model, asked)?;
        let good = train.iter().map(|item| item.map(|item| usize::from(item.good))).sum::<Result<usize>>()?;
        if let Some(advice) = self.spec.weight_advice(good, train.len() - good) {
            report::warn(advice);
        }
        Ok(())
    }

    fn prepare_batches(
        &mut self,
        model: &Model,
        split: Split,
        rows: &Dataset<UnpairedExample>,
        packed: &[Vec<usize>],
    ) -> Result<Rc<KtoStepStatistics>> {
        let (mut ratios, mut good, mut bad) = (Vec::new(), 0.0, 0.0);
        for items in packed {
            for &i in items {
                *(if rows.get(i)?.good { &mut good } else { &mut bad }) += 1.0;
            }
            ratios.extend(self.mismatched(model, split, rows, items)?);
        }
        let reference_point = loss::reference_point(&ratios, model.device());
        Ok(Rc::new(KtoStepStatistics { reference_point, good, bad }))
    }

    fn batch(
        &mut self,
        model: &Model,
        items: &[UnpairedExample],
        which: BatchIndices,
        survey: &Rc<KtoStepStatistics>,
    ) -> Result<Box<dyn MicroBatch>> {
        let sequences: Vec<Example> = items.iter().map(UnpairedExample::sequence).collect();
        let answers = PackedAnswers::pack(&sequences, model.device());
        let good: Vec<f64> = items.iter().map(|item| f64::from(u8::from(item.good))).collect();
        let reference = self.source.log_probs(model, &answers, which.split, which.items)?;
        let counts = (good.len() as f64, good.iter().sum());
        let good = upload_slice(&good, model.device());
        Ok(Box::new(KtoBatch { spec: self.spec.clone(), answers, reference, good, counts, survey: survey.clone() }))
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.watch.check(means)
    }
}

impl MicroBatch for KtoBatch {
    fn tokens(&self) -> &Tokens {
        &self.answers.tokens
    }

    fn items(&self) -> f64 {
        self.counts.0
    }

    fn loss(&self, out: &Output) -> Loss {
        let policy = self.answers.spans.scores(out).log_probs;
        let ratios = &policy - &self.reference;
        let sum = loss::losses(&self.spec, &ratios, &self.good, &self.survey.reference_point).sum(Kind::Float);
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.items());
        let rewards = ratios.detach() * self.spec.beta;
        let share = self.items() / (self.survey.good + self.survey.bad);
        metrics.add("kl", &(&self.survey.reference_point * share), share);
        let (all, good) = self.counts;
        let kinds = [("chosen", good, self.good.shallow_clone()), ("rejected", all - good, -&self.good + 1.0)];
        let sums = kinds.map(|(name, n, of)| {
            let sum = |t: &Tensor| (t.detach() * &of).sum(Kind::Double);
            (name, sum(&rewards), sum(&policy), n)
        });
        for (name, reward, log_prob, n) in &sums {
            // A mean over no answers is undefined.
            if *n > 0.0 {
                let names = if *name == "chosen" {
                    ["rewards/chosen", "logps/chosen"]
                } else {
                    ["rewards/rejected", "logps/rejected"]
                };
                metrics.add(names[0], reward, *n);
                metrics.add(names[1], log_prob, *n);
            }
        }
        if self.survey.good > 0.0 && self.survey.bad > 0.0 {
            // The margin of a whole step: the mean over its good answers minus the mean over its bad ones.
            let margin = &sums[0].1 / self.survey.good - &sums[1].1 / self.survey.bad;
            metrics.add("rewards/margins", &margin, share);
        }
        Loss { sum, metrics }
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &KtoSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    let keep = ReferenceSettings::new(spec.reference, ground);
    let (spec, budget, max_len) = (spec.clone(), ground.batch.tokens, ground.max_len);
    let make = move |model: &Model| Kto::new(&spec, model, &keep, budget, max_len);
    Ok(Box::new(FixedDataRows::open(ground, Supervise::default(), make)?))
}
