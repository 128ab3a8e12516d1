//! Finds settings of preference methods that cannot be combined.

use crate::recipe::mistakes::Mistake;
use crate::recipe::written::WrittenRecipe;

/// Checks the settings of preference methods.
pub fn preference(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
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
