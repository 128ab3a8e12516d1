//! The plan: a recipe with all defaults filled in, stored in plan.json as the record of a run's settings.
//!
//! Invariant: paths are absolute; `optim.lr` is set; `batch.accumulate` or `batch.examples` is set unless the method
//! samples its own answers; with `model.init: random`, `model.config` is set and `model.path` is the tokenizer's
//! folder.

use super::mistakes::{Mistake, SourceTexts};
use super::written::WrittenRecipe;
use super::{check, conflicts, overrides, tree};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::methods::MethodSpec;
use crate::nn::QuantisedFormat;
use crate::recipe::optim::{GroupSpec, OptimKind, OptimSection, Schedule};
use crate::recipe::sections::{ModelConfig, Recipe};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Maximum size of a recipe file in bytes, so that a weights file given by mistake is not read.
const LARGEST: u64 = 1 << 20;

/// The complete settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The values that the run uses.
    pub recipe: Recipe,
    /// Path of the recipe file.
    pub file: PathBuf,
    /// The `--set` arguments (`KEY=VALUE`), in order.
    pub sets: Vec<String>,
    /// Text of the recipe file.
    pub text: String,
    /// Bytes of memory that the run may take, if `--fit=SIZE` said so. Not recorded: it changes no result.
    #[serde(skip)]
    pub memory_limit: Option<u64>,
}

/// Reads a recipe file and applies `sets` (`KEY=VALUE`). If there are mistakes, the error lists all of them.
pub fn load(path: &Path, sets: &[String]) -> Result<Plan> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() > LARGEST) {
        return Err(Error::user(format!("{}: larger than 1 MiB, so it cannot be a recipe", path.display()))
            .hint("recipes are short YAML files: `ft recipe list` shows those in ./recipes"));
    }
    let text = fsutil::read_to_string(path)?;
    let mut plan = parse(&path.display().to_string(), &text, sets)?;
    plan.file = fsutil::absolute(path);
    Ok(plan)
}

/// Like [`load`], for a recipe given as `text`. Messages use `name` in place of a file name.
pub fn parse(name: &str, text: &str, sets: &[String]) -> Result<Plan> {
    // A byte-order mark must not become part of the first key.
    let content = text.strip_prefix('\u{feff}').unwrap_or(text);
    let sources = SourceTexts { name, text: content, sets };
    let mut mistakes = Vec::new();
    let Some(mut root) =
        tree::parse(0, content, &mut mistakes).or_else(|| mistakes.is_empty().then(tree::Node::empty_document))
    else {
        return Err(sources.report(mistakes));
    };
    overrides::apply(&mut root, sets, &mut mistakes);
    let values = check::check(&root, &mut mistakes);
    conflicts::check(&WrittenRecipe { tree: &root, values: &values }, &mut mistakes);
    if !mistakes.is_empty() {
        return Err(sources.report(mistakes));
    }
    let recipe = serde_path_to_error::deserialize(&values).map_err(|e| {
        let at = root.nearest(&e.path().to_string());
        sources.report(vec![Mistake::new(at, format!("`{}`: {}", e.path(), e.inner()))])
    })?;
    Ok(Plan {
        recipe: fill_dependent_defaults(recipe),
        file: PathBuf::from(name),
        sets: sets.to_vec(),
        text: text.to_string(),
        memory_limit: None,
    })
}

/// Fills in the defaults that depend on other keys.
fn fill_dependent_defaults(mut recipe: Recipe) -> Recipe {
    let fresh = recipe.model.is_random();
    let optim = &mut recipe.optim;
    // Lion's steps are larger for the same rate (arXiv 2302.06675, section 5).
    let share = if matches!(optim.kind, OptimKind::Lion(_)) { 0.2 } else { 1.0 };
    // Adapters start at zero and tolerate ten times the rate of weights that are already trained.
    let usual = match &recipe.adapter {
        // TRL's rate for the whole model, and ten times that rate for LoRA.
        Some(adapter) if matches!(recipe.method, MethodSpec::Ppo(_)) => 3e-5 * (adapter.usual_lr() / 2e-4),
        None if matches!(recipe.method, MethodSpec::Ppo(_)) => 3e-6,
        Some(adapter) => adapter.usual_lr(),
        None if fresh => 6e-4,
        None => 2e-5,
    };
    // Preference methods should change a model that already answers only a little: as in TRL, a twentieth of the usual
    // rate.
    let tuned = if recipe.method.learns_preferences() { 0.05 } else { 1.0 };
    optim.lr.get_or_insert(share * tuned * usual);
    if optim.kind == OptimKind::ScheduleFree {
        optim.schedule = Schedule::Constant;
    }
    // Recorded, so that a resumed run keeps it.
    if recipe.model.quantize.is_some_and(QuantisedFormat::has_blocks) {
        recipe.model.double_quantize.get_or_insert(true);
    }
    if fresh {
        let model = &mut recipe.model;
        // No model folder exists yet, so `path` becomes the tokenizer's folder: `model.tokenizer`, else a given `path`,
        // else the folder of the config file.
        let beside = match &model.config {
            Some(ModelConfig::File(file)) => file.parent().map(Path::to_path_buf),
            _ => None,
        };
        let given = Some(&model.path).filter(|p| !p.as_os_str().is_empty()).cloned();
        let tokenizer = model.tokenizer.get_or_insert_with(|| given.or(beside).unwrap_or_default()).clone();
        model.config.get_or_insert_with(|| ModelConfig::File(tokenizer.join("config.json")));
        model.path = tokenizer;
    }
    // The head of a reward model is trained and saved as part of its adapter.
    if let (MethodSpec::Reward(_), Some(adapter)) = (&recipe.method, &mut recipe.adapter) {
        adapter.add_scalar_head();
    }
    // A method that samples its own answers has its own settings for the size of a step.
    if recipe.batch.examples.is_none() && recipe.method.fixed() {
        recipe.batch.accumulate.get_or_insert(1);
    }
    recipe
}

impl Plan {
    /// Returns the settings of the optimiser, with the groups of parameters that the adapter has rates of its own for.
    /// They come last, so that the recipe's groups are matched first.
    pub fn optim(&self) -> OptimSection {
        let (mut optim, lr) = (self.recipe.optim.clone(), self.lr());
        let factors = self.recipe.adapter.iter().flat_map(|adapter| adapter.rate_factors());
        let group = |(pattern, factor): (&str, f64)| GroupSpec {
            r#match: pattern.into(),
            lr: Some(lr * factor),
            weight_decay: None,
        };
        optim.groups.extend(factors.map(group));
        optim
    }

    /// Returns the peak learning rate.
    pub fn lr(&self) -> f64 {
        self.recipe.optim.lr.expect("parse() settles it and read() checks it")
    }

    /// Returns the name of the method, such as `sft`.
    pub fn method(&self) -> &'static str {
        self.recipe.method.name()
    }

    /// Returns a short description of the adapter, such as `lora r16`; `None` if every weight is trained.
    pub fn adapter(&self) -> Option<String> {
        self.recipe.adapter.as_ref().map(|adapter| adapter.describe())
    }

    /// Writes plan.json.
    pub fn write(&self, path: &Path) -> Result<()> {
        fsutil::write_json(path, self)
    }

    /// Reads a plan.json that `write` made.
    pub fn read(path: &Path) -> Result<Self> {
        let mut plan: Plan = fsutil::read_json(path)?;
        plan.recipe = fill_dependent_defaults(plan.recipe);
        Ok(plan)
    }

    /// Returns the resolved values as the YAML text of a recipe.
    pub fn to_yaml(&self) -> Result<String> {
        serde_yaml::to_string(&self.recipe).map_err(|e| Error::bug(format!("writing the plan as YAML: {e}")))
    }
}
