//! What the store asks of a database: statements with bound values, rows of plain cells, one lock for the project.
//!
//! SQL is written once, with `$1`, `$2`, … for values; nothing that came from outside ever stands in its text.

use crate::error::{Error, Result};

/// A bound value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound<'a> {
    Null,
    Int(i64),
    Real(f64),
    Text(&'a str),
}

impl<'a> Bound<'a> {
    pub fn text(value: Option<&'a str>) -> Self {
        value.map_or(Self::Null, Self::Text)
    }

    pub fn int(value: Option<i64>) -> Self {
        value.map_or(Self::Null, Self::Int)
    }

    pub fn real(value: Option<f64>) -> Self {
        value.map_or(Self::Null, Self::Real)
    }
}

/// A value that was read.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Int(i64),
    Real(f64),
    Text(String),
}

/// The cells of a row, taken from the left; a cell of another type than asked for is damage to the project.
pub struct Row(std::vec::IntoIter<Cell>);

impl Row {
    pub fn new(cells: Vec<Cell>) -> Self {
        Self(cells.into_iter())
    }

    pub fn int(&mut self) -> Result<i64> {
        match self.0.next() {
            Some(Cell::Int(n)) => Ok(n),
            other => Err(damaged("a whole number", other)),
        }
    }

    pub fn flag(&mut self) -> Result<bool> {
        self.int().map(|n| n != 0)
    }

    pub fn text(&mut self) -> Result<String> {
        match self.0.next() {
            Some(Cell::Text(text)) => Ok(text),
            other => Err(damaged("text", other)),
        }
    }

    pub fn int_or_null(&mut self) -> Result<Option<i64>> {
        match self.0.next() {
            Some(Cell::Null) => Ok(None),
            Some(Cell::Int(n)) => Ok(Some(n)),
            other => Err(damaged("a whole number or nothing", other)),
        }
    }

    pub fn real_or_null(&mut self) -> Result<Option<f64>> {
        match self.0.next() {
            Some(Cell::Null) => Ok(None),
            Some(Cell::Real(x)) => Ok(Some(x)),
            Some(Cell::Int(n)) => Ok(Some(n as f64)),
            other => Err(damaged("a number or nothing", other)),
        }
    }

    pub fn text_or_null(&mut self) -> Result<Option<String>> {
        match self.0.next() {
            Some(Cell::Null) => Ok(None),
            Some(Cell::Text(text)) => Ok(Some(text)),
            other => Err(damaged("text or nothing", other)),
        }
    }

    /// Text that is JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let text = self.text()?;
        serde_json::from_str(&text).map_err(|e| {
            let found = crate::fsutil::shortened(&text);
            Error::user(format!("a cell holds no readable JSON ({e}): {found}")).hint(DAMAGED)
        })
    }
}

const DAMAGED: &str = "the project was changed by another program: restore it from a copy";

fn damaged(expected: &str, found: Option<Cell>) -> Error {
    Error::user(format!("a row holds {found:?}, expected {expected}")).hint(DAMAGED)
}

/// A connection to where a project lies.
pub trait Database: Send {
    /// Where, as may be shown to anybody: no password.
    fn place(&self) -> String;
    /// Changes rows; how many.
    fn execute(&mut self, sql: &str, values: &[Bound]) -> Result<u64>;
    fn query(&mut self, sql: &str, values: &[Bound]) -> Result<Vec<Row>>;
    /// Several statements without values.
    fn script(&mut self, sql: &str) -> Result<()>;
    /// Begins a transaction that may write.
    fn begin(&mut self) -> Result<()>;
    /// Makes the transaction last: once this returns, neither a kill nor a loss of power undoes it.
    fn commit(&mut self) -> Result<()>;
    /// Forgets the transaction, where one is open.
    fn roll_back(&mut self);
    /// How a numbered primary key is declared.
    fn numbered(&self) -> &'static str;
    /// Whether the tables of a project are there.
    fn has_project(&mut self) -> Result<bool>;
    /// Looks for damage and takes the project for this process alone to serve, until the connection ends.
    fn own(&mut self) -> Result<()>;
    /// Connects again where the connection was lost, as owner where it was one.
    fn recover(&mut self) -> Result<()>;
}

/// A character that PostgreSQL cannot hold in text; refused everywhere, so that a project can move.
pub fn check_text(values: &[Bound]) -> Result<()> {
    for value in values {
        if let Bound::Text(text) = value
            && text.contains('\0')
        {
            return Err(Error::user(format!("text with a NUL character: {}", crate::fsutil::shortened(text)))
                .hint("remove the character U+0000 from the text"));
        }
    }
    Ok(())
}
