//! Problems that show in single numbers: values that are not finite, a loss, gradient or update of zero.

use super::finding::{Diagnosis, DiagnosisId, DiagnosisInput, finding, losses, number, rate};
use crate::models::Dtype;
use crate::runs::facts::NonFiniteEvent;
use crate::runs::history::StepPoint;
use crate::stats::moments::mean_of_finite;

/// A loss below this is regarded as zero.
const ZERO: f64 = 1e-3;

/// Finds steps whose loss or gradient is not finite.
pub fn non_finite(p: DiagnosisInput) -> Option<Diagnosis> {
    // The factor on the loss of a float16 run finds its value by overflows: at most 16 from its first value down to 1, and
    // now and then one after it has grown.
    let steps = &p.history.steps;
    let usual = steps.iter().filter(|s| s.overflowed()).count() <= 16 + steps.len() / 100;
    let bad: Vec<&StepPoint> = steps.iter().filter(|s| !(s.was_applied() || usual && s.overflowed())).collect();
    // A step that ended the run is recorded among the origins, but has no line in the curves.
    let origins = p.facts.map_or(&[][..], |f| &f.origins);
    let left_out = bad.first().map(|s| (s.step, s.loss.to_string(), s.grad_norm.to_string()));
    let ended = origins.first().map(|o| (o.step, o.loss.clone(), o.grad_norm.clone()));
    let (first, loss, norm) = left_out.into_iter().chain(ended).min_by_key(|(step, ..)| *step)?;
    let origin = origins.iter().find(|o| o.step >= first);
    let mut evidence = vec![("first at step", first.to_string()), ("loss there", loss), ("gradient norm there", norm)];
    if !bad.is_empty() {
        evidence.push(("steps skipped", bad.len().to_string()));
    }
    if let Some(origin) = origin {
        evidence.push(("begins at", origin.place.clone()));
    }
    let before = p.history.steps.iter().rev().find(|s| s.step < first && s.was_applied());
    if let Some(before) = before {
        evidence.push(("gradient norm one step before", number(before.grad_norm)));
    }
    let slower = [("optim.lr", rate(p.lr() / 3.0)), ("optim.warmup", "0.1".into())];
    let wider =
        (p.plan.recipe.model.dtype != Dtype::F32).then(|| p.rerun_command("f32", &[("model.dtype", "f32".into())]));
    let slower = || [p.rerun_command("slower", &slower)].into_iter().chain(wider.clone()).collect::<Vec<_>>();
    let (cause, next) = match origin.map(|o: &NonFiniteEvent| o.stage.as_str()) {
        Some("frozen weights") => (
            "A weight of the base model is not finite; no setting can help.".to_string(),
            vec![format!("ft import … --out {} --force", p.plan.recipe.model.path.display()), p.check_command()],
        ),
        Some("trained weights") => (
            "An earlier update made a trained weight non-finite: the steps were too large.".to_string(),
            slower(),
        ),
        Some("forward" | "loss") => (
            "Activations exceeded the range of the number format: the steps were too large or the format is too narrow."
                .to_string(),
            slower(),
        ),
        Some("backward") => (
            "The loss was finite, its gradient was not: the backward pass overflowed.".to_string(),
            slower(),
        ),
        None if bad.iter().any(|s| s.overflowed()) => (
            "Gradients were too large for float16 in many steps, although the factor on the loss was halved each time: \
             their size varies too much for the format."
                .to_string(),
            slower(),
        ),
        _ => ("Some numbers exceeded the range of the format.".to_string(), slower()),
    };
    Some(finding(DiagnosisId::NonFinite, "A loss or gradient is not finite", &evidence, cause, next))
}

/// Finds a loss of zero.
pub fn loss_zero(p: DiagnosisInput) -> Option<Diagnosis> {
    let steps = p.applied();
    let first = &steps[..steps.len().min(5)];
    if first.len() < 3 || losses(first) > 10.0 * ZERO {
        return None;
    }
    let accuracy =
        mean_of_finite(first.iter().filter_map(|s| s.more.iter().find(|(k, _)| k == "accuracy").map(|(_, v)| *v)));
    let mut evidence = vec![("mean loss of the first steps", number(losses(first)))];
    if accuracy.is_finite() {
        evidence.push(("tokens predicted correctly at the start", format!("{:.1} %", 100.0 * accuracy)));
    }
    if let Some(f) = p.facts {
        evidence.push(("share of tokens trained on", format!("{:.2} %", 100.0 * f.train.supervised_share())));
    }
    let cause = "There is nothing to learn: the trained tokens are the same in every row or already in the prompt, or \
                 the base model was trained on these rows.";
    let shows = format!("{}   # shows which tokens are trained on", p.check_command());
    Some(finding(
        DiagnosisId::LossZero,
        "The loss is zero from the start",
        &evidence,
        cause.into(),
        vec![shows, p.inspect_command()],
    ))
}

/// Finds a gradient of zero.
pub fn no_gradient(p: DiagnosisInput) -> Option<Diagnosis> {
    let steps = p.applied();
    let last = &steps[steps.len().saturating_sub(5)..];
    let largest = last.iter().map(|s| s.grad_norm).fold(0.0, f64::max);
    if last.len() < 3 || largest > 1e-12 {
        return None;
    }
    let mut evidence =
        vec![("largest gradient norm of the last steps", number(largest)), ("loss", number(losses(last)))];
    if let Some(alive) = steps.iter().rev().find(|s| s.grad_norm > 1e-12) {
        evidence.push(("last step with a gradient", format!("{} (norm {})", alive.step, number(alive.grad_norm))));
        let cause = "Earlier steps had a gradient: weights have grown so large that small changes no longer affect the \
                     loss. The steps were too large.";
        let next =
            vec![p.rerun_command("slower", &[("optim.lr", rate(p.lr() / 10.0)), ("optim.warmup", "0.1".into())])];
        return Some(finding(DiagnosisId::NoGradient, "The gradient has become zero", &evidence, cause.into(), next));
    }
    let cause = if p.plan.recipe.adapter.is_some() {
        "No gradient reaches the adapter: its scale (alpha / rank) is zero, or both of its factors are."
    } else {
        "No gradient reaches the trained weights."
    };
    let mut next = Vec::new();
    if p.plan.recipe.adapter.as_ref().is_some_and(|adapter| adapter.as_lora().is_some()) {
        next.push(p.rerun_command("scaled", &[("adapter.lora.alpha", "32".into())]));
    }
    next.push(p.check_command());
    Some(finding(DiagnosisId::NoGradient, "The gradient is zero", &evidence, cause.into(), next))
}

/// Finds weights that do not change.
pub fn no_update(p: DiagnosisInput) -> Option<Diagnosis> {
    let steps = p.applied();
    let largest = steps.iter().map(|s| s.lr).fold(0.0, f64::max);
    let moved = p.facts.and_then(|f| f.movement);
    // The first step of a warm-up has the rate zero, so a few steps are needed to judge.
    let still = steps.len() >= 3 && largest == 0.0;
    let stuck = steps.len() >= 3 && moved.is_some_and(|m| m.relative == 0.0 && m.to_step >= m.from_step + 3);
    if !still && !stuck {
        return None;
    }
    let mut evidence = vec![("largest learning rate", number(largest))];
    if let Some(m) = moved {
        evidence.push(("trained tensors that moved", format!("{} of {}", m.tensors - m.unmoved, m.tensors)));
    }
    let usual: f64 = p.plan.recipe.adapter.as_ref().map_or(2e-5, |adapter| adapter.usual_lr());
    let cause = if still {
        "The learning rate is zero: gradients are computed, but weights are not updated."
    } else {
        "Updates are too small for the precision of the weights: adding them changes nothing."
    };
    let next = vec![p.rerun_command("faster", &[("optim.lr", rate(usual.max(10.0 * p.lr())))])];
    Some(finding(DiagnosisId::NoUpdate, "The weights do not change", &evidence, cause.into(), next))
}
