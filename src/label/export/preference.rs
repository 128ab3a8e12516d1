//! Writes preference rows: a chosen and a rejected answer.

use super::judged::{JudgedPair, assistant_messages, prompt_columns};
use super::options::{LabelExportOptions, MarginSource};
use crate::label::record::answer::StoredPrompt;
use crate::label::record::vote::VoteChoice;
use serde_json::{Value, json};

/// Returns the preference rows of a pair; counts rows from annotators' own answers in `edits`.
pub(super) fn preference<'p>(
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
        for resolved in &j.votes {
            let Some(text) = resolved.vote.edited.as_deref().filter(|t| !t.trim().is_empty()) else { continue };
            let before = j.sides().map_or(vec![j.a, j.b], |(better, _)| vec![better]);
            let by = format!("edit by {}", resolved.annotator.name);
            for worse in before.into_iter().filter(|c| c.text != text) {
                rows.push(row(text, &worse.text, [&by, &worse.source], None));
                *edits += 1;
            }
        }
    }
    rows
}
