//! Tests of src/train: steps, optimisers, checkpoints, memory.

mod memory;
mod optimisers;
pub mod resume;
mod trajectories;
