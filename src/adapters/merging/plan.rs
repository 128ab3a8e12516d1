//! How adapters are merged: the names of the methods, their settings, and the plan that follows from them.

use crate::merging::{MajoritySign, Method, Rule, Truncation};
use std::fmt::Write;

/// What a method is applied to, and what becomes of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeWay {
    /// The changes of weights. As an adapter, a sum is written exactly and anything else is reduced.
    Changes,
    /// The changes of weights, added up exactly by putting their factors side by side.
    Concatenated,
    /// The changes of weights; the result is reduced to a rank.
    Reduced,
    /// The factors A and B themselves, as PEFT does.
    Factors,
}

/// Who says what each adapter's weight is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeShares {
    /// The user.
    Given,
    /// All adapters have the same, and their weights add up to 1: a soup (Wortsman et al. 2022, arXiv 2203.05482).
    Equal,
    /// The same, of the adapters that lower a held-out loss (the paper's greedy soup); the others have none.
    Chosen,
}

/// What a merge writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MergeForm {
    /// A whole model.
    #[default]
    Model,
    /// One adapter with the effect of all.
    Adapter,
}

/// The number format of the weights of a merged model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MergeDtype {
    /// The format that each weight has in the base.
    #[default]
    Base,
    /// bfloat16.
    Bf16,
    /// float32.
    F32,
}

/// A method by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedMethod {
    /// The name in commands and files.
    pub name: &'static str,
    /// What it does to the tensors.
    pub method: Method,
    /// What it is applied to.
    pub way: MergeWay,
    /// Who says what each adapter's weight is.
    pub shares: MergeShares,
}

const fn named(name: &'static str, method: Method, way: MergeWay) -> NamedMethod {
    NamedMethod { name, method, way, shares: MergeShares::Given }
}

const fn soup(name: &'static str, shares: MergeShares) -> NamedMethod {
    NamedMethod { name, method: Method::Linear, way: MergeWay::Changes, shares }
}

/// All methods. Names without `peft_` mean in PEFT what they mean here if they end in `svd` or are `cat`.
pub const METHODS: [NamedMethod; 18] = [
    named("linear", Method::Linear, MergeWay::Changes),
    soup("soup", MergeShares::Equal),
    soup("greedy_soup", MergeShares::Chosen),
    named("cat", Method::Linear, MergeWay::Concatenated),
    named("svd", Method::Linear, MergeWay::Reduced),
    named("ties", Method::Ties, MergeWay::Changes),
    named("ties_svd", Method::Ties, MergeWay::Reduced),
    named("dare_linear", Method::DareLinear, MergeWay::Changes),
    named("dare_linear_svd", Method::DareLinear, MergeWay::Reduced),
    named("dare_ties", Method::DareTies, MergeWay::Changes),
    named("dare_ties_svd", Method::DareTies, MergeWay::Reduced),
    named("magnitude_prune", Method::MagnitudePrune, MergeWay::Changes),
    named("magnitude_prune_svd", Method::MagnitudePrune, MergeWay::Reduced),
    named("peft_linear", Method::Linear, MergeWay::Factors),
    named("peft_ties", Method::Ties, MergeWay::Factors),
    named("peft_dare_linear", Method::DareLinear, MergeWay::Factors),
    named("peft_dare_ties", Method::DareTies, MergeWay::Factors),
    named("peft_magnitude_prune", Method::MagnitudePrune, MergeWay::Factors),
];

impl NamedMethod {
    /// Returns the method of this name.
    pub fn get(name: &str) -> Option<Self> {
        METHODS.into_iter().find(|m| m.name == name)
    }
}

impl Default for NamedMethod {
    fn default() -> Self {
        METHODS[0]
    }
}

/// The settings of a merge as a user gives them; `None`: not given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MergeSettings {
    /// The method.
    pub method: NamedMethod,
    /// The share of entries that is kept, of each adapter; one number is that of all.
    pub densities: Vec<f64>,
    /// How signs are elected.
    pub majority_sign: Option<MajoritySign>,
    /// The largest rank of the result.
    pub rank: Option<i64>,
    /// The share of the energy that the result keeps.
    pub energy: Option<f64>,
    /// True if the changes are first written in common directions.
    pub knots: bool,
    /// Determines which random entries are kept.
    pub seed: Option<u64>,
}

/// A setting that contradicts the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsMistake {
    /// The name of the setting, such as `density`.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do instead.
    pub hint: &'static str,
}

/// How adapters are merged.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MergePlan {
    /// The method as it was named.
    pub named: NamedMethod,
    /// The method for tensors.
    pub rule: Rule,
    /// The share of entries that is kept, of each adapter; empty if nothing is set to zero.
    pub densities: Vec<f64>,
    /// How far the result is reduced; `None`: not, or to the usual rank if it has to be.
    pub truncation: Option<Truncation>,
}

impl MergeSettings {
    /// Returns the plan for merging `parts` adapters, or everything that is wrong with the settings.
    pub fn plan(&self, parts: usize) -> Result<MergePlan, Vec<SettingsMistake>> {
        let mut mistakes = Vec::new();
        let NamedMethod { name, method, way, .. } = self.method;
        let mut wrong = |key, message: String, hint| mistakes.push(SettingsMistake { key, message, hint });
        if !self.densities.is_empty() && !method.prunes() {
            wrong("density", format!("`{name}` sets no entries to zero"), "leave it out, or choose another method");
        } else if let Some(density) = self.densities.iter().find(|d| !(**d > 0.0 && **d <= 1.0)) {
            wrong("density", format!("{density} is no share of entries"), "above 0 and at most 1, e.g. 0.2");
        } else if ![0, 1, parts].contains(&self.densities.len()) {
            let found = self.densities.len();
            wrong("density", format!("{found} numbers for {parts} adapters"), "give one for all, or one for each");
        }
        if self.majority_sign.is_some() && !method.elects_signs() {
            wrong("majority_sign", format!("`{name}` elects no signs"), "leave it out, or choose ties or dare_ties");
        }
        if self.seed.is_some() && !method.is_random() {
            wrong("seed", format!("nothing in `{name}` is random"), "leave it out, or choose dare_linear or dare_ties");
        }
        if self.knots && (method == Method::Linear || way == MergeWay::Factors) {
            wrong(
                "knots",
                format!("common directions do not change the result of `{name}`, or are no part of it"),
                "leave it out, or choose ties, dare_ties or another method that compares entries of changes",
            );
        }
        match (self.rank, self.energy) {
            (Some(_), Some(_)) => wrong("energy", "rank and energy are both given".into(), "give one of them"),
            (Some(rank), _) if rank < 1 => wrong("rank", format!("{rank} is no rank"), "at least 1"),
            (_, Some(share)) if !(share > 0.0 && share <= 1.0) => {
                wrong("energy", format!("{share} is no share of the energy"), "above 0 and at most 1, e.g. 0.99");
            }
            _ => {}
        }
        let key = if self.rank.is_some() { "rank" } else { "energy" };
        if (self.rank.is_some() || self.energy.is_some()) && matches!(way, MergeWay::Concatenated | MergeWay::Factors) {
            wrong(
                key,
                format!("`{name}` reduces nothing"),
                "leave it out, or choose svd or a method that ends in _svd",
            );
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let density = match method {
            Method::Linear => None,
            // TIES' experiments keep 20 % of each change. DARE's drop up to 90 % and more of large models' changes; half is
            // cautious.
            Method::Ties => Some(0.2),
            _ => Some(0.5),
        };
        let usual = density.into_iter().flat_map(|d| vec![d; parts]).collect();
        let densities = match self.densities[..] {
            [] => usual,
            [one] => vec![one; parts],
            _ => self.densities.clone(),
        };
        Ok(MergePlan {
            named: self.method,
            rule: Rule {
                method,
                majority_sign: self.majority_sign.unwrap_or_default(),
                seed: self.seed.unwrap_or_default(),
                knots: self.knots,
            },
            densities,
            truncation: self.rank.map(Truncation::Rank).or(self.energy.map(Truncation::Energy)),
        })
    }
}

impl MergePlan {
    /// Returns true if the result is the exact sum of the weighted changes.
    pub fn is_sum(&self) -> bool {
        self.rule.method == Method::Linear
            && self.truncation.is_none()
            && matches!(self.named.way, MergeWay::Changes | MergeWay::Concatenated)
    }

    /// Returns true if the changes of matrices become products of small rank, whatever is written.
    pub fn gives_products(&self) -> bool {
        self.truncation.is_some() || self.rule.knots || matches!(self.named.way, MergeWay::Reduced | MergeWay::Factors)
    }

    /// Returns the share of entries that is kept of an adapter.
    pub fn density(&self, part: usize) -> f64 {
        self.densities.get(part).copied().unwrap_or(1.0)
    }

    /// Returns a short description, such as `ties, density 0.2, rank 16`.
    pub fn describe(&self) -> String {
        let mut text = self.named.name.to_string();
        if let Some(first) = self.densities.first() {
            let all: Vec<String> = match self.densities.iter().all(|d| d == first) {
                true => vec![first.to_string()],
                false => self.densities.iter().map(f64::to_string).collect(),
            };
            let _ = write!(text, ", density {}", all.join(" "));
        }
        if self.rule.method.elects_signs() && self.rule.majority_sign == MajoritySign::Frequency {
            text += ", majority sign by frequency";
        }
        if self.rule.method.is_random() {
            let _ = write!(text, ", seed {}", self.rule.seed);
        }
        if self.rule.knots {
            text += ", in common directions";
        }
        match self.truncation {
            Some(Truncation::Rank(rank)) => text += &format!(", rank {rank}"),
            Some(Truncation::Energy(share)) => text += &format!(", energy {share}"),
            None => {}
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> MergeSettings {
        MergeSettings { method: NamedMethod::get(name).unwrap(), ..MergeSettings::default() }
    }

    #[test]
    fn settings_without_effect_are_refused_all_at_once() {
        let keys = |settings: MergeSettings| -> Vec<&str> {
            settings.plan(2).unwrap_err().into_iter().map(|m| m.key).collect()
        };
        let all = MergeSettings {
            densities: vec![0.5],
            majority_sign: Some(MajoritySign::Total),
            rank: Some(4),
            knots: true,
            seed: Some(1),
            ..of("cat")
        };
        assert_eq!(keys(all), ["density", "majority_sign", "seed", "knots", "rank"]);
        assert_eq!(keys(MergeSettings { densities: vec![0.5, 0.0], ..of("ties") }), ["density"]);
        assert_eq!(keys(MergeSettings { densities: vec![0.5; 3], ..of("ties") }), ["density"]);
        assert_eq!(keys(MergeSettings { rank: Some(0), energy: None, ..of("svd") }), ["rank"]);
        assert_eq!(keys(MergeSettings { rank: Some(2), energy: Some(0.9), ..of("svd") }), ["energy"]);
        assert_eq!(keys(MergeSettings { energy: Some(1.5), ..of("svd") }), ["energy"]);
        assert_eq!(keys(MergeSettings { knots: true, ..of("peft_ties") }), ["knots"]);
    }

    #[test]
    fn a_plan_says_what_becomes_of_the_result() {
        let plan = |settings: MergeSettings| settings.plan(2).unwrap();
        assert!(plan(of("linear")).is_sum() && plan(of("cat")).is_sum() && !plan(of("svd")).is_sum());
        assert!(!plan(of("peft_linear")).is_sum() && plan(of("peft_linear")).gives_products());
        assert!(!plan(MergeSettings { rank: Some(2), ..of("linear") }).is_sum());
        assert!(
            !plan(of("ties")).gives_products() && plan(MergeSettings { knots: true, ..of("ties") }).gives_products()
        );
        assert_eq!(plan(of("ties")).densities, [0.2, 0.2]);
        assert_eq!(
            plan(MergeSettings { densities: vec![0.3, 0.4], ..of("dare_ties") }).describe(),
            "dare_ties, density 0.3 0.4, seed 0"
        );
    }
}
