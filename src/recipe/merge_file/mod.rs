//! Reads the file of a merge. All mistakes are reported together, with their places.
//!
//! There are three kinds, told apart by their keys: `ft merge`'s own file of a merge of adapters (`adapters`), the file of a
//! merge of whole models, which is mergekit's (`mergekit`, read into `models`), and that of a mixture of experts made of dense
//! models, which is mergekit-moe's (`experts`). `node_reader` has what reading them needs, `sweep` the settings of a search for the
//! weights of adapters.

mod adapters;
mod experts;
mod mergekit;
mod models;
mod node_reader;
mod sweep;

pub use adapters::AdapterMergeFile;
pub use experts::{ExpertArchitecture, ExpertMergeFile, ExpertSource, GateMode};
pub use models::{
    ChatTemplateChoice, MergeFormat, ModelMergeFile, OutputSlice, SliceSource, TokenChoice, TokenRowSource,
    TokenizerSource, VocabularyPlan,
};
pub use sweep::{SweepBy, SweepSettings};

use super::mistakes::{SourceSpan, SourceTexts};
use super::tree::{self, Node};
use crate::error::{Error, Result};
use crate::fsutil;
use node_reader::NodeReader;
use std::path::Path;

/// Maximum size of the file in bytes, so that a weights file given by mistake is not read.
const LARGEST: u64 = 1 << 20;
/// Keys that only the file of a mixture of experts has.
const OF_EXPERTS: [&str; 3] = ["experts", "gate_mode", "experts_per_token"];
/// Keys that only the file of a merge of models has.
const OF_MODELS: [&str; 5] = ["merge_method", "models", "slices", "modules", "base_model"];

/// The file of a merge.
#[derive(Debug, Clone, PartialEq)]
pub enum MergeFile {
    /// Adapters are merged into a base or into one adapter.
    Adapters(AdapterMergeFile),
    /// Whole models are merged.
    Models(ModelMergeFile),
    /// Dense models become the experts of one model.
    Experts(ExpertMergeFile),
}

/// Reads the file of a merge. If there are mistakes, the error lists all of them.
pub fn read(path: &Path) -> Result<MergeFile> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() > LARGEST) {
        return Err(Error::user(format!("{}: larger than 1 MiB, so it cannot be the file of a merge", path.display()))
            .hint("it is a short YAML file: docs/merging.md shows one"));
    }
    parse(&path.display().to_string(), &fsutil::read_to_string(path)?)
}

/// Like [`read`], for a file given as text. Messages use `name` in place of a file name.
pub fn parse(name: &str, text: &str) -> Result<MergeFile> {
    let content = text.strip_prefix('\u{feff}').unwrap_or(text);
    let sources = SourceTexts { name, text: content, sets: &[] };
    let mut mistakes = Vec::new();
    let root =
        tree::parse(0, content, &mut mistakes).or_else(|| mistakes.is_empty().then(|| Node::map(SourceSpan::start(0))));
    let found = root.and_then(|root| {
        let mut reader = NodeReader { mistakes: &mut mistakes };
        let has = |keys: &[&str]| keys.iter().any(|key| root.get(key).is_some());
        match () {
            () if has(&OF_EXPERTS) => experts::file(&mut reader, &root).map(MergeFile::Experts),
            () if has(&OF_MODELS) => mergekit::file(&mut reader, &root).map(MergeFile::Models),
            () => adapters::file(&mut reader, &root).map(MergeFile::Adapters),
        }
    });
    match found {
        Some(file) if mistakes.is_empty() => Ok(file),
        _ => Err(sources.report(mistakes)),
    }
}
