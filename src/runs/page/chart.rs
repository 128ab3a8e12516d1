//! Curves as inline SVG. The plot stretches with the page, lines and words do not, so that a phone can read them.
//!
//! Honest by construction: a value that is not finite is a gap with a mark, never a bridge; many points are thinned to
//! the smallest and largest of each stretch, so that no spike is lost.

use super::escape;
use serde_json::json;
use std::fmt::Write;

/// How a series is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// A line behind the others.
    Faint,
    Line,
    /// A line with a dot at each value: few values that were measured apart.
    Dots,
}

/// Values over steps.
pub struct Series {
    pub name: String,
    /// The colour: `train`, `valid` or `other`.
    pub colour: &'static str,
    pub look: Look,
    pub points: Vec<(f64, f64)>,
}

/// A chart over steps.
pub struct Chart<'a> {
    pub title: String,
    /// What is drawn and how, below the title.
    pub note: String,
    pub series: Vec<Series>,
    /// How a value is written.
    pub format: fn(f64) -> String,
    /// A level worth knowing, with its name.
    pub guide: Option<(f64, &'a str)>,
    /// Steps after which a session went on.
    pub resumed: &'a [u64],
    /// Steps left out.
    pub skipped: &'a [u64],
    /// Equal distances are equal factors, where values spread over more than this factor.
    pub log_above: f64,
    /// The axis begins at zero.
    pub from_zero: bool,
}

/// Points of a series that are drawn at most.
const DRAWN: usize = 1200;

/// Keeps the smallest and the largest value of each stretch, and a gap where there is one.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
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

/// Where values lie between bottom (0) and top (1), and the values written at the side.
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

    /// From the top, in thousandths of the height.
    fn y(&self, value: f64) -> f64 {
        let v = if self.log { value.log10() } else { value };
        1000.0 * (1.0 - (v - self.low) / (self.high - self.low))
    }
}

/// `8.00` as `8`: a mark at the side needs no digits that say nothing.
fn tidy(text: String) -> String {
    let (digits, unit) = text.split_once(' ').map_or((text.as_str(), ""), |(d, u)| (d, u));
    let (digits, sign) = digits.strip_suffix('%').map_or((digits, ""), |d| (d, "%"));
    if !digits.contains('.') || digits.contains('e') {
        return text;
    }
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{digits}{sign}{}{unit}", if unit.is_empty() { "" } else { " " })
}

/// 1, 2 or 5 times a power of ten, at least `x`.
pub(super) fn round_step(x: f64) -> f64 {
    let power = 10f64.powf(x.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|d| d * power).into_iter().find(|s| *s >= x * 0.999).unwrap_or(x)
}

impl Chart<'_> {
    /// The chart as a `figure`; empty without a value.
    pub fn figure(&self) -> String {
        let finite = |p: &&(f64, f64)| p.1.is_finite();
        let mut values: Vec<f64> =
            self.series.iter().flat_map(|s| s.points.iter().filter(finite).map(|p| p.1)).collect();
        if let (false, Some((level, _))) = (values.is_empty(), self.guide) {
            // A level far above everything would only squeeze the curve.
            let most = values.iter().copied().fold(0.0, f64::max);
            if level <= 3.0 * most {
                values.push(level);
            }
        }
        let Some(axis) = Axis::new(&values, self.log_above, self.from_zero) else { return String::new() };
        let steps = self.series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
        let steps = steps.chain(self.skipped.iter().map(|s| *s as f64));
        let (first, last) = steps.fold((f64::INFINITY, 1.0f64), |(a, b), s| (a.min(s), b.max(s)));
        let first = if first >= last { last - 1.0 } else { first };
        let x = |step: f64| 1000.0 * (step - first) / (last - first);

        let mut svg = String::new();
        for tick in &axis.ticks {
            let _ = write!(svg, r#"<path class="grid" d="M0 {0:.1}H1000"/>"#, axis.y(*tick));
        }
        for step in self.resumed.iter().map(|s| x(*s as f64)).filter(|x| (0.0..=1000.0).contains(x)) {
            let _ = write!(svg, r#"<path class="resumed" d="M{step:.1} 0V1000"/>"#);
        }
        if let Some((level, _)) = self.guide.filter(|(level, _)| (0.0..=1000.0).contains(&axis.y(*level))) {
            let _ = write!(svg, r#"<path class="guide" d="M0 {:.1}H1000"/>"#, axis.y(level));
        }
        for series in &self.series {
            svg.push_str(&series.paths(x, |v| axis.y(v)));
        }
        for step in self.skipped.iter().map(|s| x(*s as f64)).filter(|x| (0.0..=1000.0).contains(x)) {
            let _ = write!(svg, r#"<path class="skipped" d="M{step:.1} 972h0"/>"#);
        }

        let mut labels = String::new();
        for tick in &axis.ticks {
            let _ = write!(
                labels,
                r#"<span class="y" style="top:{:.2}%">{}</span>"#,
                axis.y(*tick) / 10.0,
                escape(&tidy((self.format)(*tick)))
            );
        }
        for step in x_ticks(first, last) {
            let _ = write!(labels, r#"<span class="x" style="left:{:.2}%">{step}</span>"#, x(step) / 10.0);
        }
        if let Some((level, name)) = self.guide.filter(|(level, _)| (0.0..=1000.0).contains(&axis.y(*level))) {
            let _ = write!(
                labels,
                r#"<span class="level" style="top:{:.2}%">{}</span>"#,
                axis.y(level) / 10.0,
                escape(name)
            );
        }
        let legend: String = self
            .series
            .iter()
            .filter(|s| !s.points.is_empty())
            .map(|s| format!(r#"<span class="key {} {}">{}</span>"#, s.colour, s.look.class(), escape(&s.name)))
            .collect();
        let log = if axis.log { " · log scale" } else { "" };
        format!(
            r#"<figure class="chart" data-chart="{}"><figcaption><b>{}</b><span class="note">{}{log}</span><span class="legend">{legend}</span></figcaption><div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{}">{svg}</svg>{labels}<i class="cursor"></i><div class="tip"></div></div></figure>"#,
            escape(&self.data(first, last)),
            escape(&self.title),
            escape(&self.note),
            escape(&format!("{} over steps", self.title)),
        )
    }

    /// What the readout shows, as JSON: [first step, last step, [name, [[step, text], …]], …].
    fn data(&self, first: f64, last: f64) -> String {
        let series: Vec<_> = self
            .series
            .iter()
            .map(|s| {
                let points: Vec<_> = thin(&s.points)
                    .into_iter()
                    .map(|(step, v)| {
                        json!([step, if v.is_finite() { (self.format)(v) } else { "not finite, left out".into() }])
                    })
                    .collect();
                json!([s.name, s.colour, points])
            })
            .collect();
        json!([first, last, series]).to_string()
    }
}

impl Look {
    fn class(self) -> &'static str {
        match self {
            Look::Faint => "faint",
            Look::Line => "line",
            Look::Dots => "dots",
        }
    }
}

impl Series {
    fn paths(&self, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
        let points = thin(&self.points);
        let (mut line, mut dots, mut drawing) = (String::new(), String::new(), false);
        for (i, (step, value)) in points.iter().enumerate() {
            if !value.is_finite() {
                drawing = false;
                continue;
            }
            let _ = write!(line, "{}{:.1} {:.1}", if drawing { 'L' } else { 'M' }, x(*step), y(*value));
            let next = points.get(i + 1).is_some_and(|p| p.1.is_finite());
            if self.look == Look::Dots || (!drawing && !next) {
                // A line without length and with round ends is a dot that does not stretch.
                let _ = write!(dots, "M{:.1} {:.1}h0", x(*step), y(*value));
            }
            drawing = true;
        }
        let class = format!("{} {}", self.colour, self.look.class());
        let dots = if dots.is_empty() { dots } else { format!(r#"<path class="dot {}" d="{dots}"/>"#, self.colour) };
        format!(r#"<path class="{class}" d="{line}"/>{dots}"#)
    }
}

/// Up to six whole steps.
fn x_ticks(first: f64, last: f64) -> Vec<f64> {
    let step = round_step(((last - first) / 6.0).max(1.0)).max(1.0).round();
    let from = (first / step).ceil() as i64;
    let ticks: Vec<f64> = (from..).map(|i| i as f64 * step).take_while(|s| *s <= last).collect();
    ticks
}

/// Counts in bins of one width, with a line at `limit`.
pub fn histogram(width: usize, counts: &[u64], limit: usize, limit_name: &str) -> String {
    let Some(most) = counts.iter().copied().max().filter(|m| *m > 0) else { return String::new() };
    let end = counts.len() * width;
    // The limit is shown where it is near; far to the right it would only squeeze the bars.
    let near = limit <= end * 3;
    let range = if near { end.max(limit + width) } else { end } as f64;
    let mut svg = String::new();
    for (i, n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
        let (x, w) = (1000.0 * (i * width) as f64 / range, 1000.0 * width as f64 / range);
        let h = 960.0 * *n as f64 / most as f64;
        let _ = write!(
            svg,
            r#"<rect class="bar" x="{:.2}" y="{:.1}" width="{:.2}" height="{h:.1}"><title>{} to {} tokens: {n}</title></rect>"#,
            x + w * 0.06,
            1000.0 - h,
            w * 0.88,
            i * width,
            (i + 1) * width - 1,
        );
    }
    let mut labels =
        format!(r#"<span class="y" style="top:4%">{most}</span><span class="y" style="top:100%">0</span>"#);
    for tick in x_ticks(0.0, range) {
        let _ = write!(labels, r#"<span class="x" style="left:{:.2}%">{tick}</span>"#, 100.0 * tick / range);
    }
    if near {
        let x = 1000.0 * limit as f64 / range;
        let _ = write!(svg, r#"<path class="limit" d="M{x:.1} 0V1000"/>"#);
        let side = if x > 600.0 { "left" } else { "right" };
        let _ =
            write!(labels, r#"<span class="limit {side}" style="left:{:.2}%">{}</span>"#, x / 10.0, escape(limit_name));
    }
    format!(
        r#"<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="lengths in tokens">{svg}</svg>{labels}</div>"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_spikes_and_gaps() {
        let mut points: Vec<(f64, f64)> = (0..50_000).map(|i| (i as f64, 1.0)).collect();
        points[31_234].1 = 77.0;
        points[40_001].1 = f64::NAN;
        let kept = thin(&points);
        assert!(kept.len() <= 3 * DRAWN / 2, "{}", kept.len());
        assert!(kept.contains(&(31_234.0, 77.0)) && kept.iter().any(|p| p.1.is_nan()));
    }

    #[test]
    fn a_value_that_is_not_finite_breaks_the_line() {
        let points = vec![(1.0, 1.0), (2.0, 2.0), (3.0, f64::NAN), (4.0, 1.0), (5.0, 1.0)];
        let series = Series { name: "loss".into(), colour: "train", look: Look::Line, points };
        let svg = series.paths(|x| x, |y| y);
        assert_eq!(svg.matches('M').count(), 2, "{svg}");
    }

    #[test]
    fn marks_at_the_side_are_short() {
        let cases =
            [("8.00", "8"), ("0.050", "0.05"), ("10.0 MB", "10 MB"), ("1.0e-3", "1.0e-3"), ("20,000", "20,000")];
        for (long, short) in cases {
            assert_eq!(tidy(long.into()), short);
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
