//! What the answers for a LoRA depend on.

use super::super::expert_adapters;
use crate::adapters::lora::{self, LoraModules, LoraSpec};
use crate::adapters::{AdapterFile, EMBEDDINGS, HEAD};
use crate::models::{Config, ExpertFiles, expert_number, layer_number};
use std::collections::{BTreeMap, BTreeSet};

/// A module of a LoRA with its numbers.
struct AdaptedModule {
    rank: i64,
    alpha: f64,
    scale: f64,
}

/// A LoRA as other programs see it.
pub(super) struct LoraFacts<'a> {
    pub spec: &'a LoraSpec,
    /// The adapted modules.
    pub modules: BTreeSet<&'a str>,
    /// The numbers of each.
    numbers: Vec<AdaptedModule>,
    /// The model that it belongs to, if that is known.
    pub base: Option<&'a Config>,
}

impl<'a> LoraFacts<'a> {
    pub fn of(adapter: &'a AdapterFile, spec: &'a LoraSpec, base: Option<&'a Config>) -> Self {
        let modules: BTreeSet<&str> = adapter.tensors.keys().filter_map(|n| adapter.spec.module_of(n)).collect();
        let numbers = match LoraModules::new(spec) {
            Ok(lora) => {
                let of = |m: &&str| AdaptedModule { rank: lora.rank(m), alpha: lora.alpha(m), scale: lora.scale(m) };
                modules.iter().map(of).collect()
            }
            Err(_) => Vec::new(),
        };
        Self { spec, modules, numbers, base }
    }

    /// Returns what no program but PEFT reads beside plain factors of linear layers: modules in full, biases, rows of tokens.
    pub fn beside_factors(&self) -> Vec<String> {
        let whole = &self.spec.modules_to_save;
        let whole = (!whole.is_empty()).then(|| format!("modules_to_save holds {}", whole.join(", ")));
        let bias = self.spec.bias.then(|| "a bias behind B".to_string());
        let rows = !self.spec.token_rows.is_empty() || !self.spec.head_rows.is_empty();
        let rows = rows.then(|| "trained rows of the embedding".to_string());
        [whole, bias, rows].into_iter().flatten().collect()
    }

    /// Returns true if the output head or the embedding is adapted.
    pub fn adapts_vocabulary(&self) -> bool {
        self.modules.iter().any(|m| EMBEDDINGS.iter().chain([&HEAD]).any(|e| m.ends_with(e)))
    }

    /// Returns true if experts are adapted.
    pub fn adapts_experts(&self) -> bool {
        self.modules.iter().any(|m| expert_number(m).is_some())
    }

    /// Returns true if some experts of a layer are adapted and others are not, or if it is not known how many there are.
    pub fn adapts_some_experts(&self) -> bool {
        let all = self.base.and_then(|base| base.experts.as_ref()).map(|experts| experts.count as usize);
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for module in self.modules.iter().filter(|m| expert_number(m).is_some()) {
            let layer = &module[..module.find(".experts.").unwrap_or(0)];
            *counts.entry((layer, module.rsplit('.').next().unwrap_or_default())).or_default() += 1;
        }
        counts.values().any(|count| Some(*count) != all)
    }

    /// Returns the reasons why PEFT cannot read it.
    pub fn peft_refusals(&self) -> Vec<String> {
        let experts = self.base.map_or(ExpertFiles::None, Config::expert_files);
        expert_adapters::peft_refusals(self.spec, &self.modules, experts).into_iter().map(str::to_string).collect()
    }

    /// Returns the largest rank.
    pub fn largest_rank(&self) -> i64 {
        self.numbers.iter().map(|n| n.rank).max().unwrap_or(self.spec.rank)
    }

    /// Returns true if a module has another rank than adapter_config.json says for all.
    pub fn has_other_ranks(&self) -> bool {
        self.numbers.iter().any(|n| n.rank != self.spec.rank)
    }

    /// Returns true if a module has another alpha than adapter_config.json says for all.
    pub fn has_other_alphas(&self) -> bool {
        self.numbers.iter().any(|n| n.alpha != self.spec.alpha)
    }

    /// Returns true if a module's scale is not the one that follows from rank and alpha for all.
    pub fn has_other_scales(&self) -> bool {
        let common = lora::scale(self.spec.alpha, self.spec.rank, self.spec.rslora);
        self.numbers.iter().any(|n| (n.scale - common).abs() > 1e-9 * common.abs())
    }

    /// Returns true if rsLoRA gives another scale than alpha / rank somewhere.
    pub fn needs_rslora(&self) -> bool {
        self.spec.rslora && self.numbers.iter().any(|n| n.rank != 1)
    }

    /// Returns the last parts of the modules' names.
    pub fn names(&self) -> BTreeSet<&'a str> {
        self.modules.iter().map(|m| m.rsplit('.').next().unwrap_or(m)).collect()
    }

    /// Returns an adapted module of another name than these.
    pub fn other_than(&self, known: &[&str]) -> Option<&'a str> {
        self.names().into_iter().find(|name| !known.contains(name))
    }

    /// Returns true if some of these modules are adapted, but not `needed` or not all.
    pub fn adapts_some(&self, group: &[&str], needed: &[&str]) -> bool {
        let mut layers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for module in &self.modules {
            let (parent, name) = module.rsplit_once('.').unwrap_or(("", module));
            if group.contains(&name) {
                layers.entry(parent).or_default().insert(name);
            }
        }
        layers.values().any(|found| needed.iter().any(|name| !found.contains(name)))
    }

    /// Returns a kind of module that is adapted in some layers of the base only; `None` also if the base is not known.
    pub fn absent_somewhere(&self) -> Option<&'a str> {
        let layers = self.base?.num_hidden_layers as usize;
        let mut found: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for module in &self.modules {
            let name = module.rsplit('.').next().unwrap_or(module);
            found.entry(name).or_default().extend(layer_number(module));
        }
        found.into_iter().find(|(_, numbers)| numbers.len() != layers).map(|(name, _)| name)
    }
}
