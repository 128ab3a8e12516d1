//! The tensors of LoRA in PEFT's files, and the updates of weights that they are.

use super::modules::LoraModules;
use super::spec::LoraSpec;
use super::updates::{BiasUpdate, DoraUpdate};
use crate::adapters::base_layer::BASE_LAYER;
use crate::adapters::kind::AdapterKind;
use crate::adapters::token_rows::{ROWS_BESIDE_LORA, TokenRowsUpdate};
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
/// The bias behind B, and DoRA's magnitudes.
pub(super) const B_BIAS: &str = "lora_B.bias";
pub(super) const MAGNITUDE: &str = "lora_magnitude_vector";
/// The values that A and B started with, in a run; files contain the factors of their change instead.
pub(super) const START_A: &str = "lora_A.start";
pub(super) const START_B: &str = "lora_B.start";

/// Returns the names of a module's tensors in the file of an adapter.
pub(super) fn names(spec: &LoraSpec) -> &'static [&'static str] {
    match (spec.dora, spec.bias) {
        (false, false) => &[LINEAR_A, LINEAR_B, EMBEDDING_A, EMBEDDING_B],
        (true, _) => &[LINEAR_A, LINEAR_B, EMBEDDING_A, EMBEDDING_B, MAGNITUDE],
        (false, true) => &[LINEAR_A, LINEAR_B, EMBEDDING_A, EMBEDDING_B, B_BIAS],
    }
}

/// Returns true for trained rows of the embedding or head.
pub(super) fn is_token_rows(spec: &LoraSpec, tensor: &str) -> bool {
    let any = !spec.token_rows.is_empty() || !spec.head_rows.is_empty();
    any && tensor.strip_suffix(ROWS_BESIDE_LORA).is_some_and(|module| module.ends_with('.'))
}

/// Returns the updates of `modules`, from the tensors of the file `origin`. Fails for incomplete pairs of A and B
/// and wrong ranks.
pub(super) fn updates(
    spec: &LoraSpec,
    modules: &BTreeSet<&str>,
    tensors: &BTreeMap<String, Tensor>,
    origin: &Path,
) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
    let file = LoraFile { rules: LoraModules::new(spec)?, tensors, origin };
    let mut updates: BTreeMap<String, Box<dyn WeightUpdate>> = BTreeMap::new();
    for module in modules {
        let low_rank = file.low_rank(module)?;
        let update: Box<dyn WeightUpdate> = match spec.dora {
            false => Box::new(low_rank),
            true => Box::new(DoraUpdate {
                low_rank,
                magnitude: file.get(module, MAGNITUDE, "a DoRA has one for every module")?.shallow_clone(),
                own: tensors.get(&format!("{module}{BASE_LAYER}")).map(Tensor::shallow_clone),
            }),
        };
        updates.insert(format!("{module}.weight"), update);
        if spec.bias {
            let bias = file.get(module, B_BIAS, "`lora_bias` is true, so every module has one")?.shallow_clone();
            updates.insert(format!("{module}.bias"), Box::new(BiasUpdate { bias, scale: file.rules.scale(module) }));
        }
    }
    let trained = spec.trained_rows()?;
    for (name, rows) in tensors.iter().filter(|(name, _)| is_token_rows(spec, name)) {
        let module = name.strip_suffix(ROWS_BESIDE_LORA).unwrap_or_default();
        let ids = trained.of(module.trim_end_matches('.')).to_vec();
        updates.insert(format!("{module}weight"), Box::new(TokenRowsUpdate { ids, rows: rows.shallow_clone() }));
    }
    Ok(updates)
}

/// The tensors of an adapter's file.
struct LoraFile<'a> {
    rules: LoraModules,
    tensors: &'a BTreeMap<String, Tensor>,
    /// Named in errors.
    origin: &'a Path,
}

impl LoraFile<'_> {
    fn get(&self, module: &str, name: &str, hint: &str) -> Result<&Tensor> {
        let name = format!("{module}.{name}");
        let missing = || Error::user(format!("{}: `{name}` is missing", self.origin.display())).hint(hint);
        self.tensors.get(&name).ok_or_else(missing)
    }

    fn low_rank(&self, module: &str) -> Result<LowRankUpdate> {
        let get = |factor: &str| self.get(module, factor, "A and B come in pairs: the file is incomplete");
        let holds = |factor: &&str| self.tensors.contains_key(&format!("{module}.{factor}"));
        let table = [EMBEDDING_A, EMBEDDING_B].iter().any(holds);
        let (a, b) = match table {
            true => (get(EMBEDDING_A)?, get(EMBEDDING_B)?),
            false => (get(LINEAR_A)?, get(LINEAR_B)?),
        };
        let rank = self.rules.rank(module);
        if a.dim() != 2 || b.dim() != 2 || a.size()[0] != rank || b.size()[1] != rank {
            return Err(Error::user(format!(
                "{}: `{module}` has A of shape {:?} and B of shape {:?}, but rank {rank} in adapter_config.json",
                self.origin.display(),
                a.size(),
                b.size()
            ))
            .hint("config and tensors belong to different adapters, or rank_pattern was lost"));
        }
        // The update of an embedding is (B A)^T.
        let (a, b) = if table { (b.tr(), a.tr()) } else { (a.shallow_clone(), b.shallow_clone()) };
        Ok(LowRankUpdate { a, b, scale: self.rules.scale(module), table })
    }
}

/// Returns the names and tensors of the factors of a module's update, whose scale is 1.
pub fn factors(module: &str, update: LowRankUpdate) -> [(String, Tensor); 2] {
    let LowRankUpdate { a, b, table, .. } = update;
    let factors = match table {
        true => [(EMBEDDING_A, b.tr().contiguous()), (EMBEDDING_B, a.tr().contiguous())],
        false => [(LINEAR_A, a), (LINEAR_B, b)],
    };
    factors.map(|(factor, tensor)| (format!("{module}.{factor}"), tensor))
}
