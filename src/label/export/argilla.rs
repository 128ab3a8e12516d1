//! Writes records as Argilla does.

use super::judged::JudgedPair;
use crate::label::record::vote::VoteChoice;
use crate::label::results::verdict::VERDICTS;
use serde_json::{Map, Value, json};

/// Returns a record as in Argilla's export: fields, the responses to the question, and a suggestion with its score.
pub(super) fn argilla(j: &JudgedPair) -> Value {
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
    let people = j.votes.iter().map(|b| {
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
