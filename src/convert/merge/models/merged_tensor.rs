//! One tensor of a merged model: reads its parts block by block, merges them, and compares what is merged.

use super::ModelMerge;
use super::tensors::OutputTensor;
use super::vocabulary::TokenRows;
use crate::adapters::merging::reduce::WeightReport;
use crate::error::{Error, Result};
use crate::merging::BlockComparison;
use crate::merging::models::{BasePolicy, TensorBlocks, TensorParts, prepare, seeded_numbers};
use crate::nn::weight::cast;
use std::ops::Range;
use tch::{Kind, Tensor};

/// A tensor that is merged.
pub(super) struct MergedTensor<'a> {
    merge: &'a ModelMerge,
    tensor: &'a OutputTensor,
    blocks: TensorBlocks,
    /// The model of each part.
    models: Vec<usize>,
    /// How the rows of each part are read, if they are those of tokens that have to be aligned.
    rows: Vec<Option<TokenRows<'a>>>,
}

impl<'a> MergedTensor<'a> {
    /// Prepares to read a tensor of the merge.
    pub fn new(merge: &'a ModelMerge, tensor: &'a OutputTensor) -> Result<Self> {
        let sources = &merge.file.slices[tensor.slice].sources;
        let models: Vec<usize> = sources.iter().map(|source| source.model).collect();
        let rows = match merge.vocabulary.as_ref().filter(|_| tensor.of_tokens) {
            Some(vocabulary) => vocabulary.rows_of(merge, tensor, &models)?,
            None => models.iter().map(|_| None).collect(),
        };
        Ok(Self { merge, tensor, blocks: TensorBlocks::of(&tensor.shape), models, rows })
    }

    /// Merges the tensor and gives its blocks to `take`, in order and in the format that is written. Returns how far the models
    /// agree; `None` if there is nothing to compare.
    pub fn compute(&self, mut take: impl FnMut(&Tensor) -> Result<()>) -> Result<Option<WeightReport>> {
        let _no_grad = tch::no_grad_guard();
        let (file, tensor) = (&self.merge.file, self.tensor);
        let base = file.slices[tensor.slice].base.filter(|_| file.method.base() != BasePolicy::Ignored);
        let read = |part: usize, rows: Range<i64>| self.read(part, rows);
        let draw = |part: usize, rows: Range<i64>| {
            let stream = format!("{} {} {}", file.method.name(), self.models[part], tensor.name);
            seeded_numbers(self.merge.seed, &stream, self.blocks.columns, rows)
        };
        let parts = TensorParts {
            name: &tensor.name,
            blocks: self.blocks,
            base: base.and_then(|base| self.models.iter().position(|model| *model == base)),
            count: self.models.len(),
            draw: &draw,
            read: &read,
        };
        let merged = prepare(file.method, &parts, &tensor.values)?;
        let reference = self.models.iter().position(|model| *model == self.merge.reference());
        let compared = self.merge.compared();
        let reference = reference.filter(|_| self.models.len() > 1);
        let mut comparison = BlockComparison::new(compared.len());
        for rows in self.blocks.blocks() {
            let block = parts.read_all(&rows)?;
            for (part, values) in block.iter().enumerate().filter(|(_, values)| !is_finite(values)) {
                return Err(self.not_finite(part, &rows, values));
            }
            let result = merged.block(&rows, &block);
            let written = cast(&result, tensor.kind);
            if !is_finite(&written) {
                return Err(Error::user(format!("`{}` has NaN or infinite values after merging", tensor.name)).hint(
                    "a weight is far too large, or the number format too narrow: `out_dtype: float32` has the widest range",
                ));
            }
            if let Some(reference) = reference {
                let change = |model: &usize| match self.models.iter().position(|other| other == model) {
                    Some(part) => &block[part] - &block[reference],
                    None => result.zeros_like(),
                };
                comparison.add(&compared.iter().map(change).collect::<Vec<_>>(), &(&result - &block[reference]));
            }
            take(&written)?;
        }
        Ok(reference.map(|_| WeightReport {
            name: tensor.name.clone(),
            weights: Vec::new(),
            comparison: comparison.finish(),
            rank: None,
            energy_kept: 1.0,
        }))
    }

    /// Reads rows of a part in float32.
    fn read(&self, part: usize, rows: Range<i64>) -> Result<Tensor> {
        match &self.rows[part] {
            Some(of_tokens) => of_tokens.read(rows, self.blocks.columns),
            None => read_rows(self.merge, self.models[part], &self.tensor.inputs[part], rows, self.blocks.columns),
        }
    }

    /// Returns the error for a part that has values which are not finite in these rows.
    fn not_finite(&self, part: usize, rows: &Range<i64>, values: &Tensor) -> Error {
        let (input, name) = (&self.merge.inputs[self.models[part]], &self.tensor.inputs[part]);
        let file = input.weights.file_of(name).unwrap_or(&input.folder);
        let finite = values.isfinite().all_dim(1, false).to_kind(Kind::Int64);
        let row = rows.start + finite.argmin(0, false).int64_value(&[]);
        Error::user(format!("{}: `{name}` has NaN or infinite values, first in row {row}", file.display()))
            .hint("the model is damaged, or its training diverged: use an earlier checkpoint, or leave it out")
    }
}

/// Reads rows of a tensor of a model in float32: (rows, columns).
pub(super) fn read_rows(
    merge: &ModelMerge,
    model: usize,
    name: &str,
    rows: Range<i64>,
    columns: i64,
) -> Result<Tensor> {
    let entries = (rows.start * columns) as usize..(rows.end * columns) as usize;
    let read = merge.inputs[model].weights.read_entries(name, entries);
    let values = read.ok_or_else(|| Error::bug(format!("merge: no tensor `{name}`")))??;
    Ok(values.to_kind(Kind::Float).view([rows.end - rows.start, columns]))
}

/// Returns true if every entry is a finite number.
fn is_finite(values: &Tensor) -> bool {
    values.isfinite().all().int64_value(&[]) == 1
}
