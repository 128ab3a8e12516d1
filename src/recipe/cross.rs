//! Settings that are right by themselves and wrong together: contradictions, and settings that would have no effect.
//!
//! A setting equal to its default asks for nothing, so it never counts as ignored: a recipe with every default
//! written out (`ft recipe show`) is a right recipe.

use super::mistakes::{At, Mistake};
use super::schema::key;
use super::tree::{Kind, Node};
use serde_json::Value;

/// A recipe whose values were checked one by one; `values` lacks the wrong ones.
pub(super) struct Written<'a> {
    pub tree: &'a Node,
    pub values: &'a Value,
}

/// Looks at everything that takes two settings to be wrong.
pub(super) fn check(written: &Written, mistakes: &mut Vec<Mistake>) {
    for rule in [batch, schedule, betas, length, validation, overflow, places] {
        rule(written, mistakes);
    }
}

impl Written<'_> {
    /// Written in the file or by `--set`, right or wrong.
    fn given(&self, path: &str) -> bool {
        self.node(path).is_some_and(|node| !node.is_null())
    }

    fn node(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self.tree, |node, name| match &node.kind {
            Kind::List(items) => items.get(name.parse::<usize>().ok()?),
            _ => node.get(name),
        })
    }

    /// The value, else the default; None where it is wrong or has no default.
    fn value(&self, path: &str) -> Option<Value> {
        if self.given(path) {
            return self.values.pointer(&format!("/{}", path.replace('.', "/"))).cloned().filter(|v| !v.is_null());
        }
        key(path)?.default.clone()
    }

    fn number(&self, path: &str) -> Option<f64> {
        self.value(path)?.as_f64()
    }

    fn is(&self, path: &str, word: &str) -> bool {
        self.value(path).is_some_and(|v| v == word)
    }

    /// Given, and asking for something else than the default.
    fn asked(&self, path: &str) -> bool {
        let numeric = |v: &Value| v.as_f64().map_or_else(|| v.clone(), Value::from);
        let default = key(path).and_then(|k| k.default.as_ref()).map(numeric);
        self.given(path) && self.value(path).is_some_and(|v| Some(numeric(&v)) != default)
    }

    /// Where a setting stands: its key, else its value (an item of a list).
    fn at(&self, path: &str) -> At {
        let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
        let parent = if parent.is_empty() { Some(self.tree) } else { self.node(parent) };
        let key = parent.and_then(|p| p.entry(name)).map(|(name, _)| name.at);
        key.or_else(|| self.node(path).map(|n| n.at)).unwrap_or(self.tree.at)
    }

    fn wrong(&self, path: &str, message: impl Into<String>, hint: &str) -> Mistake {
        Mistake::new(self.at(path), message).hint(hint)
    }
}

fn batch(w: &Written, mistakes: &mut Vec<Mistake>) {
    if w.given("batch.accumulate") && w.given("batch.examples") {
        let hint = "keep `examples` (examples a step) or `accumulate` (packed rows a step)";
        mistakes.push(w.wrong(
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
        mistakes.push(w.wrong(at, message, "lower max_len or raise tokens"));
    }
}

fn schedule(w: &Written, mistakes: &mut Vec<Mistake>) {
    if w.value("optim.schedule").is_none() {
        return;
    }
    if w.asked("optim.decay") && !w.is("optim.schedule", "wsd") {
        let hint = "set `schedule: wsd` or remove `decay`";
        mistakes.push(w.wrong("optim.decay", "`optim.decay` has no effect: only `schedule: wsd` reads it", hint));
    }
    if w.asked("optim.floor") && w.is("optim.schedule", "constant") {
        let hint = "choose a schedule that goes down (linear, cosine, wsd) or remove `floor`";
        mistakes.push(w.wrong(
            "optim.floor",
            "`optim.floor` has no effect: `schedule: constant` never goes down",
            hint,
        ));
    }
    let Some(warmup) = w.number("optim.warmup") else { return };
    if warmup >= 1.0 && warmup.fract() != 0.0 {
        let message = format!("`optim.warmup` {warmup} is neither a share nor a number of steps");
        mistakes.push(w.wrong(
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
        mistakes.push(w.wrong(at, message, "their sum may be at most 1"));
    }
}

fn betas(w: &Written, mistakes: &mut Vec<Mistake>) {
    for path in ["optim.betas.0", "optim.betas.1"] {
        let Some(beta) = w.values.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_f64) else {
            continue;
        };
        if !(0.0..1.0).contains(&beta) {
            let message = format!("`optim.betas` must be at least 0 and below 1, found {beta}");
            mistakes.push(w.wrong(path, message, "optim.betas: first and second moment decay, usually [0.9, 0.999]"));
        }
    }
}

fn length(w: &Written, mistakes: &mut Vec<Mistake>) {
    if w.number("run.epochs") == Some(0.0) && !w.given("run.steps") {
        mistakes.push(w.wrong("run.epochs", "`run.epochs` 0 trains nothing", "give `epochs` or `steps`"));
    }
}

fn validation(w: &Written, mistakes: &mut Vec<Mistake>) {
    let reasons = [
        ("run.eval_every", "there are no validation rows to measure"),
        ("run.patience", "there are no validation rows to measure"),
    ];
    let valid = w.given("data.valid");
    for (path, reason) in reasons {
        if w.asked(path) && !valid {
            let hint = "give `data.valid: { path: FILE }`, or remove it";
            mistakes.push(w.wrong(path, format!("`{path}` has no effect: {reason}"), hint));
        }
    }
    if w.given("run.patience") && valid && w.number("run.eval_every") == Some(0.0) {
        let message = "`run.patience` has no effect: without `run.eval_every` the only validation is at the end";
        mistakes.push(w.wrong("run.patience", message, "set `eval_every` to a number of steps"));
    }
}

fn overflow(w: &Written, mistakes: &mut Vec<Mistake>) {
    let known = w.value("data.on_overflow").is_some();
    if known && w.asked("data.overflow_tolerance") && !w.is("data.on_overflow", "error") {
        let message = "`data.overflow_tolerance` has no effect: only `on_overflow: error` reads it";
        mistakes.push(w.wrong("data.overflow_tolerance", message, "remove one of the two"));
    }
}

fn places(w: &Written, mistakes: &mut Vec<Mistake>) {
    if let (Some(out), Some(model)) = (w.value("run.out"), w.value("model.path"))
        && out == model
    {
        let message = "`run.out` is the folder of the base model, which would be overwritten";
        mistakes.push(w.wrong("run.out", message, "choose a folder of its own, such as adapters/NAME"));
    }
}
