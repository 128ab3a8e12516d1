//! Finds settings of adapters that contradict each other or have no effect.

use crate::recipe::mistakes::Mistake;
use crate::recipe::written::WrittenRecipe;
use serde_json::Value;

/// Checks the settings of virtual tokens.
pub fn virtual_tokens(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    let prompt = |key: &str| format!("adapter.prompt_tuning.{key}");
    if w.given(&prompt("text")) && w.differs_from_default(&prompt("init")) {
        let message = "`adapter.prompt_tuning.init` has no effect: virtual tokens start as `text`";
        mistakes.push(w.mistake_at(&prompt("init"), message, "remove init or text"));
    }
    let prefix = |key: &str| format!("adapter.prefix_tuning.{key}");
    let projection = w.value(&prefix("projection")) == Some(Value::Bool(true));
    if w.given(&prefix("encoder_hidden_size")) && !projection {
        let message = "`adapter.prefix_tuning.encoder_hidden_size` has no effect without `projection`";
        mistakes.push(w.mistake_at(&prefix("encoder_hidden_size"), message, "remove it, or set projection: true"));
    }
    if w.given(&prefix("from")) && projection {
        let message =
            "`adapter.prefix_tuning.from`: an adapter's file holds keys and values, not the encoder of `projection`";
        mistakes.push(w.mistake_at(&prefix("from"), message, "continue without projection, or remove from"));
    }
    for (key, from) in
        [(prompt("text"), prompt("from")), (prompt("init"), prompt("from")), (prefix("init"), prefix("from"))]
    {
        if w.given(&from) && w.differs_from_default(&key) {
            let message = format!("`{key}` has no effect: training continues the adapter in `{from}`");
            mistakes.push(w.mistake_at(&key, message, "remove one of the two"));
        }
    }
}

/// Where a recipe has the settings of a LoRA.
const LORA: [&str; 2] = ["adapter.lora", "method.ppo.value.adapter"];

/// Checks the settings of LoRA and its relatives.
pub fn lora(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    for section in LORA.into_iter().filter(|section| w.given(section)) {
        lora_at(w, section, mistakes);
    }
}

fn lora_at(w: &WrittenRecipe, section: &str, mistakes: &mut Vec<Mistake>) {
    let value = |key: &str| w.values.pointer(&format!("/{}/{key}", section.replace('.', "/")));
    let on = |key: &str| value(key) == Some(&Value::Bool(true));
    let init = value("init").and_then(Value::as_str).unwrap_or("kaiming");
    let mut wrong = |key: &str, message: String, hint: &str| {
        mistakes.push(w.mistake_at(&format!("{section}.{key}"), message, hint));
    };
    let takes_from_base = matches!(init, "pissa" | "pissa_fast" | "olora");
    if init == "loftq" && !w.value("model.quantize").is_some_and(|v| v.is_string()) {
        let message =
            format!("`{section}.init: loftq` corrects the error of quantised weights, and `model.quantize` is not set");
        wrong("init", message, "set `model.quantize: nf4`, or remove `init`");
    }
    if init == "loftq" && value("from").is_some_and(|from| !from.is_null()) {
        let message = format!("`{section}.init: loftq` contradicts `from`: the adapter in that folder has its values");
        wrong("init", message, "remove `init`");
    }
    if takes_from_base && value("from").is_some_and(|from| !from.is_null()) {
        let message = format!("`{section}.init: {init}` contradicts `from`: the adapter in that folder has its values");
        wrong("init", message, "remove `init`; rank and alpha are those of the published adapter, twice as large");
    }
    if (takes_from_base || init == "loftq") && value("alpha").and_then(Value::as_f64) == Some(0.0) {
        let message = format!("`{section}.init: {init}` divides by the scale, which is 0");
        wrong("init", message, "give an `alpha` above 0");
    }
    if init == "orthogonal" && value("rank").and_then(Value::as_i64).is_some_and(|rank| rank % 2 != 0) {
        wrong("init", format!("`{section}.init: orthogonal` needs an even `rank`"), "choose an even rank");
    }
    if init != "eva" && value("eva_rho").is_some() {
        let message = format!("`{section}.eva_rho` has no effect without `init: eva`");
        wrong("eva_rho", message, "remove it, or set `init: eva`");
    }
    if init == "eva" && section != "adapter.lora" {
        let message = format!("`{section}.init: eva` is for `adapter.lora` only");
        wrong("init", message, "choose another init");
    }
    if init == "eva" && value("from").is_some_and(|from| !from.is_null()) {
        let message = format!("`{section}.init: eva` contradicts `from`: the adapter in that folder has its values");
        wrong("init", message, "remove `init`");
    }
    if on("bias") && on("dora") {
        let message = format!("`{section}.bias` and `dora` exclude each other: PEFT reads no such adapter");
        wrong("bias", message, "remove one of them");
    }
    let ratio = value("b_lr_ratio").and_then(Value::as_f64);
    if ratio == Some(0.0) {
        let message = format!("`{section}.b_lr_ratio` is 0: B would never learn");
        wrong("b_lr_ratio", message, "the paper suggests 16");
    }
    if ratio.is_some() && on("freeze_a") {
        let message = format!("`{section}.b_lr_ratio` has no effect: with `freeze_a` A has no learning rate");
        wrong("b_lr_ratio", message, "remove it and set `optim.lr`");
    }
    if ratio.is_some() && w.number("optim.lr") == Some(0.0) {
        let message = format!("`{section}.b_lr_ratio`: the rate is scaled from `optim.lr`, which is 0");
        wrong("b_lr_ratio", message, "give `optim.lr` the rate of A");
    }
    if ratio.is_some() && section != "adapter.lora" {
        let message = format!("`{section}.b_lr_ratio` has no effect: only the ratio of `adapter.lora` is used");
        wrong("b_lr_ratio", message, "set `adapter.lora.b_lr_ratio`, which is that of all adapters of the run");
    }
}
