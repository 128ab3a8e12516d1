//! `ft adapter info`: what an adapter is, without a model.

use super::updates::OpenAdapter;
use crate::adapters::file;
use crate::convert::quantised_base;
use crate::convert::verify::compatibility::{self, Compatibility};
use crate::error::Result;
use crate::fsutil;
use crate::merging::{Delta, on_one_thread, svd};
use crate::model_files::is_model;
use crate::models::{Config, QuantisedBase, layer_number};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// What an adapter is.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterInfo {
    /// Its folder.
    pub folder: String,
    /// Name of its kind, such as `LoRA`.
    pub kind: String,
    /// A short description, such as `lora r16`.
    pub description: String,
    /// The base that it names.
    pub base: Option<String>,
    /// Numbers in its tensors.
    pub parameters: u64,
    /// Size of its tensors in bytes.
    pub bytes: u64,
    /// The modules that it names as targets.
    pub targets: serde_json::Value,
    /// Modules that it saves in full.
    pub modules_to_save: Vec<String>,
    /// Every tensor of the base that it changes, as far as its file says so.
    pub weights: Vec<WeightInfo>,
    /// The same by layer, in order.
    pub layers: Vec<LayerInfo>,
    /// The tensors of its file.
    pub tensors: Vec<TensorInfo>,
    /// Which other programs can read it.
    pub compatibility: Vec<Compatibility>,
}

/// The change of one tensor of the base.
#[derive(Debug, Clone, Serialize)]
pub struct WeightInfo {
    /// Its name.
    pub name: String,
    /// (out, in) of a matrix; `null` if the change depends on the base, and none is given.
    pub shape: Option<Vec<i64>>,
    /// Rank of the factors; `null` if the change is no product.
    pub rank: Option<i64>,
    /// Frobenius norm of the change.
    pub norm: Option<f64>,
    /// How many singular values count (Roy and Vetterli 2007).
    pub effective_rank: Option<f64>,
}

/// The changes of one layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerInfo {
    /// The layer's number; `other`: outside of layers.
    pub layer: String,
    /// Number of tensors that change.
    pub weights: usize,
    /// Norm of all changes together.
    pub norm: Option<f64>,
    /// Mean of the effective ranks.
    pub effective_rank: Option<f64>,
}

/// A tensor of the adapter's file.
#[derive(Debug, Clone, Serialize)]
pub struct TensorInfo {
    /// Its name, without PEFT's prefix.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its dtype, such as `float`.
    pub dtype: String,
}

/// Looks at the adapter in `folder`, tensor by tensor. Changes that depend on the base are known only if it is given. Fails for
/// tensors that are not finite or do not fit together.
pub fn info(folder: &Path, base: Option<&Path>) -> Result<AdapterInfo> {
    let open = OpenAdapter::read(folder, base)?;
    let adapter = &open.part.file;
    let changes = open.changes()?;
    let weight = |name: &str| {
        let delta = changes.get(name).map_err(|e| e.context(folder.join(file::TENSORS).display()))?;
        let rank = delta.as_ref().and_then(Delta::rank);
        // The singular values of a dense change would take minutes in a large model.
        let values = delta.as_ref().filter(|_| rank.is_some()).map(|d| on_one_thread(|| svd::singular_values(d)));
        Ok(WeightInfo {
            name: name.to_string(),
            shape: delta.as_ref().map(Delta::shape),
            rank,
            norm: delta.as_ref().map(|d| on_one_thread(|| d.norm())),
            effective_rank: values.map(|values| svd::effective_rank(&values)),
        })
    };
    let weights = changes.names().into_iter().map(weight).collect::<Result<Vec<_>>>()?;
    let config: serde_json::Value = fsutil::read_json(&folder.join(file::CONFIG))?;
    let tensors = adapter.tensors.iter().map(|(name, t)| TensorInfo {
        name: name.clone(),
        shape: t.size(),
        dtype: format!("{:?}", t.kind()).to_lowercase(),
    });
    let bytes = |t: &tch::Tensor| (t.numel() * t.kind().elt_size_in_bytes()) as u64;
    let base = adapter.base.as_deref().map(Path::new).filter(|base| is_model(base));
    let base = base.map(Config::read).transpose()?;
    let mut compatibility = compatibility::of_adapter(adapter, folder, base.as_ref())?;
    if let Some(QuantisedBase::Loaded { format, corrected: true }) = quantised_base::recorded(folder)? {
        compatibility::require_quantised_base(&mut compatibility, format.linear);
    }
    Ok(AdapterInfo {
        folder: folder.display().to_string(),
        kind: adapter.spec.title().to_string(),
        description: adapter.spec.describe(),
        base: adapter.base.clone(),
        parameters: adapter.tensors.values().map(|t| t.numel() as u64).sum(),
        bytes: adapter.tensors.values().map(bytes).sum(),
        targets: config.get("target_modules").cloned().unwrap_or_default(),
        modules_to_save: adapter.spec.modules_to_save().to_vec(),
        layers: layers(&weights),
        weights,
        tensors: tensors.collect(),
        compatibility,
    })
}

fn layers(weights: &[WeightInfo]) -> Vec<LayerInfo> {
    let mut groups: BTreeMap<usize, Vec<&WeightInfo>> = BTreeMap::new();
    for weight in weights {
        groups.entry(layer_number(&weight.name).unwrap_or(usize::MAX)).or_default().push(weight);
    }
    let layer = |(number, list): (usize, Vec<&WeightInfo>)| {
        let norms: Option<Vec<f64>> = list.iter().map(|w| w.norm).collect();
        let ranks: Vec<f64> = list.iter().filter_map(|w| w.effective_rank).collect();
        LayerInfo {
            layer: if number == usize::MAX { "other".into() } else { number.to_string() },
            weights: list.len(),
            norm: norms.map(|norms| norms.iter().map(|n| n * n).sum::<f64>().sqrt()),
            effective_rank: (!ranks.is_empty()).then(|| ranks.iter().sum::<f64>() / ranks.len() as f64),
        }
    };
    groups.into_iter().map(layer).collect()
}
