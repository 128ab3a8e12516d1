//! The top of the page (name, state, results, detected problems) and its last line.

use super::format::{FEW, short, window};
use crate::report;
use crate::runs::diagnose::diagnose;
use crate::runs::diagnose::finding::{Diagnosis, DiagnosisId, DiagnosisInput};
use crate::runs::folder::{RunFolder, RunStatus};
use crate::runs::history::{Validation, smooth};
use crate::runs::page::escape::{named, plain};
use maud::{Markup, html};
use std::time::Duration;

/// Renders name, state and title of the run.
pub fn header(run: &RunFolder) -> Markup {
    let plan = &run.plan;
    let base = plan.recipe.model.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let title = plan.text.lines().next().and_then(|l| l.strip_prefix('#')).unwrap_or("").trim();
    html! {
        header {
            h1 { (named(&run.name())) }
            span class={ "state " (run.state.name()) } { (run.state.name()) }
            p class="sub" {
                (plain(plan.method())) " · " (plain(&run.adapter())) " on " (named(&base))
                @if let Some(began) = run.began() { " · started " (plain(&began.replace('T', " "))) }
            }
            @if !title.is_empty() { p class="sub" { (named(title)) } }
            (state_words(run))
        }
    }
}

/// Renders what a reader should know about the state of the run; nothing for a finished run.
fn state_words(run: &RunFolder) -> Markup {
    match (run.state, run.last_words()) {
        (RunStatus::Failed, Some(words)) => html! { p class="sub words" { (plain(words)) } },
        (RunStatus::Interrupted, Some(words)) => html! { p class="sub" { (plain(words)) } },
        (RunStatus::Crashed, _) => html! {
            p class="sub words" {
                "The process ended without recording why: it was killed, or the machine went down. "
                code { "ft train … --resume" } " continues from the last checkpoint."
            }
        },
        (RunStatus::Running, _) => html! {
            p class="sub" { "In progress: this page shows the run as it was when the page was written." }
        },
        _ => Markup::default(),
    }
}

fn tile(name: &str, value: Markup, more: &str) -> Markup {
    html! { div class="tile" { span { (plain(name)) } b { (value) } small { (plain(more)) } } }
}

/// Renders a value that came from an earlier one.
fn changed(from: Option<String>, to: &str) -> Markup {
    html! { @if let Some(from) = from { i { (from) " → " } } (to) }
}

/// Renders the results of the run in large numbers.
pub fn tiles(run: &RunFolder) -> Markup {
    let h = &run.history;
    let first = h.validations.first().filter(|v| v.step == 0);
    let accuracy = |v: &Validation| v.means.iter().find(|(k, _)| k == "accuracy").map(|(_, a)| *a);
    let percent = |a: f64| format!("{:.1}", 100.0 * a);
    let speed = h.tokens_per_s().map_or("validation and saving included".into(), |speed| {
        format!("{} tokens per second in steps", report::count(speed.round() as u64))
    });
    html! {
        div class="tiles" {
            @if let Some(best) = h.best() {
                @let place = if best.step == h.validations.last().map_or(0, |v| v.step) { "best and last, step" } else { "best at step" };
                @let value = changed(first.map(|f| short(h.aim_value(f))), &short(h.aim_value(best)));
                (tile(&format!("Validation {}", h.aim.metric), value, &format!("{place} {}", best.step)))
                @if let Some(a) = accuracy(best) {
                    @let value = changed(first.and_then(accuracy).map(percent), &format!("{} %", percent(a)));
                    (tile("Accuracy", value, "on validation rows"))
                }
            }
            (step_tiles(run))
            (tile("Time", plain(&report::duration(Duration::from_secs_f64(run.seconds()))), &speed))
            @if h.memory() > 0 { (tile("Peak memory", plain(&report::bytes(h.memory())), "of tensors")) }
        }
    }
}

fn step_tiles(run: &RunFolder) -> Markup {
    let h = &run.history;
    let (Some(first), Some(last)) = (h.steps.first(), h.steps.last()) else { return Markup::default() };
    let losses: Vec<f64> = h.steps.iter().map(|p| p.loss).collect();
    let smoothed = if losses.len() < FEW { losses.clone() } else { smooth(&losses, window(losses.len())) };
    let now = smoothed.into_iter().rev().find(|v| v.is_finite()).unwrap_or(f64::NAN);
    let steps = html! {
        (report::count(last.step))
        @if last.step != run.total_steps() { i { " of " (report::count(run.total_steps())) } }
    };
    html! {
        (tile("Training loss", changed(Some(short(first.loss)), &short(now)), "first step → last, smoothed"))
        (tile("Steps", steps, &format!("{:.2} epochs", last.epoch)))
    }
}

/// Renders the problems that the training doctor found.
pub fn doctor(run: &RunFolder) -> Markup {
    let findings = diagnose(DiagnosisInput { plan: &run.plan, facts: run.facts.as_ref(), history: &run.history });
    if findings.is_empty() && run.history.steps.is_empty() {
        return Markup::default();
    }
    html! {
        section {
            h2 { "Doctor" }
            @if findings.is_empty() { p class="well" { "No problem detected in the training curves." } }
            @for f in &findings { (finding(f)) }
        }
    }
}

fn finding(f: &Diagnosis) -> Markup {
    let grave = matches!(
        f.id,
        DiagnosisId::NonFinite
            | DiagnosisId::LearningRateTooHigh
            | DiagnosisId::WorseThanStart
            | DiagnosisId::NoGradient
            | DiagnosisId::NoUpdate
            | DiagnosisId::NoMovement
    );
    html! {
        div class={ "card finding" @if grave { " grave" } } {
            h3 { (plain(&f.title)) code { (f.id.name()) } }
            ul class="evidence" { @for (k, v) in &f.evidence { li { span { (plain(k)) } " " (plain(v)) } } }
            p { (plain(&f.cause)) }
            @for command in &f.next { pre class="command" { (plain(command)) } }
        }
    }
}

/// Renders the last line of the page.
pub fn footer(run: &RunFolder) -> Markup {
    html! {
        footer {
            "Written by ft " (env!("CARGO_PKG_VERSION")) " from the files in "
            (plain(&run.path.display().to_string())) " at step " (run.history.last_step()) ", "
            (plain(&crate::runs::facts::now().replace('T', " "))) ". This page loads nothing and sends nothing."
        }
    }
}
