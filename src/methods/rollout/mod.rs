//! Rollouts: answers drawn from the model as it is, with the log-probabilities of the very distribution that drew them,
//! and judged. What PPO, GRPO and RLOO learn from.
//!
//! draw: prompts in, samples out. gate: which reward models may judge, and where they stand. packed: samples as packed rows to learn from, and what the
//! reference says of them. stats: numbers of a rollout under TRL's names. watch: what they say is wrong. held_out: the
//! same prompts before and after. keep: samples as tensors, for checkpoints. rows: prompts as the rows of a run. cycle:
//! draw, learn in several steps, draw again: all that GRPO and RLOO share; lesson: what they learn.
//!
//! Invariant: a draw is a function of the weights, the prompts and (seed, stream number): each answer has a random
//! stream of its own, so that it depends neither on the answers beside it nor on what was drawn before.

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

/// An answer that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Which of the prompts.
    pub prompt: usize,
    /// Prompt and answer, with the stop token or the tokens of the stop text that ended it.
    pub ids: Vec<u32>,
    /// Where the answer begins.
    pub start: usize,
    /// Log-probability of each token of the answer under the distribution that it was drawn from.
    pub log_probs: Vec<f32>,
    /// Whether a stop token or a stop text ended it; else it was cut off at its longest length.
    pub ended: bool,
    /// The answer's text, without what ended it.
    pub text: String,
    /// What each source of rewards says, unweighted.
    pub rewards: Vec<f64>,
    /// Their weighted sum, less the penalty of an answer without an end.
    pub reward: f64,
}

impl Sample {
    /// The answer's tokens, with what ended it.
    pub fn answer(&self) -> &[u32] {
        &self.ids[self.start..]
    }

    /// How many they are.
    pub fn length(&self) -> usize {
        self.ids.len() - self.start
    }
}
