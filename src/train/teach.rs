//! Runs the teachers of a distillation recipe before training: stores their distributions, or lets them write answers.

use super::prepare::{formats, rows, student};
use crate::data::cache::TokenCache;
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::methods::MethodSpec;
use crate::methods::distill::answers::AnswerWriter;
use crate::methods::distill::fill_cache::{self, TeachSummary};
use crate::methods::distill::spec::DistillSpec;
use crate::methods::rows::DataContext;
use crate::models;
use crate::recipe::plan::Plan;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use tch::{Device, Kind};

/// Fills `out`, or the recipe's cache folder, with the teachers' `k` most likely tokens at each position. Returns the
/// folder and a summary. Fails if neither folder is given.
pub fn teach(plan: &Plan, k: i64, out: Option<&Path>, stop: &AtomicBool) -> Result<(PathBuf, TeachSummary)> {
    student::ensure_cut_model(plan)?;
    let mut plan = with_chosen_formats(plan)?;
    let (tokenizer, _) = rows::load_tokenizer(&mut plan)?;
    let spec = spec(&plan)?;
    let Some(folder) = out.map(Path::to_path_buf).or_else(|| spec.cache.clone()) else {
        return Err(
            Error::user("no folder to write to").hint("give --out DIR, or set method.distill.cache in the recipe")
        );
    };
    let taught = with_teacher_context(&plan, tokenizer, |ground, place| {
        fill_cache::fill_cache(spec, ground, place, k, &folder, stop)
    })?;
    Ok((folder, taught))
}

/// Loads the first teacher for writing answers to the recipe's prompts. The student need not exist.
pub fn answer_writer(plan: &Plan) -> Result<AnswerWriter> {
    let plan = &with_chosen_formats(plan)?;
    let spec = spec(plan)?;
    let tokenizer = Rc::new(ChatTokenizer::load(&spec.teachers[0].path, None)?);
    with_teacher_context(plan, tokenizer, |ground, (device, kind)| AnswerWriter::open(spec, ground, device, kind))
}

/// Returns the plan with its number formats chosen. The student need not exist.
fn with_chosen_formats(plan: &Plan) -> Result<Plan> {
    Ok(formats::choose_formats(plan, models::device(&plan.recipe.model.device)?)?.0)
}

fn spec(plan: &Plan) -> Result<&DistillSpec> {
    match &plan.recipe.method {
        MethodSpec::Distill(spec) => Ok(spec),
        _ => Err(Error::user(format!("{}: its method is {}", plan.file.display(), plan.method()))
            .hint("this command needs a recipe with method: { distill: … }")),
    }
}

/// Calls `f` with the settings for reading rows, and with the device and number format of the teachers.
fn with_teacher_context<R>(
    plan: &Plan,
    tokenizer: Rc<ChatTokenizer>,
    f: impl FnOnce(&DataContext, (Device, Kind)) -> Result<R>,
) -> Result<R> {
    let device = models::device(&plan.recipe.model.device)?;
    let recipe = &plan.recipe;
    if let Some(threads) = recipe.run.threads {
        tch::set_num_threads(threads as i32);
    }
    let cache = TokenCache::new(&recipe.data.cache)?;
    f(&rows::data_context(plan, tokenizer, &cache), (device, recipe.model.dtype.kind()))
}
