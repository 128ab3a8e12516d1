//! From prompts to preference data: people and machines judge pairs of answers.
//!
//! `record` is the plain data all others speak of; `store` is the one place that knows SQL; `session` says who is shown
//! what next, and `desk` keeps what people say about it (`screen`) before it is acknowledged. `server` is its face for
//! browsers, `terminal` the one for terminals. `import` brings what exists.
//! `candidates` makes answers, `select` chooses which are compared, `judge` lets machines compare. `ballot` resolves votes;
//! `aggregate`, `agreement`, `ranking` and `bias` make numbers of them; `report` shows these, `export` makes training rows.

pub mod aggregate;
pub mod agreement;
mod asked;
pub mod ballot;
pub mod bias;
pub mod bootstrap;
pub mod candidates;
pub mod desk;
pub mod export;
pub mod import;
pub mod judge;
pub mod markdown;
pub mod overview;
pub mod ranking;
pub mod record;
pub mod report;
pub mod screen;
pub mod select;
pub mod server;
pub mod session;
pub mod similar;
pub mod store;
pub mod terminal;

pub use ballot::Project;
pub use store::Store;
