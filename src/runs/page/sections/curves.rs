//! The curves of a run over its steps.

use super::format::{FEW, short, window};
use crate::models::gradient_reach::STATE_GRADIENT;
use crate::models::router_terms::SHARE as EXPERT_SHARE;
use crate::report;
use crate::runs::folder::RunFolder;
use crate::runs::history::{History, StepPoint, smooth};
use crate::runs::page::chart::{Chart, Series, SeriesStyle};
use maud::{Markup, html};
use std::collections::BTreeSet;

/// (step, value) in the order of steps.
type Points = Vec<(f64, f64)>;

/// Renders the section of curves; nothing for a run without steps.
pub fn curves(run: &RunFolder) -> Markup {
    let h = &run.history;
    if h.steps.is_empty() {
        return Markup::default();
    }
    let marks = StepMarks::of(run);
    let mut charts = vec![loss(h, &marks), learning_rate(h, &marks)];
    charts.push(gradient_norm(h, &marks, run.plan.recipe.optim.max_norm));
    let names = h.steps.first().map_or(&[][..], |p| &p.more);
    let (shares, names): (Vec<&str>, Vec<&str>) =
        names.iter().map(|(name, _)| name.as_str()).partition(|name| name.starts_with(EXPERT_SHARE));
    let names = names.into_iter().filter(|name| !name.starts_with(STATE_GRADIENT));
    charts.extend(names.map(|name| method_mean(h, &marks, name)));
    charts.extend((!shares.is_empty()).then(|| expert_shares(h, &marks, &shares)));
    charts.extend(state_gradients(h));
    charts.extend([speed(h, &marks), memory(h, &marks)]);
    html! {
        section { h2 { "Curves" } div class="charts" { @for chart in &charts { (chart.figure()) } } }
    }
}

/// Steps that every chart marks.
struct StepMarks {
    resumed: Vec<u64>,
    skipped: Vec<u64>,
}

impl StepMarks {
    fn of(run: &RunFolder) -> Self {
        let left_out = run.history.steps.iter().filter(|p| !p.was_applied()).map(|p| p.step);
        let ended = run.facts.iter().flat_map(|f| f.origins.iter().map(|o| o.step));
        let skipped: BTreeSet<u64> = left_out.chain(ended).collect();
        Self { resumed: run.resumed_steps(), skipped: skipped.into_iter().collect() }
    }

    /// Returns the explanation of the marks, to follow the note of a chart.
    fn legend(&self) -> String {
        let resumed = if self.resumed.is_empty() { "" } else { " · dashed: resumed" };
        match self.skipped.len() {
            0 => resumed.into(),
            n => format!("{resumed} · red: not finite ({n})"),
        }
    }

    /// Returns a chart with a linear axis that starts at the smallest value.
    fn chart(&self, title: &str, note: &str, series: Vec<Series>) -> Chart<'_> {
        Chart {
            title: title.into(),
            note: note.into(),
            series,
            over: "step",
            format: short,
            guide: None,
            resumed: &self.resumed,
            skipped: &self.skipped,
            log_above: f64::INFINITY,
            from_zero: false,
        }
    }
}

fn loss<'a>(h: &History, marks: &'a StepMarks) -> Chart<'a> {
    let smoothing = match h.steps.len() {
        n if n < FEW => "each step".to_string(),
        n => format!("mean over {} steps", window(n)),
    };
    let mut series = with_mean(per_step(h, |p| p.loss), "training");
    series.push(validation(h, "loss"));
    Chart { log_above: 200.0, ..marks.chart("Loss", &format!("{smoothing}{}", marks.legend()), series) }
}

fn learning_rate<'a>(h: &History, marks: &'a StepMarks) -> Chart<'a> {
    let format = |v: f64| if v == 0.0 { "0".into() } else { format!("{v:.1e}") };
    let series = vec![line("learning rate", per_step(h, |p| p.lr))];
    Chart { format, from_zero: true, ..marks.chart("Learning rate", "", series) }
}

fn gradient_norm<'a>(h: &History, marks: &'a StepMarks, max_norm: f64) -> Chart<'a> {
    let guide = (max_norm > 0.0).then_some((max_norm, "clipped above"));
    let series = with_mean(per_step(h, |p| p.grad_norm), "norm");
    Chart { guide, log_above: 20.0, from_zero: true, ..marks.chart("Gradient norm", "before clipping", series) }
}

/// Returns the chart of a mean that the method records, such as the accuracy of pairs.
fn method_mean<'a>(h: &History, marks: &'a StepMarks, name: &str) -> Chart<'a> {
    let value = |p: &StepPoint| p.more.iter().find(|(k, _)| k == name).map_or(f64::NAN, |(_, v)| *v);
    let mut series = with_mean(per_step(h, value), "training");
    series.push(validation(h, name));
    let mut title = name.replace('_', " ");
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let format = if name.contains("accuracy") { |v: f64| format!("{:.1}%", 100.0 * v) } else { short };
    Chart { format, ..marks.chart(&title, "", series) }
}

/// Returns the chart of the parts of all choices of experts that each of them got.
fn expert_shares<'a>(h: &History, marks: &'a StepMarks, names: &[&str]) -> Chart<'a> {
    let of_expert = |name: &&str| {
        let points = per_step(h, |p| p.more.iter().find(|(k, _)| k == name).map_or(f64::NAN, |(_, v)| *v));
        line(&name[EXPERT_SHARE.len()..], points)
    };
    let guide = Some((1.0 / names.len() as f64, "equal shares"));
    let note = "of the tokens of all layers; a line for each expert, by its number";
    Chart { guide, from_zero: true, ..marks.chart("Shares of experts", note, names.iter().map(of_expert).collect()) }
}

/// Returns the chart of how much a loss depends on earlier states, by distance; `None` if it was not measured.
fn state_gradients<'a>(h: &History) -> Option<Chart<'a>> {
    let measured = h.state_gradients();
    let last = measured.len().checked_sub(1)?;
    let shown: BTreeSet<usize> = BTreeSet::from([0, last / 2, last]);
    let colours = ["other", "valid", "train"];
    let series = |(at, colour): (&usize, &&'static str)| {
        let (step, points) = &measured[*at];
        Series { name: format!("step {step}"), colour, look: SeriesStyle::Dots, points: points.clone() }
    };
    Some(Chart {
        title: "Gradient of earlier states".into(),
        note: "norm of d loss / d state, by the distance of the state in tokens".into(),
        series: shown.iter().zip(colours.iter().skip(3 - shown.len())).map(series).collect(),
        over: "distance",
        format: short,
        guide: None,
        resumed: &[],
        skipped: &[],
        log_above: 20.0,
        from_zero: false,
    })
}

fn speed<'a>(h: &History, marks: &'a StepMarks) -> Chart<'a> {
    let format = |v: f64| report::count(v.round().max(0.0) as u64);
    let series = with_mean(per_step(h, |p| p.tokens_per_s), "tokens per second");
    let note = "tokens per second, without validation and saving";
    Chart { format, from_zero: true, ..marks.chart("Speed", note, series) }
}

fn memory<'a>(h: &History, marks: &'a StepMarks) -> Chart<'a> {
    let format = |v: f64| report::bytes(v.max(0.0) as u64);
    let bytes = per_step(h, |p| if p.memory > 0 { p.memory as f64 } else { f64::NAN });
    Chart { format, from_zero: true, ..marks.chart("Memory", "of tensors", vec![line("peak so far", bytes)]) }
}

fn per_step(h: &History, value: impl Fn(&StepPoint) -> f64) -> Points {
    h.steps.iter().map(|p| (p.step as f64, value(p))).collect()
}

fn line(name: &str, points: Points) -> Series {
    Series { name: name.into(), colour: "other", look: SeriesStyle::Line, points }
}

/// Returns a smoothed curve in front of its values; the values alone if there are few.
fn with_mean(points: Points, name: &str) -> Vec<Series> {
    if points.len() < FEW {
        return vec![Series { name: name.into(), colour: "train", look: SeriesStyle::Dots, points }];
    }
    let values: Vec<f64> = points.iter().map(|p| p.1).collect();
    let means = points.iter().zip(smooth(&values, window(values.len()))).map(|(p, v)| (p.0, v)).collect();
    vec![
        Series { name: "each step".into(), colour: "train", look: SeriesStyle::Faint, points },
        Series { name: name.into(), colour: "train", look: SeriesStyle::Line, points: means },
    ]
}

/// Returns the curve of a mean over the validation rows.
fn validation(h: &History, name: &str) -> Series {
    let mean = |means: &[(String, f64)]| means.iter().find(|(k, _)| k == name).map(|(_, v)| *v);
    let points: Points = h.validations.iter().filter_map(|v| Some((v.step as f64, mean(&v.means)?))).collect();
    let look = if points.len() <= 60 { SeriesStyle::Dots } else { SeriesStyle::Line };
    Series { name: "validation".into(), colour: "valid", look, points }
}
