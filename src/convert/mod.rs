//! Reads and writes model directories: imports GGUF files, merges adapters, cuts students, and saves verified results.
//!
//! A directory appears completely written or not at all.

pub mod architecture;
pub mod compatibility;
pub mod export;
pub mod gguf;
pub mod import;
mod logit_distance;
pub mod merged;
pub mod pretokenizer;
pub mod quant;
mod reward_folder;
mod rope_scaling;
pub mod stop_tokens;
pub mod student;
pub mod template;
pub mod vocabulary;
