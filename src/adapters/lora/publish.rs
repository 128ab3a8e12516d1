//! A LoRA as its files hold it. One that takes its initial product from the base becomes a plain LoRA of twice the rank,
//! which any program adds to the unchanged base.

use super::layer::change;
use super::spec::{LoraInit, LoraSpec};
use super::tensors::{LINEAR_A, LINEAR_B, START_A, START_B};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use tch::Tensor;

/// Returns settings and tensors of the published adapter, given the tensors of the trained one; `None` if they are the
/// same.
pub(super) fn published(
    spec: &LoraSpec,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<Option<(LoraSpec, BTreeMap<String, Tensor>)>> {
    if !spec.init.takes_from_base() {
        return Ok(None);
    }
    let _no_grad = tch::no_grad_guard();
    let mut out: BTreeMap<String, Tensor> = tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
    let modules: Vec<String> =
        tensors.keys().filter_map(|name| Some(name.strip_suffix(START_A)?.strip_suffix('.')?.to_string())).collect();
    for module in &modules {
        let mut take = |name: &str| {
            let name = format!("{module}.{name}");
            out.remove(&name).ok_or_else(|| Error::bug(format!("publishing an adapter: no tensor `{name}`")))
        };
        let (a, b, start) = (take(LINEAR_A)?, take(LINEAR_B)?, [take(START_A)?, take(START_B)?]);
        let [a, b] = change(&a, &b, &start);
        out.insert(format!("{module}.{LINEAR_A}"), a);
        out.insert(format!("{module}.{LINEAR_B}"), b);
    }
    Ok(Some((doubled(spec), out)))
}

/// Returns the settings of twice the rank and the same scale. rsLoRA divides by the root of the rank. Embeddings, which
/// have no such initial values, keep their rank.
fn doubled(spec: &LoraSpec) -> LoraSpec {
    let mut spec = LoraSpec { init: LoraInit::Kaiming, ..spec.clone() };
    let factor = if spec.rslora { 2f64.sqrt() } else { 2.0 };
    spec.rank *= 2;
    spec.alpha *= factor;
    spec.rank_pattern.values_mut().for_each(|rank| *rank *= 2);
    spec.alpha_pattern.values_mut().for_each(|alpha| *alpha *= factor);
    spec
}
