//! Writes what a model's or adapter's folder has besides weights: config.json, the tokenizer's files, new tokens, chat
//! template and stop tokens; and what of an existing folder may be replaced.

pub(super) mod companions;
pub(super) mod config_file;
pub mod destination;
pub(super) mod disk_space;
pub mod new_tokens;
pub mod stop_tokens;
pub mod template;
