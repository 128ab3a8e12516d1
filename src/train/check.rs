//! `ft check`: everything before the first step, told before it costs anything.

use super::memory::{self, Needs};
use super::prepare::{self, Prepared};
use crate::data::quality;
use crate::data::{Dataset, Loader, Summary};
use crate::error::Result;
use crate::machine;
use crate::recipe::Plan;
use crate::report;
use serde::Serialize;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Check {
    pub train: Summary,
    pub valid: Option<Summary>,
    /// Groups of training rows that are the same, by line.
    pub duplicates: Vec<Vec<usize>>,
    /// Validation rows that are also training rows: (training line, validation line).
    pub overlap: Vec<(usize, usize)>,
    pub steps: u64,
    pub parameters: u64,
    pub trained: u64,
    /// Adapted modules by name.
    pub adapted: Vec<(String, usize)>,
    /// Tokens in the longest packed row.
    pub longest_row: usize,
    pub needs: Needs,
    /// Memory and disk that there is, in bytes; `null` where the system does not tell.
    pub memory_free: Option<u64>,
    pub disk_free: Option<u64>,
    /// What would stop the run or spoil its result.
    pub problems: Vec<String>,
    #[serde(skip)]
    pub histogram: String,
    #[serde(skip)]
    pub previews: Vec<String>,
}

/// Rows shown with their supervised tokens.
const SHOWN: usize = 2;

/// Goes through a plan without training.
pub fn check(plan: &Plan, colour: bool) -> Result<Check> {
    let prepared = prepare::prepare(plan)?;
    let Prepared { tokenizer, train, valid, .. } = &prepared;
    let model = prepared.load_model(false)?;
    let (trained, parameters) = memory::count(plan, &model);
    let longest_row = longest_row(prepared.loader.clone(), train);
    let supervised = (longest_row as f64 * train.summary.supervised_share()).ceil() as u64;
    let lengths: Vec<usize> = train.examples.iter().map(|e| e.ids.len()).collect();
    let (memory_free, disk_free) = free(plan, prepared.device);
    let preview = |e| quality::preview(e, tokenizer, colour);
    let mut check = Check {
        duplicates: quality::duplicates(&train.examples),
        overlap: valid.as_ref().map_or(Vec::new(), |v| quality::overlap(&train.examples, &v.examples)),
        train: train.summary.clone(),
        valid: valid.as_ref().map(|v| v.summary.clone()),
        steps: prepared.total,
        parameters,
        trained,
        adapted: memory::adapted(&model),
        longest_row,
        needs: memory::predict(plan, &model, trained, longest_row as u64, supervised),
        memory_free,
        disk_free,
        problems: Vec::new(),
        histogram: quality::histogram(&lengths, Some(plan.recipe.batch.max_len)),
        previews: train.examples.iter().take(SHOWN).map(preview).collect::<Result<_>>()?,
    };
    check.problems = problems(&check);
    Ok(check)
}

/// The longest packed row of the first epoch.
fn longest_row(mut loader: Loader, train: &Dataset) -> usize {
    let total = |row: &Vec<usize>| row.iter().map(|&i| train.examples[i].ids.len()).sum::<usize>();
    (0..loader.steps_per_epoch()).filter_map(|_| loader.next().rows.iter().map(total).max()).max().unwrap_or(0)
}

fn free(plan: &Plan, device: tch::Device) -> (Option<u64>, Option<u64>) {
    let memory = match device {
        tch::Device::Cuda(i) => crate::native::cuda_capacity(i).ok().map(|(free, _)| free),
        _ => Some(machine::Memory::read().free).filter(|free| *free > 0),
    };
    (memory, machine::free_disk(&plan.recipe.run.out))
}

fn problems(c: &Check) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(free) = c.memory_free.filter(|free| *free < c.needs.memory) {
        found.push(format!(
            "memory: about {} are needed, {} are free; lower batch.tokens, or set run.replay: all",
            report::bytes(c.needs.memory),
            report::bytes(free)
        ));
    }
    if let Some(free) = c.disk_free.filter(|free| *free < c.needs.disk) {
        found.push(format!(
            "disk: about {} are needed, {} are free; lower run.keep or choose another run.out",
            report::bytes(c.needs.disk),
            report::bytes(free)
        ));
    }
    if let Some((train, valid)) = c.overlap.first() {
        found.push(format!(
            "{} validation rows are also training rows (first: line {valid} is line {train}); validation would flatter the model",
            c.overlap.len()
        ));
    }
    found
}
