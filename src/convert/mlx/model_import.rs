//! Makes a Hugging Face directory of a model whose matrices are in mlx's affine format (`ft import DIR`).

use super::affine::{AffineFormat, AffineMatrix};
use crate::convert::export::publish::tensor_entry;
use crate::convert::folder::companions::{MODEL_FILES, copy_companion_files};
use crate::convert::folder::destination::Destination;
use crate::convert::hf_export::outline;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::model_files::CONFIG;
use crate::models::Config;
use crate::nn::Weights;
use crate::nn::safetensors::{SHARD_BYTES, write_model};
use crate::nn::weight::cast;
use crate::nn::weights::bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// The section of config.json that mlx-lm writes.
const SECTION: &str = "quantization";

/// What is imported, and to where.
pub struct MlxModelImportOptions<'a> {
    /// The folder of the model.
    pub model: &'a Path,
    /// The directory to write.
    pub out: &'a Path,
    /// The dtype of the written numbers.
    pub kind: Kind,
    /// Replace an existing model directory.
    pub force: bool,
}

/// Describes an imported model; printed as JSON by `ft import --json`.
#[derive(Debug, Serialize)]
pub struct MlxModelImportSummary {
    /// The folder of the model.
    pub model: PathBuf,
    /// The directory that was written.
    pub out: PathBuf,
    /// The model's family.
    pub architecture: String,
    /// Bits of the quantised numbers.
    pub bits: i64,
    /// Number of matrices that were dequantised.
    pub dequantised: usize,
    /// Number of tensors that were written.
    pub tensors: usize,
}

/// Returns true for a folder with a model in mlx's affine format.
pub fn is_mlx_model(folder: &Path) -> bool {
    let raw: Option<Map<String, Value>> = fsutil::read_json(&folder.join(CONFIG)).ok();
    raw.is_some_and(|raw| raw.get(SECTION).is_some_and(Value::is_object))
}

/// Writes the model with all numbers in one dtype. Fails for other formats of mlx, and for a folder that no model can be built of.
pub fn import_model(options: &MlxModelImportOptions) -> Result<MlxModelImportSummary> {
    let _no_grad = tch::no_grad_guard();
    Destination::model(options.out, "models/imported").check(options.force, &[options.model])?;
    let read = AffineFolder::open(options.model)?;
    let names: Vec<String> = read.names().map(str::to_string).collect();
    let mut raw = read.raw.clone();
    raw.remove(SECTION);
    raw.remove("quantization_config");
    let key = if raw.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    raw.insert(key.into(), json!(crate::convert::folder::config_file::dtype_name(options.kind)?));
    let mut headers = Vec::new();
    for name in &names {
        let kind = if read.is_float(name) { options.kind } else { read.kind(name) };
        headers.push(tensor_entry(name, &read.shape(name)?, kind)?);
    }
    let folder: PathBuf = options.out.components().collect(); // without a slash at the end
    let mut architecture = String::new();
    fsutil::replace_dir(&folder, |temp| {
        write_model(temp, &headers, SHARD_BYTES, |header| {
            let tensor = read.tensor(&header.name)?.ok_or_else(|| Error::bug("a tensor is gone"))?;
            let kind = if read.is_float(&header.name) { options.kind } else { tensor.kind() };
            let rounded = cast(&tensor, kind);
            if rounded.is_floating_point() && rounded.isfinite().all().int64_value(&[]) == 0 {
                return Err(Error::user(format!("tensor {}: a value does not fit into {kind:?}", header.name))
                    .hint("choose --dtype bf16 or f32"));
            }
            Ok(bytes(&rounded))
        })?;
        fsutil::write_json(&temp.join(CONFIG), &raw)?;
        copy_companion_files(options.model, temp, MODEL_FILES)?;
        architecture = Config::read(temp)?.model_type;
        outline(temp).map_err(|e| e.context("reading back what was just written")).map(drop)
    })?;
    Ok(MlxModelImportSummary {
        model: options.model.into(),
        out: folder,
        architecture,
        bits: read.format.bits,
        dequantised: names.iter().filter(|name| read.is_quantised(name)).count(),
        tensors: names.len(),
    })
}

/// A folder with matrices in the affine format.
pub(super) struct AffineFolder {
    weights: Weights,
    format: AffineFormat,
    /// config.json.
    raw: Map<String, Value>,
}

impl AffineFolder {
    /// Opens a folder. Fails for settings that are not read.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let raw: Map<String, Value> = fsutil::read_json(&path)?;
        let section = raw.get(SECTION).cloned().unwrap_or_default();
        let refuse = |what: String| {
            Err(Error::user(format!("{}: `{SECTION}` {what}", path.display()))
                .hint("the affine format of 2, 4 or 8 bits is read: mlx_lm.convert --dequantize makes a plain model"))
        };
        if let Some(mode) = section.get("mode").and_then(Value::as_str).filter(|mode| *mode != "affine") {
            return refuse(format!("has the mode {}", fsutil::excerpt(mode)));
        }
        let number = |key: &str| section.get(key).and_then(Value::as_i64);
        let (Some(group), Some(bits)) = (number("group_size"), number("bits")) else {
            return refuse("has no `group_size` and `bits`".into());
        };
        if ![2, 4, 8].contains(&bits) || ![32, 64, 128].contains(&group) {
            return refuse(format!("has {bits} bits in groups of {group}"));
        }
        // Layers may have settings of their own: a list of them, or false for those in full precision.
        let others = section.as_object().into_iter().flatten();
        if let Some((layer, _)) = others.into_iter().find(|(_, value)| value.is_object()) {
            return refuse(format!("has other settings for {}", fsutil::excerpt(layer)));
        }
        let weights = Weights::open(folder)?;
        if let Some(name) = weights.names().find(|name| name.contains(".switch_mlp.")) {
            return Err(Error::user(format!("{}: `{name}`: experts stacked by mlx-lm are not read", folder.display()))
                .hint("import the model that it was made from"));
        }
        Ok(Self { weights, format: AffineFormat { bits, group }, raw })
    }

    /// Returns the names of the model's tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let part = |name: &str| {
            let matrix = name.strip_suffix(".scales").or(name.strip_suffix(".biases"));
            matrix.is_some_and(|module| self.is_quantised(&format!("{module}.weight")))
        };
        self.weights.names().filter(move |name| !part(name))
    }

    fn is_quantised(&self, name: &str) -> bool {
        name.strip_suffix(".weight").is_some_and(|module| self.weights.shape(&format!("{module}.scales")).is_some())
    }

    fn kind(&self, name: &str) -> Kind {
        self.weights.kind(name).unwrap_or(Kind::Float)
    }

    fn is_float(&self, name: &str) -> bool {
        self.is_quantised(name) || matches!(self.kind(name), Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16)
    }

    fn shape(&self, name: &str) -> Result<Vec<i64>> {
        let shape = self.weights.shape(name).unwrap_or_default().to_vec();
        match (self.is_quantised(name), &shape[..]) {
            (true, [outputs, packed]) => Ok(vec![*outputs, packed * 32 / self.format.bits]),
            (true, _) => {
                Err(Error::user(format!("`{name}` is no matrix of packed numbers")).hint("fetch the model again"))
            }
            (false, _) => Ok(shape),
        }
    }

    /// Returns a tensor of the model, a quantised one in float32; `None` if there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(tensor) = self.weights.get(name) else { return Ok(None) };
        let Some(module) = name.strip_suffix(".weight").filter(|_| self.is_quantised(name)) else {
            return Ok(Some(tensor));
        };
        let part = |part: &str| {
            let name = format!("{module}.{part}");
            self.weights.get(&name).ok_or_else(|| {
                Error::user(format!("{}: `{name}` is missing", self.weights.origin().display()))
                    .hint("the download or copy is incomplete: fetch it again")
            })
        };
        let matrix = AffineMatrix { codes: tensor, scales: part("scales")?, biases: part("biases")? };
        self.format.dense(name, &matrix).map(Some)
    }
}
