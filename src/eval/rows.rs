//! Reads the rows of an evaluation: for each row a prompt with its expected answer, and the examples whose loss is
//! measured.
//!
//! The row is encoded as in training, and the prompt is everything before the last answer. So the model is prompted
//! with exactly the tokens that it was trained on.

use crate::data::chat::ChatTokenizer;
use crate::data::encode::{Example, Supervise, encode_row};
use crate::data::rows::{ChatMessage, Record, RecordRow, RowFormat, read_rows};
use crate::data::source::RowPlace;
use crate::error::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// A prompt and its expected answer.
pub struct EvalQuestion {
    /// The prompt as written in the row: messages, or text.
    pub prompt_as_written: Value,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Text of the expected answer.
    pub expected: String,
    /// Number of tokens of the expected answer, with its stop token.
    pub expected_tokens: usize,
}

/// One row of an evaluation.
pub struct EvalRow {
    /// Line in the file, counted from 1.
    pub line: usize,
    /// The prompt to answer; `None` for plain text, which has none.
    pub question: Option<EvalQuestion>,
    /// The tokenised row, supervised as in training: every answer of a conversation, all tokens of a text.
    pub examples: Vec<Example>,
}

impl EvalRow {
    /// Reads the rows of a file, at most `limit`.
    pub fn read(path: &Path, limit: Option<usize>, tokenizer: &ChatTokenizer) -> Result<Vec<Self>> {
        let (_, rows) = read_rows(path, RowFormat::Auto, limit)?;
        rows.iter().map(|row| Self::of(row, path, tokenizer)).collect()
    }

    fn of(row: &RecordRow, path: &Path, tokenizer: &ChatTokenizer) -> Result<Self> {
        let examples = encode_row(row, path, tokenizer, Supervise::Assistant)?.examples;
        let place = || RowPlace { path, line: row.line };
        examples.iter().try_for_each(|e| tokenizer.check_embedded(&e.ids)).context(place)?;
        let shown = match &row.record {
            Record::Text(_) => return Ok(Self { line: row.line, question: None, examples }),
            Record::Messages(talk) => before_last_answer(&talk.messages),
            Record::Alpaca(row) if tokenizer.has_template() => before_last_answer(&row.conversation().messages),
            Record::Alpaca(row) => row.prompt().into(),
            Record::PromptCompletion { prompt, .. } => prompt.as_str().into(),
            // Not reached: `encode_row` above fails for such rows, as they have no example.
            Record::Prompt(_) | Record::Preference(_) | Record::Unpaired(_) => Value::Null,
        };
        let last = encode_row(row, path, tokenizer, Supervise::Last)?.examples.remove(0);
        let begin = last.supervised.iter().position(|s| *s).unwrap_or(last.ids.len());
        let length = last.supervised[begin..].iter().take_while(|s| **s).count();
        let expected = tokenizer.decode(&last.ids[begin..begin + length], true)?;
        let asked = EvalQuestion {
            prompt_as_written: shown,
            prompt: last.ids[..begin].to_vec(),
            expected,
            expected_tokens: length,
        };
        Ok(Self { line: row.line, question: Some(asked), examples })
    }
}

fn before_last_answer(messages: &[ChatMessage]) -> Value {
    let end = messages.iter().rposition(|m| m.role == "assistant").unwrap_or(messages.len());
    messages[..end].iter().map(ChatMessage::to_json).collect()
}
