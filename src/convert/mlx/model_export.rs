//! Writes a model for mlx-lm (`ft export MODEL --to mlx`): a Hugging Face directory with the keys that mlx-lm reads, in full precision
//! or with matrices in mlx's affine format of 4 or 8 bits.
//!
//! As `mlx_lm.convert`, it quantises linear layers, embedding and head in groups of 64 inputs, but for routers.

use super::affine::{AffineFormat, AffineMatrix};
use super::model_config;
use super::model_import::AffineFolder;
use crate::adapters::merging::WeightedAdapter;
use crate::convert::export::publish::tensor_entry;
use crate::convert::folder::companions::{MODEL_FILES, copy_companion_files};
use crate::convert::folder::config_file::write_config_with;
use crate::convert::folder::destination::Destination;
use crate::convert::folder::disk_space::check_disk_space;
use crate::convert::gguf_export;
use crate::convert::gguf_export::source::{SourceWeights, floats};
use crate::convert::hf_export::{self, HfExportOptions, HfExportSummary, HfFormat, HfReadBack};
use crate::convert::merge::adapters::inherit_training;
use crate::convert::merge::streaming::weight_files;
use crate::convert::verify::compatibility::{self, Runtime};
use crate::convert::verify::report::{ExportVerdict, REPORT};
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::models::{Config, Model, file_tensors};
use crate::nn::safetensors::{Dtype, TensorHeader, WrittenFile, write_model_in_parts};
use crate::nn::weight::cast;
use crate::nn::weights::bytes;
use crate::nn::{LayerKind, Weights};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// Inputs that share a scale.
const GROUP: i64 = 64;

/// The number format of a model for mlx-lm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlxFormat {
    /// Numbers in full precision, as in a Hugging Face directory.
    Plain(HfFormat),
    /// Matrices in so many bits.
    Bits(i64),
}

impl MlxFormat {
    /// The names of the formats that can be asked for.
    pub const NAMES: [&'static str; 5] = ["f32", "bf16", "f16", "4bit", "8bit"];

    /// Returns the format of this name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [
            Self::Plain(HfFormat::Float32),
            Self::Plain(HfFormat::BFloat16),
            Self::Plain(HfFormat::Float16),
            Self::Bits(4),
            Self::Bits(8),
        ];
        Self::NAMES.iter().zip(all).find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, format)| format)
    }
}

/// What is exported, and to where.
pub struct MlxModelOptions<'a> {
    /// The model.
    pub model: &'a Path,
    /// The adapter to merge into it.
    pub adapter: Option<WeightedAdapter>,
    /// The folder to write.
    pub out: &'a Path,
    /// The number format.
    pub format: MlxFormat,
    /// The largest size of a weight file in bytes.
    pub shard_bytes: u64,
    /// Replace an existing model directory.
    pub force: bool,
}

/// Writes a folder. Calls `progress(done, total)` before each tensor that is written or read back; if it returns an error, the
/// export stops and leaves nothing. Fails for models that mlx-lm computes otherwise.
pub fn export(options: MlxModelOptions, progress: impl FnMut(u64, u64) -> Result<()>) -> Result<HfExportSummary> {
    model_config::refuse(&Config::read(options.model)?)?;
    match options.format {
        MlxFormat::Plain(format) => {
            let MlxModelOptions { model, adapter, out, shard_bytes, force, .. } = options;
            let reader = Some(Runtime::Mlx);
            hf_export::export(&HfExportOptions { model, adapter, out, format, shard_bytes, reader, force }, progress)
        }
        MlxFormat::Bits(bits) => quantised(&options, AffineFormat { bits, group: GROUP }, progress),
    }
}

fn quantised(
    options: &MlxModelOptions,
    format: AffineFormat,
    mut progress: impl FnMut(u64, u64) -> Result<()>,
) -> Result<HfExportSummary> {
    let _no_grad = tch::no_grad_guard();
    let read: Vec<&Path> = options.adapter.iter().map(|part| part.folder.as_path()).chain([options.model]).collect();
    Destination::model(options.out, "exported/smollm2-4bit").check(options.force, &read)?;
    let parts: &[WeightedAdapter] = options.adapter.as_slice();
    let (config, weights, shared) = gguf_export::open(options.model, parts)?;
    model_config::refuse(&config)?;
    let source = SourceWeights::new(&weights, &shared, parts, config.family().embedding)?;
    let plan = QuantisedPlan::new(&config, &weights, &source, &hf_export::outline(options.model)?, format)?;
    let bytes_of_files = plan.headers.iter().map(TensorHeader::bytes).sum();
    check_disk_space(options.out.parent().unwrap_or(options.out), bytes_of_files)?;
    let total = (plan.headers.len() + plan.names.len()) as u64;
    let mut done = 0;
    let mut step = || -> Result<()> {
        progress(done, total)?;
        done += 1;
        Ok(())
    };
    let folder: PathBuf = options.out.components().collect(); // without a slash at the end
    let mut made = None;
    fsutil::replace_dir(&folder, |temp| {
        let mut last = None;
        let files = write_model_in_parts(temp, &plan.headers, options.shard_bytes, |header, out| {
            step()?;
            out.put(&plan.bytes(header, &mut last)?)
        })?;
        let mut keys = model_config::keys(&config);
        keys.push(("quantization", json!({ "group_size": format.group, "bits": format.bits, "mode": "affine" })));
        write_config_with(&config, temp, keys)?;
        copy_companion_files(options.model, temp, MODEL_FILES)?;
        if !parts.is_empty() {
            inherit_training(temp, options.model, parts)?;
        }
        let tokenizer = match ChatTokenizer::in_directory(temp) {
            true => Some(ChatTokenizer::load(temp, None)?),
            false => None,
        };
        let read_back = plan.check(temp, &files, &mut step)?;
        let mut tensors = BTreeMap::new();
        plan.names.iter().for_each(|name| *tensors.entry(plan.format_of(name)).or_default() += 1);
        let summary = HfExportSummary {
            verdict: ExportVerdict::Passed,
            export: "mlx",
            model: options.model.into(),
            adapter: parts.first().map(|part| part.folder.clone()),
            out: folder.clone(),
            architecture: config.model_type.clone(),
            format: if format.bits == 4 { "4bit" } else { "8bit" },
            parameters: plan.names.iter().map(|name| weights.count(name)).sum(),
            tensors,
            bytes: bytes_of_files,
            files: weight_files(&files),
            tokenizer: tokenizer.is_some(),
            chat_template: tokenizer.as_ref().is_some_and(ChatTokenizer::has_template),
            read_back,
            compatibility: compatibility::of_mlx_model(temp, true),
            notes: model_config::notes(&config).into_iter().chain(plan.note()).collect(),
            ft_version: env!("CARGO_PKG_VERSION"),
        };
        fsutil::write_json(&temp.join(REPORT), &summary)?;
        made = Some(summary);
        Ok(())
    })?;
    made.ok_or_else(|| Error::bug("a folder was written and not checked"))
}

/// The tensors of a folder.
struct QuantisedPlan<'a> {
    source: &'a SourceWeights<'a>,
    format: AffineFormat,
    /// The model's tensors.
    names: Vec<String>,
    /// Those that are written in the format.
    quantised: BTreeSet<String>,
    /// Matrices whose inputs no groups divide.
    undivided: usize,
    /// The dtype of each of the model's tensors.
    kinds: BTreeMap<String, Kind>,
    headers: Vec<TensorHeader>,
}

impl<'a> QuantisedPlan<'a> {
    fn new(
        config: &Config,
        weights: &Weights,
        source: &'a SourceWeights<'a>,
        outline: &Model,
        format: AffineFormat,
    ) -> Result<Self> {
        let shape = |name: &str| weights.shape(name).unwrap_or_default().to_vec();
        if let Some(stack) =
            file_tensors(config, weights.names().map(|name| (name, shape(name)))).iter().find(|t| t.parts.len() > 1)
        {
            return Err(Error::bug(format!("{}: a stack of experts in a family for mlx-lm", stack.name)));
        }
        let is_matrix = |kind: LayerKind| matches!(kind, LayerKind::Linear | LayerKind::Head | LayerKind::Embedding);
        let matrices: BTreeSet<&str> =
            outline.params().base().filter(|p| is_matrix(p.layer) && p.is_matrix()).map(|p| p.name.as_str()).collect();
        let names: Vec<String> = weights.names().map(str::to_string).collect();
        let chosen = |name: &&String| {
            // An adapter may have given the head a weight of its own, which the outline of the base has not.
            let matrix = matrices.contains(name.as_str()) || name.as_str() == "lm_head.weight";
            matrix && shape(name).len() == 2
        };
        let divided = |name: &&String| shape(name).last().is_some_and(|inputs| format.divides(*inputs));
        let all: Vec<&String> = names.iter().filter(chosen).collect();
        let quantised: BTreeSet<String> = all.iter().copied().filter(divided).cloned().collect();
        if quantised.is_empty() {
            return Err(config
                .refuse(format!("no matrix has rows of a multiple of {} numbers", format.group))
                .hint("mlx's formats have groups of that size: choose --type f32, bf16 or f16"));
        }
        let kinds: BTreeMap<String, Kind> =
            names.iter().map(|name| (name.clone(), weights.kind(name).unwrap_or(Kind::Float))).collect();
        let mut headers = Vec::new();
        for name in &names {
            if !quantised.contains(name) {
                headers.push(tensor_entry(name, &shape(name), kinds[name])?);
                continue;
            }
            let [outputs, inputs] = shape(name)[..] else { continue };
            let (module, groups) = (module_of(name), [outputs, inputs / format.group]);
            let packed = [outputs as usize, (inputs * format.bits / 32) as usize];
            headers.push(TensorHeader::new(name.clone(), Dtype::U32, packed.to_vec()));
            for part in ["scales", "biases"] {
                headers.push(tensor_entry(&format!("{module}.{part}"), &groups, scale_kind(kinds[name]))?);
            }
        }
        let undivided = all.len() - quantised.len();
        Ok(Self { source, format, names, quantised, undivided, kinds, headers })
    }

    fn quantise(&self, name: &str) -> Result<AffineMatrix> {
        self.format.quantise(&self.source.whole(name)?, scale_kind(self.kinds[name]))
    }

    /// Returns the bytes of a tensor that is written. `last`: the matrix that was quantised last, whose tensors follow each other in
    /// a file or are near.
    fn bytes(&self, header: &TensorHeader, last: &mut Option<(String, AffineMatrix)>) -> Result<Vec<u8>> {
        let (module, part) = header.name.rsplit_once('.').unwrap_or((&header.name, ""));
        let name = match part {
            "scales" | "biases" => format!("{module}.weight"),
            _ => header.name.clone(),
        };
        if !self.quantised.contains(&name) {
            let numbers = bytes(&self.plain(&name)?);
            self.source.release(&name);
            return Ok(numbers);
        }
        if last.as_ref().is_none_or(|(quantised, _)| *quantised != name) {
            *last = Some((name.clone(), self.quantise(&name)?));
            self.source.release(&name);
        }
        let (_, matrix) = last.as_ref().ok_or_else(|| Error::bug("a matrix was quantised and is gone"))?;
        Ok(bytes(match part {
            "scales" => &matrix.scales,
            "biases" => &matrix.biases,
            _ => &matrix.codes,
        }))
    }

    fn plain(&self, name: &str) -> Result<Tensor> {
        Ok(cast(&self.source.whole(name)?, self.kinds[name]))
    }

    fn format_of(&self, name: &str) -> String {
        match self.quantised.contains(name) {
            true => format!("{}bit", self.format.bits),
            false => format!("{:?}", self.kinds[name]).to_lowercase(),
        }
    }

    fn note(&self) -> Option<String> {
        let group = self.format.group;
        (self.undivided > 0).then(|| {
            format!("{} matrices keep their dtype: their rows are no multiple of {group} numbers", self.undivided)
        })
    }

    /// Reads the folder and compares it with the model. Fails if its files have other bytes than were written, or if a tensor is not
    /// exactly what the format makes of the model's.
    fn check(&self, folder: &Path, files: &[WrittenFile], step: &mut dyn FnMut() -> Result<()>) -> Result<HfReadBack> {
        let differs = |name: &str| {
            Error::user(format!("`{name}` in the written files differs from what was made of the model"))
                .hint("the disk or the memory of this machine is faulty, or another program changed the files")
        };
        let read = AffineFolder::open(folder)?;
        for file in files {
            if file.fingerprint.first_difference(&file.path)?.is_some() {
                return Err(differs(&file.path.display().to_string()));
            }
        }
        let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for name in &self.names {
            step()?;
            let exact = self.source.whole(name)?;
            let expected = match self.quantised.contains(name) {
                true => self.format.dense(name, &self.quantise(name)?)?,
                false => self.plain(name)?,
            };
            let found = read.tensor(name)?.filter(|found| found.equal(&expected)).ok_or_else(|| differs(name))?;
            let sums = sums.entry(self.format_of(name)).or_default();
            for (found, exact) in floats(&found).iter().zip(floats(&exact)) {
                sums.0 += f64::from(found - exact).powi(2);
                sums.1 += f64::from(exact).powi(2);
            }
            self.source.release(name);
        }
        let relative = |(error, norm): (f64, f64)| if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
        Ok(HfReadBack {
            tensors: self.names.len() as u64,
            relative_error: sums.into_iter().map(|(kind, sums)| (kind, relative(sums))).collect(),
        })
    }
}

/// Returns the dtype of the scales of a matrix.
fn scale_kind(kind: Kind) -> Kind {
    match kind {
        Kind::BFloat16 | Kind::Half => kind,
        _ => Kind::Float,
    }
}

fn module_of(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}
