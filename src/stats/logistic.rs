//! Logistic regression with one feature, and win rates at equal length.

/// Largest number of Newton's steps.
const STEPS: usize = 100;

/// An observation of a logistic regression.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// The feature.
    pub x: f64,
    /// The outcome, from 0 to 1; 0.5 counts as half of each.
    pub y: f64,
}

/// Fits P(y = 1) = 1 / (1 + exp(-(a + b x))) to weighted observations; returns (a, b). They maximise
/// `Σ w (y log p + (1 - y) log(1 - p)) - ridge b² / 2`: with a ridge of 1 the estimate of scikit-learn's `LogisticRegression()`. Newton's
/// method; a step is halved until the objective increases. `None` if all outcomes are equal: then there is no finite estimate.
pub fn logistic(observations: &[Observation], weights: &[f64], ridge: f64) -> Option<(f64, f64)> {
    let used = || observations.iter().zip(weights).filter(|(_, weight)| **weight > 0.0);
    let varies = used().any(|(o, _)| o.y > 0.0) && used().any(|(o, _)| o.y < 1.0);
    if !varies {
        return None;
    }
    // log(1 + exp(z)) without overflow.
    let softplus = |z: f64| z.max(0.0) + (-z.abs()).exp().ln_1p();
    let height = |a: f64, b: f64| -> f64 {
        let fit = |(o, w): (&Observation, &f64)| {
            let z = a + b * o.x;
            -w * (o.y * softplus(-z) + (1.0 - o.y) * softplus(z))
        };
        used().map(fit).sum::<f64>() - ridge * b * b / 2.0
    };
    let (mut a, mut b) = (0.0, 0.0);
    for _ in 0..STEPS {
        let (mut slope, mut bend) = ([0.0, -ridge * b], [0.0, 0.0, ridge]);
        for (o, w) in used() {
            let p = 1.0 / (1.0 + (-(a + b * o.x)).exp());
            let (rest, curve) = (w * (o.y - p), w * p * (1.0 - p));
            slope[0] += rest;
            slope[1] += rest * o.x;
            bend[0] += curve;
            bend[1] += curve * o.x;
            bend[2] += curve * o.x * o.x;
        }
        let determinant = bend[0] * bend[2] - bend[1] * bend[1];
        if determinant.partial_cmp(&1e-300) != Some(std::cmp::Ordering::Greater) {
            break;
        }
        let step_a = (bend[2] * slope[0] - bend[1] * slope[1]) / determinant;
        let step_b = (bend[0] * slope[1] - bend[1] * slope[0]) / determinant;
        let (now, mut part) = (height(a, b), 1.0);
        while height(a + part * step_a, b + part * step_b) < now && part > 1e-9 {
            part /= 2.0;
        }
        (a, b) = (a + part * step_a, b + part * step_b);
        if step_a.abs().max(step_b.abs()) < 1e-10 {
            break;
        }
    }
    Some((a, b))
}

/// A comparison of an answer with another one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LengthComparison {
    /// Its length less that of the other.
    pub difference: f64,
    /// 1 if it won, 0 if it lost, 0.5 for a tie.
    pub won: f64,
}

/// Estimates the win rate between answers of equal length (length-controlled AlpacaEval, Dubois et al. 2024, arXiv 2404.04475, equation 2
/// without the difficulty of instructions, which takes many models): the intercept of a logistic regression on
/// tanh(difference / its standard deviation), with a ridge of 1 on the slope. Comparison i counts `weights[i]` times. The plain win rate if all
/// lengths or all outcomes are equal; `None` without comparisons.
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
    let observed = |c: &LengthComparison| Observation { x: (c.difference / deviation).tanh(), y: c.won };
    let observations: Vec<Observation> = comparisons.iter().map(observed).collect();
    Some(logistic(&observations, weights, 1.0).map_or(plain, |(intercept, _)| 1.0 / (1.0 + (-intercept).exp())))
}

#[cfg(test)]
mod tests;
