//! `ft merge --sweep`: weights by the loss on held-out rows.

use super::MergeJob;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::merge::page::{SearchCurve, SearchPicture};
use ft::error::Result;
use ft::eval::merge_losses::MergeLosses;
use ft::eval::sweep::{self, Sweep, Trial};
use ft::report;
use std::path::Path;

/// Searches weights, tells which are best, and gives them to the job's adapters.
pub(super) fn search_weights(job: &mut MergeJob, rows: &Path, limit: Option<usize>) -> Result<Sweep> {
    let losses = MergeLosses::open(&job.base, &job.parts, &job.plan, job.form, rows, limit)?;
    let found = sweep::sweep(&losses, &mut job.parts)?;
    let mut best: Vec<&Trial> = found.trials.iter().collect();
    best.sort_by(|a, b| a.loss.total_cmp(&b.loss));
    let mut table = vec![["weights", "loss"].map(String::from).to_vec()];
    let shown = |weights: &[f64]| weights.iter().map(f64::to_string).collect::<Vec<_>>().join("  ");
    table.extend(best.iter().take(8).map(|t| vec![shown(&t.weights), format!("{:.4}", t.loss)]));
    table.push(vec!["the base alone".into(), format!("{:.4}", found.base_loss)]);
    report::info(format!(
        "{} trials on {} rows, {} supervised tokens\n{}",
        found.trials.len(),
        found.rows,
        report::count(found.tokens as u64),
        report::table(&table)
    ));
    job.parts.iter_mut().zip(&found.best.weights).for_each(|(part, weight)| part.weight = *weight);
    Ok(found)
}

/// Returns the curves of a search: over the first weight for one or two adapters, otherwise in the order of trials.
pub(super) fn picture(found: &Sweep, parts: &[WeightedAdapter]) -> SearchPicture {
    let name = |i: usize| parts[i].folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let percent = |x: f64| 100.0 * x;
    let sorted = |mut points: Vec<(f64, f64)>| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let (over, title, curves) = match parts.len() {
        1 => {
            let points = found.trials.iter().map(|t| (percent(t.weights[0]), t.loss)).collect();
            let curve = SearchCurve { name: name(0), points: sorted(points) };
            ("percent", format!("over the weight of {}, in percent", name(0)), vec![curve])
        }
        2 => {
            // Curves of the grid, and the one with the best trial.
            let grid = found.trials[..found.grid].iter().chain([&found.best]);
            let mut seconds: Vec<f64> = grid.map(|t| t.weights[1]).collect();
            seconds.sort_by(f64::total_cmp);
            seconds.dedup();
            let curve = |second: f64| {
                let own = found.trials.iter().filter(|t| t.weights[1] == second);
                let points: Vec<(f64, f64)> = own.map(|t| (percent(t.weights[0]), t.loss)).collect();
                SearchCurve { name: format!("{} {second}", name(1)), points: sorted(points) }
            };
            ("percent", format!("over the weight of {}, in percent", name(0)), seconds.into_iter().map(curve).collect())
        }
        _ => {
            let points = found.trials.iter().enumerate().map(|(i, t)| (i as f64, t.loss)).collect();
            ("trial", "in the order of trials".to_string(), vec![SearchCurve { name: "loss".into(), points }])
        }
    };
    let shown = |weights: &[f64]| weights.iter().map(f64::to_string).collect::<Vec<_>>().join("  ");
    let mut table = vec![["weights", "loss"].map(String::from).to_vec()];
    table.extend(found.trials.iter().map(|t| vec![shown(&t.weights), format!("{:.4}", t.loss)]));
    SearchPicture { title, over, curves, base_loss: found.base_loss, table }
}
