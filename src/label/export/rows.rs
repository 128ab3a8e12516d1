//! Chooses the verdicts to export, writes them in the wanted layout, and splits the rows into training and validation.
//!
//! Column names are those of TRL; additional columns record where a row comes from, under the names that other tools
//! use. Pure: takes a project and its verdicts, returns rows. Invariant: no prompt is in both the training and the
//! validation split, not even under another id or in another export with the same seed.

use super::argilla::argilla;
use super::judged::{JudgedPair, judged};
use super::options::{LabelExportFormat, LabelExportOptions};
use super::preference::preference;
use super::ranked::ranked;
use super::unpaired::unpaired;
use crate::label::project::snapshot::Project;
use crate::label::project::votes::ResolvedVote;
use crate::label::record::answer::StoredPrompt;
use crate::label::record::vote::VoteChoice;
use crate::label::results::verdict::PairVerdict;
use crate::rng;
use rand::RngExt;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Exported rows, and counts of what was left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ExportedRows {
    /// Rows of the training split.
    #[serde(skip)]
    pub train: Vec<Value>,
    /// Rows of the validation split.
    #[serde(skip)]
    pub valid: Vec<Value>,
    /// Pairs with a verdict.
    pub pairs: usize,
    /// Pairs left out because they are ties.
    pub ties: usize,
    /// Pairs left out because both answers are bad.
    pub both_bad: usize,
    /// Pairs left out because the probability of their verdict is too low.
    pub unsure: usize,
    /// Answers left out of the unpaired format because as many verdicts call them good as bad.
    pub contradicted: usize,
    /// Rows from answers that annotators wrote.
    pub edits: usize,
}

/// Exports the verdicts as rows.
pub fn export(
    project: &Project,
    votes: &[ResolvedVote],
    verdicts: &BTreeMap<i64, PairVerdict>,
    wanted: &LabelExportOptions,
) -> ExportedRows {
    let (prompts, candidates) = (project.prompts_by_id(), project.candidates_by_id());
    let mut by_pair: HashMap<i64, Vec<&ResolvedVote>> = HashMap::new();
    votes.iter().filter(|b| !b.repeat).for_each(|b| by_pair.entry(b.pair.id).or_default().push(b));
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

impl ExportedRows {
    /// Returns true if a pair is exported; otherwise counts it as left out. Argilla's records contain every verdict. A
    /// pair without a usable verdict stays if an annotator wrote a better answer.
    fn keep(&mut self, judged: &JudgedPair, wanted: &LabelExportOptions) -> bool {
        let edited = wanted.edits && judged.votes.iter().any(|b| b.vote.edited.is_some());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::export::judged::assistant_messages;
    use crate::label::export::options::MarginSource;
    use crate::label::project::fixture::{project, vote};
    use crate::label::project::votes::JudgeFilter;
    use crate::label::record::annotator::AnnotatorKind;
    use crate::label::record::answer::{Candidate, CandidatePair};
    use crate::label::results::verdict::{Aggregation, aggregate};
    use serde_json::json;
    use std::collections::BTreeSet;

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
        let votes = p.resolved_votes(&JudgeFilter::All);
        export(p, &votes, &aggregate(&votes, Aggregation::Majority), wanted)
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
