//! Every combination type of PEFT's `add_weighted_adapter`: the product B A of every module of the first layer.

use crate::support::*;
use ft::adapters::merging::combine::combine;
use ft::adapters::merging::plan::{MergeSettings, MergeWay, NamedMethod};
use ft::adapters::merging::reduce::as_lora;
use ft::adapters::merging::{MergedWeights, WeightedAdapter};
use ft::merging::factors::factor_weights;
use ft::merging::method::merge_tensors;
use ft::merging::{Delta, MajoritySign, Truncation, svd};
use ft::models::{self, Config};
use serde::Deserialize;
use std::collections::BTreeMap;
use tch::Tensor;

#[derive(Deserialize)]
struct PeftMerge {
    name: String,
    base: String,
    adapters: Vec<String>,
    weights: Vec<f64>,
    combination_type: String,
    density: Option<f64>,
    svd_rank: Option<i64>,
    majority_sign_method: Option<String>,
    first_mask: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Expected {
    cases: Vec<PeftMerge>,
}

impl PeftMerge {
    /// Returns the settings that mean the same here: PEFT's methods on factors have a prefix.
    fn settings(&self) -> MergeSettings {
        let name = self.combination_type.as_str();
        let ours = if name == "cat" || name.ends_with("svd") { name.to_string() } else { format!("peft_{name}") };
        MergeSettings {
            method: NamedMethod::get(&ours).unwrap_or_else(|| panic!("{ours}")),
            densities: self.density.into_iter().collect(),
            majority_sign: self.majority_sign_method.as_deref().and_then(MajoritySign::named),
            rank: self.svd_rank,
            ..MergeSettings::default()
        }
    }

    fn parts(&self) -> Vec<WeightedAdapter> {
        let read = |(name, weight): (&String, &f64)| {
            WeightedAdapter::read(&fixture(format!("merging/{name}")), *weight).unwrap()
        };
        self.adapters.iter().zip(&self.weights).map(read).collect()
    }
}

/// Fails unless the product of a module is PEFT's within 1e-6 of its largest entry.
fn assert_product(case: &str, module: &str, found: &Tensor, expected: &BTreeMap<String, Tensor>) {
    let wanted = &expected[&format!("{case}/{module}")];
    let largest = wanted.abs().max().double_value(&[]);
    let error = (found - wanted).abs().max().double_value(&[]) / largest;
    assert!(error <= 1e-6, "{case}, {module}: {error:.1e}");
}

#[test]
fn merged_adapters_equal_pefts() {
    let about: Expected = json(fixture("merging/expected.json"));
    let expected = tensors(fixture("merging/expected.safetensors"));
    let mut compared = 0;
    for case in &about.cases {
        let folder = fixture(&case.base);
        let weights = models::weights(&folder, &Config::read(&folder).unwrap()).unwrap();
        let (parts, plan) = (case.parts(), case.settings().plan(case.adapters.len()).unwrap());
        let merge = MergedWeights::planned(&weights, &[], &parts, plan.clone()).unwrap();
        if plan.rule.method.is_random() {
            compared += with_the_masks_of_peft(case, &merge, &expected);
            continue;
        }
        let file = match plan.named.way {
            MergeWay::Concatenated => combine(&weights, &parts).unwrap(),
            _ => as_lora(&merge, &parts, || ()).unwrap().0,
        };
        let lora = file.spec.as_lora().unwrap();
        assert_eq!(lora.alpha, lora.rank as f64);
        for module in case.first_mask.keys() {
            let factor = |name: &str| &file.tensors[&format!("{module}.{name}")];
            let product = factor("lora_B.weight").matmul(factor("lora_A.weight"));
            assert_product(&case.name, module, &product, &expected);
            compared += 1;
        }
    }
    assert!(compared >= 60, "only {compared} modules compared");
}

/// Compares DARE given PEFT's masks: our own are drawn by position, so the same formula is applied to PEFT's.
fn with_the_masks_of_peft(case: &PeftMerge, merge: &MergedWeights, expected: &BTreeMap<String, Tensor>) -> usize {
    let plan = merge.plan();
    for (module, first) in &case.first_mask {
        let deltas = merge.deltas(&format!("{module}.weight")).unwrap();
        let densities: Vec<f64> = deltas.iter().map(|d| d.density).collect();
        let merged = |changes: Vec<Tensor>, weights: &[f64], first: usize| {
            let mask = |i: usize, _: &[i64]| expected[&format!("{}/mask/{}", case.name, first + i)].shallow_clone();
            merge_tensors(changes, weights, &densities, &plan.rule, &mask)
        };
        let weights: Vec<f64> = deltas.iter().map(|d| d.weight).collect();
        let product = if plan.named.way == MergeWay::Factors {
            let modules = |part: usize| {
                ft::adapters::lora::LoraModules::new(
                    WeightedAdapter::read(&merge.parts()[part].0, 1.0).unwrap().file.spec.as_lora().unwrap(),
                )
                .unwrap()
            };
            let side = |side: usize, name: &str| {
                let tensors = deltas.iter().map(|d| {
                    let file = WeightedAdapter::read(&merge.parts()[d.part].0, 1.0).unwrap().file;
                    file.tensors[&format!("{module}.{name}")].shallow_clone()
                });
                let weights: Vec<f64> =
                    deltas.iter().map(|d| factor_weights(d.weight * modules(d.part).scale(module))[side]).collect();
                merged(tensors.collect(), &weights, first + side * deltas.len())
            };
            side(1, "lora_B.weight").matmul(&side(0, "lora_A.weight"))
        } else {
            let change = Delta::Dense(merged(deltas.iter().map(|d| d.delta.dense()).collect(), &weights, *first));
            let ranks = deltas.iter().filter_map(|d| d.delta.rank()).max().unwrap();
            let rank = case.svd_rank.unwrap_or(ranks);
            svd::truncate(&change, Truncation::Rank(rank)).delta().dense()
        };
        assert_product(&case.name, module, &product, expected);
    }
    case.first_mask.len()
}
