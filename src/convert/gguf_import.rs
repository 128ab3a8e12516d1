//! Converts a GGUF file to a Hugging Face model directory (`ft import`).
//!
//! Tensors are dequantised, rearranged to Hugging Face's layout, cast and written one at a time, so memory holds only
//! one of them. The directory appears completely written or not at all.

use crate::convert::folder::destination::Destination;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::gguf::architecture;
use crate::gguf::file::Gguf;
use crate::gguf::model_texts::config_text;
use crate::gguf::quant::dequantise;
use crate::gguf::tensor_map::{LayoutChange, MappedTensor};
use crate::gguf::vocabulary;
use crate::models::{Config, FileTensor, file_tensors};
use crate::nn::safetensors::{self, Dtype, TensorHeader};
use half::{bf16, f16};
use indexmap::IndexMap;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Options of an import.
pub struct GgufImportOptions<'a> {
    /// The GGUF file.
    pub file: &'a Path,
    /// The model directory to write.
    pub out: &'a Path,
    /// The dtype of all weights.
    pub dtype: Dtype,
    /// Replace an existing model directory.
    pub force: bool,
    /// Overrides the pre-tokenizer that the file names.
    pub pre_tokenizer: Option<&'a str>,
}

/// Describes an imported model; printed as JSON by `ft import --json`.
#[derive(Debug, Serialize)]
pub struct GgufImportSummary {
    /// The GGUF file.
    pub file: PathBuf,
    /// The model directory.
    pub out: PathBuf,
    /// The architecture's name in the file.
    pub architecture: String,
    /// The model's name, if the file has one.
    pub name: Option<String>,
    /// The model's license, if the file names one.
    pub license: Option<String>,
    /// Number of weights.
    pub parameters: u64,
    /// Number of tensors by their type in the file.
    pub tensors: BTreeMap<String, u64>,
    /// The dtype of the written weights, as transformers names it.
    pub dtype: String,
    /// Size of all written tensors.
    pub bytes: u64,
    /// Number of token ids.
    pub vocabulary: u64,
    /// Whether the file has a chat template.
    pub chat_template: bool,
    /// Tokens that end an answer.
    pub stop_token_ids: Vec<u64>,
    /// Warnings for the user about doubtful choices.
    pub warnings: Vec<String>,
}

/// Imports a file. Calls `progress(done, total)`, counted in tensors, before each tensor; if it returns an error, the
/// import stops and leaves no files.
pub fn import(
    options: &GgufImportOptions,
    mut progress: impl FnMut(u64, u64) -> Result<()>,
) -> Result<GgufImportSummary> {
    Destination::model(options.out, "models/smollm2").check(options.force, &[options.file])?;
    let gguf = Gguf::open(options.file)?;
    // Checked before the tokenizer is read: its errors would hide this cause.
    let arch = architecture::of(&gguf)?;
    let vocabulary = vocabulary::rebuild(&gguf, architecture::context_length(&gguf, arch)?, options.pre_tokenizer)?;
    let mut model = architecture::map_model(&gguf, arch, &vocabulary.ids())?;
    model.config.insert("torch_dtype".into(), json!(torch_name(options.dtype)));

    let (name, license) = (gguf.text("general.name")?, gguf.text("general.license")?);
    let config = Config::parse(options.file, &config_text(&model.config))?;
    let mut parameters: IndexMap<&str, Vec<&MappedTensor>> = IndexMap::new();
    model.tensors.iter().for_each(|t| parameters.entry(t.name.as_str()).or_default().push(t));
    let shape_of = |t: &MappedTensor| t.shape.iter().map(|n| *n as i64).collect::<Vec<i64>>();
    let files = file_tensors(&config, parameters.iter().map(|(name, parts)| (*name, shape_of(parts[0]))));
    let entries: Vec<TensorHeader> = files
        .iter()
        .map(|t| TensorHeader::new(&t.name, options.dtype, t.shape.iter().map(|n| *n as usize).collect::<Vec<usize>>()))
        .collect();
    let by_name: HashMap<&str, &FileTensor> = files.iter().map(|t| (t.name.as_str(), t)).collect();
    let total = entries.len() as u64;
    let mut done = 0;
    fsutil::replace_dir(options.out, |folder| {
        safetensors::write_model(folder, &entries, safetensors::SHARD_BYTES, |entry| {
            progress(done, total)?;
            done += 1;
            let tensor = by_name[entry.name.as_str()];
            let first = &parameters[tensor.parts[0].as_str()];
            let values = match tensor.parts.len() {
                1 => parameter(&gguf, first),
                _ => {
                    let stack = tensor.values(|name| {
                        let values = Tensor::from_slice(&parameter(&gguf, &parameters[name]));
                        Ok(values.view(shape_of(parameters[name][0]).as_slice()))
                    })?;
                    Vec::try_from(stack.contiguous().view([-1]))?
                }
            };
            encode(&gguf, &first[0].source.name, values, options.dtype)
        })?;
        progress(total, total)?;
        let config = ("config.json".to_string(), config_text(&model.config));
        for (name, text) in vocabulary.texts().into_iter().chain([config]) {
            fsutil::write_atomic(&folder.join(name), |w| w.write_all(text.as_bytes()))?;
        }
        Ok(())
    })?;

    let mut tensors = BTreeMap::new();
    for tensor in &model.tensors {
        *tensors.entry(tensor.source.kind.name()).or_default() += 1;
    }
    Ok(GgufImportSummary {
        file: options.file.to_path_buf(),
        out: options.out.to_path_buf(),
        architecture: arch.to_string(),
        name: name.map(str::to_string),
        license: license.map(str::to_string),
        parameters: entries.iter().map(TensorHeader::elements).sum(),
        tensors,
        dtype: torch_name(options.dtype).to_string(),
        bytes: entries.iter().map(TensorHeader::bytes).sum(),
        vocabulary: vocabulary.size as u64,
        chat_template: vocabulary.template.is_some(),
        stop_token_ids: vocabulary.stops,
        warnings: vocabulary.warnings,
    })
}

/// Returns the values of a parameter in Hugging Face's layout, of which the file may have several parts.
fn parameter(gguf: &Gguf, parts: &[&MappedTensor]) -> Vec<f32> {
    let rows = parts[0].shape[0];
    if !parts[0].change.is_part() {
        return arranged(gguf, parts[0]);
    }
    let mut values = vec![0.0; parts[0].shape.iter().product()];
    let width = values.len() / rows;
    for part in parts {
        let places = part.change.file_order(rows).unwrap_or_default();
        for (line, row) in arranged(gguf, part).chunks_exact(width).zip(places) {
            values[row as usize * width..][..width].copy_from_slice(line);
        }
    }
    values
}

/// Returns the bytes of values in the chosen dtype; `name` is that of their tensor in the file. Fails if a value is not finite.
fn encode(gguf: &Gguf, name: &str, values: Vec<f32>, dtype: Dtype) -> Result<Vec<u8>> {
    let wrong = |what: String| Error::user(format!("{}: tensor {name}: {what}", gguf.path().display()));
    let bad = values.par_iter().filter(|x| !x.is_finite()).count();
    if bad > 0 {
        return Err(wrong(format!("{bad} of {} values are not finite", values.len()))
            .hint("the file is damaged, or the model was before it was converted; try another GGUF of it"));
    }
    let mut bytes = vec![0u8; values.len() * dtype.bitsize() / 8];
    match dtype {
        Dtype::F32 => bytes.par_chunks_exact_mut(4).zip(&values).for_each(|(b, x)| b.copy_from_slice(&x.to_le_bytes())),
        Dtype::BF16 => bytes
            .par_chunks_exact_mut(2)
            .zip(&values)
            .for_each(|(b, x)| b.copy_from_slice(&bf16::from_f32(*x).to_le_bytes())),
        Dtype::F16 => {
            if let Some(x) = values.iter().find(|x| f16::from_f32(**x).is_infinite()) {
                return Err(
                    wrong(format!("the value {x} does not fit into float16")).hint("choose --dtype bf16 or f32")
                );
            }
            bytes
                .par_chunks_exact_mut(2)
                .zip(&values)
                .for_each(|(b, x)| b.copy_from_slice(&f16::from_f32(*x).to_le_bytes()))
        }
        other => return Err(Error::bug(format!("no encoding for {other:?}"))),
    }
    Ok(bytes)
}

/// Returns the values of a tensor in Hugging Face's layout.
pub(in crate::convert) fn arranged(gguf: &Gguf, tensor: &MappedTensor) -> Vec<f32> {
    let mut values = dequantise(tensor.source.kind, gguf.data(&tensor.source));
    let rows = tensor.source.shape[0];
    if let Some(order) = tensor.change.row_order(rows) {
        values = select_rows(&values, rows, &order);
    }
    match tensor.change {
        LayoutChange::Transpose => values = transpose(&values, rows),
        LayoutChange::Centre => values.par_iter_mut().for_each(|x| *x -= 1.0),
        LayoutChange::HeadKeys(_) => values = transpose_each(&values, rows, tensor.source.shape[1]),
        _ => {}
    }
    values
}

/// Returns a part of the `count` rows of a tensor in Hugging Face's layout, or of a [part](LayoutChange::is_part) in the order of the
/// file. A row must be whole blocks, and the tensor not transposed.
pub(in crate::convert) fn arranged_rows(
    gguf: &Gguf,
    tensor: &MappedTensor,
    count: usize,
    part: Range<usize>,
) -> Vec<f32> {
    let data = gguf.data(&tensor.source);
    let size = data.len() / count;
    let mut values = match tensor.change.row_order(count) {
        None => dequantise(tensor.source.kind, &data[part.start * size..part.end * size]),
        Some(order) => {
            let rows = order[part].iter().flat_map(|row| &data[*row as usize * size..][..size]);
            dequantise(tensor.source.kind, &rows.copied().collect::<Vec<u8>>())
        }
    };
    if tensor.change == LayoutChange::Centre {
        values.par_iter_mut().for_each(|x| *x -= 1.0);
    }
    values
}

/// Returns some rows of a matrix of `rows` rows, in this order.
pub(in crate::convert) fn select_rows(values: &[f32], rows: usize, order: &[i64]) -> Vec<f32> {
    let width = values.len() / rows;
    order.iter().flat_map(|&row| &values[row as usize * width..(row as usize + 1) * width]).copied().collect()
}

/// Transposes each of `count` matrices of `rows` rows.
pub(in crate::convert) fn transpose_each(values: &[f32], count: usize, rows: usize) -> Vec<f32> {
    values.chunks_exact(values.len() / count).flat_map(|matrix| transpose(matrix, rows)).collect()
}

/// Transposes a matrix of `rows` rows.
pub(in crate::convert) fn transpose(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    let mut out = vec![0.0; values.len()];
    out.par_chunks_exact_mut(rows).enumerate().for_each(|(c, line)| {
        for (r, x) in line.iter_mut().enumerate() {
            *x = values[r * columns + c];
        }
    });
    out
}

/// Returns transformers' name of a dtype.
fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        _ => "bfloat16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpermute_undoes_llama_cpp_s_interleaving() {
        let unpermute = |values: &[f32], heads: usize| {
            select_rows(values, values.len(), &LayoutChange::Unpermute { heads }.row_order(values.len()).unwrap())
        };
        // One head of four rows, width one: stored (0, 2, 1, 3) was (0, 1, 2, 3).
        assert_eq!(unpermute(&[0.0, 2.0, 1.0, 3.0], 1), [0.0, 1.0, 2.0, 3.0]);
        // Two heads of two rows are left as they are.
        assert_eq!(unpermute(&[0.0, 1.0, 2.0, 3.0], 2), [0.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn transpose_swaps_the_axes() {
        assert_eq!(transpose(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
