//! Draws small plots of shares and counts as inline SVG in the style of the page.

use super::escape::plain;
use super::ticks::round_ticks;
use maud::{Markup, PreEscaped, html};

/// Wraps a plot into a figure with title and note. The arguments are not escaped.
pub fn figure(title: &str, note: &str, plot: &str) -> String {
    let markup = html! {
        figure class="chart" {
            figcaption { b { (PreEscaped(title)) } span class="note" { (PreEscaped(note)) } }
            (PreEscaped(plot))
        }
    };
    markup.into_string()
}

/// Wraps SVG elements into a drawing with a name for screen readers. Coordinates are thousandths of width and height
/// from the top left; the drawing stretches with the page.
pub fn canvas(name: &str, svg: Markup) -> Markup {
    html! {
        svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label=(plain(name)) { (svg) }
    }
}

/// Wraps SVG elements and HTML labels into a plot.
pub fn plot(name: &str, svg: Markup, labels: Markup) -> Markup {
    html! { div class="plot" { (canvas(name, svg)) (labels) } }
}

/// A vertical axis from 0 % (bottom) to 100 % (top), as SVG and as labels.
pub struct ShareAxis {
    /// Lines of the grid.
    pub grid: Markup,
    /// Labels of the lines.
    pub labels: Markup,
}

/// Draws a vertical axis of shares.
pub fn share_axis() -> ShareAxis {
    let ticks = [0.0, 0.25, 0.5, 0.75, 1.0];
    ShareAxis {
        grid: html! {
            @for tick in ticks { path class="grid" d=(format!("M0 {:.0}H1000", 1000.0 * (1.0 - tick))) {} }
        },
        labels: html! {
            @for tick in ticks {
                span class="y" style=(format!("top:{:.1}%", 100.0 * (1.0 - tick))) { (format!("{:.0}%", 100.0 * tick)) }
            }
        },
    }
}

/// Draws a share (dot) with its interval (line) at the horizontal position `x` in thousandths.
pub fn whisker(title: &str, x: f64, share: f64, [low, high]: [f64; 2]) -> Markup {
    let y = |v: f64| 1000.0 * (1.0 - v);
    html! {
        g {
            title { (plain(title)) }
            path class="train faint" d=(format!("M{x:.1} {:.1}V{:.1}", y(low), y(high))) {}
            path class="dot train" d=(format!("M{x:.1} {:.1}h0", y(share))) {}
        }
    }
}

/// Draws a forest plot: named values with their intervals, one below the other. The axis covers all of them, the guide,
/// and the range `at_least` if it is given.
pub fn forest(
    name: &str,
    rows: &[(String, f64, Option<[f64; 2]>)],
    format: impl Fn(f64) -> String,
    guide: Option<f64>,
    at_least: Option<[f64; 2]>,
) -> String {
    let ends = rows.iter().flat_map(|(_, value, interval)| interval.unwrap_or([*value; 2]));
    let ends = ends.chain(guide).chain(at_least.into_iter().flatten()).filter(|v| v.is_finite());
    let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    let (low, high) = if high > low { (low, high) } else { (low - 1.0, low + 1.0) };
    let x = |v: f64| 1000.0 * (v - low) / (high - low);
    let y = |i: usize| 1000.0 * (i as f64 + 0.5) / rows.len() as f64;
    let svg = html! {
        @for tick in round_ticks(low, high) { path class="grid" d=(format!("M{:.1} 0V1000", x(tick))) {} }
        @if let Some(guide) = guide { path class="guide" d=(format!("M{:.1} 0V1000", x(guide))) {} }
        @for (i, (name, value, interval)) in rows.iter().enumerate() {
            g {
                title {
                    (plain(name)) ": " (format(*value))
                    @if let Some([a, b]) = interval { ", " (format(*a)) " to " (format(*b)) }
                }
                @if let Some([a, b]) = interval {
                    path class="train faint" d=(format!("M{:.1} {:.1}H{:.1}", x(*a), y(i), x(*b))) {}
                }
                path class="dot train" d=(format!("M{:.1} {:.1}h0", x(*value), y(i))) {}
            }
        }
    };
    let labels = html! {
        @for tick in round_ticks(low, high) {
            span class="x" style=(format!("left:{:.2}%", x(tick) / 10.0)) { (format(tick)) }
        }
        @for (i, (name, value, _)) in rows.iter().enumerate() {
            span class="y name" style=(format!("top:{:.2}%", y(i) / 10.0)) { i { (plain(name)) } b { (format(*value)) } }
        }
    };
    let height = 34 * rows.len().max(1);
    let plot = html! {
        div class="plot forest" style={ "height:" (height) "px" } { (canvas(name, svg)) (labels) }
    };
    plot.into_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forest_holds_every_value_on_its_axis() {
        let rows = [("a <b>".to_string(), 0.4, Some([-0.1, 0.7])), ("c".to_string(), 0.9, None)];
        let svg = forest("x", &rows, |v| format!("{v:.1}"), Some(0.5), Some([0.0, 1.0]));
        assert_eq!((svg.matches("dot train").count(), svg.matches("train faint").count()), (2, 1));
        assert!(svg.contains("a &lt;b&gt;") && !svg.contains("NaN") && svg.contains("a &lt;b&gt;: 0.4, -0.1 to 0.7"));
        assert!(!forest("x", &[("one".into(), 3.0, None)], |v| v.to_string(), None, None).contains("NaN"));
    }
}
