//! Renders metrics over dates as one HTML page that loads nothing.

use super::series::{MetricSeries, SeriesPoint, day};
use crate::runs::number::number;
use crate::runs::page::document::document;
use crate::runs::page::escape::{named, plain};
use crate::runs::page::plot::plot;
use crate::runs::page::ticks::round_ticks;
use maud::{Markup, html};

/// Dates below a picture.
const DATES: usize = 6;

/// Returns the page. `place`: the folder whose evaluations these are.
pub fn render(place: &str, series: &[MetricSeries]) -> String {
    let changed = series.iter().filter(|series| series.shown_change().is_some()).count();
    let evaluations: std::collections::BTreeSet<_> =
        series.iter().flat_map(|series| series.points.iter().map(|point| &point.folder)).collect();
    let body = html! {
        header {
            h1 { "Evaluations over time" }
            p class="sub" { (named(place)) " · " (evaluations.len()) " evaluations · " (series.len()) " metrics" }
            p class="sub" {
                @if changed > 0 { (changed) " of them changed their level." } @else { "No change of a level was shown." }
            }
        }
        @for series in series { (section(series)) }
        section {
            h2 { "How to read this" }
            div class="card" {
                p {
                    "Each dot is one evaluation of the same questions, with its 95 % interval over items; the dots are in the order of their dates, "
                    "equally far apart. A change is said if Pettitt's test finds one with a p-value below 0.05, corrected for all metrics here (Holm). "
                    "It needs five evaluations, finds one change and no slow trend, and does not say what caused it."
                }
            }
        }
        footer { "Written by ft " (env!("CARGO_PKG_VERSION")) ". This page loads nothing and sends nothing." }
    };
    document("Evaluations over time", &body.into_string())
}

fn section(series: &MetricSeries) -> Markup {
    html! {
        section {
            h2 { (named(&series.task)) " · " (plain(&series.metric.replace('_', " "))) }
            figure class="chart" {
                figcaption {
                    b { (plain(&series.drift())) }
                    span class="note" {
                        (named(&series.suite)) " · " (crate::report::count(series.items as u64)) " items"
                        @if !series.direction.note().is_empty() { " · " (series.direction.note()) }
                    }
                }
                (picture(series))
            }
            details { summary { "values" } (table(series)) }
        }
    }
}

fn picture(series: &MetricSeries) -> Markup {
    let ends = series.points.iter().flat_map(|point| point.estimate.interval.unwrap_or([point.estimate.value; 2]));
    let (low, high) =
        ends.filter(|x| x.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let margin = if high > low { (high - low) * 0.08 } else { low.abs().max(1.0) * 0.1 };
    let (low, high) = (low - margin, high + margin);
    let count = series.points.len();
    let x = |i: f64| 1000.0 * (i + 0.5) / count as f64;
    let y = |value: f64| 1000.0 * (1.0 - (value - low) / (high - low));
    let levels = series.shown_change().map(|change| (change.after, change.mean_before, change.mean_after));
    let drawn = html! {
        @for tick in round_ticks(low, high) { path class="grid" d=(format!("M0 {:.1}H1000", y(tick))) {} }
        @if let Some((after, before, from_then)) = levels {
            path class="resumed" d=(format!("M{:.1} 0V1000", x(after as f64 - 0.5))) {}
            path class="guide" d=(format!("M0 {:.1}H{:.1}", y(before), x(after as f64 - 0.5))) {}
            path class="guide" d=(format!("M{:.1} {:.1}H1000", x(after as f64 - 0.5), y(from_then))) {}
        }
        @for (i, point) in series.points.iter().enumerate() { (dot(point, x(i as f64), &y)) }
    };
    let every = count.div_ceil(DATES);
    let labels = html! {
        @for tick in round_ticks(low, high) { span class="y" style=(format!("top:{:.2}%", y(tick) / 10.0)) { (number(tick)) } }
        @for (i, point) in series.points.iter().enumerate().step_by(every) {
            span class="x" style=(format!("left:{:.2}%", x(i as f64) / 10.0)) { (plain(day(&point.evaluated))) }
        }
    };
    plot(&format!("{} {} over evaluations", series.task, series.metric), drawn, labels)
}

fn dot(point: &SeriesPoint, x: f64, y: &dyn Fn(f64) -> f64) -> Markup {
    html! {
        g {
            title {
                (plain(&point.evaluated)) ", " (plain(&point.folder.display().to_string())) ": " (number(point.estimate.value))
                @if let Some([a, b]) = point.estimate.interval { " (" (number(a)) " to " (number(b)) ")" }
            }
            @if let Some([a, b]) = point.estimate.interval {
                path class="train faint" d=(format!("M{x:.1} {:.1}V{:.1}", y(a), y(b))) {}
            }
            path class="dot train" d=(format!("M{x:.1} {:.1}h0", y(point.estimate.value))) {}
        }
    }
}

fn table(series: &MetricSeries) -> Markup {
    html! {
        div class="scroll" {
            table {
                tr { th { "date" } th { "evaluation" } th { "model" } th class="number" { "value (95 %)" } }
                @for point in &series.points {
                    tr {
                        td { (plain(&point.evaluated)) }
                        td { (named(&point.folder.display().to_string())) }
                        td { (named(&point.subject)) }
                        td class="number" {
                            (number(point.estimate.value))
                            @if let Some([a, b]) = point.estimate.interval { " (" (number(a)) " to " (number(b)) ")" }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::history::series::{SeriesFilter, series, tests::drifting};

    #[test]
    fn the_page_shows_each_evaluation_and_the_change() {
        let mut found = series(&drifting(), &SeriesFilter::default());
        found[0].points[0].folder = "a <b>".into();
        let page = render("runs", &found);
        assert_eq!(page.matches("class=\"dot train\"").count(), 10);
        assert_eq!(page.matches("class=\"guide\"").count(), 2, "the level before and after");
        assert!(page.contains("worse since 2026-03-06") && page.contains("1 of them changed their level"));
        assert!(!page.contains("a <b>") && page.contains("a &lt;b&gt;") && !page.contains("NaN"));
        let one = series(&drifting()[..1], &SeriesFilter::default());
        assert!(!render("runs", &one).contains("NaN"), "a single value has an axis");
    }
}
