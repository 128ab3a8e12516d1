//! The lock of a run that is about to begin, and of the result it ended with.

use super::Prepared;
use crate::convert::export;
use crate::error::{Error, Result};
use crate::fsutil::read_json;
use crate::methods::Side;
use crate::runs::hash::Trust;
use crate::runs::lock::{Locked, LockedRows};
use crate::runs::{Environment, Lock, Software};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What a prepared run is made of.
pub fn of(prepared: &Prepared, environment: &Environment, software: &Software, trust: Trust) -> Result<Lock> {
    let rows = |d: Side| LockedRows {
        path: d.summary.path.clone(),
        sha256: d.summary.sha256.clone(),
        tokens_sha256: Some(d.summary.tokens_sha256.clone()),
    };
    let (train, valid) = (rows(prepared.rows.train()), prepared.rows.valid().map(rows));
    Lock::new(&prepared.plan, train, valid, software, environment, trust)
}

/// The weight files of a verified result, as its report has hashed them.
pub fn result(out: &Path) -> Result<BTreeMap<String, Locked>> {
    let report: Value = read_json(&out.join(export::REPORT))?;
    let files = report["files"].as_object().into_iter().flatten();
    files
        .map(|(name, f)| match (f["sha256"].as_str(), f["bytes"].as_u64()) {
            (Some(sha256), Some(bytes)) => Ok((name.clone(), Locked { sha256: sha256.into(), bytes })),
            _ => Err(Error::bug(format!("{}: `{name}` has no hash", export::REPORT))),
        })
        .collect()
}
