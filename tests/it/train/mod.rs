//! Tests of src/train: steps, optimisers, checkpoints, memory, profiles.

mod arithmetic;
mod average;
mod cuda_memory;
mod device_counters;
mod float16;
mod fp8;
mod gguf_base;
mod launches;
mod memory;
mod new_tokens;
mod offload;
mod on_cuda;
mod optimisers;
mod profile;
mod quantised;
mod recorded;
mod recurrent;
mod resume;
mod stored;
mod suggest;
mod trained_part;
pub mod trajectories;
