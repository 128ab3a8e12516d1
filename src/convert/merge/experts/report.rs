//! The report on a model with experts that was made of dense models.

use super::ExpertMerge;
use crate::convert::merge::streaming::weight_files;
use crate::convert::verify::compatibility::{Compatibility, of_model};
use crate::convert::verify::report::{ExportVerdict, WeightFile};
use crate::models::Config;
use crate::nn::safetensors::WrittenFile;
use crate::recipe::merge_file::ExpertSource;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Routers whose condition is larger than this tell some experts badly apart, as in mergekit.
const WELL_CONDITIONED: f64 = 5.0;

/// What was made of dense models; the contents of export_report.json.
#[derive(Debug, Clone, Serialize)]
pub struct ExpertMergeReport {
    /// Always `passed`: a directory that differs is not moved into place.
    pub verdict: ExportVerdict,
    /// Always `model`.
    pub export: &'static str,
    /// `model_type` of the result.
    pub architecture: &'static str,
    /// The folder of the base.
    pub base: String,
    /// The experts, in order.
    pub experts: Vec<ExpertReport>,
    /// The expert that computes every token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_expert: Option<ExpertReport>,
    /// How many experts compute a token.
    pub experts_per_token: usize,
    /// Where the routers' weights come from.
    pub gate_mode: &'static str,
    /// How well each router tells the experts apart.
    pub routers: Vec<RouterReport>,
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

/// An expert.
#[derive(Debug, Clone, Serialize)]
pub struct ExpertReport {
    /// The folder of the model whose MLPs it consists of.
    pub folder: String,
    /// Number of prompts whose tokens it shall get, and of those whose tokens it shall not get.
    pub prompts: [usize; 2],
}

impl ExpertReport {
    fn of(source: &ExpertSource) -> Self {
        let prompts = [source.positive.len(), source.negative.len()];
        Self { folder: source.model.display().to_string(), prompts }
    }
}

/// The router of a layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouterReport {
    /// The layer.
    pub layer: usize,
    /// The largest cosine between the rows of two experts; `null` for a single expert.
    pub largest_cosine: Option<f64>,
    /// The largest singular value divided by the smallest; `null` if that is zero.
    pub condition: Option<f64>,
}

/// Returns a sentence about layers whose routers tell some experts badly apart.
pub(super) fn alike(routers: &[RouterReport]) -> Option<String> {
    let badly = |router: &&RouterReport| router.condition.is_none_or(|condition| condition > WELL_CONDITIONED);
    let layers: Vec<String> = routers.iter().filter(badly).map(|router| router.layer.to_string()).collect();
    let which = match layers.len() {
        0 => return None,
        n if n == routers.len() => "all layers".into(),
        _ => format!("layers {}", layers.join(", ")),
    };
    Some(format!(
        "the routers of {which} tell some experts badly apart, which will get few tokens: choose prompts that are less alike"
    ))
}

/// Sums up what was written.
pub(super) fn of(
    merge: &ExpertMerge,
    folder: &Path,
    config: &Config,
    files: &[WrittenFile],
    routers: Vec<RouterReport>,
) -> ExpertMergeReport {
    ExpertMergeReport {
        verdict: ExportVerdict::Passed,
        export: "model",
        architecture: merge.architecture.model_type(),
        base: merge.file.base.display().to_string(),
        experts: merge.file.experts.iter().map(ExpertReport::of).collect(),
        shared_expert: merge.file.shared.as_ref().map(ExpertReport::of),
        experts_per_token: merge.file.experts_per_token,
        gate_mode: merge.file.gates.name(),
        notes: alike(&routers).filter(|_| !merge.file.gates.is_random()).into_iter().collect(),
        routers,
        tensors: merge.tensors.len(),
        parameters: merge.tensors.iter().map(|tensor| tensor.shape.iter().product::<i64>()).sum(),
        layers: config.num_hidden_layers,
        tied: config.tie_word_embeddings,
        files: weight_files(files),
        compatibility: of_model(folder),
        ft_version: env!("CARGO_PKG_VERSION"),
    }
}
