//! Starts a run in its folder: decides what happens to earlier work there, and takes the folder for this process.

use super::checkpoint::{Checkpoints, TrainingState};
use super::origin;
use super::prepare::Prepared;
use super::records::files;
use super::{fit, result};
use crate::adapters::{AdapterSpec, file};
use crate::error::{Error, Result};
use crate::fsutil::{create_dir_all, lock_folder};
use crate::models::Dtype;
use crate::recipe::plan::Plan;
use crate::report;
use crate::runs::folder::{METRICS, PLAN};
use serde_json::Value;
use std::fs::File;
use std::path::Path;

/// What to do with earlier work in `run.out`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartMode {
    /// Fail if there is any.
    Fresh,
    /// Resume from the last checkpoint.
    Resume,
    /// Delete it and start from step 0.
    Overwrite,
}

/// Files whose presence means that a folder contains an adapter or a model.
const RESULTS: [&str; 3] = [file::TENSORS, "model.safetensors", "model.safetensors.index.json"];

/// Returns the plan to prepare. If `start` is [`StartMode::Fresh`], fails at once if `run.out` has earlier work, before
/// data is read; [`enter`] checks again under the folder's lock. A resumed run keeps the choices of the recorded plan.
pub fn plan_for(plan: &Plan, start: StartMode) -> Result<Plan> {
    let run = &plan.recipe.run;
    match start {
        StartMode::Fresh => {
            refuse_earlier_work(&run.out, &Checkpoints::of_run(run))?;
            Ok(plan.clone())
        }
        StartMode::Resume => with_recorded_choices(plan),
        StartMode::Overwrite => Ok(plan.clone()),
    }
}

/// Returns the plan with the number format, the date and the ranks of the recorded plan, where the recipe leaves them open.
///
/// `dtype: auto` and a missing `data.date` are resolved from the machine and the current day. A resumed run may be on
/// another machine or another day, and must keep the values that it started with.
fn with_recorded_choices(plan: &Plan) -> Result<Plan> {
    let mut plan = plan.clone();
    let path = plan.recipe.run.out.join(PLAN);
    if !path.exists() {
        return Ok(plan);
    }
    let recorded = Plan::read(&path)?.recipe;
    if plan.recipe.model.dtype == Dtype::Auto {
        plan.recipe.model.dtype = recorded.model.dtype;
    }
    plan.recipe.data.date = plan.recipe.data.date.or(recorded.data.date);
    if let (Some(AdapterSpec::Lora(asked)), Some(AdapterSpec::Lora(found))) =
        (&mut plan.recipe.adapter, recorded.adapter)
        && found.distributes_ranks_of(asked)
    {
        *asked = found;
    }
    Ok(plan)
}

/// A run that may start in its folder.
pub struct RunStart {
    /// The checkpoints in the folder.
    pub checkpoints: Checkpoints,
    /// The state to continue from; that before the first step for a new run.
    pub state: TrainingState,
    /// Keeps other processes out of the folder. `None` while the folder does not exist.
    pub lock: Option<File>,
    /// Memory permits that results of norms and activations are kept for the backward.
    pub keeps_inputs: bool,
}

/// Checks that a prepared run may start: it does not overwrite its own base, its folder is free, it fits into memory,
/// and earlier work in the folder is as `start` expects. Deletes earlier work if `start` asks for it.
pub fn enter(prepared: &Prepared, start: StartMode) -> Result<RunStart> {
    let (model, run) = (&prepared.plan.recipe.model, &prepared.plan.recipe.run);
    let origin = origin::origin_of(prepared)?;
    let out = &run.out;
    if std::fs::canonicalize(out).is_ok_and(|o| std::fs::canonicalize(&model.path).is_ok_and(|m| o == m)) {
        return Err(Error::user(format!("run.out and model.path are both {}: the base would be lost", out.display()))
            .hint("set another run.out"));
    }
    let lock = lock_folder(out)?;
    result::finish_interrupted_move(out)?;
    let needs = fit::refuse_if_too_large(prepared)?;
    let checkpoints = Checkpoints::of_run(run);
    let earlier = earlier_work(out, &checkpoints, start, &origin)?;
    let state = earlier.unwrap_or_else(|| TrainingState::new(origin));
    Ok(RunStart { checkpoints, state, lock, keeps_inputs: needs.keeps_inputs })
}

impl RunStart {
    /// Creates and locks the run's folder, unless it exists, and writes the plan into it.
    pub fn create_folder(&mut self, plan: &Plan) -> Result<()> {
        let out = &plan.recipe.run.out;
        create_dir_all(out)?;
        if self.lock.is_none() {
            self.lock = lock_folder(out)?;
        }
        plan.write(&out.join(PLAN))
    }
}

/// Returns the state to resume from; `None` starts from step 0. With [`StartMode::Overwrite`] earlier work is deleted.
///
/// Fails if `run.out` has earlier work and `start` is [`StartMode::Fresh`], if there is no checkpoint to resume from,
/// or if recipe or data differ from those of the checkpoint.
fn earlier_work(
    out: &Path,
    checkpoints: &Checkpoints,
    start: StartMode,
    origin: &Value,
) -> Result<Option<TrainingState>> {
    let result = RESULTS.iter().find(|name| out.join(name).exists());
    if start == StartMode::Resume {
        checkpoints.remove_leftovers()?;
    }
    let saved = match start {
        StartMode::Resume => checkpoints.last_good()?,
        _ => None,
    };
    match (start, saved) {
        (StartMode::Resume, Some(state)) => {
            let changed = origin::differences(&state.origin, origin);
            if !changed.is_empty() {
                return Err(Error::user(format!(
                    "{}: recipe or data changed since the checkpoint of step {}:\n  {}",
                    out.display(),
                    state.step,
                    changed.join("\n  ")
                ))
                .hint("put them back, or start anew with --overwrite or another run.out"));
            }
            Ok(Some(state))
        }
        (StartMode::Resume, None) if result.is_none() && out.join(PLAN).exists() => {
            report::warn(format!("{}: the run ended before its first checkpoint; it starts anew", out.display()));
            remove_earlier_work(out, checkpoints)?;
            Ok(None)
        }
        (StartMode::Resume, None) => {
            Err(Error::user(format!("{}: there is no checkpoint to resume from", out.display()))
                .hint("start without --resume"))
        }
        (StartMode::Fresh, ..) => refuse_earlier_work(out, checkpoints).map(|()| None),
        (StartMode::Overwrite, ..) => {
            remove_earlier_work(out, checkpoints)?;
            Ok(None)
        }
    }
}

/// Fails if `run.out` contains a run or the result of one.
fn refuse_earlier_work(out: &Path, checkpoints: &Checkpoints) -> Result<()> {
    let refuse = |what: String, hint: &str| Err(Error::user(format!("{}: holds {what}", out.display())).hint(hint));
    if let Some(step) = checkpoints.steps().last() {
        let hint = "continue it with --resume, delete it with --overwrite, or set another run.out";
        return refuse(format!("a run that is at step {step}"), hint);
    }
    if out.join(METRICS).exists() {
        return refuse("the metrics of an earlier run".into(), "delete them with --overwrite, or set another run.out");
    }
    match RESULTS.iter().find(|name| out.join(name).exists()) {
        Some(name) => refuse(format!("{name} already"), "replace it with --overwrite, or set another run.out"),
        None => Ok(()),
    }
}

/// Deletes the checkpoints and records of an earlier run; its result stays until a new one replaces it.
fn remove_earlier_work(out: &Path, checkpoints: &Checkpoints) -> Result<()> {
    checkpoints.clear()?;
    files::clear(out)
}
