//! The training loop, one for all methods: steps, validation, checkpoints, alarms, early stopping.

use super::checkpoint::{BestValidation, Checkpoints};
use super::profile::StepProfile;
use super::records::RunRecorder;
use super::records::log::StepRecord;
use super::step::Stepper;
use crate::error::{Error, Result};
use crate::methods::contract::{Alarm, Means, Method};
use crate::models::Model;
use crate::native;
use crate::recipe::optim::NonFinite;
use crate::report;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Number of consecutive non-finite steps at which a run with `non_finite: skip` stops.
const MOST_SKIPPED: u32 = 10;

/// A run in progress.
pub struct TrainingLoop<'a> {
    /// Executes the steps.
    pub stepper: Stepper<'a>,
    /// Optimiser steps of the whole run.
    total: u64,
    /// The checkpoints in the run's folder.
    pub checkpoints: Checkpoints,
    /// Writes the records of the run.
    pub records: RunRecorder<'a>,
    /// The profile that was asked for.
    profile: Option<StepProfile>,
    /// Set when the run must stop.
    stop: Arc<AtomicBool>,
    /// When the loop was created.
    pub began: Instant,
    /// Mean training loss of the last step; `None` before the first.
    pub loss: Option<f64>,
    /// Tokens of all recorded steps.
    tokens: u64,
    /// Causes of the alarms that were reported already: each is reported once.
    reported_alarms: BTreeSet<String>,
}

impl<'a> TrainingLoop<'a> {
    /// Creates the loop of a run of `total` steps. If `stop` becomes true, it ends after the current step.
    pub fn new(
        stepper: Stepper<'a>,
        total: u64,
        checkpoints: Checkpoints,
        records: RunRecorder<'a>,
        profile: Option<StepProfile>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let (began, tokens, reported_alarms) = (Instant::now(), stepper.state.tokens, BTreeSet::new());
        Self { stepper, total, checkpoints, records, profile, stop, began, loss: None, tokens, reported_alarms }
    }

    /// Trains until the last step. Returns true if the run stopped early: validation no longer improved, or an alarm of
    /// the method demanded it.
    pub fn fit(&mut self, method: &mut dyn Method) -> Result<bool> {
        if self.out_of_patience() {
            return Ok(true); // a resumed run that had already stopped early
        }
        if self.stepper.state.step == 0 {
            self.measure_base(method)?;
        }
        while self.stepper.state.step < self.total {
            if method.next_step_waits() && self.settle(method)? && self.after_step(method, true, false)? {
                return Ok(true);
            }
            let device = self.stepper.model.device();
            let (halted, interrupted) = match self.profile.take_if(|p| p.is_due(self.stepper.state.step)) {
                Some(profile) => profile.record(device, || self.step(method, true))?,
                None => self.step(method, false)?,
            };
            if self.after_step(method, halted, interrupted)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Computes one step and records the step before it, if that is still to be done; with `settled`, also the step
    /// itself. Returns whether an alarm ends the run, and whether a signal arrived.
    fn step(&mut self, method: &mut dyn Method, settled: bool) -> Result<(bool, bool)> {
        let computed = self.stepper.compute(method)?;
        let mut halted = self.settle(method)?; // the step before, on a GPU
        let records = &self.records;
        self.stepper.update(computed, method, |step| records.weight_sample(step))?;
        let interrupted = self.stop.load(Ordering::Relaxed);
        if settled || halted || interrupted || self.is_due() || !self.stepper.runs_ahead() {
            halted |= self.settle(method)?;
        }
        Ok((halted, interrupted))
    }

    /// Reads the numbers of the last step, unless that was done already, and records them. Returns true if an alarm
    /// demands that the run ends.
    pub fn settle(&mut self, method: &mut dyn Method) -> Result<bool> {
        let Some(done) = self.stepper.settle(method)? else { return Ok(false) };
        self.loss = Some(done.loss);
        let told = done.alarm_means();
        if done.overflowed() {
            let factor = done.loss_scale.unwrap_or_default();
            self.records.info(&format!(
                "step {}: gradients too large for float16 at a loss scale of {factor}, which is halved; the step is skipped",
                done.step
            ));
        } else if !done.finite {
            self.records.record_non_finite(done.step, done.loss, done.norm, done.non_finite_origin);
            self.skip(done.step, done.loss, done.norm)?;
        }
        self.tokens += done.tokens;
        let record = StepRecord {
            step: done.step,
            epoch: done.epoch,
            loss: done.loss,
            lr: done.lr,
            grad_norm: done.norm,
            tokens: self.tokens,
            tokens_per_s: done.tokens as f64 / done.seconds,
            items: done.items,
            seconds: done.seconds,
            memory: native::memory(self.stepper.model.device())?.peak,
            more: done.means,
        };
        self.records.step(&record, done.weights.as_ref())?;
        Ok(self.report_alarms(done.step, method.alarms(&told)))
    }

    /// Returns true if the last step is followed by a validation or a checkpoint.
    fn is_due(&self) -> bool {
        let run = &self.stepper.plan.recipe.run;
        self.is_multiple(run.eval_every) || self.is_multiple(run.save_every)
    }

    /// Returns true if something that is done every `every` steps (0: only at the end) follows the last step.
    fn is_multiple(&self, every: u64) -> bool {
        let step = self.stepper.state.step;
        step == self.total || (every > 0 && step.is_multiple_of(every))
    }

    /// Reports each alarm of the method once. Returns true if one of them demands that the run ends.
    fn report_alarms(&mut self, step: u64, alarms: Vec<Alarm>) -> bool {
        for alarm in &alarms {
            if self.reported_alarms.insert(alarm.cause.clone()) {
                self.records.warn(&format!("step {step}: {}\n  next: {}", alarm.cause, alarm.next));
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
    fn after_step(&mut self, method: &mut dyn Method, halted: bool, interrupted: bool) -> Result<bool> {
        let run = &self.stepper.plan.recipe.run;
        let step = self.stepper.state.step;
        let better = (self.is_multiple(run.eval_every) || halted) && self.validate(method)?;
        let done = self.out_of_patience() || halted;
        // A signal may also have come during the validation.
        let interrupted = interrupted || (self.is_due() && self.stop.load(Ordering::Relaxed));
        if self.is_multiple(run.save_every) || better || done || interrupted {
            self.checkpoints.save(
                self.stepper.model,
                &self.stepper.optim,
                &self.stepper.other_state(method),
                &self.stepper.state,
            )?;
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
    fn skip(&mut self, step: u64, loss: f64, norm: f64) -> Result<()> {
        let what = format!("step {step}: loss {loss}, gradient norm {norm}");
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

/// Runs the method's validation; `None` if it has no validation rows.
fn validation(method: &mut dyn Method, model: &Model) -> Result<Option<Means>> {
    let _validating = report::enclosing_work("validation");
    method.validate(model)
}
