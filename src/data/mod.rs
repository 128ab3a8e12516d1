//! From files of rows to steps of packed token ids. Each folder imports only folders above it in this list:
//!
//! - `source`: files -> raw rows (columns with their line); the only folder that uses polars
//! - `rows`: a raw row -> what it says: a `Record`, whatever its format
//! - `tokenizer_files`, `chat`: a model's tokenizer and chat template; conversations as text and as token ids
//! - `encode`: a record -> token ids, and which of them are trained on
//! - `cache`: token ids in memory or in mapped files, kept between runs
//! - `batch`: lengths -> which examples make each step (mix of sources, order, packing)
//! - `dataset`: all of these together: tokenised sources with random access, prompts, and a summary of both
//! - `inspect`: what the user looks at before a run: rows, lengths, duplicates, examples with their mask
//!
//! Nothing here uses a model or a tensor.

pub mod batch;
pub mod cache;
pub mod chat;
pub mod dataset;
pub mod encode;
pub mod inspect;
pub mod rows;
pub mod source;
pub mod tokenizer_files;
