//! Makes a model with experts of dense models: the MLPs of each become the experts of every layer, everything else comes from the
//! base, and the routers' weights follow from prompts. The file and the results are those of mergekit-moe.
//!
//! architecture: the family of the result, its config.json and its tensors' names. gates: the routers' weights. tensors: which tensors
//! the result has, and what each is made of. report: what was written.

mod architecture;
mod gates;
mod report;
mod tensors;

pub use report::{ExpertMergeReport, ExpertReport, RouterReport};

use super::model_input::ModelInput;
use super::streaming::{PlannedTensor, check_written};
use crate::convert::export::publish::tensor_entry;
use crate::convert::folder::companions::{MODEL_FILES, copy_companion_files};
use crate::convert::folder::disk_space::check_disk_space;
use crate::convert::verify::report::REPORT;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::nn::safetensors::{TensorHeader, write_model_in_parts};
use crate::recipe::merge_file::{ExpertArchitecture, ExpertMergeFile};
use crate::report as progress;
use gates::Gates;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tensors::ExpertTensor;

/// A merge into a model with experts that is planned in full.
pub struct ExpertMerge {
    file: ExpertMergeFile,
    /// Determines random gates and noise.
    seed: u64,
    /// All models, the base first.
    inputs: Vec<ModelInput>,
    architecture: ExpertArchitecture,
    tensors: Vec<ExpertTensor>,
}

impl ExpertMerge {
    /// Opens the models and plans the result. Fails if they do not belong together, or if no family with experts fits them.
    pub fn open(file: ExpertMergeFile, seed: u64) -> Result<Self> {
        let mut inputs = vec![ModelInput::open(&file.base)?];
        for source in file.experts.iter().chain(&file.shared) {
            if inputs.iter().all(|input| input.folder != source.model) {
                inputs.push(ModelInput::open(&source.model)?);
            }
        }
        let architecture = architecture::choose(&file, &inputs)?;
        let tensors = tensors::plan(&file, &inputs, architecture)?;
        Ok(Self { file, seed, inputs, architecture, tensors })
    }

    /// Returns what is suspicious about the file, as sentences.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let experts = &self.file.experts;
        if experts.iter().all(|expert| expert.model == experts[0].model && expert.noise.is_none()) {
            notes.push(
                "all experts are the same model: until it is trained, the result computes what that model computes"
                    .into(),
            );
        }
        if !experts.len().is_power_of_two() {
            notes.push(format!("{} experts: llama.cpp reads numbers of experts that are powers of 2", experts.len()));
        }
        notes
    }

    /// Returns true if a seed changes the result.
    pub fn is_random(&self) -> bool {
        self.file.gates.is_random() || self.file.experts.iter().chain(&self.file.shared).any(|e| e.noise.is_some())
    }

    /// Computes the routers' weights and returns how well they tell the experts apart, without writing anything.
    pub fn routers(&self) -> Result<Vec<RouterReport>> {
        Ok(Gates::compute(self)?.report())
    }

    /// Writes a model directory, reads it back, and moves it into place. Fails for NaN or infinite values.
    pub fn write(&self, out: &Path, shard_bytes: u64) -> Result<ExpertMergeReport> {
        let entries = self
            .tensors
            .iter()
            .map(|tensor| tensor_entry(&tensor.name, &tensor.shape, tensor.kind))
            .collect::<Result<Vec<_>>>()?;
        check_disk_space(out, entries.iter().map(TensorHeader::bytes).sum())?;
        let gates = Gates::compute(self)?;
        let by_name: BTreeMap<&str, &ExpertTensor> = self.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        let folder: PathBuf = out.components().collect(); // without a slash at the end
        let mut done = None;
        fsutil::replace_dir(&folder, |temp| {
            let bar = progress::bar(self.tensors.len() as u64, "writing");
            let files = write_model_in_parts(temp, &entries, shard_bytes, |entry, out| {
                by_name[entry.name.as_str()].write(self, &gates, |bytes| out.put(bytes))?;
                bar.inc(1);
                Ok(())
            })?;
            bar.finish_and_clear();
            architecture::write_config(self, temp)?;
            copy_companion_files(&self.file.base, temp, MODEL_FILES)?;
            let planned: Vec<PlannedTensor> =
                self.tensors.iter().map(|t| PlannedTensor { name: &t.name, shape: &t.shape, kind: t.kind }).collect();
            let config = check_written(temp, &files, &planned)?;
            let report = report::of(self, temp, &config, &files, gates.report());
            fsutil::write_json(&temp.join(REPORT), &report)?;
            done = Some(report);
            Ok(())
        })?;
        done.ok_or_else(|| Error::bug("a folder was published without a report"))
    }

    /// Returns the base.
    fn base(&self) -> &ModelInput {
        &self.inputs[0]
    }
}
