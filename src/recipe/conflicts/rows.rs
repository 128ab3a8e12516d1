//! Finds settings of data and batches that cannot be combined.

use crate::recipe::mistakes::Mistake;
use crate::recipe::tree::NodeKind;
use crate::recipe::written::WrittenRecipe;

/// Checks the size of rows and steps.
pub fn batch(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
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

/// Checks how long rows are treated.
pub fn overflow(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    let known = w.value("data.on_overflow").is_some();
    if known && w.differs_from_default("data.overflow_tolerance") && !w.is("data.on_overflow", "error") {
        let message = "`data.overflow_tolerance` has no effect: only `on_overflow: error` reads it";
        mistakes.push(w.mistake_at("data.overflow_tolerance", message, "remove one of the two"));
    }
}

/// Checks the weights of sources.
pub fn weights(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
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
