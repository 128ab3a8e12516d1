//! Stores a labelling project in an SQLite file or in PostgreSQL. The only place that knows SQL.
//!
//! When a writing method returns, its changes are on disk and survive SIGKILL and a loss of power. All calls block.
//! Every write is a transaction of its own, or part of the one that [`Store::write`] opens.

mod connection;
mod database;
mod open;
mod postgres;
mod records;
mod rows;
mod schema;
mod sqlite;
mod writer;

pub use connection::Store;
pub use writer::{StoreTransaction, VoteInsertion};
