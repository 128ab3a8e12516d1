//! What a recipe's teachers say, stored or written down before any training.

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

/// Fills `out`, or the recipe's own cache folder, with the k most likely tokens of each distribution.
pub fn teach(plan: &Plan, k: i64, out: Option<&Path>, stop: &AtomicBool) -> Result<(PathBuf, Taught)> {
    prepare::cut(plan)?;
    let plan = &chosen(plan)?;
    let spec = spec(plan)?;
    let Some(folder) = out.map(Path::to_path_buf).or_else(|| spec.cache.clone()) else {
        return Err(
            Error::user("where should it go?").hint("give --out DIR, or set method.distill.cache in the recipe")
        );
    };
    let tokenizer = prepare::tokenizer(plan)?;
    let taught = ready(plan, tokenizer, |ground, place| teach::teach(spec, ground, place, k, &folder, stop))?;
    Ok((folder, taught))
}

/// A teacher, ready to write answers to the recipe's prompts. The student need not be there.
pub fn writer(plan: &Plan) -> Result<Writer> {
    let plan = &chosen(plan)?;
    let spec = spec(plan)?;
    let tokenizer = Rc::new(ChatTokenizer::load(&spec.teachers[0].path, None)?);
    ready(plan, tokenizer, |ground, (device, kind)| Writer::open(spec, ground, device, kind))
}

/// The plan with its number formats chosen; the student need not be there.
fn chosen(plan: &Plan) -> Result<Plan> {
    Ok(prepare::choose_formats(plan, models::device(&plan.recipe.model.device)?)?.0)
}

fn spec(plan: &Plan) -> Result<&DistillSpec> {
    match &plan.recipe.method {
        MethodSpec::Distill(spec) => Ok(spec),
        _ => Err(Error::user(format!("{}: its method is {}", plan.file.display(), plan.method()))
            .hint("teachers teach in a recipe with method: { distill: … }")),
    }
}

/// Runs `f` with what rows are read with, and where and how teachers run.
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
