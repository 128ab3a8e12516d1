//! Finds problems of the labels. Each finding is a sentence with its number and a next step.

use super::contents::{LabelFinding, LabelReport};
use crate::label::record::annotator::AnnotatorKind;

/// Krippendorff (2004, "Content analysis", section 11.4) draws no conclusions from an alpha below the first value, and
/// relies on data from the second value on.
const TENTATIVE: f64 = 0.667;

const RELIABLE: f64 = 0.8;

/// Accuracy above which a rule that sees only lengths is reported.
const MAX_LENGTH_ACCURACY: f64 = 0.6;

/// Rate of order-dependent verdicts above which a machine is reported.
const MAX_FLIP_RATE: f64 = 0.25;

/// Number of pairs with two judgements below which agreement is too uncertain.
const MIN_SHARED_PAIRS: usize = 30;

pub(super) fn find(report: &LabelReport) -> Vec<LabelFinding> {
    let mut found = Vec::new();
    let mut add = |grave: bool, what: String, next: &str| found.push(LabelFinding { grave, what, next: next.into() });
    let percent = |x: f64| format!("{:.0} %", 100.0 * x);
    match report.agreement.alpha_nominal {
        None if report.counts.votes > 0 => add(
            false,
            "Agreement cannot be measured: no pair was judged by two annotators, or all judgements are the same."
                .into(),
            "Show some pairs to two people or more: --overlap 2.",
        ),
        Some(alpha) if alpha.value < TENTATIVE => add(
            alpha.value < 0.2,
            format!(
                "Krippendorff's alpha is {:.2}; below {TENTATIVE} no conclusion should be drawn from the labels.",
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
    if report.counts.shared > 0 && report.counts.shared < MIN_SHARED_PAIRS {
        add(
            false,
            format!("Only {} pairs were judged by two or more: intervals of agreement are wide.", report.counts.shared),
            "Show more pairs to two people or more: --overlap 2.",
        );
    }
    if let Some(length) = report.length {
        let (rule, rate) = if length.longer.share >= length.shorter.share {
            ("longer", length.longer)
        } else {
            ("shorter", length.shorter)
        };
        if rate.interval[0] > MAX_LENGTH_ACCURACY {
            add(
                true,
                format!(
                    "\"The {rule} answer wins\" is right for {} of {} pairs: a reward model could learn this rule instead of quality.",
                    percent(rate.share),
                    length.pairs
                ),
                "Choose pairs of similar length: ft label pairs --strategy informative.",
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
                "Sides are assigned at random, so this adds noise to the verdicts but does not reverse them. Check the fastest votes.",
            );
        }
        if let Some(same) = habits.consistent.filter(|r| r.interval[1] < 0.8) {
            add(
                false,
                format!(
                    "{} gives the same judgement again in only {} of hidden repeats.",
                    habits.name,
                    percent(same.share)
                ),
                "Two people cannot agree more often than each agrees with themselves: discuss the guidelines.",
            );
        }
        if let Some(order) = habits.order.filter(|o| o.flipped.share > MAX_FLIP_RATE) {
            add(
                order.flipped.share > 0.5,
                format!(
                    "{} changes its verdict with the order of the answers in {} of pairs.",
                    habits.name,
                    percent(order.flipped.share)
                ),
                "These pairs count as ties. Try another judge, another rubric, or a reward model.",
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
        if habits.kind != AnnotatorKind::Person
            && let Some(r) = habits.length_correlation.filter(|r| r.abs() > 0.5)
        {
            let rule = if r > 0.0 { "longer" } else { "shorter" };
            add(
                false,
                format!("{}'s choices correlate with length (r = {r:+.2}): it prefers the {rule} answer.", habits.name),
                "Compare it with people on pairs of similar length before you train on its votes.",
            );
        }
    }
    if report.ranking.groups > 1 {
        add(
            false,
            format!(
                "The sources fall into {} groups that are not connected by wins in both directions: their distance comes from the prior alone.",
                report.ranking.groups
            ),
            "Compare answers across the groups.",
        );
    }
    found.sort_by_key(|f| !f.grave);
    found
}
