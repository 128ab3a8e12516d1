//! Reads exports of Argilla: fields with a prompt and answers, and responses to a question about them.
//!
//! Three layouts: columns `QUESTION.responses` with `QUESTION.responses.users` (to_datasets of version 2), columns of
//! lists of `{user_id, value, status}` (the older push to the Hub), and `fields` with `responses` (JSON of both).

use crate::data::source::RowColumns;
use crate::error::{Error, Result};
use crate::label::project::import::fields::{as_messages, new_prompt, own_id, prompt_and_answer_fields};
use crate::label::project::import::pick::{AnswerPick, pairwise_verdicts, parse_pick};
use crate::label::project::import::row::{ImportedAnswer, ImportedRow, ImportedVerdict, LabelImportOptions};
use crate::label::record::vote::VoteChoice;
use serde_json::Value;
use std::collections::BTreeMap;

/// A response to a question: the user and the value.
type QuestionReply = (String, Value);

/// Returns true if the columns are a record of Argilla.
pub fn is_record(columns: &RowColumns) -> bool {
    columns.keys().any(|k| k.ends_with(".responses"))
        || (columns.contains_key("fields") && columns.contains_key("responses"))
        || columns.values().any(|v| entries(v).is_some_and(|mut list| list.any(is_reply)))
}

fn is_reply(entry: &Value) -> bool {
    entry.get("user_id").is_some() && entry.get("value").is_some()
}

/// Returns the objects of a non-empty list that contains nothing else.
fn entries(value: &Value) -> Option<impl Iterator<Item = &Value>> {
    value.as_array().filter(|list| !list.is_empty() && list.iter().all(Value::is_object)).map(|list| list.iter())
}

/// Reads a record: prompt, answers and judgements.
pub fn item(columns: &RowColumns, options: &LabelImportOptions) -> Result<ImportedRow> {
    let data = columns.get("fields").and_then(Value::as_object).unwrap_or(columns);
    let (prompt, names) = prompt_and_answer_fields(data, options)?;
    let messages = as_messages(&data[&prompt])
        .ok_or_else(|| Error::user(format!("the field `{prompt}` holds no prompt: {}", data[&prompt])))?;
    let text = |name: &String| match &data[name] {
        Value::String(text) => Ok(ImportedAnswer { source: name.clone(), text: text.clone() }),
        other => Err(Error::user(format!("the field `{name}` holds {other}, expected text"))),
    };
    let answers: Vec<ImportedAnswer> = names.iter().map(text).collect::<Result<_>>()?;
    let replies = replies(columns);
    let mut said = Vec::new();
    if let Some(question) = question(&replies, &names, options)? {
        for (user, value) in &replies[&question] {
            let annotator = format!("argilla:{user}");
            said.extend(match ranks(value, &names) {
                Some(ranks) => verdicts_by_rank(&ranks, &annotator),
                None => {
                    let label = label(value);
                    let pick = parse_pick(&label, &names).ok_or_else(|| {
                        Error::user(format!("question `{question}`: `{label}` names none of the answers {names:?}"))
                            .hint("name the answers in the question's order with --answer, or its question with --question")
                    })?;
                    pairwise_verdicts(pick, names.len(), &annotator)
                }
            });
        }
    }
    let metadata = columns.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    Ok(ImportedRow { prompt: new_prompt(messages, own_id(columns), metadata), answers, verdicts: said })
}

/// Returns the submitted responses by question.
fn replies(columns: &RowColumns) -> BTreeMap<String, Vec<QuestionReply>> {
    let mut all: BTreeMap<String, Vec<QuestionReply>> = BTreeMap::new();
    let submitted = |status: Option<&Value>| status.and_then(Value::as_str).is_none_or(|s| s == "submitted");
    let user = |entry: &Value| match &entry["user_id"] {
        Value::String(id) => id.clone(),
        Value::Null => "unknown".into(),
        other => other.to_string(),
    };
    let mut add = |question: &str, entry: &Value| {
        if is_reply(entry) && submitted(entry.get("status")) && !entry["value"].is_null() {
            all.entry(question.to_string()).or_default().push((user(entry), entry["value"].clone()));
        }
    };
    for (name, value) in columns {
        match (name.strip_suffix(".responses"), value) {
            (Some(question), Value::Array(values)) => {
                let beside = |what: &str| columns.get(&format!("{name}.{what}")).and_then(Value::as_array);
                for (i, value) in values.iter().enumerate() {
                    let of = |what: &str| beside(what).and_then(|l| l.get(i)).cloned().unwrap_or_default();
                    let entry = serde_json::json!({ "user_id": of("users"), "value": value, "status": of("status") });
                    add(question, &entry);
                }
            }
            (None, Value::Object(by_question)) if name == "responses" => {
                for (question, list) in by_question {
                    list.as_array().into_iter().flatten().for_each(|entry| add(question, entry));
                }
            }
            (None, Value::Array(list)) if name == "responses" => {
                for reply in list {
                    for (question, value) in reply["values"].as_object().into_iter().flatten() {
                        let value = value.get("value").unwrap_or(value);
                        let entry = serde_json::json!({ "user_id": reply["user_id"], "value": value, "status": reply["status"] });
                        add(question, &entry);
                    }
                }
            }
            (None, Value::Array(list)) => list.iter().for_each(|entry| add(name, entry)),
            _ => {}
        }
    }
    all
}

/// Returns the question that says which answer is better: the named one, or the only one whose responses all refer to
/// the answers.
fn question(
    all: &BTreeMap<String, Vec<QuestionReply>>,
    names: &[String],
    options: &LabelImportOptions,
) -> Result<Option<String>> {
    if let Some(name) = &options.question {
        return Ok(all.contains_key(name).then(|| name.clone()));
    }
    let about = |replies: &Vec<QuestionReply>| {
        replies.iter().all(|(_, v)| {
            ranks(v, names).is_some() || parse_pick(&label(v), names).is_some_and(|p| p != AnswerPick::Nothing)
        })
    };
    let found: Vec<&String> = all.iter().filter(|(_, replies)| about(replies)).map(|(name, _)| name).collect();
    match found.as_slice() {
        [one] => Ok(Some(one.to_string())),
        [] => Ok(None),
        many => Err(Error::user(format!("several questions could say which answer is better: {many:?}"))
            .hint("--question NAME")),
    }
}

fn label(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.first().map(label).unwrap_or_default(),
        Value::Object(map) => map.get("value").map(label).unwrap_or_default(),
        other => other.to_string(),
    }
}

/// Returns the rank of each answer (1 is the best) from a response to a ranking question.
fn ranks(value: &Value, names: &[String]) -> Option<Vec<i64>> {
    let list = value.as_array().filter(|l| !l.is_empty() && l.iter().all(|e| e.get("rank").is_some()))?;
    let mut ranks = vec![None; names.len()];
    for entry in list {
        if let Some(AnswerPick::One(i)) = parse_pick(&label(&entry["value"]), names) {
            ranks[i] = entry["rank"].as_i64();
        }
    }
    ranks.into_iter().collect()
}

fn verdicts_by_rank(ranks: &[i64], annotator: &str) -> Vec<ImportedVerdict> {
    let twos = (0..ranks.len()).flat_map(|a| (a + 1..ranks.len()).map(move |b| (a, b)));
    let choice = |a: usize, b: usize| match ranks[a].cmp(&ranks[b]) {
        std::cmp::Ordering::Less => VoteChoice::A,
        std::cmp::Ordering::Equal => VoteChoice::Tie,
        std::cmp::Ordering::Greater => VoteChoice::B,
    };
    twos.map(|(a, b)| ImportedVerdict { annotator: annotator.to_string(), a, b, choice: choice(a, b) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(row: Value) -> Result<ImportedRow> {
        let Value::Object(columns) = row else { panic!() };
        assert!(is_record(&columns), "{columns:?}");
        item(&columns, &LabelImportOptions::default())
    }

    fn said(item: &ImportedRow) -> Vec<(&str, VoteChoice)> {
        item.verdicts.iter().map(|v| (v.annotator.as_str(), v.choice)).collect()
    }

    #[test]
    fn three_layouts_say_the_same() {
        let flat = json!({
            "id": "r1", "status": "completed", "instruction": "Why?", "response-1": "A", "response-2": "B",
            "preference.responses": ["response-2", "tie", "response-1"], "preference.responses.users": ["u1", "u2", "u3"],
            "preference.responses.status": ["submitted", "submitted", "draft"], "comment.responses": ["so", "so", "so"],
        });
        let hub = json!({
            "external_id": "r1", "instruction": "Why?", "response-1": "A", "response-2": "B",
            "preference": [
                { "user_id": "u1", "value": "response-2", "status": "submitted" },
                { "user_id": "u2", "value": "tie", "status": "submitted" },
                { "user_id": "u3", "value": "response-1", "status": "discarded" },
            ],
        });
        let nested = json!({
            "id": "r1", "fields": { "instruction": "Why?", "response-1": "A", "response-2": "B" },
            "responses": { "preference": [{ "user_id": "u1", "value": "response-2" }, { "user_id": "u2", "value": "tie" }] },
        });
        let older = json!({
            "id": "r1", "fields": { "instruction": "Why?", "response-1": "A", "response-2": "B" },
            "responses": [
                { "user_id": "u1", "status": "submitted", "values": { "preference": { "value": "2" } } },
                { "user_id": "u2", "status": "submitted", "values": { "preference": { "value": "Tie" } } },
            ],
        });
        for row in [flat, hub, nested, older] {
            let item = read(row.clone()).unwrap();
            assert_eq!(item.prompt.key, "r1", "{row}");
            assert_eq!(item.answers.len(), 2, "{row}");
            assert_eq!(said(&item), [("argilla:u1", VoteChoice::B), ("argilla:u2", VoteChoice::Tie)], "{row}");
        }
    }

    #[test]
    fn rankings_become_all_twos() {
        let item = read(json!({
            "prompt": "Why?", "generation-0": "A", "generation-1": "B", "generation-2": "C",
            "order": [{ "user_id": 4, "status": "submitted", "value": [
                { "value": "generation-2", "rank": 1 }, { "value": "generation-0", "rank": 2 }, { "value": "generation-1", "rank": 2 },
            ] }],
        }))
        .unwrap();
        let twos: Vec<(usize, usize, VoteChoice)> = item.verdicts.iter().map(|v| (v.a, v.b, v.choice)).collect();
        assert_eq!(twos, [(0, 1, VoteChoice::Tie), (0, 2, VoteChoice::B), (1, 2, VoteChoice::B)]);
    }
}
