//! Reads rows of ft's own data files: a prompt in any known format with no answer, one answer, a list of answers, or a
//! pair.

use crate::data::rows::{
    AnswerContent as Said, ChatMessage, PromptContent, Record, RowPurpose, detect_format, read_record,
};
use crate::data::source::{RowColumns, RowPlace};
use crate::error::{Error, Result};
use crate::label::project::import::fields::{new_prompt, own_id};
use crate::label::project::import::row::{ImportedAnswer, ImportedRow, LabelImportOptions};
use serde_json::{Value, json};

/// Columns with several answers.
const LIST_COLUMNS: [&str; 6] = ["responses", "answers", "completions", "generations", "candidates", "outputs"];

/// Columns with one answer.
const ANSWER_COLUMNS: [&str; 4] = ["completion", "response", "answer", "output"];

/// Columns that name the source of the row's answer or answers.
const SOURCE_COLUMNS: [&str; 6] = ["source", "model", "model_name", "generation_model", "generation_models", "models"];

/// Reads a row: prompt and answers.
pub fn item(mut columns: RowColumns, options: &LabelImportOptions, place: RowPlace) -> Result<ImportedRow> {
    let id = own_id(&columns);
    let asked = options.prompt.as_deref().into_iter().chain(["instruction", "question", "query"]);
    let has_prompt = ["prompt", "messages", "conversations"].iter().any(|k| columns.contains_key(*k));
    let alpaca = columns.contains_key("instruction") && columns.contains_key("output");
    if options.prompt.is_some() || (!has_prompt && !alpaca && !columns.contains_key("chosen")) {
        for name in asked {
            if let Some(value) = columns.shift_remove(name) {
                columns.insert("prompt".into(), value);
                break;
            }
        }
    }
    let pair = columns.contains_key("chosen") && columns.contains_key("rejected");
    let want = if pair { RowPurpose::Pairs } else { RowPurpose::Prompts };
    let format = detect_format(&columns, want, place.path).map_err(|e| e.context(place.line))?;
    let (messages, ended) = split_record(read_record(columns.clone(), format, place)?, place)?;
    let mut answers = listed_answers(&mut columns, options, place)?;
    let said = columns.get("source").or_else(|| columns.get("model")).and_then(Value::as_str).map(String::from);
    let source = said.or_else(|| options.source.clone()).unwrap_or_else(|| "imported".into());
    match ended.as_slice() {
        [chosen, rejected] => {
            for (name, text) in [("chosen", chosen), ("rejected", rejected)] {
                let model = columns.get(&format!("{name}_model")).and_then(Value::as_str).unwrap_or(name);
                answers.push(ImportedAnswer { source: model.into(), text: text.clone() });
            }
        }
        texts => answers.extend(texts.iter().map(|text| ImportedAnswer { source: source.clone(), text: text.clone() })),
    }
    // A row with a bare prompt may have its answer in a separate column.
    if ended.is_empty() && answers.is_empty() {
        let text =
            ANSWER_COLUMNS.iter().find_map(|k| columns.shift_remove(*k)).and_then(|v| v.as_str().map(String::from));
        answers.extend(text.map(|text| ImportedAnswer { source, text }));
    }
    for used in ["prompt", "messages", "conversations", "instruction", "output", "completion", "chosen", "rejected"]
        .iter()
        .chain(&SOURCE_COLUMNS)
        .chain(&["prompt_id", "id"])
    {
        columns.shift_remove(*used);
    }
    answers.retain(|a| !a.text.trim().is_empty());
    Ok(ImportedRow { prompt: new_prompt(messages, id, columns), answers, verdicts: Vec::new() })
}

/// Returns the answers in columns with several answers, and in the columns named in the options.
fn listed_answers(
    columns: &mut RowColumns,
    options: &LabelImportOptions,
    place: RowPlace,
) -> Result<Vec<ImportedAnswer>> {
    let mut answers = Vec::new();
    for name in &options.answers {
        match columns.shift_remove(name) {
            Some(Value::String(text)) => answers.push(ImportedAnswer { source: name.clone(), text }),
            Some(Value::Array(list)) => {
                columns.insert("responses".into(), Value::Array(list));
            }
            _ => return Err(Error::user(format!("{place}: no text in the column `{name}`"))),
        }
    }
    let Some(name) = LIST_COLUMNS.iter().find(|k| columns.get(**k).is_some_and(Value::is_array)) else {
        return Ok(answers);
    };
    let list = columns.shift_remove(*name).unwrap_or_default();
    let models =
        SOURCE_COLUMNS.iter().find_map(|k| columns.get(*k)).and_then(Value::as_array).cloned().unwrap_or_default();
    for (i, value) in list.as_array().into_iter().flatten().enumerate() {
        let text = |v: &Value| {
            ["text", "content", "response", "completion"]
                .iter()
                .find_map(|k| v.get(*k))
                .and_then(Value::as_str)
                .map(String::from)
        };
        let own = ["source", "model"].iter().find_map(|k| value.get(*k)).and_then(Value::as_str);
        let source = own.or_else(|| models.get(i).and_then(Value::as_str)).or(options.source.as_deref());
        let text = value.as_str().map(String::from).or_else(|| text(value)).ok_or_else(|| {
            Error::user(format!("{place}: `{name}[{i}]`: expected text, or an object with `text` and `source`"))
        })?;
        answers.push(ImportedAnswer { source: source.map_or_else(|| format!("{name} {}", i + 1), String::from), text });
    }
    Ok(answers)
}

/// Splits a record into the messages up to its answer and the answers that it ends in.
fn split_record(record: Record, place: RowPlace) -> Result<(Value, Vec<String>)> {
    let talk = |mut messages: Vec<ChatMessage>| {
        let answer = messages.pop_if(|m| m.role == "assistant").map(|m| m.content);
        (messages, answer)
    };
    let asked = |asked: PromptContent| match asked {
        PromptContent::Text(text) => vec![ChatMessage::new("user", text)],
        PromptContent::Talk(talk) => talk.messages,
    };
    let said = |answer: Said| match answer {
        Said::Text(text) => text,
        Said::Talk(messages) => match messages.as_slice() {
            [one] => one.content.clone(),
            many => many.iter().map(|m| format!("{}: {}", m.role, m.content)).collect::<Vec<_>>().join("\n\n"),
        },
    };
    let (messages, answers) = match record {
        Record::Prompt(prompt) => (asked(prompt), Vec::new()),
        Record::Messages(c) => {
            let (messages, answer) = talk(c.messages);
            (messages, Vec::from_iter(answer))
        }
        Record::Alpaca(task) => {
            let (messages, answer) = talk(task.conversation().messages);
            (messages, Vec::from_iter(answer))
        }
        Record::PromptCompletion { prompt, completion } => (asked(PromptContent::Text(prompt)), vec![completion]),
        Record::Preference(p) => (asked(p.prompt), vec![said(p.chosen), said(p.rejected)]),
        Record::Unpaired(v) => (asked(v.prompt), vec![said(v.answer)]),
        Record::Text(_) => return Err(Error::user(format!("{place}: plain text contains no prompt"))),
    };
    if messages.iter().all(|m| m.content.trim().is_empty() && m.extra.is_empty()) {
        return Err(Error::user(format!("{place}: the prompt is empty")).hint("remove the row, or add a prompt"));
    }
    Ok((json!(messages.iter().map(ChatMessage::to_json).collect::<Vec<_>>()), answers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(row: Value, options: &LabelImportOptions) -> Result<ImportedRow> {
        let Value::Object(columns) = row else { panic!() };
        item(columns, options, RowPlace { path: Path::new("f.jsonl"), line: 3 })
    }

    fn texts(item: &ImportedRow) -> Vec<(&str, &str)> {
        item.answers.iter().map(|a| (a.source.as_str(), a.text.as_str())).collect()
    }

    #[test]
    fn rows_of_every_shape() {
        let o = LabelImportOptions::default();
        let plain = read(json!({ "id": 7, "prompt": "Why?", "topic": "x" }), &o).unwrap();
        assert_eq!((plain.prompt.key.as_str(), plain.answers.len()), ("7", 0));
        assert_eq!(plain.prompt.messages, json!([{ "role": "user", "content": "Why?" }]));
        assert_eq!(json!(plain.prompt.columns), json!({ "topic": "x" }));
        let one = read(json!({ "prompt": "Why?", "response": "So.", "model": "m1" }), &o).unwrap();
        assert_eq!(texts(&one), [("m1", "So.")]);
        let many =
            read(json!({ "instruction": "Why?", "generations": ["A", "B"], "generation_models": ["x", "y"] }), &o);
        assert_eq!(texts(&many.unwrap()), [("x", "A"), ("y", "B")]);
        let objects =
            read(json!({ "prompt": "Why?", "responses": [{ "text": "A", "source": "s" }, { "text": "B" }] }), &o);
        assert_eq!(texts(&objects.unwrap()), [("s", "A"), ("responses 2", "B")]);
        let pair = read(json!({ "prompt": "Why?", "chosen": "A", "rejected": "B", "chosen_model": "m" }), &o).unwrap();
        assert_eq!(texts(&pair), [("m", "A"), ("rejected", "B")]);
        let talk =
            json!({ "messages": [{ "role": "user", "content": "Why?" }, { "role": "assistant", "content": "So." }] });
        let talk =
            read(talk, &LabelImportOptions { source: Some("gold".into()), ..LabelImportOptions::default() }).unwrap();
        assert_eq!(texts(&talk), [("gold", "So.")]);
        assert_eq!(talk.prompt.messages, json!([{ "role": "user", "content": "Why?" }]));
        let named = LabelImportOptions {
            prompt: Some("q".into()),
            answers: vec!["x".into(), "y".into()],
            ..LabelImportOptions::default()
        };
        assert_eq!(texts(&read(json!({ "q": "Why?", "x": "A", "y": "B" }), &named).unwrap()), [("x", "A"), ("y", "B")]);
    }

    #[test]
    fn bad_rows_are_named() {
        for row in [json!({ "prompt": "" }), json!({ "answer": "x" }), json!({ "prompt": "Why?", "responses": [1] })] {
            let e = read(row.clone(), &LabelImportOptions::default()).unwrap_err();
            assert!(e.message().contains("f.jsonl") && e.message().contains('3'), "{row}: {e}");
        }
    }
}
