//! A run done again from its own records, and whether it ended with the same bits.

use super::{Start, Summary, lock, prepare, run_prepared};
use crate::error::{Error, Result};
use crate::models;
use crate::recipe::Plan;
use crate::runs::folder::PLAN;
use crate::runs::hash::Trust;
use crate::runs::lock::{FILE, Locked};
use crate::runs::{Drift, Environment, Lock, Software};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tch::Device;

/// How a replay compares.
#[derive(Debug, Serialize)]
pub struct Replay {
    /// What was not as the lock says; empty where everything was.
    pub drift: Vec<Drift>,
    /// Whether every file of the result has the recorded hash; `None` where the recorded run has none.
    pub equal: Option<bool>,
    /// Files of the result: (name, recorded, now).
    pub files: Vec<(String, Option<String>, Option<String>)>,
    pub summary: Summary,
}

/// Trains again as the run in `run` did, into `out`. `accept`: also where something is not as it was.
pub fn replay(run: &Path, out: &Path, accept: bool, software: &Software, stop: Arc<AtomicBool>) -> Result<Replay> {
    let recorded = Lock::read(run)?.ok_or_else(|| {
        Error::user(format!("{}: no {FILE} here, so what the run was made of is not known", run.display()))
            .hint("runs of this version write it; train once more with: ft train RECIPE")
    })?;
    let mut plan = Plan::read(&run.join(PLAN))?;
    plan.recipe.run.out = crate::fsutil::absolute(out);
    // Sums are split over threads: as many as then, whatever this machine would take.
    plan.recipe.run.threads = Some(recorded.machine.threads);
    let prepared = prepare::prepare(&plan)?;
    let cuda = match models::device(&plan.recipe.model.device)? {
        Device::Cuda(i) => Some(i),
        _ => None,
    };
    let environment = Environment::read(software, cuda, tch::get_num_threads() as usize);
    let now = lock::of(&prepared, &environment, software, Trust::Bytes)?;
    let mut drift = recorded.drift(&now);
    for (step, earlier) in &recorded.resumed_with {
        let since =
            earlier.iter().map(|d| Drift { item: format!("{} (resumed after step {step})", d.item), ..d.clone() });
        drift.extend(since);
    }
    if !drift.is_empty() && !accept {
        return Err(Error::user(format!(
            "{}: not everything is as it was:\n{}",
            run.display(),
            drift.iter().map(line).collect::<Vec<_>>().join("\n")
        ))
        .hint("put it back, or train all the same with --accept-drift"));
    }
    let summary = run_prepared(prepared, Start::Fresh, software, stop)?;
    let result = lock::result(&summary.out)?;
    let sha = |files: &BTreeMap<String, Locked>, name: &String| files.get(name).map(|f| f.sha256.clone());
    let before = recorded.result.unwrap_or_default();
    let names: std::collections::BTreeSet<&String> = before.keys().chain(result.keys()).collect();
    let files: Vec<_> = names.into_iter().map(|n| (n.clone(), sha(&before, n), sha(&result, n))).collect();
    let equal = (!before.is_empty()).then(|| files.iter().all(|(_, a, b)| a == b));
    Ok(Replay { drift, equal, files, summary })
}

/// A difference and what it can change.
pub fn line(d: &Drift) -> String {
    format!("  {}: was {}, is {}\n    can change: {}", d.item, d.was, d.is, d.effect)
}
