//! Defines what the store needs from a database: statements with bound values, rows of plain cells, and a lock.
//!
//! SQL is written once for all databases, with `$1`, `$2`, … for values. Input is always bound as a value and never
//! becomes part of the SQL text.

use crate::error::{Error, Result};

/// Returns the error for a second server of the same project.
pub fn served_already(place: &str, holder: &str) -> Error {
    let by = if holder.is_empty() { String::new() } else { format!(" ({holder})") };
    Error::user(format!("{place}: the project is being served already{by}"))
        .hint("people join the server that runs, each with a link of their own: ft label annotator PROJECT NAME")
        .hint("or stop that server first")
}

/// A value bound to a statement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SqlParameter<'a> {
    Null,
    Int(i64),
    Real(f64),
    Text(&'a str),
}

impl<'a> SqlParameter<'a> {
    /// Returns a text, or NULL.
    pub fn text(value: Option<&'a str>) -> Self {
        value.map_or(Self::Null, Self::Text)
    }

    /// Returns an integer, or NULL.
    pub fn int(value: Option<i64>) -> Self {
        value.map_or(Self::Null, Self::Int)
    }

    /// Returns a floating-point number, or NULL.
    pub fn real(value: Option<f64>) -> Self {
        value.map_or(Self::Null, Self::Real)
    }
}

/// A value read from a row.
#[derive(Debug, Clone, PartialEq)]
pub enum SqlValue {
    Null,
    Int(i64),
    Real(f64),
    Text(String),
}

/// The cells of a row, read from left to right. A cell of an unexpected type is an error: the project is damaged.
pub struct SqlRow(std::vec::IntoIter<SqlValue>);

impl SqlRow {
    pub fn new(cells: Vec<SqlValue>) -> Self {
        Self(cells.into_iter())
    }

    /// Reads an integer cell.
    pub fn int(&mut self) -> Result<i64> {
        match self.0.next() {
            Some(SqlValue::Int(n)) => Ok(n),
            other => Err(damaged("a whole number", other)),
        }
    }

    /// Reads an integer cell as a boolean: false if it is 0.
    pub fn flag(&mut self) -> Result<bool> {
        self.int().map(|n| n != 0)
    }

    /// Reads a text cell.
    pub fn text(&mut self) -> Result<String> {
        match self.0.next() {
            Some(SqlValue::Text(text)) => Ok(text),
            other => Err(damaged("text", other)),
        }
    }

    /// Reads an integer cell that may be NULL.
    pub fn int_or_null(&mut self) -> Result<Option<i64>> {
        match self.0.next() {
            Some(SqlValue::Null) => Ok(None),
            Some(SqlValue::Int(n)) => Ok(Some(n)),
            other => Err(damaged("a whole number or nothing", other)),
        }
    }

    /// Reads a floating-point cell that may be NULL.
    pub fn real_or_null(&mut self) -> Result<Option<f64>> {
        match self.0.next() {
            Some(SqlValue::Null) => Ok(None),
            Some(SqlValue::Real(x)) => Ok(Some(x)),
            Some(SqlValue::Int(n)) => Ok(Some(n as f64)),
            other => Err(damaged("a number or nothing", other)),
        }
    }

    /// Reads a text cell that may be NULL.
    pub fn text_or_null(&mut self) -> Result<Option<String>> {
        match self.0.next() {
            Some(SqlValue::Null) => Ok(None),
            Some(SqlValue::Text(text)) => Ok(Some(text)),
            other => Err(damaged("text or nothing", other)),
        }
    }

    /// Reads a text cell and parses it as JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let text = self.text()?;
        serde_json::from_str(&text).map_err(|e| {
            let found = crate::fsutil::excerpt(&text);
            Error::user(format!("a cell of the project is not valid JSON ({e}): {found}")).hint(DAMAGED)
        })
    }
}

const DAMAGED: &str = "the project was changed by another program: restore it from a copy";

fn damaged(expected: &str, found: Option<SqlValue>) -> Error {
    Error::user(format!("a row of the project contains {found:?}, expected {expected}")).hint(DAMAGED)
}

/// A connection to the database of a project.
pub trait Database: Send {
    /// Returns the file or the URL of the database, without the password.
    fn place(&self) -> String;
    /// Runs a statement and returns the number of changed rows.
    fn execute(&mut self, sql: &str, values: &[SqlParameter]) -> Result<u64>;
    /// Runs a statement and returns its rows.
    fn query(&mut self, sql: &str, values: &[SqlParameter]) -> Result<Vec<SqlRow>>;
    /// Runs several statements without values.
    fn script(&mut self, sql: &str) -> Result<()>;
    /// Begins a transaction that may write.
    fn begin(&mut self) -> Result<()>;
    /// Commits the transaction. Once this returns, the changes survive a kill and a loss of power.
    fn commit(&mut self) -> Result<()>;
    /// Rolls back the transaction, if one is open.
    fn roll_back(&mut self);
    /// Returns the SQL type of a numbered primary key.
    fn primary_key_sql(&self) -> &'static str;
    /// Returns true if the database contains a project.
    fn has_project(&mut self) -> Result<bool>;
    /// Checks for damage and locks the project until the connection ends, so that only this process serves it.
    fn lock_for_serving(&mut self) -> Result<()>;
    /// Rolls back an open transaction. Reconnects if the connection was lost, and takes the lock again if it was held.
    fn recover(&mut self) -> Result<()>;
}

/// Rejects text with U+0000. PostgreSQL cannot store this character; SQLite rejects it too, so that a project can be
/// moved between the two.
pub fn check_text(values: &[SqlParameter]) -> Result<()> {
    for value in values {
        if let SqlParameter::Text(text) = value
            && text.contains('\0')
        {
            return Err(Error::user(format!("text with a NUL character: {}", crate::fsutil::excerpt(text)))
                .hint("remove the character U+0000 from the text"));
        }
    }
    Ok(())
}
