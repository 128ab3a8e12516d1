//! Trains a model: the one loop that serves every method.
//!
//! [`run`] prepares a plan, takes or resumes the run folder, executes the loop and writes the verified result. A method
//! only decides which micro-batches make a step and how their loss is computed; gradient accumulation, clipping, the
//! optimiser, validation, checkpoints, records and early stopping are written once, here and in the modules below.

pub mod check;
pub mod checkpoint;
pub mod fit;
mod lock;
pub mod log;
pub mod memory;
mod movement;
pub mod optim;
pub mod prepare;
mod records;
pub mod replay;
mod result;
mod sample;
pub mod schedule;
mod step;
pub mod teach;
pub mod verify;

pub use prepare::Prepared;

use crate::adapters::file;
use crate::error::{Blame, Error, Result, catch_libtorch};
use crate::fsutil::{create_dir_all, hold, write_json};
use crate::methods::{Aim, Alarm, Means, Method};
use crate::models::{Dtype, Model};
use crate::native;
use crate::recipe::{NonFinite, Plan, ResultChoice};
use crate::report;
use crate::runs::Software;
use crate::runs::folder::PLAN;
use crate::runs::hash::Trust;
use checkpoint::{Best, Checkpoints, State};
use log::StepLine;
use optim::Optimiser;
use records::Records;
use schedule::LearningRate;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use step::Stepper;

/// What to do with earlier work in `run.out`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Fail if there is any.
    Fresh,
    /// Resume from the last checkpoint.
    Resume,
    /// Delete it and start from step 0.
    Overwrite,
}

/// Results of a completed run, written to summary.json.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    pub out: PathBuf,
    pub steps: u64,
    pub tokens: u64,
    pub seconds: f64,
    /// Mean training loss of the last step; `None` if this session trained no step.
    pub loss: Option<f64>,
    /// Step and value of the best validation (the one before the first step does not count), and the metric compared.
    pub best_step: Option<u64>,
    pub best_metric: String,
    pub best_value: Option<f64>,
    pub stopped_early: bool,
    /// Peak tensor bytes.
    pub memory: u64,
}

/// Files whose presence means that a folder contains an adapter or a model.
const RESULTS: [&str; 3] = [file::TENSORS, "model.safetensors", "model.safetensors.index.json"];

/// Number of consecutive non-finite steps at which a run with `non_finite: skip` stops.
const MOST_SKIPPED: u32 = 10;

/// Trains according to `plan` and writes the verified result into `run.out`. If `stop` becomes true, the run saves a
/// checkpoint after the current step and ends with an "interrupted" error.
pub fn run(plan: &Plan, start: Start, software: &Software, stop: Arc<AtomicBool>) -> Result<Summary> {
    if start == Start::Fresh {
        // Checked before the data is read, so that the refusal comes at once. `earlier_work` checks again under the
        // lock.
        let out = &plan.recipe.run.out;
        refuse_earlier_work(out, &Checkpoints::new(out, plan.recipe.run.keep))?;
    }
    let plan = match start {
        Start::Resume => as_begun(plan)?,
        _ => plan.clone(),
    };
    run_prepared(prepare::prepare(&plan)?, start, software, stop)
}

/// Returns the plan with the number format and the date of the recorded plan, where the recipe leaves them open.
///
/// `dtype: auto` and a missing `data.date` are resolved from the machine and the current day. A resumed run may be on
/// another machine or another day, and must keep the values that it started with.
fn as_begun(plan: &Plan) -> Result<Plan> {
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
    Ok(plan)
}

/// Does the work of [`run`] after the data was read and tokenised.
fn run_prepared(prepared: Prepared, start: Start, software: &Software, stop: Arc<AtomicBool>) -> Result<Summary> {
    let plan = &prepared.plan.clone();
    let origin = prepared.origin()?;
    let out = plan.recipe.run.out.clone();
    if std::fs::canonicalize(&out).is_ok_and(|o| std::fs::canonicalize(&plan.recipe.model.path).is_ok_and(|m| o == m)) {
        return Err(Error::user(format!("run.out and model.path are both {}: the base would be lost", out.display()))
            .hint("set another run.out"));
    }
    let held = hold(&out)?;
    result::recover(&out)?;
    fit::refuse(&prepared)?;
    let checkpoints = Checkpoints::new(&out, plan.recipe.run.keep);
    let earlier = earlier_work(&out, &checkpoints, start, &origin)?;
    let model = prepared.load_model()?;
    create_dir_all(&out)?;
    let _held = match held {
        Some(held) => Some(held),
        None => hold(&out)?,
    };
    plan.write(&out.join(PLAN))?;
    prepared.announce(&model);
    let total = prepared.total;
    let facts = records::facts(&prepared, &model, software);
    let lock = lock::of(&prepared, &facts.environment, software, Trust::Remembered)?;
    let (mut method, tokenizer) = prepared.into_method(&model)?;
    let mut optim = Optimiser::beside(model.params(), &method.parameters(), &plan.recipe.optim, plan.recipe.run.seed)?;
    let state = match earlier {
        Some(state) => {
            let extra = checkpoints.restore(state.step, &model, &mut optim)?;
            method.rewind(state.cursor)?;
            method.restore(extra)?;
            report::info(format!("resuming after step {}", state.step));
            state
        }
        None => State::new(origin),
    };
    let step = state.step;
    let aim = method.aim();
    let records = Records::open(plan, &model, facts, lock, aim, tokenizer, step)?;
    let lr = LearningRate::new(&plan.recipe.optim, plan.lr(), total);
    let mut run = Run {
        at: Stepper { plan, model: &model, lr, optim, state },
        total,
        checkpoints,
        records,
        stop,
        began: Instant::now(),
        loss: None,
        alarmed: BTreeSet::new(),
    };
    let fitted = catch_libtorch(|| run.fit(&mut *method)).map_err(|e| match run.checkpoints.steps().last() {
        Some(step) if e.blame() != Blame::Interrupted => {
            e.hint(format!("the checkpoint of step {step} is kept in {}", out.display()))
        }
        _ => e,
    });
    run.records.finish();
    let Run { at: Stepper { optim, state, .. }, records, checkpoints, began, loss, .. } = run;
    let result = fitted.and_then(|stopped_early| {
        finish(plan, &model, &checkpoints, &state, aim, optim)?;
        method.finish(&model, &out)?;
        let summary = Summary {
            out: out.clone(),
            steps: state.step,
            tokens: state.tokens,
            seconds: began.elapsed().as_secs_f64(),
            loss,
            best_step: state.best.map(|b| b.step),
            best_metric: aim.metric.into(),
            best_value: state.best.map(|b| b.value),
            stopped_early,
            memory: native::memory(model.device())?.peak,
        };
        write_json(&out.join("summary.json"), &summary)?;
        Ok(summary)
    });
    records.close(&result);
    result
}

/// Returns the state to resume from; `None` starts from step 0. With [`Start::Overwrite`] earlier work is deleted.
///
/// Fails if `run.out` has earlier work and `start` is [`Start::Fresh`], if there is no checkpoint to resume from, or if
/// recipe or data differ from those of the checkpoint.
fn earlier_work(
    out: &Path,
    checkpoints: &Checkpoints,
    start: Start,
    origin: &serde_json::Value,
) -> Result<Option<State>> {
    let result = RESULTS.iter().find(|name| out.join(name).exists());
    if start == Start::Resume {
        checkpoints.sweep()?;
    }
    let saved = match start {
        Start::Resume => checkpoints.last_good()?,
        _ => None,
    };
    match (start, saved) {
        (Start::Resume, Some(state)) => {
            let changed = checkpoint::differences(&state.origin, origin);
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
        (Start::Resume, None) if result.is_none() && out.join("plan.json").exists() => {
            report::warn(format!("{}: the run ended before its first checkpoint; it starts anew", out.display()));
            clear(out, checkpoints)?;
            Ok(None)
        }
        (Start::Resume, None) => Err(Error::user(format!("{}: there is no checkpoint to resume from", out.display()))
            .hint("start without --resume")),
        (Start::Fresh, ..) => refuse_earlier_work(out, checkpoints).map(|()| None),
        (Start::Overwrite, ..) => {
            clear(out, checkpoints)?;
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
    if out.join("metrics.jsonl").exists() {
        return refuse("the metrics of an earlier run".into(), "delete them with --overwrite, or set another run.out");
    }
    match RESULTS.iter().find(|name| out.join(name).exists()) {
        Some(name) => refuse(format!("{name} already"), "replace it with --overwrite, or set another run.out"),
        None => Ok(()),
    }
}

/// Deletes the checkpoints and records of an earlier run; its result stays until a new one replaces it.
fn clear(out: &Path, checkpoints: &Checkpoints) -> Result<()> {
    checkpoints.clear()?;
    records::clear(out)
}

struct Run<'a> {
    at: Stepper<'a>,
    total: u64,
    checkpoints: Checkpoints,
    records: Records<'a>,
    stop: Arc<AtomicBool>,
    began: Instant,
    loss: Option<f64>,
    /// Causes of the alarms that were reported already: each is reported once.
    alarmed: BTreeSet<String>,
}

impl Run<'_> {
    /// Trains until the last step. Returns true if the run stopped early: validation no longer improved, or an alarm of
    /// the method demanded it.
    fn fit(&mut self, method: &mut dyn Method) -> Result<bool> {
        if self.out_of_patience() {
            return Ok(true); // a resumed run that had already stopped early
        }
        if self.at.state.step == 0 {
            self.measure_base(method)?;
        }
        while self.at.state.step < self.total {
            let began = Instant::now();
            let done = self.at.advance(method)?;
            self.loss = Some(done.loss);
            let told = done.told();
            if !done.finite {
                self.records.origin(self.at.state.step, done.loss, done.norm, done.origin);
                self.skip(done.loss, done.norm)?;
            }
            let seconds = began.elapsed().as_secs_f64();
            self.records.step(&StepLine {
                step: self.at.state.step,
                epoch: done.epoch,
                loss: done.loss,
                lr: done.lr,
                grad_norm: done.norm,
                tokens: self.at.state.tokens,
                tokens_per_s: done.tokens as f64 / seconds,
                items: done.items,
                seconds,
                memory: native::memory(self.at.model.device())?.peak,
                more: done.means,
            })?;
            let halted = self.heed(method.alarms(&told));
            if self.after_step(method, halted)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reports each alarm of the method once. Returns true if one of them demands that the run ends.
    fn heed(&mut self, alarms: Vec<Alarm>) -> bool {
        for alarm in &alarms {
            if self.alarmed.insert(alarm.cause.clone()) {
                self.records.warn(&format!("step {}: {}\n  next: {}", self.at.state.step, alarm.cause, alarm.next));
            }
        }
        let halted = alarms.iter().any(|a| a.stop);
        if halted {
            self.records.say("stopping here; the best checkpoint is kept");
        }
        halted
    }

    fn out_of_patience(&self) -> bool {
        self.at.plan.recipe.run.patience.is_some_and(|p| self.at.state.stale >= p)
    }

    /// Validates and saves a checkpoint where that is due. Returns true if the run must stop early; fails with an
    /// "interrupted" error, after saving, if a signal arrived. `halted`: an alarm ends the run after this step.
    fn after_step(&mut self, method: &mut dyn Method, halted: bool) -> Result<bool> {
        let run = &self.at.plan.recipe.run;
        let step = self.at.state.step;
        let total = self.total;
        let due = |every: u64| step == total || (every > 0 && step.is_multiple_of(every));
        let better = (due(run.eval_every) || halted) && self.validate(method)?;
        let done = self.out_of_patience() || halted;
        let interrupted = self.stop.load(Ordering::Relaxed);
        if due(run.save_every) || better || done || interrupted {
            self.checkpoints.save(self.at.model, &self.at.optim, &method.state(), &self.at.state)?;
        }
        if interrupted && step < self.total {
            return Err(Error::interrupted(format!("stopped by a signal; step {step} of {} is saved", self.total))
                .hint(format!("continue with: ft resume {}", run.out.display())));
        }
        if self.out_of_patience() {
            self.records.say(&format!("stopping early: {} validations without improvement", self.at.state.stale));
        }
        Ok(done)
    }

    /// Measures the validation rows with the averaged weights, if there are such, and generates the samples. Returns
    /// true if the metric that the method aims at is the best so far.
    fn validate(&mut self, method: &mut dyn Method) -> Result<bool> {
        let _averaged = self.at.optim.averaged();
        let Some(means) = validation(method, self.at.model)? else {
            self.records.samples(&method.prompts(self.at.plan.recipe.run.samples), self.at.state.step)?;
            self.records.measured()?;
            return Ok(false);
        };
        let aim = method.aim();
        let value = means.get(aim.metric).copied().unwrap_or(f64::NAN);
        let better = value.is_finite() && self.at.state.best.is_none_or(|b| aim.better(value, b.value));
        if better {
            self.at.state.best = Some(Best { step: self.at.state.step, value });
            self.at.state.stale = 0;
        } else {
            self.at.state.stale += 1;
        }
        self.records.validation(self.at.state.step, &means, if better { "  (best so far)" } else { "" })?;
        self.records.samples(&method.prompts(self.at.plan.recipe.run.samples), self.at.state.step)?;
        self.records.measured()?;
        Ok(better)
    }

    /// Measures and samples the model before the first step.
    fn measure_base(&mut self, method: &mut dyn Method) -> Result<()> {
        let run = &self.at.plan.recipe.run;
        if let Some(means) = if run.eval_at_start { validation(method, self.at.model)? } else { None } {
            self.records.validation(0, &means, "  (before the first step)")?;
        }
        self.records.samples(&method.prompts(self.at.plan.recipe.run.samples), 0)?;
        self.records.measured()
    }

    /// Handles a step whose loss or gradient norm is not finite; its update was not applied. Returns an error that ends
    /// the run, or `Ok` if `optim.non_finite: skip` lets the run continue.
    fn skip(&mut self, loss: f64, norm: f64) -> Result<()> {
        let what = format!("step {}: loss {loss}, gradient norm {norm}", self.at.state.step);
        let last = self
            .checkpoints
            .steps()
            .last()
            .map_or("no checkpoint was saved yet".into(), |s| format!("the checkpoint of step {s} is kept"));
        if let Some(name) = self.at.model.params().non_finite() {
            return Err(Error::user(format!("{what}: the weight `{name}` itself has NaN or infinite values; {last}"))
                .hint("ft selftest --model DIR shows whether the base is damaged; if not, use an earlier checkpoint"));
        }
        match self.at.plan.recipe.optim.non_finite {
            NonFinite::Skip if self.at.state.skipped_in_a_row < MOST_SKIPPED => {
                self.records.say(&format!("{what}; the step is skipped ({} so far)", self.at.state.skipped));
                Ok(())
            }
            NonFinite::Skip => {
                Err(Error::user(format!("{what}; {MOST_SKIPPED} steps in a row are not finite; {last}"))
                    .hint("lower optim.lr, lengthen optim.warmup, or try model.dtype: f32"))
            }
            NonFinite::Error => Err(Error::user(format!("{what}; {last}"))
                .hint("lower optim.lr or lengthen optim.warmup; optim.non_finite: skip continues without such steps")),
        }
    }
}

/// Loads the best checkpoint if the recipe asks for it, replaces weights by their averages if there are such, and
/// writes and verifies the result.
fn finish(
    plan: &Plan,
    model: &Model,
    checkpoints: &Checkpoints,
    state: &State,
    aim: Aim,
    mut optim: Optimiser,
) -> Result<()> {
    let best = state.best.filter(|_| plan.recipe.run.result == ResultChoice::Best);
    if let Some(best) = best.filter(|b| b.step != state.step) {
        checkpoints.restore_result(best.step, model, &mut optim)?;
        report::info(format!(
            "the result is the best checkpoint: step {} with validation {} {:.4}",
            best.step, aim.metric, best.value
        ));
    }
    // Verification reads the result back as a second model: the optimiser's memory is freed first.
    optim.finish();
    native::trim_cpu_memory();
    result::export(plan, model)
}

/// Runs the method's validation; `None` if it has no validation rows.
fn validation(method: &mut dyn Method, model: &Model) -> Result<Option<Means>> {
    let _validating = report::working("validation");
    method.validate(model)
}
