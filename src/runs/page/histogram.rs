//! Draws a histogram of lengths as inline SVG.

use super::escape::plain;
use super::plot::plot;
use super::ticks::x_ticks;
use maud::{Markup, html};

/// Draws a histogram of counts in bins of equal width, with a line at `limit`.
pub fn histogram(width: usize, counts: &[u64], limit: usize, limit_name: &str) -> Markup {
    let Some(most) = counts.iter().copied().max().filter(|m| *m > 0) else { return Markup::default() };
    let end = counts.len() * width;
    // The limit is shown only if it is near: far to the right it would compress the bars.
    let near = limit <= end * 3;
    let range = if near { end.max(limit + width) } else { end } as f64;
    let limit_x = 1000.0 * limit as f64 / range;
    let svg = html! {
        @for (i, n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            @let (x, w) = (1000.0 * (i * width) as f64 / range, 1000.0 * width as f64 / range);
            @let h = 960.0 * *n as f64 / most as f64;
            rect
                class="bar"
                x=(format!("{:.2}", x + w * 0.06))
                y=(format!("{:.1}", 1000.0 - h))
                width=(format!("{:.2}", w * 0.88))
                height=(format!("{h:.1}")) {
                title { (i * width) " to " ((i + 1) * width - 1) " tokens: " (n) }
            }
        }
        @if near {
            path class="limit" d=(format!("M{limit_x:.1} 0V1000")) {}
        }
    };
    let labels = html! {
        span class="y" style="top:4%" { (most) }
        span class="y" style="top:100%" { "0" }
        @for tick in x_ticks(0.0, range) {
            span class="x" style=(format!("left:{:.2}%", 100.0 * tick / range)) { (tick) }
        }
        @if near {
            @let side = if limit_x > 600.0 { "left" } else { "right" };
            span class={ "limit " (side) } style=(format!("left:{:.2}%", limit_x / 10.0)) { (plain(limit_name)) }
        }
    };
    plot("lengths in tokens", svg, labels)
}
