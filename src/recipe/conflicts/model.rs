//! Finds settings of the model that cannot be combined.

use crate::recipe::mistakes::Mistake;
use crate::recipe::schema::key;
use crate::recipe::tree::NodeKind;
use crate::recipe::written::WrittenRecipe;

/// Checks which weights are trained.
pub fn trained(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if !w.differs_from_default("model.trained") {
        return;
    }
    if w.given("adapter") {
        let message = "`model.trained` has no effect: with an `adapter` every weight of the base is frozen";
        mistakes.push(w.mistake_at("model.trained", message, "remove one of the two"));
    } else if w.value("model.trained.spectrum").is_some() && w.is("model.init", "random") {
        let message = "`spectrum` compares trained weights; with `model.init: random` there are none";
        mistakes.push(w.mistake_at("model.trained", message, "train all weights, or choose them by `matching`"));
    }
    if w.value("model.trained.lisa").is_some() && (w.given("optim.ema") || w.is("optim.kind", "schedule_free")) {
        let message =
            "`lisa` drops the optimiser's state of a layer that leaves, and with it the layer's averaged weights";
        mistakes.push(w.mistake_at("model.trained", message, "remove `optim.ema`, or choose another `optim.kind`"));
    }
}

/// Checks new tokens.
pub fn new_tokens(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    const KEY: &str = "model.new_tokens";
    if !w.given(KEY) {
        return;
    }
    if w.is("model.init", "random") {
        let message = "`model.new_tokens` adds to the vocabulary of a trained model; with `init: random` there is none";
        mistakes.push(w.mistake_at(
            KEY,
            message,
            "add the tokens to the tokenizer: ft tokenizer train --special TOKEN",
        ));
    }
    let from =
        w.values.get("adapter").and_then(|kinds| kinds.as_object()?.values().find(|kind| !kind["from"].is_null()));
    if from.is_some() {
        let message = "`model.new_tokens`: an adapter that is continued keeps the vocabulary that it was trained with";
        mistakes.push(w.mistake_at(KEY, message, "remove it, or start a new adapter on a merged model: ft merge"));
    }
    if !["special", "text", "file"].iter().any(|key| w.given(&format!("{KEY}.{key}"))) {
        let message = "`model.new_tokens` names no token";
        mistakes.push(w.mistake_at(KEY, message, "list them under `special` or `text`, or give a `file`"));
    }
}

/// Checks what is quantised.
pub fn quantisation(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    let quantised = w.value("model.quantize").is_some_and(|v| v.is_string());
    let tables = w.value("model.quantize_embeddings").is_some_and(|v| v.is_string());
    if !quantised {
        if w.given("model.double_quantize") {
            let message = "`model.double_quantize` has no effect without `model.quantize`";
            mistakes.push(w.mistake_at("model.double_quantize", message, "remove it, or set `quantize: nf4`"));
        }
        if tables {
            let message = "`model.quantize_embeddings` has no effect without `model.quantize`";
            mistakes.push(w.mistake_at("model.quantize_embeddings", message, "remove it, or set `quantize: nf4`"));
        }
        return;
    }
    for (format, scales) in [("int8", "one scale per output"), ("fp8", "one scale per matrix")] {
        if w.is("model.quantize", format) && w.value("model.double_quantize").is_some_and(|v| v == true) {
            let message = format!("`model.double_quantize` has no effect with `quantize: {format}`: it has {scales}");
            mistakes.push(w.mistake_at("model.double_quantize", message, "remove it, or set `quantize: nf4`"));
        }
    }
    if !w.given("adapter") {
        let message = "`model.quantize` needs an `adapter`: weights that are trained are never quantised";
        mistakes.push(w.mistake_at("model.quantize", message, "add `adapter: { lora: {} }`, or remove `quantize`"));
    }
    if w.value("model.storage").is_some_and(|v| v != "auto") {
        let message = "`model.storage` has no effect with `model.quantize`, which says how weights are held";
        mistakes.push(w.mistake_at("model.storage", message, "remove one of the two"));
    }
    if tables && w.given("model.new_tokens") {
        let message = "`model.quantize_embeddings` quantises the tables that `model.new_tokens` adds rows to";
        mistakes.push(w.mistake_at("model.quantize_embeddings", message, "remove one of the two"));
    }
}

/// Checks where the model comes from.
pub fn model(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
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
