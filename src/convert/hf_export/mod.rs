//! Writes a model, with an adapter merged into it, as a Hugging Face directory in another number format (`ft export --to hf`), FP8
//! and bitsandbytes' NF4 among them.
//!
//! Tensors are computed and written one at a time. The directory is written under a temporary name, read back, compared with the
//! model, and only then moved into place.
//!
//! format: the formats, and what transformers has no form for. matrices: which matrices are quantised, and the tensors that each
//! becomes. tensors: the files' tensors. check: the comparison.

mod check;
mod format;
mod matrices;
mod tensors;

pub use check::HfReadBack;
pub use format::HfFormat;

use crate::adapters::merging::WeightedAdapter;
use crate::convert::folder::companions::{MODEL_FILES, copy_companion_files};
use crate::convert::folder::config_file::{older_rope_keys, write_config, write_config_with};
use crate::convert::folder::destination::Destination;
use crate::convert::folder::disk_space::check_disk_space;
use crate::convert::gguf_export;
use crate::convert::gguf_export::source::SourceWeights;
use crate::convert::merge::adapters::inherit_training;
use crate::convert::merge::streaming::weight_files;
use crate::convert::mlx::model_config;
use crate::convert::verify::compatibility::{self, Compatibility, Runtime, answer_of};
use crate::convert::verify::report::{ExportVerdict, REPORT, WeightFile};
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::models::{self, Config, Heads, LoadOptions, Model, Storage};
use crate::nn::safetensors::{TensorHeader, write_model_in_parts};
use matrices::QuantisedMatrices;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};
use tensors::ExportTensors;

/// What is exported, and to where.
pub struct HfExportOptions<'a> {
    /// The model.
    pub model: &'a Path,
    /// The adapter to merge into it.
    pub adapter: Option<WeightedAdapter>,
    /// The folder to write.
    pub out: &'a Path,
    /// The number format.
    pub format: HfFormat,
    /// The largest size of a weight file in bytes.
    pub shard_bytes: u64,
    /// The program that must read the directory: config.json then has the keys that it reads.
    pub reader: Option<Runtime>,
    /// Replace an existing model directory.
    pub force: bool,
}

/// Describes a written folder: export_report.json in it, and printed as JSON by `ft export --json`.
#[derive(Debug, Serialize)]
pub struct HfExportSummary {
    /// Always `passed`: a folder that fails is not moved into place.
    pub verdict: ExportVerdict,
    /// `hf`, or `mlx` for one that mlx-lm reads.
    pub export: &'static str,
    /// The model.
    pub model: PathBuf,
    /// The merged adapter.
    pub adapter: Option<PathBuf>,
    /// The folder.
    pub out: PathBuf,
    /// The model's family.
    pub architecture: String,
    /// The number format.
    pub format: &'static str,
    /// Number of weights.
    pub parameters: u64,
    /// Number of the model's tensors by format.
    pub tensors: BTreeMap<String, u64>,
    /// Size of the weight files.
    pub bytes: u64,
    /// Size and SHA-256 of each weight file, by name.
    pub files: BTreeMap<String, WeightFile>,
    /// Whether the folder has a tokenizer.
    pub tokenizer: bool,
    /// Whether the folder has a chat template.
    pub chat_template: bool,
    /// What reading back found.
    pub read_back: HfReadBack,
    /// Which other programs can read the folder.
    pub compatibility: Vec<Compatibility>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// The version of ft that wrote the folder.
    pub ft_version: &'static str,
}

/// Writes a folder. Calls `progress(done, total)` before each tensor that is written or read back; if it returns an error, the
/// export stops and leaves nothing.
pub fn export(options: &HfExportOptions, mut progress: impl FnMut(u64, u64) -> Result<()>) -> Result<HfExportSummary> {
    let (model, format) = (options.model, options.format);
    let read: Vec<&Path> = options.adapter.iter().map(|part| part.folder.as_path()).chain([model]).collect();
    Destination::model(options.out, "exported/smollm2-nf4").check(options.force, &read)?;
    let parts: &[WeightedAdapter] = options.adapter.as_slice();
    let (config, weights, shared) = gguf_export::open(model, parts)?;
    models::refuse_quantised(
        &weights,
        "writing them in another format would round them twice",
        "name a directory with the model's full-precision weights",
    )?;
    format::refuse(&config, &weights, format)?;
    let source = SourceWeights::new(&weights, &shared, parts, config.family().embedding)?;
    if options.reader == Some(Runtime::Mlx) {
        model_config::refuse(&config)?;
    }
    let quantised = QuantisedMatrices::choose(&outline(model)?, format, source.main_kind())?;
    let mut tensors = ExportTensors::plan(&config, &weights, &source, format, quantised.as_ref())?;
    let headers = tensors.headers.clone();
    let keys = match options.reader {
        Some(Runtime::Mlx) => model_config::keys(&config),
        Some(_) => older_rope_keys(&config),
        None => Vec::new(),
    };
    let bytes = headers.iter().map(TensorHeader::bytes).sum();
    check_disk_space(options.out.parent().unwrap_or(options.out), bytes)?;

    let mut notes = quantised.as_ref().map_or(Vec::new(), |matrices| matrices.notes.clone());
    if options.reader == Some(Runtime::Mlx) {
        notes.extend(model_config::notes(&config));
    }
    let total = (headers.len() + tensors.names().count()) as u64;
    let mut done = 0;
    let mut step = || -> Result<()> {
        progress(done, total)?;
        done += 1;
        Ok(())
    };
    let mut summary = None;
    let folder: PathBuf = options.out.components().collect(); // without a slash at the end
    fsutil::replace_dir(&folder, |temp| {
        let files = write_model_in_parts(temp, &headers, options.shard_bytes, |header, out| {
            step()?;
            out.put(&tensors.bytes(header)?)
        })?;
        match &quantised {
            None => write_config(&config, temp, format.dtype())?,
            Some(matrices) => write_config_with(&config, temp, vec![("quantization_config", matrices.section()?)])?,
        }
        if !keys.is_empty() {
            write_config_with(&Config::read_file(&temp.join("config.json"))?, temp, keys.clone())?;
        }
        copy_companion_files(model, temp, MODEL_FILES)?;
        if !parts.is_empty() {
            inherit_training(temp, model, parts)?;
        }
        let tokenizer = match ChatTokenizer::in_directory(temp) {
            true => Some(ChatTokenizer::load(temp, None)?),
            false => None,
        };
        let compatibility = compatibility::of_model(temp);
        if let Some(answer) = options.reader.and_then(|reader| answer_of(&compatibility, reader))
            && answer.reads == Some(false)
        {
            return Err(Error::user(format!(
                "--for: {} does not read such a directory: {}",
                answer.consumer, answer.note
            ))
            .hint("with another --type it may; --to hf alone writes the directory without this check"));
        }
        let read_back = check::check(temp, &files, &tensors, &mut step)?;
        let mut counts = BTreeMap::new();
        tensors.names().for_each(|name| *counts.entry(tensors.format_of(name)).or_default() += 1);
        let made = HfExportSummary {
            verdict: ExportVerdict::Passed,
            export: if options.reader == Some(Runtime::Mlx) { "mlx" } else { "hf" },
            model: model.to_path_buf(),
            adapter: parts.first().map(|part| part.folder.clone()),
            out: folder.clone(),
            architecture: config.model_type.clone(),
            format: format.name(),
            parameters: tensors.names().map(|name| weights.count(name)).sum(),
            tensors: counts,
            bytes,
            files: weight_files(&files),
            tokenizer: tokenizer.is_some(),
            chat_template: tokenizer.as_ref().is_some_and(ChatTokenizer::has_template),
            read_back,
            compatibility,
            notes: notes.clone(),
            ft_version: env!("CARGO_PKG_VERSION"),
        };
        fsutil::write_json(&temp.join(REPORT), &made)?;
        summary = Some(made);
        Ok(())
    })?;
    summary.ok_or_else(|| Error::bug("a folder was written and not checked"))
}

/// Opens a model without its numbers, which fails if its tensors are not those that config.json describes.
pub(super) fn outline(model: &Path) -> Result<Model> {
    let (device, kind, storage, adapters, heads) =
        (Device::Cpu, Kind::Float, Storage::Outline, Vec::new(), Heads::Tokens);
    Model::load(model, LoadOptions { device, kind, storage, train_base: None, adapters, vocabulary: None, heads })
}
