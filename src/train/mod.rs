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
use crate::error::{Error, ErrorKind, Result, catch_libtorch};
use crate::fsutil::{create_dir_all, lock_folder, write_json};
use crate::methods::contract::{Alarm, Means, Method, SelectionMetric};
use crate::models::{Dtype, Model};
use crate::native;
use crate::recipe::{NonFinite, Plan, ResultChoice};
use crate::report;
use crate::runs::Software;
use crate::runs::folder::PLAN;
use crate::runs::hash::HashTrust;
use checkpoint::{BestValidation, Checkpoints, TrainingState};
use log::StepRecord;
use optim::Optimiser;
use records::RunRecorder;
use schedule::LearningRate;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use step::Stepper;

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

/// Results of a completed run, written to summary.json.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RunSummary {
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
pub fn run(plan: &Plan, start: StartMode, software: &Software, stop: Arc<AtomicBool>) -> Result<RunSummary> {
    if start == StartMode::Fresh {
        // Checked before the data is read, so that the refusal comes at once. `earlier_work` checks again under the
        // lock.
        let out = &plan.recipe.run.out;
        refuse_earlier_work(out, &Checkpoints::new(out, plan.recipe.run.keep))?;
    }
    let plan = match start {
        StartMode::Resume => with_recorded_choices(plan)?,
        _ => plan.clone(),
    };
    run_prepared(prepare::prepare(&plan)?, start, software, stop)
}

/// Returns the plan with the number format and the date of the recorded plan, where the recipe leaves them open.
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
    Ok(plan)
}

/// Does the work of [`run`] after the data was read and tokenised.
fn run_prepared(
    prepared: Prepared,
    start: StartMode,
    software: &Software,
    stop: Arc<AtomicBool>,
) -> Result<RunSummary> {
    let plan = &prepared.plan.clone();
    let origin = prepared.origin()?;
    let out = plan.recipe.run.out.clone();
    if std::fs::canonicalize(&out).is_ok_and(|o| std::fs::canonicalize(&plan.recipe.model.path).is_ok_and(|m| o == m)) {
        return Err(Error::user(format!("run.out and model.path are both {}: the base would be lost", out.display()))
            .hint("set another run.out"));
    }
    let held = lock_folder(&out)?;
    result::finish_interrupted_move(&out)?;
    fit::refuse_if_too_large(&prepared)?;
    let checkpoints = Checkpoints::new(&out, plan.recipe.run.keep);
    let earlier = earlier_work(&out, &checkpoints, start, &origin)?;
    let model = prepared.load_model()?;
    create_dir_all(&out)?;
    let _held = match held {
        Some(held) => Some(held),
        None => lock_folder(&out)?,
    };
    plan.write(&out.join(PLAN))?;
    prepared.announce(&model);
    let total = prepared.total_steps;
    let facts = records::facts(&prepared, &model, software);
    let lock = lock::lock_of(&prepared, &facts.environment, software, HashTrust::Remembered)?;
    let (mut method, tokenizer) = prepared.into_method(&model)?;
    let mut optim = Optimiser::with_extra_parameters(
        model.params(),
        &method.parameters(),
        &plan.recipe.optim,
        plan.recipe.run.seed,
    )?;
    let state = match earlier {
        Some(state) => {
            let extra = checkpoints.restore(state.step, &model, &mut optim)?;
            method.rewind(state.cursor)?;
            method.restore(extra)?;
            report::info(format!("resuming after step {}", state.step));
            state
        }
        None => TrainingState::new(origin),
    };
    let step = state.step;
    let aim = method.selection_metric();
    let records = RunRecorder::open(plan, &model, facts, lock, aim, tokenizer, step)?;
    let lr = LearningRate::new(&plan.recipe.optim, plan.lr(), total);
    let mut run = TrainingLoop {
        stepper: Stepper { plan, model: &model, lr, optim, state },
        total,
        checkpoints,
        records,
        stop,
        began: Instant::now(),
        loss: None,
        reported_alarms: BTreeSet::new(),
    };
    let fitted = catch_libtorch(|| run.fit(&mut *method)).map_err(|e| match run.checkpoints.steps().last() {
        Some(step) if e.kind() != ErrorKind::Interrupted => {
            e.hint(format!("the checkpoint of step {step} is kept in {}", out.display()))
        }
        _ => e,
    });
    run.records.finish();
    let TrainingLoop { stepper: Stepper { optim, state, .. }, records, checkpoints, began, loss, .. } = run;
    let result = fitted.and_then(|stopped_early| {
        export_result(plan, &model, &checkpoints, &state, aim, optim)?;
        method.finish(&model, &out)?;
        let summary = RunSummary {
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
    start: StartMode,
    origin: &serde_json::Value,
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
        (StartMode::Resume, None) if result.is_none() && out.join("plan.json").exists() => {
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
    if out.join("metrics.jsonl").exists() {
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
    records::clear(out)
}

struct TrainingLoop<'a> {
    stepper: Stepper<'a>,
    total: u64,
    checkpoints: Checkpoints,
    records: RunRecorder<'a>,
    stop: Arc<AtomicBool>,
    began: Instant,
    loss: Option<f64>,
    /// Causes of the alarms that were reported already: each is reported once.
    reported_alarms: BTreeSet<String>,
}

impl TrainingLoop<'_> {
    /// Trains until the last step. Returns true if the run stopped early: validation no longer improved, or an alarm of
    /// the method demanded it.
    fn fit(&mut self, method: &mut dyn Method) -> Result<bool> {
        if self.out_of_patience() {
            return Ok(true); // a resumed run that had already stopped early
        }
        if self.stepper.state.step == 0 {
            self.measure_base(method)?;
        }
        while self.stepper.state.step < self.total {
            let began = Instant::now();
            let done = self.stepper.advance(method)?;
            self.loss = Some(done.loss);
            let told = done.alarm_means();
            if !done.finite {
                self.records.record_non_finite(self.stepper.state.step, done.loss, done.norm, done.non_finite_origin);
                self.skip(done.loss, done.norm)?;
            }
            let seconds = began.elapsed().as_secs_f64();
            self.records.step(&StepRecord {
                step: self.stepper.state.step,
                epoch: done.epoch,
                loss: done.loss,
                lr: done.lr,
                grad_norm: done.norm,
                tokens: self.stepper.state.tokens,
                tokens_per_s: done.tokens as f64 / seconds,
                items: done.items,
                seconds,
                memory: native::memory(self.stepper.model.device())?.peak,
                more: done.means,
            })?;
            let halted = self.report_alarms(method.alarms(&told));
            if self.after_step(method, halted)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reports each alarm of the method once. Returns true if one of them demands that the run ends.
    fn report_alarms(&mut self, alarms: Vec<Alarm>) -> bool {
        for alarm in &alarms {
            if self.reported_alarms.insert(alarm.cause.clone()) {
                self.records
                    .warn(&format!("step {}: {}\n  next: {}", self.stepper.state.step, alarm.cause, alarm.next));
            }
        }
        let halted = alarms.iter().any(|a| a.stop);
        if halted {
            self.records.info("stopping here; the best checkpoint is kept");
        }
        halted
    }

    fn out_of_patience(&self) -> bool {
        self.stepper.plan.recipe.run.patience.is_some_and(|p| self.stepper.state.stale >= p)
    }

    /// Validates and saves a checkpoint where that is due. Returns true if the run must stop early; fails with an
    /// "interrupted" error, after saving, if a signal arrived. `halted`: an alarm ends the run after this step.
    fn after_step(&mut self, method: &mut dyn Method, halted: bool) -> Result<bool> {
        let run = &self.stepper.plan.recipe.run;
        let step = self.stepper.state.step;
        let total = self.total;
        let due = |every: u64| step == total || (every > 0 && step.is_multiple_of(every));
        let better = (due(run.eval_every) || halted) && self.validate(method)?;
        let done = self.out_of_patience() || halted;
        let interrupted = self.stop.load(Ordering::Relaxed);
        if due(run.save_every) || better || done || interrupted {
            self.checkpoints.save(self.stepper.model, &self.stepper.optim, &method.state(), &self.stepper.state)?;
        }
        if interrupted && step < self.total {
            return Err(Error::interrupted(format!("stopped by a signal; step {step} of {} is saved", self.total))
                .hint(format!("continue with: ft resume {}", run.out.display())));
        }
        if self.out_of_patience() {
            self.records.info(&format!("stopping early: {} validations without improvement", self.stepper.state.stale));
        }
        Ok(done)
    }

    /// Measures the validation rows with the averaged weights, if there are such, and generates the samples. Returns
    /// true if the metric that the method aims at is the best so far.
    fn validate(&mut self, method: &mut dyn Method) -> Result<bool> {
        let _averaged = self.stepper.optim.use_averages();
        let Some(means) = validation(method, self.stepper.model)? else {
            self.records.samples(&method.prompts(self.stepper.plan.recipe.run.samples), self.stepper.state.step)?;
            self.records.update_if_due()?;
            return Ok(false);
        };
        let aim = method.selection_metric();
        let value = means.get(aim.metric).copied().unwrap_or(f64::NAN);
        let better = value.is_finite() && self.stepper.state.best.is_none_or(|b| aim.better(value, b.value));
        if better {
            self.stepper.state.best = Some(BestValidation { step: self.stepper.state.step, value });
            self.stepper.state.stale = 0;
        } else {
            self.stepper.state.stale += 1;
        }
        self.records.validation(self.stepper.state.step, &means, if better { "  (best so far)" } else { "" })?;
        self.records.samples(&method.prompts(self.stepper.plan.recipe.run.samples), self.stepper.state.step)?;
        self.records.update_if_due()?;
        Ok(better)
    }

    /// Measures and samples the model before the first step.
    fn measure_base(&mut self, method: &mut dyn Method) -> Result<()> {
        let run = &self.stepper.plan.recipe.run;
        if let Some(means) = if run.eval_at_start { validation(method, self.stepper.model)? } else { None } {
            self.records.validation(0, &means, "  (before the first step)")?;
        }
        self.records.samples(&method.prompts(self.stepper.plan.recipe.run.samples), 0)?;
        self.records.update_if_due()
    }

    /// Handles a step whose loss or gradient norm is not finite; its update was not applied. Returns an error that ends
    /// the run, or `Ok` if `optim.non_finite: skip` lets the run continue.
    fn skip(&mut self, loss: f64, norm: f64) -> Result<()> {
        let what = format!("step {}: loss {loss}, gradient norm {norm}", self.stepper.state.step);
        let last = self
            .checkpoints
            .steps()
            .last()
            .map_or("no checkpoint was saved yet".into(), |s| format!("the checkpoint of step {s} is kept"));
        if let Some(name) = self.stepper.model.params().first_non_finite() {
            return Err(Error::user(format!("{what}: the weight `{name}` itself has NaN or infinite values; {last}"))
                .hint("ft selftest --model DIR shows whether the base is damaged; if not, use an earlier checkpoint"));
        }
        match self.stepper.plan.recipe.optim.non_finite {
            NonFinite::Skip if self.stepper.state.skipped_in_a_row < MOST_SKIPPED => {
                self.records.info(&format!("{what}; the step is skipped ({} so far)", self.stepper.state.skipped));
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
fn export_result(
    plan: &Plan,
    model: &Model,
    checkpoints: &Checkpoints,
    state: &TrainingState,
    aim: SelectionMetric,
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
    let _validating = report::enclosing_work("validation");
    method.validate(model)
}
