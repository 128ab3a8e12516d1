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

pub mod added;
mod answered;
mod arguments;
pub mod bpe;
pub mod cache;
pub mod convert;
pub mod dataset;
pub mod detect;
pub mod example;
pub mod items;
mod jinja;
pub mod json;
pub mod loader;
mod maker;
pub mod mix;
pub mod notes;
pub mod pack;
pub mod preference;
pub mod prompts;
mod protobuf;
pub mod quality;
pub mod record;
pub mod rows;
pub mod scrub;
pub mod sentencepiece;
pub mod source;
pub mod spec;
pub mod summary;
pub mod survey;
pub mod template;
pub mod tokenizer;
mod tokens;
mod turns;

pub use cache::Cache;
pub use dataset::{Dataset, EncodeOptions, load};
pub use detect::Want;
pub use example::Example;
pub use items::{Item, Pair, Prompt, Unpaired};
pub use loader::{BatchPlan, Cursor, Loader, Step};
pub use mix::Mix;
pub use notes::Note;
pub use pack::pack;
pub use preference::{Answer, Asked, Preference, Verdict};
pub use prompts::{PromptRow, Prompts};
pub use record::{Conversation, Message, Record, Row};
pub use rows::read_rows;
pub use spec::{CacheChoice, Overflow, RowFormat, SourceSpec, Sources, Supervise};
pub use summary::{FileSummary, Quantiles, Summary};
pub use survey::{Survey, survey};
pub use tokenizer::{ChatTokenizer, DecodeStream, Rendering, is_template_name};
pub use turns::Turn;
