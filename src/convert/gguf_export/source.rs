//! The weights that are written: a model's own, or with adapters merged into them, one tensor at a time.

use super::calibration::ImportanceMatrix;
use crate::adapters::merging::{MergedWeights, WeightedAdapter};
use crate::convert::gguf_import::{select_rows, transpose, transpose_each};
use crate::error::{Error, Result};
use crate::gguf::quant::GgmlType;
use crate::gguf::quantise::{quantise, quantise_by_importance};
use crate::gguf::shape::{PlacedTensor, Shape};
use crate::gguf::tensor_map::{LayoutChange, layout_change};
use crate::gguf::writer::{TensorEntry, TensorSink};
use crate::nn::weights::bytes;
use crate::nn::{QuantisedWeight, Weights};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

/// The tensors of a model by their names in a directory.
pub struct SourceWeights<'a> {
    weights: &'a Weights,
    merge: Option<MergedWeights<'a>>,
    embedding: &'static str,
    importance: Option<ImportanceMatrix>,
}

impl<'a> SourceWeights<'a> {
    /// Opens the weights of a base with the adapters `parts` merged into it; `shared` are the names of weights that embedding
    /// and head share, `embedding` is that of the embedding.
    pub fn new(
        weights: &'a Weights,
        shared: &[&str],
        parts: &[WeightedAdapter],
        embedding: &'static str,
    ) -> Result<Self> {
        let merge = if parts.is_empty() { None } else { Some(MergedWeights::new(weights, shared, parts)?) };
        Ok(Self { weights, merge, embedding, importance: None })
    }

    /// Lets the errors of columns count by their importance when numbers are rounded.
    pub fn weigh_errors(&mut self, importance: ImportanceMatrix) {
        self.importance = Some(importance);
    }

    /// Returns the importance matrix, if there is one.
    pub fn importance(&self) -> Option<&ImportanceMatrix> {
        self.importance.as_ref()
    }

    /// Returns numbers of a tensor, whole rows of a file with `columns` numbers each, in a format.
    pub fn in_format(&self, kind: GgmlType, name: &str, values: &[f32], columns: usize) -> Vec<u8> {
        let importance = self.importance.as_ref().and_then(|matrix| matrix.of(name));
        // Columns of another length are no inputs: keys by head, of which each column is a row of the model's matrix.
        match importance.filter(|importance| importance.len() == columns && !kind.is_float()) {
            Some(importance) => quantise_by_importance(kind, values, importance),
            None => quantise(kind, values),
        }
    }

    /// Returns the name of the tensor that has the numbers of `name`: its own, or the embedding for a head that shares them.
    fn own_name<'n>(&self, name: &'n str) -> &'n str {
        if name == "lm_head.weight" && !self.has(name) { self.embedding } else { name }
    }

    /// Returns true if there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.weights.shape(name).is_some() || self.is_quantised(name)
    }

    /// Returns true for a matrix that is stored quantised, in MXFP4.
    pub fn is_quantised(&self, name: &str) -> bool {
        self.weights.quantised(name).is_some()
    }

    /// Returns the dtype that most tensors with rows and columns have, which decides the format of a file that is asked for
    /// without one.
    pub fn main_kind(&self) -> Kind {
        let is_matrix = |name: &&str| self.weights.shape(name).is_some_and(|shape| shape.len() > 1);
        let matrices: Vec<&str> = self.weights.names().filter(is_matrix).collect();
        let count = |kind: Kind| matrices.iter().filter(|name| self.weights.kind(name) == Some(kind)).count();
        [Kind::BFloat16, Kind::Half, Kind::Float].into_iter().max_by_key(|kind| count(*kind)).unwrap_or(Kind::Float)
    }

    /// Returns the names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.weights.names()
    }

    /// Returns a tensor in its shape in a directory: in float32 if an adapter changes it, else in its own dtype. Fails if it is
    /// missing, stored quantised, or has values that are not finite.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let tensor = match &self.merge {
            Some(merge) => merge.tensor(name)?,
            None => {
                let missing = || Error::bug(format!("{}: no tensor {name}", self.weights.origin().display()));
                self.weights.get(name).ok_or_else(missing)?
            }
        };
        match tensor.isfinite().logical_not().sum(Kind::Int64).int64_value(&[]) {
            0 => Ok(tensor),
            bad => Err(self.not_finite(name, bad as usize, tensor.numel())),
        }
    }

    /// Returns the error for a tensor with values that are NaN or infinite.
    fn not_finite(&self, name: &str, bad: usize, all: usize) -> Error {
        self.wrong(name, format!("{bad} of {all} values are not finite"))
    }

    /// Returns the error for a tensor that is not what it has to be.
    fn wrong(&self, name: &str, what: String) -> Error {
        Error::user(format!("{}: tensor {name}: {what}", self.weights.origin().display()))
            .hint("do config.json and the weights belong together? ft check and ft generate say more")
    }

    /// Returns the numbers of a tensor in its shape in a directory. Fails if it is missing, has another shape, or has values
    /// that are not finite.
    pub fn values(&self, name: &str, shape: &[u64]) -> Result<Vec<f32>> {
        let name = self.own_name(name);
        let wrong = |what: String| self.wrong(name, what);
        let quantised = self.weights.quantised(name);
        let of_quantised = quantised.map(|matrix| matrix.shape());
        let found = of_quantised.as_ref().map(|shape| &shape[..]).or_else(|| self.weights.shape(name));
        let Some(found) = found else { return Err(wrong("is missing".into())) };
        if !found.iter().map(|n| *n as u64).eq(shape.iter().copied()) {
            return Err(wrong(format!("shape {shape:?} expected, found {found:?}")));
        }
        let tensor = match (&self.merge, quantised) {
            (_, Some(matrix)) => matrix.read(Device::Cpu)?.dense(Kind::Float),
            (Some(merge), _) => merge.tensor(name)?,
            (None, None) => self.weights.get(name).ok_or_else(|| wrong("is missing".into()))?,
        };
        let values = floats(&tensor);
        let bad = values.par_iter().filter(|x| !x.is_finite()).count();
        match bad {
            0 => Ok(values),
            _ => Err(self.not_finite(name, bad, values.len())),
        }
    }

    /// Returns the numbers of part `i` of a tensor in the order of the file.
    pub fn in_order_of_file(&self, shape: &Shape, placed: &PlacedTensor, i: usize) -> Result<Vec<f32>> {
        let mut values = self.values(&placed.hf[i], &placed.shape)?;
        let rows = placed.shape.first().copied().unwrap_or(1) as usize;
        let change = layout_change(placed.layout, shape);
        if let Some(order) = change.file_order(rows) {
            values = select_rows(&values, rows, &order);
        }
        match change {
            LayoutChange::Transpose => values = transpose(&values, rows),
            LayoutChange::HeadKeys(of) => values = transpose_each(&values, of.heads, of.key),
            LayoutChange::Centre => values.par_iter_mut().for_each(|x| *x += 1.0),
            _ => {}
        }
        Ok(values)
    }

    /// Writes a tensor in the format of its entry, one part in memory at a time.
    pub fn write(&self, shape: &Shape, placed: &PlacedTensor, entry: &TensorEntry, out: &mut TensorSink) -> Result<()> {
        for i in 0..placed.hf.len() {
            if let Some(matrix) = self.weights.quantised(&placed.hf[i]) {
                out.put(&blocks(&matrix.read(Device::Cpu)?, placed, shape)?)?;
                continue;
            }
            let values = self.in_order_of_file(shape, placed, i)?;
            let columns = entry.shape.last().copied().unwrap_or(1) as usize;
            let data = self.in_format(entry.kind, &placed.hf[i], &values, columns);
            if entry.kind == GgmlType::F16
                && let Some(x) = values.iter().find(|x| half::f16::from_f32(**x).is_infinite())
            {
                return Err(Error::user(format!("tensor {}: the value {x} does not fit into float16", placed.hf[i]))
                    .hint("choose another format: --type bf16, f32 or q8_0"));
            }
            out.put(&data)?;
        }
        Ok(())
    }
}

/// Returns the bytes of the blocks of a matrix in MXFP4 that are in this tensor of the file.
fn blocks(matrix: &QuantisedWeight, placed: &PlacedTensor, shape: &Shape) -> Result<Vec<u8>> {
    let Some(blocks) = matrix.to_ggml_mxfp4() else {
        return Err(Error::bug(format!("{} is in {}, not in MXFP4", placed.gguf, matrix.describe())));
    };
    let order = layout_change(placed.layout, shape).file_order(matrix.shape()[0] as usize);
    Ok(bytes(&order.map_or(blocks.shallow_clone(), |order| blocks.index_select(0, &Tensor::from_slice(&order)))))
}

/// Returns the numbers of a tensor in float32.
pub fn floats(tensor: &Tensor) -> Vec<f32> {
    let data = bytes(&tensor.to_kind(Kind::Float));
    data.par_chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
