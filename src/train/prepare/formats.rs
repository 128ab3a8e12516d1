//! Chooses the number formats of a run where the recipe leaves them open.

use crate::error::Result;
use crate::machine;
use crate::model_files::is_model;
use crate::models::{Model, Storage, dtype};
use crate::recipe::plan::Plan;
use crate::recipe::sections::{ModelInit, Recipe};
use std::path::Path;
use tch::{Device, Kind};

/// Resolves `dtype: auto` of the model and its teachers for the device. Returns the plan and the reason for the model's
/// format.
pub fn choose_formats(plan: &Plan, device: Device) -> Result<(Plan, &'static str)> {
    let mut plan = plan.clone();
    let model = &plan.recipe.model;
    let there = |folder: &&Path| model.init == ModelInit::Pretrained && is_model(folder);
    // A student that does not exist yet gets the format of its teacher.
    let teacher = plan.recipe.method.teachers().first().map(|t| t.path.as_path());
    let folder = Some(model.path.as_path()).filter(there).or(teacher.filter(there));
    let chosen = model.dtype.choose(device, folder)?;
    plan.recipe.model.dtype = chosen.dtype;
    for teacher in plan.recipe.method.teachers_mut() {
        if let Some(dtype) = &mut teacher.dtype {
            *dtype = dtype.choose(device, Some(&teacher.path))?.dtype;
        }
    }
    Ok((plan, chosen.why))
}

/// Decides how frozen weights are held if the recipe leaves it open.
///
/// On the CPU, copies in the arithmetic's format save a few per cent of a step's time, because weights need not be
/// widened. They are made if they take less than half of the free memory. The choice has no effect on the numbers of
/// the run.
pub fn storage(recipe: &Recipe, device: Device) -> Result<Storage> {
    let model = &recipe.model;
    if let Some(format) = model.quantisation() {
        return Ok(Storage::Quantised(format));
    }
    if model.storage != Storage::Auto || device != Device::Cpu || model.init != ModelInit::Pretrained {
        return Ok(model.storage);
    }
    let (_, numbers) = dtype::stored_kind_and_count(&model.path)?;
    let copies = numbers * model.dtype.kind().elt_size_in_bytes() as u64;
    Ok(if 2 * copies < machine::SystemMemory::read().free { Storage::Copy } else { Storage::Auto })
}

/// Returns the number format of the result of full fine-tuning: that of the base's files, or for a model with random
/// initial weights that of the arithmetic.
pub fn result_kind(plan: &Plan, model: &Model) -> Result<Kind> {
    match plan.recipe.model.init {
        ModelInit::Pretrained => dtype::stored_kind(&plan.recipe.model.path),
        ModelInit::Random => Ok(model.kind()),
    }
}
