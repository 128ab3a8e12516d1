//! Writes the records of a run in progress. The loop reports what happened, and this module updates all records from
//! it.
//!
//! Records are metrics.jsonl and the progress bar (log), generated answers (sample), run.json, ft.lock, TensorBoard's
//! events, trainer_state.json, the page (report.html) and the doctor's findings. Nothing here has an effect on
//! training. A page that cannot be written is only a warning, because it can be made again from the other files.

pub mod facts;
pub mod files;
pub mod lock;
pub mod log;
mod movement;
mod sample;

use super::summary::RunSummary;
use crate::data::chat::ChatTokenizer;
use crate::error::{ErrorKind, Result};
use crate::methods::contract::{Means, SamplePrompt, SelectionMetric};
use crate::models::{Model, non_finite};
use crate::recipe::plan::Plan;
use crate::report;
use crate::runs::diagnose::diagnose;
use crate::runs::diagnose::finding::{DiagnosisId, DiagnosisInput};
use crate::runs::facts::{
    self as run_facts, NonFiniteEvent, RecordedAim, RunFacts, RunSession, SessionEnd, SessionOutcome,
};
use crate::runs::history::{History, StepPoint, Validation};
use crate::runs::lock::RunLock;
use crate::runs::tensorboard::{self, EventFile};
use crate::runs::{folder, model_card, page, terminal, trainer_state};
use log::{StepRecord, TrainingLog};
use movement::MovementProbe;
use sample::SampleRecorder;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tch::Tensor;

/// Writes all records of a run in progress.
pub struct RunRecorder<'a> {
    plan: &'a Plan,
    model: &'a Model,
    out: PathBuf,
    log: TrainingLog,
    samples: SampleRecorder,
    events: EventFile,
    facts: RunFacts,
    lock: RunLock,
    history: History,
    probe: MovementProbe,
    /// Findings that were reported already: each is reported once.
    reported: BTreeSet<DiagnosisId>,
    began: Instant,
    pace: UpdateThrottle,
    /// Training has ended, so the model may no longer hold the weights of the last step.
    training_done: bool,
}

/// Limits work whose cost grows with the length of the run to about a twentieth of the run's time.
struct UpdateThrottle {
    done: Instant,
    took: Duration,
}

impl UpdateThrottle {
    /// Returns true if at least 20 times the duration of the last update has passed since it.
    fn due(&self) -> bool {
        self.done.elapsed() >= 20 * self.took
    }

    fn took(&mut self, began: Instant) {
        *self = Self { done: Instant::now(), took: began.elapsed() };
    }
}

impl<'a> RunRecorder<'a> {
    /// Opens the records of a run that continues after `step` (0: a new run). Records of later steps, from an earlier
    /// session, are removed. Fails if a resumed run no longer has the files that it was started with.
    pub fn open(
        plan: &'a Plan,
        model: &'a Model,
        mut facts: RunFacts,
        mut lock: RunLock,
        aim: SelectionMetric,
        tokenizer: Rc<ChatTokenizer>,
        step: u64,
    ) -> Result<Self> {
        let out = plan.recipe.run.out.clone();
        let log = TrainingLog::open(&out, step, facts.steps)?;
        let mut history = History::read(&out.join(folder::METRICS))?;
        facts.aim = RecordedAim { metric: aim.metric.into(), higher: aim.higher };
        history.aim = facts.aim.clone();
        if let Some(earlier) = RunFacts::read(&out)?.filter(|_| step > 0) {
            facts.sessions = earlier.sessions;
            facts.origins = earlier.origins.into_iter().filter(|o| o.step <= step).collect();
        }
        if let Some(earlier) = RunLock::read(&out)?.filter(|_| step > 0) {
            lock = lock::lock_of_resumed(earlier, lock, step)?;
        }
        facts.sessions.push(RunSession::begin(step));
        lock.write(&out)?;
        facts.write(&out)?;
        let mut events = EventFile::create(&out, (step > 0).then_some(step))?;
        if step == 0 {
            events.text("args", &plan.to_yaml()?)?;
            events.text("model_config", &model.config().text)?;
        }
        Ok(Self {
            samples: SampleRecorder::open(tokenizer, &out, step)?,
            probe: MovementProbe::new(model, step),
            plan,
            model,
            out,
            log,
            events,
            facts,
            lock,
            history,
            reported: BTreeSet::new(),
            began: Instant::now(),
            pace: UpdateThrottle { done: Instant::now(), took: Duration::ZERO },
            training_done: false,
        })
    }

    /// Returns a sample of the trained weights if the doctor will look at them after `step`; to be passed to
    /// [`RunRecorder::step`].
    pub fn weight_sample(&self, step: u64) -> Option<Tensor> {
        self.doctor_is_due(step).then(|| movement::sample(self.model))
    }

    fn doctor_is_due(&self, step: u64) -> bool {
        step.is_multiple_of((self.facts.steps / 20).max(10))
    }

    /// Records a step; `weights` is the sample of the weights after it, `None`: they are still the model's.
    pub fn step(&mut self, line: &StepRecord, weights: Option<&Tensor>) -> Result<()> {
        self.log.step(line)?;
        let point = StepPoint::from(line);
        let method = &self.facts.method;
        let mut values: Vec<(String, f64)> = [
            ("loss", point.loss),
            ("lr", point.lr),
            ("grad_norm", point.grad_norm),
            ("epoch", point.epoch),
            ("tokens", point.tokens as f64),
            ("tokens_per_s", point.tokens_per_s),
            ("memory", point.memory as f64),
        ]
        .map(|(name, v)| (tensorboard::train_tag(method, name), v))
        .to_vec();
        values.extend(point.more.iter().map(|(name, v)| (tensorboard::train_tag(method, name), *v)));
        self.events.scalars(line.step, values.iter().map(|(tag, v)| (tag.as_str(), *v)))?;
        self.history.steps.push(point);
        if self.doctor_is_due(line.step) {
            self.run_doctor(weights);
        }
        Ok(())
    }

    /// Records the validation results after a step.
    pub fn validation(&mut self, step: u64, means: &Means, note: &str) -> Result<()> {
        self.log.validation(step, means, note)?;
        let tags: Vec<(String, f64)> =
            means.iter().map(|(k, v)| (tensorboard::eval_tag(&self.facts.method, k), *v)).collect();
        self.events.scalars(step, tags.iter().map(|(tag, v)| (tag.as_str(), *v)))?;
        let means = means.iter().map(|(k, v)| (k.clone(), *v)).collect();
        self.history.validations.push(Validation { step, means });
        Ok(())
    }

    /// Returns the value of a validation mean after `step`, if there was a validation.
    pub fn validated(&self, step: u64, metric: &str) -> Option<f64> {
        let found = self.history.validations.iter().rfind(|v| v.step == step)?;
        Some(found.mean(metric)).filter(|v| v.is_finite())
    }

    /// Generates, prints and records answers to `prompts`.
    pub fn samples(&mut self, prompts: &[SamplePrompt], step: u64) -> Result<()> {
        self.samples.show(self.model, prompts, step, &self.log)
    }

    /// Called after validation. Updates the records that are made from the whole history, unless the last update was so
    /// recent that this would delay the run.
    pub fn update_if_due(&mut self) -> Result<()> {
        if self.pace.due() {
            let began = Instant::now();
            self.update()?;
            self.pace.took(began);
        }
        Ok(())
    }

    /// Runs the doctor and writes run.json, trainer_state.json and the page, all made from the whole history.
    fn update(&mut self) -> Result<()> {
        self.run_doctor(None);
        self.facts.write(&self.out)?;
        trainer_state::write(&self.out, self.plan, &self.facts, &self.history)?;
        if let Err(e) = page::write(&self.out) {
            self.log.warn(&format!("{}: {}", page::FILE, e.message()));
        }
        Ok(())
    }

    /// Records where the numbers of `step` stopped being finite; `found` is `None` if a second run of the step was
    /// finite.
    pub fn record_non_finite(
        &mut self,
        step: u64,
        loss: f64,
        grad_norm: f64,
        found: Option<non_finite::FirstNonFinite>,
    ) {
        let (stage, place) = match &found {
            Some(o) => (o.stage.name().to_string(), o.to_string()),
            None => ("unknown".into(), "not found: the same step without dropout is finite".into()),
        };
        self.log.info(&format!("  first values that are not finite: {place}"));
        let (loss, grad_norm) = (loss.to_string(), grad_norm.to_string());
        self.facts.origins.push(NonFiniteEvent { step, loss, grad_norm, stage, place });
    }

    /// Runs the doctor and reports findings that are new. `weights`: a sample of the weights after the last recorded
    /// step; `None`: they are the model's.
    fn run_doctor(&mut self, weights: Option<&Tensor>) {
        if !self.training_done {
            let now = weights.map_or_else(|| movement::sample(self.model), Tensor::shallow_clone);
            let movement = self.probe.movement(self.model, &now, self.history.last_step());
            self.facts.movement = movement.relative.is_finite().then_some(movement);
        }
        let patient = DiagnosisInput { plan: self.plan, facts: Some(&self.facts), history: &self.history };
        for finding in diagnose(patient) {
            if self.reported.insert(finding.id) {
                self.log.warn(&terminal::finding(&finding));
            }
        }
    }

    /// Prints a warning; the run continues.
    pub fn warn(&self, text: &str) {
        self.log.warn(text);
    }

    /// Prints a message.
    pub fn info(&self, text: &str) {
        self.log.info(text);
    }

    /// Called after the last step, before the result replaces the weights and other code uses the terminal.
    pub fn finish(&mut self) {
        self.run_doctor(None);
        self.training_done = true;
        self.log.finish();
    }

    /// Records how the session ended. Errors in here become warnings, so that they do not hide the outcome of the run.
    pub fn close(mut self, result: &Result<RunSummary>) {
        let (outcome, message) = match result {
            Ok(_) => (SessionOutcome::Finished, None),
            Err(e) if e.kind() == ErrorKind::Interrupted => {
                (SessionOutcome::Interrupted, Some(e.message().to_string()))
            }
            Err(e) => (SessionOutcome::Failed, Some(e.message().to_string())),
        };
        if let Ok(summary) = result {
            self.lock.result = lock::result_files(&summary.out).ok();
        }
        let seconds = self.began.elapsed().as_secs_f64();
        let ended = SessionEnd { at: run_facts::now(), seconds, step: self.history.last_step(), outcome, message };
        self.facts.sessions.last_mut().expect("opened with one").ended = Some(ended);
        match self.lock.write(&self.out).and_then(|()| self.update()) {
            Err(e) => report::warn(format!("the run's records are incomplete: {}", e.message())),
            Ok(()) if outcome == SessionOutcome::Finished => {
                if let Err(e) = folder::RunFolder::open(&self.out).and_then(|run| model_card::write(&run)) {
                    report::warn(format!("{}: {}", model_card::FILE, e.message()));
                }
                report::info(format!("report of the run: {}", self.out.join(page::FILE).display()));
            }
            Ok(()) => {}
        }
    }
}
