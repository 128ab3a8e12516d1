//! A LoRA as its files hold it. One that takes its initial product from the base becomes a plain LoRA of twice the rank,
//! which any program adds to the unchanged base.

use super::layer::change;
use super::spec::{LoraInit, LoraSpec};
use super::tensors::{LINEAR_A, LINEAR_B, START_A, START_B};
use crate::adapters::kind::HEAD;
use crate::adapters::vocabulary_tables::is_embedding;
use std::collections::BTreeMap;
use tch::Tensor;

/// Replaces A, B and their initial values by the factors of the change since then.
pub(super) fn without_start(mut tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let _no_grad = tch::no_grad_guard();
    let module = |name: &String| Some(name.strip_suffix(START_A)?.strip_suffix('.')?.to_string());
    let modules: Vec<String> = tensors.keys().filter_map(module).collect();
    for module in modules {
        let names = [LINEAR_A, LINEAR_B, START_A, START_B].map(|name| format!("{module}.{name}"));
        let [Some(a), Some(b), Some(a0), Some(b0)] = names.each_ref().map(|name| tensors.remove(name)) else {
            unreachable!("A, B and their initial values are registered together")
        };
        let [name_a, name_b, ..] = names;
        let [a, b] = change(&a, &b, &[a0, b0]);
        tensors.extend([(name_a, a), (name_b, b)]);
    }
    tensors
}

/// Names the embedding among the modules to save, as PEFT does, if it is saved for the output head that shares its weight.
pub(super) fn name_embedding<'n>(spec: &mut LoraSpec, mut tensors: impl Iterator<Item = &'n String>) {
    let saved = |name: &'n String| name.strip_suffix(".weight").filter(|module| is_embedding(module));
    let Some(embedding) = tensors.find_map(saved) else { return };
    let modules = &mut spec.modules_to_save;
    if modules.iter().any(|module| module == HEAD) {
        modules.retain(|module| module != HEAD);
        if !modules.iter().any(|module| embedding.ends_with(module.as_str())) {
            modules.push(embedding.into());
        }
    }
}

/// Doubles the rank and keeps the scale. rsLoRA divides by the root of the rank.
pub(super) fn double_rank(spec: &mut LoraSpec) {
    let factor = if spec.rslora { 2f64.sqrt() } else { 2.0 };
    spec.init = LoraInit::Kaiming;
    spec.rank *= 2;
    spec.alpha *= factor;
    spec.rank_pattern.values_mut().for_each(|rank| *rank *= 2);
    spec.alpha_pattern.values_mut().for_each(|alpha| *alpha *= factor);
}
