//! Estimates the true classes of units and the error rates of raters (Dawid and Skene 1979).

/// The ratings of one unit (a pair), as (rater, class).
pub type UnitRatings = Vec<(usize, usize)>;

/// Result of Dawid and Skene's model.
#[derive(Debug, Clone)]
pub struct DawidSkene {
    /// `posterior[i][c]`: probability that c is the true class of unit i.
    pub posterior: Vec<Vec<f64>>,
    /// Probability of each class.
    pub prior: Vec<f64>,
    /// `confusion[r][c][k]`: probability that rater r says k if c is true.
    pub confusion: Vec<Vec<Vec<f64>>>,
}

/// Smallest probability: a single vote must not make a class impossible.
const FLOOR: f64 = 1e-10;

/// Largest number of EM rounds, and the change of the posterior below which EM has converged.
const MAX_ROUNDS: usize = 5000;

const CONVERGED: f64 = 1e-10;

/// Computes Dawid and Skene's estimate by expectation-maximisation (Dawid and Skene 1979, "Maximum likelihood
/// estimation of observer error-rates using the EM algorithm", equations 2.3 to 2.5), starting from the shares of votes
/// as posterior.
///
/// M: `p_c = mean_i T_ic`, `π^r_ck = Σ_i T_ic n^r_ik / Σ_k Σ_i T_ic n^r_ik`. E: `T_ic ∝ p_c Π_r Π_k (π^r_ck)^(n^r_ik)`.
/// The posterior of a unit without ratings is the prior.
pub fn dawid_skene(units: &[UnitRatings], raters: usize, classes: usize) -> DawidSkene {
    let first = |unit: &UnitRatings| {
        let mut shares = vec![if unit.is_empty() { 1.0 / classes as f64 } else { 0.0 }; classes];
        unit.iter().for_each(|(_, c)| shares[*c] += 1.0 / unit.len() as f64);
        shares
    };
    let mut posterior: Vec<Vec<f64>> = units.iter().map(first).collect();
    let (mut prior, mut confusion) = maximise(units, &posterior, raters, classes);
    for _ in 0..MAX_ROUNDS {
        let next: Vec<Vec<f64>> = units.iter().map(|unit| expect(unit, &prior, &confusion)).collect();
        let moved =
            next.iter().flatten().zip(posterior.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        posterior = next;
        (prior, confusion) = maximise(units, &posterior, raters, classes);
        if moved < CONVERGED {
            break;
        }
    }
    DawidSkene { posterior, prior, confusion }
}

fn expect(unit: &UnitRatings, prior: &[f64], confusion: &[Vec<Vec<f64>>]) -> Vec<f64> {
    let log = |c: usize| prior[c].ln() + unit.iter().map(|(r, k)| confusion[*r][c][*k].ln()).sum::<f64>();
    let logs: Vec<f64> = (0..prior.len()).map(log).collect();
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let scaled: Vec<f64> = logs.iter().map(|l| (l - most).exp()).collect();
    let sum: f64 = scaled.iter().sum();
    scaled.into_iter().map(|p| p / sum).collect()
}

fn maximise(
    units: &[UnitRatings],
    posterior: &[Vec<f64>],
    raters: usize,
    classes: usize,
) -> (Vec<f64>, Vec<Vec<Vec<f64>>>) {
    let mut prior = vec![0.0; classes];
    let mut counts = vec![vec![vec![0.0; classes]; classes]; raters];
    for (unit, p) in units.iter().zip(posterior) {
        for c in 0..classes {
            prior[c] += p[c] / units.len() as f64;
            unit.iter().for_each(|(r, k)| counts[*r][c][*k] += p[c]);
        }
    }
    prior.iter_mut().for_each(|p| *p = p.max(FLOOR));
    for row in counts.iter_mut().flatten() {
        row.iter_mut().for_each(|n| *n = n.max(FLOOR));
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|n| *n /= sum);
    }
    (prior, counts)
}
