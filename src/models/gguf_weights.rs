//! Opens the weights in a GGUF file where they lie: nothing is dequantised or copied before a layer reads it, but for plain
//! matrices of which several tensors have some rows each.

use crate::error::{Error, Result};
use crate::gguf::file::Gguf;
use crate::gguf::quant::{GgmlType, dequantise};
use crate::gguf::tensor_map::{LayoutChange, MappedTensor};
use crate::gguf::{architecture, vocabulary};
use crate::nn::weights::{QuantisedEntry, TensorLocation};
use crate::nn::{QuantisedWeight, Weights};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Opens the weights of a GGUF file under their names in a Hugging Face directory. Matrices in blocks of numbers stay
/// quantised; all other tensors are plain. Fails if the file is damaged or contains no whole model.
pub fn open(path: &Path) -> Result<Weights> {
    let gguf = Gguf::open(path)?;
    let ids = vocabulary::token_ids(&gguf)?;
    let model = architecture::map_model(&gguf, architecture::of(&gguf)?, &ids)?;
    let is_plain = |t: &MappedTensor| plain_kind(t).is_some() || of_heads(t);
    let (plain, blocks): (Vec<_>, Vec<_>) = model.tensors.into_iter().partition(is_plain);
    let (parts, plain): (Vec<_>, Vec<_>) = plain.into_iter().partition(|t| t.change.is_part());
    let location = |t: &MappedTensor| {
        let shape = t.shape.iter().map(|&n| n as i64).collect();
        let kind = plain_kind(t).unwrap_or(Kind::Float);
        (t.name.clone(), TensorLocation::new(kind, shape, t.source.place(), t.change))
    };
    let parts = by_name(parts);
    // Those of which there are parts get their numbers below.
    let all = plain.iter().chain(parts.values().map(|parts| &parts[0]));
    let mut weights = Weights::empty(path);
    let mut of_files: Vec<Vec<(String, TensorLocation)>> = gguf.files().map(|_| Vec::new()).collect();
    all.for_each(|t| of_files[t.source.part()].push(location(t)));
    let files = gguf.files().zip(of_files).map(|(path, found)| weights.add_file(path, found));
    let files = files.collect::<Result<Vec<Tensor>>>()?;
    let bytes = |t: &MappedTensor| {
        let place = t.source.place();
        files[t.source.part()].narrow(0, place.start as i64, place.len() as i64)
    };
    for (name, parts) in parts {
        let mut rows = Vec::new();
        for part in &parts {
            if !of_heads(part) && part.source.kind != parts[0].source.kind {
                return Err(other_formats(path, &parts));
            }
            rows.push(rows_of_part(&gguf, part, &bytes(part)));
        }
        let shape: Vec<i64> = parts[0].shape.iter().map(|&n| n as i64).collect();
        let joined = Tensor::cat(&rows, 0).index_select(0, &Tensor::from_slice(&order_of_parts(&parts)));
        weights.replace(&name, joined.view(shape.as_slice()))?;
    }
    for (name, parts) in by_name(blocks) {
        if parts.iter().any(|part| part.source.kind != parts[0].source.kind) {
            return Err(other_formats(path, &parts));
        }
        let blocks = parts.iter().map(bytes).collect();
        weights.add_quantised(name, Rc::new(BlockMatrix { parts, blocks }));
    }
    Ok(weights)
}

/// Returns true for a tensor with the rows of keys or of values of a matrix. The matrix is plain, also if the tensors are in
/// blocks: those of keys are transposed.
fn of_heads(t: &MappedTensor) -> bool {
    matches!(t.change, LayoutChange::HeadKeys(_) | LayoutChange::HeadValues(_))
}

/// Returns the rows of a plain matrix that a tensor has: (rows, in). `bytes` are the tensor's.
fn rows_of_part(gguf: &Gguf, part: &MappedTensor, bytes: &Tensor) -> Tensor {
    let shape: Vec<i64> = part.source.shape.iter().map(|&n| n as i64).collect();
    let values = match plain_kind(part) {
        Some(kind) => bytes.copy().view_dtype(kind),
        None => Tensor::from_slice(&dequantise(part.source.kind, gguf.data(&part.source))),
    };
    let values = if of_heads(part) { values.to_kind(Kind::Float) } else { values };
    match part.change {
        LayoutChange::HeadKeys(_) => values.view(shape.as_slice()).transpose(1, 2).reshape([-1, shape[1]]),
        LayoutChange::HeadValues(_) => values.view([-1, shape[2]]),
        _ => values.view([shape[0], -1]),
    }
}

/// Returns the tensors of each parameter.
fn by_name(tensors: Vec<MappedTensor>) -> BTreeMap<String, Vec<MappedTensor>> {
    let mut found: BTreeMap<String, Vec<MappedTensor>> = BTreeMap::new();
    for tensor in tensors {
        found.entry(tensor.name.clone()).or_default().push(tensor);
    }
    found
}

fn other_formats(path: &Path, parts: &[MappedTensor]) -> Error {
    let list: Vec<String> =
        parts.iter().map(|part| format!("{} in {}", part.source.name, part.source.kind.name())).collect();
    Error::user(format!("{}: one matrix in tensors of several formats: {}", path.display(), list.join(", ")))
        .hint("choose another GGUF of the model, or make a directory of this one: ft import")
}

/// Returns, for each row of a matrix, the row that it is of its parts one after the other.
fn order_of_parts(parts: &[MappedTensor]) -> Vec<i64> {
    let rows = parts[0].shape[0];
    let places = parts.iter().flat_map(|part| part.change.file_order(rows).unwrap_or_default());
    let mut order = vec![0; rows];
    for (at, row) in places.enumerate() {
        order[row as usize] = at as i64;
    }
    order
}

/// Returns the dtype of a tensor whose numbers are stored one by one; `None` if they are in blocks.
fn plain_kind(tensor: &MappedTensor) -> Option<Kind> {
    match tensor.source.kind {
        GgmlType::F32 => Some(Kind::Float),
        GgmlType::F16 => Some(Kind::Half),
        GgmlType::BF16 => Some(Kind::BFloat16),
        _ => None,
    }
}

/// A matrix in the mapped file: one tensor, or several with some rows each.
struct BlockMatrix {
    parts: Vec<MappedTensor>,
    /// The bytes of each (size) uint8, views of the mapping.
    blocks: Vec<Tensor>,
}

impl QuantisedEntry for BlockMatrix {
    fn shape(&self) -> [i64; 2] {
        // Also for GPT-2: the file's rows are outputs, whatever the layout of other checkpoints.
        let rows = self.parts.iter().map(|part| part.source.shape[0] as i64).sum();
        match self.parts[0].source.shape[..] {
            [_, columns] => [rows, columns as i64],
            _ => [0, 0],
        }
    }

    fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.source.place().len() as u64).sum()
    }

    fn read(&self, device: Device) -> Result<QuantisedWeight> {
        let order = match self.parts[0].change.is_part() {
            true => Some(order_of_parts(&self.parts)),
            false => self.parts[0].change.row_order(self.shape()[0] as usize),
        };
        let order = order.map(|order| Tensor::from_slice(&order));
        if self.kind() == GgmlType::MXFP4 {
            return self.mxfp4(order, device);
        }
        let weight = self.in_order_of_file(device)?;
        match order {
            Some(order) => weight.select_rows(&order.to_device(device)),
            None => Ok(weight),
        }
    }

    /// Rows stay in the order of the file.
    fn outline(&self) -> Result<QuantisedWeight> {
        match self.kind() {
            GgmlType::MXFP4 => Ok(QuantisedWeight::outline_of_mxfp4(self.shape())),
            _ => self.in_order_of_file(Device::Cpu),
        }
    }
}

impl BlockMatrix {
    fn kind(&self) -> GgmlType {
        self.parts[0].source.kind
    }

    /// Returns the bytes of all rows in the order of the file. Those of one tensor are not copied.
    fn all_blocks(&self) -> Tensor {
        match &self.blocks[..] {
            [one] => one.shallow_clone(),
            several => Tensor::cat(several, 0),
        }
    }

    fn in_order_of_file(&self, device: Device) -> Result<QuantisedWeight> {
        QuantisedWeight::of_ggml_blocks(self.kind(), self.shape(), &self.all_blocks().to_device(device))
    }

    fn mxfp4(&self, order: Option<Tensor>, device: Device) -> Result<QuantisedWeight> {
        let _no_grad = tch::no_grad_guard();
        let block = GgmlType::MXFP4.block_bytes() as i64;
        let blocks = self.all_blocks().view([self.shape()[0], -1, block]);
        let blocks = order.map_or(blocks.shallow_clone(), |order| blocks.index_select(0, &order));
        QuantisedWeight::of_ggml_mxfp4(&blocks, device)
    }
}
