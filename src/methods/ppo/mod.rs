//! Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) on language models (Ouyang et al. 2022, arXiv
//! 2203.02155): answers are sampled, rewarded, and made more or less likely, while the policy stays near a reference.
//!
//! One base carries all models: the policy is the trained adapter; the value function is a head on the policy's hidden
//! states, or an adapter of its own; the reference is the base without adapters, or with the adapter that the run
//! started from. If the base itself is trained, the reference is a frozen copy.
//!
//! An iteration: sample answers to some prompts and reward them; compute log-probabilities under policy and reference,
//! and values, for each of their tokens, in packed rows without gradient; then make `epochs` passes of `mini_batches`
//! optimiser steps each. Every sum runs over real tokens, never over padding.
//!
//! Modules:
//! - `spec`: the recipe's section. `parts`: the parts of the model. `value`: the value function.
//! - `kl`: the divergence from the reference and its weight. `advantages`, `loss`: the formulas, pure.
//! - `answers`: what an iteration trains on. `update`: the micro-batches. `progress`: how far a run is.
//! - `metrics`, `alarms`: what is logged of an iteration, and the rules on it.
//! - `method`: joins all of these into the method.
//!
//! Sampling, judging and the choice of answers are in `rollout`. Invariant: an iteration is a function of the weights,
//! the prompts, the seed and its number.

pub mod advantages;
pub mod alarms;
pub mod answers;
pub mod kl;
pub mod loss;
pub mod method;
pub mod metrics;
pub mod parts;
pub mod progress;
pub mod spec;
pub mod update;
pub mod value;
