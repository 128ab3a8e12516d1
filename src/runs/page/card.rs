//! Renders the report card of a reward model as a section of the page.

use super::escape::plain;
use super::plot::{ShareAxis, figure, plot, share_axis, whisker};
use crate::methods::reward::measures::{CalibrationBin, MarginHistogram};
use crate::methods::reward::{ReportCard, ReportCardLimits};
use maud::{Markup, PreEscaped, html};

/// Returns the section `Report card` as HTML.
pub fn section(card: &ReportCard) -> Markup {
    let problems = card.problems(&ReportCardLimits::default());
    html! {
        section {
            h2 { "Report card" }
            @if problems.is_empty() {
                p class="well" { "Within the limits that reinforcement learning asks of a reward model." }
            } @else {
                div class="card finding grave" {
                    h3 { "Not accepted for reinforcement learning" }
                    ul { @for p in &problems { li { (plain(p)) } } }
                }
            }
            div class="card" {
                ul class="evidence" { @for (k, v) in &chips(card) { li { span { (k) } " " (plain(v)) } } }
            }
            div class="columns" {
                (titled(
                    "Calibration",
                    "how often the model is right, by the probability it assigns; dashed: perfect calibration",
                    calibration(&card.calibration.bins),
                ))
                (titled(
                    "Margins",
                    "pairs by chosen score minus rejected score; left of the line the model is wrong",
                    margins(&card.margins),
                ))
                (titled(
                    "Accuracy by length",
                    "four groups of pairs, by mean tokens of their answers; bars: 95 % interval",
                    by_length(card),
                ))
                (titled(
                    "Against length",
                    "accuracy of the model, of rules that see only lengths, and of the model where each rule is right",
                    rules(card),
                ))
            }
        }
    }
}

fn titled(title: &str, note: &str, plot: Markup) -> Markup {
    PreEscaped(figure(title, note, &plot.into_string()))
}

/// Returns the numbers of the card: (name, value).
fn chips(card: &ReportCard) -> Vec<(&'static str, String)> {
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let [low, high] = card.accuracy.interval;
    let mut chips = vec![
        ("accuracy", format!("{} ({} to {})", percent(card.accuracy.share), percent(low), percent(high))),
        ("pairs", card.pairs.to_string()),
        ("longer wins", percent(card.length.longer_wins)),
        ("shorter wins", percent(card.length.shorter_wins)),
        ("scores", format!("{:.2} ± {:.2}", card.rewards.mean, card.rewards.std)),
        ("calibration error", format!("{:.3}", card.calibration.ece)),
    ];
    if let Some(r) = card.length.correlation {
        chips.push(("correlation with length", format!("{r:+.2}")));
    }
    if let Some(w) = card.without_stop {
        chips.push(("without the stop token", format!("{}, scores {:+.2}", percent(w.accuracy.share), w.mean_change)));
    }
    if let Some(s) = card.swap {
        chips.push(("answers packed in swapped order", format!("scores differ by at most {:.1e}", s.max_difference)));
    }
    chips
}

/// Draws a label below the plot at the horizontal position `x` in thousandths.
fn x_label(x: f64, text: &str) -> Markup {
    html! { span class="x" style=(format!("left:{:.1}%", x / 10.0)) { (text) } }
}

fn calibration(bins: &[CalibrationBin]) -> Markup {
    let ShareAxis { grid, labels } = share_axis();
    let x = |claimed: f64| 2000.0 * (claimed - 0.5);
    let title = |bin: &CalibrationBin| {
        format!(
            "predicts {:.1} %, is right in {:.1} % of {} pairs",
            100.0 * bin.claimed,
            100.0 * bin.observed.share,
            bin.pairs
        )
    };
    let svg = html! {
        (grid)
        path class="guide" d="M0 500L1000 0" {}
        @for bin in bins { (whisker(&title(bin), x(bin.claimed), bin.observed.share, bin.observed.interval)) }
    };
    let labels = html! {
        (labels)
        @for tick in [0.5, 0.6, 0.7, 0.8, 0.9, 1.0] { (x_label(x(tick), &format!("{:.0}%", 100.0 * tick))) }
    };
    plot("share of pairs that the model gets right, by predicted probability", svg, labels)
}

fn margins(m: &MarginHistogram) -> Markup {
    let most = m.counts.iter().copied().max().unwrap_or(0).max(1);
    let n = m.counts.len().max(1) as f64;
    let place = |value: f64| 1000.0 * (value - m.from) / (m.width * n);
    let svg = html! {
        @for (i, count) in m.counts.iter().enumerate().filter(|(_, c)| **c > 0) {
            @let (x, w, h) = (1000.0 * i as f64 / n, 1000.0 / n, 960.0 * *count as f64 / most as f64);
            @let from = m.from + m.width * i as f64;
            rect
                class="bar"
                x=(format!("{:.2}", x + w * 0.06))
                y=(format!("{:.1}", 1000.0 - h))
                width=(format!("{:.2}", w * 0.88))
                height=(format!("{h:.1}")) {
                title { (format!("{from:.2} to {:.2}: {count}", from + m.width)) }
            }
        }
        path class="limit" d=(format!("M{:.1} 0V1000", place(0.0))) {}
    };
    let end = m.from + m.width * n;
    // A label close to that of zero would cover it.
    let clear = |value: &f64| *value != 0.0 && (place(*value) - place(0.0)).abs() > 80.0;
    let labels = html! {
        span class="y" style="top:4%" { (most) }
        span class="y" style="top:100%" { "0" }
        @for value in [m.from, end].into_iter().filter(clear).chain([0.0]) {
            (x_label(place(value), &format!("{value:.1}")))
        }
    };
    plot("pairs by margin", svg, labels)
}

fn by_length(card: &ReportCard) -> Markup {
    let ShareAxis { grid, labels } = share_axis();
    let n = card.by_length.len().max(1) as f64;
    let x = |i: usize| 1000.0 * (i as f64 + 0.5) / n;
    let svg = html! {
        (grid)
        path class="guide" d="M0 500H1000" {}
        @for (i, group) in card.by_length.iter().enumerate() {
            @let share = group.accuracy.share;
            @let (from, to, pairs) = (group.from, group.to, group.pairs);
            @let title = format!("{from:.0} to {to:.0} tokens: {:.1} % of {pairs} pairs", 100.0 * share);
            (whisker(&title, x(i), share, group.accuracy.interval))
        }
    };
    let labels = html! {
        (labels)
        @for (i, group) in card.by_length.iter().enumerate() {
            (x_label(x(i), &format!("{:.0}–{:.0}", group.from, group.to)))
        }
    };
    plot("accuracy by length", svg, labels)
}

/// Plots the accuracy of the model, of rules that see only lengths, and of the model on the pairs that each rule gets
/// right.
fn rules(card: &ReportCard) -> Markup {
    let ShareAxis { grid, labels } = share_axis();
    let bias = &card.length;
    let points = [
        ("model", Some((card.accuracy.share, card.accuracy.interval))),
        ("longer wins", Some((bias.longer_wins, [bias.longer_wins; 2]))),
        ("shorter wins", Some((bias.shorter_wins, [bias.shorter_wins; 2]))),
        ("chosen longer", bias.where_longer.map(|r| (r.share, r.interval))),
        ("rejected longer", bias.where_shorter.map(|r| (r.share, r.interval))),
    ];
    let x = |i: usize| 200.0 * (i as f64 + 0.5);
    let svg = html! {
        (grid)
        path class="guide" d="M0 500H1000" {}
        @for (i, (name, point)) in points.iter().enumerate() {
            @if let Some((share, interval)) = point {
                (whisker(&format!("{name}: {:.1} %", 100.0 * share), x(i), *share, *interval))
            }
        }
    };
    let labels = html! {
        (labels)
        @for (i, (name, _)) in points.iter().enumerate() { (x_label(x(i), name)) }
    };
    plot("accuracy of the model and of length alone", svg, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::reward::{HeldOutScores, ScoredPair};

    #[test]
    fn every_plot_has_its_marks_and_bad_cards_say_so() {
        let pair = |i: usize| ScoredPair {
            chosen: (0.2 + (i % 50) as f64 / 50.0) * if i.is_multiple_of(3) { -1.0 } else { 1.0 },
            rejected: 0.0,
            lengths: [10 + i % 7, 12],
        };
        let mut evidence = HeldOutScores { pairs: (1..200).map(pair).collect(), ..Default::default() };
        let card = ReportCard::of(&evidence).unwrap();
        let page = section(&card).into_string();
        assert_eq!(page.matches("dot train").count(), card.calibration.bins.len() + 4 + 5, "{page}");
        assert_eq!(page.matches("class=\"bar\"").count(), card.margins.counts.iter().filter(|c| **c > 0).count());
        assert!(page.contains("Within the limits") && !page.contains("NaN"));
        evidence.pairs.truncate(3);
        assert!(
            section(&ReportCard::of(&evidence).unwrap())
                .into_string()
                .contains("Not accepted for reinforcement learning")
        );
    }
}
