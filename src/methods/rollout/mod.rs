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

pub mod alarms;
pub mod held_out;
pub mod objective;
pub mod packed;
mod reward_models;
pub mod rows;
pub mod sample_state;
mod sampler;
pub mod sampling_method;
pub mod spec;
pub mod stats;

pub use alarms::RolloutMonitor;
pub use held_out::HeldOutPrompts;
pub use objective::{PolicyLossInputs, PolicyObjective};
pub use packed::{PackedSamples, PolicyLogProbs, log_probs, reference_log_probs};
pub use reward_models::{check_reward_models, parts};
pub use rows::{PromptData, PromptRows};
pub use sampler::RolloutSampler;
pub use sampling_method::SamplingMethod;
pub use spec::{LimitSpec, SamplingSpec};

/// A sampled answer with its rewards.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledAnswer {
    /// Index of its prompt.
    pub prompt: usize,
    /// Token ids of prompt and answer, including the stop token or the tokens of the stop text that ended it.
    pub ids: Vec<u32>,
    /// Index in `ids` of the answer's first token.
    pub answer_start: usize,
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

impl SampledAnswer {
    /// Returns the answer's token ids, including the stop token or stop text.
    pub fn answer_ids(&self) -> &[u32] {
        &self.ids[self.answer_start..]
    }

    /// Returns how many tokens the answer has, including the stop token or stop text.
    pub fn length(&self) -> usize {
        self.ids.len() - self.answer_start
    }
}
