//! `ft adapter suggest`: measures on a run's own data which layers are worth adapting and with which ranks.
//!
//! `measure` estimates the gradient of each layer's weight along its most important directions, `allocate` spends a
//! number of parameters on the directions that are worth most.

mod allocate;
mod measure;

use super::prepare;
use crate::adapters::{AdapterSpec, LoraSpec, Targets};
use crate::error::{Error, Result};
use crate::models::TrainedPart;
use crate::recipe::plan::Plan;
use indexmap::IndexMap;
use measure::MeasuredModule;
use serde::Serialize;

/// How gradients are measured, and how many parameters are spent.
#[derive(Debug, Clone, Copy)]
pub struct SuggestOptions {
    /// Optimiser steps in each of the three parts of the measurement.
    pub steps: usize,
    /// Rank whose number of parameters, if all linear layers had it, is spent; `None`: that of the recipe's adapter.
    pub rank: Option<i64>,
    /// Largest rank that one module may get.
    pub largest: i64,
}

/// What is known about one linear layer.
#[derive(Debug, Clone, Serialize)]
pub struct ModuleAdvice {
    /// The module's name.
    pub module: String,
    /// Estimate of the squared norm of the gradient of the layer's weight, along the measured directions: the decrease
    /// of the loss, to first order and per learning rate, of a step along that gradient.
    pub gain: f64,
    /// Share of the whole model's measured gain.
    pub share: f64,
    /// Cosine between two independent estimates of the gradient: near 0, rows agree on nothing here.
    pub agreement: f64,
    /// The suggested rank; 0: leave the module out.
    pub rank: i64,
    /// Trained parameters at this rank.
    pub parameters: i64,
}

/// Which layers and ranks are worth what.
#[derive(Debug, Clone, Serialize)]
pub struct Suggestion {
    /// Every linear layer, in the model's order.
    pub modules: Vec<ModuleAdvice>,
    /// The rank that would cost as many parameters if every linear layer had it.
    pub uniform_rank: i64,
    /// Trained parameters as suggested, and with the uniform rank.
    pub parameters: [i64; 2],
    /// Share of the measured gain within reach as suggested, and with the uniform rank.
    pub reached: [f64; 2],
    /// The adapter section of the suggested recipe.
    pub adapter: AdapterSpec,
}

/// Measures gradients of the recipe's method on its own rows, without training anything. Runs three times
/// `options.steps` optimiser steps forward and backward. Fails for a recipe that continues an adapter.
pub fn suggest(plan: &Plan, options: SuggestOptions) -> Result<Suggestion> {
    let given = match &plan.recipe.adapter {
        Some(adapter) if adapter.continues().is_some() => {
            return Err(Error::user(format!(
                "{}: it continues an adapter, whose ranks are fixed",
                plan.file.display()
            ))
            .hint("leave adapter.lora.from out: the base is measured"));
        }
        Some(AdapterSpec::Lora(lora)) => lora.clone(),
        _ => LoraSpec::default(),
    };
    let uniform = options.rank.unwrap_or(given.rank);
    let mut plan = plan.clone();
    plan.recipe.model.trained = TrainedPart::All;
    plan.recipe.adapter = Some(AdapterSpec::Lora(LoraSpec {
        rank: options.largest,
        alpha: options.largest as f64, // a scale of 1
        targets: Targets::default(),
        modules_to_save: given.modules_to_save.clone(),
        ..LoraSpec::default()
    }));
    let prepared = prepare::prepare(&plan)?;
    let plan = prepared.plan.clone();
    let model = prepared.load_model()?;
    let (method, _) = prepared.into_method(&model)?;
    let modules = measure::measure(&plan, &model, method, options.steps)?;
    Ok(advise(&given, uniform, options.largest, &modules))
}

/// Chooses ranks for measured modules. `given` is the recipe's adapter.
fn advise(given: &LoraSpec, uniform: i64, largest: i64, modules: &[MeasuredModule]) -> Suggestion {
    let total = modules.iter().map(MeasuredModule::gain).sum::<f64>().max(f64::MIN_POSITIVE);
    let budget = modules.iter().map(|m| m.cost() * uniform).sum();
    let ranks = allocate::ranks(modules, budget);
    let reached = |ranks: &[i64]| modules.iter().zip(ranks).map(|(m, r)| m.gain_of(*r)).sum::<f64>() / total;
    let cost = |ranks: &[i64]| modules.iter().zip(ranks).map(|(m, r)| m.cost() * r).sum::<i64>();
    let everywhere = vec![uniform.min(largest); modules.len()];
    let advice = |(m, rank): (&MeasuredModule, &i64)| ModuleAdvice {
        module: m.name.clone(),
        gain: m.gain(),
        share: m.gain() / total,
        agreement: m.agreement,
        rank: *rank,
        parameters: m.cost() * rank,
    };
    Suggestion {
        modules: modules.iter().zip(&ranks).map(advice).collect(),
        uniform_rank: uniform,
        parameters: [cost(&ranks), cost(&everywhere)],
        reached: [reached(&ranks), reached(&everywhere)],
        adapter: AdapterSpec::Lora(with_ranks(given, modules, &ranks)),
    }
}

/// Returns the recipe's adapter with these ranks. The scale alpha / rank stays that of the recipe in every module, so
/// that the learning rate need not change.
fn with_ranks(given: &LoraSpec, modules: &[MeasuredModule], ranks: &[i64]) -> LoraSpec {
    let used: Vec<(&str, i64)> =
        modules.iter().zip(ranks).filter(|(_, r)| **r > 0).map(|(m, r)| (m.name.as_str(), *r)).collect();
    let mut counts: IndexMap<i64, usize> = IndexMap::new();
    used.iter().for_each(|(_, r)| *counts.entry(*r).or_default() += 1);
    let common = counts.iter().max_by_key(|(rank, n)| (**n, **rank)).map_or(given.rank, |(rank, _)| *rank);
    let alpha = |rank: i64| match given.rslora {
        true => given.alpha * (rank as f64 / given.rank as f64).sqrt(),
        false => given.alpha * rank as f64 / given.rank as f64,
    };
    let unlike = || used.iter().filter(|(_, r)| *r != common);
    let pattern = |name: &str| fancy_regex::escape(name).into_owned();
    LoraSpec {
        rank: common,
        alpha: alpha(common),
        targets: Targets::Names(used.iter().map(|(name, _)| name.to_string()).collect()),
        exclude: None,
        layers: None,
        layers_pattern: Vec::new(),
        rank_pattern: unlike().map(|(name, r)| (pattern(name), *r)).collect(),
        alpha_pattern: unlike().map(|(name, r)| (pattern(name), alpha(*r))).collect(),
        ..given.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, gains: &[f64]) -> MeasuredModule {
        MeasuredModule { name: name.into(), inputs: 10, outputs: 10, gains: gains.to_vec(), agreement: 0.5 }
    }

    /// Two parameters' worth of rank go to the module with two strong directions; the scale of both stays the same.
    #[test]
    fn ranks_go_where_the_gain_is() {
        let modules = [module("a", &[5.0, 4.0, 1.0]), module("b", &[2.0, 0.0, 0.0]), module("c", &[0.1, 0.1, 0.1])];
        let given = LoraSpec { rank: 1, alpha: 2.0, ..LoraSpec::default() };
        let found = advise(&given, 1, 3, &modules);
        assert_eq!(found.modules.iter().map(|m| m.rank).collect::<Vec<_>>(), [2, 1, 0]);
        assert_eq!(found.parameters, [60, 60]);
        assert!(found.reached[0] > found.reached[1] && (found.reached[0] - 11.0 / 12.3).abs() < 1e-9);
        let lora = found.adapter.as_lora().unwrap();
        let rules = crate::adapters::lora::LoraModules::new(lora).unwrap();
        assert_eq!((rules.rank("a"), rules.rank("b")), (2, 1));
        assert_eq!((rules.scale("a"), rules.scale("b")), (2.0, 2.0));
        assert!(matches!(&lora.targets, Targets::Names(names) if *names == ["a", "b"]));
    }
}
