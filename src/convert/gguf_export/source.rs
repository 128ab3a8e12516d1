//! The weights that are written: a model's own, or with adapters merged into them, some rows of one tensor at a time.

use super::calibration::ImportanceMatrix;
use crate::adapters::merging::{MergedWeights, WeightedAdapter};
use crate::convert::gguf_import::{transpose, transpose_each};
use crate::error::{Error, Result};
use crate::gguf::quant::GgmlType;
use crate::gguf::quantise::{quantise, quantise_by_importance};
use crate::gguf::shape::{PlacedTensor, Shape};
use crate::gguf::tensor_map::{LayoutChange, layout_change};
use crate::gguf::writer::{TensorEntry, TensorSink};
use crate::nn::weights::bytes;
use crate::nn::{QuantisedWeight, Weights};
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;
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

    /// Returns the file or folder of the model, for messages.
    pub fn origin(&self) -> &Path {
        self.weights.origin()
    }

    /// Returns the names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.weights.names()
    }

    /// Returns a whole tensor in its shape in a directory: in float32 if an adapter changes it, else in its own dtype. Fails if it is
    /// missing, stored quantised, or has values that are not finite.
    pub fn whole(&self, name: &str) -> Result<Tensor> {
        let tensor = match &self.merge {
            Some(merge) => merge.tensor(name)?,
            None => {
                let missing = || Error::bug(format!("{}: no tensor {name}", self.weights.origin().display()));
                self.weights.get(name).ok_or_else(missing)?
            }
        };
        match tensor.isfinite().logical_not().sum(Kind::Int64).int64_value(&[]) {
            0 => Ok(tensor),
            bad => Err(wrong(&self.place(name), format!("{bad} of {} values are not finite", tensor.numel()))),
        }
    }

    /// Returns where a tensor is, for messages.
    fn place(&self, name: &str) -> String {
        format!("{}: tensor {name}", self.weights.origin().display())
    }

    /// Returns the numbers of a tensor in its shape in a directory. Fails if it is missing, has another shape, or has values
    /// that are not finite.
    pub fn values(&self, name: &str, shape: &[u64]) -> Result<Vec<f32>> {
        self.tensor(name, shape)?.all()
    }

    /// Opens a tensor, of which some rows are read at a time. Fails if it is missing or has another shape.
    pub fn tensor(&self, name: &str, shape: &[u64]) -> Result<SourceTensor> {
        let name = self.own_name(name);
        let wrong = |what: String| wrong(&self.place(name), what);
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
        Ok(SourceTensor { place: self.place(name), tensor })
    }

    /// Lets go of the memory that a tensor took when it was read.
    pub fn release(&self, name: &str) {
        self.weights.release(self.own_name(name));
    }

    /// Writes a tensor in the format of its entry, some rows in memory at a time.
    pub fn write(&self, shape: &Shape, placed: &PlacedTensor, entry: &TensorEntry, out: &mut TensorSink) -> Result<()> {
        let change = layout_change(placed.layout, shape);
        let columns = entry.shape.last().copied().unwrap_or(1) as usize;
        for name in &placed.hf {
            if let Some(matrix) = self.weights.quantised(name) {
                out.put(&blocks(&matrix.read(Device::Cpu)?, placed, shape)?)?;
                continue;
            }
            self.tensor(name, &placed.shape)?.in_order_of_file(change, |values| {
                if entry.kind == GgmlType::F16
                    && let Some(x) = values.iter().find(|x| half::f16::from_f32(**x).is_infinite())
                {
                    return Err(Error::user(format!("tensor {name}: the value {x} does not fit into float16"))
                        .hint("choose another format: --type bf16, f32 or q8_0"));
                }
                out.put(&self.in_format(entry.kind, name, &values, columns))
            })?;
            self.release(name);
        }
        Ok(())
    }
}

/// A tensor of the model. Only the rows that are asked for are in memory, unless an adapter is merged into it.
pub struct SourceTensor {
    /// Where it is, for messages.
    place: String,
    tensor: Tensor,
}

/// Numbers of a tensor that are in memory at a time.
const PART: usize = 1 << 20;

impl SourceTensor {
    /// Returns all numbers. Fails if some are not finite.
    pub fn all(&self) -> Result<Vec<f32>> {
        self.finite(&self.tensor)
    }

    /// Returns a part of the `count` rows that the tensor is taken to have. Fails if some numbers are not finite.
    pub fn rows(&self, count: usize, part: Range<usize>) -> Result<Vec<f32>> {
        self.finite(&self.of_rows(count).narrow(0, part.start as i64, part.len() as i64))
    }

    /// Returns these rows of the `count` that the tensor is taken to have, in this order. Fails if some numbers are not finite.
    pub fn select(&self, count: usize, rows: &[i64]) -> Result<Vec<f32>> {
        self.finite(&self.of_rows(count).index_select(0, &Tensor::from_slice(rows)))
    }

    fn of_rows(&self, count: usize) -> Tensor {
        self.tensor.reshape([count as i64, -1])
    }

    fn finite(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let values = floats(tensor);
        let count = |chunk: &[f32]| chunk.iter().filter(|x| !x.is_finite()).count();
        match values.par_chunks(1 << 14).map(count).sum() {
            0usize => Ok(values),
            bad => Err(wrong(&self.place, format!("{bad} values are not finite"))),
        }
    }

    /// Gives the numbers to `take` in the order of the file, some rows at a time.
    fn in_order_of_file(&self, change: LayoutChange, mut take: impl FnMut(Vec<f32>) -> Result<()>) -> Result<()> {
        let rows = self.tensor.size().first().map_or(1, |rows| *rows as usize);
        match change {
            LayoutChange::Transpose => return take(transpose(&self.all()?, rows)),
            LayoutChange::HeadKeys(of) => {
                let order = change.file_order(rows).unwrap_or_default();
                return take(transpose_each(&self.select(rows, &order)?, of.heads, of.key));
            }
            _ => {}
        }
        let order = change.file_order(rows);
        let in_file = order.as_ref().map_or(rows, Vec::len);
        for part in parts(in_file, self.tensor.numel() / rows.max(1)) {
            let mut values = match &order {
                Some(order) => self.select(rows, &order[part])?,
                None => self.rows(rows, part)?,
            };
            if change == LayoutChange::Centre {
                values.par_iter_mut().for_each(|x| *x += 1.0);
            }
            take(values)?;
        }
        Ok(())
    }
}

/// Divides rows of `width` numbers into parts of which one is in memory at a time.
pub fn parts(rows: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    let most = (PART / width.max(1)).max(1);
    (0..rows).step_by(most).map(move |from| from..rows.min(from + most))
}

fn wrong(place: &str, what: String) -> Error {
    Error::user(format!("{place}: {what}"))
        .hint("do config.json and the weights belong together? ft check and ft generate say more")
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
    let tensor = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).reshape([-1]);
    Vec::try_from(&tensor).expect("numbers in float32")
}
