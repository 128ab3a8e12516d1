//! From files of rows to token ids with a loss mask.
//!
//! source (polars) -> record (one of the known row shapes) -> template + tokenizer -> example (ids + mask)
//! -> pack (rows of several examples) -> loader (which examples make the next step).
//! quality looks at the result: histogram, duplicates, overlap, preview.
//! Nothing here knows a model or a tensor.

pub mod bpe;
pub mod dataset;
pub mod example;
pub mod loader;
pub mod pack;
mod pyjson;
pub mod quality;
pub mod record;
pub mod source;
pub mod survey;
pub mod template;
pub mod tokenizer;

pub use dataset::{Dataset, EncodeOptions, Quantiles, Summary, load, read_rows};
pub use example::Example;
pub use loader::{BatchPlan, Cursor, Loader, Step};
pub use pack::pack;
pub use record::{Conversation, Message, Record, Row};
pub use survey::{Survey, survey};
pub use tokenizer::{ChatTokenizer, DecodeStream};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which tokens of a conversation are learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Supervise {
    /// Every assistant turn with its end token (for prompt and completion: the completion).
    #[default]
    Assistant,
    /// Only the last assistant turn.
    Last,
    /// Every token.
    All,
}

/// One file of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// A .jsonl, .json, .csv, .parquet or .arrow/.ipc/.feather file.
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// How a row is read; `auto` finds it out from the columns and says what it found.
    #[serde(default)]
    pub format: RowFormat,
    /// Use only the first so many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub rows: Option<usize>,
}

/// The shapes a row can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RowFormat {
    /// Found out from the columns.
    #[default]
    Auto,
    /// `messages`: a list of `{role, content}`.
    Messages,
    /// `conversations`: a list of `{from, value}`; human, gpt and the like become user, assistant, …
    Sharegpt,
    /// `instruction`, optional `input`, `output`.
    Alpaca,
    /// `prompt` and `completion`, as text or as lists of messages.
    PromptCompletion,
    /// `text`: every token is learnt.
    Text,
}

impl RowFormat {
    /// The name as a recipe writes it.
    pub fn name(self) -> &'static str {
        match self {
            RowFormat::Auto => "auto",
            RowFormat::Messages => "messages",
            RowFormat::Sharegpt => "sharegpt",
            RowFormat::Alpaca => "alpaca",
            RowFormat::PromptCompletion => "prompt_completion",
            RowFormat::Text => "text",
        }
    }

    /// Every format but `auto`.
    pub const KNOWN: [RowFormat; 5] =
        [RowFormat::Messages, RowFormat::Sharegpt, RowFormat::Alpaca, RowFormat::PromptCompletion, RowFormat::Text];
}

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
