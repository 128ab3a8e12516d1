//! Merges whole models: reads their tensors block by block, merges them by the methods of [`crate::merging::models`], and writes
//! a model directory.
//!
//! inputs: opens the models and refuses those that do not belong together. tensors: which tensors the result has, and what each is
//! merged from. merged_tensor: one tensor of the result, and the report on it; reading: its rows in the models. vocabulary: which
//! tokens there are, and from which rows they come; aligned_rows: these rows; tokenizer: its files. config: config.json of the
//! result. written: what is written is read back and compared.
//!
//! Tensors are read, merged and written in blocks; a method that has to know a whole tensor reads it more than once. So the memory
//! depends neither on the size of a tensor nor on that of a model. Several threads merge blocks; one writes them in order.

mod aligned_rows;
mod config;
mod inputs;
mod merged_tensor;
mod reading;
mod tensors;
mod tokenizer;
mod vocabulary;
mod written;

pub use written::ModelMergeReport;

use super::model_input::ModelInput;
use super::page;
use super::report::{MergeReport, MergedPart, MergedParts};
use crate::adapters::merging::reduce::WeightReport;
use crate::convert::export::publish::tensor_entry;
use crate::convert::folder::disk_space::check_disk_space;
use crate::error::Result;
use crate::fsutil;
use crate::nn::safetensors::{TensorHeader, write_model_in_parts};
use crate::recipe::merge_file::{MergeFormat, ModelMergeFile};
use crate::report;
use merged_tensor::MergedTensor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Kind;
use tensors::OutputTensor;
use vocabulary::Vocabulary;

/// A merge of whole models that is planned in full: which tensors it has, and with which parameters each is merged.
pub struct ModelMerge {
    file: ModelMergeFile,
    /// Determines which random entries are kept.
    seed: u64,
    inputs: Vec<ModelInput>,
    vocabulary: Option<Vocabulary>,
    tensors: Vec<OutputTensor>,
}

impl ModelMerge {
    /// Opens the models and plans the merge. Fails if they do not belong together, or if a tensor has no parameters.
    pub fn open(file: ModelMergeFile, seed: u64) -> Result<Self> {
        let inputs = inputs::open(&file)?;
        let vocabulary = Vocabulary::of(&file, &inputs)?;
        let tensors = tensors::plan(&file, &inputs, vocabulary.as_ref())?;
        let merge = Self { file, seed, inputs, vocabulary, tensors };
        config::check(&merge)?;
        Ok(merge)
    }

    /// Returns what the file says that is ignored or done in another way, and what is suspicious about the models.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.file.notes.clone();
        notes.dedup();
        notes.extend(inputs::unlike(&self.file, &self.inputs, self.vocabulary.is_some()));
        notes
    }

    /// Returns the position of the model whose config.json and other files the result has: the base, or the first model.
    fn leading(&self) -> usize {
        self.file.base.unwrap_or(self.file.slices[0].sources[0].model)
    }

    /// Merges all tensors without writing anything, and returns the report.
    pub fn report(&self) -> Result<MergeReport> {
        let bar = report::bar(self.tensors.len() as u64, "merging");
        let mut reports = Vec::new();
        for tensor in &self.tensors {
            reports.extend(MergedTensor::new(self, tensor)?.compute(|_| Ok(()))?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(self.summary(reports))
    }

    /// Writes a model directory: merges each tensor as it is written, reads the files back, and moves them into place. Fails for
    /// NaN or infinite values in a model or in the result.
    pub fn write(&self, out: &Path, shard_bytes: u64) -> Result<ModelMergeReport> {
        let entries = self
            .tensors
            .iter()
            .map(|tensor| tensor_entry(&tensor.name, &tensor.shape, tensor.kind))
            .collect::<Result<Vec<_>>>()?;
        check_disk_space(out, entries.iter().map(TensorHeader::bytes).sum())?;
        let by_name: BTreeMap<&str, &OutputTensor> = self.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        let folder: PathBuf = out.components().collect(); // without a slash at the end
        let mut done = None;
        fsutil::replace_dir(&folder, |temp| {
            let bar = report::bar(self.tensors.len() as u64, "merging");
            let mut reports = BTreeMap::new();
            let files = write_model_in_parts(temp, &entries, shard_bytes, |entry, out| {
                let tensor = MergedTensor::new(self, by_name[entry.name.as_str()])?;
                let compared = tensor.compute(|bytes| out.put(bytes))?;
                reports.extend(compared.map(|report| (entry.name.clone(), report)));
                bar.inc(1);
                Ok(())
            })?;
            bar.finish_and_clear();
            config::write(self, temp)?;
            let notes = tokenizer::write(self, temp)?;
            let merge = self.summary(reports.into_values().collect());
            if !merge.weights.is_empty() {
                page::write(&merge, None, &temp.join(page::PAGE))?;
            }
            let report = written::check(self, temp, &files, merge, notes)?;
            fsutil::write_json(&temp.join(crate::convert::verify::report::REPORT), &report)?;
            done = Some(report);
            Ok(())
        })?;
        done.ok_or_else(|| crate::error::Error::bug("a folder was published without a report"))
    }

    /// Returns the model that the others are compared with: the base, or the first model.
    fn reference(&self) -> usize {
        self.leading()
    }

    /// Returns the models that are compared with the reference.
    fn compared(&self) -> Vec<usize> {
        let named = |model: &usize| self.file.slices.iter().any(|s| s.sources.iter().any(|s| s.model == *model));
        (0..self.inputs.len()).filter(|model| *model != self.reference() && named(model)).collect()
    }

    /// Sums up the reports on tensors.
    fn summary(&self, mut reports: Vec<WeightReport>) -> MergeReport {
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        let mean = |model: usize, name: &str| {
            let values: Vec<f64> = self.tensors.iter().filter_map(|t| t.parameter(&self.file, model, name)).collect();
            let first = *values.first()?;
            let same = values.iter().all(|value| *value == first);
            Some(if same { first } else { values.iter().sum::<f64>() / values.len() as f64 })
        };
        let part = |model: usize| MergedPart {
            folder: self.inputs[model].folder.display().to_string(),
            weight: mean(model, "weight"),
            density: mean(model, "density").unwrap_or(1.0),
        };
        let parts = MergedParts::Models(self.compared().into_iter().map(part).collect());
        let reference = self.inputs[self.reference()].folder.display().to_string();
        MergeReport::of(self.describe(), parts, Some(reference), reports)
    }

    /// Returns the method with its settings.
    fn describe(&self) -> String {
        let mut text = self.file.method.name().to_string();
        if self.file.method.is_random() {
            text += &format!(", seed {}", self.seed);
        }
        if self.file.slices.len() > 1 {
            text += &format!(", {} slices", self.file.slices.len());
        }
        text
    }
}

/// Returns libtorch's name of a number format.
fn kind_of(format: MergeFormat) -> Kind {
    match format {
        MergeFormat::F32 => Kind::Float,
        MergeFormat::Bf16 => Kind::BFloat16,
        MergeFormat::F16 => Kind::Half,
    }
}
