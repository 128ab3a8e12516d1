//! The training doctor: finds problems of a run in its curves and facts, and gives for each the evidence, the cause and
//! commands to try next.
//!
//! A pure function of the files in the run folder, so that a run in progress, its report and `ft runs show` give the
//! same answer. It reports a problem only if the numbers leave no doubt; for a healthy run it returns nothing.

use super::facts::{NonFiniteEvent, RunFacts};
use super::history::{History, StepPoint};
use super::preference;
use crate::recipe::{Dtype, Plan};
use crate::stats::moments::mean_of_finite;
use serde::Serialize;

/// Known problems. Their names are stable: scripts may match on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiagnosisId {
    NonFinite,
    LossZero,
    NoGradient,
    NoUpdate,
    FlatLoss,
    LearningRateTooHigh,
    Memorisation,
    WorseThanStart,
    FewSupervisedTokens,
    NoMovement,
    AccuracyFalling,
    LikelihoodDisplacement,
}

impl DiagnosisId {
    /// Returns the name as messages and `--json` show it.
    pub fn name(self) -> &'static str {
        match self {
            DiagnosisId::NonFinite => "non-finite",
            DiagnosisId::LossZero => "loss-zero",
            DiagnosisId::NoGradient => "no-gradient",
            DiagnosisId::NoUpdate => "no-update",
            DiagnosisId::FlatLoss => "flat-loss",
            DiagnosisId::LearningRateTooHigh => "learning-rate-too-high",
            DiagnosisId::Memorisation => "memorisation",
            DiagnosisId::WorseThanStart => "worse-than-start",
            DiagnosisId::FewSupervisedTokens => "few-supervised-tokens",
            DiagnosisId::NoMovement => "no-movement",
            DiagnosisId::AccuracyFalling => "accuracy-falling",
            DiagnosisId::LikelihoodDisplacement => "likelihood-displacement",
        }
    }
}

/// A problem that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    pub id: DiagnosisId,
    /// The problem in a few words.
    pub title: String,
    /// Numbers that show the problem: (name, value).
    pub evidence: Vec<(String, String)>,
    /// Explanation in a sentence or two.
    pub cause: String,
    /// Commands to try, the most promising first.
    pub next: Vec<String>,
}

/// With fewer steps, no trend is judged.
const TREND: usize = 24;
/// A loss below this is regarded as zero.
const ZERO: f64 = 1e-3;

/// Input of the diagnosis: plan, facts and curves of one run.
#[derive(Clone, Copy)]
pub struct DiagnosisInput<'a> {
    pub plan: &'a Plan,
    /// `None` for a run of an ft version that wrote no facts.
    pub facts: Option<&'a RunFacts>,
    pub history: &'a History,
}

/// Returns all problems that were found, the most serious first.
pub fn diagnose(patient: DiagnosisInput) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    found.extend(non_finite(patient));
    // The loss of a policy is around zero and does not show how good the policy is: the method's own alarms watch it
    // instead.
    if !patient.plan.recipe.method.fixed() {
        found.extend(no_update(patient));
        return found;
    }
    let zero = loss_zero(patient);
    let still = zero.is_none().then(|| no_gradient(patient).or_else(|| no_update(patient))).flatten();
    let rate = learning_rate(patient);
    let compared = preference::diagnose(patient, still.is_some());
    let unmoved = compared.iter().any(|f| f.id == DiagnosisId::NoMovement);
    // A loss that is zero or has no gradient is also flat, so only the more precise finding is reported.
    if zero.is_none() && still.is_none() && rate.is_none() && !unmoved {
        found.extend(flat_loss(patient));
    }
    found.extend(compared);
    found.extend(zero.into_iter().chain(still).chain(rate));
    found.extend(memorisation(patient));
    found.extend(worse(patient, &found));
    found.extend(few_supervised(patient));
    found.sort_by_key(|f| f.id);
    found
}

impl DiagnosisInput<'_> {
    pub(super) fn lr(&self) -> f64 {
        self.plan.recipe.optim.lr.unwrap_or(0.0)
    }

    /// Returns the steps whose update was applied.
    pub(super) fn applied(&self) -> Vec<&StepPoint> {
        self.history.steps.iter().filter(|p| p.was_applied()).collect()
    }

    /// Returns an `ft train` command that repeats the run with these settings changed, into the folder `OUT-name`.
    pub(super) fn rerun_command(&self, name: &str, changes: &[(&str, String)]) -> String {
        let out = format!("{}-{name}", self.plan.recipe.run.out.display());
        let key = |set: &str| set.split('=').next().unwrap_or(set).trim().to_string();
        let changed = |set: &&String| !changes.iter().any(|(k, _)| *k == key(set)) && key(set) != "run.out";
        let kept = self.plan.sets.iter().filter(changed).cloned();
        let new = changes.iter().map(|(k, v)| format!("{k}={v}"));
        let sets = kept.chain(new).chain([format!("run.out={out}")]).map(|s| format!(" --set {}", quote(&s)));
        format!("ft train {}{}", quote(&self.plan.file.display().to_string()), sets.collect::<String>())
    }

    /// Returns the `ft check` command for the run's recipe and settings.
    pub(super) fn check_command(&self) -> String {
        let sets: String = self.plan.sets.iter().map(|s| format!(" --set {}", quote(s))).collect();
        format!("ft check {}{sets}", quote(&self.plan.file.display().to_string()))
    }

    /// Returns the `ft data inspect` command for the (first) training rows.
    pub(super) fn inspect_command(&self) -> String {
        let path = self.plan.recipe.data.train.0.first().map(|s| quote(&s.path.display().to_string()));
        format!("ft data inspect {}", path.unwrap_or_default())
    }
}

/// Quotes a text so that a shell reads it as one word.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

pub(super) fn finding(
    id: DiagnosisId,
    title: &str,
    evidence: &[(&str, String)],
    cause: String,
    next: Vec<String>,
) -> Diagnosis {
    let evidence = evidence.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    Diagnosis { id, title: title.into(), evidence, cause, next }
}

/// Formats a number with four decimals, or in scientific notation if it is very small or large.
pub(super) fn number(x: f64) -> String {
    if x == 0.0 || (1e-3..1e5).contains(&x.abs()) { format!("{x:.4}") } else { format!("{x:.2e}") }
}

/// Formats a learning rate with one digit, such as `2e-4`.
pub(super) fn rate(x: f64) -> String {
    format!("{x:.0e}")
}

fn losses(points: &[&StepPoint]) -> f64 {
    mean_of_finite(points.iter().map(|p| p.loss))
}

fn non_finite(p: DiagnosisInput) -> Option<Diagnosis> {
    let bad: Vec<&StepPoint> = p.history.steps.iter().filter(|s| !s.was_applied()).collect();
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
        _ => ("Some numbers exceeded the range of the format.".to_string(), slower()),
    };
    Some(finding(DiagnosisId::NonFinite, "A loss or gradient is not finite", &evidence, cause, next))
}

fn loss_zero(p: DiagnosisInput) -> Option<Diagnosis> {
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

fn no_gradient(p: DiagnosisInput) -> Option<Diagnosis> {
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
    if p.plan.recipe.adapter.is_some() {
        next.push(p.rerun_command("scaled", &[("adapter.lora.alpha", "32".into())]));
    }
    next.push(p.check_command());
    Some(finding(DiagnosisId::NoGradient, "The gradient is zero", &evidence, cause.into(), next))
}

fn no_update(p: DiagnosisInput) -> Option<Diagnosis> {
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
    let usual: f64 = if p.plan.recipe.adapter.is_some() { 2e-4 } else { 2e-5 };
    let cause = if still {
        "The learning rate is zero: gradients are computed, but weights are not updated."
    } else {
        "Updates are too small for the precision of the weights: adding them changes nothing."
    };
    let next = vec![p.rerun_command("faster", &[("optim.lr", rate(usual.max(10.0 * p.lr())))])];
    Some(finding(DiagnosisId::NoUpdate, "The weights do not change", &evidence, cause.into(), next))
}

fn flat_loss(p: DiagnosisInput) -> Option<Diagnosis> {
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

fn learning_rate(p: DiagnosisInput) -> Option<Diagnosis> {
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

fn memorisation(p: DiagnosisInput) -> Option<Diagnosis> {
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

fn worse(p: DiagnosisInput, others: &[Diagnosis]) -> Option<Diagnosis> {
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

fn few_supervised(p: DiagnosisInput) -> Option<Diagnosis> {
    let train = &p.facts?.train;
    let share = train.supervised_share();
    if share >= 0.01 {
        return None;
    }
    let per = train.supervised_tokens as f64 / train.examples.max(1) as f64;
    let evidence = [
        ("share of tokens trained on", format!("{:.3} %", 100.0 * share)),
        ("trained tokens per example", format!("{per:.1}")),
        ("tokens per example", format!("{:.0}", train.tokens as f64 / train.examples.max(1) as f64)),
    ];
    let cause = "Nearly all of the computation goes into prompts: answers are very short compared with them, or \
                 truncated, or the mask excludes them.";
    let shows = format!("{}   # shows which tokens are trained on", p.check_command());
    Some(finding(
        DiagnosisId::FewSupervisedTokens,
        "Hardly any token is trained on",
        &evidence,
        cause.into(),
        vec![shows],
    ))
}
