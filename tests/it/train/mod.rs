//! Tests of src/train: steps, optimisers, checkpoints, memory.

mod launches;
mod memory;
mod on_cuda;
mod optimisers;
mod resume;
mod trajectories;
