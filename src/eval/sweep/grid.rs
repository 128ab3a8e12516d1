//! Searches one weight of each adapter by trials.

use crate::adapters::merging::WeightedAdapter;
use crate::error::Result;
use crate::eval::merge_losses::MergeLosses;
use crate::report;
use serde::Serialize;

/// Weights that were tried, and the loss with them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trial {
    /// The weight of each adapter.
    pub weights: Vec<f64>,
    /// Mean loss of the rows' supervised tokens.
    pub loss: f64,
}

/// The result of a search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sweep {
    /// All trials in their order: the grid first.
    pub trials: Vec<Trial>,
    /// Number of trials that are the grid.
    pub grid: usize,
    /// The trial with the smallest loss.
    pub best: Trial,
    /// Loss of the base alone.
    pub base_loss: f64,
    /// Number of rows and of supervised tokens.
    pub rows: usize,
    /// Number of supervised tokens.
    pub tokens: usize,
}

/// Weights of the grid for one or two adapters.
const GRID: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];
/// Steps of the refinement, one after the other.
const STEPS: [f64; 2] = [0.125, 0.0625];

/// Searches the weights with the smallest loss, and leaves the last ones that were tried in `parts`.
pub fn sweep(losses: &MergeLosses, parts: &mut [WeightedAdapter]) -> Result<Sweep> {
    let bar = report::spinner("searching weights");
    let search = search(parts.len(), |weights| losses.of(parts, weights));
    bar.finish_and_clear();
    let (trials, grid) = search?;
    let best = best_of(&trials).clone();
    Ok(Sweep { trials, grid, best, base_loss: losses.base_loss, rows: losses.rows(), tokens: losses.tokens })
}

fn best_of(trials: &[Trial]) -> &Trial {
    trials.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).expect("the grid is not empty")
}

/// Tries a grid of weights, then steps from the best one to its neighbours along one weight at a time until none is better,
/// with smaller and smaller steps. Returns all trials, and how many of them are the grid. Of three and more adapters, the
/// grid gives all the same weight, or one of them alone.
fn search(parts: usize, mut loss: impl FnMut(&[f64]) -> Result<f64>) -> Result<(Vec<Trial>, usize)> {
    let mut trials: Vec<Trial> = Vec::new();
    let mut attempt = |trials: &mut Vec<Trial>, weights: Vec<f64>| -> Result<()> {
        if trials.iter().all(|t| t.weights != weights) {
            let loss = loss(&weights)?;
            trials.push(Trial { weights, loss });
        }
        Ok(())
    };
    let grid: Vec<Vec<f64>> = match parts {
        1 => GRID.iter().chain(&[1.25, 1.5]).map(|w| vec![*w]).collect(),
        2 => GRID.iter().flat_map(|v| GRID.iter().map(move |w| vec![*w, *v])).collect(),
        n => {
            let alone = |i: usize| (0..n).map(|j| if i == j { 1.0 } else { 0.0 }).collect();
            GRID.iter().map(|w| vec![*w; n]).chain((0..n).map(alone)).collect()
        }
    };
    for weights in grid {
        attempt(&mut trials, weights)?;
    }
    let grid = trials.len();
    for step in STEPS {
        loop {
            let start = best_of(&trials).clone();
            for i in 0..parts {
                for sign in [-1.0, 1.0] {
                    let mut weights = start.weights.clone();
                    weights[i] += sign * step;
                    attempt(&mut trials, weights)?;
                }
            }
            if best_of(&trials).weights == start.weights {
                break;
            }
        }
    }
    Ok((trials, grid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_loss_is_found_between_and_beyond_the_grid() {
        for wanted in [vec![0.3], vec![1.9], vec![0.4, 0.9], vec![1.3, -0.2], vec![0.5, 0.8, 0.1, 0.6]] {
            let far = |w: &[f64]| w.iter().zip(&wanted).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
            let (trials, grid) = search(wanted.len(), |weights| Ok(far(weights))).unwrap();
            let best = best_of(&trials);
            let apart = best.weights.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart <= 0.0625 && grid < trials.len() && trials.len() < 120, "{wanted:?}: {best:?}");
        }
    }
}
