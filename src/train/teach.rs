//! What a recipe's teachers say, stored before any training.

use super::prepare;
use crate::data::Cache;
use crate::error::{Error, Result};
use crate::methods::MethodSpec;
use crate::methods::distill::teach::{self, Taught};
use crate::models::{self, Heads, Load, Model};
use crate::native;
use crate::recipe::Plan;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Fills `out`, or the recipe's own cache folder.
pub fn teach(plan: &Plan, k: i64, out: Option<&Path>, stop: &AtomicBool) -> Result<(PathBuf, Taught)> {
    native::install_cpu_allocator();
    let recipe = &plan.recipe;
    let MethodSpec::Distill(spec) = &recipe.method else {
        return Err(Error::user(format!("{}: its method is {}", plan.file.display(), plan.method()))
            .hint("teachers teach in a recipe with method: { distill: … }"));
    };
    let Some(folder) = out.map(Path::to_path_buf).or_else(|| spec.cache.clone()) else {
        return Err(
            Error::user("where should it go?").hint("give --out DIR, or set method.distill.cache in the recipe")
        );
    };
    if let Some(threads) = recipe.run.threads {
        tch::set_num_threads(threads as i32);
    }
    prepare::cut(plan)?;
    let tokenizer = prepare::tokenizer(plan)?;
    let cache = Cache::new(&recipe.data.cache)?;
    let load = Load {
        device: models::device(&recipe.model.device)?,
        kind: prepare::kind(recipe.model.dtype),
        train_base: false,
        adapters: Vec::new(),
        heads: Heads::Tokens,
    };
    let student = Model::load(&recipe.model.path, load)?;
    let ground = prepare::ground(plan, tokenizer, &cache);
    let taught = teach::teach(spec, &ground, &student, k, &folder, stop)?;
    Ok((folder, taught))
}
