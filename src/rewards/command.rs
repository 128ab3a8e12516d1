//! Rewards from a user's command: it reads one JSON object per line and prints one number per line.

use super::program::LineProgram;
use super::source::{ABSTAINED, RewardInput, RewardSource};
use super::spec::CommandSpec;
use crate::error::{Error, Result};
use crate::fsutil::excerpt;
use crate::json;
use crate::models::Model;
use serde_json::json;

/// Bytes that a printed line may have on average.
const LINE_BYTES: usize = 256;

/// Reward by a command.
pub(super) struct CommandReward(LineProgram);

impl CommandReward {
    pub fn new(spec: CommandSpec) -> Result<Self> {
        let reads = "{\"prompt\": …, \"completion\": …, \"columns\": {…}}";
        LineProgram::new(spec, reads, "one number", LINE_BYTES).map(Self)
    }

    /// Returns the reward on line `i` (from 0) of the output.
    fn reward_on(&self, i: usize, line: &str, answer: &RewardInput) -> Result<f64> {
        if ["null", "None"].contains(&line) {
            return Ok(ABSTAINED);
        }
        let no_number = |_| {
            Error::user(format!(
                "{}: line {} of its output is {:?}, expected a number (or null, to abstain) for an answer to {}",
                self.0.name(),
                i + 1,
                excerpt(line),
                answer.prompt.place()
            ))
        };
        line.parse::<f64>().map_err(no_number)
    }
}

impl RewardSource for CommandReward {
    fn score(&mut self, _: &Model, answers: &[RewardInput]) -> Result<Vec<f64>> {
        let line =
            |a: &RewardInput| json!({ "prompt": a.prompt.text, "completion": a.answer, "columns": a.prompt.columns });
        let lines = self.0.ask(&answers.iter().map(|a| json::to_text(&line(a))).collect::<Vec<_>>())?;
        let rewards = lines.iter().zip(answers).enumerate();
        rewards.map(|(i, (line, answer))| self.reward_on(i, line, answer)).collect()
    }
}
