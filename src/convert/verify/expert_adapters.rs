//! Why PEFT cannot read a LoRA that adapts experts.
//!
//! transformers 5 holds the weights of a layer's experts as two stacks, one of gate and up together and one of down. PEFT
//! 0.21.2 converts factors of single experts to factors of these stacks when it reads a file. What it converts wrongly, or
//! not at all, was found by reading such files with it (tests/reference/check_expert_adapters.py).

use crate::adapters::LoraSpec;
use crate::adapters::lora::{LoraModules, stack_refusal};
use crate::models::{ExpertFiles, expert_number};
use std::collections::{BTreeMap, BTreeSet};

/// Names of layers that PEFT takes for those of experts in a family with experts, also where they are of another MLP.
const TAKEN: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// Returns the reasons; none if PEFT converts the factors of experts, or if the file has those of stacks.
pub(super) fn peft_refusals(spec: &LoraSpec, modules: &BTreeSet<&str>, experts: ExpertFiles) -> Vec<&'static str> {
    let last = |module: &&str| module.rsplit('.').next().unwrap_or_default().to_string();
    let (of_experts, others): (Vec<&str>, Vec<&str>) = modules.iter().partition(|m| expert_number(m).is_some());
    const LOST: &str = "it loses the adapters of layers beside the experts that have their names";
    if of_experts.is_empty() {
        let taken = experts == ExpertFiles::Single && others.iter().any(|m| TAKEN.contains(&last(m).as_str()));
        return taken.then_some(LOST).into_iter().collect();
    }
    const DROPOUT: &str = "it allows no dropout on experts: set lora_dropout to 0 in adapter_config.json";
    if let ExpertFiles::Stacked(experts) = experts {
        let dropout = (spec.dropout > 0.0).then_some(DROPOUT);
        return dropout.into_iter().chain(stack_refusal(spec, modules, experts)).collect();
    }
    let names: BTreeSet<String> = of_experts.iter().map(last).collect();
    let down_alone = names.len() == 1 && (names.contains("down_proj") || names.contains("w2"));
    let ranks = LoraModules::new(spec).map(|lora| {
        let unlike = |m: &&str| lora.rank(m) != spec.rank || lora.alpha(m) != spec.alpha;
        of_experts.iter().any(unlike)
    });
    // How many experts each kind of layer is adapted in: all of them, if it is as many everywhere.
    let mut counts: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for module in &of_experts {
        let layer = &module[..module.find(".experts.").unwrap_or(module.len())];
        *counts.entry((layer, last(module))).or_default() += 1;
    }
    let equal = counts.values().collect::<BTreeSet<_>>().len() == 1;
    let reasons = [
        (spec.dropout > 0.0, DROPOUT),
        (spec.dora || spec.bias, "it has no DoRA and no bias behind B on experts"),
        (!down_alone && names.len() != 3, "it loses adapters of experts that leave out some of gate, up and down"),
        (!equal, "it reads adapters of all experts of a layer, not of some"),
        (others.iter().any(|m| names.contains(&last(m))), LOST),
        (ranks.unwrap_or(true), "it converts no rank or alpha patterns of experts"),
    ];
    reasons.into_iter().filter(|(holds, _)| *holds).map(|(_, reason)| reason).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(modules: &[&str], spec: LoraSpec) -> usize {
        peft_refusals(&spec, &modules.iter().copied().collect(), ExpertFiles::Single).len()
    }

    #[test]
    fn what_peft_loses_is_a_reason() {
        let plain = LoraSpec::default;
        let whole = |e: usize| ["gate_proj", "up_proj", "down_proj"].map(|l| format!("m.layers.0.mlp.experts.{e}.{l}"));
        let names: Vec<String> = (0..4).flat_map(whole).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).chain(["m.layers.0.self_attn.q_proj"]).collect();
        assert_eq!(found(&all, plain()), 0);
        // Layers without experts lose theirs even if no expert is adapted.
        assert_eq!(found(&["m.layers.0.mlp.down_proj"], LoraSpec { dora: true, ..plain() }), 1);
        assert_eq!(found(&["m.layers.0.self_attn.o_proj"], LoraSpec { dora: true, ..plain() }), 0);
        assert_eq!(found(&all, LoraSpec { dropout: 0.1, ..plain() }), 1);
        assert_eq!(found(&all[1..], plain()), 1); // one expert without gate
        let down: Vec<&str> = all.iter().copied().filter(|m| m.ends_with("down_proj")).collect();
        assert_eq!(found(&down, plain()), 0);
        let up: Vec<&str> = all.iter().copied().filter(|m| m.ends_with("up_proj")).collect();
        assert_eq!(found(&up, plain()), 1);
        let shared: Vec<&str> = all.iter().copied().chain(["m.layers.0.mlp.shared_expert.up_proj"]).collect();
        assert_eq!(found(&shared, plain()), 1);
        let ranks = [("experts.2.down_proj".to_string(), 3)].into_iter().collect();
        assert_eq!(found(&all, LoraSpec { rank_pattern: ranks, ..plain() }), 1);
    }
}
