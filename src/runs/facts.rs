//! `run.json`: what is known of a run beside its curves, and who is or was working on it.
//!
//! Written by the trainer when it starts, validates and ends; read by everything that shows runs.

use crate::error::Result;
use crate::fsutil::{read_json, write_json};
use crate::machine;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The file's name in a run folder.
pub const FACTS: &str = "run.json";

/// What the trainer noted down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub method: String,
    /// `lora r16`; `None` where every weight is trained.
    pub adapter: Option<String>,
    pub base: PathBuf,
    pub parameters: u64,
    pub trained: u64,
    /// Optimiser steps of the whole run.
    pub steps: u64,
    pub train: DataFacts,
    pub valid: Option<DataFacts>,
    pub environment: Environment,
    /// What decides which checkpoint is best.
    #[serde(default)]
    pub aim: super::Aim,
    /// Every time the run was worked on.
    pub sessions: Vec<Session>,
    /// How far the trained numbers have moved.
    pub movement: Option<Movement>,
    /// Where numbers stopped being finite, as far as it was found.
    pub origins: Vec<Origin>,
}

/// Rows as the run saw them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataFacts {
    pub path: PathBuf,
    pub sha256: String,
    pub format: String,
    pub rows: usize,
    pub examples: usize,
    pub tokens: usize,
    pub supervised_tokens: usize,
    pub dropped: usize,
    pub truncated: usize,
    pub split: usize,
    /// The longest example before the policy for long ones, in tokens.
    pub longest: usize,
    pub max_len: usize,
    pub lengths: Bins,
}

impl DataFacts {
    /// The share of tokens that is learnt.
    pub fn supervised_share(&self) -> f64 {
        self.supervised_tokens as f64 / self.tokens.max(1) as f64
    }
}

/// Example lengths counted in bins of a round width: bin i holds lengths from i·width to (i + 1)·width - 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Bins {
    pub width: usize,
    pub counts: Vec<u64>,
}

impl Bins {
    /// About two dozen bins.
    pub fn of(lengths: impl Iterator<Item = usize> + Clone) -> Self {
        let longest = lengths.clone().max().unwrap_or(0);
        let widths = (0..).flat_map(|power| [1, 2, 5].map(|d| d * 10_usize.pow(power)));
        let width = widths.into_iter().find(|w| longest / w < 25).unwrap_or(1);
        let mut counts = vec![0; longest / width + 1];
        lengths.for_each(|n| counts[n / width] += 1);
        Self { width, counts }
    }
}

/// The programs that computed a run; only the command knows its own libtorch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Software {
    pub ft: String,
    pub libtorch: String,
}

/// What a run is computed on and by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    pub ft: String,
    pub libtorch: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// The processor's or the GPU's name.
    pub device_name: String,
    /// `AMX`, `AVX-512`; the arithmetic's order of sums depends on it.
    pub instructions: String,
    pub cores: usize,
    /// Threads that libtorch computes with.
    pub threads: usize,
    pub memory: u64,
    pub system: String,
    pub host: String,
}

impl Environment {
    /// Reads the machine; `cuda` is the number of the device where one is used.
    pub fn read(software: &Software, cuda: Option<usize>, threads: usize) -> Self {
        let cpu = machine::Cpu::read();
        let gpu = |i: usize| machine::driver().ok().flatten().and_then(|d| d.devices.get(i).map(|d| d.name.clone()));
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
            memory: machine::Memory::read().total,
            system: first_line("/proc/sys/kernel/osrelease").map_or("unknown".into(), |v| format!("Linux {v}")),
            host: host(),
        }
    }
}

fn first_line(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.lines().next()?.to_string())
}

/// The machine's name.
pub fn host() -> String {
    first_line("/proc/sys/kernel/hostname").filter(|h| !h.is_empty()).unwrap_or("localhost".into())
}

/// One process that worked on the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Local time with its offset, RFC 3339.
    pub began: String,
    /// The step it went on from; 0 for the first.
    pub from_step: u64,
    pub host: String,
    pub pid: u32,
    /// When the process started, in clock ticks since the machine did: tells a process from a later one of its number.
    pub process: Option<u64>,
    pub ended: Option<Ended>,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    pub at: String,
    pub seconds: f64,
    pub step: u64,
    pub outcome: Outcome,
    /// The error, where there was one.
    pub message: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Finished,
    Interrupted,
    Failed,
}

/// Now, as run.json writes it.
pub fn now() -> String {
    jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

impl Session {
    /// This process, from now on.
    pub fn begin(from_step: u64) -> Self {
        let pid = std::process::id();
        Self { began: now(), from_step, host: host(), pid, process: process_start(pid), ended: None }
    }

    /// Whether its process still runs: `None` where that cannot be seen from this machine.
    pub fn alive(&self) -> Option<bool> {
        (self.host == host()).then(|| self.process.is_some() && process_start(self.pid) == self.process)
    }
}

/// Field 22 of /proc/PID/stat; the second field is a name in brackets that may hold anything.
fn process_start(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None; // ended; nobody has asked how yet
    }
    fields.nth(18)?.parse().ok()
}

/// How far the trained numbers moved, measured on a sample of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Movement {
    /// Between these steps.
    pub from_step: u64,
    pub to_step: u64,
    /// Trained tensors, and how many of them did not move at all.
    pub tensors: usize,
    pub unmoved: usize,
    /// Norm of the change over the norm of the numbers.
    pub relative: f64,
}

/// Where a step's numbers stopped being finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    pub step: u64,
    /// Its loss and gradient norm, as text: JSON has no word for what is not finite.
    pub loss: String,
    pub grad_norm: String,
    /// In words: the first tensor or layer, and what it holds.
    pub place: String,
    /// `frozen weights`, `trained weights`, `forward`, `loss`, `backward` or `unknown`.
    pub stage: String,
}

impl Facts {
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join(FACTS);
        path.exists().then(|| read_json(&path)).transpose()
    }

    pub fn write(&self, run: &Path) -> Result<()> {
        write_json(&run.join(FACTS), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_knows_whether_its_process_lives() {
        let mut session = Session::begin(0);
        assert_eq!(session.alive(), Some(true));
        session.process = session.process.map(|t| t + 1);
        assert_eq!(session.alive(), Some(false), "another process has the number now");
        session.host = "elsewhere.invalid".into();
        assert_eq!(session.alive(), None);
    }

    #[test]
    fn bins_hold_every_length() {
        for lengths in [vec![], vec![0], vec![3, 1, 9], (0..1234).collect::<Vec<_>>()] {
            let bins = Bins::of(lengths.iter().copied());
            assert_eq!(bins.counts.iter().sum::<u64>() as usize, lengths.len());
            assert!(bins.counts.len() <= 25, "{bins:?}");
        }
        assert_eq!(Bins::of([24, 25].into_iter()).width, 2);
    }
}
