//! Searches the weights of a merge by the loss on held-out rows. Nothing is written: the merged adapter is exchanged in one
//! loaded model.

use super::rows::EvalRow;
use super::run::mean_loss;
use crate::adapters::merging::combine::{are_low_rank, combine, in_full};
use crate::adapters::merging::plan::{MergeForm, MergePlan};
use crate::adapters::merging::reduce::as_lora;
use crate::adapters::merging::{MergedWeights, WeightedAdapter};
use crate::adapters::{AdapterFile, file};
use crate::data::chat::ChatTokenizer;
use crate::data::encode::Example;
use crate::error::{Error, Result};
use crate::merging::Truncation;
use crate::models::{self, Config, Heads, LoadOptions, Model, Storage, VocabularyRows};
use crate::nn::Weights;
use crate::report;
use serde::Serialize;
use std::path::Path;
use tch::{Device, Kind};

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

/// Searches the weights with which the merge of `parts` by `plan` has the smallest loss on the rows of a file, the first
/// `limit` of them. `form`: what will be written. Fails for a plan whose ranks depend on the weights.
pub fn sweep(
    base: &Path,
    parts: &mut [WeightedAdapter],
    plan: &MergePlan,
    form: MergeForm,
    rows: &Path,
    limit: Option<usize>,
) -> Result<Sweep> {
    if matches!(plan.truncation, Some(Truncation::Energy(_))) {
        return Err(Error::user("--energy cannot be combined with --sweep: ranks would depend on the weights")
            .hint("search with --rank, and merge with --energy and the weights found"));
    }
    let config = Config::read(base)?;
    let tokenizer = ChatTokenizer::load(base, None)?;
    let rows = EvalRow::read(rows, limit, &tokenizer)?;
    let examples: Vec<&Example> = rows.iter().flat_map(|row| &row.examples).collect();
    let weights = models::weights(base, &config)?;
    let shared = config.tied_weights();
    let first = merged(&weights, &shared, parts, plan, form)?;
    let model = load(base, &first)?;
    let (base_loss, tokens) = model.with_adapter(None, |model| mean_loss(model, &examples))?;
    let bar = report::spinner("searching weights");
    let search = search(parts.len(), |values| {
        parts.iter_mut().zip(values).for_each(|(part, value)| part.weight = *value);
        let made = merged(&weights, &shared, parts, plan, form)?;
        file::load_into(model.params().adapter(0), &made.tensors, Path::new("the merged adapter"))?;
        Ok(mean_loss(&model, &examples)?.0)
    });
    bar.finish_and_clear();
    let (trials, grid) = search?;
    let best = best_of(&trials).clone();
    Ok(Sweep { trials, grid, best, base_loss, rows: rows.len(), tokens })
}

/// Returns the merge with the present weights as an adapter, whose shapes do not depend on the weights.
fn merged(
    base: &Weights,
    shared: &[&str],
    parts: &[WeightedAdapter],
    plan: &MergePlan,
    form: MergeForm,
) -> Result<AdapterFile> {
    if plan.is_sum() && are_low_rank(base, parts)? {
        return combine(base, parts);
    }
    let merge = MergedWeights::planned(base, shared, parts, plan.clone())?;
    match !plan.is_sum() && (form == MergeForm::Adapter || plan.gives_products()) {
        true => Ok(as_lora(&merge, parts, || ())?.0),
        false => in_full(base, &merge),
    }
}

/// Loads the base with an adapter, which is switched on.
fn load(base: &Path, adapter: &AdapterFile) -> Result<Model> {
    let plan = adapter.spec.plan_from(Some(&adapter.tensors))?;
    let adapters = vec![("merged".to_string(), &*plan)];
    let rows = VocabularyRows::of_adapters(&Config::read(base)?, &[(adapter, base)])?;
    let options = LoadOptions {
        device: Device::Cpu,
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: None,
        adapters,
        vocabulary: rows.as_ref(),
        heads: Heads::Tokens,
    };
    Model::load(base, options)
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
