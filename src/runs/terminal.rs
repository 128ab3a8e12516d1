//! Shows a run on a terminal: numbers, curves as sparklines, findings, samples.

use super::diagnose::diagnose;
use super::diagnose::finding::{Diagnosis, DiagnosisInput};
use super::folder::{RunFolder, RunStatus};
use super::history::{StepPoint, smooth};
use super::number::number;
use crate::characters::printable;
use crate::methods::reward::ReportCard;
use crate::report;
use crate::stats::moments::mean_of_finite;
use console::{Style, style};
use serde_json::Value;
use std::fmt::Write;
use std::time::Duration;

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Formats a finding as lines of text: title and id, evidence, cause, commands.
pub fn finding(f: &Diagnosis) -> String {
    let evidence: Vec<String> = f.evidence.iter().map(|(k, v)| format!("{k} {v}")).collect();
    let mut text = format!("{} [{}]\n  {}\n  {}", f.title, f.id.name(), evidence.join("; "), f.cause);
    for next in &f.next {
        let _ = write!(text, "\n  try: {next}");
    }
    text
}

/// Draws values as at most `width` blocks, each the mean of an equal part of the values; `·` for a part without finite
/// values.
pub fn sparkline(values: &[f64], width: usize) -> String {
    if values.is_empty() {
        return String::new();
    }
    let n = values.len().min(width);
    let part = |i: usize| mean_of_finite(values[i * values.len() / n..(i + 1) * values.len() / n].iter().copied());
    let means: Vec<f64> = (0..n).map(part).collect();
    let finite = || means.iter().copied().filter(|v| v.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    let block = |v: &f64| match v.is_finite() {
        false => '·',
        true if high > low => BLOCKS[((v - low) / (high - low) * 7.0).round() as usize],
        true => BLOCKS[3],
    };
    means.iter().map(block).collect()
}

/// Returns the colour of a state.
pub fn state_style(state: RunStatus) -> Style {
    match state {
        RunStatus::Finished => Style::new().green(),
        RunStatus::Running => Style::new().cyan(),
        RunStatus::Interrupted | RunStatus::Unknown => Style::new().yellow(),
        RunStatus::Failed | RunStatus::Crashed => Style::new().red(),
    }
}

/// Returns how a reward model judges held-out pairs.
fn report_card(card: &ReportCard) -> String {
    let [low, high] = card.accuracy.interval;
    format!(
        "correct on {:.3} of {} held-out pairs (95 % {low:.3} to {high:.3}), {:.3} by length alone",
        card.accuracy.share,
        report::count(card.pairs as u64),
        card.length.longer_wins.max(card.length.shorter_wins)
    )
}

/// Returns how the rewards of held-out prompts changed; `None` if the file lacks a number.
fn held_out(found: &Value) -> Option<String> {
    let number = |key: &str| found[key].as_f64();
    let [low, high] = [found["interval"][0].as_f64()?, found["interval"][1].as_f64()?];
    Some(format!(
        "reward {:.3} -> {:.3}, {:+.3} (95 % {low:+.3} to {high:+.3}); win rate {:.3}: {} better, {} worse of {}",
        number("reward_before")?,
        number("reward_after")?,
        number("difference")?,
        number("win_rate")?,
        number("better")?,
        number("worse")?,
        number("prompts")?
    ))
}

/// Returns a summary of a run as text, `width` columns wide.
pub fn page(run: &RunFolder, width: usize) -> String {
    let (h, plan) = (&run.history, &run.plan);
    let mut out = format!(
        "{}  {}\n{} · {} on {}\n",
        style(run.name()).bold(),
        state_style(run.state).apply_to(run.state.name()),
        plan.method(),
        run.adapter(),
        plan.recipe.model.path.display()
    );
    if let Some(words) = run.last_words() {
        let _ = writeln!(out, "{}", state_style(run.state).apply_to(words));
    }
    let mut facts = vec![
        row("steps", format!("{} of {}", h.last_step(), run.total_steps())),
        row("time", report::duration(Duration::from_secs_f64(run.seconds()))),
    ];
    if let Some(speed) = h.tokens_per_s() {
        facts.push(row("speed", format!("{} tokens/s", report::count(speed.round() as u64))));
    }
    if h.memory() > 0 {
        facts.push(row("memory", format!("{} of tensors at most", report::bytes(h.memory()))));
    }
    if let (Some(first), Some(last)) = (h.validations.first(), h.validations.last()) {
        let best = h.best().map_or(String::new(), |b| format!(", best {} at step {}", number(h.aim_value(b)), b.step));
        facts.push(row(
            &format!("validation {}", h.aim.metric),
            format!(
                "{} (step {}) -> {} (step {}){best}",
                number(h.aim_value(first)),
                first.step,
                number(h.aim_value(last)),
                last.step
            ),
        ));
    }
    facts.extend(run.averaged_result().map(|words| row("result", words)));
    facts.extend(run.card.as_ref().map(|card| row("reward model", report_card(card))));
    facts.extend(run.held_out.as_ref().and_then(held_out).map(|text| row("held-out prompts", text)));
    if let Some(f) = &run.facts {
        let e = &f.environment;
        facts.push(row(
            "data",
            format!(
                "{} examples, {} tokens, of which {:.1} % are trained on",
                report::count(f.train.examples as u64),
                report::count(f.train.tokens as u64),
                100.0 * f.train.supervised_share()
            ),
        ));
        facts.push(row(
            "on",
            format!("{} ({}), {} threads, ft {}, libtorch {}", e.device_name, e.device, e.threads, e.ft, e.libtorch),
        ));
    }
    let _ = writeln!(out, "\n{}\n", report::table(&facts));

    let curve = |f: fn(&StepPoint) -> f64| h.steps.iter().map(f).collect::<Vec<f64>>();
    let losses = curve(|p| p.loss);
    let smoothed = smooth(&losses, losses.len() / 20);
    let validation: Vec<f64> = h.validations.iter().map(|v| h.aim_value(v)).collect();
    let mut curves = Vec::new();
    for (name, values) in [
        ("loss", smoothed),
        ("validation", validation),
        ("learning rate", curve(|p| p.lr)),
        ("gradient norm", curve(|p| p.grad_norm)),
        ("tokens/s", curve(|p| p.tokens_per_s)),
    ] {
        let ends = || values.iter().copied().filter(|v| v.is_finite());
        let (Some(first), Some(last)) = (ends().next(), ends().next_back()) else { continue };
        let colour = if name == "validation" { Style::new().yellow() } else { Style::new().cyan() };
        curves.push(vec![
            name.to_string(),
            number(first),
            colour.apply_to(sparkline(&values, width.saturating_sub(42).clamp(10, 60))).to_string(),
            number(last),
        ]);
    }
    if !curves.is_empty() {
        let _ = writeln!(out, "{}\n", report::table(&curves));
    }
    let measured = h.state_gradients();
    let ends: Vec<&(u64, Vec<(f64, f64)>)> = match measured.len() {
        0 | 1 => measured.iter().collect(),
        n => vec![&measured[0], &measured[n - 1]],
    };
    for (step, norms) in ends {
        let norms: Vec<String> =
            norms.iter().map(|(distance, norm)| format!("{distance}: {}", number(*norm))).collect();
        let _ = writeln!(out, "gradient of states by distance in tokens, step {step}: {}", norms.join(", "));
    }
    let resumed = run.resumed_steps();
    if !resumed.is_empty() {
        let steps: Vec<String> = resumed.iter().map(u64::to_string).collect();
        let _ = writeln!(out, "resumed after steps {}", steps.join(", "));
    }
    for f in diagnose(DiagnosisInput { plan, facts: run.facts.as_ref(), history: h }) {
        let _ = writeln!(out, "{} {}", style("doctor:").yellow().bold(), finding(&f));
    }
    let last = run.samples.iter().map(|s| s.step).max().unwrap_or(0);
    for s in run.samples.iter().filter(|s| s.step == last).take(3) {
        let before = run.samples.iter().find(|b| b.step == 0 && b.prompt == s.prompt && last > 0);
        let last_turn = s.turns.as_ref().and_then(|turns| turns.last());
        let prompt = last_turn.map_or(s.prompt.as_str(), |turn| &turn.text);
        let asked = prompt.trim().lines().rfind(|l| !l.trim().is_empty() && *l != "assistant").unwrap_or_default();
        let _ = writeln!(out, "{}", style(one_line(asked, width)).dim());
        if let Some(before) = before {
            let _ = writeln!(out, "  before: {}", one_line(&before.text, width - 10));
        }
        let _ = writeln!(out, "  step {last}: {}", one_line(&s.text, width - 10));
    }
    out
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_string(), value]
}

/// Returns a model's text on one line, truncated to `width` columns. Characters that control the terminal or change the
/// direction of text are escaped.
pub fn one_line(text: &str, width: usize) -> String {
    let plain: String = text.trim().chars().map(|c| if c == '\n' || c == '\t' { ' ' } else { c }).collect();
    console::truncate_str(&printable(&plain), width.max(20), "…").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_goes_from_low_to_high_and_shows_gaps() {
        assert_eq!(sparkline(&[0.0, 1.0, f64::NAN, 7.0], 10), "▁▂·█");
        assert_eq!(sparkline(&(0..800).map(f64::from).collect::<Vec<_>>(), 8), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[2.0, 2.0], 8), "▄▄");
    }

    #[test]
    fn a_model_cannot_steer_the_terminal() {
        assert_eq!(one_line("a\u{1b}[31mb\nc\u{9b}2J\u{202e}d", 80), "a⟨U+001B⟩[31mb c⟨U+009B⟩2J⟨U+202E⟩d");
    }
}
