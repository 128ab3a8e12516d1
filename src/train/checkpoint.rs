//! Saves and restores checkpoints: everything that a run needs to resume as if it had never stopped.
//!
//! `out/checkpoints/step-N/` contains the trained tensors, the state of the optimiser, of libtorch's random generator
//! and of the method, `state.json`, and `manifest.json` with the SHA-256 of every other file. Invariant: a checkpoint
//! appears complete or not at all (written under another name, then renamed), and one whose hashes do not match is
//! never used. The last `run.keep` checkpoints and the best one are kept, and those that are averaged.

use super::average::AveragedCheckpoints;
use super::optim::Optimiser;
use crate::data::batch::LoaderCursor;
use crate::error::{Context, Error, Result};
use crate::fsutil::{io_error, read_json, recover_dir, replace_dir, sha256, write_json};
use crate::models::Model;
use crate::native;
use crate::nn::{Param, Weights, weights};
use crate::recipe::sections::RunSection;
use crate::report;
use crate::runs::folder::{CHECKPOINT_MANIFEST as MANIFEST, CHECKPOINT_WEIGHTS as TRAINED, CHECKPOINTS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Progress of a run, as `state.json` stores it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingState {
    /// Optimiser steps done.
    pub step: u64,
    /// Position in the training rows.
    pub cursor: LoaderCursor,
    /// Tokens seen.
    pub tokens: u64,
    /// The best validation so far and its step.
    pub best: Option<BestValidation>,
    /// Number of validations since the best one.
    pub stale: u32,
    /// Steps without an update because loss or gradient were not finite.
    pub skipped: u64,
    /// Skipped steps at the current end in a row.
    pub skipped_in_a_row: u32,
    /// The resolved recipe and the SHA-256 of its data files. A checkpoint is resumed only if these are unchanged.
    pub origin: serde_json::Value,
}

/// The best validation of a run so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BestValidation {
    /// The step.
    pub step: u64,
    /// Value of the metric that the method aims at.
    pub value: f64,
}

impl TrainingState {
    /// Returns the state before the first step.
    pub fn new(origin: serde_json::Value) -> Self {
        Self {
            step: 0,
            cursor: LoaderCursor::default(),
            tokens: 0,
            best: None,
            stale: 0,
            skipped: 0,
            skipped_in_a_row: 0,
            origin,
        }
    }
}

const OPTIMISER: &str = "optimiser.safetensors";
const GENERATOR: &str = "generator.safetensors";
const METHOD: &str = "method.safetensors";
const STATE: &str = "state.json";
const FILES: [&str; 5] = [TRAINED, OPTIMISER, GENERATOR, METHOD, STATE];

/// The tensors that a method stores in a checkpoint, by name.
pub type MethodState = BTreeMap<String, Tensor>;

/// SHA-256 of a checkpoint's files, by file name.
type Manifest = BTreeMap<String, String>;

/// The checkpoints of one run.
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    /// Those whose mean becomes the result.
    averaged: Option<AveragedCheckpoints>,
}

impl Checkpoints {
    /// Addresses the checkpoints in the run folder `out`, of which the last `keep` are kept.
    pub fn new(out: &Path, keep: usize) -> Self {
        Self { folder: out.join(CHECKPOINTS), keep, averaged: None }
    }

    /// Addresses the checkpoints of a run, of which those are kept that its settings need.
    pub fn of_run(run: &RunSection) -> Self {
        Self { averaged: AveragedCheckpoints::of(run), ..Self::new(&run.out, run.keep) }
    }

    /// Returns the steps of the checkpoints whose mean becomes the result of a run that ends with `last`, in ascending
    /// order; `None` if the result is no mean.
    pub fn averaged(&self, last: u64) -> Option<Vec<u64>> {
        Some(self.averaged?.among(&self.steps(), last))
    }

    fn step_folder(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// Returns the names of all entries of the checkpoints folder.
    fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    /// Returns the steps of all checkpoints in ascending order, damaged ones included.
    pub fn steps(&self) -> Vec<u64> {
        let mut steps: Vec<u64> =
            self.entries().iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    }

    /// Saves a checkpoint, then removes those that are neither among the last `keep` nor the best, nor averaged if the run ended
    /// now or later.
    pub fn save(&self, model: &Model, optim: &Optimiser, method: &MethodState, state: &TrainingState) -> Result<()> {
        replace_dir(&self.step_folder(state.step), |to| {
            for (file, tensors) in tensors_by_file(model, optim, method)? {
                weights::save(&to.join(file), tensors.iter().map(|(n, t)| (n.as_str(), t)))?;
            }
            write_json(&to.join(STATE), state)?;
            let hash = |file: &&str| Ok((file.to_string(), sha256(&to.join(file))?));
            write_json(&to.join(MANIFEST), &FILES.iter().map(hash).collect::<Result<Manifest>>()?)
        })
        .context(|| format!("saving the checkpoint of step {}", state.step))?;
        let steps = self.steps();
        let last = steps.len().saturating_sub(self.keep);
        let mut kept: Vec<u64> = self.averaged.map_or_else(Vec::new, |averaged| averaged.among(&steps, state.step));
        kept.extend(std::iter::once(state.step).chain(state.best.map(|b| b.step)));
        steps[..last].iter().filter(|s| !kept.contains(*s)).try_for_each(|s| self.remove(*s))
    }

    /// Removes a checkpoint. It is renamed first, so that a kill in between leaves no incomplete checkpoint under its
    /// name.
    fn remove(&self, step: u64) -> Result<()> {
        let (path, gone) = (self.step_folder(step), self.folder.join(format!(".step-{step}.removed")));
        std::fs::rename(&path, &gone).map_err(|e| io_error("removing", &path, e))?;
        std::fs::remove_dir_all(&gone).map_err(|e| io_error("removing", &gone, e))
    }

    /// Removes incomplete checkpoints of a process that was killed while it saved or removed one.
    pub fn remove_leftovers(&self) -> Result<()> {
        for name in self.entries().iter().filter(|name| name.starts_with(".step-")) {
            let path = self.folder.join(name);
            if let Some(step) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".old")) {
                recover_dir(&self.folder.join(step))?;
                continue;
            }
            std::fs::remove_dir_all(&path).map_err(|e| io_error("removing", &path, e))?;
        }
        Ok(())
    }

    /// Checks the hashes of a checkpoint and returns its state. Fails if a file is missing or differs from its hash.
    fn read_verified(&self, step: u64) -> Result<TrainingState> {
        let folder = self.step_folder(step);
        let manifest: Manifest = match folder.join(MANIFEST).exists() {
            true => read_json(&folder.join(MANIFEST))?,
            false => return Err(Error::user(format!("{}: there is no {MANIFEST}", folder.display()))),
        };
        for file in FILES {
            let path = folder.join(file);
            let found = sha256(&path)?;
            if manifest.get(file) != Some(&found) {
                return Err(Error::user(format!("{}: its SHA-256 is not the one in {MANIFEST}", path.display())));
            }
        }
        let state: TrainingState = read_json(&folder.join(STATE))?;
        match state.step == step {
            true => Ok(state),
            false => Err(Error::user(format!("{}: it records step {}", folder.join(STATE).display(), state.step))),
        }
    }

    /// Returns the state of the last undamaged checkpoint; `None` if there are no checkpoints at all. Damaged ones
    /// after it are reported and moved aside. Fails if all are damaged.
    pub fn last_good(&self) -> Result<Option<TrainingState>> {
        let mut damaged = Vec::new();
        for step in self.steps().into_iter().rev() {
            match self.read_verified(step) {
                Ok(state) => {
                    damaged.iter().try_for_each(|d| self.move_aside(*d))?;
                    return Ok(Some(state));
                }
                Err(e) => {
                    report::warn(format!("the checkpoint of step {step} is damaged and not used: {}", e.message()));
                    damaged.push(step);
                }
            }
        }
        match damaged.is_empty() {
            true => Ok(None),
            false => {
                Err(Error::user(format!("{}: all {} checkpoints are damaged", self.folder.display(), damaged.len()))
                    .hint("start anew with --overwrite or another run.out"))
            }
        }
    }

    /// Returns the states of all undamaged checkpoints in ascending order. Changes no file.
    pub fn good_states(&self) -> Vec<TrainingState> {
        self.steps().into_iter().filter_map(|s| self.read_verified(s).ok()).collect()
    }

    fn move_aside(&self, step: u64) -> Result<()> {
        let (from, to) = (self.step_folder(step), self.folder.join(format!("damaged-step-{step}")));
        let _ = std::fs::remove_dir_all(&to);
        std::fs::rename(&from, &to).map_err(|e| io_error("moving aside", &from, e))?;
        report::warn(format!("it was moved to {}; resuming from the one before", to.display()));
        Ok(())
    }

    /// Restores trained tensors, optimiser and random generator from a checkpoint. Returns the method's tensors, which
    /// the caller passes to the method.
    pub fn restore(&self, step: u64, model: &Model, optim: &mut Optimiser) -> Result<MethodState> {
        self.read_verified(step)?;
        let folder = self.step_folder(step);
        self.restore_weights(step, model)?;
        optim
            .restore(&Weights::open_file(&folder.join(OPTIMISER))?.all())
            .context(|| folder.join(OPTIMISER).display().to_string())?;
        let generator = Weights::open_file(&folder.join(GENERATOR))?;
        let state = generator
            .get("state")
            .ok_or_else(|| Error::user(format!("{}: no `state`", folder.join(GENERATOR).display())))?;
        match state.size() == native::rng_state(model.device())?.size() {
            true => native::set_rng_state(model.device(), &state.copy())?,
            false => report::warn(format!(
                "the checkpoint of step {step} was saved on another kind of device, whose random generator cannot be \
                 continued on {:?}: the random numbers of dropout start anew from run.seed",
                model.device()
            )),
        }
        Ok(Weights::open_file(&folder.join(METHOD))?.all().into_iter().map(|(name, t)| (name, t.copy())).collect())
    }

    /// Restores what a result is made from: the trained tensors, and also the optimiser if it contains averaged
    /// weights.
    pub fn restore_result(&self, step: u64, model: &Model, optim: &mut Optimiser) -> Result<()> {
        match optim.has_averages() {
            true => self.restore(step, model, optim).map(drop),
            false => self.read_verified(step).and_then(|_| self.restore_weights(step, model)),
        }
    }

    fn restore_weights(&self, step: u64, model: &Model) -> Result<()> {
        let saved = self.open_weights(step)?;
        let _no_grad = tch::no_grad_guard();
        for p in model.params().state() {
            p.tensor.shallow_clone().copy_(saved.of(p)?);
        }
        Ok(())
    }

    /// Gives the trained tensors the mean of those of some checkpoints. Sums are float64.
    pub fn restore_mean(&self, steps: &[u64], model: &Model) -> Result<()> {
        let saved = steps.iter().map(|step| self.open_weights(*step)).collect::<Result<Vec<_>>>()?;
        let _no_grad = tch::no_grad_guard();
        for p in model.params().trained_in_run() {
            let mut sum = Tensor::zeros(p.tensor.size(), (Kind::Double, Device::Cpu));
            for checkpoint in &saved {
                sum += checkpoint.of(p)?;
            }
            p.tensor.shallow_clone().copy_(&(sum / saved.len() as f64));
        }
        Ok(())
    }

    /// Opens the tensors of a checkpoint; they stay in their file.
    fn open_weights(&self, step: u64) -> Result<SavedWeights> {
        let path = self.step_folder(step).join(TRAINED);
        Ok(SavedWeights { tensors: Weights::open_file(&path)?.all(), path })
    }

    /// Returns true if a checkpoint is complete and its hashes match.
    pub fn is_good(&self, step: u64) -> bool {
        self.read_verified(step).is_ok()
    }

    /// Compares a checkpoint with the current tensors bit for bit. Returns file and name of the first tensor that
    /// differs.
    pub fn first_difference(
        &self,
        step: u64,
        model: &Model,
        optim: &Optimiser,
        method: &MethodState,
    ) -> Result<Option<String>> {
        for (file, now) in tensors_by_file(model, optim, method)? {
            let then = Weights::open_file(&self.step_folder(step).join(file))?.all();
            let same = |name: &String| match (then.get(name), now.get(name)) {
                (Some(a), Some(b)) => {
                    a.size() == b.size() && a.kind() == b.kind() && weights::bytes(a) == weights::bytes(b)
                }
                _ => false,
            };
            if let Some(name) = now.keys().chain(then.keys()).find(|name| !same(name)) {
                return Ok(Some(format!("{file}: `{name}`")));
            }
        }
        Ok(None)
    }

    /// Removes all checkpoints.
    pub fn clear(&self) -> Result<()> {
        match self.folder.exists() {
            true => std::fs::remove_dir_all(&self.folder).map_err(|e| io_error("removing", &self.folder, e)),
            false => Ok(()),
        }
    }
}

/// The weights in a checkpoint, by their keys.
struct SavedWeights {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl SavedWeights {
    /// Returns the tensor of a parameter. Fails if it is missing or has another shape or dtype.
    fn of(&self, p: &Param) -> Result<&Tensor> {
        let fits = |t: &&Tensor| t.size() == p.tensor.size() && t.kind() == p.tensor.kind();
        self.tensors.get(&key(p)).filter(fits).ok_or_else(|| {
            Error::user(format!("{}: `{}` is missing or of another shape", self.path.display(), key(p)))
                .hint("the recipe changed what is trained; start a new run")
        })
    }
}

/// The tensors of a checkpoint by file: trained weights, optimiser, random generator, method.
type CheckpointTensors = [(&'static str, BTreeMap<String, Tensor>); 4];

fn tensors_by_file(model: &Model, optim: &Optimiser, method: &MethodState) -> Result<CheckpointTensors> {
    let trained = model.params().state().map(|p| (key(p), p.tensor.shallow_clone())).collect();
    let generator = BTreeMap::from([("state".to_string(), native::rng_state(model.device())?)]);
    Ok([
        (TRAINED, trained),
        (OPTIMISER, optim.state()),
        (GENERATOR, generator),
        (METHOD, method.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect()),
    ])
}

/// Returns a parameter's name in the checkpoint. Adapters of one base may use equal names, so the adapter's id precedes
/// it.
fn key(p: &Param) -> String {
    match p.adapter {
        Some(id) => format!("{id}/{}", p.name),
        None => p.name.clone(),
    }
}
