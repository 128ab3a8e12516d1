//! Rollouts: answers sampled from the current model, with the log-probabilities under exactly the distribution they
//! were sampled from, and with rewards. PPO, GRPO and RLOO train on them.
//!
//! Modules:
//! - `draw`: samples answers to prompts and has them rewarded.
//! - `gate`: decides which reward models are accepted, and where they are in the model.
//! - `packed`: packs samples into rows and computes their log-probabilities, also under the reference.
//! - `stats`: metrics of a rollout under TRL's names; `watch`: alarms from these metrics.
//! - `held_out`: answers to the same prompts before and after training.
//! - `keep`: saves samples as tensors in a checkpoint.
//! - `rows`: prompts as the rows of a run.
//! - `cycle`: samples answers, trains on them for several steps, samples again: everything GRPO and RLOO share;
//!   `lesson`: their advantages and losses.
//!
//! Invariant: sampled answers are a function of the weights, the prompts and (seed, stream number). Each answer has a
//! random stream of its own, so it depends neither on the answers generated with it nor on earlier ones.

pub mod cycle;
mod draw;
mod gate;
pub mod held_out;
pub mod keep;
pub mod lesson;
pub mod packed;
pub mod rows;
pub mod spec;
pub mod stats;
pub mod watch;

pub use cycle::Cycle;
pub use draw::Rollout;
pub use gate::{gate, parts};
pub use held_out::HeldOut;
pub use lesson::{Rule, Terms};
pub use packed::{Learnt, Packed, log_probs, reference_log_probs};
pub use rows::{PromptRows, Prompted};
pub use spec::{LimitSpec, SamplingSpec};
pub use watch::Watch;

/// A sampled answer with its rewards.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Index of its prompt.
    pub prompt: usize,
    /// Token ids of prompt and answer, including the stop token or the tokens of the stop text that ended it.
    pub ids: Vec<u32>,
    /// Index in `ids` of the answer's first token.
    pub start: usize,
    /// Log-probability of each token of the answer under the distribution it was sampled from.
    pub log_probs: Vec<f32>,
    /// True if a stop token or a stop text ended it; false if it was truncated at the maximum length.
    pub ended: bool,
    /// The answer's text, without the stop token or stop text.
    pub text: String,
    /// The reward from each source, unweighted; NaN if a source abstained.
    pub rewards: Vec<f64>,
    /// Their weighted sum, minus the penalty if the answer was truncated.
    pub reward: f64,
}

impl Sample {
    /// Returns the answer's token ids, including the stop token or stop text.
    pub fn answer(&self) -> &[u32] {
        &self.ids[self.start..]
    }

    /// Returns how many tokens the answer has, including the stop token or stop text.
    pub fn length(&self) -> usize {
        self.ids.len() - self.start
    }
}
