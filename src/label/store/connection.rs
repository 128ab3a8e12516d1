//! Runs queries and transactions on an open project.

use super::database::{Database, SqlParameter, SqlRow};
use super::writer::StoreTransaction;
use crate::error::{Context, Result};
use crate::label::record::answer::InsertCounts;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An open project.
pub struct Store {
    pub(super) database: Mutex<Box<dyn Database>>,
}

impl Store {
    /// Returns the file or the URL of the project, without the password, so that it may be shown.
    pub fn location(&self) -> String {
        self.lock().place()
    }

    /// Checks the project for damage and locks it, so that only this process hands out tasks until the store is
    /// dropped.
    ///
    /// Errors: another server holds the lock; the project is damaged.
    pub fn lock_for_serving(&self) -> Result<()> {
        self.lock().lock_for_serving()
    }

    /// Recovers after a failed write: rolls back an open transaction and reconnects if the connection was lost.
    pub fn recover(&self) -> Result<()> {
        self.lock().recover()
    }

    /// Runs `change` in one transaction: on success all its changes are on disk, on failure none.
    pub fn write<R>(&self, change: impl FnOnce(&mut StoreTransaction) -> Result<R>) -> Result<R> {
        let mut database = self.lock();
        database.begin()?;
        let done = change(&mut StoreTransaction(database.as_mut())).and_then(|value| database.commit().map(|()| value));
        if done.is_err() {
            database.roll_back();
        }
        done
    }

    /// Adds rows in one transaction. `insert` returns the number of rows that it inserted.
    pub(super) fn add<T>(
        &self,
        rows: &[T],
        mut insert: impl FnMut(&mut StoreTransaction, &T) -> Result<u64>,
    ) -> Result<InsertCounts> {
        self.write(|w| {
            let mut added = InsertCounts::default();
            for row in rows {
                match insert(w, row)? {
                    0 => added.known += 1,
                    _ => added.new += 1,
                }
            }
            Ok(added)
        })
    }

    pub(super) fn read<T>(&self, sql: &str, row: impl Fn(&mut SqlRow) -> Result<T>) -> Result<Vec<T>> {
        let rows = self.query(sql, &[])?;
        rows.into_iter().map(|mut r| row(&mut r)).collect::<Result<_>>().context(|| self.location())
    }

    pub(super) fn query(&self, sql: &str, values: &[SqlParameter]) -> Result<Vec<SqlRow>> {
        self.lock().query(sql, values)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Box<dyn Database>> {
        // A panic inside a transaction leaves it open; the next transaction then fails to begin, and nothing is
        // half-written.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
