//! Changes a project inside one transaction.

use super::database::{Bound, Database, Row};
use super::rows::{self, Shown, VOTE, json};
use super::{Given, Lease};
use crate::error::Result;
use crate::label::record::{NewVote, Vote};

/// An open transaction of the store.
pub struct Writer<'a>(pub(super) &'a mut dyn Database);

impl Writer<'_> {
    /// Inserts a vote, unless the same request was saved before or the annotator has already judged the pair.
    pub fn vote(&mut self, new: &NewVote) -> Result<Given> {
        let insert = format!(
            "INSERT INTO votes (pair, annotator, choice, strength, swapped, seconds, note, flagged, ratings, edited, \
             detail, created, request) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
             ON CONFLICT DO NOTHING RETURNING {VOTE}"
        );
        let (ratings, detail) = (json(&new.ratings)?, new.detail.to_string());
        let created = jiff::Timestamp::now().to_string();
        let values = [
            Bound::Int(new.pair),
            Bound::Int(new.annotator),
            Bound::Text(new.choice.name()),
            Bound::int(new.strength),
            Bound::Int(new.swapped.into()),
            Bound::real(new.seconds),
            Bound::text(new.note.as_deref()),
            Bound::Int(new.flagged.into()),
            Bound::Text(&ratings),
            Bound::text(new.edited.as_deref()),
            Bound::Text(&detail),
            Bound::Text(&created),
            Bound::text(new.request.as_deref()),
        ];
        if let Some(row) = self.query(&insert, &values)?.first_mut() {
            return rows::vote(row).map(Given::New);
        }
        let known = format!("SELECT {VOTE} FROM votes WHERE annotator = $1 AND request = $2");
        let found = self.query(&known, &[Bound::Int(new.annotator), Bound::text(new.request.as_deref())])?;
        match found.into_iter().next() {
            Some(mut row) => rows::vote(&mut row).map(Given::Known),
            None => Ok(Given::Judged),
        }
    }

    /// Returns the vote that this annotator's request saved, even if it was undone.
    pub fn vote_of(&mut self, annotator: i64, request: &str) -> Result<Option<Vote>> {
        let sql = format!("SELECT {VOTE} FROM votes WHERE annotator = $1 AND request = $2");
        let found = self.query(&sql, &[Bound::Int(annotator), Bound::Text(request)])?;
        found.into_iter().next().map(|mut row| rows::vote(&mut row)).transpose()
    }

    /// Undoes a vote of this annotator; it stays in the table. Returns `None` if there is no such vote or it is already
    /// undone.
    pub fn undo(&mut self, annotator: i64, id: i64) -> Result<Option<Vote>> {
        let sql =
            format!("UPDATE votes SET undone = 1 WHERE id = $1 AND annotator = $2 AND undone = 0 RETURNING {VOTE}");
        let found = self.query(&sql, &[Bound::Int(id), Bound::Int(annotator)])?;
        found.into_iter().next().map(|mut row| rows::vote(&mut row)).transpose()
    }

    /// Returns the prompt and the answers `a` and `b` of a pair.
    pub fn shown(&mut self, pair: i64) -> Result<Shown> {
        rows::shown(self.0, pair)
    }

    /// Saves the task that an annotator holds, replacing an earlier one.
    pub fn lease(&mut self, lease: &Lease) -> Result<()> {
        let sql = "INSERT INTO leases (annotator, pair, swapped, since) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (annotator) DO UPDATE \
                   SET pair = excluded.pair, swapped = excluded.swapped, since = excluded.since";
        let values = [lease.annotator, lease.pair, lease.swapped.into(), lease.since].map(Bound::Int);
        self.execute(sql, &values).map(drop)
    }

    /// Deletes the record of the task that an annotator holds.
    pub fn release(&mut self, annotator: i64) -> Result<()> {
        self.execute("DELETE FROM leases WHERE annotator = $1", &[Bound::Int(annotator)]).map(drop)
    }

    pub(super) fn execute(&mut self, sql: &str, values: &[Bound]) -> Result<u64> {
        self.0.execute(sql, values)
    }

    pub(super) fn query(&mut self, sql: &str, values: &[Bound]) -> Result<Vec<Row>> {
        self.0.query(sql, values)
    }
}
