//! What is changed inside one transaction of the store.

use super::database::{Bound, Database, Row};
use super::rows::{self, Shown, VOTE, json};
use super::{Given, Lease};
use crate::error::Result;
use crate::label::record::{NewVote, Vote};

/// Changes inside one transaction.
pub struct Writer<'a>(pub(super) &'a mut dyn Database);

impl Writer<'_> {
    /// Keeps a vote; the same request twice is one vote.
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

    /// The vote that a request of this annotator left, undone or not.
    pub fn vote_of(&mut self, annotator: i64, request: &str) -> Result<Option<Vote>> {
        let sql = format!("SELECT {VOTE} FROM votes WHERE annotator = $1 AND request = $2");
        let found = self.query(&sql, &[Bound::Int(annotator), Bound::Text(request)])?;
        found.into_iter().next().map(|mut row| rows::vote(&mut row)).transpose()
    }

    /// Takes a vote of this annotator back; it stays on record. None: there was no such vote that stood.
    pub fn undo(&mut self, annotator: i64, id: i64) -> Result<Option<Vote>> {
        let sql =
            format!("UPDATE votes SET undone = 1 WHERE id = $1 AND annotator = $2 AND undone = 0 RETURNING {VOTE}");
        let found = self.query(&sql, &[Bound::Int(id), Bound::Int(annotator)])?;
        found.into_iter().next().map(|mut row| rows::vote(&mut row)).transpose()
    }

    /// What a pair shows: its prompt, `a` and `b`.
    pub fn shown(&mut self, pair: i64) -> Result<Shown> {
        rows::shown(self.0, pair)
    }

    /// Notes the task that somebody has in hand; one a person.
    pub fn lease(&mut self, lease: &Lease) -> Result<()> {
        let sql = "INSERT INTO leases (annotator, pair, swapped, since) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (annotator) DO UPDATE \
                   SET pair = excluded.pair, swapped = excluded.swapped, since = excluded.since";
        let values = [lease.annotator, lease.pair, lease.swapped.into(), lease.since].map(Bound::Int);
        self.execute(sql, &values).map(drop)
    }

    /// Notes that somebody has no task in hand.
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
