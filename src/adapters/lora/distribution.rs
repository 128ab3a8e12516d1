//! Distributes ranks over modules by how much of their inputs' variance each direction explains, as EVA does (Paischer et al.
//! 2024, arXiv 2410.07170, section 3.2).

use super::modules::LoraModules;
use super::spec::LoraSpec;
use crate::adapters::targets::Targets;
use crate::error::Result;
use std::collections::BTreeMap;

/// Returns the rank of each module: of all modules' directions, the `budget` that explain most of their own module's
/// variance are kept. `explained` has the shares of each module in descending order. A module may get rank 0.
pub fn distribute(explained: &BTreeMap<String, Vec<f64>>, budget: usize) -> BTreeMap<String, i64> {
    let mut all: Vec<(&str, f64)> = explained
        .iter()
        .flat_map(|(module, shares)| shares.iter().map(move |share| (module.as_str(), *share)))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1)); // stable: equal shares keep the order of names
    let mut ranks: BTreeMap<String, i64> = explained.keys().map(|module| (module.clone(), 0)).collect();
    for (module, _) in all.into_iter().take(budget) {
        *ranks.get_mut(module).expect("a module of the list") += 1;
    }
    ranks
}

impl LoraSpec {
    /// Returns these settings with another rank for each of the modules, which are all that they adapt. The scales of the
    /// updates stay. Modules of rank 0 are no longer adapted. Fails for invalid patterns.
    pub fn with_ranks(&self, ranks: &BTreeMap<String, i64>) -> Result<Self> {
        let (modules, mut spec) = (LoraModules::new(self)?, self.clone());
        (spec.rank_pattern, spec.alpha_pattern) = Default::default();
        for (module, rank) in ranks.iter().filter(|(_, rank)| **rank > 0) {
            let growth = *rank as f64 / modules.rank(module) as f64;
            let alpha = modules.alpha(module) * if self.rslora { growth.sqrt() } else { growth };
            let pattern = fancy_regex::escape(module).into_owned();
            if *rank != self.rank {
                spec.rank_pattern.insert(pattern.clone(), *rank);
            }
            if alpha != self.alpha {
                spec.alpha_pattern.insert(pattern, alpha);
            }
        }
        if ranks.values().any(|rank| *rank == 0) {
            let left = ranks.iter().filter(|(_, rank)| **rank > 0).map(|(module, _)| module.clone());
            spec.targets = Targets::Names(left.collect());
            (spec.exclude, spec.layers, spec.layers_pattern) = (None, None, Vec::new());
        }
        Ok(spec)
    }

    /// Returns true if these settings may be those that [`with_ranks`](Self::with_ranks) returned for `asked`, which asks
    /// for redistributed ranks.
    pub fn distributes_ranks_of(&self, asked: &Self) -> bool {
        let Self { rank_pattern, alpha_pattern, targets, exclude, layers, layers_pattern, .. } = self.clone();
        let same = Self {
            rank_pattern,
            alpha_pattern,
            targets,
            exclude,
            layers,
            layers_pattern,
            eva_rho: None,
            ..asked.clone()
        };
        asked.eva_rho.is_some() && *self == same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_the_explained_variance_and_keep_the_scales() {
        let shares = |list: &[f64]| list.to_vec();
        let explained = BTreeMap::from([
            ("a".to_string(), shares(&[0.9, 0.05, 0.01, 0.01])),
            ("b".to_string(), shares(&[0.3, 0.2, 0.2, 0.1])),
            ("c".to_string(), shares(&[0.04, 0.03, 0.02, 0.01])),
        ]);
        let ranks = distribute(&explained, 6);
        assert_eq!(ranks.values().copied().collect::<Vec<_>>(), [2, 4, 0]);
        assert_eq!(ranks.values().sum::<i64>(), 6);
        for rslora in [false, true] {
            let before = LoraSpec { rank: 2, alpha: 6.0, rslora, ..LoraSpec::default() };
            let after = before.with_ranks(&ranks).unwrap();
            let (then, now) = (LoraModules::new(&before).unwrap(), LoraModules::new(&after).unwrap());
            assert_eq!((now.rank("a"), now.rank("b")), (2, 4));
            assert!((now.scale("b") - then.scale("b")).abs() < 1e-12 && now.scale("a") == then.scale("a"));
            assert_eq!(after.targets, Targets::Names(vec!["a".into(), "b".into()]));
            let asked = LoraSpec { eva_rho: Some(2.0), ..before.clone() };
            assert!(after.distributes_ranks_of(&asked) && !after.distributes_ranks_of(&before));
            assert!(!after.distributes_ranks_of(&LoraSpec { rank: 3, ..asked }));
        }
    }
}
