//! From prompts to preference data: people and machines judge pairs of answers.
//!
//! `record` is the plain data all others speak of; `store` is the one place that knows SQL.

pub mod record;
