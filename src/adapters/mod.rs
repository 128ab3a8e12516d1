//! Adapters: small trainable additions to frozen layers.
//!
//! An adapter attaches while the model is being built, as the builder hands out a layer; model families know
//! nothing of it. Folding one into weights needs names and tensors, no model.

pub mod spec;

pub use spec::{AdapterSpec, LoraInit, LoraSpec, Targets};
