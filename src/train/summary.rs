//! The summary of a completed run.

use std::path::PathBuf;

/// Results of a completed run, written to summary.json.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RunSummary {
    pub out: PathBuf,
    pub steps: u64,
    pub tokens: u64,
    pub seconds: f64,
    /// Mean training loss of the last step; `None` if this session trained no step.
    pub loss: Option<f64>,
    /// Step and value of the best validation (the one before the first step does not count), and the metric compared.
    pub best_step: Option<u64>,
    pub best_metric: String,
    pub best_value: Option<f64>,
    pub stopped_early: bool,
    /// Peak tensor bytes.
    pub memory: u64,
}
