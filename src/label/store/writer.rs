//! Changes a project inside one transaction.

use super::database::{Database, SqlParameter, SqlRow};
use super::rows::{self, PairContent, VOTE_COLUMNS, json};
use crate::error::Result;
use crate::label::record::lease::Lease;
use crate::label::record::vote::{NewVote, Vote};

/// Result of inserting a vote.
#[derive(Debug, Clone, PartialEq)]
pub enum VoteInsertion {
    /// The vote was inserted.
    New(Vote),
    /// The same request was saved before, as this vote.
    Repeated(Vote),
    /// This annotator has already judged the pair in another request.
    AlreadyJudged,
}

/// An open transaction of the store.
pub struct StoreTransaction<'a>(pub(super) &'a mut dyn Database);

impl StoreTransaction<'_> {
    /// Inserts a vote, unless the same request was saved before or the annotator has already judged the pair.
    pub fn vote(&mut self, new: &NewVote) -> Result<VoteInsertion> {
        let insert = format!(
            "INSERT INTO votes (pair, annotator, choice, strength, swapped, seconds, note, flagged, ratings, edited, \
             detail, created, request) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
             ON CONFLICT DO NOTHING RETURNING {VOTE_COLUMNS}"
        );
        let (ratings, detail) = (json(&new.ratings)?, new.detail.to_string());
        let created = jiff::Timestamp::now().to_string();
        let values = [
            SqlParameter::Int(new.pair),
            SqlParameter::Int(new.annotator),
            SqlParameter::Text(new.choice.name()),
            SqlParameter::int(new.strength),
            SqlParameter::Int(new.swapped.into()),
            SqlParameter::real(new.seconds),
            SqlParameter::text(new.note.as_deref()),
            SqlParameter::Int(new.flagged.into()),
            SqlParameter::Text(&ratings),
            SqlParameter::text(new.edited.as_deref()),
            SqlParameter::Text(&detail),
            SqlParameter::Text(&created),
            SqlParameter::text(new.request.as_deref()),
        ];
        if let Some(row) = self.query(&insert, &values)?.first_mut() {
            return rows::vote(row).map(VoteInsertion::New);
        }
        let known = format!("SELECT {VOTE_COLUMNS} FROM votes WHERE annotator = $1 AND request = $2");
        let found =
            self.query(&known, &[SqlParameter::Int(new.annotator), SqlParameter::text(new.request.as_deref())])?;
        match found.into_iter().next() {
            Some(mut row) => rows::vote(&mut row).map(VoteInsertion::Repeated),
            None => Ok(VoteInsertion::AlreadyJudged),
        }
    }

    /// Returns the vote that this annotator's request saved, even if it was undone.
    pub fn vote_by_request(&mut self, annotator: i64, request: &str) -> Result<Option<Vote>> {
        let sql = format!("SELECT {VOTE_COLUMNS} FROM votes WHERE annotator = $1 AND request = $2");
        let found = self.query(&sql, &[SqlParameter::Int(annotator), SqlParameter::Text(request)])?;
        found.into_iter().next().map(|mut row| rows::vote(&mut row)).transpose()
    }

    /// Undoes a vote of this annotator; it stays in the table. Returns `None` if there is no such vote or it is already
    /// undone.
    pub fn undo(&mut self, annotator: i64, id: i64) -> Result<Option<Vote>> {
        let sql = format!(
            "UPDATE votes SET undone = 1 WHERE id = $1 AND annotator = $2 AND undone = 0 RETURNING {VOTE_COLUMNS}"
        );
        let found = self.query(&sql, &[SqlParameter::Int(id), SqlParameter::Int(annotator)])?;
        found.into_iter().next().map(|mut row| rows::vote(&mut row)).transpose()
    }

    /// Returns the prompt and the answers `a` and `b` of a pair.
    pub fn shown(&mut self, pair: i64) -> Result<PairContent> {
        rows::shown(self.0, pair)
    }

    /// Saves the task that an annotator holds, replacing an earlier one.
    pub fn lease(&mut self, lease: &Lease) -> Result<()> {
        let sql = "INSERT INTO leases (annotator, pair, swapped, since) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (annotator) DO UPDATE \
                   SET pair = excluded.pair, swapped = excluded.swapped, since = excluded.since";
        let values = [lease.annotator, lease.pair, lease.swapped.into(), lease.since].map(SqlParameter::Int);
        self.execute(sql, &values).map(drop)
    }

    /// Deletes the record of the task that an annotator holds.
    pub fn delete_lease(&mut self, annotator: i64) -> Result<()> {
        self.execute("DELETE FROM leases WHERE annotator = $1", &[SqlParameter::Int(annotator)]).map(drop)
    }

    pub(super) fn execute(&mut self, sql: &str, values: &[SqlParameter]) -> Result<u64> {
        self.0.execute(sql, values)
    }

    pub(super) fn query(&mut self, sql: &str, values: &[SqlParameter]) -> Result<Vec<SqlRow>> {
        self.0.query(sql, values)
    }
}
