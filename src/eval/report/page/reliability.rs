//! Draws reliability diagrams of tasks with choices.

use crate::eval::report::calibration::ChoiceCalibration;
use crate::runs::page::escape::named;
use crate::runs::page::plot::{ShareAxis, plot, share_axis, whisker};
use maud::{Markup, html};

/// Renders how often a model was right, by its confidence.
pub fn diagram(name: &str, found: &ChoiceCalibration) -> Markup {
    let ShareAxis { grid, labels } = share_axis();
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let svg = html! {
        (grid)
        path class="guide" d="M0 1000L1000 0" {}
        @for bin in &found.bins {
            @let title = format!("confidence {}: {} of {} items are right", percent(bin.confidence), percent(bin.right.share), bin.items);
            (whisker(&title, 1000.0 * bin.confidence, bin.right.share, bin.right.interval))
        }
    };
    let labels = html! {
        (labels)
        @for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
            span class="x" style=(format!("left:{:.0}%", 100.0 * tick)) { (format!("{:.0}%", 100.0 * tick)) }
        }
    };
    let lean = match found.overconfidence {
        x if x >= 0.0005 => format!("overconfident by {} points", bare(x)),
        x if x <= -0.0005 => format!("underconfident by {} points", bare(-x)),
        _ => "as confident as right on average".to_string(),
    };
    html! {
        figure class="chart reliability" {
            figcaption {
                b { "Reliability of " (named(name)) }
                span class="note" {
                    "share of right answers by the probability of the choice; dashed: as often right as confident. Calibration error "
                    (percent(found.error)) ", " (lean)
                }
            }
            (plot("share of right answers by confidence", svg, labels))
        }
    }
}

fn bare(x: f64) -> String {
    format!("{:.1}", 100.0 * x)
}
