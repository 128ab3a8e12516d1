//! Checkpoints: all that a run needs to go on as if it had never stopped.
//!
//! `out/checkpoints/step-N/` holds the trained tensors, the optimiser's state, the generator's state and `state.json`.
//! A checkpoint appears whole or not at all; the last few and the best are kept.

use super::optim::Optimiser;
use crate::data::Cursor;
use crate::error::{Context, Error, Result};
use crate::fsutil::{io_error, read_json, replace_dir, write_json};
use crate::models::Model;
use crate::native;
use crate::nn::{Param, Weights, weights};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimiser steps done.
    pub step: u64,
    pub cursor: Cursor,
    /// Tokens seen.
    pub tokens: u64,
    /// The lowest validation loss so far and its step.
    pub best: Option<Best>,
    /// Validations since then.
    pub stale: u32,
    /// Steps left out because a number was not finite, and how many of them in a row just now.
    pub skipped: u64,
    pub skipped_in_a_row: u32,
    /// What the run is made of: the resolved recipe and the SHA-256 of its data files.
    pub origin: serde_json::Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub loss: f64,
}

impl State {
    pub fn new(origin: serde_json::Value) -> Self {
        Self {
            step: 0,
            cursor: Cursor::default(),
            tokens: 0,
            best: None,
            stale: 0,
            skipped: 0,
            skipped_in_a_row: 0,
            origin,
        }
    }
}

const TRAINED: &str = "trained.safetensors";
const OPTIMISER: &str = "optimiser.safetensors";
const GENERATOR: &str = "generator.safetensors";
const STATE: &str = "state.json";

/// The checkpoints of one run.
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    pub fn new(out: &Path, keep: usize) -> Self {
        Self { folder: out.join("checkpoints"), keep }
    }

    fn at(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// Steps of the checkpoints there are, in order.
    pub fn steps(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let step = |e: std::fs::DirEntry| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
        let mut steps: Vec<u64> = entries.filter_map(step).filter(|s| self.at(*s).join(STATE).exists()).collect();
        steps.sort_unstable();
        steps
    }

    /// Saves where the run stands and prunes what is neither among the last few nor the best.
    pub fn save(&self, model: &Model, optim: &Optimiser, state: &State) -> Result<()> {
        replace_dir(&self.at(state.step), |to| {
            let trained: Vec<(String, &Tensor)> = model.params().trainable().map(|p| (key(p), &p.tensor)).collect();
            weights::save(&to.join(TRAINED), trained.iter().map(|(n, t)| (n.as_str(), *t)))?;
            let optim = optim.state();
            weights::save(&to.join(OPTIMISER), optim.iter().map(|(n, t)| (n.as_str(), t)))?;
            let generator = native::rng_state(model.device())?;
            weights::save(&to.join(GENERATOR), [("state", &generator)])?;
            write_json(&to.join(STATE), state)
        })
        .context(|| format!("saving the checkpoint of step {}", state.step))?;
        let steps = self.steps();
        let last = steps.len().saturating_sub(self.keep);
        for step in steps[..last].iter().filter(|s| Some(**s) != state.best.map(|b| b.step)) {
            let path = self.at(*step);
            std::fs::remove_dir_all(&path).map_err(|e| io_error("removing", &path, e))?;
        }
        Ok(())
    }

    /// The state of the last checkpoint.
    pub fn last(&self) -> Result<Option<State>> {
        self.steps().last().map(|s| read_json(&self.at(*s).join(STATE))).transpose()
    }

    /// Puts a checkpoint's tensors, optimiser and generator back.
    pub fn restore(&self, step: u64, model: &Model, optim: &mut Optimiser) -> Result<()> {
        let folder = self.at(step);
        self.restore_weights(step, model)?;
        optim.restore(&Weights::open_file(&folder.join(OPTIMISER))?.all())?;
        let generator = Weights::open_file(&folder.join(GENERATOR))?;
        let state = generator
            .get("state")
            .ok_or_else(|| Error::user(format!("{}: no `state`", folder.join(GENERATOR).display())))?;
        native::set_rng_state(model.device(), &state.copy())
    }

    /// Puts a checkpoint's trained tensors back, and nothing else.
    pub fn restore_weights(&self, step: u64, model: &Model) -> Result<()> {
        let path = self.at(step).join(TRAINED);
        let saved: BTreeMap<String, Tensor> = Weights::open_file(&path)?.all();
        let _no_grad = tch::no_grad_guard();
        for p in model.params().trainable() {
            let from = saved.get(&key(p)).filter(|t| t.size() == p.tensor.size()).ok_or_else(|| {
                Error::user(format!("{}: `{}` is missing or of another shape", path.display(), key(p)))
                    .hint("the recipe changed what is trained; start a new run")
            })?;
            p.tensor.shallow_clone().copy_(from);
        }
        Ok(())
    }

    /// Removes all checkpoints.
    pub fn clear(&self) -> Result<()> {
        match self.folder.exists() {
            true => std::fs::remove_dir_all(&self.folder).map_err(|e| io_error("removing", &self.folder, e)),
            false => Ok(()),
        }
    }
}

/// Adapters of one base may use the same names.
fn key(p: &Param) -> String {
    match p.adapter {
        Some(id) => format!("{id}/{}", p.name),
        None => p.name.clone(),
    }
}

/// What differs between the recipe and data of a checkpoint and those of now, one line a key.
pub fn differences(then: &serde_json::Value, now: &serde_json::Value) -> Vec<String> {
    fn flatten(prefix: &str, v: &serde_json::Value, into: &mut BTreeMap<String, String>) {
        match v {
            serde_json::Value::Object(o) => {
                for (k, v) in o {
                    flatten(&if prefix.is_empty() { k.clone() } else { format!("{prefix}.{k}") }, v, into);
                }
            }
            other => {
                into.insert(prefix.to_string(), other.to_string());
            }
        }
    }
    let (mut a, mut b) = (BTreeMap::new(), BTreeMap::new());
    flatten("", then, &mut a);
    flatten("", now, &mut b);
    let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let show = |m: &BTreeMap<String, String>, k: &String| m.get(k).cloned().unwrap_or("not set".into());
    keys.into_iter()
        .filter(|k| a.get(*k) != b.get(*k))
        .map(|k| format!("{k}: was {}, is {}", show(&a, k), show(&b, k)))
        .collect()
}
