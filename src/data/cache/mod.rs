//! Token ids in memory or in files, and the folder that keeps such files between runs.

mod choice;
mod folder;
mod token_store;
mod token_writer;

pub use choice::CacheChoice;
pub use folder::{TokenCache, TokenCacheUsage, find_tokens};
pub use token_store::{MarkedSequence, RowFacts, SequenceInfo, TokenStore, file_name};
pub use token_writer::TokenWriter;
