//! Writes a LoRA of all experts as PEFT does for models whose files have the weights of a layer's experts in one tensor: as
//! factors of these stacks, which `target_parameters` names ([`super::fused`] describes and reads them).

use super::modules::LoraModules;
use super::peft;
use super::spec::LoraSpec;
use super::target_parameters::KEY;
use crate::adapters::targets::Targets;
use crate::error::Result;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tch::Tensor;

/// What is between a layer's name and the number of an expert.
const EXPERTS: &str = ".experts.";

/// A LoRA whose experts' factors are those of stacks.
pub(in crate::adapters) struct StackedLora {
    /// The content of adapter_config.json.
    pub config: Value,
    /// Tensors by name without prefix.
    pub tensors: BTreeMap<String, Tensor>,
}

/// The modules of one stack, in the order of the experts.
struct StackModules<'t> {
    /// The name of the stack.
    name: String,
    modules: Vec<&'t str>,
}

/// Returns why the factors of experts in these modules are no factors of stacks; `None` if they are, or if there are none.
/// `experts` is the number of experts of a layer.
pub fn refusal(spec: &LoraSpec, modules: &BTreeSet<&str>, experts: i64) -> Option<&'static str> {
    let stacks = stacks(modules);
    let Ok(rules) = LoraModules::new(spec) else { return Some("its patterns cannot be read") };
    let alike = |stack: &StackModules| {
        let first = stack.modules[0];
        stack.modules.iter().all(|m| rules.rank(m) == rules.rank(first) && rules.alpha(m) == rules.alpha(first))
    };
    let reasons = [
        (spec.dora || spec.bias, "it has no DoRA and no bias behind B on experts"),
        (
            stacks.iter().any(|stack| stack.modules.len() as i64 != experts),
            "it reads adapters of all experts of a layer, not of some",
        ),
        (!stacks.iter().all(alike), "it reads one rank and alpha for all experts of a layer"),
    ];
    reasons.into_iter().filter(|_| !stacks.is_empty()).find(|(holds, _)| *holds).map(|(_, reason)| reason)
}

/// Returns the files' content of a LoRA of a model with stacks of so many experts. `None` if no expert is adapted, or if the
/// factors are no factors of stacks. `base` is the path or id of the base.
pub(in crate::adapters) fn stacked(
    spec: &LoraSpec,
    base: &str,
    tensors: &BTreeMap<&str, &Tensor>,
    experts: i64,
) -> Result<Option<StackedLora>> {
    let modules: BTreeSet<&str> = tensors.keys().filter_map(|name| module_of(name)).collect();
    let stacks = stacks(&modules);
    if stacks.is_empty() || refusal(spec, &modules, experts).is_some() {
        return Ok(None);
    }
    let others: BTreeSet<&str> = modules.iter().copied().filter(|m| !m.contains(EXPERTS)).collect();
    let mut all: BTreeMap<String, Tensor> = tensors
        .iter()
        .filter(|(name, _)| module_of(name).is_none_or(|module| !module.contains(EXPERTS)))
        .map(|(name, t)| (name.to_string(), t.shallow_clone()))
        .collect();
    let names: BTreeSet<&str> = stacks.iter().map(|stack| stack.name.as_str()).collect();
    for stack in &stacks {
        let (module, layer) = stack.name.rsplit_once('.').expect("a stack is in a module");
        // The wrapper of the second stack contains that of the first.
        let inner = layer == "gate_up_proj" && names.contains(format!("{module}.down_proj").as_str());
        let wrapper = if inner { format!("{module}.base_layer") } else { module.to_string() };
        let factors = |factor: &str| -> Vec<&Tensor> {
            stack.modules.iter().map(|m| tensors[format!("{m}.lora_{factor}.weight").as_str()]).collect()
        };
        let b = Tensor::stack(&factors("B"), 2); // (out, R, E)
        all.insert(format!("{wrapper}.lora_A.weight"), Tensor::cat(&factors("A"), 0));
        all.insert(format!("{wrapper}.lora_B.weight"), b.reshape([b.size()[0], -1]));
    }
    let mut config = peft::write(spec, base);
    config[KEY] = json!(names);
    config["target_modules"] = json!(targets(spec, &others));
    let rules = LoraModules::new(spec)?;
    let unlike = |key: &str, of: &dyn Fn(&str) -> Value, usual: Value| -> Value {
        let own = config[key].as_object().cloned().unwrap_or_default();
        let of_stack = |stack: &StackModules| {
            let value = of(stack.modules[0]);
            (value != usual).then(|| (fancy_regex::escape(&stack.name).into_owned(), value))
        };
        // Patterns for single experts mean nothing beside those of stacks.
        let kept = own.into_iter().filter(|(pattern, _)| others.iter().any(|m| matches(pattern, m)));
        Value::Object(stacks.iter().filter_map(of_stack).chain(kept).collect::<Map<_, _>>())
    };
    let ranks = unlike("rank_pattern", &|m| json!(rules.rank(m)), json!(spec.rank));
    let alphas =
        unlike("alpha_pattern", &|m| crate::adapters::peft::number(rules.alpha(m)), config["lora_alpha"].clone());
    (config["rank_pattern"], config["alpha_pattern"]) = (ranks, alphas);
    if let Some(config) = config.as_object_mut() {
        config.sort_keys();
    }
    Ok(Some(StackedLora { config, tensors: all }))
}

/// Returns true if a pattern of ranks or alphas is for this module.
fn matches(pattern: &str, module: &str) -> bool {
    fancy_regex::Regex::new(&format!(r"^(.*\.)?({pattern})$"))
        .is_ok_and(|regex| regex.is_match(module).unwrap_or(false))
}

/// Returns the module that a factor belongs to; `None` for other tensors.
fn module_of(tensor: &str) -> Option<&str> {
    tensor.strip_suffix(".lora_A.weight").or(tensor.strip_suffix(".lora_B.weight"))
}

/// Returns the stacks that the modules of experts belong to.
fn stacks<'t>(modules: &BTreeSet<&'t str>) -> Vec<StackModules<'t>> {
    let mut found: BTreeMap<String, BTreeMap<usize, &'t str>> = BTreeMap::new();
    for module in modules {
        let Some((layer, rest)) = module.split_once(EXPERTS) else { continue };
        let Some((expert, name)) = rest.split_once('.') else { continue };
        let Ok(expert) = expert.parse() else { continue };
        found.entry(format!("{layer}{EXPERTS}{name}")).or_default().insert(expert, module);
    }
    found.into_iter().map(|(name, modules)| StackModules { name, modules: modules.into_values().collect() }).collect()
}

/// Returns names of the adapted modules that are no experts: the endings that the spec has for them, or their full names.
fn targets(spec: &LoraSpec, modules: &BTreeSet<&str>) -> Vec<String> {
    let ends = |module: &str, name: &str| module == name || module.ends_with(&format!(".{name}"));
    match &spec.targets {
        Targets::Names(names) => names.iter().filter(|name| modules.iter().any(|m| ends(m, name))).cloned().collect(),
        Targets::Pattern(_) => modules.iter().map(|m| m.to_string()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_of_all_experts_are_those_of_stacks() {
        let names: Vec<String> = (0..3)
            .flat_map(|e| ["gate_up_proj", "down_proj"].map(|l| format!("m.layers.0.mlp.experts.{e}.{l}")))
            .chain(["m.layers.0.self_attn.q_proj".into()])
            .collect();
        let modules: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let plain = LoraSpec::default;
        assert_eq!(refusal(&plain(), &modules, 3), None);
        assert!(refusal(&plain(), &modules, 4).is_some_and(|why| why.contains("all experts")));
        assert!(refusal(&LoraSpec { dora: true, ..plain() }, &modules, 3).is_some_and(|why| why.contains("DoRA")));
        let of_one = [(r"experts.1.down_proj".to_string(), 3)].into_iter().collect();
        let spec = LoraSpec { rank_pattern: of_one, ..plain() };
        assert!(refusal(&spec, &modules, 3).is_some_and(|why| why.contains("one rank")));
        let attention = BTreeSet::from(["m.layers.0.self_attn.q_proj"]);
        assert_eq!(refusal(&LoraSpec { dora: true, ..plain() }, &attention, 3), None);
    }
}
