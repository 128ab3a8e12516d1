//! Judges with a program of the user.

use super::judge::{JudgeTask, Opinion, PairJudge};
use crate::error::{Error, Result};
use crate::fsutil::excerpt;
use crate::label::record::annotator::AnnotatorKind;
use crate::label::record::vote::VoteChoice;
use crate::rewards::program::LineProgram;
use crate::rewards::spec::CommandSpec;
use serde_json::{Value, json};

/// Bytes that an opinion of a command may have on average.
const BYTES_PER_OPINION: usize = 4096;

/// A program as a judge. It reads a line `{"prompt", "a", "b"}` per task and prints a line per choice: the bare choice,
/// or `{"choice", "strength", "note"}`.
pub struct CommandJudge(LineProgram, Vec<String>);

impl CommandJudge {
    /// Creates the judge. Fails if the command cannot be run.
    pub fn new(spec: CommandSpec) -> Result<Self> {
        let run = spec.run.clone();
        LineProgram::new(
            spec,
            "{\"prompt\": [{\"role\": …, \"content\": …}], \"a\": …, \"b\": …}",
            "one of a, b, tie, both_bad, skip, or {\"choice\": …, \"strength\": 1 to 3, \"note\": …}",
            BYTES_PER_OPINION,
        )
        .map(|program| Self(program, run))
    }

    fn read(&self, line: &str, task: &JudgeTask) -> Result<Opinion> {
        let wrong = || {
            Error::user(format!("{}: {:?} for prompt {}", self.0.name(), excerpt(line), task.prompt.key)).hint(
                "expected one of a, b, tie, both_bad, skip, or {\"choice\": …, \"strength\": 1 to 3, \"note\": …}",
            )
        };
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| json!(line));
        let word = value.get("choice").unwrap_or(&value).as_str().ok_or_else(wrong)?;
        let choice = VoteChoice::named(&word.to_lowercase()).ok_or_else(wrong)?;
        let strength = match value.get("strength") {
            None | Some(Value::Null) => None,
            Some(n) => Some(n.as_i64().filter(|n| (1..=3).contains(n)).ok_or_else(wrong)?),
        };
        let note = value.get("note").and_then(Value::as_str).map(String::from);
        Ok(Opinion { choice, strength, note, detail: json!({}) })
    }
}

impl PairJudge for CommandJudge {
    fn kind(&self) -> AnnotatorKind {
        AnnotatorKind::Command
    }

    fn detail(&self) -> Value {
        json!({ "command": self.1 })
    }

    fn opinions(&mut self, tasks: &[JudgeTask]) -> Result<Vec<Opinion>> {
        let line =
            |t: &JudgeTask| json!({ "prompt": t.prompt.messages, "a": t.first.text, "b": t.second.text }).to_string();
        let printed = self.0.ask(&tasks.iter().map(line).collect::<Vec<_>>())?;
        printed.iter().zip(tasks).map(|(line, task)| self.read(line, task)).collect()
    }
}
