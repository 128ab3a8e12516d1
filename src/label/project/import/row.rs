//! Defines what is read from one row of a file: a prompt, its answers, and judgements of them.

use crate::error::Result;
use crate::label::record::answer::{JsonMap, NewPrompt};
use crate::label::record::vote::VoteChoice;
use crate::scrub::Scrubber;
use serde_json::{Map, Value};

/// The layout of an import file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LabelImportFormat {
    /// Detected from the columns of the first row.
    #[default]
    Auto,
    /// Prompts and answers in columns, as in ft's own data files.
    Rows,
    /// An export of Argilla: to_datasets, to_json or the older push to the Hub.
    Argilla,
    /// Label Studio's JSON export of a pairwise task.
    LabelStudio,
}

/// Options of an import.
#[derive(Debug, Clone, Default)]
pub struct LabelImportOptions {
    /// Layout of the file.
    pub format: LabelImportFormat,
    /// Source of answers whose row names none.
    pub source: Option<String>,
    /// The column or field with the prompt.
    pub prompt: Option<String>,
    /// The columns or fields with the answers, in their order.
    pub answers: Vec<String>,
    /// Argilla: the question whose responses say which answer is better.
    pub question: Option<String>,
}

/// The content of one row: a prompt, its answers, and judgements of them.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportedRow {
    /// The prompt.
    pub prompt: NewPrompt,
    /// The answers to it.
    pub answers: Vec<ImportedAnswer>,
    /// Judgements of the answers.
    pub verdicts: Vec<ImportedVerdict>,
}

/// An answer with its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedAnswer {
    /// Who wrote it: a model, or the column that it was in.
    pub source: String,
    /// The answer.
    pub text: String,
}

/// A judgement of two of the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedVerdict {
    /// Name of the annotator.
    pub annotator: String,
    /// Index of the first answer.
    pub a: usize,
    /// Index of the second answer.
    pub b: usize,
    /// Which of the two is better.
    pub choice: VoteChoice,
}

impl ImportedRow {
    /// Replaces personal data by pseudonyms in all texts. A key that is a hash of the content is computed again, so
    /// that it does not depend on the original text.
    pub fn scrub(&mut self, scrubber: &mut Scrubber) -> Result<()> {
        let by_content = NewPrompt::keyed_by_content(self.prompt.messages.clone(), JsonMap::new()).key;
        let mut row = Map::from_iter([
            ("prompt".to_string(), self.prompt.messages.take()),
            ("columns".to_string(), Value::Object(std::mem::take(&mut self.prompt.columns))),
            ("answers".to_string(), self.answers.iter().map(|a| a.text.as_str()).collect()),
        ]);
        if self.prompt.key != by_content {
            row.insert("id".into(), self.prompt.key.as_str().into());
        }
        scrubber.row(&mut row)?;
        let mut part = |name: &str| row.remove(name).unwrap_or_default();
        let (messages, columns, answers) = (part("prompt"), part("columns"), part("answers"));
        let columns = columns.as_object().cloned().unwrap_or_default();
        self.prompt = NewPrompt::keyed_by_content(messages, columns);
        if let Value::String(key) = part("id") {
            self.prompt.key = key;
        }
        let texts = answers.as_array().map_or(&[][..], Vec::as_slice);
        self.answers.iter_mut().zip(texts).for_each(|(a, t)| a.text = t.as_str().unwrap_or_default().into());
        Ok(())
    }
}
