//! Writes unpaired rows: one answer, good or bad.

use super::judged::{JudgedPair, assistant_messages, prompt_columns};
use crate::label::record::answer::{Candidate, StoredPrompt};
use crate::label::record::vote::VoteChoice;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Returns one row per answer, good or bad by the majority of its verdicts; counts undecided answers in `contradicted`.
pub(super) fn unpaired<'p>(kept: &[&JudgedPair<'p>], contradicted: &mut usize) -> Vec<(&'p StoredPrompt, Value)> {
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
