//! Writes ranked rows: the answers to a prompt from best to worst.

use super::judged::{JudgedPair, prompt_columns};
use crate::label::record::answer::{Candidate, StoredPrompt};
use crate::label::record::vote::VoteChoice;
use serde_json::{Value, json};
use std::collections::BTreeMap;

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
pub(super) fn ranked<'p>(kept: &[&JudgedPair<'p>]) -> Vec<(&'p StoredPrompt, Value)> {
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
