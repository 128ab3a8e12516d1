//! Selects the modules that an adapter attaches to, by PEFT's rules for target names, exclusions and patterns.

use crate::error::{Error, Result};
use crate::nn::LayerKind;
use fancy_regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Which modules an adapter attaches to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)] // leaves only: a string or a list, no keys whose positions could be lost
pub enum Targets {
    /// `all-linear` (every linear layer but the output head), or a regular expression for the whole name.
    #[schemars(extend("format" = "regex"))]
    Pattern(String),
    /// Names or name endings.
    Names(#[schemars(length(min = 1))] Vec<String>),
}

impl Default for Targets {
    fn default() -> Self {
        Targets::Pattern("all-linear".into())
    }
}

/// A [`Targets`] with its regular expression compiled.
enum TargetMatcher {
    AllLinear,
    /// The whole name matches.
    Whole(Regex),
    /// The name is one of these or ends with `.` and one of these.
    Endings(Vec<String>),
}

impl TargetMatcher {
    fn new(targets: &Targets, key: &str) -> Result<Self> {
        Ok(match targets {
            Targets::Pattern(p) if p == "all-linear" => TargetMatcher::AllLinear,
            Targets::Pattern(p) => TargetMatcher::Whole(regex(&format!("^(?:{p})$"), p, key)?),
            Targets::Names(names) => TargetMatcher::Endings(names.clone()),
        })
    }

    fn matches(&self, name: &str, layer: LayerKind) -> bool {
        match self {
            TargetMatcher::AllLinear => layer == LayerKind::Linear,
            TargetMatcher::Whole(r) => r.is_match(name).unwrap_or(false),
            TargetMatcher::Endings(names) => names.iter().any(|n| ends_with(name, n)),
        }
    }

    /// Returns true if the module is named in full and not by an ending. Layer numbers do not restrict such a target.
    fn names_exactly(&self, name: &str) -> bool {
        matches!(self, TargetMatcher::Endings(names) if names.iter().any(|n| n == name))
    }
}

/// Returns true if the name is `ending` or ends with `.` and `ending`.
fn ends_with(name: &str, ending: &str) -> bool {
    name.strip_suffix(ending).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// Compiles `full`; `shown` is what was written under `key`, for errors.
pub(super) fn regex(full: &str, shown: &str, key: &str) -> Result<Regex> {
    Regex::new(full).map_err(|e| {
        Error::user(format!("{key}: `{shown}` is not a regular expression: {e}"))
            .hint("a list of names needs brackets: [q_proj, v_proj]")
    })
}

/// Values by name pattern, e.g. ranks. Patterns are matched as `(.*\.)?(pattern)$`; the first match is used.
pub(super) struct PatternValues<T> {
    list: Vec<(Regex, T)>,
    default: T,
}

impl<T: Copy> PatternValues<T> {
    /// Compiles the patterns; `key` is named in errors.
    pub fn new<'a>(list: impl IntoIterator<Item = (&'a String, &'a T)>, default: T, key: &str) -> Result<Self>
    where
        T: 'a,
    {
        let list = list
            .into_iter()
            .map(|(p, v)| Ok((regex(&format!(r"^(.*\.)?({p})$"), p, key)?, *v)))
            .collect::<Result<_>>()?;
        Ok(Self { list, default })
    }

    /// Returns the value for a module.
    pub fn get(&self, name: &str) -> T {
        self.list.iter().find(|(r, _)| r.is_match(name).unwrap_or(false)).map_or(self.default, |(_, v)| *v)
    }
}

/// The settings of an adapter that select modules.
pub struct ModuleRules<'a> {
    /// Name of the kind's section in a recipe, for errors.
    pub kind: &'static str,
    /// The modules that are adapted.
    pub targets: &'a Targets,
    /// Modules that are left out.
    pub exclude: Option<&'a Targets>,
    /// Numbers of the layers that are adapted; `None`: all.
    pub layers: Option<&'a [i64]>,
    /// Names of the module lists that the numbers count in; empty: any.
    pub layers_pattern: &'a [String],
    /// Modules that are trained in full.
    pub modules_to_save: &'a [String],
}

/// The settings of an adapter that follow from the model when it is saved, to change them.
pub struct ModuleRulesMut<'a> {
    /// The modules that are adapted.
    pub targets: &'a mut Targets,
    /// Modules that are left out.
    pub exclude: &'a mut Option<Targets>,
    /// Numbers of the layers that are adapted; `None`: all.
    pub layers: &'a mut Option<Vec<i64>>,
    /// Names of the module lists that the numbers count in; empty: any.
    pub layers_pattern: &'a mut Vec<String>,
    /// Modules that are trained in full.
    pub modules_to_save: &'a mut Vec<String>,
    /// True if adapted weights are stored as (in, out).
    pub fan_in_fan_out: &'a mut bool,
}

/// The rules of an adapter about which modules are adapted, and which are trained in full.
pub struct ModuleSelection {
    kind: &'static str,
    targets: TargetMatcher,
    exclude: Option<TargetMatcher>,
    layers: Option<LayerFilter>,
    /// Modules to save: those whose name ends with the text (PEFT requires no dot before it), and all modules inside
    /// of them, which the pattern matches.
    save: Vec<(String, Regex)>,
    /// Rules that matched a module, so that unused ones can be reported.
    matched_rules: RefCell<BTreeSet<String>>,
}

struct LayerFilter {
    numbers: Vec<i64>,
    pattern: Regex,
}

/// How a selected module is trained.
pub enum ModuleAdaptation {
    /// By the adapter.
    Adapted,
    /// In full, as a module to save.
    Save,
}

impl ModuleSelection {
    /// Compiles the rules. Fails for invalid regular expressions and contradicting settings.
    pub(super) fn new(rules: ModuleRules) -> Result<Self> {
        let key = |name: &str| format!("adapter.{}.{name}", rules.kind);
        let numbers = rules.layers.filter(|n| !n.is_empty());
        let whole = matches!(rules.targets, Targets::Pattern(p) if p != "all-linear");
        let layers = match numbers {
            Some(_) if whole => {
                return Err(Error::user(format!(
                    "{}: cannot be combined with targets given as one regular expression",
                    key("layers")
                ))
                .hint("give targets as a list of names, or put the layer numbers into the expression"));
            }
            Some(numbers) => {
                let lists = match rules.layers_pattern.is_empty() {
                    true => r".*?\.[^.]*".to_string(),
                    false => format!(r"(?:|.*?\.)(?:{})", rules.layers_pattern.join("|")),
                };
                let pattern = regex(&format!(r"^{lists}\.(\d+)\."), &lists, &key("layers_pattern"))?;
                Some(LayerFilter { numbers: numbers.to_vec(), pattern })
            }
            None => None,
        };
        let save = |m: &String| Ok((m.clone(), regex(&format!(r"^(?:|.*\.){m}\..*"), m, &key("modules_to_save"))?));
        Ok(Self {
            kind: rules.kind,
            targets: TargetMatcher::new(rules.targets, &key("targets"))?,
            exclude: rules.exclude.map(|t| TargetMatcher::new(t, &key("exclude"))).transpose()?,
            layers,
            save: rules.modules_to_save.iter().map(save).collect::<Result<_>>()?,
            matched_rules: RefCell::default(),
        })
    }

    /// Returns how the module is trained; `None` if it is not. Modules to save are never targets.
    pub fn adaptation(&self, name: &str, layer: LayerKind) -> Option<ModuleAdaptation> {
        let inside = |r: &Regex| r.is_match(name).unwrap_or(false);
        if let Some((rule, _)) = self.save.iter().find(|(ending, r)| name.ends_with(ending.as_str()) || inside(r)) {
            self.matched_rules.borrow_mut().insert(rule.clone());
            return Some(ModuleAdaptation::Save);
        }
        if self.exclude.as_ref().is_some_and(|e| e.matches(name, layer)) || !self.targets.matches(name, layer) {
            return None;
        }
        if let Some(l) = self.layers.as_ref().filter(|_| !self.targets.names_exactly(name)) {
            let number = l.pattern.captures(name).ok().flatten().and_then(|c| c.get(1)?.as_str().parse::<i64>().ok());
            if !number.is_some_and(|n| l.numbers.contains(&n)) {
                return None;
            }
        }
        if let TargetMatcher::Endings(names) = &self.targets {
            self.matched_rules.borrow_mut().extend(names.iter().filter(|n| ends_with(name, n)).cloned());
        } else {
            self.matched_rules.borrow_mut().insert(String::new());
        }
        Some(ModuleAdaptation::Adapted)
    }

    /// Returns true if the tensor belongs to a module that is trained in full and saved.
    pub fn is_saved_whole(&self, tensor: &str) -> bool {
        let module = tensor.rsplit_once('.').map_or(tensor, |(module, _)| module);
        self.save.iter().any(|(ending, r)| module.ends_with(ending.as_str()) || r.is_match(module).unwrap_or(false))
    }

    /// Checks, after all modules have been offered, that the rules matched some. With `every`, as for a recipe, each
    /// name must have matched a module. PEFT's own files may name modules that the model lacks, so that one match is
    /// enough.
    pub fn check(&self, every: bool) -> Result<()> {
        let hits = self.matched_rules.borrow();
        let names: Vec<&String> = match &self.targets {
            TargetMatcher::Endings(names) => names.iter().collect(),
            _ if hits.contains("") => Vec::new(),
            _ => {
                return Err(Error::user(format!("adapter.{}.targets: the pattern selects no linear layer of the model", self.kind))
                    .hint("it must match the whole name, e.g. `.*\\.(q|v)_proj`; a list of endings is simpler: [q_proj, v_proj]"));
            }
        };
        let met = |n: &&String| hits.contains(*n);
        let missing: Vec<&String> = match every {
            true => names.into_iter().chain(self.save.iter().map(|(n, _)| n)).filter(|n| !met(n)).collect(),
            false if names.iter().any(met) => Vec::new(),
            false => names,
        };
        if missing.is_empty() && (every || !hits.is_empty()) {
            return Ok(());
        }
        let shown = missing.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        let err = Error::user(format!("adapter: no module of the model matches {shown}"));
        Err(match self.layers.is_some() || self.exclude.is_some() {
            true => err.hint("layers and exclude may leave nothing of the targets: layers count from 0"),
            false => err.hint("llama-like models have q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; gpt2 has c_attn, c_proj, c_fc; or use all-linear"),
        })
    }
}

/// Returns a short list of target names that selects exactly `adapted` among `all` modules of a model: the last parts
/// of the names if they match no other module, otherwise the full names. A number alone would also match lists of layers, so
/// that the name of its list is a part, too.
pub fn shortest_target_names<'a>(adapted: &BTreeSet<&str>, all: impl Iterator<Item = &'a str>) -> Vec<String> {
    let last = |name: &str| {
        let parts = name.rsplit('.').take_while({
            let mut numbers = true;
            move |part| std::mem::replace(&mut numbers, part.parse::<u64>().is_ok())
        });
        let length = parts.map(|part| part.len() + 1).sum::<usize>().saturating_sub(1);
        name[name.len() - length..].to_string()
    };
    let short: BTreeSet<String> = adapted.iter().map(|n| last(n)).collect();
    let exact = all.into_iter().all(|n| adapted.contains(n) || !short.contains(&last(n)));
    if exact { short.into_iter().collect() } else { adapted.iter().map(|n| n.to_string()).collect() }
}
