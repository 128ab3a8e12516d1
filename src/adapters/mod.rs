//! Adapters: small trainable additions to frozen layers.
//!
//! An adapter attaches while the model is being built, as the builder hands out a layer; model families know
//! nothing of it. Folding one into weights needs names and tensors, no model.

pub mod file;
pub mod lora;
pub mod merge;
pub mod spec;
pub mod targets;

pub use file::AdapterFile;
pub use lora::LoraPlan;
pub use spec::{AdapterSpec, LoraInit, LoraSpec, Targets};

use crate::error::Result;
use crate::nn::Attach;

impl AdapterSpec {
    /// What attaches this adapter while a model is built.
    pub fn plan(&self) -> Result<Box<dyn Attach>> {
        match self {
            AdapterSpec::Lora(spec) => {
                let plan = LoraPlan::new(spec)?;
                Ok(Box::new(match &spec.from {
                    Some(folder) => plan.on_bases(&file::read(folder)?.tensors),
                    None => plan,
                }))
            }
        }
    }
}
