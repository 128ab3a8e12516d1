//! Writes a model, with an adapter merged into it, as one GGUF file or several (`ft export --to gguf`), or a LoRA as a GGUF adapter.
//!
//! Tensors are computed, arranged and written one at a time. Files are written in a temporary folder, read back, compared
//! with the model, and only then moved into place.
//!
//! shape: what a file says of a model. source: its tensors. formats: the format of each. calibration: an importance matrix. tokenizer: its tokenizer. name: the
//! file's name. check: the comparison. output: which files are written and replaced. modelfile: the Modelfile beside them. adapter: LoRA files.

pub mod adapter;
mod calibration;
mod check;
mod formats;
pub mod modelfile;
mod name;
mod output;
mod shape;
pub(in crate::convert) mod source;
mod tokenizer;

use crate::adapters::merging::WeightedAdapter;
use crate::convert::folder::companions::{MODEL_FILES, copy_companion_files, write_text};
use crate::convert::folder::config_file::write_config;
use crate::convert::folder::disk_space::check_disk_space;
use crate::convert::merge::adapters::{inherit_training, open_base};
use crate::convert::merge::inputs::refuse_unmergeable;
use crate::convert::quantised_base;
use crate::convert::verify::compatibility::{self, Compatibility};
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::gguf::metadata;
use crate::gguf::quant::GgmlType;
use crate::gguf::shape::{PlacedTensor, Shape};
use crate::gguf::split::{self, PartName, SplitLimits};
use crate::gguf::writer::{self, MetaValue, TensorEntry};
use crate::merging::on_one_thread;
use crate::model_files::ModelFiles;
use crate::models::{self, Config, SCORE, StoredFormat};
use crate::nn::Weights;
use calibration::ImportanceMatrix;
use check::GgufReadBack;
pub use formats::{FORMATS, FileFormat};
use name::ModelName;
use output::{check_modelfile, check_out, folder_of, out_file, publish};
use serde::Serialize;
pub use shape::refusal;
use source::SourceWeights;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tch::Kind;

/// What is exported, and to where.
pub struct GgufExportOptions<'a> {
    /// The model.
    pub model: &'a Path,
    /// The adapter to merge into it.
    pub adapter: Option<WeightedAdapter>,
    /// The file, or the folder in which it gets the name that the format's specification asks for.
    pub out: &'a Path,
    /// The format of matrices; `None`: that of the model, if it is F32, F16 or BF16.
    pub format: Option<FileFormat>,
    /// How much a file may have; a model beyond it is written as several.
    pub split: SplitLimits,
    /// Rows to measure an importance matrix with, by which rounding errors count.
    pub imatrix: Option<&'a Path>,
    /// Replace an existing file.
    pub force: bool,
    /// Write a Modelfile for Ollama beside the file.
    pub modelfile: bool,
}

/// Describes a written file; printed as JSON by `ft export --json`.
#[derive(Debug, Serialize)]
pub struct GgufExportSummary {
    /// The model.
    pub model: PathBuf,
    /// The merged adapter.
    pub adapter: Option<PathBuf>,
    /// The file; of several the first, which stands for the model.
    pub out: PathBuf,
    /// All files.
    pub files: Vec<PathBuf>,
    /// The Modelfile beside it, if one was asked for.
    pub modelfile: Option<PathBuf>,
    /// The architecture's name in the file.
    pub architecture: String,
    /// The format of matrices.
    pub format: String,
    /// Number of weights.
    pub parameters: u64,
    /// Number of tensors by format.
    pub tensors: BTreeMap<String, u64>,
    /// Size of all files.
    pub bytes: u64,
    /// The tokenizer's kind and pre-tokenizer, as llama.cpp names them.
    pub tokenizer: [String; 2],
    /// Whether the file has a chat template.
    pub chat_template: bool,
    /// Number of tokens that the importance matrix was measured with.
    pub calibration_tokens: Option<usize>,
    /// What reading back found.
    pub read_back: GgufReadBack,
    /// Which programs read the file.
    pub compatibility: Vec<Compatibility>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Writes a GGUF file. Calls `progress(done, total)` before each tensor that is written or read back; if it returns an error,
/// the export stops and leaves no file.
pub fn export(
    options: &GgufExportOptions,
    mut progress: impl FnMut(u64, u64) -> Result<()>,
) -> Result<GgufExportSummary> {
    let parts: &[WeightedAdapter] = options.adapter.as_slice();
    let (config, weights, shared) = open(options.model, parts)?;
    let mut source = SourceWeights::new(&weights, &shared, parts, config.family().embedding)?;
    let (shape, mut notes) = shape::of(&config, &|name| source.has(name))?;
    let format = options.format.unwrap_or_else(|| {
        FileFormat::of_kind(match source.main_kind() {
            Kind::BFloat16 => GgmlType::BF16,
            Kind::Half => GgmlType::F16,
            _ => GgmlType::F32,
        })
    });
    let format = if weights.has_quantised() { format.with_mxfp4() } else { format };
    check_importance(options, format)?;

    let trained = tempfile::tempdir().map_err(|e| Error::user(format!("creating a temporary folder: {e}")))?;
    let companions = match parts {
        [] => options.model,
        parts => {
            copy_companion_files(options.model, trained.path(), MODEL_FILES)?;
            write_config(&config, trained.path(), None)?;
            inherit_training(trained.path(), options.model, parts)?;
            trained.path()
        }
    };
    let tokenizer = ChatTokenizer::load(companions, None)?;
    let keys = tokenizer::keys(companions, &tokenizer, shape.vocab)
        .map_err(|e| e.context(format!("{}: tokenizer", options.model.display())))?;
    notes.extend(keys.warnings.clone());

    let named = parts.first().map_or(options.model, |part| part.companions.as_path());
    let name = ModelName::of(&folder_name(named), name::size_label(&shape));
    let out = out_file(options.out, &name.file(format.name, false))?;
    check_out(&out, options.split.are_set(), options)?;
    let modelfile = options.modelfile.then(|| folder_of(&out).join(modelfile::FILE));
    let modelfile = modelfile.map(|path| -> Result<_> {
        check_modelfile(&path, options)?;
        let file = out.file_name().unwrap_or_default().to_string_lossy();
        let files = ModelFiles::open(companions)?;
        let text = modelfile::text(&file, &tokenizer, tokenizer::adds_bos(&tokenizer)?, shape.context, &files)?;
        Ok((path, text))
    });
    let modelfile = modelfile.transpose()?;
    if modelfile.is_some() && tokenizer.template().is_some_and(|template| template.uses_date()) {
        notes.push("the chat template writes the date; in the Modelfile it is today's".into());
    }
    if let Some(rows) = options.imatrix {
        let measured = calibration::measure(options.model, parts.first(), &tokenizer, rows, || progress(0, 1))?;
        notes.extend(unseen(&measured));
        source.weigh_errors(measured);
    }
    let plan = WritePlan::new(&shape, format, &source);
    check_nothing_left_out(&source, &plan, &shape)?;
    notes.extend(plan.note(format));
    let mut metadata = general(&name, &shape, format, options);
    metadata.extend(source.importance().map(of_importance).unwrap_or_default());
    metadata.extend(metadata::of(&shape));
    metadata.extend(keys.metadata);
    let files = plan.files(&metadata, options.split)?;
    let bytes = files.iter().map(|file| writer::file_size(&file.metadata, &plan.entries[file.tensors.clone()])).sum();
    check_out(&out, files.len() > 1, options)?;
    check_disk_space(folder_of(&out), bytes)?;

    let total = plan.entries.len() as u64 + plan.placed.iter().map(|placed| placed.hf.len() as u64).sum::<u64>();
    let mut done = 0;
    let mut step = |n: u64| -> Result<()> {
        progress(done, total)?;
        done += n;
        Ok(())
    };
    let write = |drafts: &[PathBuf]| {
        for (draft, file) in drafts.iter().zip(&files) {
            plan.write(draft, file, &source, &shape, &mut step)?;
        }
        check::check(&drafts[0], &source, &shape, &tokenizer, &mut step)
    };
    // libtorch only reads and casts here: its threads would wait busily for their next work, on the cores that quantise.
    let (files, read_back) = on_one_thread(|| publish(&out, files.len(), write))?;
    if let Some((path, text)) = &modelfile {
        write_text(path, text)?;
    }
    let mut tensors = BTreeMap::new();
    for entry in &plan.entries {
        *tensors.entry(entry.kind.name()).or_default() += 1;
    }
    Ok(GgufExportSummary {
        model: options.model.to_path_buf(),
        adapter: parts.first().map(|part| part.folder.clone()),
        out: files[0].clone(),
        files,
        modelfile: modelfile.map(|(path, _)| path),
        architecture: shape.family.arch.into(),
        format: format.name.into(),
        parameters: plan.placed.iter().map(|placed| placed.stored.iter().product::<u64>()).sum(),
        tensors,
        bytes,
        tokenizer: [keys.model.into(), keys.pre.into()],
        chat_template: tokenizer.has_template(),
        calibration_tokens: source.importance().map(|measured| measured.tokens),
        read_back,
        compatibility: compatibility::of_gguf_model(),
        notes,
    })
}

/// Opens a model with what `parts` need of it; also returns the names of the weights that embedding and head share.
pub(in crate::convert) fn open(
    model: &Path,
    parts: &[WeightedAdapter],
) -> Result<(Config, Weights, Vec<&'static str>)> {
    if !parts.is_empty() {
        refuse_unmergeable(model, parts)?;
        quantised_base::trained_over(model, parts)?; // fails for adapters that belong to quantised weights only
        return open_base(model, parts);
    }
    let config = Config::read(model)?;
    let weights = models::weights(model, &config)?;
    if matches!(config.stored, Some(StoredFormat::Mxfp4)) {
        return Ok((config, weights, Vec::new())); // whose blocks the format has
    }
    let hint = "name a directory with the model's full-precision weights; ft import makes one of a GGUF file";
    models::refuse_quantised(&weights, "writing them in another format would round them twice", hint)?;
    Ok((config, weights, Vec::new()))
}

/// One of the files of a model.
struct PlannedFile {
    metadata: Vec<(String, MetaValue)>,
    /// Which of the tensors it has.
    tensors: Range<usize>,
}

/// The tensors of a model, in order: those with numbers of their own, then those of the model.
struct WritePlan {
    /// Tensors that follow from settings: divisors of rotary frequencies.
    computed: Vec<(&'static str, Vec<f32>)>,
    placed: Vec<PlacedTensor>,
    entries: Vec<TensorEntry>,
}

impl WritePlan {
    fn new(shape: &Shape, format: FileFormat, source: &SourceWeights) -> Self {
        let computed = shape.rope.as_ref().map_or(Vec::new(), |rope| rope.scaling.tensors(rope));
        let mut placed = shape.tensors();
        if shape.has_head() {
            placed.push(shape.head());
        }
        let own = computed.iter().map(|(name, values)| TensorEntry {
            name: (*name).into(),
            shape: vec![values.len() as u64],
            kind: GgmlType::F32,
        });
        let entry = |placed: &PlacedTensor| match placed.hf.iter().any(|name| source.is_quantised(name)) {
            true => TensorEntry { kind: GgmlType::MXFP4, ..format.entry(placed, shape) },
            false => format.entry(placed, shape),
        };
        let entries = own.chain(placed.iter().map(entry)).collect();
        Self { computed, placed, entries }
    }

    /// Says which matrices have a format with other blocks than the one that was asked for.
    fn note(&self, format: FileFormat) -> Option<String> {
        let block = format.main.block_elements();
        let narrow = |entry: &&TensorEntry| {
            entry.kind != GgmlType::F32 && entry.shape.last().is_some_and(|columns| columns % block as u64 != 0)
        };
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        self.entries.iter().filter(narrow).for_each(|entry| *kinds.entry(entry.kind.name()).or_default() += 1);
        let list: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} in {kind}")).collect();
        (!list.is_empty()).then(|| {
            let (all, name) = (self.entries.len(), format.name);
            format!(
                "of {all} tensors, {}: their rows are no multiple of the {block} numbers of a block of {name}",
                list.join(", ")
            )
        })
    }

    /// Divides the model into files.
    fn files(&self, metadata: &[(String, MetaValue)], limits: SplitLimits) -> Result<Vec<PlannedFile>> {
        let parts = limits.divide(metadata, &self.entries)?;
        let count = parts.len();
        let file = |(i, tensors)| {
            let metadata = match count {
                1 => metadata.to_vec(),
                _ => split::metadata_of_part(metadata, i, count, self.entries.len()),
            };
            PlannedFile { metadata, tensors }
        };
        Ok(parts.into_iter().enumerate().map(file).collect())
    }

    fn write(
        &self,
        path: &Path,
        file: &PlannedFile,
        source: &SourceWeights,
        shape: &Shape,
        step: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut at = file.tensors.start;
        writer::write(path, &file.metadata, &self.entries[file.tensors.clone()], |entry, out| {
            step(1)?;
            at += 1;
            match self.computed.get(at - 1) {
                Some((_, values)) => out.put(&crate::gguf::quantise::quantise(GgmlType::F32, values)),
                None => source.write(shape, &self.placed[at - 1 - self.computed.len()], entry, out),
            }
        })
    }
}

/// Fails if the model has tensors that are not written: the file would be another model.
fn check_nothing_left_out(source: &SourceWeights, plan: &WritePlan, shape: &Shape) -> Result<()> {
    let mut written: BTreeSet<&str> = plan.placed.iter().flat_map(|placed| &placed.hf).map(String::as_str).collect();
    // A tied head is the embedding.
    if shape.tied {
        written.insert("lm_head.weight");
    }
    match source.names().find(|name| !written.contains(name)) {
        None => Ok(()),
        Some(name) if name == SCORE => Err(Error::user(format!(
            "{}: this is a reward model: it scores answers and generates no text",
            source.origin().display()
        ))
        .hint("ft export writes language models")),
        Some(name) => Err(Error::user(format!("tensor {name} has no place in a GGUF file of this architecture"))
            .hint("is it part of the model? ft reads and writes the tensors that transformers has for its family")),
    }
}

/// Fails if an importance matrix is asked for where it would change nothing.
fn check_importance(options: &GgufExportOptions, format: FileFormat) -> Result<()> {
    match options.imatrix {
        Some(rows) if format.main.is_float() || format.main == GgmlType::Q8_0 => {
            Err(Error::user(format!("--imatrix {}: rounding to {} does not regard it", rows.display(), format.name))
                .hint("leave it out, or choose a --type with fewer bits: q4_k_m, for example"))
        }
        _ => Ok(()),
    }
}

/// Says which layers have no importance.
fn unseen(measured: &ImportanceMatrix) -> Option<String> {
    let first = measured.unseen.first()?;
    Some(format!(
        "{} layers, {first} for example, saw no token of {}: the errors of their columns count alike",
        measured.unseen.len(),
        measured.rows.display()
    ))
}

/// Returns the metadata about an importance matrix, by llama.cpp's names.
fn of_importance(measured: &ImportanceMatrix) -> Vec<(String, MetaValue)> {
    let rows = measured.rows.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let key = |name: &str| format!("quantize.imatrix.{name}");
    vec![
        (key("dataset"), MetaValue::Text(rows)),
        (key("entries_count"), MetaValue::Unsigned(measured.layers() as u32)),
        (key("chunks_count"), MetaValue::Unsigned(measured.windows as u32)),
    ]
}

/// Returns the metadata of every file.
fn general(
    name: &ModelName,
    shape: &Shape,
    format: FileFormat,
    options: &GgufExportOptions,
) -> Vec<(String, MetaValue)> {
    let mut list: Vec<(&str, MetaValue)> = vec![
        ("architecture", shape.family.arch.into()),
        ("type", "model".into()),
        ("name", name.name.as_str().into()),
        ("basename", name.base.as_str().into()),
        ("size_label", name.size.as_str().into()),
        ("version", name.version.as_str().into()),
    ];
    list.extend(name.finetune.as_deref().map(|text| ("finetune", text.into())));
    if options.adapter.is_some() {
        list.push(("base_model.count", MetaValue::Unsigned(1)));
        list.push(("base_model.0.name", folder_name(options.model).as_str().into()));
    }
    list.push(("file_type", MetaValue::Unsigned(format.number)));
    if !format.main.is_float() {
        list.push(("quantization_version", MetaValue::Unsigned(2)));
    }
    list.into_iter().map(|(key, value)| (format!("general.{key}"), value)).collect()
}

/// Returns the name of a model's folder or file, without an ending and the number of a part.
fn folder_name(path: &Path) -> String {
    let path = fsutil::absolute(path);
    let path = PartName::of(&path).map_or(path.clone(), |part| part.prefix().into());
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.strip_suffix(".gguf").map_or(name.clone(), String::from)
}
