//! Turns files of rows into token ids with a loss mask.
//!
//! The stages, each in a module of its own:
//! source (reads files, with polars) -> record (one of the known row formats) -> template + tokenizer
//! -> items (ids + mask) -> tokens (stored in memory, or in memory-mapped files of the cache)
//! -> dataset (random access to items) -> pack (several examples in one row) -> loader (examples of the next step).
//!
//! `tokenizer` reads tokenizer.json; `bpe` and `sentencepiece` (with `protobuf`) build the same from older files, and
//! `added` handles the tokens that tokenizer_config.json adds.
//! `scrub` replaces personal data in the texts of rows.
//! `quality` shows what a data set holds: histogram of lengths, duplicates, overlap of splits, preview of the mask.
//! Nothing here uses a model or a tensor.

pub mod added_tokens;
mod answer_text;
pub mod bpe;
mod builder;
pub mod cache;
pub mod dataset;
pub mod example;
pub mod items;
pub mod loader;
pub mod mix;
pub mod notes;
pub mod pack;
pub mod prompts;
mod protobuf;
pub mod quality;
pub mod rows;
pub mod sentencepiece;
pub mod source;
pub mod spec;
pub mod summary;
pub mod survey;
pub mod template;
mod token_store;
pub mod tokenizer;
mod tool_arguments;
mod turns;

pub use rows as convert;
pub use rows as detect;
pub use rows as preference;
pub use rows as row_reader;
pub mod record {
    pub use super::rows::*;
    pub use super::source::{RowColumns, RowPlace};
}
pub use cache::TokenCache;
pub use dataset::{Dataset, EncodeOptions, load};
pub use detect::RowPurpose;
pub use example::Example;
pub use items::{DatasetItem, PairExample, PromptExample, UnpairedExample};
pub use loader::{BatchPlan, Loader, LoaderCursor, StepRows};
pub use mix::SourceMix;
pub use notes::RowNote;
pub use pack::pack;
pub use preference::{AnswerContent, JudgedAnswer, Preference, PromptContent};
pub use prompts::{PromptRow, PromptSet};
pub use record::{ChatMessage, Conversation, Record, RecordRow};
pub use row_reader::read_rows;
pub use spec::{CacheChoice, Overflow, RowFormat, SourceList, SourceSpec, Supervise};
pub use summary::{DatasetSummary, FileSummary, LengthQuantiles};
pub use survey::{FileSurvey, survey_file};
pub use tokenizer::{ChatTokenizer, DecodeStream, TemplateOptions, is_template_name};
pub use turns::ChatTurn;
