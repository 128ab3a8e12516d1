//! Checks of files: a saved adapter, and a run resumed from a checkpoint.

use super::compare::{CheckResult, CheckTitle, check_result, compare_numbers, compare_rows, compare_tensors};
use super::test_model::{TestModel, temporary_folder};
use crate::adapters::file;
use crate::error::Result;
use crate::models::{LayerReplay, Metrics};
use crate::recipe::optim::OptimSection;
use crate::train::checkpoint::{Checkpoints, MethodState, TrainingState};
use crate::train::optim::Optimiser;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use tch::Tensor;

const SAVED: CheckTitle =
    ("saved adapter", "the adapter read back from its file against the one in memory: each tensor, logits");
const RESUME: CheckTitle = (
    "resume",
    "two steps, a checkpoint and two steps against four steps, with dropout: each trained tensor and the loss",
);

/// Writes the adapter in PEFT's layout.
pub fn save(trial: &TestModel, folder: &Path) -> Result<()> {
    let tensors = trial.adapter();
    let base = trial.base.to_string_lossy();
    file::write(folder, &trial.spec, &base, tensors.iter().map(|(n, t)| (n.as_str(), t)))
}

/// Checks that an adapter read back from its file equals the one that was saved.
pub fn adapter(trial: &TestModel) -> Result<CheckResult> {
    let began = Instant::now();
    let (before, kept) = (trial.logits()?, trial.adapter());
    let folder = temporary_folder()?;
    save(trial, folder.path())?;
    overwrite_adapter(trial);
    let read = file::read(folder.path())?;
    file::load_into(trial.model.params().adapter(0), &read.tensors, folder.path())?;
    let gap = compare_tensors(&trial.adapter(), &kept).larger(compare_rows(&trial.logits()?, &before));
    Ok(check_result(SAVED, gap, trial.rounding().exact("float32 is written as it is"), began))
}

/// Overwrites the adapter in memory, so that values which are not read back cannot pass for the saved ones.
fn overwrite_adapter(trial: &TestModel) {
    let _no_grad = tch::no_grad_guard();
    trial.model.params().adapter(0).filter(|p| p.trainable()).for_each(|p| {
        let _ = p.tensor.shallow_clone().fill_(0.5);
    });
}

/// Checks that two steps, a checkpoint and two more steps give the result of four steps without interruption.
pub fn resume(trial: &TestModel) -> Result<CheckResult> {
    let began = Instant::now();
    let folder = temporary_folder()?;
    let checkpoints = Checkpoints::new(folder.path(), 1);
    tch::manual_seed(1);
    let mut optim = optimiser(trial)?;
    steps(trial, &mut optim, 0..2)?;
    checkpoints.save(
        &trial.model,
        &optim,
        &MethodState::new(),
        &TrainingState { step: 2, ..TrainingState::new(serde_json::Value::Null) },
    )?;
    let straight = (steps(trial, &mut optim, 2..4)?, trial.adapter());
    drop(optim);
    let resumed = resumed_steps(trial, &checkpoints, |_| ())?;
    let gap = compare_numbers("the loss", resumed.0, straight.0).larger(compare_tensors(&resumed.1, &straight.1));
    Ok(check_result(RESUME, gap, trial.rounding().exact_on_cpu("the same operations with the same dropout"), began))
}

/// Overwrites the state in memory, restores the checkpoint and runs the last two steps; returns the last loss and the
/// adapter. `harm` changes the restored optimiser in tests of this check.
fn resumed_steps(
    trial: &TestModel,
    checkpoints: &Checkpoints,
    harm: impl FnOnce(&mut Optimiser),
) -> Result<(f64, BTreeMap<String, Tensor>)> {
    overwrite_adapter(trial);
    tch::manual_seed(2);
    let mut optim = optimiser(trial)?;
    checkpoints.restore(2, &trial.model, &mut optim)?;
    harm(&mut optim);
    Ok((steps(trial, &mut optim, 2..4)?, trial.adapter()))
}

fn optimiser(trial: &TestModel) -> Result<Optimiser> {
    let settings = OptimSection { weight_decay: 0.01, ..OptimSection::default() };
    Optimiser::new(trial.model.params(), &settings, 0)
}

/// Runs optimiser steps, each over two other rows; returns the loss of the last one.
fn steps(trial: &TestModel, optim: &mut Optimiser, which: std::ops::Range<usize>) -> Result<f64> {
    let mut last = f64::NAN;
    for step in which {
        let row = trial.pack(&[step % trial.rows.len(), (step + 1) % trial.rows.len()]);
        let mut metrics = Metrics::default();
        metrics.merge(trial.model.learn(&row, row.items, LayerReplay::None)?);
        let _norm = optim.clip(1.0)?;
        optim.step(1e-3)?;
        optim.zero_gradients();
        last = metrics.means()["loss"];
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::super::test_model::tests::tiny;
    use super::*;
    use tch::Kind;

    #[test]
    fn an_optimiser_that_forgot_is_seen() {
        let trial = tiny(Kind::Float, 0.0);
        let folder = temporary_folder().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), 1);
        let mut optim = optimiser(&trial).unwrap();
        steps(&trial, &mut optim, 0..2).unwrap();
        let state = TrainingState { step: 2, ..TrainingState::new(serde_json::Value::Null) };
        checkpoints.save(&trial.model, &optim, &MethodState::new(), &state).unwrap();
        let straight = (steps(&trial, &mut optim, 2..4).unwrap(), trial.adapter());
        let gap = |harm: &dyn Fn(&mut Optimiser)| {
            compare_tensors(&resumed_steps(&trial, &checkpoints, harm).unwrap().1, &straight.1).relative
        };
        assert_eq!(gap(&|_| ()), 0.0);
        assert!(gap(&|optim| *optim = optimiser(&trial).unwrap()) > 0.0);
    }
}
