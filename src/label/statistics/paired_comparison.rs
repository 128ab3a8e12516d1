//! Estimates strengths from comparisons of two: Bradley-Terry strength and Elo rating. Pure functions over outcomes.

/// Mean of all ratings.
pub const MEAN_RATING: f64 = 1000.0;

/// Elo's factor K: the largest change of a rating by one outcome.
const ELO_K: f64 = 16.0;

/// A comparison of two sources.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SourceComparison {
    /// Index of the prompt; outcomes of one group are resampled together.
    pub group: usize,
    /// Index of one source.
    pub a: usize,
    /// Index of the other.
    pub b: usize,
    /// Score of `a`: 1 if it won, 0 if it lost, 0.5 for a tie.
    pub score: f64,
}

/// Counts the strongly connected components of the graph in which i leads to j if i won or tied against j. Only within
/// one component are strengths finite without a prior (Ford 1957).
pub fn connected_groups(models: usize, outcomes: &[SourceComparison]) -> usize {
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
        let won_all = bradley_terry(2, &outcomes[1..], &[1.0; 4], 10.0);
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
}
