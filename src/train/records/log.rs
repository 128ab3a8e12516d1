//! Reports the progress of a run: `metrics.jsonl` for scripts, a progress bar or plain lines for people.

use crate::error::Result;
use crate::fsutil::{io_error, read_to_string, write_atomic};
use crate::methods::contract::Means;
use crate::report;
use crate::runs::history::StepPoint;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One optimiser step, as a line of `metrics.jsonl` records it.
#[derive(Debug, Clone)]
pub struct StepRecord {
    /// The step, counted from 1.
    pub step: u64,
    /// Passes over the training rows so far.
    pub epoch: f64,
    /// Mean training loss.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Tokens seen so far.
    pub tokens: u64,
    /// Tokens per second in this step.
    pub tokens_per_s: f64,
    /// Number of items that the loss is the mean of: supervised tokens, pairs, ….
    pub items: f64,
    /// Seconds this step took.
    pub seconds: f64,
    /// Peak tensor bytes so far.
    pub memory: u64,
    /// The method's other means.
    pub more: Vec<(String, f64)>,
}

impl StepRecord {
    fn json(&self) -> Value {
        let mut o = Map::new();
        let mut put = |k: &str, v: Value| o.insert(k.to_string(), v);
        put("step", self.step.into());
        put("epoch", round(self.epoch));
        put("loss", number(self.loss));
        put("lr", number(self.lr));
        put("grad_norm", number(self.grad_norm));
        put("tokens", self.tokens.into());
        put("tokens_per_s", round(self.tokens_per_s));
        put("items", number(self.items));
        put("seconds", round(self.seconds));
        put("memory", self.memory.into());
        for (k, v) in &self.more {
            put(k, number(*v));
        }
        Value::Object(o)
    }
}

impl From<&StepRecord> for StepPoint {
    fn from(line: &StepRecord) -> Self {
        Self {
            step: line.step,
            epoch: line.epoch,
            loss: line.loss,
            lr: line.lr,
            grad_norm: line.grad_norm,
            tokens: line.tokens,
            tokens_per_s: line.tokens_per_s,
            seconds: line.seconds,
            memory: line.memory,
            more: line.more.clone(),
        }
    }
}

/// Converts a number to JSON. JSON has no NaN or infinity: a number that is not finite becomes text, such as `"NaN"`.
fn number(x: f64) -> Value {
    serde_json::Number::from_f64(x).map_or_else(|| Value::String(x.to_string()), Value::Number)
}

fn round(x: f64) -> Value {
    number((x * 1e4).round() / 1e4)
}

/// Metrics shown next to the loss in the progress line: (name in metrics.jsonl, short name).
const HEADLINES: [(&str, &str); 2] = [("rewards/accuracies", "accuracy"), ("rewards/margins", "margin")];

/// Writes `metrics.jsonl` and shows the progress of the run.
pub struct TrainingLog {
    file: File,
    path: PathBuf,
    bar: report::Progress,
    total: u64,
    last_line: Instant,
    talked: bool,
}

impl TrainingLog {
    /// Opens `metrics.jsonl` for a run that continues after `step`. Lines of later steps are removed: these steps are
    /// repeated.
    pub fn open(out: &Path, step: u64, total: u64) -> Result<Self> {
        let path = out.join("metrics.jsonl");
        truncate_after(&path, step)?;
        let file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(|e| io_error("writing", &path, e))?;
        let bar = report::training_bar(total).starting_at(step);
        Ok(Self { file, path, bar, total, last_line: Instant::now(), talked: false })
    }

    fn write(&mut self, value: &Value) -> Result<()> {
        writeln!(self.file, "{value}").map_err(|e| io_error("writing", &self.path, e))
    }

    /// Records a step. Without a terminal, prints a line for the first and the last step and every 10 seconds.
    pub fn step(&mut self, line: &StepRecord) -> Result<()> {
        self.write(&line.json())?;
        let more = |(name, shown): &(&str, &str)| {
            let (_, value) = line.more.iter().find(|(k, _)| k == name)?;
            Some(format!("  {shown} {value:.3}"))
        };
        let text = format!(
            "loss {:.4}{}  lr {:.2e}  norm {:.2}  {} tok/s",
            line.loss,
            HEADLINES.iter().filter_map(more).collect::<String>(),
            line.lr,
            line.grad_norm,
            report::count(line.tokens_per_s.round() as u64)
        );
        if report::on_terminal() {
            self.bar.set_message(text.clone());
        }
        self.bar.set_position(line.step);
        let due = !self.talked || line.step == self.total || self.last_line.elapsed() > Duration::from_secs(10);
        if !report::on_terminal() && due {
            let left = line.seconds * (self.total - line.step) as f64;
            report::info(format!(
                "step {}/{}  {text}  eta {}",
                line.step,
                self.total,
                report::duration(Duration::from_secs_f64(left))
            ));
            self.last_line = Instant::now();
            self.talked = true;
        }
        Ok(())
    }

    /// Records and prints the validation results after a step; in `metrics.jsonl` the names get the prefix `eval_`.
    pub fn validation(&mut self, step: u64, means: &Means, note: &str) -> Result<()> {
        let mut o = Map::from_iter([("step".to_string(), Value::from(step))]);
        o.extend(means.iter().map(|(k, v)| (format!("eval_{k}"), number(*v))));
        self.write(&Value::Object(o))?;
        let shown: Vec<String> = means.iter().map(|(k, v)| format!("{k} {v:.4}")).collect();
        self.info(&format!("step {step}  validation: {}{note}", shown.join("  ")));
        Ok(())
    }

    /// Prints a message without disturbing the progress bar.
    pub fn info(&self, text: &str) {
        report::info(text);
    }

    /// Prints a warning; the run continues.
    pub fn warn(&self, text: &str) {
        report::warn(text);
    }

    /// Removes the progress bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Removes from a JSON Lines file all lines whose `step` is above `step`, and lines whose step cannot be read.
///
/// The readers of these files accept no unreadable line except the last, which a killed process left incomplete. Other
/// unreadable lines were not written by ft: removing them is reported by a warning with their numbers.
pub fn truncate_after(path: &Path, step: u64) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let text = read_to_string(path)?;
    let lines = read_lines(&text);
    if !lines.unreadable.is_empty() {
        let numbers: Vec<String> = lines.unreadable.iter().map(usize::to_string).collect();
        report::warn(format!(
            "{}: lines without a readable step are removed, because the run continues after step {step}: {}",
            path.display(),
            numbers.join(", ")
        ));
    }
    let kept = lines.by_step.iter().filter(|(s, _)| *s <= step);
    write_atomic(path, |w| kept.clone().try_for_each(|(_, l)| writeln!(w, "{l}")))
}

/// The lines of a JSON Lines file.
struct ReadLines<'a> {
    /// (step, line) of the lines that have a step.
    by_step: Vec<(u64, &'a str)>,
    /// Numbers of the other lines, counted from 1. An incomplete last line is left out.
    unreadable: Vec<usize>,
}

fn read_lines(text: &str) -> ReadLines<'_> {
    let step_of = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("step")?.as_u64();
    let mut read = ReadLines { by_step: Vec::new(), unreadable: Vec::new() };
    for (i, line) in text.split_inclusive('\n').enumerate() {
        match step_of(line) {
            Some(step) => read.by_step.push((step, line.trim_end_matches(['\n', '\r']))),
            None if line.ends_with('\n') => read.unreadable.push(i + 1),
            None => {}
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_cannot_be_read_are_found_and_an_incomplete_last_line_is_not_one() {
        let text = "{\"step\":1}\nedited by hand\n{\"loss\":2}\n{\"step\":2}\n{\"step\":3}\n{\"st";
        let lines = read_lines(text);
        assert_eq!(lines.unreadable, [2, 3]);
        assert_eq!(lines.by_step, [(1, "{\"step\":1}"), (2, "{\"step\":2}"), (3, "{\"step\":3}")]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        truncate_after(&path, 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    }
}
