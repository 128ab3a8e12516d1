//! LoRA on the weights of all experts of a layer, as PEFT writes it for transformers 5 (`target_parameters`), read as LoRA
//! on each expert's own layers.
//!
//! transformers 5 holds the weights of a layer's experts in memory as two stacks: `experts.gate_up_proj` (E, 2 F, D), in
//! which up follows gate, and `experts.down_proj` (E, D, F). In gpt-oss gate and up alternate, and matrices are transposed. PEFT's factors of a stack are A (E R, in), in which row
//! `e R + j` is the j-th of expert e, and B (out, R E), in which it is column `j E + e`. The wrapper of the second stack
//! contains that of the first, whose tensors are therefore called `base_layer`.
//!
//! The update of an expert's gate and up together is read as one of a layer `gate_up_proj`, which gpt-oss has. For a model
//! with two layers it becomes two updates, each with a copy of A and its part of B, where it is known that the model has
//! them ([`for_modules`]). Layers are named as most families name them; Mixtral's names are translated where they are
//! looked up ([`usual_name`]).

use super::modules::LoraModules;
use super::spec::LoraSpec;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// The name of a stack within its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stack {
    GateUp,
    Down,
}

/// Names of stacks in `target_parameters` and in patterns, and patterns of the layers that they consist of.
const STACKS: [(&str, Stack, &str); 2] = [
    ("gate_up_proj", Stack::GateUp, "gate_up_proj|gate_proj|up_proj|w1|w3"),
    ("down_proj", Stack::Down, "down_proj|w2"),
];

/// Mixtral's names of what most families call `mlp`, `gate_proj`, `up_proj` and `down_proj`.
const MIXTRAL: [(&str, &str); 4] =
    [(".block_sparse_moe.", ".mlp."), (".w1.", ".gate_proj."), (".w3.", ".up_proj."), (".w2.", ".down_proj.")];

/// Returns the stack that a parameter's name, or a pattern for it, ends with.
fn stack(name: &str) -> Option<(&str, Stack, &'static str)> {
    STACKS.iter().find_map(|(ending, stack, layers)| {
        let head = name.strip_suffix(ending)?;
        (head.is_empty() || !head.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            .then_some((head, *stack, *layers))
    })
}

/// Returns the pattern of the layers of all experts that a pattern for a stack stands for; `None` if it is for none.
pub(super) fn pattern_of_layers(pattern: &str) -> Option<String> {
    let (head, _, layers) = stack(pattern)?;
    let dot = |text: &str| text.trim_end_matches(['\\', '.']).len();
    // What is before the stack: perhaps the module `experts`, before it perhaps `mlp`.
    let within = head[..dot(head)].strip_suffix("experts").map_or(head, |before| before);
    let module = within[..dot(within)].strip_suffix("mlp");
    let before = module.map_or(within.to_string(), |before| format!(r"{before}(?:mlp|block_sparse_moe)\."));
    // PEFT asks for the name without a number when it reads such a pattern for transformers 5.
    Some(format!(r"{before}experts\.(?:\d+\.)?(?:{layers})"))
}

/// Returns the name that most families have for a tensor or layer of one of Mixtral's experts; `None` for others.
pub(in crate::adapters) fn usual_name(name: &str) -> Option<String> {
    name.contains(".block_sparse_moe.experts.")
        .then(|| MIXTRAL.iter().fold(name.to_string(), |name, (theirs, usual)| name.replacen(theirs, usual, 1)))
}

/// Replaces the factors of stacks among an adapter's tensors by those of each expert's layers. `parameters` are the
/// config's `target_parameters`; `origin` is named in errors. Fails for shapes that are not those of stacks.
pub(in crate::adapters) fn split(
    spec: &LoraSpec,
    parameters: Vec<String>,
    tensors: &mut BTreeMap<String, Tensor>,
    origin: &Path,
) -> Result<()> {
    const INNER: &str = ".base_layer";
    let names: Vec<String> = tensors.keys().filter_map(|name| module_of_stack(name).map(String::from)).collect();
    if names.is_empty() {
        return Ok(());
    }
    let rules = LoraModules::new(spec)?;
    for wrapper in &names {
        let module = wrapper.strip_suffix(INNER).unwrap_or(wrapper);
        let stack = match names.contains(&format!("{module}{INNER}")) {
            true if wrapper != module => Stack::GateUp,
            true => Stack::Down,
            false => only_stack(&parameters, module, origin)?,
        };
        let mut take = |factor: &str| {
            let name = format!("{wrapper}.lora_{factor}.weight");
            tensors.remove(&name).ok_or_else(|| {
                Error::user(format!("{}: `{name}` is missing", origin.display()))
                    .hint("A and B come in pairs: the file is incomplete")
            })
        };
        let (a, b) = (take("A")?, take("B")?);
        let layer = match stack {
            Stack::GateUp => BOTH,
            Stack::Down => "down_proj",
        };
        let rank = rules.rank(&format!("{module}.0.{layer}"));
        let fits = a.dim() == 2 && b.dim() == 2 && a.size()[0] == b.size()[1] && a.size()[0] % rank == 0;
        if !fits || stack == Stack::GateUp && b.size()[0] % 2 != 0 {
            return Err(Error::user(format!(
                "{}: `{wrapper}` has A of shape {:?} and B of shape {:?}, which are not those of experts with rank {rank}",
                origin.display(),
                a.size(),
                b.size()
            ))
            .hint("config and tensors belong to different adapters, or rank_pattern was lost"));
        }
        let experts = a.size()[0] / rank;
        for e in 0..experts {
            let own_b = b.slice(1, e, None, experts).contiguous();
            tensors.insert(format!("{module}.{e}.{layer}.lora_A.weight"), a.narrow(0, e * rank, rank).copy());
            tensors.insert(format!("{module}.{e}.{layer}.lora_B.weight"), own_b);
        }
    }
    Ok(())
}

/// The layer that is gate and up of an expert.
const BOTH: &str = "gate_up_proj";

/// Returns an adapter's tensors for a model of which `exists` says whether it has a module: the factors of an expert's gate and
/// up together become those of two layers, unless they are one in the model.
pub(in crate::adapters) fn for_modules(
    tensors: &BTreeMap<String, Tensor>,
    exists: impl Fn(&str) -> bool,
) -> BTreeMap<String, Tensor> {
    let mut found = BTreeMap::new();
    for (name, t) in tensors {
        let both = name.rsplit_once(".lora_").filter(|(module, _)| {
            module.contains(".experts.") && module.ends_with(&format!(".{BOTH}")) && !exists(module)
        });
        let Some((module, factor)) = both else {
            found.insert(name.clone(), t.shallow_clone());
            continue;
        };
        let expert = module.trim_end_matches(BOTH);
        let parts = match factor {
            "A.weight" => vec![t.shallow_clone(), t.copy()],
            _ => t.chunk(2, 0).iter().map(Tensor::contiguous).collect(),
        };
        for (layer, part) in ["gate_proj", "up_proj"].iter().zip(parts) {
            found.insert(format!("{expert}{layer}.lora_{factor}"), part);
        }
    }
    found
}

/// Returns the wrapper that a tensor of a stack's A belongs to; `None` for other tensors.
fn module_of_stack(tensor: &str) -> Option<&str> {
    let wrapper = tensor.strip_suffix(".lora_A.weight")?;
    (wrapper.ends_with(".experts") || wrapper.ends_with(".experts.base_layer")).then_some(wrapper)
}

/// Returns which stack of `module` is adapted if only one is.
fn only_stack(parameters: &[String], module: &str, origin: &Path) -> Result<Stack> {
    let of_module = |name: &String| {
        let (head, found, _) = stack(name)?;
        let head = head.trim_end_matches('.');
        (head.is_empty() || module == head || module.ends_with(&format!(".{head}"))).then_some(found)
    };
    let found: Vec<Stack> = parameters.iter().filter_map(of_module).collect();
    match found.as_slice() {
        [one] => Ok(*one),
        _ => Err(Error::user(format!(
            "{}: it is not clear which weights of `{module}` are adapted: target_parameters names {} of them",
            origin.display(),
            found.len()
        ))
        .hint("target_parameters must name `experts.gate_up_proj` or `experts.down_proj`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;

    #[test]
    fn a_pattern_for_a_stack_selects_the_layers_of_every_expert() {
        for (pattern, chosen, other) in [
            ("experts.gate_up_proj", "model.layers.1.mlp.experts.12.gate_proj", "model.layers.1.mlp.gate_proj"),
            (
                r".*gate_up_proj",
                "model.layers.1.block_sparse_moe.experts.3.w3",
                "model.layers.1.mlp.experts.3.down_proj",
            ),
            ("mlp.experts.down_proj", "model.layers.0.block_sparse_moe.experts.0.w2", "model.layers.0.mlp.down_proj"),
            (
                r"layers\.1\.mlp\.experts\.down_proj",
                "model.layers.1.mlp.experts.7.down_proj",
                "model.layers.2.mlp.experts.7.down_proj",
            ),
            (
                "model.layers.0.mlp.experts.gate_up_proj",
                "model.layers.0.mlp.experts.5.up_proj",
                "model.layers.0.mlp.experts.5.down_proj",
            ),
        ] {
            let of_layers = pattern_of_layers(pattern).unwrap();
            let regex = Regex::new(&format!(r"^(.*\.)?({of_layers})$")).unwrap();
            assert!(regex.is_match(chosen).unwrap(), "{of_layers} and {chosen}");
            assert!(!regex.is_match(other).unwrap(), "{of_layers} and {other}");
        }
        assert_eq!(pattern_of_layers("q_proj"), None);
        assert_eq!(pattern_of_layers("my_down_proj"), None);
    }

    #[test]
    fn mixtrals_names_are_translated() {
        let name = usual_name("model.layers.0.block_sparse_moe.experts.3.w3.lora_A.weight").unwrap();
        assert_eq!(name, "model.layers.0.mlp.experts.3.up_proj.lora_A.weight");
        assert_eq!(usual_name("model.layers.0.block_sparse_moe.gate.weight"), None);
    }
}
