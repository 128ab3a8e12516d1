//! Converts rows from one format to another if this needs no content that the row does not have.

use super::conversation::{ChatMessage, Conversation};
use super::detect::RowPurpose;
use super::record::{AnswerContent, JudgedAnswer, Preference, PromptContent, Record};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// Formats that rows can be converted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetFormat {
    /// `messages`: all turns.
    Messages,
    /// `prompt` and `completion`.
    PromptCompletion,
    /// `prompt`, `chosen` and `rejected`.
    Preference,
    /// `prompt`, `completion` and `label`.
    Unpaired,
    /// `prompt` alone.
    Prompt,
}

impl TargetFormat {
    /// Returns what rows must contain to be converted to this format.
    pub fn purpose(self) -> RowPurpose {
        match self {
            TargetFormat::Preference => RowPurpose::Pairs,
            TargetFormat::Unpaired => RowPurpose::Verdicts,
            TargetFormat::Prompt => RowPurpose::Prompts,
            TargetFormat::Messages | TargetFormat::PromptCompletion => RowPurpose::Answers,
        }
    }
}

/// Converts a row. Returns no row if it has nothing to give (a bad answer, or one with `weight: 0`, where an answer to
/// train on is needed), and two rows if a pair becomes two judged answers.
///
/// Errors: the row lacks a part that the format needs.
pub fn convert_record(record: &Record, to: TargetFormat) -> Result<Vec<Value>> {
    let one = |row: Value| Ok(vec![row]);
    match to {
        TargetFormat::Preference => match record {
            Record::Preference(pair) => one(preference(pair)),
            _ => Err(Error::user("the row is not a pair of a chosen and a rejected answer")),
        },
        TargetFormat::Unpaired => match record {
            Record::Preference(pair) => Ok([(&pair.chosen, true), (&pair.rejected, false)]
                .map(|(answer, good)| unpaired_row(&pair.prompt, answer, good))
                .into()),
            Record::Unpaired(JudgedAnswer { prompt, answer, good }) => one(unpaired_row(prompt, answer, *good)),
            _ => Err(Error::user("the row has an answer without a label (good or bad)")),
        },
        TargetFormat::Prompt => {
            let (asked, _) = prompt_and_answer(record)?;
            one(Value::Object(prompt(&asked)))
        }
        TargetFormat::PromptCompletion | TargetFormat::Messages => {
            if matches!(record, Record::Unpaired(JudgedAnswer { good: false, .. })) {
                return Ok(Vec::new());
            }
            let (asked, answer) = match record {
                // All turns are kept. Only a row of prompt and completion must say which turn is the answer.
                Record::Messages(talk) if to == TargetFormat::Messages => {
                    return one(messages_row(&talk.messages, talk));
                }
                Record::Alpaca(task) if to == TargetFormat::Messages => {
                    let talk = task.conversation();
                    return one(messages_row(&talk.messages, &talk));
                }
                // A turn that was not trained on must not become one that is.
                Record::Messages(talk) if talk.messages.iter().any(|m| m.role == "assistant") => {
                    match last_trained_answer(talk) {
                        Some(found) => found,
                        None => return Ok(Vec::new()),
                    }
                }
                record => prompt_and_answer(record)?,
            };
            let answer = answer.ok_or_else(|| Error::user("the row has a prompt but no answer"))?;
            if to == TargetFormat::Messages {
                let (mut talk, answer) = as_conversation(asked, answer);
                talk.messages.extend(answer);
                return one(messages_row(&talk.messages, &talk));
            }
            let mut row = prompt(&asked);
            row.insert("completion".into(), answer_value(&answer));
            one(Value::Object(row))
        }
    }
}

/// Returns the last answer of a conversation that is trained on, and the messages before it as its prompt.
fn last_trained_answer(talk: &Conversation) -> Option<(PromptContent, Option<AnswerContent>)> {
    let learnt = |i: &usize| talk.messages[*i].role == "assistant" && !talk.excluded.contains(i);
    let end = (talk.prompt_len..talk.messages.len()).rev().find(learnt)?;
    let mut before = talk.clone();
    before.messages.truncate(end);
    Some((PromptContent::Talk(before), Some(AnswerContent::Talk(vec![talk.messages[end].clone()]))))
}

/// Returns the prompt of a row and its last answer, if it has one.
fn prompt_and_answer(record: &Record) -> Result<(PromptContent, Option<AnswerContent>)> {
    let of_talk = |talk: &Conversation| {
        let mut talk = talk.clone();
        let end = talk.messages.iter().rposition(|m| m.role == "assistant");
        let answer = end.map(|end| {
            let answer = talk.messages[end].clone();
            talk.messages.truncate(end);
            AnswerContent::Talk(vec![answer])
        });
        (PromptContent::Talk(talk), answer)
    };
    Ok(match record {
        Record::Messages(talk) => of_talk(talk),
        Record::Alpaca(task) => of_talk(&task.conversation()),
        Record::PromptCompletion { prompt, completion } => {
            (PromptContent::Text(prompt.clone()), Some(AnswerContent::Text(completion.clone())))
        }
        Record::Prompt(asked) => (asked.clone(), None),
        Record::Preference(pair) => (pair.prompt.clone(), Some(pair.chosen.clone())),
        Record::Unpaired(verdict) => (verdict.prompt.clone(), Some(verdict.answer.clone())),
        Record::Text(_) => return Err(Error::user("plain text has no prompt and no answer")),
    })
}

/// Returns prompt and answer as messages; text becomes a message of the user or of the assistant.
fn as_conversation(asked: PromptContent, answer: AnswerContent) -> (Conversation, Vec<ChatMessage>) {
    let talk = match asked {
        PromptContent::Talk(talk) => talk,
        PromptContent::Text(text) => {
            Conversation { messages: vec![ChatMessage::new("user", text)], ..Default::default() }
        }
    };
    let answer = match answer {
        AnswerContent::Talk(messages) => messages,
        AnswerContent::Text(text) => vec![ChatMessage::new("assistant", text)],
    };
    (talk, answer)
}

fn messages(list: &[ChatMessage]) -> Value {
    list.iter().map(ChatMessage::to_json).collect()
}

fn answer_value(answer: &AnswerContent) -> Value {
    match answer {
        AnswerContent::Text(text) => text.as_str().into(),
        AnswerContent::Talk(list) => messages(list),
    }
}

fn prompt(asked: &PromptContent) -> Map<String, Value> {
    let mut row = Map::new();
    match asked {
        PromptContent::Text(text) => drop(row.insert("prompt".into(), text.as_str().into())),
        PromptContent::Talk(talk) => {
            row.insert("prompt".into(), messages(&talk.messages));
            insert_tools_and_kwargs(&mut row, talk);
        }
    }
    row
}

fn insert_tools_and_kwargs(row: &mut Map<String, Value>, talk: &Conversation) {
    row.extend(talk.tools.clone().map(|tools| ("tools".to_string(), tools)));
    if !talk.kwargs.is_empty() {
        row.insert("chat_template_kwargs".into(), Value::Object(talk.kwargs.clone()));
    }
}

/// Returns a row of `messages`, with `weight: 0` on assistant turns that are not trained on.
fn messages_row(list: &[ChatMessage], talk: &Conversation) -> Value {
    let mut turns = messages(list);
    for i in
        (0..list.len()).filter(|i| talk.excluded.contains(i) || (*i < talk.prompt_len && list[*i].role == "assistant"))
    {
        turns[i]["weight"] = json!(0);
    }
    let mut row = Map::from_iter([("messages".to_string(), turns)]);
    insert_tools_and_kwargs(&mut row, talk);
    Value::Object(row)
}

fn preference(pair: &Preference) -> Value {
    let mut row = prompt(&pair.prompt);
    row.insert("chosen".into(), answer_value(&pair.chosen));
    row.insert("rejected".into(), answer_value(&pair.rejected));
    row.extend(pair.margin.map(|m| ("margin".to_string(), json!(m))));
    Value::Object(row)
}

fn unpaired_row(asked: &PromptContent, answer: &AnswerContent, good: bool) -> Value {
    let mut row = prompt(asked);
    row.insert("completion".into(), answer_value(answer));
    row.insert("label".into(), good.into());
    Value::Object(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rows::format::RowFormat;
    use crate::data::rows::read::read_record;
    use crate::data::source::RowPlace;

    fn rows(row: Value, format: RowFormat, to: TargetFormat) -> Result<Value> {
        let place = RowPlace { path: "rows.jsonl".as_ref(), line: 1 };
        let Value::Object(columns) = row else { panic!() };
        convert_record(&read_record(columns, format, place)?, to).map(Value::from)
    }

    #[test]
    fn rows_change_their_format_and_not_what_they_say() {
        let user = |text: &str| json!({ "role": "user", "content": text });
        let says = |text: &str| json!({ "role": "assistant", "content": text });
        let pair = json!({ "chosen": [user("q"), says("a")], "rejected": [user("q"), says("b")], "margin": 2 });
        assert_eq!(
            rows(pair.clone(), RowFormat::Preference, TargetFormat::Preference).unwrap(),
            json!([{ "prompt": [user("q")], "chosen": [says("a")], "rejected": [says("b")], "margin": 2.0 }])
        );
        assert_eq!(
            rows(pair.clone(), RowFormat::Preference, TargetFormat::Unpaired).unwrap(),
            json!([{ "prompt": [user("q")], "completion": [says("a")], "label": true },
                   { "prompt": [user("q")], "completion": [says("b")], "label": false }])
        );
        assert_eq!(
            rows(pair.clone(), RowFormat::Preference, TargetFormat::Messages).unwrap(),
            json!([{ "messages": [user("q"), says("a")], }])
        );
        assert_eq!(
            rows(pair, RowFormat::Preference, TargetFormat::Prompt).unwrap(),
            json!([{ "prompt": [user("q")] }])
        );
        let bad = json!({ "prompt": "q", "completion": "b", "label": false });
        assert_eq!(rows(bad, RowFormat::Unpaired, TargetFormat::PromptCompletion).unwrap(), json!([]));
        let task = json!({ "instruction": "q", "input": "x", "output": "a" });
        assert_eq!(
            rows(task, RowFormat::Alpaca, TargetFormat::PromptCompletion).unwrap(),
            json!([{ "prompt": [user("q\n\nx")], "completion": [says("a")] }])
        );
        let text = json!({ "prompt": "q", "completion": "a" });
        assert_eq!(
            rows(text.clone(), RowFormat::PromptCompletion, TargetFormat::Messages).unwrap(),
            json!([{ "messages": [user("q"), says("a")] }])
        );
        assert!(rows(text, RowFormat::PromptCompletion, TargetFormat::Preference).is_err());
        // An answer that is not trained on does not become one that is.
        let mut left_out = says("b");
        left_out["weight"] = json!(0);
        let talk = json!({ "messages": [user("q"), says("a"), user("r"), left_out] });
        assert_eq!(
            rows(talk, RowFormat::Messages, TargetFormat::PromptCompletion).unwrap(),
            json!([{ "prompt": [user("q")], "completion": [says("a")] }])
        );
        let none = json!({ "messages": [user("r"), left_out] });
        assert_eq!(rows(none.clone(), RowFormat::Messages, TargetFormat::PromptCompletion).unwrap(), json!([]));
        assert_eq!(rows(none.clone(), RowFormat::Messages, TargetFormat::Messages).unwrap(), json!([none]));
        let given = json!({ "prompt": [user("q"), says("old"), user("r")], "completion": [says("new")] });
        let mut old = says("old");
        old["weight"] = json!(0);
        assert_eq!(
            rows(given, RowFormat::PromptCompletion, TargetFormat::Messages).unwrap(),
            json!([{ "messages": [user("q"), old, user("r"), says("new")] }])
        );
    }
}
