//! Interprets the columns of a row as a record of one of the known formats.
//!
//! A column that is missing or has the wrong type is an error that names file, line and key; nothing is guessed from an
//! incomplete row. Independent of file formats.

use super::conversation::Conversation;
use super::format::RowFormat;
use super::json_text::{as_list, is_messages_json};
use super::record::{AlpacaRow, Record};
use super::record_reader::RecordReader;
use crate::data::source::{RowColumns, RowPlace};
use crate::error::{Error, Result};
use serde_json::Value;

/// Reads the columns of a row as a record of `format`, which must not be `auto`. Errors name file, line and key.
pub fn read_record(columns: RowColumns, format: RowFormat, place: RowPlace) -> Result<Record> {
    let reader = RecordReader { place };
    match format {
        RowFormat::Auto => Err(Error::bug("a row was read before its format was known")),
        RowFormat::Messages | RowFormat::Sharegpt => reader.conversation(columns, format).map(Record::Messages),
        RowFormat::Alpaca => reader.alpaca(&columns).map(Record::Alpaca),
        RowFormat::PromptCompletion => reader.prompt_completion(columns),
        RowFormat::Text => reader.filled_text(&columns, "text").map(Record::Text),
        RowFormat::Prompt => reader.prompt_only(columns).map(Record::Prompt),
        RowFormat::Preference | RowFormat::Hh => reader.preference(columns, format).map(Record::Preference),
        RowFormat::Unpaired => reader.unpaired(columns).map(Record::Unpaired),
    }
}

impl RecordReader<'_> {
    fn alpaca(&self, columns: &RowColumns) -> Result<AlpacaRow> {
        let mut history = Vec::new();
        if let Some(value) = columns.get("history").filter(|v| !v.is_null()) {
            let pairs = as_list(value).ok_or_else(|| self.no_list("history", "a list of [question, answer]", value))?;
            for (i, pair) in pairs.iter().enumerate() {
                match pair.as_array().map(Vec::as_slice) {
                    Some([Value::String(asked), Value::String(answered)]) => {
                        history.push((asked.clone(), answered.clone()))
                    }
                    _ => return Err(self.wrong(&format!("history[{i}]"), "[question, answer]", pair)),
                }
            }
        }
        Ok(AlpacaRow {
            system: self.optional_text(columns, "system")?,
            history,
            instruction: self.filled_text(columns, "instruction")?,
            input: self.optional_text(columns, "input")?,
            output: self.filled_text(columns, "output")?,
        })
    }

    fn prompt_completion(&self, columns: RowColumns) -> Result<Record> {
        let side = |key: &str| match columns.get(key) {
            None => Err(self.missing(key, &columns)),
            Some(value @ (Value::String(_) | Value::Array(_))) => Ok(value),
            Some(other) => Err(self.wrong(key, "text or a list of messages", other)),
        };
        match (side("prompt")?, side("completion")?) {
            (Value::String(prompt), Value::String(answer))
                if !(is_messages_json(prompt) && is_messages_json(answer)) =>
            {
                Ok(Record::PromptCompletion {
                    prompt: prompt.clone(),
                    completion: self.filled_text(&columns, "completion")?,
                })
            }
            (prompt, completion) => {
                let mut talk = Conversation::default();
                for (key, value) in [("prompt", prompt), ("completion", completion)] {
                    let expected = "text or a list of messages, like the other column";
                    let turns = as_list(value).ok_or_else(|| self.no_list(key, expected, value))?;
                    if turns.is_empty() {
                        return Err(self.error(format!("key `{key}` has no message")));
                    }
                    talk.prompt_len = talk.messages.len();
                    for (i, turn) in turns.iter().enumerate() {
                        let at = format!("{key}[{i}]");
                        let message = self.turn(turn, &at)?;
                        self.push(&mut talk, message, &at)?;
                    }
                }
                self.read_tools_and_kwargs(&mut talk, &columns)?;
                Ok(Record::Messages(talk))
            }
        }
    }
}
