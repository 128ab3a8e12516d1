//! Reads one project as a whole, and fills it.
//!
//! `snapshot` reads all records at one moment, `votes` resolves the references of its votes. `import` adds prompts and
//! answers from files, `candidates` generates answers, `pairs` chooses the pairs to compare. `encoding` turns prompts
//! and answers into tokens; `similar` compares texts.

pub mod candidates;
pub mod encoding;
#[cfg(test)]
pub mod fixture;
pub mod import;
pub mod pairs;
pub mod similar;
pub mod snapshot;
pub mod votes;
