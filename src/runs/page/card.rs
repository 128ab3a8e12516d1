//! Renders the report card of a reward model as a section of the page.

use super::escape;
use super::plot::{figure, plot, shares, whisker};
use crate::methods::reward::measures::{CalibrationBin, MarginHistogram};
use crate::methods::reward::{ReportCard, ReportCardLimits};
use std::fmt::Write;

/// Returns the section `Report card` as HTML.
pub fn section(card: &ReportCard) -> String {
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let [low, high] = card.accuracy.interval;
    let problems = card.problems(&ReportCardLimits::default());
    let verdict = if problems.is_empty() {
        r#"<p class="well">Within the limits that reinforcement learning asks of a reward model.</p>"#.to_string()
    } else {
        let lines: String = problems.iter().map(|p| format!("<li>{}</li>", escape(p))).collect();
        format!(
            r#"<div class="card finding grave"><h3>Not accepted for reinforcement learning</h3><ul>{lines}</ul></div>"#
        )
    };
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
    let chips: String = chips.iter().map(|(k, v)| format!("<li><span>{k}</span> {}</li>", escape(v))).collect();
    format!(
        r#"<section><h2>Report card</h2>{verdict}<div class="card"><ul class="evidence">{chips}</ul></div><div class="columns">{}{}{}{}</div></section>"#,
        figure(
            "Calibration",
            "how often the model is right, by the probability it assigns; dashed: perfect calibration",
            &calibration(&card.calibration.bins)
        ),
        figure(
            "Margins",
            "pairs by chosen score minus rejected score; left of the line the model is wrong",
            &margins(&card.margins)
        ),
        figure(
            "Accuracy by length",
            "four groups of pairs, by mean tokens of their answers; bars: 95 % interval",
            &by_length(card)
        ),
        figure(
            "Against length",
            "accuracy of the model, of rules that see only lengths, and of the model where each rule is right",
            &rules(card)
        ),
    )
}

fn calibration(bins: &[CalibrationBin]) -> String {
    let (mut svg, mut labels) = (String::new(), String::new());
    shares(&mut svg, &mut labels);
    let x = |claimed: f64| 2000.0 * (claimed - 0.5);
    svg.push_str(r#"<path class="guide" d="M0 500L1000 0"/>"#);
    for tick in [0.5, 0.6, 0.7, 0.8, 0.9, 1.0] {
        let _ = write!(labels, r#"<span class="x" style="left:{:.1}%">{:.0}%</span>"#, x(tick) / 10.0, 100.0 * tick);
    }
    for bin in bins {
        let title = format!(
            "predicts {:.1} %, is right in {:.1} % of {} pairs",
            100.0 * bin.claimed,
            100.0 * bin.observed.share,
            bin.pairs
        );
        whisker(&mut svg, &title, x(bin.claimed), bin.observed.share, bin.observed.interval);
    }
    plot("share of pairs that the model gets right, by predicted probability", &svg, &labels)
}

fn margins(m: &MarginHistogram) -> String {
    let most = m.counts.iter().copied().max().unwrap_or(0).max(1);
    let n = m.counts.len().max(1) as f64;
    let (mut svg, mut labels) = (String::new(), String::new());
    for (i, count) in m.counts.iter().enumerate().filter(|(_, c)| **c > 0) {
        let (x, w, h) = (1000.0 * i as f64 / n, 1000.0 / n, 960.0 * *count as f64 / most as f64);
        let from = m.from + m.width * i as f64;
        let _ = write!(
            svg,
            r#"<rect class="bar" x="{:.2}" y="{:.1}" width="{:.2}" height="{h:.1}"><title>{from:.2} to {:.2}: {count}</title></rect>"#,
            x + w * 0.06,
            1000.0 - h,
            w * 0.88,
            from + m.width,
        );
    }
    let place = |value: f64| 1000.0 * (value - m.from) / (m.width * n);
    let _ = write!(svg, r#"<path class="limit" d="M{:.1} 0V1000"/>"#, place(0.0));
    let _ = write!(labels, r#"<span class="y" style="top:4%">{most}</span><span class="y" style="top:100%">0</span>"#);
    let end = m.from + m.width * n;
    for value in [m.from, end].into_iter().filter(|v| *v != 0.0).chain([0.0]) {
        // A label close to that of zero would cover it.
        if value == 0.0 || (place(value) - place(0.0)).abs() > 80.0 {
            let _ = write!(labels, r#"<span class="x" style="left:{:.1}%">{value:.1}</span>"#, place(value) / 10.0);
        }
    }
    plot("pairs by margin", &svg, &labels)
}

fn by_length(card: &ReportCard) -> String {
    let (mut svg, mut labels) = (String::new(), String::new());
    shares(&mut svg, &mut labels);
    svg.push_str(r#"<path class="guide" d="M0 500H1000"/>"#);
    let n = card.by_length.len().max(1) as f64;
    for (i, group) in card.by_length.iter().enumerate() {
        let x = 1000.0 * (i as f64 + 0.5) / n;
        let title = format!(
            "{:.0} to {:.0} tokens: {:.1} % of {} pairs",
            group.from,
            group.to,
            100.0 * group.accuracy.share,
            group.pairs
        );
        whisker(&mut svg, &title, x, group.accuracy.share, group.accuracy.interval);
        let _ =
            write!(labels, r#"<span class="x" style="left:{:.1}%">{:.0}–{:.0}</span>"#, x / 10.0, group.from, group.to);
    }
    plot("accuracy by length", &svg, &labels)
}

/// Plots the accuracy of the model, of rules that see only lengths, and of the model on the pairs that each rule gets
/// right.
fn rules(card: &ReportCard) -> String {
    let (mut svg, mut labels) = (String::new(), String::new());
    shares(&mut svg, &mut labels);
    svg.push_str(r#"<path class="guide" d="M0 500H1000"/>"#);
    let bias = &card.length;
    let points = [
        ("model", Some((card.accuracy.share, card.accuracy.interval))),
        ("longer wins", Some((bias.longer_wins, [bias.longer_wins; 2]))),
        ("shorter wins", Some((bias.shorter_wins, [bias.shorter_wins; 2]))),
        ("chosen longer", bias.where_longer.map(|r| (r.share, r.interval))),
        ("rejected longer", bias.where_shorter.map(|r| (r.share, r.interval))),
    ];
    for (i, (name, point)) in points.iter().enumerate() {
        let x = 200.0 * (i as f64 + 0.5);
        if let Some((share, interval)) = point {
            whisker(&mut svg, &format!("{name}: {:.1} %", 100.0 * share), x, *share, *interval);
        }
        let _ = write!(labels, r#"<span class="x" style="left:{:.1}%">{name}</span>"#, x / 10.0);
    }
    plot("accuracy of the model and of length alone", &svg, &labels)
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
        let page = section(&card);
        assert_eq!(page.matches("dot train").count(), card.calibration.bins.len() + 4 + 5, "{page}");
        assert_eq!(page.matches("class=\"bar\"").count(), card.margins.counts.iter().filter(|c| **c > 0).count());
        assert!(page.contains("Within the limits") && !page.contains("NaN"));
        evidence.pairs.truncate(3);
        assert!(section(&ReportCard::of(&evidence).unwrap()).contains("Not accepted for reinforcement learning"));
    }
}
