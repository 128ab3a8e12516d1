//! `run.json`: everything known about a run except its curves, including the processes that worked on it.
//!
//! Written by the trainer when it starts, validates and ends; read by everything that shows runs.

use crate::error::Result;
use crate::fsutil::{read_json, write_json};
use crate::machine;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The file's name in a run folder.
pub const FACTS: &str = "run.json";

/// Contents of `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunFacts {
    /// Name of the training method.
    pub method: String,
    /// A short description of the adapter, such as `lora r16`; `None` if every weight is trained.
    pub adapter: Option<String>,
    /// Folder of the base model.
    pub base: PathBuf,
    /// Number of parameters of the base.
    pub parameters: u64,
    /// Number of trained parameters.
    pub trained: u64,
    /// Optimiser steps of the whole run.
    pub steps: u64,
    /// The training rows.
    pub train: DataFacts,
    /// The validation rows.
    pub valid: Option<DataFacts>,
    /// Programs and machine of the last session.
    pub environment: Environment,
    /// The metric that decides which checkpoint is best.
    #[serde(default)]
    pub aim: RecordedAim,
    /// The processes that worked on the run, in order.
    pub sessions: Vec<RunSession>,
    /// How far the trained weights have moved.
    pub movement: Option<WeightMovement>,
    /// Steps whose numbers were not finite, and where that began.
    pub origins: Vec<NonFiniteEvent>,
}

/// The validation metric that decides which checkpoint is best.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedAim {
    /// Name of the metric.
    pub metric: String,
    /// True if higher values are better.
    pub higher: bool,
}

impl Default for RecordedAim {
    fn default() -> Self {
        Self { metric: "loss".into(), higher: false }
    }
}

/// The training or validation rows as the run read them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataFacts {
    /// Where the rows are.
    pub path: PathBuf,
    /// SHA-256 of the files.
    pub sha256: String,
    /// Name of the format of the rows.
    pub format: String,
    /// Number of rows.
    pub rows: usize,
    /// Number of examples.
    pub examples: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of tokens that are trained on.
    pub supervised_tokens: usize,
    /// Examples dropped because they are too long.
    pub dropped: usize,
    /// Examples truncated because they are too long.
    pub truncated: usize,
    /// Examples split because they are too long.
    pub split: usize,
    /// Tokens of the longest example, before long ones were dropped, truncated or split.
    pub longest: usize,
    /// Tokens that an example may have.
    pub max_len: usize,
    /// Lengths of the examples in tokens.
    pub lengths: LengthHistogram,
}

impl DataFacts {
    /// Returns the share of tokens that are trained on, from 0 to 1.
    pub fn supervised_share(&self) -> f64 {
        self.supervised_tokens as f64 / self.tokens.max(1) as f64
    }
}

/// Example lengths counted in bins of a round width: bin i holds lengths from i·width to (i + 1)·width - 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LengthHistogram {
    /// Width of a bin.
    pub width: usize,
    /// Number of lengths in each bin.
    pub counts: Vec<u64>,
}

impl LengthHistogram {
    /// Counts lengths in at most 25 bins whose width is 1, 2 or 5 times a power of ten.
    pub fn of(lengths: impl Iterator<Item = usize> + Clone) -> Self {
        let longest = lengths.clone().max().unwrap_or(0);
        let widths = (0..).flat_map(|power| [1, 2, 5].map(|d| d * 10_usize.pow(power)));
        let width = widths.into_iter().find(|w| longest / w < 25).unwrap_or(1);
        let mut counts = vec![0; longest / width + 1];
        lengths.for_each(|n| counts[n / width] += 1);
        Self { width, counts }
    }
}

/// Versions of the programs that computed a run. Passed down by the command, which alone knows the version of its
/// libtorch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Software {
    /// Version of ft.
    pub ft: String,
    /// Version of libtorch.
    pub libtorch: String,
}

/// Programs and machine that compute a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of ft.
    pub ft: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// The processor's or the GPU's name.
    pub device_name: String,
    /// Instruction set, such as `AVX-512, bf16 by AMX`. The order of sums, and so the last bits, depend on it.
    pub instructions: String,
    /// Cores of the machine.
    pub cores: usize,
    /// Threads that libtorch computes with.
    pub threads: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Operating system and its version.
    pub system: String,
    /// Host name.
    pub host: String,
}

impl Environment {
    /// Reads the machine's properties. `cuda`: number of the CUDA device; `None` for the CPU.
    pub fn read(software: &Software, cuda: Option<usize>, threads: usize) -> Self {
        let cpu = machine::Cpu::read();
        let gpu =
            |i: usize| machine::cuda_driver().ok().flatten().and_then(|d| d.devices.get(i).map(|d| d.name.clone()));
        let widest = match (cpu.avx512, cpu.avx2) {
            (true, _) => "AVX-512",
            (_, true) => "AVX2",
            _ => "baseline",
        };
        Self {
            ft: software.ft.clone(),
            libtorch: software.libtorch.clone(),
            device: cuda.map_or("cpu".into(), |i| format!("cuda:{i}")),
            device_name: cuda.map_or(cpu.model.clone(), |i| gpu(i).unwrap_or("unknown GPU".into())),
            instructions: match cpu.bf16() {
                Some(bf16) => format!("{widest}, bf16 by {bf16}"),
                None => widest.to_string(),
            },
            cores: cpu.cores,
            threads,
            memory: machine::SystemMemory::read().total,
            system: first_line("/proc/sys/kernel/osrelease").map_or("unknown".into(), |v| format!("Linux {v}")),
            host: host(),
        }
    }
}

fn first_line(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.lines().next()?.to_string())
}

/// Returns the machine's host name.
pub fn host() -> String {
    first_line("/proc/sys/kernel/hostname").filter(|h| !h.is_empty()).unwrap_or("localhost".into())
}

/// A process that worked on the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSession {
    /// Local time with its offset, RFC 3339.
    pub began: String,
    /// The step after which it continued; 0 for a new run.
    pub from_step: u64,
    /// Host name of its machine.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// Start of the process in clock ticks since boot. Distinguishes it from a later process with the same pid.
    pub process: Option<u64>,
    /// `None` while the process runs, or if it was killed.
    pub ended: Option<SessionEnd>,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionEnd {
    /// Local time with its offset, RFC 3339.
    pub at: String,
    /// Seconds since the session began.
    pub seconds: f64,
    /// The last step done.
    pub step: u64,
    /// How it ended.
    pub outcome: SessionOutcome,
    /// The error, where there was one.
    pub message: Option<String>,
}

/// Outcome of a session that ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionOutcome {
    /// The run reached its end and the result was verified.
    Finished,
    /// A signal stopped the run.
    Interrupted,
    /// An error ended the run.
    Failed,
}

/// Returns the current local time in the format of run.json (RFC 3339 with offset).
pub fn now() -> String {
    jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

impl RunSession {
    /// Starts a session of this process, now.
    pub fn begin(from_step: u64) -> Self {
        let pid = std::process::id();
        Self { began: now(), from_step, host: host(), pid, process: process_start(pid), ended: None }
    }

    /// Returns true if the session's process still runs; `None` if it ran on another machine.
    pub fn alive(&self) -> Option<bool> {
        (self.host == host()).then(|| self.process.is_some() && process_start(self.pid) == self.process)
    }
}

/// Returns the start time of a process in clock ticks since boot: field 22 of /proc/PID/stat. The second field, a name
/// in brackets, may contain spaces and brackets, so fields are counted from the last closing bracket.
fn process_start(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None; // a zombie: the process has ended
    }
    fields.nth(18)?.parse().ok()
}

/// How far the trained weights moved between two steps, measured on a sample of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WeightMovement {
    /// The earlier step.
    pub from_step: u64,
    /// The later step.
    pub to_step: u64,
    /// Number of trained tensors.
    pub tensors: usize,
    /// Number of trained tensors that did not move at all.
    pub unmoved: usize,
    /// Norm of the change divided by the norm of the weights (the larger of before and after).
    pub relative: f64,
}

/// A step whose numbers were not finite, and where that began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NonFiniteEvent {
    /// The step.
    pub step: u64,
    /// Loss of the step, as text: JSON has no NaN or infinity.
    pub loss: String,
    /// Norm of all gradients, as text.
    pub grad_norm: String,
    /// Description of the first tensor or layer that is not finite, and of its values.
    pub place: String,
    /// `frozen weights`, `trained weights`, `forward`, `loss`, `backward` or `unknown`.
    pub stage: String,
}

impl RunFacts {
    /// Reads the facts of a run folder; `None` if it has none.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join(FACTS);
        path.exists().then(|| read_json(&path)).transpose()
    }

    /// Writes the facts into a run folder.
    pub fn write(&self, run: &Path) -> Result<()> {
        write_json(&run.join(FACTS), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_knows_whether_its_process_lives() {
        let mut session = RunSession::begin(0);
        assert_eq!(session.alive(), Some(true));
        session.process = session.process.map(|t| t + 1);
        assert_eq!(session.alive(), Some(false), "another process has the number now");
        session.host = "elsewhere.invalid".into();
        assert_eq!(session.alive(), None);
    }

    #[test]
    fn bins_hold_every_length() {
        for lengths in [vec![], vec![0], vec![3, 1, 9], (0..1234).collect::<Vec<_>>()] {
            let bins = LengthHistogram::of(lengths.iter().copied());
            assert_eq!(bins.counts.iter().sum::<u64>() as usize, lengths.len());
            assert!(bins.counts.len() <= 25, "{bins:?}");
        }
        assert_eq!(LengthHistogram::of([24, 25].into_iter()).width, 2);
    }
}
