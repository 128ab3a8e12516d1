//! The kinds of directories that are written: which tensors each must have, and how it is read back.
//!
//! A new kind of directory is a variant here; the comparison in `check` does not know the kinds.

use super::compatibility::{self, Compatibility};
use crate::adapters::file;
use crate::error::Result;
use crate::fsutil;
use crate::model_files;
use crate::models::{self, Config, Heads, LoadOptions, Model, Storage};
use crate::nn::weights::Weights;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// The kind of directory to write or verify.
#[derive(Debug, Clone, Copy)]
pub enum ExportKind<'a> {
    /// An adapter for the base in this folder.
    Adapter {
        /// Folder of the base model.
        base: &'a Path,
    },
    /// A whole model.
    Model,
}

impl ExportKind<'_> {
    /// Returns the name of the kind in a report.
    pub fn name(self) -> &'static str {
        match self {
            ExportKind::Adapter { .. } => "adapter",
            ExportKind::Model => "model",
        }
    }

    /// Returns the folder whose tokenizer belongs to the directory `folder`.
    pub(super) fn tokenizer_folder<'p>(&'p self, folder: &'p Path) -> &'p Path {
        match self {
            ExportKind::Adapter { base } => base,
            ExportKind::Model => folder,
        }
    }

    /// Reads all tensors of a directory, by name.
    pub(super) fn read_tensors(self, folder: &Path) -> Result<BTreeMap<String, Tensor>> {
        Ok(match self {
            ExportKind::Adapter { .. } => file::read(folder)?.tensors,
            ExportKind::Model => {
                let mut weights = Weights::open(folder)?;
                models::split_stacks(&mut weights, &Config::read_file(&folder.join(model_files::CONFIG))?)?;
                weights.all()
            }
        })
    }

    /// Returns the paths of a directory's weight files.
    pub(super) fn weight_files(self, folder: &Path) -> Result<Vec<PathBuf>> {
        match self {
            ExportKind::Adapter { .. } => Ok(vec![folder.join(file::TENSORS)]),
            ExportKind::Model => model_weight_files(folder),
        }
    }

    /// Opens a directory as a model that computes as `reference` does, on `device`. Opening a reward model also compares it
    /// with the probes in its reward.json.
    pub(super) fn open(self, folder: &Path, reference: &Model, device: Device) -> Result<Model> {
        let kind = reference.kind();
        let scores = reference.heads() == Heads::Score;
        match self {
            ExportKind::Adapter { base } if scores => {
                models::open_scorer(base, Some(folder), device, kind).map(|(model, _)| model)
            }
            ExportKind::Model if scores => models::open_scorer(folder, None, device, kind).map(|(model, _)| model),
            ExportKind::Adapter { base } => {
                let storage = reference.storage().quantisation().map_or(Storage::Auto, Storage::Quantised);
                models::open_stored(base, &[folder.to_path_buf()], device, kind, storage)
            }
            ExportKind::Model => Model::load(
                folder,
                LoadOptions {
                    device,
                    kind,
                    storage: reference.storage(),
                    train_base: None,
                    adapters: Vec::new(),
                    vocabulary: None,
                    heads: Heads::Tokens,
                },
            ),
        }
    }

    /// Returns which programs can read a directory. `scores`: it is a reward model's.
    pub(super) fn compatibility(self, folder: &Path, scores: bool) -> Result<Vec<Compatibility>> {
        match self {
            ExportKind::Adapter { base } => {
                compatibility::of_adapter(&file::read(folder)?, folder, Some(&Config::read(base)?))
            }
            ExportKind::Model if scores => Ok(compatibility::of_scorer(folder)),
            ExportKind::Model => Ok(compatibility::of_model(folder)),
        }
    }
}

/// Returns the tensors that a model directory gets. If the model has both an output head and a scalar head, the scalar
/// head is the value function of PPO; it is needed for training only and left out.
pub(in crate::convert) fn written_tensors(model: &Model) -> BTreeMap<&str, &Tensor> {
    let both = model.heads() == Heads::Both;
    let written = model.params().base().filter(|p| !(both && p.name == models::SCORE));
    written.map(|p| (p.name.as_str(), &p.tensor)).collect()
}

/// Returns the dtype of the first floating-point tensor in the folder.
pub(super) fn saved_kind(folder: &Path) -> Result<Option<Kind>> {
    let weights = Weights::open(folder)?;
    Ok(weights.names().filter_map(|n| weights.kind(n)).find(|k| matches!(k, Kind::Float | Kind::BFloat16 | Kind::Half)))
}

/// Returns the weight files of a model directory: one, or the shards that its index lists.
fn model_weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![folder.join("model.safetensors")]);
    }
    let index: Value = fsutil::read_json(&index)?;
    let files: BTreeSet<&str> =
        index["weight_map"].as_object().into_iter().flatten().filter_map(|(_, f)| f.as_str()).collect();
    Ok(files.into_iter().map(|f| folder.join(f)).collect())
}
