//! Draws values of models and rules as bars with their intervals.

use crate::eval::report::format::NumberFormat;
use crate::runs::page::escape::named;
use maud::{Markup, html};

/// One bar.
pub struct Bar {
    /// What it belongs to.
    pub name: String,
    /// CSS class: `base` for the baseline, `rule` for a rule without a model, else empty.
    pub class: &'static str,
    /// Its value.
    pub value: f64,
    /// Its 95 % interval.
    pub interval: Option<[f64; 2]>,
}

/// Renders bars, one below the other, from 0 (or the smallest negative value) to 1 for shares, and to the largest value for other numbers.
pub fn bars(format: NumberFormat, bars: &[Bar]) -> Markup {
    let ends =
        || bars.iter().flat_map(|bar| bar.interval.into_iter().flatten().chain([bar.value])).filter(|v| v.is_finite());
    let low = ends().fold(0.0, f64::min);
    let high = ends().fold(if format == NumberFormat::Share { 1.0 } else { 0.0 }, f64::max);
    let span = if high > low { high - low } else { 1.0 };
    let percent = |x: f64| 100.0 * ((x - low) / span).clamp(0.0, 1.0);
    html! {
        div class="bars" {
            @for bar in bars {
                @let (from, to) = (percent(bar.value.min(0.0)), percent(bar.value.max(0.0)));
                div class={ "bar-row " (bar.class) } {
                    b { (named(&bar.name)) }
                    div class="track" {
                        @if bar.value.is_finite() {
                            div class="fill" style=(format!("left:{from:.2}%;width:{:.2}%", to - from)) {}
                        }
                        @if let Some([a, b]) = bar.interval {
                            div class="whisker" style=(format!("left:{:.2}%;width:{:.2}%", percent(a), percent(b) - percent(a))) {}
                        }
                    }
                    div class="value" {
                        (format.value(bar.value))
                        @if let Some(ends) = bar.interval { " " small { (format.interval(ends)) } }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stay_inside_and_begin_at_zero() {
        let bar = |value, interval| Bar { name: "a <b>".into(), class: "", value, interval };
        let share = bars(NumberFormat::Share, &[bar(0.25, Some([0.2, 0.3]))]).into_string();
        assert!(share.contains("left:0.00%;width:25.00%") && share.contains("left:20.00%;width:10.00%"), "{share}");
        assert!(share.contains("a &lt;b&gt;") && share.contains("20.0 to 30.0"));
        let plain = bars(NumberFormat::Plain, &[bar(-1.0, None), bar(3.0, None), bar(f64::NAN, None)]).into_string();
        assert!(plain.contains("left:0.00%;width:25.00%") && plain.contains("left:25.00%;width:75.00%"), "{plain}");
        assert!(!plain.contains("NaN"));
    }
}
