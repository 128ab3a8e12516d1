//! Checks of what is written to disk and read back.

use super::compare::{Line, judge, numbers, tensors};
use super::learning::About;
use super::trial::{DROPPED, PLAIN, Trial, adapter_tensors, scratch};
use crate::adapters::file;
use crate::error::Result;
use crate::models::{Metrics, Replay};
use crate::train::checkpoint::{Checkpoints, State};
use crate::train::optim::{Optimiser, Settings};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use tch::Tensor;

const SAVED: About = ("saved adapter", "the adapter read back from its file against the one in memory: each tensor, logits");
const RESUME: About =
    ("resume", "two steps, a checkpoint and two steps against four steps, with dropout: each trained tensor and the loss");

/// Writes the adapter in PEFT's layout.
pub fn save(trial: &Trial, folder: &Path) -> Result<()> {
    let tensors = adapter_tensors(&trial.model, id(trial, PLAIN));
    let base = trial.base.to_string_lossy();
    file::write(folder, &trial.spec, &base, tensors.iter().map(|(n, t)| (n.as_str(), t)))
}

fn id(trial: &Trial, name: &str) -> usize {
    trial.model.adapter_id(name).expect("attached when the trial began")
}

pub fn adapter(trial: &Trial) -> Result<Line> {
    let began = Instant::now();
    let plain = id(trial, PLAIN);
    let (before, kept) = (trial.logits()?, adapter_tensors(&trial.model, plain));
    let folder = scratch()?;
    save(trial, folder.path())?;
    spoil(trial, plain);
    let read = file::read(folder.path())?;
    file::load_into(trial.model.params().adapter(plain), &read.tensors, folder.path())?;
    let gap = tensors(&on_cpu(adapter_tensors(&trial.model, plain)), &on_cpu(kept))
        .or(super::compare::rows(&trial.logits()?, &before));
    Ok(judge(SAVED, gap, trial.rounding().none("float32 is written as it is"), began))
}

/// So that nothing which is not read back could pass for it.
fn spoil(trial: &Trial, id: usize) {
    let _no_grad = tch::no_grad_guard();
    trial.model.params().adapter(id).for_each(|p| {
        let _ = p.tensor.shallow_clone().fill_(0.5);
    });
}

fn on_cpu(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    tensors.into_iter().map(|(n, t)| (n, t.to_device(tch::Device::Cpu))).collect()
}

/// A few optimiser steps, saved and taken up again.
pub fn resume(trial: &Trial) -> Result<Line> {
    let began = Instant::now();
    let dropped = id(trial, DROPPED);
    let folder = scratch()?;
    let checkpoints = Checkpoints::new(folder.path(), 1);
    let mut state = State::new(serde_json::Value::Null);
    let (straight, resumed) = trial.model.with(Some(DROPPED), |_| -> Result<_> {
        tch::manual_seed(1);
        let mut optim = optimiser(trial)?;
        steps(trial, &mut optim, 0..2)?;
        state.step = 2;
        checkpoints.save(&trial.model, &optim, &state)?;
        let loss = steps(trial, &mut optim, 2..4)?;
        let straight = (loss, adapter_tensors(&trial.model, dropped));
        drop(optim);
        spoil(trial, dropped);
        tch::manual_seed(2);
        let mut optim = optimiser(trial)?;
        checkpoints.restore(2, &trial.model, &mut optim)?;
        let loss = steps(trial, &mut optim, 2..4)?;
        Ok((straight, (loss, adapter_tensors(&trial.model, dropped))))
    })?;
    let gap = numbers("the loss", resumed.0, straight.0).or(tensors(&resumed.1, &straight.1));
    Ok(judge(RESUME, gap, trial.rounding().none_on_cpu("the same operations with the same dropout"), began))
}

fn optimiser(trial: &Trial) -> Result<Optimiser> {
    let settings = Settings { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01, decay_norms: false };
    Optimiser::new(trial.model.params(), settings)
}

/// Steps over rows that change from step to step; the last one's loss.
fn steps(trial: &Trial, optim: &mut Optimiser, which: std::ops::Range<usize>) -> Result<f64> {
    let mut last = f64::NAN;
    for step in which {
        let row = trial.pack(&[step % trial.rows.len(), (step + 1) % trial.rows.len()]);
        let mut metrics = Metrics::default();
        metrics.merge(trial.model.learn(&row.tokens, row.items, Replay::None, |out| row.loss(out))?);
        optim.clip(1.0)?;
        optim.step(1e-3)?;
        optim.zero_gradients();
        last = metrics.means()["loss"];
    }
    Ok(last)
}
