//! What a file of rows asks: for each row a prompt with the expected answer, and the tokens whose loss is taken.
//!
//! The prompt is what stands before the last answer in the row as it would be trained, so that a model is asked in
//! exactly the tokens it learnt from.

use crate::data::record::Place;
use crate::data::{ChatTokenizer, Example, Message, Record, Row, RowFormat, Supervise, example, read_rows};
use crate::error::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// A prompt and its answer.
pub struct Asked {
    /// The prompt as the row has it: messages, or text.
    pub shown: Value,
    pub prompt: Vec<u32>,
    pub expected: String,
    /// Length of the expected answer with its stop token.
    pub tokens: usize,
}

/// One row.
pub struct EvalRow {
    pub line: usize,
    /// `None` for plain text, which asks nothing.
    pub asked: Option<Asked>,
    /// With the supervised tokens of training: every answer of a conversation, all of a text.
    pub examples: Vec<Example>,
}

impl EvalRow {
    /// The rows of a file, at most `limit`.
    pub fn read(path: &Path, limit: Option<usize>, tokenizer: &ChatTokenizer) -> Result<Vec<Self>> {
        let (_, rows) = read_rows(path, RowFormat::Auto, limit)?;
        rows.iter().map(|row| Self::of(row, path, tokenizer)).collect()
    }

    fn of(row: &Row, path: &Path, tokenizer: &ChatTokenizer) -> Result<Self> {
        let examples = example::encode_row(row, path, tokenizer, Supervise::Assistant)?.examples;
        let place = || Place { path, line: row.line };
        examples.iter().try_for_each(|e| tokenizer.check_embedded(&e.ids)).context(place)?;
        let shown = match &row.record {
            Record::Text(_) => return Ok(Self { line: row.line, asked: None, examples }),
            Record::Messages(talk) => before_last_answer(&talk.messages),
            Record::Alpaca(row) if tokenizer.has_template() => before_last_answer(&row.conversation().messages),
            Record::Alpaca(row) => row.prompt().into(),
            Record::PromptCompletion { prompt, .. } => prompt.as_str().into(),
            // Such rows have no example, so `encode_row` has refused them.
            Record::Prompt(_) | Record::Preference(_) | Record::Unpaired(_) => Value::Null,
        };
        let last = example::encode_row(row, path, tokenizer, Supervise::Last)?.examples.remove(0);
        let begin = last.supervised.iter().position(|s| *s).unwrap_or(last.ids.len());
        let length = last.supervised[begin..].iter().take_while(|s| **s).count();
        let expected = tokenizer.decode(&last.ids[begin..begin + length], true)?;
        let asked = Asked { shown, prompt: last.ids[..begin].to_vec(), expected, tokens: length };
        Ok(Self { line: row.line, asked: Some(asked), examples })
    }
}

fn before_last_answer(messages: &[Message]) -> Value {
    let end = messages.iter().rposition(|m| m.role == "assistant").unwrap_or(messages.len());
    messages[..end].iter().map(Message::to_json).collect()
}
