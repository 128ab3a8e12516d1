//! Measures biases of annotators: towards a side, towards longer answers, and of machines towards the first answer.
//!
//! Pure functions over votes and verdicts. Lengths are in characters, as token counts of different models are not
//! comparable.

use crate::label::project::snapshot::Project;
use crate::label::project::votes::ResolvedVote;
use crate::label::record::annotator::AnnotatorKind;
use crate::label::record::answer::CandidatePair;
use crate::label::record::vote::VoteChoice;
use crate::label::results::verdict::PairVerdict;
use crate::label::statistics::summary::upper_median;
use crate::stats::moments::correlation;
use crate::stats::proportion::Proportion;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Counts and biases of one annotator.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JudgeHabits {
    /// Name of the annotator.
    pub name: String,
    /// Kind of the annotator.
    pub kind: AnnotatorKind,
    /// Votes that count, including hidden repeats and skips.
    pub votes: usize,
    /// Number of skips.
    pub skips: usize,
    /// Number of ties.
    pub ties: usize,
    /// Number of votes that both answers are bad.
    pub both_bad: usize,
    /// Number of flagged votes.
    pub flagged: usize,
    /// Median seconds per vote; `None` if no vote has a time.
    pub seconds: Option<f64>,
    /// Among choices of one answer: rate of the left one (shown first); 0.5 without bias.
    pub left: Option<Proportion>,
    /// Among choices between answers of different length: rate of the longer one.
    pub longer: Option<Proportion>,
    /// Correlation of the choice (a: 1, b: -1, otherwise 0) with the difference of the lengths (a minus b).
    pub length_correlation: Option<f64>,
    /// Among hidden repeats: rate of equal judgements.
    pub consistent: Option<Proportion>,
    /// Order bias, for a machine that was asked in both orders.
    pub order: Option<OrderBias>,
}

/// Dependence of a machine's verdicts on the order of the answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OrderBias {
    /// Rate of pairs whose verdict changed with the order.
    pub flipped: Proportion,
    /// Among choices of one answer, in both orders: rate of the answer that was shown first.
    pub first: Option<Proportion>,
}

/// Accuracy of two rules that see nothing but the lengths of the answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LengthBaseline {
    /// Number of pairs whose verdict is `a` or `b`.
    pub pairs: usize,
    /// Accuracy of "the longer answer wins"; equal lengths are wrong for both rules.
    pub longer: Proportion,
    /// Accuracy of "the shorter answer wins".
    pub shorter: Proportion,
}

/// Returns the lengths of the answers in characters, by candidate id.
pub fn lengths(project: &Project) -> HashMap<i64, f64> {
    project.candidates.iter().map(|c| (c.id, c.text.chars().count() as f64)).collect()
}

/// Returns the habits of each annotator with a vote, people first.
pub fn habits(project: &Project, votes: &[ResolvedVote]) -> Vec<JudgeHabits> {
    let lengths = lengths(project);
    let mut judges: BTreeMap<(AnnotatorKind, &str), Vec<&ResolvedVote>> = BTreeMap::new();
    for resolved in votes {
        judges.entry((resolved.annotator.kind, &resolved.annotator.name)).or_default().push(resolved);
    }
    judges.into_iter().map(|((kind, name), votes)| judge_habits(name, kind, &votes, &lengths)).collect()
}

fn judge_habits(name: &str, kind: AnnotatorKind, votes: &[&ResolvedVote], lengths: &HashMap<i64, f64>) -> JudgeHabits {
    let count = |choice: VoteChoice| votes.iter().filter(|b| b.choice == choice).count();
    let decided = || votes.iter().filter(|b| matches!(b.choice, VoteChoice::A | VoteChoice::B));
    let left = decided().filter(|b| (b.vote.choice == VoteChoice::A) != b.vote.swapped).count();
    let longer = |b: &ResolvedVote| Some(lengths.get(&b.pair.a)? - lengths.get(&b.pair.b)?);
    let unlike: Vec<bool> = decided()
        .filter(|b| !b.repeat)
        .filter_map(|b| longer(b).filter(|d| *d != 0.0).map(|d| (d > 0.0) == (b.choice == VoteChoice::A)))
        .collect();
    let sign = |b: &ResolvedVote| b.preference().map(|p| if p == 0.0 { 0.0 } else { p.signum() });
    let judged = votes.iter().filter(|b| !b.repeat).filter_map(|b| Some((sign(b)?, longer(b)?)));
    let (choices, differences): (Vec<f64>, Vec<f64>) = judged.unzip();
    let order = order_bias(votes);
    JudgeHabits {
        name: name.into(),
        kind,
        votes: votes.len(),
        skips: count(VoteChoice::Skip),
        ties: count(VoteChoice::Tie),
        both_bad: count(VoteChoice::BothBad),
        flagged: votes.iter().filter(|b| b.vote.flagged).count(),
        seconds: upper_median(votes.iter().filter_map(|b| b.vote.seconds).collect()),
        // A side bias is undefined for reward models, which score each answer alone, and for machines asked in both
        // orders.
        left: if kind == AnnotatorKind::Reward || order.is_some() {
            None
        } else {
            Proportion::of(left, decided().count())
        },
        longer: Proportion::of(unlike.iter().filter(|l| **l).count(), unlike.len()),
        length_correlation: correlation(&choices, &differences),
        consistent: repeat_consistency(votes),
        order,
    }
}

/// Returns the rate of equal judgements among pairs that one annotator judged twice.
fn repeat_consistency(votes: &[&ResolvedVote]) -> Option<Proportion> {
    let said = |repeat: bool| -> HashMap<i64, VoteChoice> {
        let kept = votes.iter().filter(|b| b.repeat == repeat && b.choice != VoteChoice::Skip);
        kept.map(|b| (b.pair.id, b.choice)).collect()
    };
    let (first, again) = (said(false), said(true));
    let twice: Vec<bool> = again.iter().filter_map(|(pair, c)| first.get(pair).map(|f| f == c)).collect();
    Proportion::of(twice.iter().filter(|same| **same).count(), twice.len())
}

/// Computes the order bias from the `detail` of a machine's votes: `ab` and `ba` hold its choice in either order, both
/// in terms of the pair's own `a` and `b`.
fn order_bias(votes: &[&ResolvedVote]) -> Option<OrderBias> {
    let read = |detail: &Value, key: &str| VoteChoice::named(detail.get(key)?.get("choice")?.as_str()?);
    let both: Vec<(VoteChoice, VoteChoice)> =
        votes.iter().filter_map(|b| Some((read(&b.vote.detail, "ab")?, read(&b.vote.detail, "ba")?))).collect();
    let flipped = Proportion::of(both.iter().filter(|(ab, ba)| ab != ba).count(), both.len())?;
    let first =
        both.iter().flat_map(|(ab, ba)| [*ab, ba.flipped()]).filter(|c| matches!(c, VoteChoice::A | VoteChoice::B));
    let first: Vec<VoteChoice> = first.collect();
    Some(OrderBias {
        flipped,
        first: Proportion::of(first.iter().filter(|c| **c == VoteChoice::A).count(), first.len()),
    })
}

/// Returns how well length alone predicts the verdicts; `None` if no verdict is `a` or `b`.
pub fn length_baseline(project: &Project, verdicts: &BTreeMap<i64, PairVerdict>) -> Option<LengthBaseline> {
    let lengths = lengths(project);
    let by = |pair: &CandidatePair| {
        let (a, b) = (lengths.get(&pair.a)?, lengths.get(&pair.b)?);
        match verdicts.get(&pair.id)?.choice {
            VoteChoice::A => Some(a - b),
            VoteChoice::B => Some(b - a),
            _ => None,
        }
    };
    let by: Vec<f64> = project.pairs.iter().filter_map(by).collect();
    let rate = |right: fn(&&f64) -> bool| Proportion::of(by.iter().filter(right).count(), by.len());
    Some(LengthBaseline { pairs: by.len(), longer: rate(|d| **d > 0.0)?, shorter: rate(|d| **d < 0.0)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::project::fixture::{project, vote};
    use crate::label::project::votes::JudgeFilter;
    use crate::label::record::answer::CandidatePair;
    use crate::label::results::verdict::{Aggregation, aggregate};
    use serde_json::json;

    #[test]
    fn sides_lengths_and_repeats_are_counted_apart() {
        // `b` is the longer answer of pairs 0 to 9, they are equal in 10, `a` is in the rest.
        let mut p = project(20, &[("ann", AnnotatorKind::Person)]);
        for i in 0..20 {
            // Always the left one; the sides alternate.
            let swapped = i % 2 == 1;
            let v = vote(&mut p, i, 0, if swapped { VoteChoice::B } else { VoteChoice::A });
            v.swapped = swapped;
            v.seconds = Some(i as f64);
        }
        p.pairs.push(CandidatePair { id: 100, repeat_of: Some(0), ..p.pairs[0].clone() });
        p.pairs.push(CandidatePair {
            id: 101,
            repeat_of: Some(1),
            a: p.pairs[1].b,
            b: p.pairs[1].a,
            ..p.pairs[1].clone()
        });
        vote(&mut p, 100, 0, VoteChoice::B);
        vote(&mut p, 101, 0, VoteChoice::A);
        let found = habits(&p, &p.resolved_votes(&JudgeFilter::All)).remove(0);
        assert_eq!((found.votes, found.seconds, found.skips), (22, Some(10.0), 0));
        // The votes on the repeats, not swapped: b (right) and a (left).
        assert_eq!(found.left.unwrap().share, 21.0 / 22.0);
        assert_eq!(found.longer.unwrap().share, 9.0 / 19.0);
        assert_eq!(found.consistent.map(|r| r.share), Some(0.5));
        assert_eq!(found.order, None);
        let verdicts = aggregate(&p.resolved_votes(&JudgeFilter::All), Aggregation::Majority);
        let baseline = length_baseline(&p, &verdicts).unwrap();
        assert_eq!((baseline.pairs, baseline.longer.share, baseline.shorter.share), (20, 9.0 / 20.0, 10.0 / 20.0));
    }

    #[test]
    fn a_judge_that_takes_the_first_is_seen_through() {
        let mut p = project(4, &[("judge", AnnotatorKind::Judge)]);
        for (i, (ab, ba)) in [("a", "b"), ("a", "b"), ("a", "a"), ("tie", "tie")].into_iter().enumerate() {
            let choice = if ab == ba { VoteChoice::named(ab).unwrap() } else { VoteChoice::Tie };
            vote(&mut p, i as i64, 0, choice).detail = json!({ "ab": { "choice": ab }, "ba": { "choice": ba } });
        }
        let order = habits(&p, &p.resolved_votes(&JudgeFilter::All))[0].order.unwrap();
        assert_eq!((order.flipped.share, order.first.unwrap().share), (0.5, 5.0 / 6.0));
    }
}
