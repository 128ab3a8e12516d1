//! One tensor of a merged model: reads its parts block by block, merges them, and compares what is merged.

use super::ModelMerge;
use super::reading::{PartRows, reader};
use super::tensors::OutputTensor;
use crate::adapters::merging::reduce::WeightReport;
use crate::convert::merge::streaming::written_bytes;
use crate::error::{Error, Result};
use crate::merging::BlockComparison;
use crate::merging::models::{BasePolicy, Buffer, MergedBlocks, TensorBlocks, TensorParts, prepare, slices};
use crate::merging::prune::fill_with_random_numbers;
use crate::native::merging::best;
use std::ops::Range;

/// A tensor that is merged.
pub(super) struct MergedTensor<'a> {
    merge: &'a ModelMerge,
    tensor: &'a OutputTensor,
    blocks: TensorBlocks,
    /// The model of each part.
    models: Vec<usize>,
    /// The rows of each part.
    rows: Vec<PartRows<'a>>,
}

impl<'a> MergedTensor<'a> {
    /// Prepares to read a tensor of the merge.
    pub fn new(merge: &'a ModelMerge, tensor: &'a OutputTensor) -> Result<Self> {
        let sources = &merge.file.slices[tensor.slice].sources;
        let models: Vec<usize> = sources.iter().map(|source| source.model).collect();
        let rows = match merge.vocabulary.as_ref().filter(|_| tensor.of_tokens) {
            Some(vocabulary) => {
                let aligned = vocabulary.rows_of(merge, tensor, &models)?;
                aligned.into_iter().map(PartRows::Aligned).collect()
            }
            None => {
                let plain = |(model, name): (&usize, &String)| Ok(PartRows::Plain(reader(merge, *model, name)?));
                models.iter().zip(&tensor.inputs).map(plain).collect::<Result<Vec<_>>>()?
            }
        };
        Ok(Self { merge, tensor, blocks: TensorBlocks::of(&tensor.shape), models, rows })
    }

    /// Merges the tensor on libtorch's number of threads and gives its blocks to `take`, in order, as the bytes that are written.
    /// Returns how far the models agree; `None` if there is nothing to compare.
    pub fn compute(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<Option<WeightReport>> {
        let (file, tensor) = (&self.merge.file, self.tensor);
        let base = file.slices[tensor.slice].base.filter(|_| file.method.base() != BasePolicy::Ignored);
        let shared = SharedParts { tensor, models: &self.models, rows: &self.rows, blocks: self.blocks };
        let (method, seed) = (file.method.name(), self.merge.seed);
        let draw = |part: usize, rows: Range<i64>, numbers: &mut [f64]| {
            let stream = format!("{method} {} {}", shared.models[part], tensor.name);
            fill_with_random_numbers(numbers, (rows.start * shared.blocks.columns) as usize, seed, &stream);
        };
        let paths: Vec<String> = (0..self.models.len()).map(|part| self.path(part)).collect();
        let read = |part: usize, rows: Range<i64>, numbers: &mut [f32]| shared.read(part, rows, numbers, &paths);
        let position = |model: usize| self.models.iter().position(|other| *other == model);
        let parts = TensorParts {
            name: &tensor.name,
            blocks: self.blocks,
            base: base.and_then(position),
            count: self.models.len(),
            draw: &draw,
            read: &read,
            threads: tch::get_num_threads().max(1) as usize,
        };
        let merged = prepare(file.method, &parts, &tensor.values)?;
        let reference = position(self.merge.reference()).filter(|_| self.models.len() > 1);
        let compared: Vec<Option<usize>> = self.merge.compared().into_iter().map(position).collect();
        let compute = |(): &mut (), rows: &Range<i64>| {
            let block = parts.read_all(rows)?;
            let block = slices(&block);
            merge_block(&*merged, rows, &block, tensor, reference.map(|reference| (reference, &compared[..])))
        };
        let mut comparison = BlockComparison::new(compared.len());
        self.blocks.each(
            parts.threads,
            || (),
            compute,
            |(written, compared)| {
                comparison.add(&compared);
                take(bytemuck::cast_slice(&written))
            },
        )?;
        Ok(reference.map(|_| WeightReport {
            name: tensor.name.clone(),
            weights: Vec::new(),
            comparison: comparison.finish(),
            rank: None,
            energy_kept: 1.0,
        }))
    }

    /// Returns the file that has the tensor of a part, for messages.
    fn path(&self, part: usize) -> String {
        let (input, name) = (&self.merge.inputs[self.models[part]], &self.tensor.inputs[part]);
        input.weights.file_of(name).unwrap_or(&input.folder).display().to_string()
    }
}

/// Merges a block of the parts. Returns its bytes, two by two, and, with a `reference` and the parts that are compared with it, how far they
/// agree. A part that is `None` does not change the tensor.
fn merge_block(
    merged: &dyn MergedBlocks,
    rows: &Range<i64>,
    block: &[&[f32]],
    tensor: &OutputTensor,
    reference: Option<(usize, &[Option<usize>])>,
) -> Result<(Vec<u16>, BlockComparison)> {
    let mut result = Buffer::of(block[0].len());
    merged.block(rows, block, &mut result);
    let comparison = match reference {
        None => BlockComparison::new(0),
        Some((reference, compared)) => {
            let change = |numbers: &[f32]| Buffer::change(numbers, block[reference]);
            let changes: Vec<Buffer> = compared.iter().map(|part| change(block[part.unwrap_or(reference)])).collect();
            BlockComparison::of_block(&slices(&changes), &change(&result))
        }
    };
    let Some(bytes) = written_bytes(&mut result, tensor.kind) else {
        return Err(Error::user(format!("`{}` has NaN or infinite values after merging", tensor.name)).hint(
            "a weight is far too large, or the number format too narrow: `out_dtype: float32` has the widest range",
        ));
    };
    Ok((bytes, comparison))
}

/// What of a tensor several threads use.
struct SharedParts<'s> {
    tensor: &'s OutputTensor,
    models: &'s [usize],
    rows: &'s [PartRows<'s>],
    blocks: TensorBlocks,
}

impl SharedParts<'_> {
    /// Reads rows of a part in float32. Fails for values that are not finite; `paths` has the file of each part.
    fn read(&self, part: usize, rows: Range<i64>, numbers: &mut [f32], paths: &[String]) -> Result<()> {
        let columns = self.blocks.columns;
        self.rows[part].read(rows.clone(), columns, numbers)?;
        if best().finite(numbers) {
            return Ok(());
        }
        let place = numbers.iter().position(|number| !number.is_finite()).unwrap_or_default() as i64;
        let (path, name, row) = (&paths[part], &self.tensor.inputs[part], rows.start + place / columns.max(1));
        Err(Error::user(format!("{path}: `{name}` has NaN or infinite values, first in row {row}"))
            .hint("the model is damaged, or its training diverged: use an earlier checkpoint, or leave it out"))
    }
}
