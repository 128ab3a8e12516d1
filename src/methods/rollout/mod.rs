//! Rollouts: answers sampled from the current model, with the log-probabilities under exactly the distribution they
//! were sampled from, and with rewards. PPO, GRPO and RLOO train on them.
//!
//! Modules, in the order in which an answer goes through them:
//! - `spec`: the recipe's sections. `prompts`, `open`: prompts and sources of rewards, read before the model is loaded.
//! - `answer`: a sampled answer with its rewards.
//! - `sampling`: prompts to answers with their log-probabilities. `judging`: answers to rewards. `sampler`: both, one
//!   after the other. `reward_models`: which reward models are accepted, and where they are in the model.
//! - `scoring`: log-probabilities of answers the way training computes them, also under the reference.
//! - `advantages`: what advantages are computed from. `objective`: a loss on packed answers, pure.
//! - `update`: which answers make an optimiser step, what each counts, and which share a packed row; pure.
//! - `batch`: a packed row with its loss. `method`: joins all of these into the method of GRPO and RLOO.
//!
//! `stats`: metrics of a rollout under TRL's names; `alarms`: rules on these metrics. `held_out`: answers to the same
//! prompts before and after training. `sample_state`, `progress`: tensors in a checkpoint.
//!
//! Invariant: sampled answers are a function of the weights, the prompts and (seed, stream number). Each answer has a
//! random stream of its own, so it depends neither on the answers generated with it nor on earlier ones.

pub mod advantages;
pub mod alarms;
pub mod answer;
pub mod batch;
pub mod held_out;
pub mod judging;
pub mod method;
pub mod objective;
pub mod open;
pub mod progress;
pub mod prompts;
pub mod reward_models;
pub mod sample_state;
pub mod sampler;
pub mod sampling;
pub mod scoring;
pub mod spec;
pub mod stats;
pub mod update;
