//! Adapters: small trainable additions to frozen layers.
//!
//! Adapters attach to layers while the model is being built, so that model families contain no code about them.
//! Merging an adapter into weights needs only names and tensors, no model.

pub mod file;
pub mod lora;
pub mod merge;
pub mod spec;
pub mod targets;

pub use file::AdapterFile;
pub use lora::LoraPlan;
pub use spec::{AdapterSpec, LoraInit, LoraSpec, Targets};

use crate::error::Result;
use crate::nn::AdapterPlan;

impl AdapterSpec {
    /// Returns the plan that attaches this adapter while a model is built. Fails for invalid patterns, and if the
    /// adapter to continue from cannot be read.
    pub fn plan(&self) -> Result<Box<dyn AdapterPlan>> {
        match self {
            AdapterSpec::Lora(spec) => {
                let plan = LoraPlan::new(spec)?;
                Ok(Box::new(match &spec.from {
                    Some(folder) => plan.with_base_weights(&file::read(folder)?.tensors),
                    None => plan,
                }))
            }
        }
    }
}
