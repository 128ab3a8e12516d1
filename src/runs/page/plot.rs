//! Draws small plots of shares and counts as inline SVG in the style of the page.

use super::escape;
use std::fmt::Write;

/// Wraps a plot into a figure with title and note. The arguments are not escaped.
pub fn figure(title: &str, note: &str, plot: &str) -> String {
    format!(
        r#"<figure class="chart"><figcaption><b>{title}</b><span class="note">{note}</span></figcaption>{plot}</figure>"#
    )
}

/// Wraps SVG elements and HTML labels into a plot. SVG coordinates are thousandths of width and height from the top
/// left.
pub fn plot(name: &str, svg: &str, labels: &str) -> String {
    format!(
        r#"<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{}">{svg}</svg>{labels}</div>"#,
        escape(name)
    )
}

/// Appends a vertical axis from 0 % (bottom) to 100 % (top).
pub fn shares(svg: &mut String, labels: &mut String) {
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let y = 1000.0 * (1.0 - tick);
        let _ = write!(svg, r#"<path class="grid" d="M0 {y:.0}H1000"/>"#);
        let _ = write!(labels, r#"<span class="y" style="top:{:.1}%">{:.0}%</span>"#, y / 10.0, 100.0 * tick);
    }
}

/// Appends a share (dot) with its interval (line) at the horizontal position `x` in thousandths.
pub fn whisker(svg: &mut String, title: &str, x: f64, share: f64, [low, high]: [f64; 2]) {
    let y = |v: f64| 1000.0 * (1.0 - v);
    let _ = write!(
        svg,
        r#"<g><title>{}</title><path class="train faint" d="M{x:.1} {:.1}V{:.1}"/><path class="dot train" d="M{x:.1} {:.1}h0"/></g>"#,
        escape(title),
        y(low),
        y(high),
        y(share),
    );
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
    let (mut svg, mut labels) = (String::new(), String::new());
    for tick in round_ticks(low, high) {
        let _ = write!(svg, r#"<path class="grid" d="M{0:.1} 0V1000"/>"#, x(tick));
        let _ = write!(labels, r#"<span class="x" style="left:{:.2}%">{}</span>"#, x(tick) / 10.0, format(tick));
    }
    if let Some(guide) = guide {
        let _ = write!(svg, r#"<path class="guide" d="M{0:.1} 0V1000"/>"#, x(guide));
    }
    for (i, (name, value, interval)) in rows.iter().enumerate() {
        let y = 1000.0 * (i as f64 + 0.5) / rows.len() as f64;
        let said = interval.map_or(String::new(), |[a, b]| format!(", {} to {}", format(a), format(b)));
        let _ = write!(svg, "<g><title>{}: {}{said}</title>", escape(name), format(*value));
        if let Some([a, b]) = interval {
            let _ = write!(svg, r#"<path class="train faint" d="M{:.1} {y:.1}H{:.1}"/>"#, x(*a), x(*b));
        }
        let _ = write!(svg, r#"<path class="dot train" d="M{:.1} {y:.1}h0"/></g>"#, x(*value));
        let _ = write!(
            labels,
            r#"<span class="y name" style="top:{:.2}%"><i>{}</i><b>{}</b></span>"#,
            y / 10.0,
            escape(name),
            format(*value)
        );
    }
    format!(
        r#"<div class="plot forest" style="height:{}px"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{}">{svg}</svg>{labels}</div>"#,
        34 * rows.len().max(1),
        escape(name)
    )
}

/// Returns about five round values from `low` to `high`.
fn round_ticks(low: f64, high: f64) -> Vec<f64> {
    let step = super::chart::round_step((high - low) / 5.0);
    let first = (low / step - 1e-9).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|t| *t <= high + step * 1e-9).collect()
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
        assert_eq!(round_ticks(-0.1, 1.0), [0.0, 0.5, 1.0]);
        assert!(!forest("x", &[("one".into(), 3.0, None)], |v| v.to_string(), None, None).contains("NaN"));
    }
}
