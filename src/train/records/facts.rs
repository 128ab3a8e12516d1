//! Collects the contents of `run.json` that are known before the first step.

use crate::methods::rows::SplitStatistics;
use crate::models::Model;
use crate::runs::facts::{DataFacts, Environment, LengthHistogram, RecordedAim, RunFacts, Software};
use crate::train::memory;
use crate::train::prepare::Prepared;

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
    RunFacts {
        method: prepared.plan.method().into(),
        adapter: prepared.plan.adapter(),
        base: recipe.model.path.clone(),
        parameters,
        trained,
        steps: prepared.total_steps,
        train: data(prepared.rows.train()),
        valid: prepared.rows.valid().map(data),
        environment: environment(prepared.device, software),
        aim: RecordedAim::default(),
        sessions: Vec::new(),
        movement: None,
        origins: Vec::new(),
    }
}

/// Reads programs and machine, with the device and the number of threads that this process computes with.
pub fn environment(device: tch::Device, software: &Software) -> Environment {
    let cuda = match device {
        tch::Device::Cuda(i) => Some(i),
        _ => None,
    };
    Environment::read(software, cuda, tch::get_num_threads() as usize)
}
