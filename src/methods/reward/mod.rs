//! Reward models: one number per answer, trained on pairs of a better and a worse answer.
//!
//! `spec`: the recipe's section. `loss`: Bradley-Terry on packed pairs. `measures`: the numbers of the report card;
//! `report_card`: all of them, with limits. This file: the method, and the scoring of held-out pairs for the report
//! card. `models::reward` reads saved reward models.

pub mod loss;
pub mod measures;
pub mod report_card;
pub mod spec;

pub use measures::ScoredPair;
pub use report_card::{HeldOutScores, ReportCard, ReportCardLimits};
pub use spec::{MarginChoice, RewardMethodSpec};

use super::contract::{Alarm, Means};
use super::fixed::{BatchIndices, FixedDataRows, Objective, Split};
use super::rows::{DataContext, MethodRows};
use super::watch::{AlarmRule, Problem, Repeat, RunRecord, Watch};
use crate::data::chat::ChatTokenizer;
use crate::data::dataset::Dataset;
use crate::data::encode::{PairExample, Supervise};
use crate::error::Result;
use crate::fsutil::write_json;
use crate::models::learning::MicroBatch;
use crate::models::{Model, reward};
use crate::report;
use std::path::Path;
use std::rc::Rc;

/// Number of pairs that are also scored without their stop token.
const CUT: usize = 512;
/// Number of pairs that are also scored in reverse packing order.
const TURNED: usize = 64;

/// Largest absolute mean score before an alarm is given.
const LARGE: f64 = 30.0;

/// The objective of a reward model.
pub struct RewardObjective {
    spec: RewardMethodSpec,
    tokenizer: Rc<ChatTokenizer>,
    watch: Watch<MeanScore>,
}

/// The mean score of the last step; NaN if it has none.
struct MeanScore(f64);

impl RunRecord for MeanScore {
    fn record(&mut self, means: &Means) {
        self.0 = means.get("mean_reward").copied().unwrap_or(f64::NAN);
    }
}

impl MeanScore {
    /// The loss depends only on differences of scores, so the mean of all scores may drift until float32 loses the
    /// differences.
    fn drift(&self) -> Option<Problem> {
        let cause = format!(
            "the mean score is beyond {LARGE}: the loss depends only on differences of scores, so their mean drifts"
        );
        (self.0.abs() > LARGE)
            .then(|| Problem::new(cause, "keep scores around zero with --set method.reward.center=0.01"))
    }
}

/// The alarms of reward models.
const RULES: &[AlarmRule<MeanScore>] = &[AlarmRule { name: "drift", harmful: false, find: MeanScore::drift }];

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &RewardMethodSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    let (spec, tokenizer) = (*spec, ground.tokenizer.clone());
    let make = move |_: &Model| {
        let watch = Watch::new(MeanScore(f64::NAN), RULES, Repeat::EachStep, true);
        Ok(RewardObjective { spec, tokenizer, watch })
    };
    Ok(Box::new(FixedDataRows::open(ground, Supervise::default(), make)?))
}

impl Objective for RewardObjective {
    type Item = PairExample;
    type Shared = ();

    fn prepare_batches(&mut self, _: &Model, _: Split, _: &Dataset<PairExample>, _: &[Vec<usize>]) -> Result<()> {
        Ok(())
    }

    fn batch(&mut self, model: &Model, items: &[PairExample], _: BatchIndices, _: &()) -> Result<Box<dyn MicroBatch>> {
        Ok(Box::new(loss::RewardBatch::new(items, self.spec, model.device())))
    }

    fn generates_text(&self) -> bool {
        false
    }

    fn alarms(&mut self, means: &Means) -> Vec<Alarm> {
        self.watch.check(means)
    }

    /// Writes the report card from scores on the validation rows.
    fn finish(&mut self, model: &Model, valid: Option<&Dataset<PairExample>>, out: &Path) -> Result<()> {
        let Some(valid) = valid.filter(|v| !v.is_empty()) else {
            report::warn(
                "no report card: it needs held-out pairs in data.valid. Reinforcement learning requires a report card",
            );
            return Ok(());
        };
        let Some(card) = ReportCard::of(&score_held_out_pairs(model, valid, self.tokenizer.stop_ids())?) else {
            return Ok(());
        };
        if !card.rewards.std.is_finite() {
            report::warn("no report card: some scores of held-out pairs are not finite numbers");
            return Ok(());
        }
        write_json(&out.join(report_card::FILE), &card)?;
        card.lines().iter().for_each(report::info);
        for problem in card.problems(&ReportCardLimits::default()) {
            report::warn(format!("reinforcement learning will refuse this model: {problem}"));
        }
        Ok(())
    }
}

/// Scores held-out pairs: with and without stop tokens, and packed in reverse order.
pub fn score_held_out_pairs(model: &Model, pairs: &Dataset<PairExample>, stops: &[u32]) -> Result<HeldOutScores> {
    let pairs = pairs.to_vec()?;
    let sequences: Vec<[Vec<u32>; 2]> = pairs.iter().map(|p| p.sequences().map(|s| s.ids)).collect();
    let bar = report::bar(sequences.len() as u64, "pairs of the report card");
    let mut judged = Vec::with_capacity(pairs.len());
    for (part, rows) in pairs.chunks(CUT).zip(sequences.chunks(CUT)) {
        let scores = both(model, rows)?;
        bar.inc(part.len() as u64);
        judged.extend(part.iter().zip(scores).map(|(p, [chosen, rejected])| ScoredPair {
            chosen,
            rejected,
            lengths: [p.chosen.len(), p.rejected.len()],
        }));
    }
    let cut: Vec<[Vec<u32>; 2]> = pairs
        .iter()
        .take(CUT)
        .map(|p| {
            let cut = |answer| [&p.prompt, without_stop(answer, stops)].concat();
            // An empty sequence has no score, so it stays uncut.
            [&p.chosen, &p.rejected].map(|answer| Some(cut(answer)).filter(|c| !c.is_empty()).unwrap_or(answer.clone()))
        })
        .collect();
    let turned = sequences[..sequences.len().min(TURNED)].iter().rev().map(|[c, r]| [r.clone(), c.clone()]);
    let turned = both(model, &turned.collect::<Vec<_>>())?.into_iter().rev().map(|[r, c]| [c, r]).collect();
    bar.finish_and_clear();
    Ok(HeldOutScores { pairs: judged, without_stop: both(model, &cut)?, reversed: turned })
}

/// Scores both answers of each pair, packed in the given order.
fn both(model: &Model, sequences: &[[Vec<u32>; 2]]) -> Result<Vec<[f64; 2]>> {
    let flat: Vec<&Vec<u32>> = sequences.iter().flatten().collect();
    let scores = reward::scores(model, &flat, None)?;
    Ok(scores.chunks_exact(2).map(|two| [two[0], two[1]]).collect())
}

/// Returns the answer up to its last stop token, exclusive.
fn without_stop<'a>(answer: &'a [u32], stops: &[u32]) -> &'a [u32] {
    &answer[..answer.iter().rposition(|id| stops.contains(id)).unwrap_or(answer.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_the_answer_is_cut() {
        assert_eq!(without_stop(&[5, 2, 6, 2, 7], &[2]), [5, 2, 6]);
        assert_eq!(without_stop(&[5, 6], &[2]), [5, 6]);
        assert!(without_stop(&[2, 7], &[2]).is_empty());
    }
}
