//! Stores a labelling project in an SQLite file or in PostgreSQL. The only place that knows SQL.
//!
//! When a writing method returns, its changes are on disk and survive SIGKILL and a loss of power. All calls block.
//! Every write is a transaction of its own, or part of the one that [`Store::write`] opens.
//!
//! `open` creates, opens and migrates a project (`schema` has its tables); `connection` runs queries, `records` reads
//! and adds records, `writer` changes them inside a transaction, `rows` converts them. `database` defines what a
//! database must offer; `sqlite` and `postgres` implement it.

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
