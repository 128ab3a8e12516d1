//! Finds settings that cannot be combined with methods that sample their own answers: PPO, GRPO, RLOO.
//!
//! Their losses contain the ratio of a token's probability in training to that in sampling. A setting that makes
//! training compute other probabilities than sampling, such as dropout, would falsify the ratio.

use crate::recipe::mistakes::Mistake;
use crate::recipe::schema::key;
use crate::recipe::tree::NodeKind;
use crate::recipe::written::WrittenRecipe;
use serde_json::Value;

/// Methods that sample their own answers.
const METHODS: [&str; 3] = ["grpo", "ppo", "rloo"];

/// Keys that a reward of every kind may have.
const COMMON_KEYS: [&str; 2] = ["weight", "name"];

/// Checks the settings of methods that sample their own answers.
pub fn check(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    let Some(method) = METHODS.into_iter().find(|m| w.given(&format!("method.{m}"))) else { return };
    for path in ["batch.examples", "batch.accumulate"].into_iter().filter(|p| w.given(p)) {
        let message = format!("`{path}` has no effect: `method.{method}` samples its own answers");
        let hint = "`sampling.prompts`, `answers` and `mini_batches` say how many make a step; remove it";
        mistakes.push(w.mistake_at(path, message, hint));
    }
    let noises = [
        ("adapter.lora.dropout", "dropout"),
        ("adapter.vera.dropout", "dropout"),
        ("adapter.adalora.dropout", "dropout"),
        ("optim.neftune", "noise on the embeddings"),
    ];
    for (path, what) in noises.into_iter().filter(|(p, _)| w.differs_from_default(p)) {
        let message = format!("`{path}`: with {what}, training sees other probabilities than sampling did");
        mistakes.push(w.mistake_at(path, message, "remove it"));
    }
    for policy in ["truncate", "split"].into_iter().filter(|p| w.is("data.on_overflow", p)) {
        let message = format!("`data.on_overflow: {policy}`: prompts are never truncated or split");
        mistakes.push(w.mistake_at("data.on_overflow", message, "use drop or error"));
    }
    lengths(w, method, mistakes);
    rewards(w, &format!("method.{method}.rewards"), mistakes);
}

/// Reports an answer length that leaves no room for a prompt: prompt and answer share `batch.max_len`.
fn lengths(w: &WrittenRecipe, method: &str, mistakes: &mut Vec<Mistake>) {
    let path = format!("method.{method}.sampling.max_new_tokens");
    if let (Some(answer), Some(both)) = (w.number(&path), w.number("batch.max_len"))
        && answer >= both
    {
        let at = if w.given(&path) { path.as_str() } else { "batch.max_len" };
        let message = format!("answers of {answer} tokens leave no room for a prompt in `batch.max_len` {both}");
        mistakes.push(w.mistake_at(at, message, "raise batch.max_len or lower max_new_tokens"));
    }
}

/// Reports an empty list of rewards, and entries that do not have exactly one kind.
pub fn rewards(w: &WrittenRecipe, path: &str, mistakes: &mut Vec<Mistake>) {
    let Some(list) = w.values.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_array) else {
        return;
    };
    if list.is_empty() {
        let hint = "write one, such as `- exact: { column: answer }`";
        mistakes.push(w.mistake_at(path, format!("`{path}` is empty: answers need at least one reward"), hint));
    }
    for (i, entry) in list.iter().enumerate() {
        let kinds: Vec<&str> = entry
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, value)| !COMMON_KEYS.contains(&name.as_str()) && !value.is_null())
            .map(|(name, _)| name.as_str())
            .collect();
        let at = format!("{path}.{i}");
        let names = match w.node(&at).map(|node| &node.kind) {
            Some(NodeKind::Map(entries)) => entries.iter().map(|(name, _)| name.text.as_str()).collect(),
            _ => Vec::new(),
        };
        let misspelt = names.iter().any(|name| key(&format!("{path}.{name}")).is_none());
        match kinds.as_slice() {
            [_] => {}
            [] if misspelt => {}
            [] => {
                let hint = "give one of exact, overlap, regex, json_schema, length, command, http, model";
                mistakes.push(w.mistake_at(&at, format!("`{at}` has no kind of reward"), hint));
            }
            [_, second, ..] => {
                let message = format!("`{at}` is a reward of several kinds: {}", kinds.join(", "));
                mistakes.push(w.mistake_at(&format!("{at}.{second}"), message, "write one list entry for each kind"));
            }
        }
    }
}
