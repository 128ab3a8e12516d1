//! Problems that show in the course of the curves.

use super::finding::{Diagnosis, DiagnosisId, DiagnosisInput, TREND, finding, losses, number, rate};
use crate::runs::history::StepPoint;
use crate::stats::moments::mean_of_finite;

/// Finds a loss that does not fall.
pub fn flat_loss(p: DiagnosisInput) -> Option<Diagnosis> {
    let steps = p.applied();
    let n = steps.len();
    let total = p.facts.map_or(n as u64, |f| f.steps);
    if n < TREND || (n as u64 * 4 < total && n < 200) {
        return None;
    }
    let w = (n / 4).max(8);
    let (first, last) = (&steps[..w], &steps[n - w..]);
    let (a, b) = (losses(first), losses(last));
    let spread = |s: &[&StepPoint], m: f64| mean_of_finite(s.iter().map(|p| (p.loss - m).powi(2))) / s.len() as f64;
    let noise = (spread(first, a) + spread(last, b)).sqrt();
    // Flat: the loss fell by less than 1 %, and the noise is small enough to exclude a true fall of 5 %.
    if a < 0.02 || a - b > 0.01 * a || a - b + 2.0 * noise > 0.05 * a || b > 1.1 * a {
        return None;
    }
    // If validation improved, the training loss did fall, and noise hides it.
    let better = p.history.validations.first().zip(p.history.best()).map(|(v, best)| v.loss() - best.loss());
    if better.is_some_and(|d| d > 0.005 * a) {
        return None;
    }
    let moved = p.facts.and_then(|f| f.movement).map(|m| m.relative);
    let norm = mean_of_finite(last.iter().map(|s| s.grad_norm));
    let mut evidence = vec![
        ("mean loss, first quarter", number(a)),
        ("mean loss, last quarter", number(b)),
        ("learning rate", number(p.lr())),
        ("gradient norm", number(norm)),
    ];
    if let Some(moved) = moved {
        evidence.push(("relative size of all updates", number(moved)));
    }
    let faster = p.rerun_command("faster", &[("optim.lr", rate(p.lr() * 10.0))]);
    // In a normal run a LoRA changes by tenths of its own size, a whole model by thousandths.
    let small = if p.plan.recipe.adapter.is_some() { 3e-3 } else { 1e-4 };
    let (cause, next) = match moved {
        Some(m) if m >= small => (
            "The weights change, but the loss does not fall: answers do not follow from prompts (shuffled or random \
             labels), or the base model already predicts the rows as well as possible.",
            vec![p.inspect_command(), p.check_command(), faster],
        ),
        _ => ("The weights have hardly changed: the learning rate is too low for so few steps.", vec![faster]),
    };
    Some(finding(DiagnosisId::FlatLoss, "The loss does not fall", &evidence, cause.into(), next))
}

/// Finds a loss that rises or jumps because steps are too large.
pub fn learning_rate(p: DiagnosisInput) -> Option<Diagnosis> {
    let steps = p.applied();
    if steps.len() < 8 {
        return None;
    }
    // The loss of the first step precedes any update; that of the next steps may already be too high. The minimum
    // guards against a start value that is inflated by such a rise.
    let start = losses(&steps[..3]).min(1.25 * steps[0].loss);
    let w = (steps.len() / 10).clamp(3, 50);
    let end = losses(&steps[steps.len() - w..]);
    let risen = end > 1.15 * start + 0.1;
    let spikes = spikes(&steps);
    // A few spikes may come from difficult rows; many mean that steps overshoot.
    let many = spikes.len() >= 3.max(steps.len() / 100);
    if !risen && !many {
        return None;
    }
    let peak = steps.iter().max_by(|a, b| a.loss.total_cmp(&b.loss)).expect("there are steps");
    let mut evidence = vec![
        ("loss at the start", number(start)),
        ("loss now", number(end)),
        ("highest loss", format!("{} at step {}", number(peak.loss), peak.step)),
        ("learning rate there", number(peak.lr)),
    ];
    if !spikes.is_empty() {
        let shown: Vec<String> = spikes.iter().take(5).map(u64::to_string).collect();
        evidence.push(("spikes", format!("{} (first at steps {})", spikes.len(), shown.join(", "))));
    }
    let title = if risen { "The loss rises above its start" } else { "The loss jumps" };
    let cause = "Steps overshoot: the learning rate is too high, or the warm-up is too short.";
    let next = vec![p.rerun_command(
        "slower",
        &[("optim.lr", rate(p.lr() / if risen { 10.0 } else { 3.0 })), ("optim.warmup", "0.1".into())],
    )];
    Some(finding(DiagnosisId::LearningRateTooHigh, title, &evidence, cause.into(), next))
}

/// Returns the steps with a spike: the loss exceeds the median of the twenty steps before by at least half of it and by
/// 8 times their spread, and the gradient norm is above three times its median.
fn spikes(steps: &[&StepPoint]) -> Vec<u64> {
    let median = |mut v: Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    let stands_out = |i: usize| {
        let before = &steps[i.saturating_sub(20)..i];
        let loss = median(before.iter().map(|s| s.loss).collect());
        let spread = median(before.iter().map(|s| (s.loss - loss).abs()).collect()) * 1.4826;
        let norm = median(before.iter().map(|s| s.grad_norm).collect());
        let (now, at) = (steps[i].loss, steps[i].grad_norm);
        now > loss + (8.0 * spread).max(0.5 * loss).max(0.1) && at > 3.0 * norm
    };
    (8..steps.len()).filter(|i| stands_out(*i)).map(|i| steps[i].step).collect()
}

/// Finds a training loss that falls while the validation loss rises.
pub fn memorisation(p: DiagnosisInput) -> Option<Diagnosis> {
    let h = p.history;
    let trained: Vec<_> = h.validations.iter().filter(|v| v.step > 0 && v.loss().is_finite()).collect();
    let (best, last) = (h.best()?, trained.last()?);
    let steps = p.applied();
    let around = |step: u64| {
        let near: Vec<&StepPoint> =
            steps.iter().filter(|s| s.step <= step).rev().take((steps.len() / 10).clamp(4, 50)).copied().collect();
        losses(&near)
    };
    let (then, now) = (around(best.step), around(last.step));
    let rise = last.loss() - best.loss();
    if trained.len() < 2 || rise < 0.02 || rise < 0.05 * best.loss() || now.is_nan() || now >= then {
        return None;
    }
    let epochs = |step: u64| h.steps.iter().find(|s| s.step >= step).map_or(f64::NAN, |s| s.epoch);
    let evidence = [
        ("lowest validation loss", format!("{} at step {}", number(best.loss()), best.step)),
        ("validation loss now", format!("{} at step {}", number(last.loss()), last.step)),
        ("training loss then", number(then)),
        ("training loss now", number(now)),
        ("epochs", format!("{:.2}", epochs(last.step))),
    ];
    let cause = "The model memorises the training rows: training loss falls, validation loss rises. More rows, fewer \
                 epochs or a smaller adapter generalise better.";
    let every = p.plan.recipe.run.eval_every;
    let mut changes = vec![("run.patience", "2".to_string())];
    if every == 0 {
        changes.push(("run.eval_every", (last.step / 10).max(1).to_string()));
    }
    let shorter = epochs(best.step);
    let mut next = vec![p.rerun_command("patient", &changes)];
    if shorter.is_finite() && shorter > 0.0 && p.plan.recipe.run.steps.is_none() {
        next.push(p.rerun_command("shorter", &[("run.epochs", format!("{shorter:.2}"))]));
    }
    Some(finding(DiagnosisId::Memorisation, "The training rows are memorised", &evidence, cause.into(), next))
}

/// Finds a validation loss that ends above that of the base. `others`: findings that may already explain it.
pub fn worse(p: DiagnosisInput, others: &[Diagnosis]) -> Option<Diagnosis> {
    let first = p.history.validations.first().filter(|v| v.step == 0)?;
    let last = p.history.validations.last().filter(|v| v.step > 0)?;
    let rise = last.loss() - first.loss();
    if rise.is_nan() || rise < 0.01 + 0.01 * first.loss() {
        return None;
    }
    let best = p.history.best();
    let mut evidence = vec![
        ("validation loss before the first step", number(first.loss())),
        ("validation loss now", format!("{} at step {}", number(last.loss()), last.step)),
    ];
    if let Some(best) = best {
        evidence.push(("lowest", format!("{} at step {}", number(best.loss()), best.step)));
    }
    let never = best.is_none_or(|b| b.loss() >= first.loss());
    let cause = match (never, others.iter().any(|f| f.id == DiagnosisId::LearningRateTooHigh)) {
        (_, true) => "The steps are too large for the base model, see learning-rate-too-high.",
        (true, _) => {
            "No checkpoint is better than the base model: training rows differ in kind from validation rows, or the \
             steps are too large."
        }
        (false, _) => "The run became better than the base model and then worse; the best checkpoint is kept.",
    };
    let next = vec![
        p.check_command(),
        p.rerun_command("slower", &[("optim.lr", rate(p.lr() / 5.0)), ("optim.warmup", "0.1".into())]),
    ];
    Some(finding(
        DiagnosisId::WorseThanStart,
        "Worse than the base model on validation rows",
        &evidence,
        cause.into(),
        next,
    ))
}
