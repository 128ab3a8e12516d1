//! `ft train`: a run from its plan to its verified result.

use super::announce::announce;
use super::average;
use super::checkpoint::Checkpoints;
use super::prepare::{self, Prepared};
use super::profile::StepProfile;
use super::records::{RunRecorder, facts, lock};
use super::result::{self, RunVocabulary};
use super::start::{self, RunStart, StartMode};
use super::step::Stepper;
use super::summary::RunSummary;
use super::training_loop::TrainingLoop;
use crate::error::{ErrorKind, Result, catch_libtorch};
use crate::fsutil::write_json;
use crate::native;
use crate::recipe::plan::Plan;
use crate::report;
use crate::runs::facts::Software;
use crate::runs::folder::SUMMARY;
use crate::runs::hash::HashTrust;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Trains according to `plan` and writes the verified result into `run.out`. If `stop` becomes true, the run saves a
/// checkpoint after the current step and ends with an "interrupted" error. Records one step into the file `profile`.
pub fn run(
    plan: &Plan,
    start: StartMode,
    software: &Software,
    profile: Option<&Path>,
    stop: Arc<AtomicBool>,
) -> Result<RunSummary> {
    run_prepared(prepare::prepare(&start::plan_for(plan, start)?)?, start, software, profile, stop)
}

/// Does the work of [`run`] after the data was read and tokenised.
pub(super) fn run_prepared(
    prepared: Prepared,
    start: StartMode,
    software: &Software,
    profile: Option<&Path>,
    stop: Arc<AtomicBool>,
) -> Result<RunSummary> {
    let prepared = prepared.distribute_ranks()?;
    let plan = &prepared.plan.clone();
    let out = &plan.recipe.run.out;
    let total = prepared.total_steps;
    let profiled = |done: u64| profile.map(|file| StepProfile::new(file, done, total)).transpose();
    profiled(0)?; // before earlier work is deleted
    let mut entered = start::enter(&prepared, start)?;
    let first = entered.state.step;
    let profile = profiled(first)?;
    let model = naming_the_checkpoint(plan, || prepared.load_model())?;
    model.set_keeps_inputs(entered.keeps_inputs);
    entered.create_folder(plan)?;
    announce(&prepared, &model);
    let facts = facts::facts(&prepared, &model, software);
    let lock = lock::lock_of(&prepared, &facts.environment, software, HashTrust::Remembered)?;
    let new_tokens = prepared.vocabulary.as_ref().map_or_else(Vec::new, |added| added.tokens.clone());
    let (mut method, tokenizer) = naming_the_checkpoint(plan, || prepared.into_method(&model))?;
    let RunStart { checkpoints, state, lock: _folder_lock, .. } = entered;
    let stepper =
        naming_the_checkpoint(plan, || Stepper::begin(plan, &model, &mut *method, total, &checkpoints, state))?;
    if first > 0 {
        report::info(format!("resuming after step {first}"));
    }
    let aim = method.selection_metric();
    let vocabulary = RunVocabulary { tokenizer: tokenizer.clone(), new_tokens };
    let records = RunRecorder::open(plan, &model, facts, lock, aim, tokenizer, first)?;
    let mut run = TrainingLoop::new(stepper, total, checkpoints, records, profile, stop);
    let fitted = naming_the_checkpoint(plan, || run.fit(&mut *method));
    if fitted.is_err() {
        // The step before the one that failed may not be recorded yet. What fails here is part of the same failure.
        let _ = catch_libtorch(|| run.settle(&mut *method));
    }
    run.records.finish();
    let TrainingLoop { stepper: Stepper { optim, state, .. }, records, checkpoints, began, loss, .. } = run;
    let result = fitted.and_then(|stopped_early| {
        let average = naming_the_checkpoint(plan, || {
            result::choose_weights(plan, &model, &checkpoints, &state, aim, optim)?;
            let averaged = checkpoints.averaged(state.step);
            let average =
                averaged.map(|steps| average::use_average(&checkpoints, steps, &model, &mut *method, &records));
            let average = average.transpose()?;
            average.iter().for_each(|average| average::report_average(average, state.best, aim));
            result::export(plan, &model, &vocabulary)?;
            Ok(average)
        })?;
        method.finish(&model, out)?;
        let summary = RunSummary {
            out: out.clone(),
            steps: state.step,
            tokens: state.tokens,
            seconds: began.elapsed().as_secs_f64(),
            loss,
            best_step: state.best.map(|b| b.step),
            best_metric: aim.metric.into(),
            best_value: state.best.map(|b| b.value),
            average,
            stopped_early,
            memory: native::memory(model.device())?.peak,
        };
        write_json(&out.join(SUMMARY), &summary)?;
        Ok(summary)
    });
    records.close(&result);
    result
}

/// Does work of a run. An error names the checkpoint that is kept, if there is one.
fn naming_the_checkpoint<T>(plan: &Plan, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let run = &plan.recipe.run;
    catch_libtorch(work).map_err(|e| match Checkpoints::of_run(run).steps().last() {
        Some(step) if e.kind() != ErrorKind::Interrupted => {
            e.hint(format!("the checkpoint of step {step} is kept in {}", run.out.display()))
        }
        _ => e,
    })
}
