//! Rows as a model may have been trained on them: what is given, and what the loss was computed on.

use super::rows::{RowReader, TaskRow, at};
use crate::data::chat::ChatTokenizer;
use crate::data::encode::{Supervise, encode_row};
use crate::data::rows::{Record, RecordRow, RowFormat, RowTemplate, read_rows};
use crate::data::source;
use crate::error::{Error, Result};
use crate::eval::results::ItemInfo;
use crate::recipe::suite_file::RowLimit;
use std::path::Path;

/// A row as tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedRow {
    /// The line or number in the file, from 1.
    pub line: usize,
    /// Whether it is a plain text, of which only the first token is given.
    pub is_text: bool,
    /// What stands before the learnt tokens: a prompt, or the first token of a text. Not empty.
    pub given: Vec<u32>,
    /// The last answer of a conversation, or the rest of a text. Not empty.
    pub learnt: Vec<u32>,
}

impl TrainedRow {
    /// Reads the rows of a file, as many as `limit` says: texts made by a template, of the rows and columns that the task wants, or what the rows are
    /// in training.
    ///
    /// Errors: the file cannot be read, a template fails, a row has nothing to train on; rows as in training are to be chosen or changed.
    pub fn read(
        (path, wanted): (&Path, RowReader),
        limit: Option<RowLimit>,
        text: Option<&RowTemplate>,
        tokenizer: &ChatTokenizer,
    ) -> Result<Vec<Self>> {
        if let Some(template) = text {
            let one = |row: &TaskRow| {
                let text = at(path, row.line, template.render(&row.columns))?;
                Self::of(&RecordRow { line: row.line, record: Record::Text(text) }, path, tokenizer)
            };
            return wanted.read(path, limit)?.iter().map(one).collect();
        }
        if wanted.only.is_some() || !wanted.lists.is_empty() || !wanted.columns.is_empty() {
            return Err(Error::user("`rows`, `where` and `columns` without `text`: rows are read as in training")
                .hint("say which text a row has: `text: \"{{ text }}\"`"));
        }
        let (mut found, first) = (Vec::new(), RowLimit::first(limit));
        for file in source::files(path)? {
            let room = first.map(|first| first - found.len());
            if room == Some(0) {
                break;
            }
            let (_, records) = read_rows(&file, RowFormat::Auto, room)?;
            for record in &records {
                found.push(Self::of(record, &file, tokenizer)?);
            }
        }
        Ok(RowLimit::keep(limit, found))
    }

    fn of(row: &RecordRow, path: &Path, tokenizer: &ChatTokenizer) -> Result<Self> {
        let example = encode_row(row, path, tokenizer, Supervise::Last)?.examples.swap_remove(0);
        let places = || example.supervised.iter().enumerate().filter(|(_, learnt)| **learnt).map(|(i, _)| i);
        let (Some(begin), Some(last)) = (places().next(), places().last()) else {
            return at(path, row.line, Err(Error::bug("a row without a token to train on")));
        };
        Ok(Self {
            line: row.line,
            is_text: matches!(row.record, Record::Text(_)),
            given: example.ids[..begin].to_vec(),
            learnt: example.ids[begin..=last].to_vec(),
        })
    }
}

/// Describes an item that is made of tokens.
pub fn item(line: usize, prompt: String, expected: String) -> ItemInfo {
    ItemInfo { line, prompt, expected: vec![expected], category: None, group: None, choices: Vec::new() }
}

/// Fails unless all models are asked the same rows.
pub fn check_same(lines: &[usize], of_first: &[usize]) -> Result<()> {
    match lines == of_first {
        true => Ok(()),
        false => Err(Error::user("the models have different tokenizers, so that other rows are long enough for each")
            .hint("evaluate them one by one")),
    }
}
