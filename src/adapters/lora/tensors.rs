//! The tensors of LoRA in PEFT's files, and the updates of weights that they are.

use super::modules::LoraModules;
use super::spec::LoraSpec;
use crate::adapters::update::{LowRankUpdate, WeightUpdate};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::Tensor;

/// Last parts of the names of the factors of a linear layer's update, and of an embedding's.
pub(super) const LINEAR_A: &str = "lora_A.weight";
pub(super) const LINEAR_B: &str = "lora_B.weight";
pub(super) const EMBEDDING_A: &str = "lora_embedding_A";
pub(super) const EMBEDDING_B: &str = "lora_embedding_B";
/// All of them.
pub(super) const NAMES: [&str; 4] = [LINEAR_A, LINEAR_B, EMBEDDING_A, EMBEDDING_B];

/// Returns the updates of `modules`, from the tensors of the file `origin`. Fails for incomplete pairs of A and B
/// and wrong ranks.
pub(super) fn updates(
    spec: &LoraSpec,
    modules: &BTreeSet<&str>,
    tensors: &BTreeMap<String, Tensor>,
    origin: &Path,
) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
    let rules = LoraModules::new(spec)?;
    let update = |module: &str| update(&rules, module, tensors, origin);
    modules.iter().map(|module| Ok((format!("{module}.weight"), Box::new(update(module)?) as _))).collect()
}

fn update(
    rules: &LoraModules,
    module: &str,
    tensors: &BTreeMap<String, Tensor>,
    origin: &Path,
) -> Result<LowRankUpdate> {
    let get = |factor: &str| {
        let name = format!("{module}.{factor}");
        tensors.get(&name).ok_or_else(|| {
            Error::user(format!("{}: `{name}` is missing", origin.display()))
                .hint("A and B come in pairs: the file is incomplete")
        })
    };
    let table = [EMBEDDING_A, EMBEDDING_B].iter().any(|factor| tensors.contains_key(&format!("{module}.{factor}")));
    let (a, b) = match table {
        true => (get(EMBEDDING_A)?, get(EMBEDDING_B)?),
        false => (get(LINEAR_A)?, get(LINEAR_B)?),
    };
    let rank = rules.rank(module);
    if a.dim() != 2 || b.dim() != 2 || a.size()[0] != rank || b.size()[1] != rank {
        return Err(Error::user(format!(
            "{}: `{module}` has A of shape {:?} and B of shape {:?}, but rank {rank} in adapter_config.json",
            origin.display(),
            a.size(),
            b.size()
        ))
        .hint("config and tensors belong to different adapters, or rank_pattern was lost"));
    }
    // The update of an embedding is (B A)^T.
    let (a, b) = if table { (b.tr(), a.tr()) } else { (a.shallow_clone(), b.shallow_clone()) };
    Ok(LowRankUpdate { a, b, scale: rules.scale(module), table })
}

/// Returns the names and tensors of the factors of a module's update, whose scale is 1.
pub(in crate::adapters) fn factors(module: &str, update: LowRankUpdate) -> [(String, Tensor); 2] {
    let LowRankUpdate { a, b, table, .. } = update;
    let factors = match table {
        true => [(EMBEDDING_A, b.tr().contiguous()), (EMBEDDING_B, a.tr().contiguous())],
        false => [(LINEAR_A, a), (LINEAR_B, b)],
    };
    factors.map(|(factor, tensor)| (format!("{module}.{factor}"), tensor))
}
