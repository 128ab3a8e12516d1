//! From prompts to preference data: people and machines judge pairs of answers.
//!
//! `record` is the plain data all others speak of; `store` is the one place that knows SQL.
//! candidates makes answers, select chooses which of them are compared, judge lets machines compare; ballot resolves
//! votes, and aggregate, agreement, ranking and bias make numbers of them; report shows these, export makes training rows.

pub mod aggregate;
pub mod agreement;
mod asked;
pub mod ballot;
pub mod bias;
pub mod bootstrap;
pub mod candidates;
pub mod export;
pub mod judge;
pub mod ranking;
pub mod record;
pub mod report;
pub mod select;
pub mod similar;
