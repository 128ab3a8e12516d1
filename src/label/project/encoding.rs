//! Converts stored prompts and answers into conversations and token ids for a model.

use crate::data::chat::ChatTokenizer;
use crate::data::dataset::DatasetItem;
use crate::data::encode::{Supervise, UnpairedExample};
use crate::data::rows::{
    AnswerContent, ChatMessage, Conversation, JudgedAnswer, PromptContent, Record, RecordRow, RowFormat, read_record,
};
use crate::data::source::RowPlace;
use crate::error::{Error, Result};
use crate::label::record::answer::{Candidate, StoredPrompt};
use serde_json::Map;
use std::path::{Path, PathBuf};

/// Columns of a prompt's row that the chat template reads, in addition to the messages.
const TEMPLATE_COLUMNS: [&str; 2] = ["tools", "chat_template_kwargs"];

/// Returns the turns up to the answer.
///
/// Errors: the prompt's messages cannot be read as a conversation.
pub fn conversation(prompt: &StoredPrompt) -> Result<Conversation> {
    let mut columns = Map::from_iter([("messages".to_string(), prompt.messages.clone())]);
    columns.extend(TEMPLATE_COLUMNS.iter().filter_map(|k| Some((k.to_string(), prompt.columns.get(*k)?.clone()))));
    let path = prompt_path(prompt);
    match read_record(columns, RowFormat::Messages, RowPlace { path: &path, line: prompt.id.max(0) as usize })? {
        Record::Messages(talk) => Ok(talk),
        _ => Err(Error::bug("messages were read as something else")),
    }
}

/// Returns the pseudo path under which error messages name the prompt.
fn prompt_path(prompt: &StoredPrompt) -> PathBuf {
    Path::new("prompt").join(&prompt.key)
}

fn row(prompt: &StoredPrompt, record: Record) -> RecordRow {
    RecordRow { line: prompt.id.max(0) as usize, record }
}

/// Returns the token ids of the prompt, up to where the answer begins.
pub fn prompt_ids(prompt: &StoredPrompt, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
    let asked = Record::Prompt(PromptContent::Talk(conversation(prompt)?));
    let found = crate::data::encode::PromptExample::encode(
        &row(prompt, asked),
        &prompt_path(prompt),
        tokenizer,
        Supervise::default(),
    )?;
    found.examples.into_iter().next().map(|e| e.ids).ok_or_else(|| Error::bug("a prompt without tokens"))
}

/// Returns the token ids of a prompt with an answer, encoded as in training. A reward model scores them.
pub fn answered_ids(prompt: &StoredPrompt, answer: &Candidate, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
    let verdict = JudgedAnswer {
        prompt: PromptContent::Talk(conversation(prompt)?),
        answer: AnswerContent::Talk(vec![ChatMessage::new("assistant", &answer.text)]),
        good: true,
    };
    let record = Record::Unpaired(verdict);
    let found = UnpairedExample::encode(&row(prompt, record), &prompt_path(prompt), tokenizer, Supervise::default())?;
    found.examples.first().map(|e| e.sequence().ids).ok_or_else(|| Error::bug("an answer without tokens"))
}
