//! The result of verifying a directory, as it is written next to the weights.

use super::compatibility::Compatibility;
use super::logit_distance::LogitDistance;
use super::thresholds::LogitThresholds;
use crate::convert::merge::report::MergeReport;
use crate::convert::quantised_base::QuantisationError;
use crate::error::Result;
use crate::fsutil;
use crate::models::QuantisedBase;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the file with the report.
pub const REPORT: &str = "export_report.json";

/// The result of verifying a directory; the contents of export_report.json.
#[derive(Debug, Clone, Serialize)]
pub struct ExportReport {
    /// Whether the directory passed.
    pub verdict: ExportVerdict,
    /// `adapter` or `model`.
    pub export: &'static str,
    /// What is wrong; empty if the verdict is `passed`.
    pub problems: Vec<String>,
    /// Hints for the user that are no errors.
    pub notes: Vec<String>,
    /// The dtype that both models computed in.
    pub computed_in: String,
    /// Number of prompts compared.
    pub prompts: usize,
    /// Number of tokens in all prompts.
    pub positions: usize,
    /// Distance of the model read back from the model in memory.
    pub difference: LogitDistance,
    /// The largest allowed distance.
    pub thresholds: LogitThresholds,
    /// Distance of the base without adapter from the model in memory, that is, the effect of the adapter. Adapters and
    /// merges only.
    pub adapter_effect: Option<LogitDistance>,
    /// How the base was quantised below an adapter, if it was. Its answers were compared over the same quantised weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantised_base: Option<QuantisedBase>,
    /// What a merge changes for an adapter that was trained over a quantised base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantisation_error: Option<QuantisationError>,
    /// What was merged, and how far it agreed. Merges only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merge: Option<MergeReport>,
    /// Number of tensors compared bit for bit with what was to be written.
    pub tensors: usize,
    /// Whether embedding and head share one weight according to config.json; always false for an adapter.
    pub tied: bool,
    /// Tensors that the directory lacks.
    pub missing: Vec<String>,
    /// Tensors that should not be in the directory.
    pub unexpected: Vec<String>,
    /// Size and SHA-256 of each weight file, by name.
    pub files: BTreeMap<String, WeightFile>,
    /// Which other programs can read the directory.
    pub compatibility: Vec<Compatibility>,
    /// The version of ft that wrote the directory.
    pub ft_version: &'static str,
}

/// Whether a directory equals the model in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportVerdict {
    /// All tensors and outputs agree.
    Passed,
    /// Something differs; `problems` says what.
    Failed,
}

/// Size and hash of a weight file.
#[derive(Debug, Clone, Serialize)]
pub struct WeightFile {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the contents, in hexadecimal.
    pub sha256: String,
}

/// Returns name, size and hash of a weight file.
pub(in crate::convert) fn weight_file(path: &Path) -> Result<(String, WeightFile)> {
    let bytes = std::fs::metadata(path).map_err(|e| fsutil::io_error("reading", path, e))?.len();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, WeightFile { bytes, sha256: fsutil::sha256(path)? }))
}
