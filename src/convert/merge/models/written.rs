//! The report on a merged model that was written, read back and compared.

use super::ModelMerge;
use crate::convert::merge::report::MergeReport;
use crate::convert::merge::streaming::{PlannedTensor, check_written, weight_files};
use crate::convert::verify::compatibility::{Compatibility, of_model};
use crate::convert::verify::report::{ExportVerdict, WeightFile};
use crate::error::Result;
use crate::nn::safetensors::WrittenFile;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The result of a merge of models; the contents of export_report.json.
#[derive(Debug, Clone, Serialize)]
pub struct ModelMergeReport {
    /// Always `passed`: a directory that differs is not moved into place.
    pub verdict: ExportVerdict,
    /// Always `model`.
    pub export: &'static str,
    /// What was merged, and how far it agreed.
    pub merge: MergeReport,
    /// What the user should know and is no error.
    pub notes: Vec<String>,
    /// Number of tensors that were read back and compared bit for bit with what was to be written.
    pub tensors: usize,
    /// Number of weights.
    pub parameters: i64,
    /// Number of layers.
    pub layers: i64,
    /// Whether embedding and head share one weight.
    pub tied: bool,
    /// Size and SHA-256 of each weight file, by name.
    pub files: BTreeMap<String, WeightFile>,
    /// Which other programs can read the directory.
    pub compatibility: Vec<Compatibility>,
    /// The version of ft that wrote the directory.
    pub ft_version: &'static str,
}

/// Reads the folder back, compares it with what was to be written, and returns the report on it.
pub(super) fn check(
    merge: &ModelMerge,
    folder: &Path,
    files: &[WrittenFile],
    report: MergeReport,
    notes: Vec<String>,
) -> Result<ModelMergeReport> {
    let planned: Vec<PlannedTensor> =
        merge.tensors.iter().map(|t| PlannedTensor { name: &t.name, shape: &t.shape, kind: t.kind }).collect();
    let config = check_written(folder, files, &planned)?;
    Ok(ModelMergeReport {
        verdict: ExportVerdict::Passed,
        export: "model",
        merge: report,
        notes,
        tensors: merge.tensors.len(),
        parameters: merge.tensors.iter().map(|tensor| tensor.shape.iter().product::<i64>()).sum(),
        layers: config.num_hidden_layers,
        tied: config.tie_word_embeddings,
        files: weight_files(files),
        compatibility: of_model(folder),
        ft_version: env!("CARGO_PKG_VERSION"),
    })
}
