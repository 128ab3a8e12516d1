//! Runs the teachers of a distillation recipe before training: stores their distributions, or lets them write answers.

use super::prepare;
use crate::data::{Cache, ChatTokenizer};
use crate::error::{Error, Result};
use crate::methods::distill::DistillSpec;
use crate::methods::distill::answers::Writer;
use crate::methods::distill::teach::{self, Taught};
use crate::methods::{Ground, MethodSpec};
use crate::models;
use crate::recipe::Plan;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use tch::{Device, Kind};

/// Fills `out`, or the recipe's cache folder, with the teachers' `k` most likely tokens at each position. Returns the
/// folder and a summary. Fails if neither folder is given.
pub fn teach(plan: &Plan, k: i64, out: Option<&Path>, stop: &AtomicBool) -> Result<(PathBuf, Taught)> {
    prepare::cut(plan)?;
    let plan = &chosen(plan)?;
    let spec = spec(plan)?;
    let Some(folder) = out.map(Path::to_path_buf).or_else(|| spec.cache.clone()) else {
        return Err(
            Error::user("no folder to write to").hint("give --out DIR, or set method.distill.cache in the recipe")
        );
    };
    let tokenizer = prepare::tokenizer(plan)?;
    let taught = ready(plan, tokenizer, |ground, place| teach::teach(spec, ground, place, k, &folder, stop))?;
    Ok((folder, taught))
}

/// Loads the first teacher for writing answers to the recipe's prompts. The student need not exist.
pub fn writer(plan: &Plan) -> Result<Writer> {
    let plan = &chosen(plan)?;
    let spec = spec(plan)?;
    let tokenizer = Rc::new(ChatTokenizer::load(&spec.teachers[0].path, None)?);
    ready(plan, tokenizer, |ground, (device, kind)| Writer::open(spec, ground, device, kind))
}

/// Returns the plan with its number formats chosen. The student need not exist.
fn chosen(plan: &Plan) -> Result<Plan> {
    Ok(prepare::choose_formats(plan, models::device(&plan.recipe.model.device)?)?.0)
}

fn spec(plan: &Plan) -> Result<&DistillSpec> {
    match &plan.recipe.method {
        MethodSpec::Distill(spec) => Ok(spec),
        _ => Err(Error::user(format!("{}: its method is {}", plan.file.display(), plan.method()))
            .hint("this command needs a recipe with method: { distill: … }")),
    }
}

/// Calls `f` with the settings for reading rows, and with the device and number format of the teachers.
fn ready<R>(
    plan: &Plan,
    tokenizer: Rc<ChatTokenizer>,
    f: impl FnOnce(&Ground, (Device, Kind)) -> Result<R>,
) -> Result<R> {
    let device = models::device(&plan.recipe.model.device)?;
    let recipe = &plan.recipe;
    if let Some(threads) = recipe.run.threads {
        tch::set_num_threads(threads as i32);
    }
    let cache = Cache::new(&recipe.data.cache)?;
    f(&prepare::ground(plan, tokenizer, &cache), (device, recipe.model.dtype.kind()))
}
