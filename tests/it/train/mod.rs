//! Tests of src/train: steps, optimisers, checkpoints, memory.

mod memory;
mod optimisers;
mod resume;
mod trajectories;
