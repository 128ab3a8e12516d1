//! Ranks the sources of answers by Bradley-Terry strength and Elo rating, with intervals.
//!
//! Pure functions over outcomes. A tie or "both bad" is half a win for each source. Outcomes on the same prompt are not
//! independent, so intervals resample prompts.

use super::aggregate::PairVerdict;
use super::project::Project;
use super::record::VoteChoice;
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
/// Mean of all ratings.
const MEAN_RATING: f64 = 1000.0;
/// Elo's factor K: the largest change of a rating by one outcome.
const ELO_K: f64 = 16.0;
/// Number of random orders over which Elo ratings are averaged.
const ORDERS: u64 = 100;

/// A comparison of two sources.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SourceComparison {
    /// Index of the prompt; outcomes of one group are resampled together.
    pub group: usize,
    pub a: usize,
    pub b: usize,
    /// Score of `a`: 1 if it won, 0 if it lost, 0.5 for a tie.
    pub score: f64,
}

/// Results of one source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankedSource {
    pub source: String,
    /// Number of comparisons with other sources, including ties.
    pub comparisons: usize,
    pub wins: usize,
    pub losses: usize,
    /// Bradley-Terry strength in Elo points around 1000.
    pub bradley_terry: Estimate,
    /// Elo rating, averaged over random orders of the outcomes.
    pub elo: Estimate,
}

/// Wins and ties between two sources.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadToHead {
    pub a: String,
    pub b: String,
    pub a_wins: usize,
    pub ties: usize,
    pub b_wins: usize,
}

/// All sources, the strongest first.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct SourceRanking {
    pub sources: Vec<RankedSource>,
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

/// Counts the strongly connected components of the graph in which i leads to j if i won or tied against j. Only within
/// one component are strengths finite without a prior (Ford 1957).
fn connected_groups(models: usize, outcomes: &[SourceComparison]) -> usize {
    let mut reach = vec![vec![false; models]; models];
    (0..models).for_each(|i| reach[i][i] = true);
    for o in outcomes {
        reach[o.a][o.b] |= o.score > 0.0;
        reach[o.b][o.a] |= o.score < 1.0;
    }
    for k in 0..models {
        for i in 0..models {
            for j in 0..models {
                reach[i][j] |= reach[i][k] && reach[k][j];
            }
        }
    }
    (0..models).filter(|i| (0..*i).all(|j| !(reach[*i][j] && reach[j][*i]))).count()
}

/// Computes Bradley-Terry strengths `s`, natural logarithms around 0: `P(i beats j) = 1 / (1 + exp(s_j - s_i))`
/// (Bradley and Terry 1952). They maximise
/// `Σ w (y log P(a beats b) + (1 - y) log P(b beats a)) - Σ s² / (2 deviation²)` over outcomes of score y with their
/// group's weight w. Uses Newton's method; a step is halved until the objective increases.
pub fn bradley_terry(models: usize, outcomes: &[SourceComparison], weights: &[f64], deviation: f64) -> Vec<f64> {
    let mut won = vec![0.0; models * models];
    for o in outcomes {
        won[o.a * models + o.b] += weights[o.group] * o.score;
        won[o.b * models + o.a] += weights[o.group] * (1.0 - o.score);
    }
    let ridge = 1.0 / (deviation * deviation);
    let height = |s: &[f64]| {
        let pairs = (0..models).flat_map(|i| (0..models).map(move |j| (i, j)));
        let fit: f64 = pairs.map(|(i, j)| -won[i * models + j] * (s[j] - s[i]).exp().ln_1p()).sum();
        fit - ridge / 2.0 * s.iter().map(|x| x * x).sum::<f64>()
    };
    let mut s = vec![0.0; models];
    for _ in 0..100 {
        let (mut slope, mut bend) = (vec![0.0; models], vec![0.0; models * models]);
        for i in 0..models {
            slope[i] -= ridge * s[i];
            bend[i * models + i] += ridge;
            for j in (0..models).filter(|j| *j != i) {
                let p = 1.0 / (1.0 + (s[j] - s[i]).exp());
                let (w, n) = (won[i * models + j], won[i * models + j] + won[j * models + i]);
                slope[i] += w - n * p;
                bend[i * models + i] += n * p * (1.0 - p);
                bend[i * models + j] -= n * p * (1.0 - p);
            }
        }
        let step = solve(bend, slope);
        let (now, mut part) = (height(&s), 1.0);
        let moved = |part: f64| s.iter().zip(&step).map(|(x, d)| x + part * d).collect::<Vec<f64>>();
        while height(&moved(part)) < now && part > 1e-9 {
            part /= 2.0;
        }
        s = moved(part);
        if step.iter().all(|d| d.abs() < 1e-10) {
            break;
        }
    }
    s
}

/// Solves `A x = b` by Gaussian elimination. A must be symmetric and positive definite, so that no pivot is 0.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        for row in i + 1..n {
            let factor = a[row * n + i] / a[i * n + i];
            for column in i..n {
                a[row * n + column] -= factor * a[i * n + column];
            }
            b[row] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| a[i * n + j] * b[j]).sum();
        b[i] = (b[i] - known) / a[i * n + i];
    }
    b
}

/// Computes Elo ratings after the outcomes in their order (Elo 1978):
/// `R_a += K (score - 1 / (1 + 10^((R_b - R_a) / 400)))`, and `b` loses what `a` gains.
pub fn elo(models: usize, outcomes: &[&SourceComparison]) -> Vec<f64> {
    let mut ratings = vec![MEAN_RATING; models];
    for o in outcomes {
        let expected = 1.0 / (1.0 + 10f64.powf((ratings[o.b] - ratings[o.a]) / 400.0));
        let change = ELO_K * (o.score - expected);
        ratings[o.a] += change;
        ratings[o.b] -= change;
    }
    ratings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::aggregate::{Aggregation, aggregate};
    use crate::label::project::JudgeFilter;
    use crate::label::project::tests::{project, vote};
    use crate::label::record::AnnotatorKind;

    fn outcome(group: usize, a: usize, b: usize, score: f64) -> SourceComparison {
        SourceComparison { group, a, b, score }
    }

    #[test]
    fn three_wins_of_four_are_a_lead_of_ln_3() {
        let outcomes: Vec<SourceComparison> = (0..4).map(|i| outcome(i, 0, 1, f64::from(u8::from(i > 0)))).collect();
        let s = bradley_terry(2, &outcomes, &[1.0; 4], 1e6);
        assert!((s[0] - s[1] - 3f64.ln()).abs() < 1e-9 && (s[0] + s[1]).abs() < 1e-9, "{s:?}");
        // Ties are half wins: two ties and two wins give three points of four.
        let ties = [outcome(0, 0, 1, 0.5), outcome(1, 1, 0, 0.5), outcome(2, 0, 1, 1.0), outcome(3, 1, 0, 0.0)];
        let t = bradley_terry(2, &ties, &[1.0; 4], 1e6);
        assert!((t[0] - t[1] - 3f64.ln()).abs() < 1e-9, "{t:?}");
        let won_all = bradley_terry(2, &outcomes[1..], &[1.0; 4], PRIOR);
        assert!(won_all[0].is_finite() && won_all[0] > 1.0, "{won_all:?}");
    }

    #[test]
    fn elo_gives_what_it_takes() {
        let outcomes = [outcome(0, 0, 1, 1.0), outcome(1, 1, 2, 0.5)];
        let ratings = elo(3, &outcomes.iter().collect::<Vec<_>>());
        assert_eq!(ratings[0], 1008.0);
        assert!((ratings.iter().sum::<f64>() - 3000.0).abs() < 1e-9 && ratings[1] > 992.0 && ratings[2] < 1000.0);
    }

    #[test]
    fn groups_without_a_way_between_them_are_counted() {
        assert_eq!(connected_groups(3, &[outcome(0, 0, 1, 1.0), outcome(0, 1, 2, 1.0), outcome(0, 2, 0, 1.0)]), 1);
        assert_eq!(connected_groups(3, &[outcome(0, 0, 1, 0.5), outcome(0, 1, 2, 1.0)]), 2);
        assert_eq!(connected_groups(4, &[outcome(0, 0, 1, 0.5), outcome(0, 2, 3, 0.5)]), 2);
    }

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
