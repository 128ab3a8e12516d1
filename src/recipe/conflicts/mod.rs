//! Finds settings that are valid by themselves but wrong together: contradictions, and settings that would have no
//! effect.
//!
//! A setting that equals its default is never reported as having no effect: a recipe with all defaults written out
//! (`ft recipe show`) is valid.

mod adapter;
mod distillation;
mod model;
mod optimiser;
mod preference;
mod rows;
mod run;
mod sampling;

use super::mistakes::Mistake;
use super::written::WrittenRecipe;

/// Applies all rules about two or more settings.
pub(super) fn check(written: &WrittenRecipe, mistakes: &mut Vec<Mistake>) {
    let rules = [
        model::model,
        model::trained,
        model::new_tokens,
        adapter::virtual_tokens,
        adapter::lora,
        model::quantisation,
        preference::preference,
        rows::batch,
        optimiser::optimiser,
        optimiser::groups,
        optimiser::masters,
        optimiser::schedule,
        optimiser::betas,
        run::length,
        run::validation,
        run::result,
        run::evaluation,
        run::tf32,
        run::offload,
        run::cuda_graphs,
        rows::overflow,
        rows::weights,
        run::places,
        sampling::check,
        distillation::check,
    ];
    for rule in rules {
        rule(written, mistakes);
    }
}
