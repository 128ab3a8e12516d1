//! Rewards from a user's command: it reads one JSON object per line and prints one number per line.

use super::program::Program;
use super::spec::CommandSpec;
use super::{ABSTAINED, Reward, Scored};
use crate::data::json;
use crate::error::{Error, Result};
use crate::fsutil::shortened;
use crate::models::Model;
use serde_json::json;

/// Bytes that a printed line may have on average.
const LINE: usize = 256;

/// Reward by a command.
pub(super) struct Judge(Program);

impl Judge {
    pub fn new(spec: CommandSpec) -> Result<Self> {
        let reads = "{\"prompt\": …, \"completion\": …, \"columns\": {…}}";
        Program::new(spec, reads, "one number", LINE).map(Self)
    }
}

impl Reward for Judge {
    fn score(&mut self, _: &Model, answers: &[Scored]) -> Result<Vec<f64>> {
        let line = |a: &Scored| json!({ "prompt": a.prompt.text, "completion": a.answer, "columns": a.prompt.columns });
        let lines = self.0.ask(&answers.iter().map(|a| json::text(&line(a))).collect::<Vec<_>>())?;
        let number = |(i, line): (usize, &String)| {
            if ["null", "None"].contains(&line.as_str()) {
                return Ok(ABSTAINED);
            }
            line.parse::<f64>().map_err(|_| {
                Error::user(format!(
                    "{}: line {} of its output is {:?}, expected a number (or null, to abstain) for an answer to {}",
                    self.0.name(),
                    i + 1,
                    shortened(line),
                    answers[i].prompt.place()
                ))
            })
        };
        lines.iter().enumerate().map(number).collect()
    }
}
