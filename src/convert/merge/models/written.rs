//! Reads a merged model back and compares it with what was to be written, one tensor at a time.

use super::ModelMerge;
use crate::convert::merge::report::MergeReport;
use crate::convert::verify::compatibility::{Compatibility, of_model};
use crate::convert::verify::report::{ExportVerdict, WeightFile, weight_file};
use crate::error::{Error, Result};
use crate::merging::models::TensorBlocks;
use crate::models::{self, Config, Heads, LoadOptions, Model, Storage};
use crate::nn::weights;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

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

/// The hash of a tensor's bytes, block by block, by which written bytes are compared with what was to be written.
#[derive(Default)]
pub(super) struct BlockHash(DefaultHasher);

impl BlockHash {
    /// Adds the bytes of the next block.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Returns the hash of all blocks.
    pub fn finish(self) -> u64 {
        self.0.finish()
    }
}

/// Reads the folder back: every tensor must have the bytes that were written, and a model of this config must consist of exactly
/// these tensors. Its weights stay in their files.
pub(super) fn check(
    merge: &ModelMerge,
    folder: &Path,
    hashes: &BTreeMap<String, u64>,
    report: MergeReport,
    notes: Vec<String>,
) -> Result<ModelMergeReport> {
    let back = |e: Error| e.context("reading back what was just written");
    let config = Config::read(folder).map_err(back)?;
    let read = models::weights(folder, &config).map_err(back)?;
    let differs = |name: &str| {
        Error::user(format!("`{name}` in the written files differs from what was merged"))
            .hint("the disk or the memory of this machine is faulty, or another program changed the files")
    };
    let (found, wanted): (BTreeSet<&str>, BTreeSet<&str>) =
        (read.names().collect(), hashes.keys().map(String::as_str).collect());
    if let Some(name) = found.symmetric_difference(&wanted).next() {
        return Err(differs(name));
    }
    for (name, wanted) in hashes {
        let blocks = TensorBlocks::of(read.shape(name).unwrap_or_default());
        let mut hash = BlockHash::default();
        for rows in blocks.blocks() {
            let entries = (rows.start * blocks.columns) as usize..(rows.end * blocks.columns) as usize;
            let block = read.read_entries(name, entries).ok_or_else(|| differs(name))?.map_err(back)?;
            hash.add(&weights::bytes(&block));
        }
        if hash.finish() != *wanted {
            return Err(differs(name));
        }
    }
    let options = LoadOptions {
        device: Device::Cpu,
        kind: Kind::Float,
        storage: Storage::File,
        train_base: None,
        adapters: Vec::new(),
        vocabulary: None,
        heads: Heads::Tokens,
    };
    Model::load(folder, options).map_err(back)?;
    let mut files = BTreeMap::new();
    let paths: BTreeSet<PathBuf> = read.names().filter_map(|name| read.file_of(name).map(PathBuf::from)).collect();
    for path in paths {
        let (name, file) = weight_file(&path)?;
        files.insert(name, file);
    }
    Ok(ModelMergeReport {
        verdict: ExportVerdict::Passed,
        export: "model",
        merge: report,
        notes,
        tensors: hashes.len(),
        parameters: merge.tensors.iter().map(|tensor| tensor.shape.iter().product::<i64>()).sum(),
        layers: config.num_hidden_layers,
        tied: config.tie_word_embeddings,
        files,
        compatibility: of_model(folder),
        ft_version: env!("CARGO_PKG_VERSION"),
    })
}
