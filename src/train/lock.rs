//! Computes the contents of `ft.lock` for a prepared run and for its result.

use super::Prepared;
use crate::convert::export;
use crate::error::{Error, Result};
use crate::fsutil::read_json;
use crate::methods::rows::SplitStatistics;
use crate::runs::hash::HashTrust;
use crate::runs::lock::{LockedFile, LockedRows};
use crate::runs::{Environment, RunLock, Software};
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
pub fn result_files(out: &Path) -> Result<BTreeMap<String, LockedFile>> {
    let report: Value = read_json(&out.join(export::REPORT))?;
    let files = report["files"].as_object().into_iter().flatten();
    files
        .map(|(name, f)| match (f["sha256"].as_str(), f["bytes"].as_u64()) {
            (Some(sha256), Some(bytes)) => Ok((name.clone(), LockedFile { sha256: sha256.into(), bytes })),
            _ => Err(Error::bug(format!("{}: `{name}` has no hash", export::REPORT))),
        })
        .collect()
}
