//! Finds settings of the run that cannot be combined.

use crate::recipe::mistakes::Mistake;
use crate::recipe::written::WrittenRecipe;

/// Checks that the run has steps.
pub fn length(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if w.number("run.epochs") == Some(0.0) && !w.given("run.steps") {
        mistakes.push(w.mistake_at("run.epochs", "`run.epochs` 0 trains nothing", "give `epochs` or `steps`"));
    }
}

/// Checks that there are rows for what is measured.
pub fn validation(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
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

/// Checks that the result answers, so that a suite can be asked.
pub fn evaluation(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if w.given("run.evaluate") && w.given("method.reward") {
        let message = "`run.evaluate` asks a suite, and a reward model answers nothing";
        mistakes.push(w.mistake_at("run.evaluate", message, "remove it; `ft score` measures a reward model"));
    }
}

/// Checks that there are checkpoints of plain weights whose mean can be the result.
pub fn result(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if w.value("run.result.average").is_none() {
        return;
    }
    if w.number("run.save_every").unwrap_or(0.0) == 0.0 {
        let message = "`run.result` averages checkpoints, but without `run.save_every` there is only the last one";
        mistakes.push(w.mistake_at("run.result", message, "set `save_every` to a number of steps"));
    }
    let other = [("optim.ema", w.given("optim.ema")), ("kind: schedule_free", w.is("optim.kind", "schedule_free"))];
    if let Some((name, _)) = other.iter().find(|(_, given)| *given) {
        let message = format!("`run.result: {{ average: … }}` and `{name}` both average the weights");
        mistakes.push(w.mistake_at("run.result", message, "keep one of them"));
    }
    if w.value("adapter.adalora").is_some() {
        let message = "`run.result` averages checkpoints, which would bring parts back that AdaLoRA has removed";
        mistakes.push(w.mistake_at("run.result", message, "choose `best` or `last`"));
    }
}

/// Checks that there is a device for TF32.
pub fn tf32(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if w.differs_from_default("run.tf32") && w.is("model.device", "cpu") {
        mistakes.push(w.mistake_at(
            "run.tf32",
            "`run.tf32` needs CUDA: the CPU does not multiply in TF32",
            "remove it",
        ));
    }
}

/// Checks that there is something to keep in the host's memory, and another memory than that.
pub fn offload(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if !w.differs_from_default("run.offload") {
        return;
    }
    let (reason, hint) = if w.is("model.device", "cpu") {
        ("the inputs of layers are in the host's memory already", "remove it")
    } else if w.value("run.replay").is_none() || w.is("run.replay", "none") {
        ("without `run.replay` no layer is recomputed", "set `replay: all`")
    } else {
        return;
    };
    mistakes.push(w.mistake_at("run.offload", format!("`run.offload` has no effect: {reason}"), hint));
}

/// Checks that there are passes whose operations are always the same.
pub fn cuda_graphs(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if !w.differs_from_default("run.cuda_graphs") {
        return;
    }
    let given = |method: &str| w.given(&format!("method.{method}")) || w.is("method", method);
    let samples = ["grpo", "rloo", "ppo"].into_iter().any(given);
    let others = ["reward", "dpo", "kto", "orpo", "simpo", "distill"];
    let (reason, hint) = if w.is("model.device", "cpu") {
        ("the CPU launches nothing".to_string(), "remove it")
    } else if let Some(method) = others.into_iter().find(|method| given(method)) {
        (format!("the passes of `{method}` are not recorded"), "remove it")
    } else if !samples && w.value("run.replay").is_some() && !w.is("run.replay", "none") {
        ("passes that recompute layers are not recorded".to_string(), "remove one of them")
    } else if !samples && w.number("optim.neftune").is_some_and(|alpha| alpha > 0.0) {
        ("the noise of `optim.neftune` is drawn in the middle of a pass".to_string(), "remove one of them")
    } else {
        return;
    };
    mistakes.push(w.mistake_at("run.cuda_graphs", format!("`run.cuda_graphs` has no effect: {reason}"), hint));
}

/// Checks that the result does not replace its base.
pub fn places(w: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    if let (Some(out), Some(model)) = (w.value("run.out"), w.value("model.path"))
        && out == model
    {
        let message = "`run.out` is the folder of the base model, which would be overwritten";
        mistakes.push(w.mistake_at("run.out", message, "choose a folder of its own, such as adapters/NAME"));
    }
}
