//! Tests of src/train: steps, optimisers, checkpoints, memory, profiles.

mod cuda_memory;
mod device_counters;
mod launches;
mod memory;
mod on_cuda;
mod optimisers;
mod profile;
mod quantised;
mod resume;
mod trajectories;
