//! Finds settings of distillation that cannot be combined.

use super::sampling;
use crate::recipe::mistakes::Mistake;
use crate::recipe::written::WrittenRecipe;
use serde_json::Value;

const METHOD: &str = "method.distill";

/// Checks the settings of distillation.
pub fn check(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if !w.given(METHOD) {
        return;
    }
    let key = |name: &str| format!("{METHOD}.{name}");
    let universal = w.given(&key("loss.universal"));
    let teachers = w.value(&key("teachers")).and_then(|t| t.as_array().map(Vec::len)).unwrap_or(1);
    let live = [
        ("on_policy", "a cache has no distributions for what the student writes"),
        ("match", "a cache contains distributions, not layers"),
    ];
    for (name, reason) in live {
        if w.given(&key(name)) && w.given(&key("cache")) {
            let message = format!("`{}` cannot be combined with `{}`: {reason}", key(name), key("cache"));
            mistakes.push(w.mistake_at(&key(name), message, "remove `cache`: the teacher then runs during training"));
        }
    }
    for (name, reason) in [
        ("cache", "a cache contains distributions over the student's own tokens"),
        ("on_policy", "only the rows' own answers are available in both tokenizations"),
        ("match", "the tokens of teacher and student are at different positions"),
    ] {
        if universal && w.given(&key(name)) {
            let message = format!("`{}` cannot be combined with `loss: {{ universal: {{}} }}`: {reason}", key(name));
            mistakes.push(w.mistake_at(
                &key(name),
                message,
                "remove it, or choose a teacher with the student's tokenizer",
            ));
        }
    }
    for (name, given) in [("loss.universal", universal), ("match", w.given(&key("match")))] {
        if given && teachers > 1 {
            let message = format!("`{}` takes one teacher, found {teachers}", key(name));
            mistakes.push(w.mistake_at(&key(name), message, "keep one of `teachers`"));
        }
    }
    let both = ["match.hidden", "match.attention"];
    if w.given(&key("match")) && !both.iter().any(|name| w.given(&key(name))) {
        let message = format!("`{}` matches nothing", key("match"));
        mistakes.push(w.mistake_at(&key("match"), message, "give `hidden: {}`, `attention: {}`, or both"));
    }
    if w.given(&key("cross_entropy.epochs")) && !w.given(&key("cross_entropy.to")) {
        let path = key("cross_entropy.epochs");
        mistakes.push(w.mistake_at(
            &path,
            format!("`{path}` has no effect: `to` is not given"),
            "give `to`, or remove it",
        ));
    }
    if w.number(&key("cross_entropy.from")) == Some(1.0) && w.number(&key("cross_entropy.to")).unwrap_or(1.0) == 1.0 {
        let path = key("cross_entropy.from");
        let message = format!("`{path}` 1: the teacher has no effect");
        mistakes.push(w.mistake_at(&path, message, "lower it; cross-entropy alone is `method: { sft: {} }`"));
    }
    generate(w, &key("generate"), mistakes);
}

/// Checks the settings with which the teacher writes its own answers.
fn generate(w: &WrittenRecipe, key: &str, mistakes: &mut Vec<Mistake>) {
    let path = |name: &str| format!("{key}.{name}");
    sampling::rewards(w, &path("rewards"), mistakes);
    if w.given(&path("rewards")) || !w.given(key) {
        return;
    }
    let several = w.value(&path("answers")).and_then(|v: Value| v.as_u64()).is_some_and(|n| n > 1);
    for (name, asked) in [("answers", several), ("least", w.given(&path("least")))] {
        if asked {
            let message = format!("`{}` needs `rewards`: answers are compared by their reward", path(name));
            mistakes.push(w.mistake_at(
                &path(name),
                message,
                "give them, such as `rewards: [{ exact: {} }]`, or remove it",
            ));
        }
    }
}
