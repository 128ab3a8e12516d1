//! Writes the records of a run in progress. The loop reports what happened, and this module updates all records from
//! it.
//!
//! Records are metrics.jsonl and the progress bar (log), generated answers (sample), run.json, ft.lock, TensorBoard's
//! events, trainer_state.json, the page (report.html) and the doctor's findings. Nothing here has an effect on
//! training. A page that cannot be written is only a warning, because it can be made again from the other files.

use super::lock;
use super::log::{StepRecord, TrainingLog};
use super::movement::MovementProbe;
use super::sample::SampleRecorder;
use super::{Prepared, RunSummary, memory};
use crate::data::ChatTokenizer;
use crate::error::{Error, ErrorKind, Result};
use crate::fsutil::io_error;
use crate::methods::contract::{Means, SamplePrompt, SelectionMetric};
use crate::methods::rows::SplitStatistics;
use crate::models::{Model, non_finite};
use crate::recipe::Plan;
use crate::report;
use crate::runs::facts::{DataFacts, LengthHistogram, NonFiniteEvent, RunSession, SessionEnd, SessionOutcome};
use crate::runs::tensorboard::{self, EventFile};
use crate::runs::{
    self, DiagnosisInput, Drift, Environment, History, RunFacts, RunLock, Software, StepPoint, Validation, diagnose,
    folder,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Record files that are deleted with an earlier run.
const RECORD_FILES: [&str; 9] = [
    folder::METRICS,
    folder::SAMPLES,
    "summary.json",
    crate::methods::reward::report_card::FILE,
    crate::models::reward::FILE,
    runs::facts::FACTS,
    runs::trainer_state::FILE,
    runs::page::FILE,
    runs::lock::FILE,
];

/// Deletes the records of an earlier run.
pub fn clear(out: &Path) -> Result<()> {
    for path in RECORD_FILES.map(|name| out.join(name)).iter().filter(|p| p.exists()) {
        std::fs::remove_file(path).map_err(|e| io_error("removing", path, e))?;
    }
    tensorboard::clear(out)
}

/// Collects the facts that are known before the first step.
pub fn facts(prepared: &Prepared, model: &Model, software: &Software) -> RunFacts {
    let recipe = &prepared.plan.recipe;
    let (trained, parameters) = memory::count(&prepared.plan, model);
    let data = |d: SplitStatistics| DataFacts {
        path: d.summary.path.clone(),
        sha256: d.summary.sha256.clone(),
        format: d.summary.format.name().into(),
        rows: d.summary.rows,
        examples: d.summary.examples,
        tokens: d.summary.tokens,
        supervised_tokens: d.summary.supervised_tokens,
        dropped: d.summary.dropped,
        truncated: d.summary.truncated,
        split: d.summary.split,
        longest: d.summary.lengths.max,
        max_len: recipe.batch.max_len,
        lengths: LengthHistogram::of(d.lengths.iter().map(|n| *n as usize)),
    };
    let cuda = match prepared.device {
        tch::Device::Cuda(i) => Some(i),
        _ => None,
    };
    RunFacts {
        method: prepared.plan.method().into(),
        adapter: prepared.plan.adapter(),
        base: recipe.model.path.clone(),
        parameters,
        trained,
        steps: prepared.total_steps,
        train: data(prepared.rows.train()),
        valid: prepared.rows.valid().map(data),
        environment: Environment::read(software, cuda, tch::get_num_threads() as usize),
        aim: runs::RecordedAim::default(),
        sessions: Vec::new(),
        movement: None,
        origins: Vec::new(),
    }
}

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
    reported: BTreeSet<diagnose::DiagnosisId>,
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
        facts.aim = runs::RecordedAim { metric: aim.metric.into(), higher: aim.higher };
        history.aim = facts.aim.clone();
        if let Some(earlier) = RunFacts::read(&out)?.filter(|_| step > 0) {
            facts.sessions = earlier.sessions;
            facts.origins = earlier.origins.into_iter().filter(|o| o.step <= step).collect();
        }
        if let Some(earlier) = RunLock::read(&out)?.filter(|_| step > 0) {
            lock = lock_of_resumed(earlier, lock, step)?;
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

    /// Records a step.
    pub fn step(&mut self, line: &StepRecord) -> Result<()> {
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
        if line.step.is_multiple_of((self.facts.steps / 20).max(10)) {
            self.run_doctor();
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
        self.run_doctor();
        self.facts.write(&self.out)?;
        runs::trainer_state::write(&self.out, self.plan, &self.facts, &self.history)?;
        if let Err(e) = runs::page::write(&self.out) {
            self.log.warn(&format!("{}: {}", runs::page::FILE, e.message()));
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

    /// Runs the doctor and reports findings that are new.
    fn run_doctor(&mut self) {
        if !self.training_done {
            let movement = self.probe.movement(self.model, self.history.last_step());
            self.facts.movement = movement.relative.is_finite().then_some(movement);
        }
        let patient = DiagnosisInput { plan: self.plan, facts: Some(&self.facts), history: &self.history };
        for finding in runs::diagnose(patient) {
            if self.reported.insert(finding.id) {
                self.log.warn(&runs::terminal::finding(&finding));
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
        self.run_doctor();
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
        let ended = SessionEnd { at: runs::facts::now(), seconds, step: self.history.last_step(), outcome, message };
        self.facts.sessions.last_mut().expect("opened with one").ended = Some(ended);
        match self.lock.write(&self.out).and_then(|()| self.update()) {
            Err(e) => report::warn(format!("the run's records are incomplete: {}", e.message())),
            Ok(()) if outcome == SessionOutcome::Finished => {
                report::info(format!("report of the run: {}", self.out.join(runs::page::FILE).display()));
            }
            Ok(()) => {}
        }
    }
}

/// Returns the lock of a resumed run: the earlier one, with this session's differences added to it.
///
/// Fails if inputs changed (see [`Drift::is_input`]), such as base, tokenizer or rows. Other changes, such as another
/// number of threads, are reported and recorded.
fn lock_of_resumed(earlier: RunLock, now: RunLock, step: u64) -> Result<RunLock> {
    let (fatal, harmless): (Vec<Drift>, Vec<Drift>) = earlier.drift(&now).into_iter().partition(Drift::is_input);
    let line = |d: &Drift| format!("{}: was {}, is {}", d.item, d.was, d.is);
    if !fatal.is_empty() {
        let lines: Vec<String> = fatal.iter().map(line).collect();
        return Err(Error::user(format!("files changed since the run started:\n  {}", lines.join("\n  ")))
            .hint("restore them, or start a new run with --overwrite or another run.out"));
    }
    for d in &harmless {
        report::warn(format!(
            "{} (can change: {}); the run continues, but its numbers may differ slightly",
            line(d),
            d.effect
        ));
    }
    let mut lock = earlier;
    lock.result = None;
    if !harmless.is_empty() {
        lock.resumed_with.push((step, harmless));
    }
    Ok(lock)
}

impl From<&StepRecord> for StepPoint {
    fn from(line: &StepRecord) -> Self {
        Self {
            step: line.step,
            epoch: line.epoch,
            loss: line.loss,
            lr: line.lr,
            grad_norm: line.grad_norm,
            tokens: line.tokens,
            tokens_per_s: line.tokens_per_s,
            seconds: line.seconds,
            memory: line.memory,
            more: line.more.clone(),
        }
    }
}
