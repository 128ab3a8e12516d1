//! Adapters: small trainable additions to frozen layers.
//!
//! Adapters attach to layers while the model is being built, so that model families contain no code about them.
//! Merging an adapter into weights needs only names and tensors, no model.

mod base_layer;
mod cached;
pub mod combine;
pub mod file;
pub mod kind;
pub mod lora;
pub mod merge;
pub mod module_settings;
mod peft;
pub mod plan;
mod saved_module;
pub mod spec;
mod start;
pub mod targets;
pub mod update;
pub mod virtual_tokens;

pub use file::AdapterFile;
pub use kind::{AdapterKind, SCORE};
pub use lora::{LoraInit, LoraSpec};
pub use module_settings::ModuleSettings;
pub use plan::ModulePlan;
pub use spec::AdapterSpec;
pub use targets::Targets;
pub use virtual_tokens::{PTuningSpec, PrefixTuningSpec, PromptTuningSpec};
