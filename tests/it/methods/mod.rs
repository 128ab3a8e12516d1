//! Tests of src/methods: losses, whole objectives and whole runs of each method.

mod bandit;
mod distill;
mod distill_runs;
mod ppo;
mod preference_losses;
mod reward;
mod rl;
