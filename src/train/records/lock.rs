//! Computes the contents of `ft.lock` for a prepared run, for a resumed one and for its result.

use crate::convert::verify::report::REPORT;
use crate::error::{Error, Result};
use crate::fsutil::read_json;
use crate::methods::rows::SplitStatistics;
use crate::report;
use crate::runs::facts::{Environment, Software};
use crate::runs::hash::{FileDigest, HashTrust};
use crate::runs::lock::{Drift, LockedRows, RunLock};
use crate::train::prepare::Prepared;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Returns the lock of a prepared run: the hashes of its model, data and recipe, and its programs and machine.
pub fn lock_of(
    prepared: &Prepared,
    environment: &Environment,
    software: &Software,
    trust: HashTrust,
) -> Result<RunLock> {
    let rows = |d: SplitStatistics| LockedRows {
        path: d.summary.path.clone(),
        sha256: d.summary.sha256.clone(),
        tokens_sha256: Some(d.summary.tokens_sha256.clone()),
    };
    let (train, valid) = (rows(prepared.rows.train()), prepared.rows.valid().map(rows));
    RunLock::new(&prepared.plan, train, valid, software, environment, trust)
}

/// Returns the weight files of the result in `out` with the hashes from its export report.
pub fn result_files(out: &Path) -> Result<BTreeMap<String, FileDigest>> {
    let report: Value = read_json(&out.join(REPORT))?;
    let files = report["files"].as_object().into_iter().flatten();
    files
        .map(|(name, f)| match (f["sha256"].as_str(), f["bytes"].as_u64()) {
            (Some(sha256), Some(bytes)) => Ok((name.clone(), FileDigest { sha256: sha256.into(), bytes })),
            _ => Err(Error::bug(format!("{}: `{name}` has no hash", REPORT))),
        })
        .collect()
}

/// Returns the lock of a resumed run: the earlier one, with this session's differences added to it.
///
/// Fails if inputs changed (see [`Drift::is_input`]), such as base, tokenizer or rows. Other changes, such as another
/// number of threads, are reported and recorded.
pub fn lock_of_resumed(earlier: RunLock, now: RunLock, step: u64) -> Result<RunLock> {
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
