//! Settings of a data set: which tokens are trained on, and what happens to items that are too long.

use crate::data::encode::Supervise;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens to a row that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// Stop when more than `data.overflow_tolerance` of the rows are too long; drop and report those below it.
    #[default]
    Error,
    /// Leave such rows out.
    Drop,
    /// Keep the first `batch.max_len` tokens; the end of the answer is lost.
    Truncate,
    /// Cut into several rows of at most `batch.max_len` tokens.
    Split,
}

/// How rows are tokenised and fitted to the maximum length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EncodeOptions {
    /// Which tokens of a conversation are trained on.
    pub supervise: Supervise,
    /// Maximum length of an item in tokens (of a pair: of its longer sequence).
    pub max_len: usize,
    /// What happens to items over `max_len`.
    pub on_overflow: Overflow,
    /// With `Overflow::Error`, the share of too long items up to which they are dropped; more of them are an error.
    pub overflow_tolerance: f64,
}
