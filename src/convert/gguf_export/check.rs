//! Reads a written file back, by the way of `ft import` and of models in GGUF files, and compares it with the model that it was
//! made from.

use super::source::{SourceWeights, parts};
use super::tokenizer::PROBES;
use crate::convert::gguf_import::{arranged, arranged_rows, transpose, transpose_each};
use crate::data::chat::ChatTokenizer;
use crate::data::rows::ChatMessage;
use crate::error::{Error, Result};
use crate::gguf::file::Gguf;
use crate::gguf::quant::{GgmlType, dequantise};
use crate::gguf::shape::Shape;
use crate::gguf::tensor_map::{LayoutChange, MappedTensor};
use crate::gguf::{architecture, vocabulary};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// Numbers that a thread compares at a time.
const CHUNK: usize = 1 << 14;

/// What a comparison found.
#[derive(Debug, Clone, Serialize)]
pub struct GgufReadBack {
    /// Number of tensors of the directory that were compared.
    pub tensors: u64,
    /// By format: how far the numbers are from the model's, as the root of the mean square divided by that of the numbers.
    pub relative_error: BTreeMap<String, f64>,
    /// Number of texts whose token ids were compared.
    pub texts: usize,
}

/// Compares the file with the model. Fails if a tensor is not what its format makes of the model's, or if token ids differ.
pub fn check(
    file: &Path,
    source: &SourceWeights,
    shape: &Shape,
    tokenizer: &ChatTokenizer,
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Result<GgufReadBack> {
    let gguf = Gguf::open(file)?;
    let arch = architecture::of(&gguf)?;
    let model = architecture::map_model(&gguf, arch, &vocabulary::token_ids(&gguf)?)?;
    let mut errors: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for tensor in &model.tensors {
        progress(1)?;
        let (error, norm) = compare(&gguf, tensor, source)?;
        gguf.release(&tensor.source);
        source.release(&tensor.name);
        let sums = errors.entry(tensor.source.kind.name()).or_default();
        sums.0 += error;
        sums.1 += norm;
    }
    let found: HashSet<&str> = model.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let mut expected = shape.tensors().into_iter().flat_map(|placed| placed.hf);
    if let Some(missing) = expected.find(|name| !found.contains(name.as_str())) {
        return Err(Error::bug(format!("{missing} was written and not read back")));
    }
    let relative = |(error, norm): (f64, f64)| if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
    Ok(GgufReadBack {
        tensors: model.tensors.len() as u64,
        relative_error: errors.into_iter().map(|(kind, sums)| (kind, relative(sums))).collect(),
        texts: compare_ids(file, tokenizer)?,
    })
}

/// Returns the sums of squares of the errors of a tensor and of its numbers. Fails if it is not exactly what its format makes of
/// the source's. Some rows are in memory at a time, unless the matrix is transposed in the file.
fn compare(gguf: &Gguf, tensor: &MappedTensor, source: &SourceWeights) -> Result<(f64, f64)> {
    let shape: Vec<u64> = tensor.shape.iter().map(|n| *n as u64).collect();
    let own = source.tensor(&tensor.name, &shape)?;
    let all = tensor.shape[0];
    // Of a matrix in several tensors, the rows that this one has.
    let order = tensor.change.file_order(all).filter(|_| tensor.change.is_part());
    if matches!(tensor.change, LayoutChange::Transpose | LayoutChange::HeadKeys(_)) {
        let values = order.map_or_else(|| own.all(), |order| own.select(all, &order))?;
        return compare_values(tensor, &arranged(gguf, tensor), &values, source);
    }
    let rows = order.as_ref().map_or(tensor.source.shape[0], Vec::len);
    let mut sums = (0.0, 0.0);
    for part in parts(rows, tensor.source.elements() / rows) {
        let found = arranged_rows(gguf, tensor, rows, part.clone());
        let values = match &order {
            Some(order) => own.select(all, &order[part])?,
            None => own.rows(rows, part)?,
        };
        let (error, norm) = compare_values(tensor, &found, &values, source)?;
        sums = (sums.0 + error, sums.1 + norm);
    }
    Ok(sums)
}

fn compare_values(tensor: &MappedTensor, found: &[f32], values: &[f32], source: &SourceWeights) -> Result<(f64, f64)> {
    let of_chunk = |(x, y): (&[f32], &[f32])| {
        x.iter().zip(y).fold((0.0, 0.0), |(error, norm), (x, y)| {
            let (x, y) = (f64::from(*x), f64::from(*y));
            (error + (x - y) * (x - y), norm + x * x)
        })
    };
    // Sums of chunks in order, so that the result is the same on every machine.
    let sums: Vec<(f64, f64)> = values.par_chunks(CHUNK).zip(found.par_chunks(CHUNK)).map(of_chunk).collect();
    let (error, norm) = sums.iter().fold((0.0, 0.0), |sum, chunk| (sum.0 + chunk.0, sum.1 + chunk.1));
    let expected = expected(tensor, values, source);
    let unequal = expected.par_chunks(CHUNK).zip(found.par_chunks(CHUNK)).enumerate().find_map_first(|(i, (x, y))| {
        let differences = x.iter().zip(y).fold(0, |bits, (x, y)| bits | (x.to_bits() ^ y.to_bits()));
        let at = || x.iter().zip(y).position(|(x, y)| x.to_bits() != y.to_bits());
        if differences == 0 { None } else { at().map(|at| i * CHUNK + at) }
    });
    if let Some(at) = unequal.or((expected.len() != found.len()).then_some(0)) {
        return Err(Error::bug(format!(
            "tensor {}: a number is {} in the written file, {} expected",
            tensor.name, found[at], expected[at]
        )));
    }
    Ok((error, norm))
}

/// Returns what the format of a tensor makes of the model's numbers. Blocks do not cross rows, so the order of rows in the file
/// changes nothing; only GPT-2's matrices lie the other way round.
fn expected(tensor: &MappedTensor, values: &[f32], source: &SourceWeights) -> Vec<f32> {
    let kind = tensor.source.kind;
    if kind == GgmlType::MXFP4 {
        return values.iter().map(|x| x + 0.0).collect(); // written as it was; ggml has no negative zero
    }
    let through =
        |values: &[f32], columns: usize| dequantise(kind, &source.in_format(kind, &tensor.name, values, columns));
    let columns = tensor.shape.last().copied().unwrap_or(1);
    match tensor.change {
        LayoutChange::Centre => {
            let stored: Vec<f32> = values.iter().map(|x| x + 1.0).collect();
            through(&stored, columns).into_iter().map(|x| x - 1.0).collect()
        }
        LayoutChange::HeadKeys(of) => {
            let stored = transpose_each(values, of.heads, of.key);
            transpose_each(&through(&stored, of.key), of.heads, values.len() / of.heads / of.key)
        }
        LayoutChange::Transpose if kind != GgmlType::F32 => {
            let rows = tensor.shape[0];
            let stored = transpose(values, rows);
            transpose(&through(&stored, rows), tensor.shape[1])
        }
        _ => through(values, columns),
    }
}

/// Compares the token ids of texts, and of a conversation if the model has a chat template. Returns how many.
fn compare_ids(file: &Path, tokenizer: &ChatTokenizer) -> Result<usize> {
    let written = ChatTokenizer::load(file, None)?;
    let talk = [
        ChatMessage::new("user", "What is 2 + 2?"),
        ChatMessage::new("assistant", "4"),
        ChatMessage::new("user", "Why?"),
    ];
    // In llama.cpp, SentencePiece puts a space before every text and behind every special token. The tokenizer that `ft import` makes,
    // like transformers', does so before a text only, and only if there is no space yet. Where both differ, ids say nothing about the file.
    let gguf = Gguf::open(file)?;
    let spaced = gguf.text("tokenizer.ggml.model")? == Some("llama")
        && gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut texts: Vec<String> = PROBES.map(String::from).into();
    texts.retain(|text| !spaced || !text.starts_with(char::is_whitespace));
    if tokenizer.has_template()
        && let Ok(text) = tokenizer.render(&talk, true)
    {
        if written.render(&talk, true)? != text {
            return Err(Error::bug("the chat template in the written file gives another text"));
        }
        texts.extend((!spaced).then_some(text));
    }
    for text in &texts {
        let (found, expected) = (written.encode_plain(text)?, tokenizer.encode_plain(text)?);
        if found != expected {
            return Err(Error::user(format!(
                "the tokenizer in the written file gives other ids for {text:?}: {found:?} instead of {expected:?}"
            ))
            .hint("GGUF does not express this tokenizer exactly; nothing was written"));
        }
    }
    Ok(texts.len())
}
