//! The methods by name, their parameters, and how many models they take: those of mergekit 0.1.

use std::collections::BTreeMap;

/// A method that merges whole models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelMethod {
    /// The weighted mean (arXiv 2203.05482).
    Linear,
    /// Spherical interpolation between two models.
    Slerp,
    /// Spherical interpolation between two models, or between their changes of a base.
    Nuslerp,
    /// The weighted mean of directions, with the weighted mean of norms.
    Multislerp,
    /// The Karcher mean of directions on the sphere, with the mean of norms.
    Karcher,
    /// The weighted sum of changes (arXiv 2212.04089).
    TaskArithmetic,
    /// The largest entries of each change, added up where they have the elected sign (arXiv 2306.01708).
    Ties,
    /// Random entries of each change, added up (arXiv 2311.03099).
    DareLinear,
    /// Random entries of each change, added up where they have the elected sign.
    DareTies,
    /// Random entries, larger ones with a higher probability, added up where they have the elected sign (arXiv 2406.11617).
    Della,
    /// Random entries, larger ones with a higher probability, added up.
    DellaLinear,
    /// Each change without its smallest entries and without the very largest, added up (arXiv 2312.06795).
    Breadcrumbs,
    /// The same, added up where they have the elected sign.
    BreadcrumbsTies,
    /// The entries whose changes vary most, weighted by the energy of each change (arXiv 2408.07990).
    Sce,
    /// The mean, moved towards the base by the angles between changes (arXiv 2403.19522).
    ModelStock,
    /// One model as it is; slices of several make a taller model.
    Passthrough,
}

/// Whether a method needs to know which model is the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BasePolicy {
    /// It merges changes of the base.
    Required,
    /// With a base it merges changes, without one the weights themselves.
    Optional,
    /// The base is a model like the others.
    Ignored,
}

/// What a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterScope {
    /// To the merge of a tensor.
    Shared,
    /// To each model.
    Input,
    /// To each model but the base.
    NonBase,
}

/// What values a parameter has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParameterKind {
    /// True or false.
    Truth,
    /// Whole numbers from 1.
    Whole,
    /// Any number.
    Number,
    /// A number from 0 to 1.
    Share,
}

/// A parameter of a method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParameterSpec {
    /// Its name in files.
    pub name: &'static str,
    /// What it belongs to.
    pub scope: ParameterScope,
    /// What values it has.
    pub kind: ParameterKind,
    /// Its value if none is given; `None`: one must be given, or the method does without ([`ParameterSpec::required`]).
    pub default: Option<f64>,
    /// Whether a value must be given.
    pub required: bool,
}

use ParameterKind::{Number, Share, Truth, Whole};
use ParameterScope::{Input, NonBase, Shared};

const fn given(name: &'static str, scope: ParameterScope, kind: ParameterKind, default: f64) -> ParameterSpec {
    ParameterSpec { name, scope, kind, default: Some(default), required: false }
}

const fn required(name: &'static str, scope: ParameterScope, kind: ParameterKind) -> ParameterSpec {
    ParameterSpec { name, scope, kind, default: None, required: true }
}

const fn truth(name: &'static str, default: bool) -> ParameterSpec {
    given(name, Shared, Truth, if default { 1.0 } else { 0.0 })
}

const WEIGHT: ParameterSpec = required("weight", NonBase, Number);
const DENSITY: ParameterSpec = given("density", NonBase, Share, 1.0);
const LAMBDA: ParameterSpec = given("lambda", Shared, Number, 1.0);
/// Of mergekit, which then computes masks in 8 bits; it changes no result and nothing here.
const INT8_MASK: ParameterSpec = truth("int8_mask", false);
const GAMMA: ParameterSpec = given("gamma", NonBase, Share, 0.01);
const EPSILON: ParameterSpec = given("epsilon", NonBase, Share, 0.15);
const TOLERANCE: ParameterSpec = given("eps", Shared, Number, 1e-8);

/// Parameters of methods on changes: by whether the sum is divided by the weights, and whether the entries that are kept are
/// rescaled.
macro_rules! changes {
    ($normalize:expr, $rescale:expr $(, $more:expr)*) => {
        &[INT8_MASK, truth("normalize", $normalize), truth("rescale", $rescale), LAMBDA, WEIGHT, DENSITY $(, $more)*]
    };
}

impl ModelMethod {
    /// All methods.
    pub const ALL: [Self; 16] = [
        Self::Linear,
        Self::Slerp,
        Self::Nuslerp,
        Self::Multislerp,
        Self::Karcher,
        Self::TaskArithmetic,
        Self::Ties,
        Self::DareLinear,
        Self::DareTies,
        Self::Della,
        Self::DellaLinear,
        Self::Breadcrumbs,
        Self::BreadcrumbsTies,
        Self::Sce,
        Self::ModelStock,
        Self::Passthrough,
    ];

    /// Returns the name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Slerp => "slerp",
            Self::Nuslerp => "nuslerp",
            Self::Multislerp => "multislerp",
            Self::Karcher => "karcher",
            Self::TaskArithmetic => "task_arithmetic",
            Self::Ties => "ties",
            Self::DareLinear => "dare_linear",
            Self::DareTies => "dare_ties",
            Self::Della => "della",
            Self::DellaLinear => "della_linear",
            Self::Breadcrumbs => "breadcrumbs",
            Self::BreadcrumbsTies => "breadcrumbs_ties",
            Self::Sce => "sce",
            Self::ModelStock => "model_stock",
            Self::Passthrough => "passthrough",
        }
    }

    /// Returns the method of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// Returns its parameters.
    pub fn parameters(self) -> &'static [ParameterSpec] {
        match self {
            Self::Linear => const { &[required("weight", Input, Number), truth("normalize", true)] },
            Self::Slerp => const { &[required("t", Shared, Number)] },
            Self::Nuslerp => const { &[WEIGHT, truth("nuslerp_row_wise", false), truth("nuslerp_flatten", true)] },
            Self::Multislerp => const { &[WEIGHT, truth("normalize_weights", true), TOLERANCE] },
            Self::Karcher => const { &[given("max_iter", Shared, Whole, 10.0), given("tol", Shared, Number, 1e-5)] },
            Self::TaskArithmetic => const { changes!(false, false) },
            Self::Ties => const { changes!(true, false) },
            Self::DareLinear | Self::DareTies => const { changes!(false, true) },
            Self::Della => const { changes!(true, true, EPSILON) },
            Self::DellaLinear => const { changes!(false, true, EPSILON) },
            Self::Breadcrumbs | Self::BreadcrumbsTies => const { changes!(false, false, GAMMA) },
            Self::Sce => const { &[INT8_MASK, given("select_topk", Shared, Share, 1.0)] },
            Self::ModelStock => const { &[truth("filter_wise", false)] },
            Self::Passthrough => {
                const {
                    let scale =
                        ParameterSpec { name: "scale", scope: Input, kind: Number, default: None, required: false };
                    &[scale]
                }
            }
        }
    }

    /// Returns the parameter of this name; `None` if the method has none.
    pub fn parameter(self, name: &str) -> Option<&'static ParameterSpec> {
        self.parameters().iter().find(|parameter| parameter.name == name)
    }

    /// Returns whether the method needs a base.
    pub fn base(self) -> BasePolicy {
        match self {
            Self::Linear | Self::Karcher | Self::Passthrough => BasePolicy::Ignored,
            Self::Nuslerp | Self::Multislerp => BasePolicy::Optional,
            _ => BasePolicy::Required,
        }
    }

    /// Returns the smallest and largest number of models that are merged into one tensor, a base included if it is required.
    /// Without a limit the largest is `usize::MAX`.
    pub fn models(self) -> (usize, usize) {
        match self {
            Self::Slerp | Self::Nuslerp => (2, 2),
            Self::ModelStock => (3, usize::MAX),
            Self::Passthrough => (1, 1),
            _ => (1, usize::MAX),
        }
    }

    /// Returns true if the entries that are kept are random.
    pub fn is_random(self) -> bool {
        matches!(self, Self::DareLinear | Self::DareTies | Self::Della | Self::DellaLinear)
    }

    /// Returns true if a sign is elected for every entry.
    pub(super) fn elects_signs(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies | Self::Della | Self::BreadcrumbsTies)
    }
}

/// The values of a method's parameters for one tensor.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ParameterValues {
    /// Those of the tensor, by name.
    pub shared: BTreeMap<&'static str, f64>,
    /// Those of each part, by name.
    pub parts: Vec<BTreeMap<&'static str, f64>>,
}

impl ParameterValues {
    /// Returns a parameter of the tensor.
    ///
    /// # Panics
    /// If there is none: the values are resolved from the method's own table.
    pub fn number(&self, name: &str) -> f64 {
        self.shared[name]
    }

    /// Returns a parameter of the tensor that is true or false.
    pub fn is(&self, name: &str) -> bool {
        self.number(name) != 0.0
    }

    /// Returns the parameter of a part; `None` if it has none.
    pub fn of(&self, part: usize, name: &str) -> Option<f64> {
        self.parts[part].get(name).copied()
    }

    /// Fails if the values contradict each other; the error is a sentence.
    pub fn check(&self, method: ModelMethod) -> Result<(), String> {
        match method {
            ModelMethod::Linear if self.is("normalize") => {
                let sum: f64 = (0..self.parts.len()).filter_map(|part| self.of(part, "weight")).sum();
                if sum == 0.0 {
                    return Err("the weights add up to 0, and `normalize` divides by their sum".into());
                }
            }
            ModelMethod::Della | ModelMethod::DellaLinear => {
                for part in 0..self.parts.len() {
                    let (Some(density), Some(epsilon)) = (self.of(part, "density"), self.of(part, "epsilon")) else {
                        continue;
                    };
                    let inside = density - epsilon > 0.0 && density + epsilon < 1.0;
                    if density < 1.0 && density > 0.0 && !inside {
                        return Err(format!(
                            "density {density} with epsilon {epsilon}: probabilities from {} to {} must be between 0 and 1",
                            density - epsilon,
                            density + epsilon
                        ));
                    }
                }
            }
            ModelMethod::Multislerp if self.is("normalize_weights") => {
                let weights: Vec<f64> = (0..self.parts.len()).filter_map(|part| self.of(part, "weight")).collect();
                if weights.len() > 1 && weights.iter().sum::<f64>() == 0.0 {
                    return Err("the weights add up to 0, and `normalize_weights` divides by their sum".into());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_name_and_has_its_parameters_once() {
        for method in ModelMethod::ALL {
            assert_eq!(ModelMethod::named(method.name()), Some(method));
            let mut names: Vec<&str> = method.parameters().iter().map(|p| p.name).collect();
            names.sort_unstable();
            let all = names.len();
            names.dedup();
            assert_eq!(names.len(), all, "{}", method.name());
        }
        assert_eq!(ModelMethod::Ties.parameter("normalize").unwrap().default, Some(1.0));
        assert!(ModelMethod::Slerp.parameter("weight").is_none());
    }

    #[test]
    fn values_that_contradict_each_other_are_refused() {
        let mut values = ParameterValues::default();
        values.shared.insert("normalize", 1.0);
        values.parts = vec![BTreeMap::from([("weight", 0.5)]), BTreeMap::from([("weight", -0.5)])];
        assert!(values.check(ModelMethod::Linear).unwrap_err().contains("add up to 0"));
        values.parts = vec![BTreeMap::from([("density", 0.9), ("epsilon", 0.15)])];
        assert!(values.check(ModelMethod::Della).unwrap_err().contains("must be between 0 and 1"));
        values.parts = vec![BTreeMap::from([("density", 0.5), ("epsilon", 0.15)])];
        assert_eq!(values.check(ModelMethod::Della), Ok(()));
    }
}
