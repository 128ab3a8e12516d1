//! `ft merge --method soup` and `greedy_soup`: means of adapters.

use super::MergeJob;
use ft::adapters::merging::WeightedAdapter;
use ft::adapters::merging::plan::MergeShares;
use ft::convert::merge::search_section::{SearchCurve, SearchPicture};
use ft::error::{Error, Result};
use ft::eval::merge_losses::MergeLosses;
use ft::eval::soup::{GreedySoup, equal_weights, greedy_soup};
use ft::report;
use std::path::Path;

/// A greedy soup, with the names of the adapters that were tried.
pub(super) struct ChosenSoup {
    pub soup: GreedySoup,
    names: Vec<String>,
}

/// Gives the job's adapters the weights of a soup, if its method is one, and leaves those out that a greedy soup does not
/// take, which it reports. `rows`: what it is chosen by. Fails for settings that contradict the method.
pub(super) fn cook(job: &mut MergeJob, rows: Option<&Path>, sweeps: bool) -> Result<Option<ChosenSoup>> {
    let (name, shares, count) = (job.plan.named.name, job.plan.named.shares, job.parts.len());
    match (shares, rows) {
        (MergeShares::Chosen, None) => {
            return Err(Error::user("--method greedy_soup needs rows to choose adapters by")
                .hint("--rows FILE: held-out rows, of which `ft eval` needs others"));
        }
        (MergeShares::Given | MergeShares::Equal, Some(_)) => {
            return Err(Error::user(format!("--rows has no effect: `{name}` chooses no adapters"))
                .hint("choose --method greedy_soup, or search weights: --sweep FILE"));
        }
        _ => {}
    }
    if shares == MergeShares::Given {
        return Ok(None);
    }
    if sweeps {
        return Err(Error::user(format!("--sweep cannot be combined with `{name}`: a soup has equal weights"))
            .hint("leave out --sweep, or choose --method linear"));
    }
    let weight = |part: &WeightedAdapter| part.weights.common().filter(|weight| *weight != 1.0);
    if let Some((part, weight)) = job.parts.iter().find_map(|part| Some((part, weight(part)?))) {
        return Err(Error::user(format!("{}={weight}: a soup has equal weights", part.folder.display()))
            .hint("leave out the weight, or choose --method linear"));
    }
    let Some(rows) = rows else {
        set_weights(&mut job.parts, &(0..count).collect::<Vec<_>>());
        return Ok(None);
    };
    let losses = MergeLosses::open(&job.base, &job.parts, &job.plan, job.form, rows, None)?;
    let soup = greedy_soup(&losses, &mut job.parts)?;
    let chosen = ChosenSoup { names: job.parts.iter().map(label).collect(), soup };
    let mut table = chosen.table();
    table.push(vec!["the base alone".into(), format!("{:.4}", chosen.soup.base_loss), String::new(), String::new()]);
    report::info(format!(
        "{} of {count} adapters are in the soup, loss {:.4} on {} rows, {} supervised tokens\n{}",
        chosen.soup.members.len(),
        chosen.soup.loss,
        chosen.soup.rows,
        report::count(chosen.soup.tokens as u64),
        report::table(&table)
    ));
    set_weights(&mut job.parts, &chosen.soup.members);
    let mut place = 0..count;
    job.parts.retain(|_| place.next().is_some_and(|i| chosen.soup.members.contains(&i)));
    Ok(Some(chosen))
}

fn set_weights(parts: &mut [WeightedAdapter], members: &[usize]) {
    let weights = equal_weights(parts.len(), members);
    parts.iter_mut().zip(weights).for_each(|(part, weight)| part.weights = weight.into());
}

/// Returns the last part of an adapter's folder; of a checkpoint, with the run that it is of.
fn label(part: &WeightedAdapter) -> String {
    let last = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match part.companions == part.folder {
        true => last(&part.folder),
        false => format!("{} {}", last(&part.companions), last(&part.folder)),
    }
}

impl ChosenSoup {
    fn table(&self) -> Vec<Vec<String>> {
        let mut table = vec![["adapter", "loss alone", "loss of the soup with it", ""].map(String::from).to_vec()];
        table.extend(self.soup.trials.iter().map(|trial| {
            let [alone, with] = [self.soup.alone[trial.adapter], trial.loss].map(|loss| format!("{loss:.4}"));
            vec![self.names[trial.adapter].clone(), alone, with, if trial.kept { "kept" } else { "left out" }.into()]
        }));
        table
    }

    /// Returns the losses as a picture, over the adapters in the order in which they were tried.
    pub fn picture(&self) -> SearchPicture {
        let place = |i: usize| (i + 1) as f64;
        let trials = || self.soup.trials.iter().enumerate();
        let alone = trials().map(|(i, trial)| (place(i), self.soup.alone[trial.adapter])).collect();
        let with = trials().map(|(i, trial)| (place(i), trial.loss)).collect();
        SearchPicture {
            title: "of each adapter alone, and of the soup with it".into(),
            over: "adapter",
            curves: vec![
                SearchCurve { name: "the soup with it".into(), points: with, marked: true },
                SearchCurve { name: "alone".into(), points: alone, marked: false },
            ],
            base_loss: self.soup.base_loss,
            table: ("trials", self.table()),
            best: None,
            weights: None,
        }
    }
}
