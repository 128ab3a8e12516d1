//! `ft merge --sweep`: weights by the loss on held-out rows.

use super::MergeJob;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::merge::search_section::{GroupWeights, SearchCurve, SearchPicture};
use ft::error::Result;
use ft::eval::merge_losses::{LoadedMerge, MergeLosses, read_rows};
use ft::eval::sweep::grid::{self, Sweep, Trial};
use ft::eval::sweep::trained::{self, TrainedSweep, WeightTraining};
use ft::recipe::merge_file::{SweepBy, SweepSettings};
use ft::report;
use serde_json::{Value, json};

/// What a search found.
pub(super) enum FoundWeights {
    /// One weight of each adapter.
    Grid(Sweep),
    /// Weights of each adapter by layer, module or component.
    Trained(TrainedSweep),
}

/// Searches weights, tells which are best, and gives them to the job's adapters.
pub(super) fn search_weights(job: &mut MergeJob, settings: &SweepSettings) -> Result<FoundWeights> {
    if settings.by == SweepBy::Adapter {
        let losses = MergeLosses::open(&job.base, &job.parts, &job.plan, job.form, &settings.rows, settings.limit)?;
        let found = grid::sweep(&losses, &mut job.parts)?;
        tell_trials(&found);
        job.parts.iter_mut().zip(&found.best.weights).for_each(|(part, weight)| part.weights = (*weight).into());
        return Ok(FoundWeights::Grid(found));
    }
    let rows = read_rows(&job.base, &settings.rows, settings.limit)?;
    let merge = LoadedMerge::open(&job.base, &job.parts, &job.plan, job.form)?;
    let training =
        WeightTraining { by: settings.by, steps: settings.steps.unwrap_or(trained::STEPS), seed: settings.seed };
    let found = training.run(&merge, &mut job.parts, rows)?;
    tell_steps(&found, &job.parts);
    Ok(FoundWeights::Trained(found))
}

fn shown(weights: &[f64]) -> String {
    weights.iter().map(f64::to_string).collect::<Vec<_>>().join("  ")
}

fn tell_trials(found: &Sweep) {
    let mut best: Vec<&Trial> = found.trials.iter().collect();
    best.sort_by(|a, b| a.loss.total_cmp(&b.loss));
    let mut table = vec![["weights", "loss"].map(String::from).to_vec()];
    table.extend(best.iter().take(8).map(|t| vec![shown(&t.weights), format!("{:.4}", t.loss)]));
    table.push(vec!["the base alone".into(), format!("{:.4}", found.base_loss)]);
    report::info(format!(
        "{} trials on {} rows, {} supervised tokens\n{}",
        found.trials.len(),
        found.rows,
        report::count(found.tokens as u64),
        report::table(&table)
    ));
}

fn tell_steps(found: &TrainedSweep, parts: &[WeightedAdapter]) {
    report::info(format!(
        "weights by {} trained on {} rows; the loss of {} rows kept back ({} supervised tokens) is the smallest at step {}, \
         {:.4}; the base alone has {:.4}",
        found.by,
        found.rows,
        found.kept_rows,
        report::count(found.tokens as u64),
        found.best_step,
        found.loss,
        found.base_loss
    ));
    let weights = of_groups(found, parts);
    let by_layer: Vec<Vec<(usize, f64)>> = (0..parts.len()).map(|i| weights.means_by_layer(i)).collect();
    let mut layers: Vec<usize> = by_layer.iter().flatten().map(|(layer, _)| *layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let mut table: Vec<Vec<String>> =
        vec![std::iter::once("layer".to_string()).chain(weights.adapters.iter().cloned()).collect()];
    table.extend(layers.iter().map(|layer| {
        let of = |means: &Vec<(usize, f64)>| means.iter().find(|(l, _)| l == layer).map(|(_, w)| format!("{w:.3}"));
        std::iter::once(layer.to_string()).chain(by_layer.iter().map(|m| of(m).unwrap_or("-".into()))).collect()
    }));
    report::info(report::table(&table));
}

/// Returns the losses of the steps under a row of titles.
fn steps(found: &TrainedSweep) -> Vec<Vec<String>> {
    let loss = |loss: f64| format!("{loss:.4}");
    let mut table = vec![["step", "loss", "loss on rows kept back"].map(String::from).to_vec()];
    let row = |s: &trained::SweepStep| vec![s.step.to_string(), s.loss.map_or("-".into(), loss), loss(s.kept_loss)];
    table.extend(found.steps.iter().map(row));
    table
}

fn name(part: &WeightedAdapter) -> String {
    part.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn of_groups(found: &TrainedSweep, parts: &[WeightedAdapter]) -> GroupWeights {
    let adapters = parts.iter().map(name).collect();
    let all = GroupWeights { adapters, groups: found.groups.clone(), weights: found.weights.clone() };
    if found.by == SweepBy::Component.name() { all.means_of_components() } else { all }
}

impl FoundWeights {
    /// Returns the search for `--json`.
    pub fn json(&self) -> Value {
        match self {
            Self::Grid(found) => json!(found),
            Self::Trained(found) => json!(found),
        }
    }

    /// Returns the search for the page.
    pub fn picture(&self, parts: &[WeightedAdapter]) -> SearchPicture {
        match self {
            Self::Grid(found) => trials_picture(found, parts),
            Self::Trained(found) => steps_picture(found, parts),
        }
    }
}

/// Returns the curves of trials: over the first weight for one or two adapters, otherwise in the order of trials.
fn trials_picture(found: &Sweep, parts: &[WeightedAdapter]) -> SearchPicture {
    let name = |i: usize| name(&parts[i]);
    let percent = |x: f64| 100.0 * x;
    let sorted = |mut points: Vec<(f64, f64)>| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let over_first = || format!("over the weight of {}, in percent", name(0));
    let (over, title, curves) = match parts.len() {
        1 => {
            let points = found.trials.iter().map(|t| (percent(t.weights[0]), t.loss)).collect();
            ("percent", over_first(), vec![SearchCurve { name: name(0), points: sorted(points), marked: true }])
        }
        2 => {
            // Curves of the grid, and the one with the best trial.
            let best = found.best.weights[1];
            let grid = found.trials[..found.grid].iter().map(|t| t.weights[1]);
            let mut seconds: Vec<f64> = grid.chain([best]).collect();
            seconds.sort_by(f64::total_cmp);
            seconds.dedup();
            let curve = |second: f64| {
                let own = found.trials.iter().filter(|t| t.weights[1] == second);
                let points: Vec<(f64, f64)> = own.map(|t| (percent(t.weights[0]), t.loss)).collect();
                let best_of_all = if second == best { ", with the best trial" } else { "" };
                let name = format!("{} {second}{best_of_all}", name(1));
                SearchCurve { name, points: sorted(points), marked: second == best }
            };
            ("percent", over_first(), seconds.into_iter().map(curve).collect())
        }
        _ => {
            let points = found.trials.iter().enumerate().map(|(i, t)| (i as f64, t.loss)).collect();
            let curve = SearchCurve { name: "loss".into(), points, marked: true };
            ("trial", "in the order of trials".to_string(), vec![curve])
        }
    };
    let mut table = vec![["weights", "loss"].map(String::from).to_vec()];
    table.extend(found.trials.iter().map(|t| vec![shown(&t.weights), format!("{:.4}", t.loss)]));
    let best = found.trials.iter().position(|trial| *trial == found.best);
    SearchPicture { title, over, curves, base_loss: found.base_loss, table: ("trials", table), best, weights: None }
}

/// Returns the curves of losses over the steps that trained weights, and the weights.
fn steps_picture(found: &TrainedSweep, parts: &[WeightedAdapter]) -> SearchPicture {
    let kept = found.steps.iter().map(|s| (s.step as f64, s.kept_loss)).collect();
    let trained = found.steps.iter().filter_map(|s| Some((s.step as f64, s.loss?))).collect();
    SearchPicture {
        title: format!(
            "over the steps that trained weights by {}; the smallest is at step {}",
            found.by, found.best_step
        ),
        over: "step",
        curves: vec![
            SearchCurve { name: "rows kept back".into(), points: kept, marked: true },
            SearchCurve { name: "rows trained on".into(), points: trained, marked: false },
        ],
        base_loss: found.base_loss,
        table: ("steps", steps(found)),
        best: found.steps.iter().position(|s| s.step == found.best_step),
        weights: Some(of_groups(found, parts)),
    }
}
