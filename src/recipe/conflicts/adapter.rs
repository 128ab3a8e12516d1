//! Finds settings of adapters that contradict each other or have no effect.

use crate::recipe::mistakes::Mistake;
use crate::recipe::written::WrittenRecipe;
use serde_json::Value;

/// Kinds of adapters that consist of virtual tokens.
const VIRTUAL_KINDS: [&str; 3] = ["adapter.prompt_tuning", "adapter.p_tuning", "adapter.prefix_tuning"];

/// Checks the settings of virtual tokens.
pub fn virtual_tokens(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if let Some(kind) = VIRTUAL_KINDS.into_iter().find(|kind| w.given(kind)).filter(|_| w.given("method.reward")) {
        let message =
            format!("`{kind}`: a reward model's head is trained as part of its adapter, and virtual tokens have none");
        mistakes.push(w.mistake_at(kind, message, "use adapter: { lora: {…} }"));
    }
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
