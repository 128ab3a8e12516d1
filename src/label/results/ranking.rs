//! Ranks the sources of answers by Bradley-Terry strength and Elo rating, with intervals.
//!
//! Pure functions over outcomes. A tie or "both bad" is half a win for each source. Outcomes on the same prompt are not
//! independent, so intervals resample prompts.

use crate::label::project::snapshot::Project;
use crate::label::record::vote::VoteChoice;
use crate::label::results::verdict::PairVerdict;
use crate::label::statistics::paired_comparison::{
    MEAN_RATING, SourceComparison, bradley_terry, connected_groups, elo,
};
use crate::rng;
use crate::stats::bootstrap::{Bootstrap, Estimate, percentiles};
use rand::seq::SliceRandom;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Standard deviation of the Gaussian prior on strengths. It keeps the strength of a source that won everything finite;
/// its effect on other strengths is far smaller than their intervals.
const PRIOR: f64 = 10.0;

/// Elo points of one unit of strength: a lead of 400 points wins ten times as often as it loses.
const POINTS_PER_STRENGTH: f64 = 400.0 / std::f64::consts::LN_10;

/// Number of random orders over which Elo ratings are averaged.
const ORDERS: u64 = 100;

/// Results of one source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankedSource {
    /// Name of the source.
    pub source: String,
    /// Number of comparisons with other sources, including ties.
    pub comparisons: usize,
    /// Number of comparisons that it won.
    pub wins: usize,
    /// Number of comparisons that it lost.
    pub losses: usize,
    /// Bradley-Terry strength in Elo points around 1000.
    pub bradley_terry: Estimate,
    /// Elo rating, averaged over random orders of the outcomes.
    pub elo: Estimate,
}

/// Wins and ties between two sources.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadToHead {
    /// Name of one source.
    pub a: String,
    /// Name of the other.
    pub b: String,
    /// Number of comparisons that `a` won.
    pub a_wins: usize,
    /// Number of ties.
    pub ties: usize,
    /// Number of comparisons that `b` won.
    pub b_wins: usize,
}

/// All sources, the strongest first.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct SourceRanking {
    /// Each source, the strongest first.
    pub sources: Vec<RankedSource>,
    /// Each two sources that were compared.
    pub duels: Vec<HeadToHead>,
    /// Number of groups that the sources fall into, where a group is connected by wins (or ties) in both directions.
    /// With more than one, the strengths of different groups are comparable only through the prior.
    pub groups: usize,
}

impl SourceRanking {
    /// Computes the ranking from verdicts. Pairs with two answers of the same source are ignored.
    pub fn of(project: &Project, verdicts: &BTreeMap<i64, PairVerdict>, bootstrap: &Bootstrap) -> Self {
        let candidates = project.candidates_by_id();
        let source = |id: i64| candidates.get(&id).map(|c| c.source.as_str());
        let mut found = Vec::new();
        for pair in &project.pairs {
            if let (Some(v), Some(a), Some(b)) = (verdicts.get(&pair.id), source(pair.a), source(pair.b))
                && a != b
            {
                let score = match v.choice {
                    VoteChoice::A => 1.0,
                    VoteChoice::B => 0.0,
                    _ => 0.5,
                };
                found.push((pair.prompt, a, b, score));
            }
        }
        let names: Vec<&str> = found.iter().flat_map(|f| [f.1, f.2]).collect::<BTreeSet<_>>().into_iter().collect();
        let prompts: Vec<i64> = found.iter().map(|f| f.0).collect::<BTreeSet<_>>().into_iter().collect();
        let place = |name: &str| names.binary_search(&name).unwrap_or_default();
        let outcomes: Vec<SourceComparison> = found
            .iter()
            .map(|(prompt, a, b, score)| SourceComparison {
                group: prompts.binary_search(prompt).unwrap_or_default(),
                a: place(a),
                b: place(b),
                score: *score,
            })
            .collect();
        Self::of_outcomes(&names, &outcomes, prompts.len(), bootstrap)
    }

    fn of_outcomes(names: &[&str], outcomes: &[SourceComparison], groups: usize, bootstrap: &Bootstrap) -> Self {
        let each: Vec<usize> = (0..groups).collect();
        let all = vec![1.0; groups];
        let points = |strengths: Vec<f64>| {
            strengths.into_iter().map(|s| MEAN_RATING + POINTS_PER_STRENGTH * s).collect::<Vec<_>>()
        };
        let by_strength = points(bradley_terry(names.len(), outcomes, &all, PRIOR));
        let strengths = bootstrap.replicates("label: Bradley-Terry", &each, groups, |drawn, _| {
            Some(points(bradley_terry(names.len(), outcomes, drawn, PRIOR)))
        });
        let orders = (0..ORDERS).map(|i| {
            let mut chance = rng::stream(bootstrap.seed, "label: orders of Elo", i);
            let mut order: Vec<&SourceComparison> = outcomes.iter().collect();
            order.shuffle(&mut chance);
            elo(names.len(), &order)
        });
        let by_elo: Vec<f64> = orders.fold(vec![0.0; names.len()], |mut sum, ratings| {
            sum.iter_mut().zip(ratings).for_each(|(s, r)| *s += r / ORDERS as f64);
            sum
        });
        let ratings = bootstrap.replicates("label: Elo", &each, groups, |drawn, chance| {
            let times = |o: &'_ SourceComparison| drawn[o.group] as usize;
            let mut order: Vec<&SourceComparison> =
                outcomes.iter().flat_map(|o| std::iter::repeat_n(o, times(o))).collect();
            order.shuffle(chance);
            Some(elo(names.len(), &order))
        });
        let interval = |found: &[Vec<f64>], i: usize| percentiles(found.iter().map(|f| f[i]).collect());
        let count = |i: usize, score: f64| {
            outcomes.iter().filter(|o| (o.a == i && o.score == score) || (o.b == i && o.score == 1.0 - score)).count()
        };
        let ranked = |(i, name): (usize, &&str)| RankedSource {
            source: name.to_string(),
            comparisons: outcomes.iter().filter(|o| o.a == i || o.b == i).count(),
            wins: count(i, 1.0),
            losses: count(i, 0.0),
            bradley_terry: Estimate { value: by_strength[i], interval: interval(&strengths, i) },
            elo: Estimate { value: by_elo[i], interval: interval(&ratings, i) },
        };
        let mut sources: Vec<RankedSource> = names.iter().enumerate().map(ranked).collect();
        sources.sort_by(|a, b| b.bradley_terry.value.total_cmp(&a.bradley_terry.value));
        Self { sources, duels: duels(names, outcomes), groups: connected_groups(names.len(), outcomes) }
    }
}

/// Counts wins and ties of each two sources that were compared.
fn duels(names: &[&str], outcomes: &[SourceComparison]) -> Vec<HeadToHead> {
    let mut found: BTreeMap<(usize, usize), [usize; 3]> = BTreeMap::new();
    for o in outcomes {
        let (key, score) = if o.a < o.b { ((o.a, o.b), o.score) } else { ((o.b, o.a), 1.0 - o.score) };
        let place = if score == 1.0 {
            0
        } else if score == 0.0 {
            2
        } else {
            1
        };
        found.entry(key).or_default()[place] += 1;
    }
    let duel = |((a, b), [a_wins, ties, b_wins]): ((usize, usize), [usize; 3])| HeadToHead {
        a: names[a].into(),
        b: names[b].into(),
        a_wins,
        ties,
        b_wins,
    };
    found.into_iter().map(duel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::project::fixture::{project, vote};
    use crate::label::project::votes::JudgeFilter;
    use crate::label::record::annotator::AnnotatorKind;
    use crate::label::results::verdict::{Aggregation, aggregate};

    #[test]
    fn the_better_source_stands_first_with_an_interval_around_it() {
        let mut p = project(80, &[("ann", AnnotatorKind::Person)]);
        (0..80).for_each(|i| {
            let choice = [VoteChoice::B, VoteChoice::B, VoteChoice::B, VoteChoice::A, VoteChoice::Tie][i as usize % 5];
            vote(&mut p, i, 0, choice);
        });
        let verdicts = aggregate(&p.resolved_votes(&JudgeFilter::All), Aggregation::Majority);
        let ranking = SourceRanking::of(&p, &verdicts, &Bootstrap { replicates: 200, seed: 7 });
        let [first, second] = &ranking.sources[..] else { panic!("{ranking:?}") };
        assert_eq!((first.source.as_str(), first.wins, first.losses, first.comparisons), ("y", 48, 16, 80));
        assert_eq!((ranking.groups, ranking.duels.len(), ranking.duels[0].ties), (1, 1, 16));
        // 70 % of the points: ln(7 / 3) apart.
        let lead = first.bradley_terry.value - second.bradley_terry.value;
        assert!((lead - POINTS_PER_STRENGTH * (7f64 / 3.0).ln()).abs() < 0.5, "{lead}");
        for estimate in [first.bradley_terry, first.elo] {
            let [low, high] = estimate.interval.unwrap();
            assert!(1000.0 < low && low < estimate.value && estimate.value < high, "{estimate:?}");
        }
        assert_eq!(ranking, SourceRanking::of(&p, &verdicts, &Bootstrap { replicates: 200, seed: 7 }));
    }
}
