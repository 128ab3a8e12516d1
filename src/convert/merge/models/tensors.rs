//! Plans which tensors a merged model has, and what each of them is merged from.

use super::vocabulary::Vocabulary;
use crate::convert::merge::model_input::ModelInput;
use crate::error::{Error, Result};
use crate::merging::models::ParameterValues;
use crate::models::{layer_number, with_layer_number};
use crate::nn::Weights;
use crate::recipe::merge_file::{ModelMergeFile, OutputSlice, SliceSource};
use std::collections::BTreeSet;
use tch::Kind;

/// Name of the output head's weight, in every family.
const HEAD: &str = "lm_head.weight";

/// A tensor of a merged model.
pub(super) struct OutputTensor {
    /// Its name.
    pub name: String,
    /// The slice that it belongs to.
    pub slice: usize,
    /// Its name in each source of the slice.
    pub inputs: Vec<String>,
    /// Its shape.
    pub shape: Vec<i64>,
    /// The number format that it is written in.
    pub kind: Kind,
    /// The parameters of its merge.
    pub values: ParameterValues,
    /// Whether its rows are those of tokens.
    pub of_tokens: bool,
}

impl OutputTensor {
    /// Returns the parameter of a model in its merge; `None` if the model is not merged into it or has none.
    pub fn parameter(&self, file: &ModelMergeFile, model: usize, name: &str) -> Option<f64> {
        let source = file.slices[self.slice].sources.iter().position(|source| source.model == model)?;
        self.values.of(source, name)
    }
}

/// Plans all tensors: those before the layers, the layers in order, then those after them. Fails if models of a slice do not have
/// the same tensors, and for a tensor that has no parameters.
pub(super) fn plan(
    file: &ModelMergeFile,
    inputs: &[ModelInput],
    vocabulary: Option<&Vocabulary>,
) -> Result<Vec<OutputTensor>> {
    let planner = TensorPlanner { file, inputs, vocabulary };
    let mut tensors = Vec::new();
    planner.outside(0, true, &mut tensors)?;
    let mut layer = 0;
    for slice in 0..file.slices.len() {
        planner.layers(slice, &mut layer, &mut tensors)?;
    }
    planner.outside(file.slices.len() - 1, false, &mut tensors)?;
    Ok(tensors)
}

/// Returns the layers of a source: the first, and the one after the last.
pub(super) fn layer_range(source: &SliceSource, inputs: &[ModelInput]) -> (usize, usize) {
    source.layers.unwrap_or((0, inputs[source.model].config.num_hidden_layers as usize))
}

struct TensorPlanner<'a> {
    file: &'a ModelMergeFile,
    inputs: &'a [ModelInput],
    vocabulary: Option<&'a Vocabulary>,
}

impl TensorPlanner<'_> {
    fn input(&self, source: &SliceSource) -> &ModelInput {
        &self.inputs[source.model]
    }

    /// Plans the tensors before (`first`) or after the layers, which are merged by the parameters of the first layer of a slice.
    fn outside(&self, slice: usize, first: bool, tensors: &mut Vec<OutputTensor>) -> Result<()> {
        let sources = &self.file.slices[slice].sources;
        let wanted = |name: &&str| layer_number(name).is_none() && self.is_first(name) == first;
        let names: Vec<BTreeSet<&str>> =
            sources.iter().map(|s| self.input(s).weights.names().filter(wanted).collect()).collect();
        self.require_same(sources, &names, |name, _| name.to_string())?;
        for name in &names[0] {
            tensors.push(self.tensor(slice, name.to_string(), vec![name.to_string(); sources.len()], 0.0)?);
        }
        Ok(())
    }

    /// Returns true for a tensor that is used before the layers: those of embeddings.
    fn is_first(&self, name: &str) -> bool {
        name == self.inputs[0].config.family().embedding || name.contains(".wpe.") || name.contains("embed_positions")
    }

    /// Plans the layers of a slice; `layer`: the number of the next layer of the result.
    fn layers(&self, slice: usize, layer: &mut usize, tensors: &mut Vec<OutputTensor>) -> Result<()> {
        let sources = &self.file.slices[slice].sources;
        let ranges: Vec<(usize, usize)> = sources.iter().map(|s| layer_range(s, self.inputs)).collect();
        let count = ranges[0].1 - ranges[0].0;
        for (source, (from, to)) in sources.iter().zip(&ranges) {
            let input = self.input(source);
            let (folder, layers) = (input.folder.display(), input.config.num_hidden_layers as usize);
            if *to > layers {
                return Err(Error::user(format!(
                    "{folder}: layers {from} to {} of a slice; the model has {layers}",
                    to - 1
                ))
                .hint(format!("`layer_range` ends at most at {layers}")));
            }
            if to - from != count {
                let first = self.input(&sources[0]);
                return Err(Error::user(format!(
                    "{folder} has {} layers, {} has {count}",
                    to - from,
                    first.folder.display()
                ))
                .hint("choose layers with `slices`"));
            }
        }
        for offset in 0..count {
            let numbers: Vec<usize> = ranges.iter().map(|(from, _)| from + offset).collect();
            let names: Vec<BTreeSet<String>> = sources
                .iter()
                .zip(&numbers)
                .map(|(source, number)| {
                    let of_layer = self.input(source).weights.names().filter(|n| layer_number(n) == Some(*number));
                    of_layer.map(|n| with_layer_number(n, *layer)).collect()
                })
                .collect();
            let borrowed: Vec<BTreeSet<&str>> =
                names.iter().map(|set| set.iter().map(String::as_str).collect()).collect();
            self.require_same(sources, &borrowed, |name, source| with_layer_number(name, numbers[source]))?;
            // A slice of one layer has the parameters of the last, as in mergekit.
            let depth = if count > 1 { offset as f64 / (count - 1) as f64 } else { 1.0 };
            for name in &names[0] {
                let of_sources = numbers.iter().map(|number| with_layer_number(name, *number)).collect();
                tensors.push(self.tensor(slice, name.clone(), of_sources, depth)?);
            }
            *layer += 1;
        }
        Ok(())
    }

    /// Fails if sources do not have the same names of tensors. `own`: the name that a tensor has in the source at this position.
    fn require_same(
        &self,
        sources: &[SliceSource],
        names: &[BTreeSet<&str>],
        own: impl Fn(&str, usize) -> String,
    ) -> Result<()> {
        for (i, one) in names.iter().enumerate() {
            for (j, two) in names.iter().enumerate() {
                let Some(name) = one.difference(two).next() else { continue };
                let (has, lacks) = (self.input(&sources[i]), self.input(&sources[j]));
                let missing = own(name, j);
                return Err(Error::user(format!(
                    "{} has a tensor `{}`, {} has no `{missing}`; its nearest names: {}",
                    has.folder.display(),
                    own(name, i),
                    lacks.folder.display(),
                    lacks.nearest_names(&missing)
                ))
                .hint("merge models that were trained from the same base"));
            }
        }
        Ok(())
    }

    fn tensor(&self, slice: usize, name: String, inputs: Vec<String>, depth: f64) -> Result<OutputTensor> {
        let of: &OutputSlice = &self.file.slices[slice];
        let weights = |i: usize| -> &Weights { &self.input(&of.sources[i]).weights };
        let shapes: Vec<&[i64]> = (0..inputs.len()).map(|i| weights(i).shape(&inputs[i]).unwrap_or_default()).collect();
        let of_tokens = name == self.inputs[0].config.family().embedding || name == HEAD;
        let aligned = self.vocabulary.filter(|_| of_tokens);
        let compared = |shape: &[i64]| if aligned.is_some() { shape[1..].to_vec() } else { shape.to_vec() };
        if let Some(i) = (1..inputs.len()).find(|i| compared(shapes[*i]) != compared(shapes[0])) {
            let describe = |i: usize| format!("{:?} in {}", shapes[i], self.input(&of.sources[i]).folder.display());
            let hint = match of_tokens && shapes[i][1..] == shapes[0][1..] {
                true => "the vocabularies differ: `tokenizer_source: base` or `union` aligns them by their tokens",
                false => "models of unlike sizes cannot be merged",
            };
            return Err(Error::user(format!("`{name}`: {}, {}", describe(0), describe(i))).hint(hint));
        }
        let mut shape = shapes[0].to_vec();
        if let Some(vocabulary) = aligned {
            shape[0] = vocabulary.rows as i64;
        }
        let kinds: Vec<Kind> = (0..inputs.len()).map(|i| weights(i).kind(&inputs[i]).unwrap_or(Kind::Float)).collect();
        let same = kinds.iter().all(|kind| *kind == kinds[0]);
        let format = self.file.format.map(super::kind_of);
        let kind = format.unwrap_or(if same { kinds[0] } else { Kind::Float });
        let values = self.file.values(of, &name, &inputs, depth).map_err(|why| {
            Error::user(why).hint("a case without `filter`, last in the list, holds for all other tensors")
        })?;
        Ok(OutputTensor { name, slice, inputs, shape, kind, values, of_tokens })
    }
}
