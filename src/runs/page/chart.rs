//! Draws curves as inline SVG. The plot stretches with the page; line widths and labels do not, so that they stay
//! readable on a phone.
//!
//! A value that is not finite appears as a gap with a mark and is never bridged. Many points are reduced to the
//! smallest and largest of each interval, so that no spike is lost.

use super::escape::plain;
use super::plot::canvas;
use super::ticks::{round_step, x_ticks};
use maud::{Markup, html};
use serde_json::json;
use std::fmt::Write;

/// Line style of a series.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SeriesStyle {
    /// A line behind the others.
    Faint,
    /// A line.
    Line,
    /// A line with a dot at each value, for a few values far apart.
    Dots,
}

/// A curve: values over steps, or over what the chart counts.
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// CSS class of the colour: `train`, `valid` or `other`.
    pub colour: &'static str,
    /// Style of the line.
    pub look: SeriesStyle,
    /// (step, value) in the order of steps.
    pub points: Vec<(f64, f64)>,
}

/// A chart over steps.
pub struct Chart<'a> {
    /// Title above the plot.
    pub title: String,
    /// Explanation below the title.
    pub note: String,
    /// The curves, the first at the back.
    pub series: Vec<Series>,
    /// What the horizontal axis counts: `step`, or `layer`.
    pub over: &'static str,
    /// Formats a value.
    pub format: fn(f64) -> String,
    /// A horizontal line at a value of interest, with its name.
    pub guide: Option<(f64, &'a str)>,
    /// Steps after which the run was resumed.
    pub resumed: &'a [u64],
    /// Steps that were skipped because a number was not finite.
    pub skipped: &'a [u64],
    /// The axis is logarithmic if the largest value is more than this multiple of the smallest.
    pub log_above: f64,
    /// The axis starts at zero.
    pub from_zero: bool,
}

/// Number of points above which a series is reduced.
const DRAWN: usize = 1200;

/// Reduces many points: of each interval it keeps the smallest and the largest value, and a gap if there is one.
fn downsample(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= DRAWN {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(DRAWN / 2);
    let mut kept = Vec::new();
    for part in points.chunks(stretch) {
        let finite = || part.iter().enumerate().filter(|(_, p)| p.1.is_finite());
        let least = finite().min_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let most = finite().max_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let gap = part.iter().enumerate().find(|(_, p)| !p.1.is_finite());
        let mut some: Vec<(usize, (f64, f64))> =
            [least, most, gap].into_iter().flatten().map(|(i, p)| (i, *p)).collect();
        some.sort_by_key(|(i, _)| *i);
        some.dedup_by_key(|(i, _)| *i);
        kept.extend(some.into_iter().map(|(_, p)| p));
    }
    kept
}

/// Vertical axis: the range of values (their logarithms if `log`) and the labelled values.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    fn new(values: &[f64], log_above: f64, from_zero: bool) -> Option<Self> {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if values.is_empty() {
            return None;
        }
        if least > 0.0 && most / least > log_above {
            let (low, high) = (least.log10() - 0.05, most.log10() + 0.05);
            let whole: Vec<f64> = (low.ceil() as i32..=high.floor() as i32).map(|e| 10f64.powi(e)).collect();
            let ticks = if whole.len() >= 2 {
                let every = whole.len().div_ceil(6);
                whole.into_iter().step_by(every).collect()
            } else {
                (0..4).map(|i| 10f64.powf(low + (high - low) * (i as f64 + 0.5) / 4.0)).collect()
            };
            return Some(Self { low, high, log: true, ticks });
        }
        let least = if from_zero { least.min(0.0) } else { least };
        let span = if most > least { most - least } else { most.abs().max(1e-12) };
        let step = round_step(span / 4.0);
        let mut low = (least / step).floor() * step;
        let mut high = (most / step).ceil() * step;
        if high <= low {
            (low, high) = (low - step, high + step);
        }
        let count = ((high - low) / step).round() as i64;
        Some(Self { low, high, log: false, ticks: (0..=count).map(|i| low + step * i as f64).collect() })
    }

    /// Returns the position of a value from the top, in thousandths of the height.
    fn y(&self, value: f64) -> f64 {
        let v = if self.log { value.log10() } else { value };
        1000.0 * (1.0 - (v - self.low) / (self.high - self.low))
    }
}

/// Removes trailing zeros from the label of an axis: `8.00` becomes `8`.
fn trim_zeros(text: String) -> String {
    let (digits, unit) = text.split_once(' ').map_or((text.as_str(), ""), |(d, u)| (d, u));
    let (digits, sign) = digits.strip_suffix('%').map_or((digits, ""), |d| (d, "%"));
    if !digits.contains('.') || digits.contains('e') {
        return text;
    }
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{digits}{sign}{}{unit}", if unit.is_empty() { "" } else { " " })
}

impl Chart<'_> {
    /// Returns the chart as an HTML `figure`; nothing if it has no finite value.
    pub fn figure(&self) -> Markup {
        let finite = |p: &&(f64, f64)| p.1.is_finite();
        let mut values: Vec<f64> =
            self.series.iter().flat_map(|s| s.points.iter().filter(finite).map(|p| p.1)).collect();
        if let (false, Some((level, _))) = (values.is_empty(), self.guide) {
            // A guide far above all values would compress the curve: the axis then ends below it.
            let most = values.iter().copied().fold(0.0, f64::max);
            if level <= 3.0 * most {
                values.push(level);
            }
        }
        let Some(axis) = Axis::new(&values, self.log_above, self.from_zero) else { return Markup::default() };
        let steps = self.series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
        let steps = steps.chain(self.skipped.iter().map(|s| *s as f64));
        let (first, last) = steps.fold((f64::INFINITY, 1.0f64), |(a, b), s| (a.min(s), b.max(s)));
        let first = if first >= last { last - 1.0 } else { first };
        let x = |step: f64| 1000.0 * (step - first) / (last - first);

        let inside = |steps: &[u64]| -> Vec<f64> {
            steps.iter().map(|s| x(*s as f64)).filter(|x| (0.0..=1000.0).contains(x)).collect()
        };
        let guide = self.guide.map(|(level, name)| (axis.y(level), name)).filter(|(y, _)| (0.0..=1000.0).contains(y));
        html! {
            figure class="chart" data-chart=(plain(&self.data(first, last))) {
                figcaption {
                    b { (plain(&self.title)) }
                    span class="note" { (plain(&self.note)) @if axis.log { " · log scale" } }
                    span class="legend" {
                        @for s in self.series.iter().filter(|s| !s.points.is_empty()) {
                            span class={ "key " (s.colour) " " (s.look.class()) } { (plain(&s.name)) }
                        }
                    }
                }
                div class="plot" {
                    (canvas(&format!("{} over {}s", self.title, self.over), html! {
                        @for tick in &axis.ticks {
                            path class="grid" d=(format!("M0 {:.1}H1000", axis.y(*tick))) {}
                        }
                        @for x in inside(self.resumed) { path class="resumed" d=(format!("M{x:.1} 0V1000")) {} }
                        @if let Some((y, _)) = guide { path class="guide" d=(format!("M0 {y:.1}H1000")) {} }
                        @for series in &self.series { (series.paths(x, |v| axis.y(v))) }
                        @for x in inside(self.skipped) { path class="skipped" d=(format!("M{x:.1} 972h0")) {} }
                    }))
                    @for tick in &axis.ticks {
                        span class="y" style=(format!("top:{:.2}%", axis.y(*tick) / 10.0)) {
                            (plain(&trim_zeros((self.format)(*tick))))
                        }
                    }
                    @for step in x_ticks(first, last) {
                        span class="x" style=(format!("left:{:.2}%", x(step) / 10.0)) { (step) }
                    }
                    @if let Some((y, name)) = guide {
                        span class="level" style=(format!("top:{:.2}%", y / 10.0)) { (plain(name)) }
                    }
                    i class="cursor" {}
                    div class="tip" {}
                }
            }
        }
    }

    /// Returns the data for hover.js as JSON: [first step, last step, [[name, colour, [[step, text], …]], …], `step`].
    fn data(&self, first: f64, last: f64) -> String {
        let series: Vec<_> = self
            .series
            .iter()
            .map(|s| {
                let points: Vec<_> = downsample(&s.points)
                    .into_iter()
                    .map(|(step, v)| {
                        json!([step, if v.is_finite() { (self.format)(v) } else { "not finite, skipped".into() }])
                    })
                    .collect();
                json!([s.name, s.colour, points])
            })
            .collect();
        json!([first, last, series, self.over]).to_string()
    }
}

impl SeriesStyle {
    fn class(self) -> &'static str {
        match self {
            SeriesStyle::Faint => "faint",
            SeriesStyle::Line => "line",
            SeriesStyle::Dots => "dots",
        }
    }
}

impl Series {
    fn paths(&self, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> Markup {
        let points = downsample(&self.points);
        let (mut line, mut dots, mut drawing) = (String::new(), String::new(), false);
        for (i, (step, value)) in points.iter().enumerate() {
            if !value.is_finite() {
                drawing = false;
                continue;
            }
            let _ = write!(line, "{}{:.1} {:.1}", if drawing { 'L' } else { 'M' }, x(*step), y(*value));
            let next = points.get(i + 1).is_some_and(|p| p.1.is_finite());
            if self.look == SeriesStyle::Dots || (!drawing && !next) {
                // A line of length zero with round ends is a dot that stays round when the plot is stretched.
                let _ = write!(dots, "M{:.1} {:.1}h0", x(*step), y(*value));
            }
            drawing = true;
        }
        html! {
            path class={ (self.colour) " " (self.look.class()) } d=(line) {}
            @if !dots.is_empty() { path class={ "dot " (self.colour) } d=(dots) {} }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_spikes_and_gaps() {
        let mut points: Vec<(f64, f64)> = (0..50_000).map(|i| (i as f64, 1.0)).collect();
        points[31_234].1 = 77.0;
        points[40_001].1 = f64::NAN;
        let kept = downsample(&points);
        assert!(kept.len() <= 3 * DRAWN / 2, "{}", kept.len());
        assert!(kept.contains(&(31_234.0, 77.0)) && kept.iter().any(|p| p.1.is_nan()));
    }

    #[test]
    fn a_value_that_is_not_finite_breaks_the_line() {
        let points = vec![(1.0, 1.0), (2.0, 2.0), (3.0, f64::NAN), (4.0, 1.0), (5.0, 1.0)];
        let series = Series { name: "loss".into(), colour: "train", look: SeriesStyle::Line, points };
        let svg = series.paths(|x| x, |y| y).into_string();
        assert_eq!(svg.matches('M').count(), 2, "{svg}");
    }

    #[test]
    fn marks_at_the_side_are_short() {
        let cases =
            [("8.00", "8"), ("0.050", "0.05"), ("10.0 MB", "10 MB"), ("1.0e-3", "1.0e-3"), ("20,000", "20,000")];
        for (long, short) in cases {
            assert_eq!(trim_zeros(long.into()), short);
        }
    }

    #[test]
    fn axes_hold_their_values() {
        for values in [vec![0.1, 7.3], vec![5.0], vec![0.0, 0.0], vec![-2.0, 3.0], vec![1e-9, 4.0]] {
            let axis = Axis::new(&values, 50.0, false).unwrap();
            for v in &values {
                assert!((-1e-6..=1000.0 + 1e-6).contains(&axis.y(*v)), "{values:?}: {}", axis.y(*v));
            }
            assert!((2..=9).contains(&axis.ticks.len()), "{values:?}: {:?}", axis.ticks);
        }
    }
}
