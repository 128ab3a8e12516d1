//! Training: the one loop that serves every method.

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
mod sample;
pub mod schedule;
mod step;
pub mod teach;
pub mod verify;

pub use prepare::Prepared;

use crate::adapters::{AdapterSpec, file};
use crate::convert::export;
use crate::error::{Error, Result};
use crate::fsutil::{create_dir_all, hold, io_error, move_into, read_json, write_json};
use crate::methods::{ADAPTER, Aim, Alarm, Means, Method};
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

/// What to do about earlier work in `run.out`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// There must be none.
    Fresh,
    /// Go on from the last checkpoint.
    Resume,
    /// Throw it away.
    Overwrite,
}

/// How a run ended.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    pub out: PathBuf,
    pub steps: u64,
    pub tokens: u64,
    pub seconds: f64,
    /// Mean training loss of the last step.
    pub loss: Option<f64>,
    /// The best validation after the first step, and the metric that says so.
    pub best_step: Option<u64>,
    pub best_metric: String,
    pub best_value: Option<f64>,
    pub stopped_early: bool,
    /// Peak tensor bytes.
    pub memory: u64,
}

/// Files that show that a folder holds an adapter or a model.
const RESULTS: [&str; 3] = [file::TENSORS, "model.safetensors", "model.safetensors.index.json"];

/// Steps in a row that may be left out before the run stops.
const MOST_SKIPPED: u32 = 10;

/// Trains as the plan says and leaves the verified result in `run.out`. A signal in `stop` saves and ends the run.
pub fn run(plan: &Plan, start: Start, software: &Software, stop: Arc<AtomicBool>) -> Result<Summary> {
    let plan = match start {
        Start::Resume => as_begun(plan)?,
        _ => plan.clone(),
    };
    run_prepared(prepare::prepare(&plan)?, start, software, stop)
}

/// The plan with the number format that the run began in, where the recipe leaves it to the machine: the run may have begun
/// on another one.
fn as_begun(plan: &Plan) -> Result<Plan> {
    let mut plan = plan.clone();
    let recorded = plan.recipe.run.out.join(PLAN);
    if plan.recipe.model.dtype == Dtype::Auto && recorded.exists() {
        plan.recipe.model.dtype = Plan::read(&recorded)?.recipe.model.dtype;
    }
    Ok(plan)
}

/// As [`run`], with the data read already.
fn run_prepared(prepared: Prepared, start: Start, software: &Software, stop: Arc<AtomicBool>) -> Result<Summary> {
    let plan = &prepared.plan.clone();
    let origin = prepared.origin()?;
    let out = plan.recipe.run.out.clone();
    if std::fs::canonicalize(&out).is_ok_and(|o| std::fs::canonicalize(&plan.recipe.model.path).is_ok_and(|m| o == m)) {
        return Err(Error::user(format!("run.out and model.path are both {}: the base would be lost", out.display()))
            .hint("set another run.out"));
    }
    // Without float32 masters of a whole base: what does not fit is refused before it is made.
    let light = prepared.load_model(false)?;
    fit::refuse(&prepared, &light)?;
    let checkpoints = Checkpoints::new(&out, plan.recipe.run.keep);
    let held = hold(&out)?;
    let earlier = earlier_work(&out, &checkpoints, start, &origin)?;
    let model = if plan.recipe.adapter.is_some() {
        light
    } else {
        drop(light);
        prepared.load_model(true)?
    };
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
    let fitted = run.fit(&mut *method);
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

/// The checkpoint to go on from, or an error where `run.out` holds work that nobody said what to do with.
fn earlier_work(
    out: &Path,
    checkpoints: &Checkpoints,
    start: Start,
    origin: &serde_json::Value,
) -> Result<Option<State>> {
    let metrics = out.join("metrics.jsonl");
    let result = RESULTS.iter().find(|name| out.join(name).exists());
    if start == Start::Resume {
        checkpoints.sweep()?;
    }
    let saved = match start {
        Start::Resume => checkpoints.last_good()?,
        _ => None,
    };
    match (start, saved, checkpoints.steps().last()) {
        (Start::Resume, Some(state), _) => {
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
        (Start::Resume, None, _) if result.is_none() && out.join("plan.json").exists() => {
            report::warn(format!("{}: the run ended before its first checkpoint; it starts anew", out.display()));
            clear(out, checkpoints)?;
            Ok(None)
        }
        (Start::Resume, None, _) => {
            Err(Error::user(format!("{}: there is no checkpoint to resume from", out.display()))
                .hint("start without --resume"))
        }
        (Start::Fresh, _, Some(step)) => {
            Err(Error::user(format!("{}: holds a run that stands at step {step}", out.display()))
                .hint("go on with --resume, throw it away with --overwrite, or set another run.out"))
        }
        (Start::Fresh, _, None) if metrics.exists() => {
            Err(Error::user(format!("{}: holds the metrics of an earlier run", out.display()))
                .hint("throw it away with --overwrite, or set another run.out"))
        }
        (Start::Fresh, _, None) => match result {
            Some(name) => Err(Error::user(format!("{}: holds {name} already", out.display()))
                .hint("replace it with --overwrite, or set another run.out")),
            None => Ok(None),
        },
        (Start::Overwrite, ..) => {
            clear(out, checkpoints)?;
            Ok(None)
        }
    }
}

/// Throws away what an earlier run left beside its result.
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
    /// Causes of alarms that were told already.
    alarmed: BTreeSet<String>,
}

impl Run<'_> {
    /// The loop. True where it stopped before its last step because validation no longer got better.
    fn fit(&mut self, method: &mut dyn Method) -> Result<bool> {
        if self.out_of_patience() {
            return Ok(true); // resumed after it had stopped early
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

    /// Tells what the method finds wrong; whether the run must end.
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

    /// Validates, saves and stops where it is due. True: stop early.
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
                .hint(format!("go on with: ft resume {}", run.out.display())));
        }
        if self.out_of_patience() {
            self.records.say(&format!("stopping early: no better validation in {} of them", self.at.state.stale));
        }
        Ok(done)
    }

    /// Measures the validation rows; true where their loss is the lowest so far.
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

    /// What the base knows before the first step.
    fn measure_base(&mut self, method: &mut dyn Method) -> Result<()> {
        let run = &self.at.plan.recipe.run;
        if let Some(means) = if run.eval_at_start { validation(method, self.at.model)? } else { None } {
            self.records.validation(0, &means, "  (before the first step)")?;
        }
        self.records.samples(&method.prompts(self.at.plan.recipe.run.samples), 0)?;
        self.records.measured()
    }

    /// The step's numbers are not finite: stop, or leave the step out.
    fn skip(&mut self, loss: f64, norm: f64) -> Result<()> {
        let what = format!("step {}: loss {loss}, gradient norm {norm}", self.at.state.step);
        let last = self
            .checkpoints
            .steps()
            .last()
            .map_or("no checkpoint was saved yet".into(), |s| format!("the checkpoint of step {s} is kept"));
        if let Some(name) = self.at.model.params().non_finite() {
            return Err(Error::user(format!("{what}: the weight `{name}` itself has NaN or infinite values; {last}"))
                .hint(
                    "was the model whole before? ft selftest --model DIR looks; else go back to an earlier checkpoint",
                ));
        }
        match self.at.plan.recipe.optim.non_finite {
            NonFinite::Skip if self.at.state.skipped_in_a_row < MOST_SKIPPED => {
                self.records.say(&format!("{what}; the step is left out ({} so far)", self.at.state.skipped));
                Ok(())
            }
            NonFinite::Skip => {
                Err(Error::user(format!("{what}; {MOST_SKIPPED} steps in a row are not finite; {last}"))
                    .hint("lower optim.lr, lengthen optim.warmup, or try model.dtype: f32"))
            }
            NonFinite::Error => Err(Error::user(format!("{what}; {last}"))
                .hint("lower optim.lr or lengthen optim.warmup; optim.non_finite: skip leaves such steps out")),
        }
    }
}

/// Takes the weights that are the result, writes and verifies them.
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
    // The state goes before a second model is read back.
    optim.finish();
    native::trim_cpu_memory();
    export_result(plan, model)
}

/// What the method finds on its validation rows.
fn validation(method: &mut dyn Method, model: &Model) -> Result<Option<Means>> {
    let _validating = report::working("validation");
    method.validate(model)
}

/// Writes the trained adapter or model into `run.out`, verified by reading it back.
fn export_result(plan: &Plan, model: &Model) -> Result<()> {
    let recipe = &plan.recipe;
    let out = &recipe.run.out;
    let began = Instant::now();
    let saving = report::spinner("saving and verifying the result");
    // Checked beside its place, then moved in file by file: checkpoints and metrics stay where they are.
    let fresh = out.join("result.new");
    let (what, report) = match &recipe.adapter {
        Some(AdapterSpec::Lora(spec)) => {
            ("adapter", export::save_adapter(model, ADAPTER, spec, &recipe.model.path, &fresh)?)
        }
        None => ("model", export::save_model(model, &fresh, prepare::result_kind(plan, model)?)?),
    };
    prepare::tell_stops(plan, &fresh)?;
    remove_result(out)?;
    move_into(&fresh, out)?;
    saving.finish_and_clear();
    report::info(format!("{what} saved and verified in {}: {}", report::duration(began.elapsed()), out.display()));
    for c in &report.compatibility {
        report::info(format!("  read by {c}"));
    }
    Ok(())
}

/// Removes the weight files of an earlier result; shards of another size would stay otherwise.
fn remove_result(out: &Path) -> Result<()> {
    let report = out.join(export::REPORT);
    if !report.exists() {
        return Ok(());
    }
    let earlier: serde_json::Value = read_json(&report)?;
    for name in earlier["files"].as_object().into_iter().flat_map(|files| files.keys()) {
        let path = out.join(name);
        if path.exists() {
            std::fs::remove_file(&path).map_err(|e| io_error("removing", &path, e))?;
        }
    }
    Ok(())
}
