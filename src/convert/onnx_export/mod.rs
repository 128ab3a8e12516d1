//! Writes a model, with an adapter merged into it, as a folder for ONNX Runtime (`ft export --to onnx`): the graph, its weights
//! beside it, the tokenizer's files, and the settings of ONNX Runtime GenAI.
//!
//! The graph is made of the same description of a family's layers as the model that ft runs (`models::blocks::Design`), from operators
//! of the standard alone. Weights are computed and written one at a time. The folder is written under a temporary name, read back,
//! compared with the model, and only then moved into place.
//!
//! layout: what the graph consists of, and what has no converter. decoder, attention, experts, rotation, linear: the graph. weights: which
//! tensor is in which form where. check: the comparison. genai: settings for ONNX Runtime GenAI.

mod attention;
mod check;
mod decoder;
mod experts;
mod genai;
mod layout;
mod linear;
mod rotation;
mod weights;

pub use layout::refusal;

use crate::adapters::merging::WeightedAdapter;
use crate::convert::folder::companions::{MODEL_FILES, copy_companion_files};
use crate::convert::folder::config_file::write_config;
use crate::convert::folder::destination::Destination;
use crate::convert::folder::disk_space::check_disk_space;
use crate::convert::gguf_export;
use crate::convert::gguf_export::source::SourceWeights;
use crate::convert::merge::adapters::inherit_training;
use crate::convert::verify::compatibility::{self, Compatibility};
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::models::{Config, SCORE};
use crate::nn::RopeScaling;
use crate::onnx::{self, Graph, OPSET};
use check::OnnxReadBack;
use layout::DecoderLayout;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use weights::{DATA_FILE, WeightPlan};

/// The file with the graph.
pub const MODEL_FILE: &str = "model.onnx";

/// The number format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Everything in float32.
    Float32,
    /// Matrices, keys and values in float16; norms, softmax and sums in float32.
    Float16,
    /// Matrices in whole numbers of 8 bits with a factor for each output; their inputs are quantised when they are multiplied. All
    /// else in float32.
    Int8,
}

impl Precision {
    /// The names of the formats.
    pub const NAMES: [&'static str; 3] = ["f32", "f16", "int8"];

    /// Returns the format of this name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Float32, Self::Float16, Self::Int8];
        Self::NAMES.iter().zip(all).find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, precision)| precision)
    }

    fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// What is exported, and to where.
pub struct OnnxExportOptions<'a> {
    /// The model.
    pub model: &'a Path,
    /// The adapter to merge into it.
    pub adapter: Option<WeightedAdapter>,
    /// The folder to write.
    pub out: &'a Path,
    /// The number format.
    pub precision: Precision,
    /// Replace an existing export.
    pub force: bool,
}

/// Describes a written folder; printed as JSON by `ft export --json`.
#[derive(Debug, Serialize)]
pub struct OnnxExportSummary {
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
    /// Version of the set of operators.
    pub opset: u64,
    /// Number of operators.
    pub operators: usize,
    /// Number of weights.
    pub parameters: u64,
    /// Number of tensors by type.
    pub tensors: BTreeMap<&'static str, u64>,
    /// Size of graph and weights.
    pub bytes: u64,
    /// Whether the folder has a tokenizer.
    pub tokenizer: bool,
    /// Whether the folder has a chat template.
    pub chat_template: bool,
    /// What reading back found.
    pub read_back: OnnxReadBack,
    /// Which programs read the folder.
    pub compatibility: Vec<Compatibility>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Writes a folder. Calls `progress(done, total)` before each weight that is written or read back; if it returns an error, the
/// export stops and leaves nothing.
pub fn export(
    options: &OnnxExportOptions,
    mut progress: impl FnMut(u64, u64) -> Result<()>,
) -> Result<OnnxExportSummary> {
    let adapter = options.adapter.iter().map(|part| part.folder.as_path());
    let read: Vec<&Path> = adapter.chain([options.model]).collect();
    let (kind, example) = ("an ONNX export", "exported/smollm2-onnx");
    let others = &["model.safetensors", "model.safetensors.index.json"];
    Destination { out: options.out, kind, marks: &[MODEL_FILE], others, example }.check(options.force, &read)?;
    let layout = DecoderLayout::of(&Config::read(options.model)?)?;
    let parts: &[WeightedAdapter] = options.adapter.as_slice();
    let (config, weights, shared) = gguf_export::open(options.model, parts)?;
    let source = SourceWeights::new(&weights, &shared, parts, config.family().embedding)?;
    let (graph, plan) = decoder::build(&config, &layout, options.precision);
    if let Some(problem) = graph.problem() {
        return Err(Error::bug(format!("ONNX export: {problem}")));
    }
    check_nothing_left_out(&source, &plan, &config)?;
    let description = format!("{}, {}", config.model_type, options.precision.name());
    let encoded = onnx::encode(&graph, &config.model_type, &description);
    let bytes = encoded.len() as u64 + plan.bytes;
    check_disk_space(options.out.parent().unwrap_or(options.out), bytes)?;

    let total = 2 * plan.list.len() as u64;
    let mut done = 0;
    let mut step = || -> Result<()> {
        progress(done, total)?;
        done += 1;
        Ok(())
    };
    let mut made = None;
    let folder: PathBuf = options.out.components().collect(); // without a slash at the end
    fsutil::replace_dir(&folder, |temp| {
        write_weights(&temp.join(DATA_FILE), &plan, &source, &mut step)?;
        fsutil::write_atomic(&temp.join(MODEL_FILE), |out| out.write_all(&encoded))?;
        write_config(&config, temp, None)?;
        copy_companion_files(options.model, temp, MODEL_FILES)?;
        if !parts.is_empty() {
            inherit_training(temp, options.model, parts)?;
        }
        let tokenizer = match ChatTokenizer::in_directory(temp) {
            true => Some(ChatTokenizer::load(temp, None)?),
            false => None,
        };
        fsutil::write_json(&temp.join(genai::FILE), &genai::settings(&config, temp, tokenizer.as_ref(), &graph)?)?;
        let read_back = check::check(temp, &graph, &plan, &source, &mut step)?;
        made = Some((read_back, tokenizer));
        Ok(())
    })?;
    let (read_back, tokenizer) = made.ok_or_else(|| Error::bug("a folder was written and not checked"))?;
    Ok(OnnxExportSummary {
        model: options.model.to_path_buf(),
        adapter: parts.first().map(|part| part.folder.clone()),
        out: folder,
        architecture: config.model_type.clone(),
        format: options.precision.name(),
        opset: OPSET,
        operators: graph.operators.len(),
        parameters: plan.list.iter().map(|weight| weight.shape.iter().product::<u64>()).sum(),
        tensors: types(&graph, &plan),
        bytes,
        tokenizer: tokenizer.is_some(),
        chat_template: tokenizer.as_ref().is_some_and(ChatTokenizer::has_template),
        read_back,
        compatibility: compatibility::of_onnx_model(),
        notes: notes(&config, tokenizer.is_some()),
    })
}

/// Writes the file with the weights, one weight in memory at a time.
fn write_weights(
    path: &Path,
    plan: &WeightPlan,
    source: &SourceWeights,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let failed = |e: std::io::Error| fsutil::io_error("writing", path, e);
    let file = fsutil::create_new(path, fsutil::FileAccess::Umask).map_err(failed)?;
    let (mut out, mut at) = (BufWriter::new(file), 0u64);
    for weight in &plan.list {
        step()?;
        let values = source.values(&weight.source, &weight.shape)?;
        source.release(&weight.source);
        let parts = weight.form.encode(&weight.source, values, &weight.shape)?;
        for (bytes, (_, offset)) in parts.iter().zip(&weight.placed) {
            let gap = vec![0; (offset - at) as usize];
            out.write_all(&gap).and_then(|()| out.write_all(bytes)).map_err(failed)?;
            at = offset + bytes.len() as u64;
        }
    }
    out.flush().and_then(|()| out.get_ref().sync_all()).map_err(failed)
}

/// Fails if the model has tensors that are not written: the graph would be another model's.
fn check_nothing_left_out(source: &SourceWeights, plan: &WeightPlan, config: &Config) -> Result<()> {
    let mut written: BTreeSet<&str> = plan.list.iter().map(|weight| weight.source.as_str()).collect();
    // A tied head is the embedding.
    if config.tie_word_embeddings {
        written.insert("lm_head.weight");
    }
    let Some(name) = source.names().find(|name| !written.contains(name)) else { return Ok(()) };
    if name == SCORE {
        return Err(config
            .refuse("this is a reward model: it scores answers and generates no text")
            .hint("ft export --to onnx writes language models"));
    }
    Err(Error::user(format!("tensor {name} is no part of a {} model", config.model_type))
        .hint("ft reads and writes the tensors that transformers has for its family"))
}

/// Returns the number of weights by type.
fn types(graph: &Graph, plan: &WeightPlan) -> BTreeMap<&'static str, u64> {
    let weights: BTreeSet<&str> =
        plan.list.iter().flat_map(|weight| &weight.placed).map(|(value, _)| value.name()).collect();
    let mut counts = BTreeMap::new();
    for initializer in graph.initializers.iter().filter(|initializer| weights.contains(initializer.value.name())) {
        *counts.entry(initializer.kind.name()).or_default() += 1;
    }
    counts
}

/// Returns what the user should know.
fn notes(config: &Config, tokenizer: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if !tokenizer {
        notes.push("the model has no tokenizer: ONNX Runtime GenAI needs one in the folder".into());
    }
    if let RopeScaling::Long { original, .. } = config.rope_scaling {
        notes.push(format!(
            "a text that outgrows {original} tokens while it is generated keeps the rotation of its first keys; ft computes them again"
        ));
    }
    notes
}
