//! `ft replay`: trains a run again from its records and checks that the result has the same bits.

use super::prepare;
use super::records::{facts, lock};
use super::run::run_prepared;
use super::start::StartMode;
use super::summary::RunSummary;
use crate::error::{Error, Result};
use crate::recipe::plan::Plan;
use crate::runs::facts::Software;
use crate::runs::folder::PLAN;
use crate::runs::hash::{FileDigest, HashTrust};
use crate::runs::lock::{Drift, FILE, RunLock};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Result of `ft replay`.
#[derive(Debug, Serialize)]
pub struct ReplayComparison {
    /// Differences from the recorded lock; empty if there are none.
    pub drift: Vec<Drift>,
    /// True if every file of the result has the recorded hash; `None` if the recorded run has no hashes of its result.
    pub equal: Option<bool>,
    /// Files of the result: (name, recorded SHA-256, new SHA-256).
    pub files: Vec<(String, Option<String>, Option<String>)>,
    /// Summary of the new run.
    pub summary: RunSummary,
}

/// Repeats the run in folder `run`, writing into `out`, and compares the results.
///
/// Fails if files, programs or machine differ from the recorded lock, unless `accept` is true.
pub fn replay(
    run: &Path,
    out: &Path,
    accept: bool,
    software: &Software,
    stop: Arc<AtomicBool>,
) -> Result<ReplayComparison> {
    let recorded = RunLock::read(run)?.ok_or_else(|| {
        Error::user(format!("{}: there is no {FILE}, so the run's files and programs are not known", run.display()))
            .hint("runs of this version write it; train again with: ft train RECIPE")
    })?;
    let mut plan = Plan::read(&run.join(PLAN))?;
    plan.recipe.run.out = crate::fsutil::absolute(out);
    // Sums are split over threads, so their number changes the last bits: the recorded number is used.
    plan.recipe.run.threads = Some(recorded.machine.threads);
    let prepared = prepare::prepare(&plan)?;
    let environment = facts::environment(prepared.device, software);
    let now = lock::lock_of(&prepared, &environment, software, HashTrust::Bytes)?;
    let mut drift = recorded.drift(&now);
    for (step, earlier) in &recorded.resumed_with {
        let since =
            earlier.iter().map(|d| Drift { item: format!("{} (resumed after step {step})", d.item), ..d.clone() });
        drift.extend(since);
    }
    if !drift.is_empty() && !accept {
        return Err(Error::user(format!(
            "{}: these things changed since the run:\n{}",
            run.display(),
            drift.iter().map(line).collect::<Vec<_>>().join("\n")
        ))
        .hint("restore them, or train despite the changes with --accept-drift"));
    }
    let summary = run_prepared(prepared, StartMode::Fresh, software, None, stop)?;
    let result = lock::result_files(&summary.out)?;
    let sha = |files: &BTreeMap<String, FileDigest>, name: &String| files.get(name).map(|f| f.sha256.clone());
    let before = recorded.result.unwrap_or_default();
    let names: std::collections::BTreeSet<&String> = before.keys().chain(result.keys()).collect();
    let files: Vec<_> = names.into_iter().map(|n| (n.clone(), sha(&before, n), sha(&result, n))).collect();
    let equal = (!before.is_empty()).then(|| files.iter().all(|(_, a, b)| a == b));
    Ok(ReplayComparison { drift, equal, files, summary })
}

/// Describes a difference and what it can change, in two lines.
pub fn line(d: &Drift) -> String {
    format!("  {}: was {}, is {}\n    can change: {}", d.item, d.was, d.is, d.effect)
}
