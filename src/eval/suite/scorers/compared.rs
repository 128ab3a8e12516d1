//! Win rates: each answer is compared with that of the baseline, or with the expected one.
//!
//! A language model or a program sees each pair in both orders; verdicts that differ count as a tie and are counted
//! (`label::machines::judge`). The win rate counts a tie as half. Equal answers are not shown to anybody: they tie.

use super::rewards::{Rewards, candidate, judged_prompts};
use super::{AnsweredTask, add_estimate, add_scores};
use crate::data::chat::{ChatTokenizer, TemplateOptions};
use crate::data::rows::RowTemplate;
use crate::error::{Error, Result};
use crate::eval::results::SubjectResults;
use crate::eval::suite::cache::{AnswerCache, key};
use crate::eval::suite::choices::mean_of;
use crate::eval::suite::items::AskedItem;
use crate::eval::suite::rows::{TaskRow, at, text};
use crate::eval::suite::scores::{joint_estimate, mean_estimate};
use crate::fsutil;
use crate::label::machines::command::CommandJudge;
use crate::label::machines::judge::{JudgeTask, JudgingOrder, PairJudge, collect_votes};
use crate::label::machines::language::LanguageJudge;
use crate::label::record::answer::{Candidate, CandidatePair, StoredPrompt};
use crate::label::record::vote::{NewVote, VoteChoice};
use crate::model_files::is_model;
use crate::models::{self, content_hash};
use crate::recipe::suite_file::SuiteTask;
use crate::recipe::suite_file::scorers::{Opponent, PairComparison, PairJudgeBy};
use crate::report;
use crate::stats::logistic::{LengthComparison, length_controlled_win_rate};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// Pairs that are judged together.
const BATCH: usize = 16;
const RATE: &str = "win_rate";
const AT_EQUAL_LENGTH: &str = "win_rate_length_controlled";

/// How answers are compared, and the prompts that they answer.
pub struct Comparisons {
    by: PairComparison,
    prompts: Vec<StoredPrompt>,
    rubric: Option<String>,
    /// The difficulty of each prompt, if it is given.
    difficulties: Option<Vec<f64>>,
}

/// A verdict on an answer and its opponent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct PairVerdict {
    /// 1 if the answer won, 0 if it lost, 0.5 for a tie.
    won: f64,
    /// Whether the judge said something else in the other order.
    inconsistent: bool,
    /// Whether it gave no verdict.
    skipped: bool,
    /// What it said.
    note: Option<String>,
}

impl PairVerdict {
    fn plain(won: f64) -> Self {
        Self { won, inconsistent: false, skipped: false, note: None }
    }

    fn of(vote: NewVote) -> Self {
        let said = |order: &str| vote.detail.get(order).and_then(|said| said.get("choice")).and_then(Value::as_str);
        let (skip, orders) = (Some(VoteChoice::Skip.name()), [said("ab"), said("ba")]);
        let won = match vote.choice {
            VoteChoice::A => 1.0,
            VoteChoice::B => 0.0,
            _ => 0.5,
        };
        let skipped = vote.choice == VoteChoice::Skip;
        Self { won, inconsistent: orders[0] != orders[1] && !orders.contains(&skip), skipped, note: vote.note }
    }
}

/// An answer of an item beside its opponent.
#[derive(Clone, Copy)]
struct Pair<'a> {
    item: usize,
    answer: &'a str,
    other: &'a str,
}

impl Comparisons {
    /// Prepares comparisons; loads no model. Fails if there is no such model, no rubric, or a difficulty that is no number.
    pub fn open(by: &PairComparison, task: &SuiteTask, rows: &[TaskRow], items: &[AskedItem]) -> Result<Self> {
        let rubric = match &by.judge {
            PairJudgeBy::Model { path, rubric, .. } => {
                if !is_model(path) {
                    return Err(Error::user(format!("{}: no model's directory", path.display()))
                        .hint("`judge` is an instruct model; a reward model is named by `reward`, with `by: reward`"));
                }
                rubric.as_deref().map(fsutil::read_to_string).transpose()?
            }
            PairJudgeBy::Command(spec) => {
                CommandJudge::new(spec.clone())?;
                None
            }
            PairJudgeBy::Reward { .. } => None,
        };
        let difficulties = by.difficulty.as_ref().map(|difficulty| {
            let of = |row: &TaskRow| at(&task.data, row.line, number(difficulty, row));
            rows.iter().map(of).collect::<Result<Vec<f64>>>()
        });
        Ok(Self {
            by: by.clone(),
            prompts: judged_prompts(rows, items),
            rubric,
            difficulties: difficulties.transpose()?,
        })
    }

    /// Compares the answers of all subjects, and adds the rates to their results. Of several samples, the first is compared.
    pub fn score(
        &self,
        answered: &AnsweredTask,
        rewards: Option<&Rewards>,
        results: &mut [SubjectResults],
        cache: &mut AnswerCache,
    ) -> Result<()> {
        let first =
            |subject: usize, item: usize| answered.answers[subject][item].scored.first().map_or("", String::as_str);
        if let (Some(earlier), Some(own)) = (answered.earlier, answered.answers.first())
            && earlier.len() != own.len()
        {
            return Err(Error::user(format!(
                "the baseline answered {} prompts, now there are {}",
                earlier.len(),
                own.len()
            ))
            .hint("were the files of rows changed meanwhile?"));
        }
        for (subject, results) in results.iter_mut().enumerate() {
            let items = answered.answers[subject].len();
            if subject == 0 && answered.earlier.is_none() && self.by.against == Opponent::Baseline {
                // Against itself: half.
                add_scores(results, RATE, vec![0.5; items]);
                let rate = mean_of(RATE, &results.answers);
                add_estimate(results, RATE, rate);
                continue;
            }
            let other = |item: usize| match self.by.against {
                Opponent::Baseline => answered.earlier.map_or_else(|| first(0, item), |earlier| &earlier[item].text),
                Opponent::Expected => answered.expected[item].first().map_or("", String::as_str),
            };
            let pairs: Vec<Pair> =
                (0..items).map(|item| Pair { item, answer: first(subject, item), other: other(item) }).collect();
            let verdicts = self.verdicts(answered, rewards, &pairs, cache)?;
            let skipped = verdicts.iter().filter(|verdict| verdict.skipped).count();
            if skipped > 0 {
                let why = verdicts.iter().find(|v| v.skipped).and_then(|v| v.note.clone()).unwrap_or_default();
                report::warn(format!(
                    "task `{}`: {skipped} of {items} pairs got no verdict and count as ties {why}",
                    answered.task.name
                ));
            }
            self.add(&pairs, &verdicts, results);
        }
        Ok(())
    }

    /// Adds the numbers of one subject.
    fn add(&self, pairs: &[Pair], verdicts: &[PairVerdict], results: &mut SubjectResults) {
        let of = |score: &dyn Fn(&PairVerdict) -> f64| verdicts.iter().map(score).collect::<Vec<f64>>();
        let truth = |holds: bool| f64::from(u8::from(holds));
        let length = |text: &str| text.chars().count() as f64;
        let comparisons: Vec<LengthComparison> = pairs
            .iter()
            .zip(verdicts)
            .map(|(pair, v)| LengthComparison {
                difference: length(pair.answer) - length(pair.other),
                difficulty: self.difficulties.as_ref().map_or(0.0, |all| all[pair.item]),
                won: v.won,
            })
            .collect();
        let at_equal_length =
            joint_estimate(AT_EQUAL_LENGTH, pairs.len(), |drawn| length_controlled_win_rate(&comparisons, drawn));
        let mut shares = vec![(RATE, of(&|v| v.won)), ("ties", of(&|v| truth(v.won == 0.5)))];
        if !matches!(self.by.judge, PairJudgeBy::Reward { .. }) {
            shares.push(("inconsistent", of(&|v| truth(v.inconsistent))));
        }
        for (name, scores) in shares {
            add_estimate(results, name, mean_estimate(name, &scores));
            add_scores(results, name, scores);
        }
        add_estimate(results, AT_EQUAL_LENGTH, at_equal_length);
        for (answer, verdict) in results.answers.iter_mut().zip(verdicts) {
            answer.notes.extend(verdict.note.clone());
        }
    }

    fn verdicts(
        &self,
        answered: &AnsweredTask,
        rewards: Option<&Rewards>,
        pairs: &[Pair],
        cache: &mut AnswerCache,
    ) -> Result<Vec<PairVerdict>> {
        match &self.by.judge {
            PairJudgeBy::Reward { margin } => {
                let rewards = rewards.ok_or_else(|| Error::bug("a comparison by rewards without any"))?;
                let asked: Vec<(usize, &str)> =
                    pairs.iter().flat_map(|pair| [(pair.item, pair.answer), (pair.item, pair.other)]).collect();
                let found = rewards.of(answered, &asked, cache)?;
                let won = |pair: &[f64]| match pair[0] - pair[1] {
                    difference if difference.abs() <= *margin => 0.5,
                    difference if difference > 0.0 => 1.0,
                    _ => 0.0,
                };
                Ok(found.chunks(2).map(|pair| PairVerdict::plain(won(pair))).collect())
            }
            PairJudgeBy::Command(spec) => {
                let mut judge = CommandJudge::new(spec.clone())?;
                // What it says is not kept: it may be another program next time.
                self.ask(&mut judge, answered, pairs, None, cache)
            }
            PairJudgeBy::Model { path, adapter, reasoning, .. } => {
                let folders: Vec<&Path> = std::iter::once(path.as_path()).chain(adapter.as_deref()).collect();
                let (device, kind) = (answered.model.device(), answered.model.kind());
                let identity = format!(
                    "{} {kind:?} {device:?} {reasoning} {}",
                    content_hash::hash(&folders)?,
                    self.rubric.as_deref().unwrap_or_default()
                );
                let known = pairs.iter().map(|pair| self.known(Some(&identity), pair, cache));
                if let Some(known) = known.collect::<Option<Vec<_>>>() {
                    return Ok(known);
                }
                let tokenizer = ChatTokenizer::load_for(path, adapter.as_deref(), &TemplateOptions::default())?;
                let model = models::open(path, adapter.as_slice(), device, kind)?;
                models::open::require_finite_adapters(&model, adapter.as_slice())?;
                let mut judge = LanguageJudge::new(&model, &tokenizer, self.rubric.clone(), *reasoning, json!(path))?;
                self.ask(&mut judge, answered, pairs, Some(&identity), cache)
            }
        }
    }

    fn key(&self, identity: &str, pair: &Pair) -> String {
        let asked = json!([self.prompts[pair.item].messages, pair.answer, pair.other]);
        key(identity, &asked.to_string(), &[])
    }

    /// Returns the verdict on a pair that is known, or whose answers are equal.
    fn known(&self, identity: Option<&str>, pair: &Pair, cache: &AnswerCache) -> Option<PairVerdict> {
        match pair.answer == pair.other {
            true => Some(PairVerdict::plain(0.5)),
            false => identity.and_then(|identity| cache.get(&self.key(identity, pair))),
        }
    }

    /// Asks a judge in both orders about the pairs whose verdict is unknown.
    fn ask(
        &self,
        judge: &mut dyn PairJudge,
        answered: &AnsweredTask,
        pairs: &[Pair],
        identity: Option<&str>,
        cache: &mut AnswerCache,
    ) -> Result<Vec<PairVerdict>> {
        let mut found: Vec<Option<PairVerdict>> = pairs.iter().map(|pair| self.known(identity, pair, cache)).collect();
        let open: Vec<usize> = (0..pairs.len()).filter(|i| found[*i].is_none()).collect();
        let bar = report::bar(open.len() as u64, &format!("{}, pairs", answered.task.name));
        for part in open.chunks(BATCH) {
            let records: Vec<(CandidatePair, [Candidate; 2])> =
                part.iter().map(|i| self.record(*i, &pairs[*i])).collect();
            let tasks: Vec<JudgeTask> = part
                .iter()
                .zip(&records)
                .map(|(i, (pair, [first, second]))| {
                    let prompt = &self.prompts[pairs[*i].item];
                    JudgeTask { pair, prompt, first, second }
                })
                .collect();
            let votes = collect_votes(judge, &tasks, JudgingOrder::Both, 0)?;
            let verdicts: Vec<PairVerdict> = votes.into_iter().map(PairVerdict::of).collect();
            if let Some(identity) = identity {
                let keyed = part.iter().zip(&verdicts).map(|(i, verdict)| (self.key(identity, &pairs[*i]), verdict));
                cache.add(keyed.collect())?;
            }
            for (i, verdict) in part.iter().zip(verdicts) {
                found[*i] = Some(verdict);
            }
            bar.inc(part.len() as u64);
        }
        bar.finish_and_clear();
        found.into_iter().map(|verdict| verdict.ok_or_else(|| Error::bug("a pair without a verdict"))).collect()
    }

    fn record(&self, id: usize, pair: &Pair) -> (CandidatePair, [Candidate; 2]) {
        let prompt = &self.prompts[pair.item];
        let candidates = [candidate(2 * id, prompt, pair.answer), candidate(2 * id + 1, prompt, pair.other)];
        let pair = CandidatePair {
            id: id as i64,
            prompt: prompt.id,
            a: candidates[0].id,
            b: candidates[1].id,
            overlap: 1,
            repeat_of: None,
            reason: "evaluation".into(),
        };
        (pair, candidates)
    }
}

/// Returns the difficulty of a row's prompt.
fn number(difficulty: &RowTemplate, row: &TaskRow) -> Result<f64> {
    let written = text(&difficulty.value(&row.columns)?)?;
    written.trim().parse().ok().filter(|x: &f64| x.is_finite()).ok_or_else(|| {
        Error::user(format!("`difficulty` is no number: `{written}`"))
            .hint("a column with a number for every prompt, or leave out `difficulty`")
    })
}

/// Fails if answers are to be compared with those of a baseline and there is none.
pub fn check_baseline(by: &PairComparison, subjects: usize) -> Result<()> {
    match by.against == Opponent::Baseline && subjects < 2 {
        true => Err(Error::user("`win_rate` compares answers with those of a baseline, and one model is evaluated")
            .hint("name what is compared with the base: --adapter NAME=DIR")
            .hint("or compare with the expected answers: `compare: { against: answer, … }`")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(choice: VoteChoice, ab: &str, ba: &str) -> PairVerdict {
        let detail = json!({ "ab": { "choice": ab }, "ba": { "choice": ba } });
        PairVerdict::of(NewVote { detail, ..NewVote::new(0, 0, choice) })
    }

    #[test]
    fn verdicts_count_wins_ties_and_contradictions() {
        assert_eq!(vote(VoteChoice::A, "a", "a"), PairVerdict::plain(1.0));
        assert_eq!(vote(VoteChoice::B, "b", "b"), PairVerdict::plain(0.0));
        assert_eq!(vote(VoteChoice::BothBad, "both_bad", "both_bad"), PairVerdict::plain(0.5));
        assert_eq!(vote(VoteChoice::Tie, "a", "b"), PairVerdict { inconsistent: true, ..PairVerdict::plain(0.5) });
        assert_eq!(vote(VoteChoice::Skip, "skip", "a"), PairVerdict { skipped: true, ..PairVerdict::plain(0.5) });
    }
}
