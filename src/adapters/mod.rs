//! Adapters: small trainable additions to frozen layers.
//!
//! Adapters attach to layers while the model is being built, so that model families contain no code about them.
//! Merging an adapter into weights needs only names and tensors, no model.

pub mod adalora;
mod base_layer;
mod base_product;
pub mod bitfit;
mod cached;
pub mod file;
pub mod ia3;
pub mod kind;
pub mod ln_tuning;
pub mod loha;
pub mod lokr;
pub mod lora;
mod lycoris;
pub mod merging;
pub mod module_settings;
mod module_tensors;
pub mod oft;
mod peft;
pub mod plan;
mod saved_module;
pub mod spec;
mod start;
pub mod targets;
pub mod token_rows;
mod trainable_tokens;
pub mod training;
pub mod update;
pub mod vera;
pub mod virtual_tokens;
mod vocabulary_tables;

pub use adalora::AdaloraSpec;
pub use bitfit::BitfitSpec;
pub use file::AdapterFile;
pub use ia3::Ia3Spec;
pub use kind::{AdapterKind, EMBEDDINGS, HEAD, SCORE};
pub use ln_tuning::LnTuningSpec;
pub use loha::LohaSpec;
pub use lokr::LokrSpec;
pub use lora::{LoraInit, LoraSpec};
pub use module_settings::{KindSection, ModuleSettings};
pub use oft::OftSpec;
pub use plan::ModulePlan;
pub use spec::AdapterSpec;
pub use targets::Targets;
pub use token_rows::TokenName;
pub use trainable_tokens::TrainableTokensSpec;
pub use training::TrainingPart;
pub use vera::VeraSpec;
pub use virtual_tokens::{PTuningSpec, PrefixTuningSpec, PromptTuningSpec};
