//! Exports verdicts as training rows: pairs, ranked answers, single judged answers, or records for Argilla.
//!
//! Column names are those of TRL; additional columns record where a row comes from, under the names that other tools
//! use. Pure: takes a project and its verdicts, returns rows. Invariant: no prompt is in both the training and the
//! validation split, not even under another id or in another export with the same seed.

use super::aggregate::{PairVerdict, VERDICTS};
use super::project::{Project, ResolvedVote};
use super::record::{AnnotatorKind, Candidate, CandidatePair, StoredPrompt, VoteChoice};
use crate::rng;
use rand::RngExt;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The layout of exported rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelExportFormat {
    /// `prompt`, `chosen`, `rejected`, `margin`: one row per pair.
    Preference,
    /// `prompt`, `completions` from best to worst, their `scores` and `models`: one row per prompt.
    Ranked,
    /// `prompt`, `completion`, `label`: one row per answer.
    Unpaired,
    /// Records as Argilla writes them: one row per pair with all votes, and the verdict as a suggestion.
    Argilla,
}

/// Where a pair's margin comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarginSource {
    /// No column `margin`.
    None,
    /// The mean strength of the votes, where votes for the other answer are negative; rows without strengths have no
    /// margin.
    Strength,
    /// The difference between the probabilities of the chosen and the rejected answer (shares of votes, or the
    /// posterior).
    Agreement,
}

/// Options of the export.
#[derive(Debug, Clone)]
pub struct LabelExportOptions {
    pub format: LabelExportFormat,
    pub margin: MarginSource,
    /// Verdicts with a lower probability than this are left out.
    pub confidence: f64,
    /// Keep ties. In the preference format a tie becomes two rows, each answer chosen once, with margin 0; in the
    /// unpaired format both answers are good.
    pub ties: bool,
    /// Keep "both bad". In the unpaired format both answers are bad; the preference format cannot express it.
    pub both_bad: bool,
    /// Add the answers that annotators wrote as better ones: chosen over the winner, or over both answers.
    pub edits: bool,
    /// Share of prompts in the validation split.
    pub valid: f64,
    pub seed: u64,
}

/// Exported rows, and counts of what was left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ExportedRows {
    #[serde(skip)]
    pub train: Vec<Value>,
    #[serde(skip)]
    pub valid: Vec<Value>,
    /// Pairs with a verdict.
    pub pairs: usize,
    /// Pairs left out: ties, "both bad", and verdicts below the required probability.
    pub ties: usize,
    pub both_bad: usize,
    pub unsure: usize,
    /// Answers left out of the unpaired format because as many verdicts call them good as bad.
    pub contradicted: usize,
    /// Rows from answers that annotators wrote.
    pub edits: usize,
}

/// A pair with its prompt, answers, verdict and ballots.
struct JudgedPair<'p> {
    prompt: &'p StoredPrompt,
    pair: &'p CandidatePair,
    a: &'p Candidate,
    b: &'p Candidate,
    verdict: &'p PairVerdict,
    ballots: Vec<&'p ResolvedVote<'p>>,
}

impl<'p> JudgedPair<'p> {
    /// Returns the better and the worse answer; `None` if neither won.
    fn sides(&self) -> Option<(&'p Candidate, &'p Candidate)> {
        match self.verdict.choice {
            VoteChoice::A => Some((self.a, self.b)),
            VoteChoice::B => Some((self.b, self.a)),
            _ => None,
        }
    }

    /// Returns the columns that say who judged the pair and with which confidence.
    fn provenance(&self) -> Map<String, Value> {
        let kinds: BTreeSet<AnnotatorKind> = self.ballots.iter().map(|b| b.annotator.kind).collect();
        let kinds: Vec<&str> = kinds.iter().map(|k| k.name()).collect();
        let Value::Object(columns) = json!({
            "prompt_id": self.prompt.key,
            "pair_id": self.pair.id,
            "verdict": self.verdict.choice.name(),
            "confidence": self.verdict.confidence(),
            "votes": self.verdict.votes,
            "judged_by": kinds.join("+"),
            "adjudicated": self.verdict.adjudicated,
        }) else {
            return Map::new();
        };
        columns
    }
}

/// Returns an answer as a list of one assistant message.
fn assistant_messages(text: &str) -> Value {
    json!([{ "role": "assistant", "content": text }])
}

/// Returns a row's first columns: the prompt, and the columns that the chat template reads.
fn prompt_columns(prompt: &StoredPrompt) -> Map<String, Value> {
    let mut row = Map::from_iter([("prompt".to_string(), prompt.messages.clone())]);
    let beside = ["tools", "chat_template_kwargs"].iter();
    row.extend(beside.filter_map(|k| Some((k.to_string(), prompt.columns.get(*k)?.clone()))));
    row
}

/// Exports the verdicts as rows.
pub fn export(
    project: &Project,
    ballots: &[ResolvedVote],
    verdicts: &BTreeMap<i64, PairVerdict>,
    wanted: &LabelExportOptions,
) -> ExportedRows {
    let (prompts, candidates) = (project.prompts_by_id(), project.candidates_by_id());
    let mut by_pair: HashMap<i64, Vec<&ResolvedVote>> = HashMap::new();
    ballots.iter().filter(|b| !b.repeat).for_each(|b| by_pair.entry(b.pair.id).or_default().push(b));
    let judged = |pair| judged(pair, &prompts, &candidates, verdicts, &by_pair);
    let all: Vec<JudgedPair> = project.pairs.iter().filter_map(judged).collect();
    let mut out = ExportedRows { pairs: all.len(), ..ExportedRows::default() };
    let kept: Vec<&JudgedPair> = all.iter().filter(|j| out.keep(j, wanted)).collect();
    let rows: Vec<(&StoredPrompt, Value)> = match wanted.format {
        LabelExportFormat::Preference => kept.iter().flat_map(|j| preference(j, wanted, &mut out.edits)).collect(),
        LabelExportFormat::Argilla => kept.iter().map(|j| (j.prompt, argilla(j))).collect(),
        LabelExportFormat::Ranked => ranked(&kept),
        LabelExportFormat::Unpaired => unpaired(&kept, &mut out.contradicted),
    };
    for (prompt, row) in rows {
        let side = rng::stream(wanted.seed, &format!("label: split {}", prompt.messages), 0).random::<f64>();
        if side < wanted.valid { out.valid.push(row) } else { out.train.push(row) }
    }
    out
}

fn judged<'p>(
    pair: &'p CandidatePair,
    prompts: &HashMap<i64, &'p StoredPrompt>,
    candidates: &HashMap<i64, &'p Candidate>,
    verdicts: &'p BTreeMap<i64, PairVerdict>,
    ballots: &HashMap<i64, Vec<&'p ResolvedVote<'p>>>,
) -> Option<JudgedPair<'p>> {
    Some(JudgedPair {
        prompt: prompts.get(&pair.prompt)?,
        pair,
        a: candidates.get(&pair.a)?,
        b: candidates.get(&pair.b)?,
        verdict: verdicts.get(&pair.id)?,
        ballots: ballots.get(&pair.id).cloned().unwrap_or_default(),
    })
}

impl ExportedRows {
    /// Returns true if a pair is exported; otherwise counts it as left out. Argilla's records contain every verdict. A
    /// pair without a usable verdict stays if an annotator wrote a better answer.
    fn keep(&mut self, judged: &JudgedPair, wanted: &LabelExportOptions) -> bool {
        let edited = wanted.edits && judged.ballots.iter().any(|b| b.vote.edited.is_some());
        let left_out = match judged.verdict.choice {
            _ if wanted.format == LabelExportFormat::Argilla => return true,
            VoteChoice::Tie if !wanted.ties => &mut self.ties,
            VoteChoice::BothBad if !wanted.both_bad || wanted.format == LabelExportFormat::Preference => {
                &mut self.both_bad
            }
            _ if judged.verdict.confidence() < wanted.confidence => &mut self.unsure,
            _ => return true,
        };
        *left_out += 1;
        edited && wanted.format == LabelExportFormat::Preference
    }
}

/// Returns the preference rows of a pair; counts rows from annotators' own answers in `edits`.
fn preference<'p>(
    j: &JudgedPair<'p>,
    wanted: &LabelExportOptions,
    edits: &mut usize,
) -> Vec<(&'p StoredPrompt, Value)> {
    let row = |chosen: &str, rejected: &str, models: [&str; 2], margin: Option<f64>| {
        let mut row = prompt_columns(j.prompt);
        row.insert("chosen".into(), assistant_messages(chosen));
        row.insert("rejected".into(), assistant_messages(rejected));
        row.extend(margin.map(|m| ("margin".to_string(), json!(m))));
        row.insert("chosen_model".into(), json!(models[0]));
        row.insert("rejected_model".into(), json!(models[1]));
        row.extend(j.provenance());
        (j.prompt, Value::Object(row))
    };
    let margin = match wanted.margin {
        MarginSource::None => None,
        MarginSource::Strength => j.verdict.strength,
        MarginSource::Agreement => Some((j.verdict.share(VoteChoice::A) - j.verdict.share(VoteChoice::B)).abs()),
    };
    let mut rows = Vec::new();
    let sure = j.verdict.confidence() >= wanted.confidence;
    match j.sides().filter(|_| sure) {
        Some((better, worse)) => {
            rows.push(row(&better.text, &worse.text, [&better.source, &worse.source], margin));
        }
        None if j.verdict.choice == VoteChoice::Tie && wanted.ties && sure => {
            let none = (wanted.margin != MarginSource::None).then_some(0.0);
            rows.push(row(&j.a.text, &j.b.text, [&j.a.source, &j.b.source], none));
            rows.push(row(&j.b.text, &j.a.text, [&j.b.source, &j.a.source], none));
        }
        None => {}
    }
    if wanted.edits {
        for ballot in &j.ballots {
            let Some(text) = ballot.vote.edited.as_deref().filter(|t| !t.trim().is_empty()) else { continue };
            let before = j.sides().map_or(vec![j.a, j.b], |(better, _)| vec![better]);
            let by = format!("edit by {}", ballot.annotator.name);
            for worse in before.into_iter().filter(|c| c.text != text) {
                rows.push(row(text, &worse.text, [&by, &worse.source], None));
                *edits += 1;
            }
        }
    }
    rows
}

/// Returns for each candidate its points (1 for a win, 0.5 for a tie) and the number of its comparisons.
fn points<'p>(judged: &[&JudgedPair<'p>]) -> BTreeMap<i64, (&'p Candidate, f64, usize)> {
    let mut points: BTreeMap<i64, (&Candidate, f64, usize)> = BTreeMap::new();
    for j in judged {
        let won = match j.verdict.choice {
            VoteChoice::A => 1.0,
            VoteChoice::B => 0.0,
            _ => 0.5,
        };
        for (candidate, score) in [(j.a, won), (j.b, 1.0 - won)] {
            let entry = points.entry(candidate.id).or_insert((candidate, 0.0, 0));
            *entry = (candidate, entry.1 + score, entry.2 + 1);
        }
    }
    points
}

/// Returns one row per prompt, with its answers from best to worst.
fn ranked<'p>(kept: &[&JudgedPair<'p>]) -> Vec<(&'p StoredPrompt, Value)> {
    let mut prompts: BTreeMap<i64, Vec<&JudgedPair<'p>>> = BTreeMap::new();
    kept.iter().for_each(|j| prompts.entry(j.prompt.id).or_default().push(j));
    let row = |judged: Vec<&JudgedPair<'p>>| {
        let mut answers: Vec<(&Candidate, f64)> =
            points(&judged).into_values().map(|(c, score, n)| (c, score / n as f64)).collect();
        answers.sort_by(|x, y| y.1.total_cmp(&x.1).then(x.0.id.cmp(&y.0.id)));
        let each = |f: &dyn Fn(&(&Candidate, f64)) -> Value| answers.iter().map(f).collect::<Vec<Value>>();
        let mut row = prompt_columns(judged[0].prompt);
        row.insert("completions".into(), each(&|(c, _)| json!(c.text)).into());
        row.insert("scores".into(), each(&|(_, score)| json!(score)).into());
        row.insert("models".into(), each(&|(c, _)| json!(c.source)).into());
        row.insert("prompt_id".into(), json!(judged[0].prompt.key));
        row.insert("comparisons".into(), json!(judged.len()));
        (judged[0].prompt, Value::Object(row))
    };
    prompts.into_values().map(row).collect()
}

/// Returns one row per answer, good or bad by the majority of its verdicts; counts undecided answers in `contradicted`.
fn unpaired<'p>(kept: &[&JudgedPair<'p>], contradicted: &mut usize) -> Vec<(&'p StoredPrompt, Value)> {
    let mut said: BTreeMap<i64, (&Candidate, &JudgedPair<'p>, [usize; 2])> = BTreeMap::new();
    for j in kept {
        let labels = match j.verdict.choice {
            VoteChoice::A => [true, false],
            VoteChoice::B => [false, true],
            VoteChoice::BothBad => [false, false],
            _ => [true, true],
        };
        for (candidate, good) in [j.a, j.b].into_iter().zip(labels) {
            let entry = said.entry(candidate.id).or_insert((candidate, j, [0, 0]));
            entry.2[usize::from(good)] += 1;
        }
    }
    let mut rows = Vec::new();
    for (candidate, judged, [bad, good]) in said.into_values() {
        if bad == good {
            *contradicted += 1;
            continue;
        }
        let mut row = prompt_columns(judged.prompt);
        row.insert("completion".into(), assistant_messages(&candidate.text));
        row.insert("label".into(), json!(good > bad));
        row.insert("model".into(), json!(candidate.source));
        row.insert("prompt_id".into(), json!(judged.prompt.key));
        row.insert("good_verdicts".into(), json!(good));
        row.insert("bad_verdicts".into(), json!(bad));
        rows.push((judged.prompt, Value::Object(row)));
    }
    rows
}

/// Returns a record as in Argilla's export: fields, the responses to the question, and a suggestion with its score.
fn argilla(j: &JudgedPair) -> Value {
    let question = |m: &Value| m.get("content").and_then(Value::as_str).map(String::from);
    let turns = j.prompt.messages.as_array().map_or(&[][..], Vec::as_slice);
    let instruction = match turns {
        [one] => question(one).unwrap_or_default(),
        turns => {
            let line =
                |m: &Value| format!("{}: {}", m["role"].as_str().unwrap_or("user"), question(m).unwrap_or_default());
            turns.iter().map(line).collect::<Vec<_>>().join("\n")
        }
    };
    let people = j.ballots.iter().map(|b| {
        let status = if b.choice == VoteChoice::Skip { "discarded" } else { "submitted" };
        json!({ "user_id": b.annotator.name, "value": b.choice.name(), "status": status })
    });
    let shares: Map<String, Value> =
        VERDICTS.iter().map(|c| (c.name().to_string(), json!(j.verdict.share(*c)))).collect();
    json!({
        "id": j.pair.id.to_string(),
        "external_id": format!("{}-{}", j.prompt.key, j.pair.id),
        "status": "completed",
        "instruction": instruction,
        "generations-0": j.a.text,
        "generations-1": j.b.text,
        "preference": people.collect::<Vec<_>>(),
        "preference-suggestion": j.verdict.choice.name(),
        "preference-suggestion-metadata": { "type": "selection", "score": j.verdict.confidence(), "agent": "ft label" },
        "metadata": {
            "prompt_id": j.prompt.key, "model_a": j.a.source, "model_b": j.b.source, "probabilities": shares,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::aggregate::{Aggregation, aggregate};
    use crate::label::project::JudgeFilter;
    use crate::label::project::tests::{project, vote};

    fn wanted(format: LabelExportFormat) -> LabelExportOptions {
        let (margin, seed) = (MarginSource::Agreement, 7);
        LabelExportOptions {
            format,
            margin,
            confidence: 0.0,
            ties: false,
            both_bad: false,
            edits: false,
            valid: 0.0,
            seed,
        }
    }

    /// Three pairs, in this order: `a` (2 of 3 votes), a tie, both bad.
    fn judged() -> Project {
        let mut p = project(
            3,
            &[("ann", AnnotatorKind::Person), ("bob", AnnotatorKind::Person), ("cat", AnnotatorKind::Person)],
        );
        use VoteChoice::*;
        for (pair, votes) in [[A, A, B], [Tie, Tie, B], [BothBad, BothBad, BothBad]].into_iter().enumerate() {
            votes.into_iter().enumerate().for_each(|(i, c)| drop(vote(&mut p, pair as i64, i as i64, c).clone()));
        }
        p
    }

    fn rows(p: &Project, wanted: &LabelExportOptions) -> ExportedRows {
        let ballots = p.resolved_votes(&JudgeFilter::All);
        export(p, &ballots, &aggregate(&ballots, Aggregation::Majority), wanted)
    }

    #[test]
    fn pairs_have_a_winner_and_ties_come_as_asked() {
        let p = judged();
        let found = rows(&p, &wanted(LabelExportFormat::Preference));
        assert_eq!((found.pairs, found.train.len(), found.ties, found.both_bad), (3, 1, 1, 1));
        let row = &found.train[0];
        assert_eq!(row["chosen"], assistant_messages(&p.candidates[0].text));
        assert_eq!(row["rejected"], assistant_messages(&p.candidates[1].text));
        assert!((row["margin"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(
            (row["chosen_model"].as_str(), row["votes"].as_u64(), row["judged_by"].as_str()),
            (Some("x"), Some(3), Some("person"))
        );
        let found =
            rows(&p, &LabelExportOptions { ties: true, both_bad: true, ..wanted(LabelExportFormat::Preference) });
        assert_eq!(found.train.len(), 3, "a tie is a row each way round, two bad answers are none");
        assert_eq!(
            (found.train[1]["margin"].as_f64(), found.train[1]["chosen"] == found.train[2]["rejected"]),
            (Some(0.0), true)
        );
        let sure = rows(&p, &LabelExportOptions { confidence: 0.9, ..wanted(LabelExportFormat::Preference) });
        assert_eq!((sure.train.len(), sure.unsure), (0, 1));
    }

    #[test]
    fn edits_are_chosen_before_what_they_mend() {
        let mut p = judged();
        p.votes[0].edited = Some("better than a".into());
        p.votes[6].edited = Some("better than both".into());
        let found = rows(&p, &LabelExportOptions { edits: true, ..wanted(LabelExportFormat::Preference) });
        assert_eq!((found.train.len(), found.edits), (4, 3));
        let edited: Vec<(&str, &str)> = found.train[1..]
            .iter()
            .map(|r| (r["chosen"][0]["content"].as_str().unwrap(), r["chosen_model"].as_str().unwrap()))
            .collect();
        assert_eq!(edited[0], ("better than a", "edit by ann"));
        assert_eq!(found.train[1]["rejected"], assistant_messages(&p.candidates[0].text));
        assert_eq!(edited[1..], [("better than both", "edit by ann"); 2]);
    }

    #[test]
    fn judged_answers_ranks_and_records_hold_what_was_said() {
        let p = judged();
        let found = rows(&p, &LabelExportOptions { ties: true, both_bad: true, ..wanted(LabelExportFormat::Unpaired) });
        let labels: Vec<bool> = found.train.iter().map(|r| r["label"].as_bool().unwrap()).collect();
        assert_eq!(labels, [true, false, true, true, false, false]);
        let ranked = rows(&p, &wanted(LabelExportFormat::Ranked)).train;
        assert_eq!(
            (ranked.len(), &ranked[0]["scores"], &ranked[0]["models"]),
            (1, &json!([1.0, 0.0]), &json!(["x", "y"]))
        );
        let records = rows(&p, &wanted(LabelExportFormat::Argilla)).train;
        assert_eq!(records.len(), 3);
        assert_eq!(records[1]["preference"][2], json!({ "user_id": "cat", "value": "b", "status": "submitted" }));
        assert_eq!(
            (records[2]["preference-suggestion"].as_str(), records[0]["instruction"].as_str()),
            (Some("both_bad"), Some("question 0"))
        );
    }

    #[test]
    fn an_answer_that_won_and_lost_as_often_is_left_out() {
        let mut p = judged();
        p.candidates.push(Candidate { id: 50, prompt: 0, source: "z".into(), text: "z".into(), tokens: None });
        p.pairs.push(CandidatePair { id: 50, a: 0, b: 50, ..p.pairs[0].clone() });
        vote(&mut p, 50, 0, VoteChoice::B);
        let found = rows(&p, &wanted(LabelExportFormat::Unpaired));
        assert_eq!((found.train.len(), found.contradicted), (2, 1));
    }

    #[test]
    fn no_prompt_is_on_both_sides() {
        let mut p = project(200, &[("ann", AnnotatorKind::Person)]);
        // The same question under two ids.
        (0..100).for_each(|i| p.prompts[100 + i].messages = p.prompts[i].messages.clone());
        (0..200).for_each(|i| drop(vote(&mut p, i, 0, VoteChoice::A).clone()));
        let found = rows(&p, &LabelExportOptions { valid: 0.2, ..wanted(LabelExportFormat::Preference) });
        let asked = |rows: &[Value]| rows.iter().map(|r| r["prompt"].to_string()).collect::<BTreeSet<_>>();
        let (train, valid) = (asked(&found.train), asked(&found.valid));
        assert!(train.is_disjoint(&valid) && train.len() + valid.len() == 100);
        assert!((10..=30).contains(&valid.len()), "{}", valid.len());
        let again = rows(&p, &LabelExportOptions { valid: 0.2, ..wanted(LabelExportFormat::Ranked) });
        assert_eq!(asked(&again.valid), valid, "another export parts prompts the same way");
    }
}
