//! Reads Label Studio's JSON export: tasks with `data` and `annotations`, whose results are pairwise choices.
//!
//! `value.selected` is `left` (the first answer) or `right` (the second). The Pairwise tag cannot express a tie: an
//! additional Choices tag with tie, equal, both or neither does.

use crate::data::source::RowColumns;
use crate::error::{Error, Result};
use crate::label::project::import::fields::{as_messages, new_prompt, own_id, prompt_and_answer_fields};
use crate::label::project::import::pick::{AnswerPick, pairwise_verdicts, parse_pick};
use crate::label::project::import::row::{ImportedAnswer, ImportedRow, LabelImportOptions};
use serde_json::Value;

/// Returns true if the columns are a task of Label Studio.
pub fn is_task(columns: &RowColumns) -> bool {
    columns.get("data").is_some_and(Value::is_object)
        && ["annotations", "completions"].iter().any(|k| columns.get(*k).is_some_and(Value::is_array))
}

/// Reads a task: prompt, answers and judgements.
pub fn item(columns: &RowColumns, options: &LabelImportOptions) -> Result<ImportedRow> {
    let data = columns.get("data").and_then(Value::as_object);
    let data = data.ok_or_else(|| Error::user("no object `data`, which a task of Label Studio has"))?;
    let (prompt, names) = prompt_and_answer_fields(data, options)?;
    let messages = as_messages(&data[&prompt])
        .ok_or_else(|| Error::user(format!("`data.{prompt}` holds no prompt: {}", data[&prompt])))?;
    let text = |name: &String| match &data[name] {
        Value::String(text) => Ok(ImportedAnswer { source: name.clone(), text: text.clone() }),
        other => Err(Error::user(format!("`data.{name}` holds {other}, expected text"))),
    };
    let answers: Vec<ImportedAnswer> = names.iter().map(text).collect::<Result<_>>()?;
    let mut said = Vec::new();
    let annotations = columns.get("annotations").or_else(|| columns.get("completions")).and_then(Value::as_array);
    for annotation in annotations.into_iter().flatten() {
        if annotation["was_cancelled"] == true {
            continue;
        }
        if let Some(pick) = picked(annotation, &names)? {
            said.extend(pairwise_verdicts(pick, names.len(), &format!("label-studio:{}", who(annotation))));
        }
    }
    // The task's own id identifies a row, not a prompt, so it is not used as the prompt's id.
    let mut rest = data.clone();
    rest.retain(|k, _| *k != prompt && !names.contains(k));
    Ok(ImportedRow { prompt: new_prompt(messages, own_id(data), rest), answers, verdicts: said })
}

/// Returns the choice of an annotation; `None` if it does not say which answer is better.
fn picked(annotation: &Value, names: &[String]) -> Result<Option<AnswerPick>> {
    let (mut chosen, mut tie) = (None, None);
    for result in annotation["result"].as_array().into_iter().flatten() {
        let value = &result["value"];
        match result["type"].as_str().unwrap_or_default() {
            "pairwise" => {
                let selected = value["selected"].as_str().unwrap_or_default();
                chosen = Some(match selected {
                    "left" => AnswerPick::One(0),
                    "right" => AnswerPick::One(1),
                    other => {
                        return Err(Error::user(format!(
                            "a pairwise result selects `{other}`, expected left or right"
                        )));
                    }
                });
            }
            "choices" => {
                for choice in value["choices"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    match parse_pick(choice, names) {
                        Some(p @ (AnswerPick::Tie | AnswerPick::BothBad)) => tie = Some(p),
                        Some(p @ AnswerPick::One(_)) if chosen.is_none() => chosen = Some(p),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(tie.or(chosen))
}

/// Returns who gave an annotation: email, id or name.
fn who(annotation: &Value) -> String {
    let by = &annotation["completed_by"];
    match by.get("email").or_else(|| by.get("id")).unwrap_or(by) {
        Value::String(name) => name.clone(),
        Value::Null => "unknown".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::record::vote::VoteChoice;
    use serde_json::json;

    #[test]
    fn pairwise_choices_and_ties() {
        let by = |who: Value, result: Value| json!({ "completed_by": who, "result": result });
        let pairwise = |side: &str| json!({ "type": "pairwise", "from_name": "pw", "to_name": "text1,text2", "value": { "selected": side } });
        let row = json!({
            "id": 12,
            "data": { "prompt": "Why?", "answer1": "A", "answer2": "B", "topic": "x" },
            "annotations": [
                by(json!(3), json!([pairwise("right")])),
                by(json!({ "id": 4, "email": "ann@example.org" }), json!([pairwise("left")])),
                by(json!(5), json!([pairwise("left"), { "type": "choices", "value": { "choices": ["Tie"] } }])),
                { "completed_by": 6, "was_cancelled": true, "result": [pairwise("left")] },
                by(json!(7), json!([])),
            ],
        });
        let Value::Object(columns) = row else { panic!() };
        assert!(is_task(&columns));
        let item = item(&columns, &LabelImportOptions::default()).unwrap();
        let said: Vec<(&str, VoteChoice)> = item.verdicts.iter().map(|v| (v.annotator.as_str(), v.choice)).collect();
        let expected = [
            ("label-studio:3", VoteChoice::B),
            ("label-studio:ann@example.org", VoteChoice::A),
            ("label-studio:5", VoteChoice::Tie),
        ];
        assert_eq!(said, expected);
        assert_eq!(json!(item.prompt.columns), json!({ "topic": "x" }));
    }
}
