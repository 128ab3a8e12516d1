//! Converts table rows into records, and records into the JSON text of a column.

use super::database::{Database, SqlParameter, SqlRow};
use crate::error::{Error, Result};
use crate::label::record::annotator::{Annotator, AnnotatorKind};
use crate::label::record::answer::{Candidate, StoredPrompt};
use crate::label::record::vote::{Vote, VoteChoice};

/// Reads a prompt from its columns in the order of the table.
pub fn prompt(row: &mut SqlRow) -> Result<StoredPrompt> {
    Ok(StoredPrompt { id: row.int()?, key: row.text()?, messages: row.json()?, columns: row.json()? })
}

/// Reads a candidate answer from its columns in the order of the table.
pub fn candidate(row: &mut SqlRow) -> Result<Candidate> {
    let (id, prompt, source, text) = (row.int()?, row.int()?, row.text()?, row.text()?);
    Ok(Candidate { id, prompt, source, text, tokens: row.int_or_null()? })
}

/// The prompt and the answers `a` and `b` of a pair.
pub type PairContent = (StoredPrompt, Candidate, Candidate);

/// Reads the prompt and the answers of a pair.
///
/// Errors: there is no such pair.
pub fn shown(database: &mut dyn Database, pair: i64) -> Result<PairContent> {
    let sql = "SELECT q.id, q.key, q.messages, q.columns, a.id, a.prompt, a.source, a.text, a.tokens, \
               b.id, b.prompt, b.source, b.text, b.tokens FROM pairs p JOIN prompts q ON q.id = p.prompt \
               JOIN candidates a ON a.id = p.a JOIN candidates b ON b.id = p.b WHERE p.id = $1";
    let mut rows = database.query(sql, &[SqlParameter::Int(pair)])?;
    let row = rows.first_mut().ok_or_else(|| Error::user(format!("there is no pair {pair}")))?;
    Ok((prompt(row)?, candidate(row)?, candidate(row)?))
}

/// Columns of a vote, in the order in which [`vote`] reads them.
pub const VOTE_COLUMNS: &str = "id, pair, annotator, choice, strength, swapped, seconds, note, flagged, ratings, edited, detail, \
                    created, undone";

/// Reads a vote from the columns [`VOTE_COLUMNS`].
pub fn vote(row: &mut SqlRow) -> Result<Vote> {
    Ok(Vote {
        id: row.int()?,
        pair: row.int()?,
        annotator: row.int()?,
        choice: parse_name(row.text()?, VoteChoice::named)?,
        strength: row.int_or_null()?,
        swapped: row.flag()?,
        seconds: row.real_or_null()?,
        note: row.text_or_null()?,
        flagged: row.flag()?,
        ratings: row.json()?,
        edited: row.text_or_null()?,
        detail: row.json()?,
        created: row.text()?,
        undone: row.flag()?,
    })
}

/// Reads an annotator from its columns in the order of the table.
pub fn annotator(row: &mut SqlRow) -> Result<Annotator> {
    Ok(Annotator {
        id: row.int()?,
        name: row.text()?,
        kind: parse_name(row.text()?, AnnotatorKind::named)?,
        token_hash: row.text_or_null()?,
        detail: row.json()?,
    })
}

/// Converts a stored name into a value with `named`; fails if this version does not know the name.
pub fn parse_name<T>(name: String, named: impl Fn(&str) -> Option<T>) -> Result<T> {
    named(&name).ok_or_else(|| {
        Error::user(format!("the project contains the value `{name}`, which this version of ft does not know"))
    })
}

/// Returns a value as JSON text.
pub fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::bug(format!("settings or columns as JSON: {e}")))
}
