//! Finds settings that are valid by themselves but wrong together: contradictions, and settings that would have no
//! effect.
//!
//! A setting that equals its default is never reported as having no effect: a recipe with all defaults written out
//! (`ft recipe show`) is valid.

use super::mistakes::{Mistake, SourceSpan};
use super::schema::key;
use super::tree::{Node, NodeKind};
use super::{distillation, sampling};
use serde_json::Value;

/// A recipe as written, and those of its values that passed the check against the schema.
pub(super) struct WrittenRecipe<'a> {
    pub tree: &'a Node,
    pub values: &'a Value,
}

/// Applies all rules about two or more settings.
pub(super) fn check(written: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    let rules = [
        model,
        preference,
        batch,
        optimiser,
        groups,
        masters,
        schedule,
        betas,
        length,
        validation,
        overflow,
        weights,
        places,
        sampling::check,
        distillation::check,
    ];
    for rule in rules {
        rule(written, mistakes);
    }
}

impl WrittenRecipe<'_> {
    /// Returns true if the key is set in the file or by `--set`, to a valid value or not.
    pub(super) fn given(&self, path: &str) -> bool {
        self.node(path).is_some_and(|node| !node.is_null())
    }

    pub(super) fn node(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self.tree, |node, name| match &node.kind {
            NodeKind::List(items) => items.get(name.parse::<usize>().ok()?),
            _ => node.get(name),
        })
    }

    /// Returns the value, else the default; `None` if the value is invalid or there is no default.
    pub(super) fn value(&self, path: &str) -> Option<Value> {
        if self.given(path) {
            return self.values.pointer(&format!("/{}", path.replace('.', "/"))).cloned().filter(|v| !v.is_null());
        }
        key(path)?.default.clone()
    }

    pub(super) fn number(&self, path: &str) -> Option<f64> {
        self.value(path)?.as_f64()
    }

    pub(super) fn is(&self, path: &str, word: &str) -> bool {
        self.value(path).is_some_and(|v| v == word)
    }

    /// Returns true if the key is set to a value other than its default.
    pub(super) fn differs_from_default(&self, path: &str) -> bool {
        let numeric = |v: &Value| v.as_f64().map_or_else(|| v.clone(), Value::from);
        let default = key(path).and_then(|k| k.default.as_ref()).map(numeric);
        self.given(path) && self.value(path).is_some_and(|v| Some(numeric(&v)) != default)
    }

    /// Returns the position of a setting: of its key, else of its value (an item of a list).
    pub(super) fn at(&self, path: &str) -> SourceSpan {
        let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
        let parent = if parent.is_empty() { Some(self.tree) } else { self.node(parent) };
        let key = parent.and_then(|p| p.entry(name)).map(|(name, _)| name.at);
        key.or_else(|| self.node(path).map(|n| n.at)).unwrap_or(self.tree.at)
    }

    pub(super) fn mistake_at(&self, path: &str, message: impl Into<String>, hint: &str) -> Mistake {
        Mistake::new(self.at(path), message).hint(hint)
    }
}

fn model(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if !w.given("model") || w.value("model.init").is_none() {
        return;
    }
    if w.is("model.init", "random") {
        if w.given("adapter") {
            let message = "an `adapter` needs a trained model; with `model.init: random` there is none";
            mistakes.push(w.mistake_at("adapter", message, "remove `adapter`, or give `model.path`"));
        }
        let tokenizer = w.value("model.tokenizer");
        if let (Some(path), Some(tokenizer)) = (w.value("model.path"), &tokenizer)
            && path != *tokenizer
        {
            let message = "`model.path` has no effect: `init: random` reads `config` and `tokenizer`";
            mistakes.push(w.mistake_at("model.path", message, "remove it"));
        }
        let file = w.value("model.config").is_some_and(|v| v.is_string());
        if tokenizer.is_none() && !file && !w.given("model.path") && !w.given("model.tokenizer") {
            let message = "`model.tokenizer` is missing: a model with random weights needs a tokenizer";
            mistakes.push(w.mistake_at(
                "model.init",
                message,
                "give a folder with a tokenizer.json; ft tokenizer train makes one",
            ));
        }
        if !w.given("model.config") && !w.given("model.path") {
            let message = "`model.config` is missing: it gives the type and size of a model with random weights";
            let hint = "write `config: { model_type: llama, hidden_size: …, … }`, or the path of a config.json";
            mistakes.push(w.mistake_at("model.init", message, hint));
        }
        return;
    }
    for path in ["model.config", "model.tokenizer"] {
        if w.given(path) {
            let message = format!("`{path}` has no effect: the model directory has its own");
            mistakes.push(w.mistake_at(path, message, "remove it, or set `init: random`"));
        }
    }
    // A misspelt required key is reported once, not also as missing.
    let Some(NodeKind::Map(entries)) = w.node("model").map(|n| &n.kind) else { return };
    let misspelt = entries.iter().any(|(name, _)| key(&format!("model.{}", name.text)).is_none());
    if !w.given("model.path") && !misspelt {
        let doc = key("model.path").map_or("", |k| &k.doc);
        mistakes.push(w.mistake_at("model", "`model.path` is missing", doc));
    }
}

fn preference(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    for method in ["dpo", "kto"] {
        if w.given(&format!("method.{method}")) && w.is("model.init", "random") {
            let message = format!(
                "`method: {method}` compares with the initial model, which must be trained; `model.init: random` is not"
            );
            mistakes.push(w.mistake_at("model.init", message, "give `model.path`; pre-train with `method: sft` first"));
        }
    }
    let Some(loss) = w.value("method.dpo.loss").filter(|_| w.given("method.dpo")) else { return };
    let loss = loss.as_str().unwrap_or_default();
    let (path, given) = ("method.dpo.label_smoothing", w.given("method.dpo.label_smoothing"));
    if given && !matches!(loss, "sigmoid" | "robust" | "exo") {
        let message = format!("`{path}` has no effect: `loss: {loss}` does not read it");
        mistakes.push(w.mistake_at(path, message, "remove it, or choose `sigmoid`, `robust` or `exo`"));
    }
    if loss == "exo" && w.number(path) == Some(0.0) && given {
        let message = format!("`{path}` must be above 0 with `loss: exo`: its logarithm is taken");
        mistakes.push(w.mistake_at(path, message, "the paper uses 0.001"));
    }
}

fn batch(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if w.given("batch.accumulate") && w.given("batch.examples") {
        let hint = "keep `examples` (examples a step) or `accumulate` (packed rows a step)";
        mistakes.push(w.mistake_at(
            "batch.accumulate",
            "`batch.accumulate` and `batch.examples` both say how long a step is",
            hint,
        ));
    }
    if let (Some(longest), Some(row)) = (w.number("batch.max_len"), w.number("batch.tokens"))
        && longest > row
    {
        let at = if w.given("batch.max_len") { "batch.max_len" } else { "batch.tokens" };
        let message =
            format!("an example of `batch.max_len` {longest} tokens does not fit into a row of `batch.tokens` {row}");
        mistakes.push(w.mistake_at(at, message, "lower max_len or raise tokens"));
    }
}

/// Returns the name of the update rule.
fn rule<'a>(w: &'a WrittenRecipe) -> &'a str {
    let kind = w.values.pointer("/optim/kind");
    let name = kind.and_then(|k| k.as_str().or_else(|| k.as_object()?.keys().next().map(String::as_str)));
    name.unwrap_or("adamw")
}

fn optimiser(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    let kind = rule(w);
    for path in ["optim.betas", "optim.eps"] {
        if w.differs_from_default(path) && matches!(kind, "lion" | "adafactor" | "sgd") {
            let hint = match kind {
                "lion" => "lion has betas of its own: `kind: { lion: { betas: [0.9, 0.99] } }`",
                _ => "remove it",
            };
            mistakes.push(w.mistake_at(path, format!("`{path}` has no effect: `kind: {kind}` does not read it"), hint));
        }
    }
    if kind == "sgd" && !w.given("optim.lr") {
        let message = "`optim.lr` is missing: `kind: sgd` has no usual rate";
        mistakes.push(w.mistake_at("optim.kind", message, "give `lr`; 0.01 to 0.1 is common"));
    }
    if kind == "schedule_free" {
        if w.given("optim.schedule") && !w.is("optim.schedule", "constant") {
            let message = "`kind: schedule_free` keeps its learning rate after the warm-up; a schedule contradicts it";
            mistakes.push(w.mistake_at("optim.schedule", message, "remove `schedule`, or choose `kind: adamw`"));
        }
        for path in ["optim.floor", "optim.decay"].into_iter().filter(|p| w.differs_from_default(p)) {
            let message = format!("`{path}` has no effect: `kind: schedule_free` has no schedule");
            mistakes.push(w.mistake_at(path, message, "remove it"));
        }
        if w.values.pointer("/optim/betas/0").and_then(Value::as_f64) == Some(0.0) {
            let message = "`kind: schedule_free` needs a first value of `optim.betas` above 0: it weights the average";
            mistakes.push(w.mistake_at("optim.betas", message, "0.9 is usual"));
        }
        if w.given("optim.ema") {
            let message = "`optim.ema` and `kind: schedule_free` both average the weights";
            mistakes.push(w.mistake_at("optim.ema", message, "keep one of them"));
        }
    }
    if let Some(block) = w.values.pointer("/optim/kind/adamw8/block").and_then(Value::as_u64)
        && !block.is_power_of_two()
    {
        let message = format!("`optim.kind.adamw8.block` must be a power of two, found {block}");
        mistakes.push(w.mistake_at("optim.kind.adamw8.block", message, "256 or 2048 are usual"));
    }
    if w.number("optim.ema") == Some(0.0) {
        let message = "`optim.ema` 0 averages nothing";
        mistakes.push(w.mistake_at("optim.ema", message, "remove it, or set a decay such as 0.999"));
    }
}

fn groups(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    let groups = w.values.pointer("/optim/groups").and_then(Value::as_array);
    for (i, group) in groups.into_iter().flatten().enumerate() {
        let at = format!("optim.groups.{i}");
        let has = |name: &str| group.get(name).is_some_and(|v| !v.is_null());
        if !has("lr") && !has("weight_decay") {
            let message = format!("`{at}` has no effect: it sets neither `lr` nor `weight_decay`");
            mistakes.push(w.mistake_at(&at, message, "give one of them, or remove the group"));
        }
        if has("lr") && w.number("optim.lr") == Some(0.0) {
            let message = format!("`{at}.lr`: a group's rate is scaled from `optim.lr`, which is 0");
            mistakes.push(w.mistake_at(&at, message, "give `optim.lr` the rate of the other parameters"));
        }
    }
}

fn masters(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if !w.is("optim.master", "stochastic_rounding") {
        return;
    }
    let reason = if w.given("adapter") {
        "adapters are small and stay float32"
    } else if w.is("model.dtype", "f32") {
        "`model.dtype: f32` asks for exact weights"
    } else {
        return;
    };
    let message = format!("`optim.master: stochastic_rounding` cannot be used: {reason}");
    mistakes.push(w.mistake_at("optim.master", message, "remove it"));
}

fn schedule(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if w.value("optim.schedule").is_none() {
        return;
    }
    if w.differs_from_default("optim.decay") && !w.is("optim.schedule", "wsd") && rule(w) != "schedule_free" {
        let hint = "set `schedule: wsd` or remove `decay`";
        mistakes.push(w.mistake_at("optim.decay", "`optim.decay` has no effect: only `schedule: wsd` reads it", hint));
    }
    if w.differs_from_default("optim.floor") && w.is("optim.schedule", "constant") {
        let hint = "choose a schedule that goes down (linear, cosine, wsd) or remove `floor`";
        mistakes.push(w.mistake_at(
            "optim.floor",
            "`optim.floor` has no effect: `schedule: constant` never goes down",
            hint,
        ));
    }
    let Some(warmup) = w.number("optim.warmup") else { return };
    if warmup >= 1.0 && warmup.fract() != 0.0 {
        let message = format!("`optim.warmup` {warmup} is neither a share nor a number of steps");
        mistakes.push(w.mistake_at(
            "optim.warmup",
            message,
            "below 1 it is a share of all steps, from 1 on a whole number of steps",
        ));
    }
    if let Some(decay) = w.number("optim.decay")
        && w.is("optim.schedule", "wsd")
        && warmup < 1.0
        && warmup + decay > 1.0
    {
        let at = if w.given("optim.decay") { "optim.decay" } else { "optim.warmup" };
        let message = format!("`optim.warmup` {warmup} and `optim.decay` {decay} are together more than the whole run");
        mistakes.push(w.mistake_at(at, message, "their sum may be at most 1"));
    }
}

fn betas(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    for path in ["optim.betas.0", "optim.betas.1", "optim.kind.lion.betas.0", "optim.kind.lion.betas.1"] {
        let Some(beta) = w.values.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_f64) else {
            continue;
        };
        if !(0.0..1.0).contains(&beta) {
            let key = path.rsplit_once('.').map_or(path, |(key, _)| key);
            let message = format!("`{key}` must be at least 0 and below 1, found {beta}");
            let usual = if key == "optim.betas" {
                "first and second moment decay, usually [0.9, 0.999]"
            } else {
                "usually [0.9, 0.99]"
            };
            mistakes.push(w.mistake_at(path, message, &format!("{key}: {usual}")));
        }
    }
}

fn length(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if w.number("run.epochs") == Some(0.0) && !w.given("run.steps") {
        mistakes.push(w.mistake_at("run.epochs", "`run.epochs` 0 trains nothing", "give `epochs` or `steps`"));
    }
}

fn validation(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    let reasons = [
        ("run.eval_every", "there are no validation rows to measure"),
        ("run.patience", "there are no validation rows to measure"),
    ];
    let valid = w.given("data.valid");
    for (path, reason) in reasons {
        if w.differs_from_default(path) && !valid {
            let hint = "give `data.valid: { path: FILE }`, or remove it";
            mistakes.push(w.mistake_at(path, format!("`{path}` has no effect: {reason}"), hint));
        }
    }
    if w.given("run.patience") && valid && w.number("run.eval_every") == Some(0.0) {
        let message = "`run.patience` has no effect: without `run.eval_every` the only validation is at the end";
        mistakes.push(w.mistake_at("run.patience", message, "set `eval_every` to a number of steps"));
    }
}

fn overflow(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    let known = w.value("data.on_overflow").is_some();
    if known && w.differs_from_default("data.overflow_tolerance") && !w.is("data.on_overflow", "error") {
        let message = "`data.overflow_tolerance` has no effect: only `on_overflow: error` reads it";
        mistakes.push(w.mistake_at("data.overflow_tolerance", message, "remove one of the two"));
    }
}

fn weights(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    for key in ["data.train", "data.valid"] {
        let sources: Vec<String> = match w.node(key).map(|node| &node.kind) {
            Some(NodeKind::List(items)) => (0..items.len()).map(|i| format!("{key}.{i}")).collect(),
            _ => vec![key.to_string()],
        };
        let weighted: Vec<String> = sources.iter().map(|s| format!("{s}.weight")).filter(|p| w.given(p)).collect();
        let Some(first) = weighted.first() else { continue };
        if key == "data.valid" {
            let message = "`data.valid` has a `weight`, which has no effect: every row is measured once";
            mistakes.push(w.mistake_at(first, message, "remove it"));
        } else if sources.len() == 1 {
            let message = "`weight` has no effect: there is one source";
            mistakes.push(w.mistake_at(first, message, "remove it, or give a list of sources"));
        } else if let Some(bare) = sources.iter().find(|s| !w.given(&format!("{s}.weight"))) {
            let hint = "give a `weight` to every source or to none: without weights every row is used once per epoch";
            mistakes.push(w.mistake_at(bare, format!("`{bare}` has no `weight`, but other sources have one"), hint));
        }
        for path in weighted.iter().filter(|p| w.number(p) == Some(0.0)) {
            mistakes.push(w.mistake_at(path, "`weight` 0 leaves the source out", "remove the source"));
        }
    }
}

fn places(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if let (Some(out), Some(model)) = (w.value("run.out"), w.value("model.path"))
        && out == model
    {
        let message = "`run.out` is the folder of the base model, which would be overwritten";
        mistakes.push(w.mistake_at("run.out", message, "choose a folder of its own, such as adapters/NAME"));
    }
}
