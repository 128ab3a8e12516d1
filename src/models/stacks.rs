//! Weights of all experts of a layer in one tensor, as gpt-oss's files have them.
//!
//! In memory, in adapters and in messages each expert's weights are parameters of their own ([`crate::nn::experts`]):
//! `experts.7.down_proj.weight` (out, in) and `experts.7.down_proj.bias` (out). The files have stacks of them:
//! `experts.down_proj` (E, in, out) and `experts.down_proj_bias` (E, out). [`split`] makes parameters of the stacks of a
//! checkpoint, without copying a number; [`file_tensors`] says which stacks a model is written to.

use super::family::Config;
use crate::error::Result;
use crate::nn::Weights;
use tch::Tensor;

/// The part of a name before which there is the layer, and after it the stack or the expert.
const EXPERTS: &str = ".experts.";
/// What the name of a stack of biases ends with.
const BIAS: &str = "_bias";

/// Replaces the stacks of a checkpoint by the parameters of each expert. Changes nothing for families without stacks. Fails for
/// stacks of another number of experts than config.json says.
pub fn split(weights: &mut Weights, config: &Config) -> Result<()> {
    let Some(experts) = config.stacked_experts() else { return Ok(()) };
    let stacks: Vec<String> = weights.names().filter(|name| is_stack(name)).map(String::from).collect();
    for name in stacks {
        let (module, layer) = name.split_once(EXPERTS).expect("a stack is one of experts");
        match layer.strip_suffix(BIAS) {
            Some(layer) => {
                weights.split(&name, (2, experts), false, |e| format!("{module}{EXPERTS}{e}.{layer}.bias"))?
            }
            None => weights.split(&name, (3, experts), true, |e| format!("{module}{EXPERTS}{e}.{layer}.weight"))?,
        }
    }
    Ok(())
}

/// Fails for a model whose files have stacks; `what` cannot be done with it.
pub fn refuse_stacks(config: &Config, what: &str) -> Result<()> {
    match config.stacked_experts() {
        None => Ok(()),
        Some(_) => Err(config
            .refuse(format!(
                "{what} a {} model, whose files have the weights of all experts of a layer in one tensor",
                config.model_type
            ))
            .hint("train an adapter of it; ft merge merges adapters into it")),
    }
}

/// Returns true for the name of a stack, after whose `experts` there is no number.
fn is_stack(name: &str) -> bool {
    name.split_once(EXPERTS).is_some_and(|(_, layer)| !layer.contains('.'))
}

/// A tensor of a model's files.
#[derive(Debug, Clone, PartialEq)]
pub struct FileTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// The parameters that it consists of, by name: one, or that of each expert.
    pub parts: Vec<String>,
    form: Form,
}

/// How a tensor consists of its parts.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// It is the only part.
    Plain,
    /// They follow each other; matrices are transposed.
    Stack,
}

impl FileTensor {
    /// Returns the tensor's values; `part` returns those of a parameter.
    pub fn values(&self, part: impl Fn(&str) -> Result<Tensor>) -> Result<Tensor> {
        let parts = self.parts.iter().map(|name| part(name)).collect::<Result<Vec<_>>>()?;
        Ok(match self.form {
            Form::Plain => parts[0].shallow_clone(),
            Form::Stack => Tensor::stack(&parts, 0).transpose(1, -1),
        })
    }
}

/// Returns the tensors that the files of a model have, given name and shape of its `parameters`.
pub fn file_tensors<'n>(config: &Config, parameters: impl Iterator<Item = (&'n str, Vec<i64>)>) -> Vec<FileTensor> {
    let experts = config.stacked_experts();
    let mut found: Vec<FileTensor> = Vec::new();
    for (name, mut shape) in parameters {
        let Some((stack, experts)) = stack_of(name).zip(experts) else {
            found.push(FileTensor { name: name.into(), shape, parts: vec![name.into()], form: Form::Plain });
            continue;
        };
        if found.iter().any(|t| t.name == stack) {
            continue;
        }
        shape.reverse();
        shape.insert(0, experts);
        let (module, layer) = name.split_once(EXPERTS).expect("a stack is one of experts");
        let layer = layer.split_once('.').map_or(layer, |(_, layer)| layer);
        let parts = (0..experts).map(|e| format!("{module}{EXPERTS}{e}.{layer}")).collect();
        found.push(FileTensor { name: stack, shape, parts, form: Form::Stack });
    }
    found
}

/// Returns the stack that a parameter of an expert belongs to; `None` for other parameters.
fn stack_of(name: &str) -> Option<String> {
    let (module, rest) = name.split_once(EXPERTS)?;
    let (expert, layer) = rest.split_once('.')?;
    expert.parse::<usize>().ok()?;
    let stack = match layer.strip_suffix(".bias") {
        Some(layer) => format!("{layer}{BIAS}"),
        None => layer.strip_suffix(".weight")?.to_string(),
    };
    Some(format!("{module}{EXPERTS}{stack}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_experts_belong_to_stacks() {
        let of = |name: &str| stack_of(name).unwrap_or_default();
        assert_eq!(of("model.layers.1.mlp.experts.12.down_proj.weight"), "model.layers.1.mlp.experts.down_proj");
        assert_eq!(of("model.layers.1.mlp.experts.0.down_proj.bias"), "model.layers.1.mlp.experts.down_proj_bias");
        assert_eq!(of("model.layers.1.mlp.router.weight"), "");
        assert!(is_stack("model.layers.1.mlp.experts.gate_up_proj_bias"));
        assert!(!is_stack("model.layers.1.mlp.experts.3.down_proj.bias") && !is_stack("model.norm.weight"));
    }
}
