//! Converts rows from one format to another if this needs no content that the row does not have.

use super::items::Item;
use super::preference::{Answer, Asked, Preference, Verdict};
use super::record::{Conversation, Message, Record};
use super::{Example, Pair, Prompt, Unpaired, Want};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// Formats that rows can be converted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Messages,
    PromptCompletion,
    Preference,
    Unpaired,
    Prompt,
}

impl Target {
    /// Returns what rows must contain to be converted to this format.
    pub fn want(self) -> Want {
        match self {
            Target::Preference => Pair::WANT,
            Target::Unpaired => Unpaired::WANT,
            Target::Prompt => Prompt::WANT,
            Target::Messages | Target::PromptCompletion => Example::WANT,
        }
    }
}

/// Converts a row. Returns no row if it has nothing to give (a bad answer, or one with `weight: 0`, where an answer to
/// train on is needed), and two rows if a pair becomes two judged answers.
///
/// Errors: the row lacks a part that the format needs.
pub fn convert(record: &Record, to: Target) -> Result<Vec<Value>> {
    let one = |row: Value| Ok(vec![row]);
    match to {
        Target::Preference => match record {
            Record::Preference(pair) => one(preference(pair)),
            _ => Err(Error::user("the row is not a pair of a chosen and a rejected answer")),
        },
        Target::Unpaired => match record {
            Record::Preference(pair) => Ok([(&pair.chosen, true), (&pair.rejected, false)]
                .map(|(answer, good)| verdict(&pair.prompt, answer, good))
                .into()),
            Record::Unpaired(Verdict { prompt, answer, good }) => one(verdict(prompt, answer, *good)),
            _ => Err(Error::user("the row has an answer without a label (good or bad)")),
        },
        Target::Prompt => {
            let (asked, _) = question(record)?;
            one(Value::Object(prompt(&asked)))
        }
        Target::PromptCompletion | Target::Messages => {
            if matches!(record, Record::Unpaired(Verdict { good: false, .. })) {
                return Ok(Vec::new());
            }
            let (asked, answer) = match record {
                // All turns are kept. Only a row of prompt and completion must say which turn is the answer.
                Record::Messages(talk) if to == Target::Messages => return one(talk_row(&talk.messages, talk)),
                Record::Alpaca(task) if to == Target::Messages => {
                    let talk = task.conversation();
                    return one(talk_row(&talk.messages, &talk));
                }
                // A turn that was not trained on must not become one that is.
                Record::Messages(talk) if talk.messages.iter().any(|m| m.role == "assistant") => {
                    match learnt_answer(talk) {
                        Some(found) => found,
                        None => return Ok(Vec::new()),
                    }
                }
                record => question(record)?,
            };
            let answer = answer.ok_or_else(|| Error::user("the row has a prompt but no answer"))?;
            if to == Target::Messages {
                let (mut talk, answer) = as_talk(asked, answer);
                talk.messages.extend(answer);
                return one(talk_row(&talk.messages, &talk));
            }
            let mut row = prompt(&asked);
            row.insert("completion".into(), answer_value(&answer));
            one(Value::Object(row))
        }
    }
}

/// Returns the last answer of a conversation that is trained on, and the messages before it as its prompt.
fn learnt_answer(talk: &Conversation) -> Option<(Asked, Option<Answer>)> {
    let learnt = |i: &usize| talk.messages[*i].role == "assistant" && !talk.excluded.contains(i);
    let end = (talk.given..talk.messages.len()).rev().find(learnt)?;
    let mut before = talk.clone();
    before.messages.truncate(end);
    Some((Asked::Talk(before), Some(Answer::Talk(vec![talk.messages[end].clone()]))))
}

/// Returns the prompt of a row and its last answer, if it has one.
fn question(record: &Record) -> Result<(Asked, Option<Answer>)> {
    let of_talk = |talk: &Conversation| {
        let mut talk = talk.clone();
        let end = talk.messages.iter().rposition(|m| m.role == "assistant");
        let answer = end.map(|end| {
            let answer = talk.messages[end].clone();
            talk.messages.truncate(end);
            Answer::Talk(vec![answer])
        });
        (Asked::Talk(talk), answer)
    };
    Ok(match record {
        Record::Messages(talk) => of_talk(talk),
        Record::Alpaca(task) => of_talk(&task.conversation()),
        Record::PromptCompletion { prompt, completion } => {
            (Asked::Text(prompt.clone()), Some(Answer::Text(completion.clone())))
        }
        Record::Prompt(asked) => (asked.clone(), None),
        Record::Preference(pair) => (pair.prompt.clone(), Some(pair.chosen.clone())),
        Record::Unpaired(verdict) => (verdict.prompt.clone(), Some(verdict.answer.clone())),
        Record::Text(_) => return Err(Error::user("plain text has no prompt and no answer")),
    })
}

/// Returns prompt and answer as messages; text becomes a message of the user or of the assistant.
fn as_talk(asked: Asked, answer: Answer) -> (Conversation, Vec<Message>) {
    let talk = match asked {
        Asked::Talk(talk) => talk,
        Asked::Text(text) => Conversation { messages: vec![Message::new("user", text)], ..Default::default() },
    };
    let answer = match answer {
        Answer::Talk(messages) => messages,
        Answer::Text(text) => vec![Message::new("assistant", text)],
    };
    (talk, answer)
}

fn messages(list: &[Message]) -> Value {
    list.iter().map(Message::to_json).collect()
}

fn answer_value(answer: &Answer) -> Value {
    match answer {
        Answer::Text(text) => text.as_str().into(),
        Answer::Talk(list) => messages(list),
    }
}

fn prompt(asked: &Asked) -> Map<String, Value> {
    let mut row = Map::new();
    match asked {
        Asked::Text(text) => drop(row.insert("prompt".into(), text.as_str().into())),
        Asked::Talk(talk) => {
            row.insert("prompt".into(), messages(&talk.messages));
            beside(&mut row, talk);
        }
    }
    row
}

fn beside(row: &mut Map<String, Value>, talk: &Conversation) {
    row.extend(talk.tools.clone().map(|tools| ("tools".to_string(), tools)));
    if !talk.kwargs.is_empty() {
        row.insert("chat_template_kwargs".into(), Value::Object(talk.kwargs.clone()));
    }
}

/// Returns a row of `messages`, with `weight: 0` on assistant turns that are not trained on.
fn talk_row(list: &[Message], talk: &Conversation) -> Value {
    let mut turns = messages(list);
    for i in (0..list.len()).filter(|i| talk.excluded.contains(i) || (*i < talk.given && list[*i].role == "assistant"))
    {
        turns[i]["weight"] = json!(0);
    }
    let mut row = Map::from_iter([("messages".to_string(), turns)]);
    beside(&mut row, talk);
    Value::Object(row)
}

fn preference(pair: &Preference) -> Value {
    let mut row = prompt(&pair.prompt);
    row.insert("chosen".into(), answer_value(&pair.chosen));
    row.insert("rejected".into(), answer_value(&pair.rejected));
    row.extend(pair.margin.map(|m| ("margin".to_string(), json!(m))));
    Value::Object(row)
}

fn verdict(asked: &Asked, answer: &Answer, good: bool) -> Value {
    let mut row = prompt(asked);
    row.insert("completion".into(), answer_value(answer));
    row.insert("label".into(), good.into());
    Value::Object(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::RowFormat;
    use crate::data::record::{Place, read};

    fn rows(row: Value, format: RowFormat, to: Target) -> Result<Value> {
        let place = Place { path: "rows.jsonl".as_ref(), line: 1 };
        let Value::Object(columns) = row else { panic!() };
        convert(&read(columns, format, place)?, to).map(Value::from)
    }

    #[test]
    fn rows_change_their_format_and_not_what_they_say() {
        let user = |text: &str| json!({ "role": "user", "content": text });
        let says = |text: &str| json!({ "role": "assistant", "content": text });
        let pair = json!({ "chosen": [user("q"), says("a")], "rejected": [user("q"), says("b")], "margin": 2 });
        assert_eq!(
            rows(pair.clone(), RowFormat::Preference, Target::Preference).unwrap(),
            json!([{ "prompt": [user("q")], "chosen": [says("a")], "rejected": [says("b")], "margin": 2.0 }])
        );
        assert_eq!(
            rows(pair.clone(), RowFormat::Preference, Target::Unpaired).unwrap(),
            json!([{ "prompt": [user("q")], "completion": [says("a")], "label": true },
                   { "prompt": [user("q")], "completion": [says("b")], "label": false }])
        );
        assert_eq!(
            rows(pair.clone(), RowFormat::Preference, Target::Messages).unwrap(),
            json!([{ "messages": [user("q"), says("a")], }])
        );
        assert_eq!(rows(pair, RowFormat::Preference, Target::Prompt).unwrap(), json!([{ "prompt": [user("q")] }]));
        let bad = json!({ "prompt": "q", "completion": "b", "label": false });
        assert_eq!(rows(bad, RowFormat::Unpaired, Target::PromptCompletion).unwrap(), json!([]));
        let task = json!({ "instruction": "q", "input": "x", "output": "a" });
        assert_eq!(
            rows(task, RowFormat::Alpaca, Target::PromptCompletion).unwrap(),
            json!([{ "prompt": [user("q\n\nx")], "completion": [says("a")] }])
        );
        let text = json!({ "prompt": "q", "completion": "a" });
        assert_eq!(
            rows(text.clone(), RowFormat::PromptCompletion, Target::Messages).unwrap(),
            json!([{ "messages": [user("q"), says("a")] }])
        );
        assert!(rows(text, RowFormat::PromptCompletion, Target::Preference).is_err());
        // An answer that is not trained on does not become one that is.
        let mut left_out = says("b");
        left_out["weight"] = json!(0);
        let talk = json!({ "messages": [user("q"), says("a"), user("r"), left_out] });
        assert_eq!(
            rows(talk, RowFormat::Messages, Target::PromptCompletion).unwrap(),
            json!([{ "prompt": [user("q")], "completion": [says("a")] }])
        );
        let none = json!({ "messages": [user("r"), left_out] });
        assert_eq!(rows(none.clone(), RowFormat::Messages, Target::PromptCompletion).unwrap(), json!([]));
        assert_eq!(rows(none.clone(), RowFormat::Messages, Target::Messages).unwrap(), json!([none]));
        let given = json!({ "prompt": [user("q"), says("old"), user("r")], "completion": [says("new")] });
        let mut old = says("old");
        old["weight"] = json!(0);
        assert_eq!(
            rows(given, RowFormat::PromptCompletion, Target::Messages).unwrap(),
            json!([{ "messages": [user("q"), old, user("r"), says("new")] }])
        );
    }
}
