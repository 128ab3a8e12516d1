//! Aggregates the votes of several annotators into one verdict per pair: by majority, or by Dawid and Skene's model,
//! which estimates the error rates of each annotator.
//!
//! Ties and "both bad" are verdicts like the others. A final decision of an admin (an adjudicated vote) replaces any
//! estimate.

use crate::label::project::votes::ResolvedVote;
use crate::label::record::vote::VoteChoice;
use crate::label::statistics::dawid_skene::{DawidSkene, UnitRatings, dawid_skene};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The possible verdicts. Arrays over verdicts use this order.
pub const VERDICTS: [VoteChoice; 4] = [VoteChoice::A, VoteChoice::B, VoteChoice::Tie, VoteChoice::BothBad];

/// How votes become a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// The choice with more votes than any other; a tie if there is none.
    Majority,
    /// The most probable true choice, given the estimated error rates of each annotator (Dawid and Skene 1979).
    DawidSkene,
}

/// The verdict on a pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairVerdict {
    /// Id of the pair.
    pub pair: i64,
    /// The verdict, in terms of the pair's own `a` and `b`.
    pub choice: VoteChoice,
    /// Number of votes that the verdict is based on, without skips.
    pub votes: usize,
    /// Probability of each of `VERDICTS`: shares of the votes, or Dawid and Skene's posterior.
    pub shares: [f64; 4],
    /// Mean strength in favour of the verdict: votes for the other answer are negative, ties are 0. `None` if no vote
    /// has a strength.
    pub strength: Option<f64>,
    /// Whether an admin's final decision gave the verdict.
    pub adjudicated: bool,
}

impl PairVerdict {
    /// Returns the probability of the verdict itself.
    pub fn confidence(&self) -> f64 {
        self.share(self.choice)
    }

    /// Returns the probability of a choice.
    pub fn share(&self, choice: VoteChoice) -> f64 {
        VERDICTS.iter().position(|c| *c == choice).map_or(0.0, |i| self.shares[i])
    }
}

/// Returns the verdicts of all pairs with a vote, by pair id. Hidden repeats are ignored: they would count their
/// annotator twice.
pub fn aggregate(votes: &[ResolvedVote], how: Aggregation) -> BTreeMap<i64, PairVerdict> {
    let mut pairs: BTreeMap<i64, Vec<&ResolvedVote>> = BTreeMap::new();
    for resolved in votes.iter().filter(|b| !b.repeat && b.choice != VoteChoice::Skip) {
        pairs.entry(resolved.pair.id).or_default().push(resolved);
    }
    let raters: BTreeSet<i64> = votes.iter().map(|b| b.annotator.id).collect();
    let rater = |b: &ResolvedVote| raters.iter().position(|id| *id == b.annotator.id).unwrap_or_default();
    let open = |all: &Vec<&ResolvedVote>| -> UnitRatings {
        all.iter().filter(|b| !b.vote.adjudicates()).map(|b| (rater(b), class_index(b.choice))).collect()
    };
    let units: Vec<UnitRatings> = pairs.values().map(open).collect();
    let shares: Vec<[f64; 4]> = match how {
        Aggregation::Majority => units.iter().map(vote_shares).collect(),
        Aggregation::DawidSkene => {
            symmetric_dawid_skene(&units, raters.len()).posterior.iter().map(|p| to_shares(p)).collect()
        }
    };
    let verdict = |((pair, all), mut shares): ((i64, Vec<&ResolvedVote>), [f64; 4])| {
        let last = all.iter().filter(|b| b.vote.adjudicates()).max_by_key(|b| b.vote.id);
        if let Some(word) = last {
            shares = [0.0; 4];
            shares[class_index(word.choice)] = 1.0;
        }
        let counted: Vec<&&ResolvedVote> = all.iter().filter(|b| last.is_none() || b.vote.adjudicates()).collect();
        let choice = leading_choice(&shares);
        let said = counted.iter().any(|b| b.vote.strength.is_some());
        let sign = if choice == VoteChoice::B { -1.0 } else { 1.0 };
        let mean = counted.iter().filter_map(|b| b.preference()).sum::<f64>() / counted.len().max(1) as f64;
        let strength = (said && matches!(choice, VoteChoice::A | VoteChoice::B)).then_some(sign * mean);
        (pair, PairVerdict { pair, choice, votes: counted.len(), shares, strength, adjudicated: last.is_some() })
    };
    pairs.into_iter().zip(shares).map(verdict).collect()
}

/// Returns the index of a choice in [`VERDICTS`].
fn class_index(choice: VoteChoice) -> usize {
    VERDICTS.iter().position(|c| *c == choice).unwrap_or_default()
}

fn to_shares(shares: &[f64]) -> [f64; 4] {
    std::array::from_fn(|i| shares.get(i).copied().unwrap_or(0.0))
}

/// Returns the share of each class among the ratings of a unit.
fn vote_shares(unit: &UnitRatings) -> [f64; 4] {
    let mut shares = [0.0; 4];
    unit.iter().for_each(|(_, c)| shares[*c] += 1.0 / unit.len() as f64);
    shares
}

/// Returns the choice with the largest share; a tie if several have it.
fn leading_choice(shares: &[f64; 4]) -> VoteChoice {
    let most = shares.iter().copied().fold(0.0, f64::max);
    let mut best = VERDICTS.iter().zip(shares).filter(|(_, s)| (**s - most).abs() < 1e-9).map(|(c, _)| *c);
    match (best.next(), best.next()) {
        (Some(one), None) => one,
        _ => VoteChoice::Tie,
    }
}

/// Computes Dawid and Skene's estimate with `a` and `b` interchangeable, as the names carry no information about an
/// answer. Each unit is used twice, once with `a` and `b` exchanged, so that priors and error rates are equal for both.
/// This is the only deviation from the paper.
pub fn symmetric_dawid_skene(units: &[UnitRatings], raters: usize) -> DawidSkene {
    let turned = |unit: &UnitRatings| unit.iter().map(|(r, c)| (*r, class_index(VERDICTS[*c].flipped()))).collect();
    let both: Vec<UnitRatings> = units.iter().cloned().chain(units.iter().map(turned)).collect();
    let mut found = dawid_skene(&both, raters, VERDICTS.len());
    found.posterior.truncate(units.len());
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::project::fixture::{project, vote};
    use crate::label::project::votes::JudgeFilter;
    use crate::label::record::annotator::AnnotatorKind;
    use crate::rng;
    use rand::RngExt;
    use serde_json::json;

    #[test]
    fn a_majority_decides_and_a_draw_is_a_tie() {
        use VoteChoice::*;
        let people = [("a", AnnotatorKind::Person), ("b", AnnotatorKind::Person), ("c", AnnotatorKind::Person)];
        for (votes, expected, confidence) in [
            (vec![A, A, B], A, 2.0 / 3.0),
            (vec![A, B], Tie, 0.0),
            (vec![A, B, Tie], Tie, 1.0 / 3.0),
            (vec![BothBad, BothBad, A], BothBad, 2.0 / 3.0),
            (vec![BothBad, B], Tie, 0.0),
            (vec![Skip, B], B, 1.0),
        ] {
            let mut p = project(1, &people);
            votes.iter().enumerate().for_each(|(i, c)| drop(vote(&mut p, 0, i as i64, *c).clone()));
            let found = &aggregate(&p.resolved_votes(&JudgeFilter::All), Aggregation::Majority)[&0];
            assert_eq!(found.choice, expected, "{votes:?}");
            assert!((found.confidence() - confidence).abs() < 1e-12, "{votes:?}: {}", found.confidence());
        }
        let mut p = project(1, &people);
        vote(&mut p, 0, 0, Skip);
        assert!(aggregate(&p.resolved_votes(&JudgeFilter::All), Aggregation::Majority).is_empty());
    }

    #[test]
    fn a_final_word_stands_and_strengths_count_against_each_other() {
        let mut p = project(
            1,
            &[
                ("a", AnnotatorKind::Person),
                ("b", AnnotatorKind::Person),
                ("c", AnnotatorKind::Person),
                ("d", AnnotatorKind::Person),
            ],
        );
        vote(&mut p, 0, 0, VoteChoice::B).strength = Some(3);
        vote(&mut p, 0, 1, VoteChoice::B).strength = Some(2);
        vote(&mut p, 0, 2, VoteChoice::A).strength = Some(1);
        for how in [Aggregation::Majority, Aggregation::DawidSkene] {
            let found = &aggregate(&p.resolved_votes(&JudgeFilter::All), how)[&0];
            assert_eq!((found.choice, found.strength, found.votes), (VoteChoice::B, Some(4.0 / 3.0), 3), "{how:?}");
        }
        vote(&mut p, 0, 3, VoteChoice::BothBad).detail = json!({ "adjudicated": true });
        let found = &aggregate(&p.resolved_votes(&JudgeFilter::All), Aggregation::DawidSkene)[&0];
        assert_eq!((found.choice, found.adjudicated, found.confidence()), (VoteChoice::BothBad, true, 1.0));
    }

    /// Three raters: two good, one who mostly says the opposite, over 400 pairs.
    #[test]
    fn who_errs_how_is_found_and_outvotes_a_bad_majority() {
        let mut chance = rng::stream(3, "test: crowd", 0);
        let skill = [0.9, 0.85, 0.25];
        let truth: Vec<usize> = (0..400).map(|_| chance.random_range(0..2)).collect();
        let units: Vec<UnitRatings> = truth
            .iter()
            .map(|t| {
                let say = |(r, right): (usize, &f64)| (r, if chance.random::<f64>() < *right { *t } else { 1 - t });
                skill.iter().enumerate().map(say).collect()
            })
            .collect();
        let found = symmetric_dawid_skene(&units, 3);
        for (r, right) in skill.iter().enumerate() {
            let said = &found.confusion[r];
            assert!((said[0][0] - right).abs() < 0.06, "rater {r}: {said:?}");
            assert!((said[0][0] - said[1][1]).abs() < 1e-9, "the names of the answers say nothing: {said:?}");
        }
        assert!((found.prior[0] - 0.5).abs() < 1e-9 && found.prior[2] < 1e-6);
        let right = |p: &dyn Fn(usize) -> bool| (0..400).filter(|i| p(*i)).count();
        let by_model = right(&|i| (found.posterior[i][1] > 0.5) == (truth[i] == 1));
        let by_majority = right(&|i| (units[i].iter().map(|(_, c)| c).sum::<usize>() >= 2) == (truth[i] == 1));
        assert!(by_model > by_majority + 20, "{by_model} and {by_majority} of 400");
    }
}
