//! Logistic regression with a few features, and win rates at equal length.

/// Largest number of Newton's steps.
const STEPS: usize = 100;

/// An observation of a logistic regression with N features.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation<const N: usize> {
    /// The features.
    pub x: [f64; N],
    /// The outcome, from 0 to 1; 0.5 counts as half of each.
    pub y: f64,
}

/// Fits P(y = 1) = 1 / (1 + exp(-(a + b·x))) to weighted observations; returns (a, b). They maximise
/// `Σ w (y log p + (1 - y) log(1 - p)) - ridge b·b / 2`: with a ridge of 1 the estimate of scikit-learn's `LogisticRegression()`. Newton's
/// method; a step is halved until the objective increases. `None` if all outcomes are equal: then there is no finite estimate.
pub fn logistic<const N: usize>(
    observations: &[Observation<N>],
    weights: &[f64],
    ridge: f64,
) -> Option<(f64, [f64; N])> {
    let used = || observations.iter().zip(weights).filter(|(_, weight)| **weight > 0.0);
    let varies = used().any(|(o, _)| o.y > 0.0) && used().any(|(o, _)| o.y < 1.0);
    if !varies {
        return None;
    }
    // log(1 + exp(z)) without overflow.
    let softplus = |z: f64| z.max(0.0) + (-z.abs()).exp().ln_1p();
    let height = |a: f64, b: [f64; N]| -> f64 {
        let fit = |(o, w): (&Observation<N>, &f64)| {
            let z = a + dot(b, o.x);
            -w * (o.y * softplus(-z) + (1.0 - o.y) * softplus(z))
        };
        used().map(fit).sum::<f64>() - ridge * dot(b, b) / 2.0
    };
    let (mut a, mut b) = (0.0, [0.0; N]);
    for _ in 0..STEPS {
        // The equations of a step: of the intercept, and of each feature.
        let mut rows = vec![vec![0.0; N + 2]; N + 1];
        for (n, row) in rows.iter_mut().enumerate().skip(1) {
            (row[n], row[N + 1]) = (ridge, -ridge * b[n - 1]);
        }
        for (o, w) in used() {
            let p = sigmoid(a + dot(b, o.x));
            let feature = |n: usize| if n == 0 { 1.0 } else { o.x[n - 1] };
            for (n, row) in rows.iter_mut().enumerate() {
                (0..=N).for_each(|m| row[m] += w * p * (1.0 - p) * feature(n) * feature(m));
                row[N + 1] += w * (o.y - p) * feature(n);
            }
        }
        let Some(step) = solve(rows) else { break };
        let at = |part: f64| (a + part * step[0], std::array::from_fn(|n| b[n] + part * step[n + 1]));
        let (now, mut part) = (height(a, b), 1.0);
        while height(at(part).0, at(part).1) < now && part > 1e-9 {
            part /= 2.0;
        }
        (a, b) = at(part);
        if step.iter().all(|x| x.abs() < 1e-10) {
            break;
        }
    }
    Some((a, b))
}

fn dot<const N: usize>(a: [f64; N], b: [f64; N]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// Solves linear equations, each a row of coefficients with the right side last, by elimination; `None` if they have no one solution.
fn solve(mut rows: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let n = rows.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()))?;
        rows.swap(column, pivot);
        if rows[column][column].abs() < 1e-150 || !rows[column][column].is_finite() {
            return None;
        }
        let of_pivot = rows[column].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column] / of_pivot[column];
            row.iter_mut().zip(&of_pivot).for_each(|(x, p)| *x -= factor * p);
        }
    }
    Some((0..n).map(|i| rows[i][n] / rows[i][i]).collect())
}

/// A comparison of an answer with another one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LengthComparison {
    /// Its length less that of the other.
    pub difference: f64,
    /// How difficult its prompt is, by a measure of other models; 0 for all if that is not known.
    pub difficulty: f64,
    /// 1 if it won, 0 if it lost, 0.5 for a tie.
    pub won: f64,
}

/// Estimates the win rate between answers of equal length (length-controlled AlpacaEval, Dubois et al. 2024, arXiv 2404.04475, equation 2):
/// a logistic regression on tanh(difference / its standard deviation) and the difficulty of prompts, with an intercept and a ridge of 1 on both
/// slopes, of which the rate is the mean prediction without a difference. Comparison i counts `weights[i]` times. The plain win rate if all lengths
/// or all outcomes are equal; `None` without comparisons.
pub fn length_controlled_win_rate(comparisons: &[LengthComparison], weights: &[f64]) -> Option<f64> {
    let total: f64 = weights.iter().sum();
    if total <= 0.0 {
        return None;
    }
    let mean = |of: &dyn Fn(&LengthComparison) -> f64| {
        comparisons.iter().zip(weights).map(|(c, w)| w * of(c)).sum::<f64>() / total
    };
    let centre = mean(&|c| c.difference);
    let deviation = mean(&|c| (c.difference - centre).powi(2)).sqrt();
    let plain = mean(&|c| c.won);
    if deviation == 0.0 {
        return Some(plain);
    }
    let observed =
        |c: &LengthComparison| Observation { x: [(c.difference / deviation).tanh(), c.difficulty], y: c.won };
    let observations: Vec<Observation<2>> = comparisons.iter().map(observed).collect();
    Some(
        logistic(&observations, weights, 1.0)
            .map_or(plain, |(a, [_, slope])| mean(&|comparison| sigmoid(a + slope * comparison.difficulty))),
    )
}

#[cfg(test)]
mod tests;
