//! Adapters: small trainable additions to frozen layers.
//!
//! Adapters attach to layers while the model is being built, so that model families contain no code about them.
//! Merging an adapter into weights needs only names and tensors, no model.

pub mod file;
pub mod kind;
pub mod lora;
pub mod merge;
mod peft;
pub mod spec;
pub mod targets;

pub use file::AdapterFile;
pub use kind::AdapterKind;
pub use lora::LoraPlan;
pub use spec::{AdapterSpec, LoraInit, LoraSpec, Targets};
