//! Finds settings of the optimiser that cannot be combined.

use crate::recipe::mistakes::Mistake;
use crate::recipe::written::WrittenRecipe;
use serde_json::Value;

/// Returns the name of the update rule.
fn rule<'a>(w: &'a WrittenRecipe) -> &'a str {
    let kind = w.values.pointer("/optim/kind");
    let name = kind.and_then(|k| k.as_str().or_else(|| k.as_object()?.keys().next().map(String::as_str)));
    name.unwrap_or("adamw")
}

/// Checks the settings that an update rule does not read or cannot do without.
pub fn optimiser(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
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

/// Checks the parameter groups.
pub fn groups(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
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

/// Checks whether weights can be rounded stochastically.
pub fn masters(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if !w.is("optim.master", "stochastic_rounding") {
        return;
    }
    let reason = if w.given("adapter") {
        "adapters are small and stay float32"
    } else if w.given("run.mlp_tile") {
        "`run.mlp_tile` sums gradients over the tiles of a row, in bfloat16"
    } else if w.is("model.dtype", "f32") {
        "`model.dtype: f32` asks for exact weights"
    } else {
        return;
    };
    let message = format!("`optim.master: stochastic_rounding` cannot be used: {reason}");
    mistakes.push(w.mistake_at("optim.master", message, "remove it"));
}

/// Checks the schedule of the learning rate.
pub fn schedule(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
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

/// Checks the decay rates of moments.
pub fn betas(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
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
