//! Merges adapters into a base's weights, and several adapters into one. Needs only names and tensors, no model.
//!
//! merged_weights: the merged tensors, one at a time. part_weights: the factors of an adapter's changes. plan: names of the methods, their settings and the plan. tensor_change:
//! what an adapter does to one tensor. combine: the exact sum as one adapter. reduce: any result as one LoRA, and the report on
//! each tensor. unfitting: updates that the base has no tensor for. The methods themselves are in [`crate::merging`].

pub mod combine;
mod merged_weights;
mod part_weights;
pub mod plan;
pub mod reduce;
mod tensor_change;
mod unfitting;

pub use merged_weights::{MergedWeights, WeightedAdapter};
pub use part_weights::PartWeights;
pub use tensor_change::equal_values;
