//! Tokenised data sets with random access ([`Dataset`]), and sets of prompts for generation ([`PromptSet`]).
//!
//! `builder` tokenises files segment by segment or finds their tokens in the cache; `item` says what an item of a data
//! set is, and `options` what happens to items that are too long. `dataset` gives access to the items, `prompts` to the
//! prompts. `summary` and `shares` count what was read, dropped and mixed.

mod builder;
#[allow(clippy::module_inception)]
mod dataset;
mod item;
mod options;
mod prompts;
mod shares;
mod summary;

pub use dataset::{Dataset, load};
pub use item::DatasetItem;
pub use options::{EncodeOptions, Overflow};
pub use prompts::{ANSWER_COLUMN, PromptLimits, PromptRow, PromptSet};
pub use summary::{DatasetSummary, FileSummary, LengthQuantiles, NoteSummary, SourceShare};
