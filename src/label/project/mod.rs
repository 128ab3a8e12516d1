//! Holds what is about one project: its records at one moment (`snapshot`), its votes with all references resolved
//! (`votes`), and what fills it: `import` loads existing files, `candidates` generates answers, `pairs` chooses the pairs
//! to compare. `encoding` turns prompts and answers into tokens; `similar` compares texts.

pub mod candidates;
pub mod encoding;
#[cfg(test)]
pub mod fixture;
pub mod import;
pub mod pairs;
pub mod similar;
pub mod snapshot;
pub mod votes;
