//! Which tensors a model with experts has, what each is made of, and how it is written block by block.

use super::ExpertMerge;
use super::architecture::{MLP, expert_name, router_name, shared_gate_name};
use super::gates::Gates;
use crate::convert::merge::model_input::ModelInput;
use crate::convert::merge::streaming::{read_entries, written_bytes};
use crate::error::{Error, Result};
use crate::merging::models::{Buffer, TensorBlocks};
use crate::merging::prune::fill_with_normal_numbers;
use crate::recipe::merge_file::{ExpertArchitecture, ExpertMergeFile, ExpertSource, MergeFormat};
use std::ops::Range;
use tch::Kind;

/// A tensor of the result.
pub(super) struct ExpertTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// The number format that it is written in.
    pub kind: Kind,
    source: TensorSource,
}

/// What a tensor is made of.
enum TensorSource {
    /// The tensor of this name of a model, with noise of this standard deviation, and times a factor.
    Model { model: usize, name: String, noise: Option<f64>, scale: Option<f64> },
    /// The router of a layer: (experts, D).
    Router(usize),
    /// The gate of the shared expert of a layer: (1, D).
    SharedGate(usize),
}

/// Plans all tensors. Fails if a model lacks one or has it in another shape.
pub(super) fn plan(
    file: &ExpertMergeFile,
    inputs: &[ModelInput],
    architecture: ExpertArchitecture,
) -> Result<Vec<ExpertTensor>> {
    let base = &inputs[0];
    let format = file.format.map(kind_of);
    let mut tensors = Vec::new();
    let names: Vec<&str> = base.weights.names().collect();
    for name in &names {
        if !name.contains(MLP) {
            tensors.push(copied(inputs, 0, name, name.to_string(), format, None)?);
            continue;
        }
        for (place, source) in file.experts.iter().chain(&file.shared).enumerate() {
            let model = inputs.iter().position(|input| input.folder == source.model);
            let model = model.ok_or_else(|| Error::bug("an expert's model is not open"))?;
            let written = expert_name(architecture, name, place, file.experts.len());
            tensors.push(copied(inputs, model, name, written, format, Some(source))?);
        }
    }
    let kind = format.or(base.weights.kind(base.config.family().embedding)).unwrap_or(Kind::Float);
    let width = base.config.hidden_size;
    for layer in 0..base.config.num_hidden_layers as usize {
        let name = router_name(architecture, layer);
        let shape = vec![file.experts.len() as i64, width];
        tensors.push(ExpertTensor { name, shape, kind, source: TensorSource::Router(layer) });
        if file.shared.is_some() {
            let source = TensorSource::SharedGate(layer);
            tensors.push(ExpertTensor { name: shared_gate_name(layer), shape: vec![1, width], kind, source });
        }
    }
    Ok(tensors)
}

fn kind_of(format: MergeFormat) -> Kind {
    match format {
        MergeFormat::F32 => Kind::Float,
        MergeFormat::Bf16 => Kind::BFloat16,
        MergeFormat::F16 => Kind::Half,
    }
}

/// Plans the copy of a tensor of a model. `expert`: the expert that it becomes part of.
fn copied(
    inputs: &[ModelInput],
    model: usize,
    name: &str,
    written: String,
    format: Option<Kind>,
    expert: Option<&ExpertSource>,
) -> Result<ExpertTensor> {
    let (base, input) = (&inputs[0], &inputs[model]);
    let Some(shape) = input.weights.shape(name) else {
        return Err(Error::user(format!(
            "{} has a tensor `{name}`, {} has none; its nearest names: {}",
            base.folder.display(),
            input.folder.display(),
            input.nearest_names(name)
        ))
        .hint("experts are made of models that were trained from the same base"));
    };
    if base.weights.shape(name) != Some(shape) {
        return Err(Error::user(format!(
            "`{name}`: {:?} in {}, {shape:?} in {}",
            base.weights.shape(name).unwrap_or_default(),
            base.folder.display(),
            input.folder.display()
        ))
        .hint("models of unlike sizes cannot become experts of one model"));
    }
    let kind = format.or(input.weights.kind(name)).unwrap_or(Kind::Float);
    let noise = expert.and_then(|expert| expert.noise);
    let scale = expert.and_then(|expert| expert.residual_scale).filter(|_| name.contains("down_proj"));
    let source = TensorSource::Model { model, name: name.into(), noise, scale };
    Ok(ExpertTensor { name: written, shape: shape.to_vec(), kind, source })
}

impl ExpertTensor {
    /// Gives the bytes of the tensor to `take`, in order. Fails for values that are not finite.
    pub fn write(&self, merge: &ExpertMerge, gates: &Gates, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (model, name, noise, scale) = match &self.source {
            TensorSource::Router(layer) => return self.put(&mut gates.router(*layer), take),
            TensorSource::SharedGate(layer) => return self.put(&mut gates.shared(*layer), take),
            TensorSource::Model { model, name, noise, scale } => (*model, name, *noise, *scale),
        };
        let input = &merge.inputs[model];
        let reader = input.weights.entry_reader(name).ok_or_else(|| Error::bug(format!("no tensor `{name}`")))?;
        let path = input.weights.file_of(name).unwrap_or(&input.folder).display().to_string();
        let blocks = TensorBlocks::of(&self.shape);
        let threads = tch::get_num_threads().max(1) as usize;
        let (seed, stream, kind) = (merge.seed, format!("noise {}", self.name), self.kind);
        let make = |(): &mut (), rows: &Range<i64>| {
            let first = (rows.start * blocks.columns) as usize;
            let mut numbers = Buffer::of(blocks.length(rows));
            read_entries(&reader, first, &mut numbers)?;
            if let Some(deviation) = noise {
                let mut more = vec![0.0; numbers.len()];
                fill_with_normal_numbers(&mut more, first, seed, &stream);
                numbers.iter_mut().zip(more).for_each(|(number, more)| *number += (deviation * more) as f32);
            }
            if let Some(scale) = scale {
                numbers.iter_mut().for_each(|number| *number *= scale as f32);
            }
            written_bytes(&mut numbers, kind).ok_or_else(|| {
                Error::user(format!("{path}: `{name}` has NaN or infinite values, or numbers too large for {kind:?}"))
                    .hint("the model is damaged, or its training diverged; `dtype: float32` has the widest range")
            })
        };
        let put = |halves: Vec<u16>| take(bytemuck::cast_slice(&halves));
        blocks.each(threads, || (), make, put).map(|_| ())
    }

    /// Gives numbers in memory to `take`.
    fn put(&self, numbers: &mut [f32], mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let halves = written_bytes(numbers, self.kind).ok_or_else(|| {
            Error::user(format!("`{}` has NaN or infinite values", self.name))
                .hint("the base's hidden states are not finite: check the model with ft eval")
        })?;
        take(bytemuck::cast_slice(&halves))
    }
}
