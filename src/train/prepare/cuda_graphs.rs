//! Checks that a run can record its passes as CUDA graphs (`run.cuda_graphs`).

use crate::error::{Error, Result};
use crate::models::Model;
use crate::recipe::sections::Recipe;
use tch::Device;

/// Returns true if forward and backward of the run are recorded.
pub fn records_passes(recipe: &Recipe) -> bool {
    recipe.run.cuda_graphs && recipe.method.passes_can_be_recorded()
}

/// Fails if `run.cuda_graphs` is set and the passes of the run on `device` cannot be recorded. `model` may be a sketch.
pub fn check(recipe: &Recipe, model: &Model, device: Device) -> Result<()> {
    if !recipe.run.cuda_graphs {
        return Ok(());
    }
    match hindrance(recipe, model, device) {
        None => Ok(()),
        Some(why) => Err(Error::user(format!("run.cuda_graphs: passes of this run cannot be recorded: {why}"))
            .hint("set run.cuda_graphs: false")),
    }
}

fn hindrance(recipe: &Recipe, model: &Model, device: Device) -> Option<&'static str> {
    let of_model = model.hindrance_to_recording(device);
    if of_model.is_some() || !recipe.method.passes_can_be_recorded() {
        return of_model;
    }
    let adapter = recipe.adapter.as_ref();
    if let Some(why) = model.hindrance_to_recorded_learning(device) {
        return Some(why);
    }
    if adapter.is_some_and(|adapter| adapter.as_lora().is_none()) {
        return Some("of adapters, only LoRA is recorded");
    }
    if adapter.and_then(|adapter| adapter.as_lora()).is_some_and(|lora| lora.dora) {
        return Some("DoRA keeps the norms of weights from pass to pass");
    }
    if adapter.is_some_and(|adapter| adapter.dropout() > 0.0) {
        return Some("dropout draws random numbers (set adapter.lora.dropout: 0)");
    }
    if adapter.is_none() && recipe.model.trained.layer_sampling().is_some() {
        return Some("layers that are trained in turn are not the same in each step");
    }
    None
}
