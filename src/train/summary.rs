//! The summary of a completed run.

use crate::runs::averaged::AveragedResult;
use std::path::PathBuf;

/// Results of a completed run, written to summary.json.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RunSummary {
    /// The folder of the run.
    pub out: PathBuf,
    /// Optimiser steps done.
    pub steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds that this session worked.
    pub seconds: f64,
    /// Mean training loss of the last step; `None` if this session trained no step.
    pub loss: Option<f64>,
    /// Step of the best validation; the one before the first step does not count.
    pub best_step: Option<u64>,
    /// The metric that the method aims at.
    pub best_metric: String,
    /// Its best value.
    pub best_value: Option<f64>,
    /// The mean of checkpoints that is the result, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average: Option<AveragedResult>,
    /// True if the run ended before its last step.
    pub stopped_early: bool,
    /// Peak tensor bytes.
    pub memory: u64,
}
