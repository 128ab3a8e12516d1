//! From files of rows to token ids with a loss mask.
//!
//! source (polars) -> record (one of the known row shapes) -> template + tokenizer -> items (ids + mask)
//! -> tokens (in memory, or in mapped files that the cache keeps) -> dataset (any item, in any order)
//! -> pack (rows of several examples) -> loader (which examples make the next step).
//! tokenizer reads tokenizer.json; bpe and sentencepiece (protobuf) build the same from older files, added what stands beside.
//! scrub takes personal data out of the texts of rows.
//! quality looks at the result: histogram, duplicates, overlap, preview.
//! Nothing here knows a model or a tensor.

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
