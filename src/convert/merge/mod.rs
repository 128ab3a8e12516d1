//! Merges adapters into a model or into one adapter, and whole models into one (`ft merge`).
//!
//! inputs: reads what is merged, and refuses what cannot be; checkpoint: the adapter in a run's checkpoint. adapters,
//! models, experts: prepare, write and verify a merge of adapters, of whole models, of dense models into one with experts.
//! model_input: a whole model that is merged. streaming: tensors that are read and written in blocks.
//! report, page: what a merge does, as a table, as JSON and as `merge.html`; search_section: its part on a search for weights.

pub mod adapters;
mod checkpoint;
pub mod experts;
pub mod inputs;
mod model_input;
pub mod models;
pub mod page;
pub mod report;
pub mod search_section;
pub(super) mod streaming;
