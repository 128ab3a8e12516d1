//! What stands against trusting the labels, each in a sentence with its number and what to do.

use super::Report;
use crate::label::record::Kind;
use serde::Serialize;

/// Something to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Data of this kind should not be trained on as it is.
    pub grave: bool,
    pub what: String,
    pub next: String,
}

/// Below the first, Krippendorff (2004, "Content analysis", section 11.4) draws no conclusion; from the second on he does.
const TENTATIVE: f64 = 0.667;
const RELIABLE: f64 = 0.8;
/// A rule that sees lengths only is right more often than this.
const LENGTH: f64 = 0.6;
/// A machine whose verdict changes with the order more often than this.
const FLIPS: f64 = 0.25;
/// Pairs judged by two below which agreement is not known.
const FEW: usize = 30;

pub(super) fn find(report: &Report) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |grave: bool, what: String, next: &str| found.push(Finding { grave, what, next: next.into() });
    let percent = |x: f64| format!("{:.0} %", 100.0 * x);
    match report.agreement.alpha_nominal {
        None if report.counts.votes > 0 => add(
            false,
            "No pair with two different judgements: nobody knows how far people agree.".into(),
            "Show some pairs to two people or more: --overlap 2.",
        ),
        Some(alpha) if alpha.value < TENTATIVE => add(
            alpha.value < 0.2,
            format!(
                "Krippendorff's alpha is {:.2}; below {TENTATIVE} no conclusion should rest on the labels.",
                alpha.value
            ),
            "Look at pairs that people judged differently, and make the guidelines say what decides them.",
        ),
        Some(alpha) if alpha.value < RELIABLE => add(
            false,
            format!("Krippendorff's alpha is {:.2}; from {RELIABLE} on labels count as reliable.", alpha.value),
            "Adjudicate the pairs that people judged differently.",
        ),
        _ => {}
    }
    if report.counts.shared > 0 && report.counts.shared < FEW {
        add(
            false,
            format!("Only {} pairs were judged by two or more: intervals of agreement are wide.", report.counts.shared),
            "Let more pairs overlap.",
        );
    }
    if let Some(length) = report.length {
        let (rule, rate) = if length.longer.share >= length.shorter.share {
            ("longer", length.longer)
        } else {
            ("shorter", length.shorter)
        };
        if rate.interval[0] > LENGTH {
            add(
                true,
                format!(
                    "\"The {rule} answer wins\" is right for {} of {} pairs: a reward model can learn that and nothing else.",
                    percent(rate.share),
                    length.pairs
                ),
                "Choose pairs of like length: ft label pairs --strategy informative.",
            );
        }
    }
    for judge in &report.judges {
        let habits = &judge.habits;
        if let Some(left) = habits.left.filter(|r| r.interval[0] > 0.5 || r.interval[1] < 0.5) {
            let side = if left.share > 0.5 { "left" } else { "right" };
            add(
                !(0.25..=0.75).contains(&left.share),
                format!(
                    "{} chooses the {side} answer in {} of choices.",
                    habits.name,
                    percent(left.share.max(1.0 - left.share))
                ),
                "Sides are drawn, so that this blurs verdicts and does not turn them; look at the fastest votes.",
            );
        }
        if let Some(same) = habits.consistent.filter(|r| r.interval[1] < 0.8) {
            add(
                false,
                format!("{} says the same again in only {} of hidden repeats.", habits.name, percent(same.share)),
                "No two people can agree more than each with themselves: talk the guidelines through.",
            );
        }
        if let Some(order) = habits.order.filter(|o| o.flipped.share > FLIPS) {
            add(
                order.flipped.share > 0.5,
                format!(
                    "{} changes its verdict with the order of the answers in {} of pairs.",
                    habits.name,
                    percent(order.flipped.share)
                ),
                "Those are ties now. Another judge, another rubric, or a reward model may hold.",
            );
        }
        if let Some(with) = judge.with_verdicts.filter(|w| w.kappa.is_some_and(|k| k.value < 0.4)) {
            let kappa = with.kappa.map_or(0.0, |k| k.value);
            add(
                kappa < 0.1,
                format!(
                    "{} agrees with {} no better than kappa {kappa:.2}, on {} pairs.",
                    habits.name,
                    report.judged_by.join(", "),
                    with.pairs
                ),
                "Leave its votes out of the export, with --votes.",
            );
        }
        if habits.kind != Kind::Person
            && let Some(r) = habits.length_correlation.filter(|r| r.abs() > 0.5)
        {
            let rule = if r > 0.0 { "longer" } else { "shorter" };
            add(
                false,
                format!("{}'s choices go with length (r = {r:+.2}): it prefers the {rule} answer.", habits.name),
                "Compare it with people on pairs of like length before its votes are trained on.",
            );
        }
    }
    if report.ranking.groups > 1 {
        add(
            false,
            format!(
                "The sources fall into {} groups without wins both ways between them: their distance rests on the prior.",
                report.ranking.groups
            ),
            "Compare answers across the groups.",
        );
    }
    found.sort_by_key(|f| !f.grave);
    found
}
