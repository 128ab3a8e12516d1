//! Merges adapters into a model or into one adapter (`ft merge`).
//!
//! inputs: reads what is merged, and refuses what cannot be; checkpoint: the adapter in a run's checkpoint. adapters: prepares, writes and verifies a merge of adapters.
//! report, page: what a merge does, as a table, as JSON and as `merge.html`.

pub mod adapters;
mod checkpoint;
pub mod inputs;
pub mod page;
pub mod report;
