//! An adapter as a plain LoRA: one rank and one alpha for all modules, without rsLoRA, patterns or another kind's way to compute.
//!
//! Factors of a smaller rank are filled up with zeros, and the scale is multiplied into B, so that B A is what it was, up to the
//! rounding of that product.

use crate::adapters::AdapterFile;
use crate::adapters::merging::WeightedAdapter;
use crate::adapters::merging::combine::combined_adapter;
use crate::convert::module_factors::{self, ModuleFactors};
use crate::convert::verify::compatibility::{Runtime, TGI_SMALLEST_RANK};
use crate::error::Result;
use crate::models::layer_number;
use crate::nn::Weights;
use std::collections::{BTreeMap, BTreeSet};
use tch::{Device, Kind, Tensor};

/// Returns the plain LoRA that changes the model as `part` does, or the reason why there is none. `runtime` decides about the smallest
/// rank, and about the modules that get factors of zeros. Fails if the adapter does not fit the base.
pub(super) fn of(
    runtime: Runtime,
    part: &WeightedAdapter,
    base: &Weights,
) -> Result<std::result::Result<AdapterFile, String>> {
    let _no_grad = tch::no_grad_guard();
    let found = match module_factors::of(part, base)? {
        Ok(found) => found,
        Err(why) => return Ok(Err(why)),
    };
    if found.values().any(|module| module.magnitude.is_some()) {
        return Ok(Err("DoRA scales the whole weight".into()));
    }
    let smallest = if runtime == Runtime::Tgi { TGI_SMALLEST_RANK } else { 1 };
    let rank = found.values().map(|module| module.factors.a.size()[0]).max().unwrap_or(1).max(smallest);
    let mut factors: BTreeMap<String, [Tensor; 2]> = BTreeMap::new();
    for module in expected_beside(runtime, &found, base) {
        let Some([outputs, inputs]) = matrix(base, &module) else { continue };
        let zeros = |shape: [i64; 2]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        factors.insert(module, [zeros([rank, inputs]), zeros([outputs, rank])]);
    }
    for (module, ModuleFactors { factors: update, .. }) in &found {
        let more = rank - update.a.size()[0];
        let a = update.a.to_kind(Kind::Float).constant_pad_nd([0, 0, 0, more].as_slice());
        let b = (update.b.to_kind(Kind::Float) * update.scale).constant_pad_nd([0, more].as_slice());
        factors.insert(module.clone(), [a.contiguous(), b.contiguous()]);
    }
    Ok(Ok(combined_adapter(base, factors, BTreeMap::new(), part.file.base.clone())))
}

/// Returns the modules that a program expects adapters of beside those that there are.
fn expected_beside(runtime: Runtime, found: &BTreeMap<String, ModuleFactors>, base: &Weights) -> BTreeSet<String> {
    const QUERY: [&str; 3] = ["q_proj", "k_proj", "v_proj"];
    match runtime {
        Runtime::Tgi => neighbours(found, base),
        Runtime::TensorRtLlm => siblings(found, &QUERY, &QUERY),
        Runtime::SgLang => {
            let mut expected = siblings(found, &QUERY[1..], &QUERY[..1]);
            expected.extend(siblings(found, &["up_proj"], &["gate_proj"]));
            expected
        }
        _ => BTreeSet::new(),
    }
}

/// Returns the modules with names in `expected` that lie beside adapted ones with names in `names`.
fn siblings(found: &BTreeMap<String, ModuleFactors>, names: &[&str], expected: &[&str]) -> BTreeSet<String> {
    let parents = found.keys().filter_map(|module| module.rsplit_once('.')).filter(|(_, name)| names.contains(name));
    parents.flat_map(|(parent, _)| expected.iter().map(move |name| format!("{parent}.{name}"))).collect()
}

/// Returns the modules of the base that are called as adapted ones, but for the number of their layer.
fn neighbours(found: &BTreeMap<String, ModuleFactors>, base: &Weights) -> BTreeSet<String> {
    let beside = |module: &str| {
        let number = layer_number(module)?;
        let (before, after) = module.split_once(&format!(".{number}."))?;
        Some((before.to_string(), after.to_string()))
    };
    let adapted: BTreeSet<_> = found.keys().filter_map(|module| beside(module)).collect();
    let modules = base.names().filter_map(|name| name.strip_suffix(".weight"));
    modules.filter(|module| beside(module).is_some_and(|place| adapted.contains(&place))).map(str::to_string).collect()
}

/// Returns (out, in) of a linear layer.
fn matrix(base: &Weights, module: &str) -> Option<[i64; 2]> {
    let name = format!("{module}.weight");
    let [first, second] = <[i64; 2]>::try_from(base.shape(&name)?).ok()?;
    Some(if base.transposed(&name) { [second, first] } else { [first, second] })
}
