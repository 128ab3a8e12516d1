//! Trains the weights of a sum of adapters, by layer, module or component, on held-out rows (Yang et al. 2023, AdaMerging, arXiv
//! 2310.02575; there by the entropy of unlabelled inputs, here by the loss of answers).
//!
//! A quarter of the rows is kept back. The weights are trained on the others by Adam; what counts is the loss on the rows
//! that were kept back, at the step where it is the smallest.

use super::gradient::SumGradient;
use super::grid::Trial;
use super::groups::WeightGroups;
use crate::adapters::merging::WeightedAdapter;
use crate::data::encode::Example;
use crate::error::{Error, Result};
use crate::eval::merge_losses::LoadedMerge;
use crate::eval::rows::EvalRow;
use crate::recipe::merge_file::SweepBy;
use crate::{report, rng};
use rand::seq::SliceRandom;
use serde::Serialize;

/// The usual number of steps.
pub const STEPS: usize = 60;
/// Rows of a step.
const BATCH: usize = 8;
/// Step size of Adam at the first step; it falls to 0 with a cosine.
const RATE: f64 = 0.1;
/// Steps between two losses on the rows kept back.
const EVERY: usize = 10;
/// The weights that training may start from, the same for all adapters and groups.
const STARTS: [f64; 4] = [0.25, 0.5, 0.75, 1.0];
/// Fewest rows of a search.
const FEWEST: usize = 8;
/// Weights that count are multiples of 1 / GRAIN: rounding errors of sums, which depend on the number of threads, do not change
/// them.
const GRAIN: f64 = 1024.0;

/// The loss on the rows kept back at one step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SweepStep {
    /// Number of optimiser steps before it.
    pub step: usize,
    /// Mean loss of the steps since the last one, on the rows that the weights are trained on; `null` at the start.
    pub loss: Option<f64>,
    /// Loss on the rows kept back.
    pub kept_loss: f64,
}

/// The result of training weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainedSweep {
    /// What has a weight of its own: `layer`, `module` or `component`.
    pub by: &'static str,
    /// Sums with the same weight of all adapters, with their loss on the rows that the weights are trained on. Training
    /// starts from the best.
    pub starts: Vec<Trial>,
    /// The curve of losses.
    pub steps: Vec<SweepStep>,
    /// The step with the smallest loss on the rows kept back.
    pub best_step: usize,
    /// That loss.
    pub loss: f64,
    /// Loss of the base alone on the rows kept back.
    pub base_loss: f64,
    /// Numbers of layers, names of modules, or names of tensors with the number of a component.
    pub groups: Vec<String>,
    /// The weights at the best step, of each adapter by group; `null` where an adapter changes nothing.
    pub weights: Vec<Vec<Option<f64>>>,
    /// Number of rows that the weights were trained on.
    pub rows: usize,
    /// Number of rows kept back.
    pub kept_rows: usize,
    /// Number of supervised tokens of the rows kept back.
    pub tokens: usize,
}

/// The settings of a training of weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightTraining {
    /// What has a weight of its own.
    pub by: SweepBy,
    /// Number of optimiser steps.
    pub steps: usize,
    /// Determines the order of rows, and which of them are kept back.
    pub seed: u64,
}

impl WeightTraining {
    /// Trains weights on `rows`, starting from the best sum with equal weights, and gives the best ones to `parts`. The merge
    /// must be a sum. Fails for fewer than 8 rows.
    pub fn run(
        self,
        merge: &LoadedMerge,
        parts: &mut [WeightedAdapter],
        mut rows: Vec<EvalRow>,
    ) -> Result<TrainedSweep> {
        let Self { by, steps, seed } = self;
        if rows.len() < FEWEST {
            return Err(Error::user(format!("{} rows are too few to train weights on", rows.len()))
                .hint(format!("give at least {FEWEST}, better a hundred; or search by adapter")));
        }
        rows.shuffle(&mut rng::stream(seed, "sweep: rows kept back", 0));
        let kept = rows.split_off(rows.len() - rows.len() / 4);
        let groups = WeightGroups::new(by, &merge.changes(parts)?);
        let (base_loss, tokens) = merge.base_loss(&kept)?;
        let starts = starts(merge, parts, &rows)?;
        let start = starts.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).map_or(1.0, |trial| trial.weights[0]);
        let gradient = SumGradient::new(merge, &groups, parts)?;
        let mut adam = Adam::new(vec![vec![start; groups.names.len()]; parts.len()]);
        let mut order = RowOrder { rows: &rows, seed, epoch: 0, left: Vec::new() };
        let bar = report::bar(steps as u64, "training weights");
        let kept = KeptRows { merge, groups: &groups, rows: &kept };
        let mut curve = vec![kept.measure(parts, &adam.weights, 0, &[])?];
        let mut losses = Vec::new();
        for step in 1..=steps {
            groups.assign(parts, &adam.weights);
            merge.set(parts)?;
            let found = gradient.of(&order.next_batch())?;
            losses.push(found.loss);
            adam.step(&found.gradient, rate(step - 1, steps));
            if step % EVERY == 0 || step == steps {
                curve.push(kept.measure(parts, &adam.weights, step, &losses)?);
                losses.clear();
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let best = curve.iter().min_by(|a, b| a.0.kept_loss.total_cmp(&b.0.kept_loss));
        let (best, weights) = best.cloned().ok_or_else(|| Error::bug("a search that measured no loss"))?;
        groups.assign(parts, &weights);
        Ok(TrainedSweep {
            by: by.name(),
            starts,
            steps: curve.into_iter().map(|(step, _)| step).collect(),
            best_step: best.step,
            loss: best.kept_loss,
            base_loss,
            weights: weights.iter().enumerate().map(|(part, weights)| groups.own(part, weights)).collect(),
            rows: rows.len(),
            kept_rows: kept.rows.len(),
            tokens,
            groups: groups.names,
        })
    }
}

/// Measures the loss of sums with equal weights on the rows that weights are trained on.
fn starts(merge: &LoadedMerge, parts: &mut [WeightedAdapter], rows: &[EvalRow]) -> Result<Vec<Trial>> {
    let bar = report::spinner("trying equal weights");
    let trials = STARTS.iter().map(|weight| {
        parts.iter_mut().for_each(|part| part.weights = (*weight).into());
        merge.set(parts)?;
        Ok(Trial { weights: vec![*weight; parts.len()], loss: merge.loss(rows)?.0 })
    });
    let trials = trials.collect();
    bar.finish_and_clear();
    trials
}

/// The rows that choose the step.
struct KeptRows<'k> {
    merge: &'k LoadedMerge<'k>,
    groups: &'k WeightGroups,
    rows: &'k [EvalRow],
}

impl KeptRows<'_> {
    /// Measures the loss with these weights, rounded to multiples of 1 / [`GRAIN`], and tells it. `losses`: those of the steps
    /// since the last measurement. Also returns the rounded weights.
    fn measure(
        &self,
        parts: &mut [WeightedAdapter],
        weights: &[Vec<f64>],
        step: usize,
        losses: &[f64],
    ) -> Result<(SweepStep, Vec<Vec<f64>>)> {
        let round = |w: &f64| (w * GRAIN).round() / GRAIN;
        let weights: Vec<Vec<f64>> = weights.iter().map(|list| list.iter().map(round).collect()).collect();
        self.groups.assign(parts, &weights);
        self.merge.set(parts)?;
        let kept_loss = self.merge.loss(self.rows)?.0;
        let loss = (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64);
        let trained = loss.map_or(String::new(), |loss| format!("loss {loss:.4}, "));
        report::info(format!("step {step}  {trained}rows kept back {kept_loss:.4}"));
        Ok((SweepStep { step, loss, kept_loss }, weights))
    }
}

/// Returns the step size of a step, counted from 0: it falls from [`RATE`] to 0 with a cosine.
fn rate(step: usize, steps: usize) -> f64 {
    0.5 * RATE * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos())
}

/// The order of rows: a new one in each epoch, which depends on the seed.
struct RowOrder<'r> {
    rows: &'r [EvalRow],
    seed: u64,
    epoch: u64,
    /// Rows that come next, the last one first.
    left: Vec<usize>,
}

impl<'r> RowOrder<'r> {
    /// Returns the examples of the next [`BATCH`] rows.
    fn next_batch(&mut self) -> Vec<&'r Example> {
        let mut batch = Vec::new();
        for _ in 0..BATCH.min(self.rows.len()) {
            if self.left.is_empty() {
                self.left = (0..self.rows.len()).collect();
                self.left.shuffle(&mut rng::stream(self.seed, "sweep: order of rows", self.epoch));
                self.epoch += 1;
            }
            batch.extend(self.left.pop().into_iter().flat_map(|row| &self.rows[row].examples));
        }
        batch
    }
}

/// Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1) on the weights of a merge, in float64.
struct Adam {
    /// (adapter, group)
    weights: Vec<Vec<f64>>,
    /// Mean and mean square of the gradient of each weight.
    moments: Vec<Vec<[f64; 2]>>,
    steps: i32,
}

impl Adam {
    fn new(weights: Vec<Vec<f64>>) -> Self {
        let moments = weights.iter().map(|list| vec![[0.0; 2]; list.len()]).collect();
        Self { weights, moments, steps: 0 }
    }

    /// Updates the weights by a gradient.
    fn step(&mut self, gradient: &[Vec<f64>], rate: f64) {
        const BETAS: [f64; 2] = [0.9, 0.999];
        self.steps += 1;
        let unbiased = BETAS.map(|beta| 1.0 - beta.powi(self.steps));
        let all = self.weights.iter_mut().flatten().zip(self.moments.iter_mut().flatten());
        for ((weight, [mean, square]), g) in all.zip(gradient.iter().flatten()) {
            *mean += (1.0 - BETAS[0]) * (g - *mean);
            *square += (1.0 - BETAS[1]) * (g * g - *square);
            *weight -= rate * (*mean / unbiased[0]) / ((*square / unbiased[1]).sqrt() + 1e-8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adam_takes_steps_of_the_papers_size() {
        let mut adam = Adam::new(vec![vec![1.0, 2.0], vec![3.0]]);
        adam.step(&[vec![0.3, -5.0], vec![0.0]], 0.1);
        // The first step has the size of the rate, whatever the gradient.
        let first: Vec<f64> = adam.weights.concat();
        assert!(first.iter().zip([0.9, 2.1, 3.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{first:?}");
        // m = 0.9 * 0.03 - 0.1 * 0.1 = 0.017, v = 0.999 * 9e-5 + 1e-5; corrected by 0.19 and 0.001999.
        adam.step(&[vec![-0.1, -5.0], vec![0.0]], 0.1);
        let wanted = first[0] - 0.1 * (0.017 / 0.19) / ((0.999 * 9e-5 + 1e-5) / 0.001999f64).sqrt();
        assert!((adam.weights[0][0] - wanted).abs() < 1e-6, "{:?}", adam.weights);
    }

    #[test]
    fn the_step_size_falls_to_zero() {
        assert_eq!(rate(0, 10), RATE);
        assert!((1..10).all(|step| rate(step, 10) < rate(step - 1, 10)) && rate(10, 10).abs() < 1e-12);
    }
}
