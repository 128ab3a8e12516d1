//! Converts stored prompts and answers into conversations and token ids for a model.

use super::record::{Candidate, Prompt};
use crate::data::record::{self, Place};
use crate::data::{
    Answer, Asked, ChatTokenizer, Conversation, Item, Message, Record, Row, RowFormat, Supervise, Unpaired, Verdict,
};
use crate::error::{Error, Result};
use serde_json::Map;
use std::path::{Path, PathBuf};

/// Columns of a prompt's row that the chat template reads, in addition to the messages.
const BESIDE: [&str; 2] = ["tools", "chat_template_kwargs"];

/// Returns the turns up to the answer.
///
/// Errors: the prompt's messages cannot be read as a conversation.
pub fn conversation(prompt: &Prompt) -> Result<Conversation> {
    let mut columns = Map::from_iter([("messages".to_string(), prompt.messages.clone())]);
    columns.extend(BESIDE.iter().filter_map(|k| Some((k.to_string(), prompt.columns.get(*k)?.clone()))));
    let path = place(prompt);
    match record::read(columns, RowFormat::Messages, Place { path: &path, line: prompt.id.max(0) as usize })? {
        Record::Messages(talk) => Ok(talk),
        _ => Err(Error::bug("messages were read as something else")),
    }
}

/// Returns the pseudo path under which error messages name the prompt.
fn place(prompt: &Prompt) -> PathBuf {
    Path::new("prompt").join(&prompt.key)
}

fn row(prompt: &Prompt, record: Record) -> Row {
    Row { line: prompt.id.max(0) as usize, record }
}

/// Returns the token ids of the prompt, up to where the answer begins.
pub fn question(prompt: &Prompt, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
    let asked = Record::Prompt(Asked::Talk(conversation(prompt)?));
    let found = crate::data::Prompt::encode(&row(prompt, asked), &place(prompt), tokenizer, Supervise::default())?;
    found.examples.into_iter().next().map(|e| e.ids).ok_or_else(|| Error::bug("a prompt without tokens"))
}

/// Returns the token ids of a prompt with an answer, encoded as in training. A reward model scores them.
pub fn answered(prompt: &Prompt, answer: &Candidate, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
    let verdict = Verdict {
        prompt: Asked::Talk(conversation(prompt)?),
        answer: Answer::Talk(vec![Message::new("assistant", &answer.text)]),
        good: true,
    };
    let record = Record::Unpaired(verdict);
    let found = Unpaired::encode(&row(prompt, record), &place(prompt), tokenizer, Supervise::default())?;
    found.examples.first().map(|e| e.sequence().ids).ok_or_else(|| Error::bug("an answer without tokens"))
}
