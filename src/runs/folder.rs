//! Reads a run folder. The one place that knows which files it contains.

use super::averaged::AveragedResult;
use super::facts::{RunFacts, SessionOutcome};
use super::history::History;
use super::lock::RunLock;
use crate::data::chat::ChatTurn;
use crate::error::{Error, Result};
use crate::fsutil::{absolute, read_json, read_to_string};
use crate::methods::reward::ReportCard;
use crate::recipe::plan::Plan;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// File name of the curves.
pub const METRICS: &str = "metrics.jsonl";
/// File name of the answers sampled during training.
pub const SAMPLES: &str = "samples.jsonl";
/// File name of the summary of a finished run.
pub const SUMMARY: &str = "summary.json";
/// File name of the plan. Every run folder has one.
pub const PLAN: &str = "plan.json";

/// Name of the folder of checkpoints in a run's folder.
pub const CHECKPOINTS: &str = "checkpoints";
/// File name of the trained tensors in a checkpoint.
pub const CHECKPOINT_WEIGHTS: &str = "trained.safetensors";
/// File name of the hashes of a checkpoint's files.
pub const CHECKPOINT_MANIFEST: &str = "manifest.json";

/// Whether a run is in progress, and how it ended otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Its process is running.
    Running,
    /// It reached its last step or stopped early, and the result was verified.
    Finished,
    /// A signal stopped it after a checkpoint was saved.
    Interrupted,
    /// It ended with an error.
    Failed,
    /// Its process no longer exists and recorded no end.
    Crashed,
    /// It ran on another machine and recorded no end, so it may still be running there.
    Unknown,
}

impl RunStatus {
    /// Returns the name as pages and `--json` show it.
    pub fn name(self) -> &'static str {
        match self {
            RunStatus::Running => "running",
            RunStatus::Finished => "finished",
            RunStatus::Interrupted => "interrupted",
            RunStatus::Failed => "failed",
            RunStatus::Crashed => "crashed",
            RunStatus::Unknown => "unknown",
        }
    }
}

/// An answer to a prompt after a step; step 0 is before the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSample {
    /// The step.
    pub step: u64,
    /// The whole prompt as text, without the template's special tokens.
    pub prompt: String,
    /// The prompt as turns, if they can be recovered from the template's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns: Option<Vec<ChatTurn>>,
    /// The model's answer.
    pub text: String,
    /// The answer in the data row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
}

/// The contents of a folder that `ft train` wrote.
#[derive(Debug)]
pub struct RunFolder {
    /// Absolute path of the folder.
    pub path: PathBuf,
    /// The settings of the run.
    pub plan: Plan,
    /// `None` for a run of an ft version that wrote no run.json.
    pub facts: Option<RunFacts>,
    /// Its curves.
    pub history: History,
    /// Answers sampled during training.
    pub samples: Vec<RunSample>,
    /// `summary.json` of a finished run.
    pub summary: Option<Value>,
    /// `export_report.json` of a verified result.
    pub export: Option<Value>,
    /// `report_card.json` of a reward model.
    pub card: Option<ReportCard>,
    /// `held_out.json` of reinforcement learning: rewards of answers to held-out prompts before and after.
    pub held_out: Option<Value>,
    /// `ft.lock`; `None` for a run of an ft version that wrote none.
    pub lock: Option<RunLock>,
    /// Results of `ft eval --json` in `eval*.json` or `eval/`: (file, object).
    pub evaluations: Vec<(String, Value)>,
    /// Whether it is in progress, and how it ended otherwise.
    pub state: RunStatus,
}

/// Returns true if a folder contains a run.
pub fn is_run(path: &Path) -> bool {
    path.join(PLAN).is_file() && (path.join(METRICS).is_file() || path.join(super::facts::FACTS).is_file())
}

impl RunFolder {
    /// Reads a run folder. Fails if it contains no run or a damaged file.
    pub fn open(path: &Path) -> Result<Self> {
        if !is_run(path) {
            return Err(Error::user(format!(
                "{}: not a run folder ({PLAN} and {METRICS} are missing)",
                path.display()
            ))
            .hint("a run folder is the `run.out` of a recipe; `ft runs list` shows those below a folder"));
        }
        let facts = RunFacts::read(path)?;
        let optional = |name: &str| -> Result<Option<Value>> {
            let file = path.join(name);
            file.exists().then(|| read_json(&file)).transpose()
        };
        let metrics = path.join(METRICS);
        let mut history = if metrics.exists() { History::read(&metrics)? } else { History::default() };
        history.aim = facts.as_ref().map(|f| f.aim.clone()).unwrap_or_default();
        let summary = optional(SUMMARY)?;
        let state = state(facts.as_ref(), summary.is_some());
        Ok(Self {
            plan: Plan::read(&path.join(PLAN))?,
            history,
            samples: samples(&path.join(SAMPLES))?,
            export: optional("export_report.json")?,
            card: ReportCard::read(path)?,
            held_out: optional("held_out.json")?,
            lock: RunLock::read(path)?,
            evaluations: evaluations(path)?,
            path: absolute(path),
            facts,
            summary,
            state,
        })
    }

    /// Returns the last part of the folder's path.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns a short description of the adapter, such as `lora r16`; `full` if every weight was trained.
    pub fn adapter(&self) -> String {
        self.plan.adapter().unwrap_or("full".into())
    }

    /// Describes a result that is a mean of checkpoints; `None` for other results.
    pub fn averaged_result(&self) -> Option<String> {
        let average: AveragedResult = serde_json::from_value(self.summary.as_ref()?.get("average")?.clone()).ok()?;
        Some(average.describe(self.history.best().map(|best| (best.step, self.history.aim_value(best)))))
    }

    /// Returns the number of steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        let told = self.summary.as_ref().and_then(|s| s["steps"].as_u64());
        self.facts.as_ref().map(|f| f.steps).or(told).unwrap_or(self.history.last_step())
    }

    /// Returns the seconds that all sessions worked, including the current one until now.
    pub fn seconds(&self) -> f64 {
        let Some(facts) = &self.facts else {
            return self.summary.as_ref().and_then(|s| s["seconds"].as_f64()).unwrap_or(0.0);
        };
        let last = facts.sessions.len().saturating_sub(1);
        let one = |(i, s): (usize, &super::facts::RunSession)| match &s.ended {
            Some(ended) => ended.seconds,
            None => {
                // The session recorded no end. If it still runs, it counts until now, else for as long as its steps
                // took.
                let from = s.from_step;
                let until = if i == last { u64::MAX } else { facts.sessions[i + 1].from_step };
                let steps = self.history.steps.iter().filter(|p| p.step > from && p.step <= until);
                let worked: f64 = steps.map(|p| p.seconds).filter(|s| s.is_finite()).sum();
                if self.state == RunStatus::Running && i == last { since(&s.began).unwrap_or(worked) } else { worked }
            }
        };
        facts.sessions.iter().enumerate().map(one).sum()
    }

    /// Returns the time at which the run started.
    pub fn began(&self) -> Option<&str> {
        Some(self.facts.as_ref()?.sessions.first()?.began.as_str())
    }

    /// Returns the steps after which the run was resumed.
    pub fn resumed_steps(&self) -> Vec<u64> {
        let sessions = self.facts.iter().flat_map(|f| f.sessions.iter().skip(1));
        sessions.map(|s| s.from_step).collect()
    }

    /// Returns the message with which the last session ended, if it recorded one.
    pub fn last_words(&self) -> Option<&str> {
        self.facts.as_ref()?.sessions.last()?.ended.as_ref()?.message.as_deref()
    }
}

/// Returns the seconds since a time in the format of `facts::now`.
fn since(began: &str) -> Option<f64> {
    let then = began.parse::<jiff::Timestamp>().ok()?;
    Some((jiff::Timestamp::now() - then).total(jiff::Unit::Second).ok()?.max(0.0))
}

fn state(facts: Option<&RunFacts>, summary: bool) -> RunStatus {
    let Some(session) = facts.and_then(|f| f.sessions.last()) else {
        return if summary { RunStatus::Finished } else { RunStatus::Unknown };
    };
    match (session.ended.as_ref().map(|e| e.outcome), session.alive()) {
        (Some(SessionOutcome::Finished), _) => RunStatus::Finished,
        (Some(SessionOutcome::Interrupted), _) => RunStatus::Interrupted,
        (Some(SessionOutcome::Failed), _) => RunStatus::Failed,
        (None, Some(true)) => RunStatus::Running,
        (None, Some(false)) => RunStatus::Crashed,
        (None, None) => RunStatus::Unknown,
    }
}

/// Reads samples.jsonl; empty if there is none. As with metrics.jsonl, an incomplete last line is ignored.
fn samples(path: &Path) -> Result<Vec<RunSample>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = read_to_string(path)?;
    let mut all = Vec::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        match serde_json::from_str(line) {
            Ok(sample) => all.push(sample),
            Err(_) if !line.ends_with('\n') => break,
            Err(e) => return Err(Error::user(format!("{}:{}: {e}", path.display(), i + 1))),
        }
    }
    Ok(all)
}

/// Reads JSON files that were added to the run folder: `eval*.json` and `eval/*.json`. Returns (file name, contents).
fn evaluations(run: &Path) -> Result<Vec<(String, Value)>> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json") && p.is_file()).collect()
    };
    let named = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("eval"));
    let mut files: Vec<PathBuf> = list(run).into_iter().filter(named).chain(list(&run.join("eval"))).collect();
    files.sort();
    files.iter().map(|f| Ok((f.strip_prefix(run).unwrap_or(f).display().to_string(), read_json(f)?))).collect()
}

/// Finds run folders in `folder` and up to three levels below, the most recently changed first. Does not search hidden
/// folders, `target`, and the inside of run folders.
pub fn find(folder: &Path) -> Result<Vec<PathBuf>> {
    fn walk(folder: &Path, depth: usize, into: &mut Vec<(SystemTime, PathBuf)>) -> std::io::Result<()> {
        if is_run(folder) {
            let touched =
                [METRICS, super::facts::FACTS, PLAN].map(|n| folder.join(n).metadata().and_then(|m| m.modified()));
            into.push((touched.into_iter().flatten().max().unwrap_or(SystemTime::UNIX_EPOCH), folder.to_path_buf()));
            return Ok(());
        }
        if depth == 0 {
            return Ok(());
        }
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type()?.is_dir() && !name.to_string_lossy().starts_with('.') && name != "target" {
                // A folder that cannot be read is ignored.
                let _ = walk(&entry.path(), depth - 1, into);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(folder, 3, &mut found).map_err(|e| crate::fsutil::io_error("reading folder", folder, e))?;
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    Ok(found.into_iter().map(|(_, p)| p).collect())
}
