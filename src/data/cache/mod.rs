//! Token ids in memory or in files, and the folder that keeps such files between runs.
//!
//! `token_writer` stores the token ids of sequences, `token_store` reads them; `folder` finds the files of earlier
//! runs; `choice` is the recipe's setting.

mod choice;
mod folder;
mod token_store;
mod token_writer;

pub use choice::CacheChoice;
pub use folder::{TokenCache, TokenCacheUsage, WORTH_KEEPING, find_tokens};
pub use token_store::{MarkedSequence, RowFacts, SequenceInfo, TokenStore, file_name};
pub use token_writer::TokenWriter;
