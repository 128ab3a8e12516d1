//! Reads the prompts of `ft generate` from the command line or from a file, and tokenises them.

use crate::cli::shared::named_adapters::AdaptedModel;
use ft::data::chat::{ChatTokenizer, check_nothing_dropped};
use ft::data::rows::{ChatMessage, Conversation, Record, RowFormat, read_record};
use ft::data::source::{self, ColumnSelection, RowColumns, RowPlace};
use ft::error::{Context, Error, Result};
use ft::generate::answering_adapter::AnsweringAdapter;
use ft::report;
use serde_json::Value;
use std::path::Path;

/// The column in which a row names the adapter that answers it.
const ADAPTER: &str = "adapter";

/// A prompt as the user wrote it, and as the token ids that the model reads.
pub struct GenerationPrompt {
    /// The text or the messages, as written.
    pub prompt: Value,
    /// Token ids of the prompt.
    pub ids: Vec<u32>,
    /// Token ids that the answer begins with.
    pub prefix: Vec<u32>,
    /// Which adapter answers.
    pub adapter: AnsweringAdapter,
}

/// How a prompt becomes the text that the model reads.
#[derive(Clone, Copy)]
pub struct PromptReader<'a> {
    /// The model, and the adapters that rows may name.
    pub adapted: &'a AdaptedModel,
    /// The tokenizer of base or adapter, with its chat template.
    pub tokenizer: &'a ChatTokenizer,
    /// Send each text prompt as a user's turn.
    pub chat: bool,
    /// System message before each text prompt.
    pub system: Option<&'a str>,
    /// Text that every answer begins with.
    pub prefix: Option<&'a str>,
    /// In rows that end with the assistant's turn, drop that turn.
    pub drop_answer: bool,
}

impl PromptReader<'_> {
    /// Tokenises a text of the command line. Fails if the model has no embedding for one of its tokens.
    pub fn read_text(&self, text: &str) -> Result<GenerationPrompt> {
        let question = self.text_prompt(text)?;
        self.tokenizer.check_embedded(&question.ids)?;
        Ok(question)
    }

    /// Builds the prompt of a text, through the chat template with --chat.
    fn text_prompt(&self, text: &str) -> Result<GenerationPrompt> {
        let (prompt, adapter) = (text.into(), AnsweringAdapter::Active);
        if self.chat {
            let mut messages = Vec::new();
            messages.extend(self.system.map(|s| ChatMessage::new("system", s)));
            messages.push(ChatMessage::new("user", text));
            let rendered = self.tokenizer.render(&messages, true)?;
            let prefix = self.prefix_ids(&rendered)?;
            return Ok(GenerationPrompt { prompt, ids: self.tokenizer.encode_prompt(&rendered)?, prefix, adapter });
        }
        let ids = self.tokenizer.encode_plain_prompt(text)?;
        Ok(GenerationPrompt { prompt, ids, prefix: self.prefix_ids(text)?, adapter })
    }

    /// Returns the token ids of --prefix, as the text that follows `prompt`.
    fn prefix_ids(&self, prompt: &str) -> Result<Vec<u32>> {
        self.prefix.map_or(Ok(Vec::new()), |prefix| self.tokenizer.encode_answer_after(prompt, prefix))
    }

    /// Reads and tokenises the prompts of a file. Fails at the first row without a usable prompt, with file and line.
    pub fn read_file(&self, path: &Path) -> Result<Vec<GenerationPrompt>> {
        let (mut questions, mut ignored) = (Vec::new(), false);
        source::for_each_selected_chunk(ColumnSelection::Readable, path, None, |chunk| {
            for raw in chunk {
                let place = RowPlace { path, line: raw.line };
                let mut columns = raw.columns(path)?;
                ignored |= self.adapted.named.is_empty() && columns.get(ADAPTER).is_some_and(|v| !v.is_null());
                let question = match self.row_adapter(&mut columns).context(|| place)? {
                    AnsweringAdapter::Active => self.row_prompt(columns, place)?,
                    adapter @ AnsweringAdapter::Chosen(number) => {
                        let reader = Self { tokenizer: self.adapted.tokenizer_of(number), ..*self };
                        GenerationPrompt { adapter, ..reader.row_prompt(columns, place)? }
                    }
                };
                self.tokenizer.check_embedded(&question.ids).context(|| place)?;
                questions.push(question);
            }
            Ok(())
        })?;
        if ignored {
            report::warn(format!(
                "{}: the column `{ADAPTER}` has no effect: no adapter has a name; give some with --adapter NAME=DIR",
                path.display()
            ));
        }
        Ok(questions)
    }

    /// Takes the adapter that a row names out of its columns. Fails for a name that no adapter has.
    fn row_adapter(&self, columns: &mut RowColumns) -> Result<AnsweringAdapter> {
        if self.adapted.named.is_empty() {
            return Ok(AnsweringAdapter::Active);
        }
        Ok(AnsweringAdapter::Chosen(match columns.remove(ADAPTER) {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(self.adapted.number_of(&name)?),
            Some(other) => {
                return Err(Error::user(format!("`{ADAPTER}` must be the name of an adapter, found {other}"))
                    .hint("leave it out, or write null, for the base without an adapter"));
            }
        }))
    }

    /// Builds the prompt of one row.
    fn row_prompt(&self, mut columns: RowColumns, place: RowPlace) -> Result<GenerationPrompt> {
        let error = |message: String| Error::user(format!("{place}: {message}"));
        if let Some(Value::String(text)) = columns.get("prompt") {
            return self.text_prompt(text).context(|| place);
        }
        let key = ["prompt", "messages"]
            .into_iter()
            .find(|k| columns.get(*k).is_some_and(|v| !v.is_null()))
            .ok_or_else(|| {
                let found: Vec<String> = columns.keys().map(|k| format!("`{k}`")).collect();
                error(format!("no column `prompt` or `messages`; the row has {}", found.join(", ")))
            })?;
        if self.system.is_some() {
            return Err(error("--system applies to text prompts only, but this row has messages".into())
                .hint("put the system message into the row"));
        }
        let mut prompt = columns.remove(key).unwrap_or_default();
        columns.insert("messages".into(), prompt.clone());
        let Record::Messages(mut talk) = read_record(columns, RowFormat::Messages, place)? else {
            return Err(Error::bug("messages were read as something else"));
        };
        if self.drop_answer {
            let answered = talk.messages.iter().rev().take_while(|m| m.role == "assistant").count();
            talk.messages.truncate(talk.messages.len() - answered);
            if let Some(turns) = prompt.as_array_mut() {
                turns.truncate(turns.len().saturating_sub(answered));
            }
            if talk.messages.is_empty() {
                return Err(error("no message is left without the assistant's turns".into()).hint("remove that row"));
            }
        }
        if talk.messages.last().is_some_and(|m| m.role == "assistant") {
            return Err(error("the messages end with the assistant's turn, so there is nothing to answer".into())
                .hint("drop that turn with --drop-answer, or compare it with the model's answer: ft eval"));
        }
        let rendered = render_prompt(&talk, self.tokenizer).context(|| place)?;
        let prefix = self.prefix_ids(&rendered).context(|| place)?;
        let ids = self.tokenizer.encode_prompt(&rendered).context(|| place)?;
        Ok(GenerationPrompt { ids, prompt, prefix, adapter: AnsweringAdapter::Active })
    }
}

/// Renders the conversation up to the point where the model's answer begins.
fn render_prompt(talk: &Conversation, tokenizer: &ChatTokenizer) -> Result<String> {
    let template = tokenizer.template().ok_or_else(|| {
        Error::user("the model has no chat template, but the row has messages")
            .hint("use an instruct model, or rows with `prompt` as text")
    })?;
    let text = template.render(talk, talk.messages.len(), true)?;
    check_nothing_dropped(talk, &[&text], template)?;
    Ok(text)
}
