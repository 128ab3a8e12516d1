//! Training: the one loop that serves every method.

pub mod check;
pub mod checkpoint;
pub mod log;
pub mod memory;
pub mod optim;
pub mod prepare;
mod sample;
pub mod schedule;

pub use prepare::Prepared;

use crate::adapters::{AdapterSpec, file};
use crate::convert::export;
use crate::error::{Error, Result};
use crate::fsutil::{create_dir_all, io_error, move_into, read_json, write_json};
use crate::methods::Method;
use crate::models::{Metrics, Model, Replay};
use crate::native;
use crate::recipe::{NonFinite, Plan, ReplayChoice, ResultChoice};
use crate::report;
use checkpoint::{Best, Checkpoints, State};
use log::{Log, StepLine};
use optim::Optimiser;
use schedule::LearningRate;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

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
    pub best_step: Option<u64>,
    pub best_eval_loss: Option<f64>,
    pub stopped_early: bool,
    /// Peak tensor bytes.
    pub memory: u64,
}

/// Files that show that a folder holds an adapter or a model.
const RESULTS: [&str; 3] = [file::TENSORS, "model.safetensors", "model.safetensors.index.json"];

/// Steps in a row that may be left out before the run stops.
const MOST_SKIPPED: u32 = 10;

/// Trains as the plan says and leaves the verified result in `run.out`. A signal in `stop` saves and ends the run.
pub fn run(plan: &Plan, start: Start, stop: Arc<AtomicBool>) -> Result<Summary> {
    native::install_cpu_allocator();
    let prepared = prepare::prepare(plan)?;
    let origin = prepared.origin()?;
    let out = plan.recipe.run.out.clone();
    if std::fs::canonicalize(&out).is_ok_and(|o| std::fs::canonicalize(&plan.recipe.model.path).is_ok_and(|m| o == m)) {
        return Err(Error::user(format!("run.out and model.path are both {}: the base would be lost", out.display()))
            .hint("set another run.out"));
    }
    let checkpoints = Checkpoints::new(&out, plan.recipe.run.keep);
    let earlier = earlier_work(&out, &checkpoints, start, &origin)?;
    let model = prepared.load_model(true)?;
    create_dir_all(&out)?;
    plan.write(&out.join("plan.json"))?;
    prepared.announce(&model);
    let mut optim = Optimiser::new(model.params(), prepared.optim())?;
    let total = prepared.total;
    let (mut method, tokenizer) = prepared.into_method();
    let state = match earlier {
        Some(state) => {
            checkpoints.restore(state.step, &model, &mut optim)?;
            method.rewind(state.cursor)?;
            report::info(format!("resuming after step {}", state.step));
            state
        }
        None => State::new(origin),
    };
    let step = state.step;
    let log = Log::open(&out, step, total)?;
    let mut run = Run {
        plan,
        model: &model,
        total,
        lr: LearningRate::new(&plan.recipe.optim, plan.lr(), total),
        optim,
        checkpoints,
        log,
        state,
        stop,
        samples: sample::Samples::open(tokenizer, &out, step)?,
        began: Instant::now(),
        loss: None,
    };
    let stopped_early = run.fit(&mut method)?;
    run.log.finish();
    let best = run.state.best.filter(|_| plan.recipe.run.result == ResultChoice::Best);
    if let Some(best) = best.filter(|b| b.step != run.state.step) {
        run.checkpoints.restore_weights(best.step, &model)?;
        report::info(format!(
            "the result is the best checkpoint: step {} with validation loss {:.4}",
            best.step, best.loss
        ));
    }
    export_result(plan, &model)?;
    let summary = Summary {
        out: out.clone(),
        steps: run.state.step,
        tokens: run.state.tokens,
        seconds: run.began.elapsed().as_secs_f64(),
        loss: run.loss,
        best_step: run.state.best.map(|b| b.step),
        best_eval_loss: run.state.best.map(|b| b.loss),
        stopped_early,
        memory: native::memory(model.device())?.peak,
    };
    write_json(&out.join("summary.json"), &summary)?;
    Ok(summary)
}

/// The checkpoint to go on from, or an error where `run.out` holds work that nobody said what to do with.
fn earlier_work(
    out: &Path,
    checkpoints: &Checkpoints,
    start: Start,
    origin: &serde_json::Value,
) -> Result<Option<State>> {
    let metrics = out.join("metrics.jsonl");
    match (start, checkpoints.last()?) {
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
        (Start::Resume, None) => Err(Error::user(format!("{}: there is no checkpoint to resume from", out.display()))
            .hint("start without --resume")),
        (Start::Fresh, Some(state)) => {
            Err(Error::user(format!("{}: holds a run that stands at step {}", out.display(), state.step))
                .hint("go on with --resume, throw it away with --overwrite, or set another run.out"))
        }
        (Start::Fresh, None) if metrics.exists() => {
            Err(Error::user(format!("{}: holds the metrics of an earlier run", out.display()))
                .hint("throw it away with --overwrite, or set another run.out"))
        }
        (Start::Fresh, None) => match RESULTS.iter().find(|name| out.join(name).exists()) {
            Some(name) => Err(Error::user(format!("{}: holds {name} already", out.display()))
                .hint("replace it with --overwrite, or set another run.out")),
            None => Ok(None),
        },
        (Start::Overwrite, _) => {
            checkpoints.clear()?;
            for name in ["metrics.jsonl", "samples.jsonl", "summary.json"] {
                let path = out.join(name);
                if path.exists() {
                    std::fs::remove_file(&path).map_err(|e| io_error("removing", &path, e))?;
                }
            }
            Ok(None)
        }
    }
}

struct Run<'a> {
    plan: &'a Plan,
    model: &'a Model,
    total: u64,
    lr: LearningRate,
    optim: Optimiser,
    checkpoints: Checkpoints,
    log: Log,
    state: State,
    stop: Arc<AtomicBool>,
    samples: sample::Samples,
    began: Instant,
    loss: Option<f64>,
}

impl Run<'_> {
    /// The loop. True where it stopped before its last step because validation no longer got better.
    fn fit<M: Method>(&mut self, method: &mut M) -> Result<bool> {
        let recipe = &self.plan.recipe;
        let replay = match recipe.run.replay {
            ReplayChoice::None => Replay::None,
            ReplayChoice::All => Replay::All,
        };
        if self.out_of_patience() {
            return Ok(true); // resumed after it had stopped early
        }
        while self.state.step < self.total {
            let began = Instant::now();
            let step = method.next_step(self.model)?;
            let items: f64 = step.micro.iter().map(|b| method.items(b)).sum();
            let mut metrics = Metrics::default();
            let mut tokens = 0;
            for b in &step.micro {
                tokens += method.tokens(b).len() as u64;
                metrics.merge(self.model.learn(method.tokens(b), items, replay, |out| method.loss(out, b))?);
            }
            let norm = self.optim.clip(recipe.optim.max_norm)?.double_value(&[]);
            let lr = self.lr.at(self.state.step);
            let mut means = metrics.means();
            let loss = means.remove("loss").unwrap_or(f64::NAN);
            if loss.is_finite() && norm.is_finite() {
                self.optim.step(lr)?;
                self.state.skipped_in_a_row = 0;
            } else {
                self.skip(loss, norm)?;
            }
            self.optim.zero_gradients();
            self.state.step += 1;
            self.state.tokens += tokens;
            self.state.cursor = method.cursor();
            self.loss = Some(loss);
            let seconds = began.elapsed().as_secs_f64();
            self.log.step(&StepLine {
                step: self.state.step,
                epoch: step.epoch,
                loss,
                lr,
                grad_norm: norm,
                tokens: self.state.tokens,
                tokens_per_s: tokens as f64 / seconds,
                seconds,
                memory: native::memory(self.model.device())?.peak,
                more: means.into_iter().collect(),
            })?;
            if self.after_step(method)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn out_of_patience(&self) -> bool {
        self.plan.recipe.run.patience.is_some_and(|p| self.state.stale >= p)
    }

    /// Validates, saves and stops where it is due. True: stop early.
    fn after_step<M: Method>(&mut self, method: &mut M) -> Result<bool> {
        let run = &self.plan.recipe.run;
        let step = self.state.step;
        let total = self.total;
        let due = |every: u64| step == total || (every > 0 && step.is_multiple_of(every));
        let better = due(run.eval_every) && self.validate(method)?;
        let done = self.out_of_patience();
        let interrupted = self.stop.load(Ordering::Relaxed);
        if due(run.save_every) || better || done || interrupted {
            self.checkpoints.save(self.model, &self.optim, &self.state)?;
        }
        if interrupted && step < self.total {
            self.log.finish();
            return Err(Error::interrupted(format!("stopped by a signal; step {step} of {} is saved", self.total))
                .hint("go on with: ft train … --resume"));
        }
        if done {
            self.log.say(&format!("stopping early: no better validation loss in {} validations", self.state.stale));
        }
        Ok(done)
    }

    /// Measures the validation rows; true where their loss is the lowest so far.
    fn validate<M: Method>(&mut self, method: &mut M) -> Result<bool> {
        let Some(metrics) = method.validate(self.model)? else { return Ok(false) };
        let means: Vec<(&'static str, f64)> = metrics.means().into_iter().collect();
        let loss = means.iter().find(|(k, _)| *k == "loss").map_or(f64::NAN, |(_, v)| *v);
        let better = loss.is_finite() && self.state.best.is_none_or(|b| loss < b.loss);
        if better {
            self.state.best = Some(Best { step: self.state.step, loss });
            self.state.stale = 0;
        } else {
            self.state.stale += 1;
        }
        self.log.validation(self.state.step, &means, if better { "  (best so far)" } else { "" })?;
        self.samples.show(self.model, &method.prompts(self.plan.recipe.run.samples), self.state.step, &self.log)?;
        Ok(better)
    }

    /// The step's numbers are not finite: stop, or leave the step out.
    fn skip(&mut self, loss: f64, norm: f64) -> Result<()> {
        let what = format!("step {}: loss {loss}, gradient norm {norm}", self.state.step + 1);
        self.state.skipped += 1;
        self.state.skipped_in_a_row += 1;
        let last = self
            .checkpoints
            .steps()
            .last()
            .map_or("no checkpoint was saved yet".into(), |s| format!("the checkpoint of step {s} is kept"));
        if let Some(name) = self.model.params().non_finite() {
            return Err(Error::user(format!("{what}: the weight `{name}` itself has NaN or infinite values; {last}"))
                .hint(
                    "was the model whole before? ft selftest --model DIR looks; else go back to an earlier checkpoint",
                ));
        }
        match self.plan.recipe.optim.non_finite {
            NonFinite::Skip if self.state.skipped_in_a_row < MOST_SKIPPED => {
                self.log.say(&format!("{what}; the step is left out ({} so far)", self.state.skipped));
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

/// Writes the trained adapter or model into `run.out`, verified by reading it back.
fn export_result(plan: &Plan, model: &Model) -> Result<()> {
    let recipe = &plan.recipe;
    let out = &recipe.run.out;
    let began = Instant::now();
    // Checked beside its place, then moved in file by file: checkpoints and metrics stay where they are.
    let fresh = out.join("result.new");
    let (what, report) = match &recipe.adapter {
        Some(AdapterSpec::Lora(spec)) => {
            ("adapter", export::save_adapter(model, prepare::ADAPTER, spec, &recipe.model.path, &fresh)?)
        }
        None => ("model", export::save_model(model, &fresh, model.kind())?),
    };
    remove_result(out)?;
    move_into(&fresh, out)?;
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
