//! `ft check`: examines a recipe and its data without training.
//!
//! Reads and tokenises the rows, looks for duplicates and overlap, and predicts memory and disk. The model's weights
//! are not loaded.

use super::fit::usable_memory;
use super::memory::{self, ResourceEstimate};
use super::prepare::vocabulary::AddedVocabulary;
use super::prepare::{self, Prepared, cuda_graphs};
use super::recurrence::truncation;
use super::step::router_terms;
use crate::data::dataset::DatasetSummary;
use crate::data::encode::Example;
use crate::data::inspect::{self, Duplicates, SplitOverlap};
use crate::error::Result;
use crate::machine;
use crate::recipe::plan::Plan;
use crate::report;
use serde::Serialize;

/// Result of `ft check`.
#[derive(Debug, Serialize)]
pub struct PlanCheck {
    /// Summary of the training rows.
    pub train: DatasetSummary,
    /// Summary of the validation rows.
    pub valid: Option<DatasetSummary>,
    /// Training rows that are identical.
    pub duplicates: Duplicates,
    /// Validation rows that are also training rows.
    pub overlap: Option<SplitOverlap>,
    /// Optimiser steps of the run.
    pub steps: u64,
    /// Number of parameters of the model.
    pub parameters: u64,
    /// Number of parameters that compute a token: fewer than all in a model with experts.
    pub active: u64,
    /// Number of trained parameters.
    pub trained: u64,
    /// The tokens that the run adds to the vocabulary.
    pub vocabulary: Option<AddedVocabulary>,
    /// Adapted modules by name.
    pub adapted: Vec<(String, usize)>,
    /// Number of trained virtual tokens before every sequence.
    pub virtual_tokens: u64,
    /// Tokens in the longest packed row.
    pub longest_row: usize,
    /// Predicted memory and disk space.
    pub needs: ResourceEstimate,
    /// Free memory in bytes; `null` if the system does not report it.
    pub memory_free: Option<u64>,
    /// Free disk space in bytes; `null` if the system does not report it.
    pub disk_free: Option<u64>,
    /// Problems that would stop the run or make its result misleading.
    pub problems: Vec<String>,
    /// Lengths of the training examples, drawn as text.
    #[serde(skip)]
    pub histogram: String,
    /// The first examples, with the trained tokens marked.
    #[serde(skip)]
    pub previews: Vec<String>,
}

/// Number of rows in the preview of supervised tokens.
const SHOWN: usize = 2;

/// Prepares a plan as a run would and reports what it found, without training. `colour`: mark supervised tokens by
/// colour.
pub fn check(plan: &Plan, colour: bool) -> Result<PlanCheck> {
    let prepared = prepare::prepare(plan)?;
    let Prepared { plan, tokenizer, rows, .. } = &prepared;
    let train = rows.train();
    let model = prepared.sketch()?;
    router_terms(plan, &model)?;
    truncation(plan, &model)?;
    cuda_graphs::check(&plan.recipe, &model, prepared.device)?;
    let (trained, parameters) = memory::count(plan, &model);
    let longest_row = rows.longest_row();
    let supervised = (longest_row as f64 * train.summary.supervised_share()).ceil() as u64;
    let (memory_free, disk_free) = free(plan, prepared.device);
    let preview = |e: &Example| inspect::preview(e, tokenizer, colour);
    let mut check = PlanCheck {
        duplicates: rows.duplicates(),
        overlap: rows.overlap(),
        train: train.summary.clone(),
        valid: rows.valid().map(|v| v.summary.clone()),
        steps: prepared.total_steps,
        parameters,
        active: model.active_parameters(),
        trained,
        vocabulary: prepared.vocabulary.clone(),
        adapted: plan.recipe.adapter.as_ref().map_or_else(Vec::new, |a| memory::count_adapted_modules(&model, a)),
        virtual_tokens: model.virtual_tokens() as u64,
        longest_row,
        needs: memory::predict(&prepared, plan, &model, (longest_row as u64, supervised), memory_free),
        memory_free,
        disk_free,
        problems: Vec::new(),
        histogram: inspect::histogram(train.lengths, Some(plan.recipe.batch.max_len)),
        previews: rows.preview(SHOWN)?.iter().map(preview).collect::<Result<_>>()?,
    };
    check.problems = problems(&check);
    Ok(check)
}

fn free(plan: &Plan, device: tch::Device) -> (Option<u64>, Option<u64>) {
    (usable_memory(plan, device), machine::free_disk(&plan.recipe.run.out))
}

fn problems(c: &PlanCheck) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(free) = c.memory_free.filter(|free| *free < c.needs.memory) {
        found.push(format!(
            "memory: about {} are needed, {} are free; `ft train --fit` chooses batch.tokens, run.replay, run.mlp_tile and run.offload",
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
    if let Some(overlap) = c.overlap.as_ref()
        && let Some((train, valid)) = overlap.first.first()
    {
        found.push(format!(
            "{} validation rows are also training rows (first: {valid} is {train}); validation would look too good",
            overlap.rows
        ));
    }
    found
}
