//! Writes the result of a run into `run.out`, next to checkpoints and metrics.
//!
//! The result is written and verified in a folder of its own. Its files are then moved into `run.out` one by one,
//! because a folder that also contains the run cannot be exchanged as a whole. A kill between two moves leaves a
//! mixture of two results. Therefore the files are moved out of a folder named [`MOVING_FOLDER`]: while it exists,
//! readers refuse the result, and the next start of the run completes the move. The report moves last, so that a report
//! in `run.out` belongs to the earlier result until everything else has been moved.

use super::checkpoint::{Checkpoints, TrainingState};
use super::optim::Optimiser;
use super::prepare::formats::result_kind;
use crate::convert::export;
use crate::convert::folder::{new_tokens, stop_tokens, template};
use crate::convert::verify::report::REPORT;
use crate::data::chat::{ChatTokenizer, NewToken};
use crate::error::Result;
use crate::fsutil::{MOVING_FOLDER, file_change, io_error, read_json};
use crate::methods::contract::SelectionMetric;
use crate::methods::parts::TRAINED_ADAPTER;
use crate::models::Model;
use crate::native;
use crate::recipe::plan::Plan;
use crate::recipe::sections::ResultChoice;
use crate::report;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

/// The tokenizer that a run trained with, and the tokens in it that the base's lacks.
pub struct RunVocabulary {
    /// With the recipe's chat template.
    pub tokenizer: Rc<ChatTokenizer>,
    /// The tokens that the recipe added.
    pub new_tokens: Vec<NewToken>,
}

/// Gives the model the weights that become the result, except a mean of checkpoints: loads the best checkpoint if the recipe
/// asks for it, and replaces weights by their averages if the optimiser has such.
pub fn choose_weights(
    plan: &Plan,
    model: &Model,
    checkpoints: &Checkpoints,
    state: &TrainingState,
    aim: SelectionMetric,
    mut optim: Optimiser,
) -> Result<()> {
    let best = state.best.filter(|_| plan.recipe.run.result == ResultChoice::Best);
    if let Some(best) = best.filter(|b| b.step != state.step) {
        checkpoints.restore_result(best.step, model, &mut optim)?;
        report::info(format!(
            "the result is the best checkpoint: step {} with validation {} {:.4}",
            best.step, aim.metric, best.value
        ));
    }
    // Verification reads the result back as a second model: the optimiser's memory is freed first.
    optim.finish();
    native::trim_cpu_memory();
    Ok(())
}

/// Writes the trained adapter or model into `run.out`, verified by reading it back.
pub fn export(plan: &Plan, model: &Model, vocabulary: &RunVocabulary) -> Result<()> {
    let recipe = &plan.recipe;
    let out = &recipe.run.out;
    let began = Instant::now();
    let saving = report::spinner("saving and verifying the result");
    let fresh = out.join("result.new");
    let (what, report) = match &recipe.adapter {
        Some(adapter) => {
            ("adapter", export::save_adapter(model, TRAINED_ADAPTER, adapter, &recipe.model.path, &fresh)?)
        }
        None => ("model", export::save_model(model, &fresh, result_kind(plan, model)?)?),
    };
    write_tokenizer(plan, vocabulary, &fresh)?;
    move_into_place(&fresh, out)?;
    saving.finish_and_clear();
    report::info(format!("{what} saved and verified in {}: {}", report::duration(began.elapsed()), out.display()));
    for c in &report.compatibility {
        report::info(format!("  read by {c}"));
    }
    Ok(())
}

/// Writes what the model was trained with into the result's folder, if it differs from the base's files: new tokens (its own
/// or those of the adapter that was continued), chat template and stop token.
fn write_tokenizer(plan: &Plan, vocabulary: &RunVocabulary, folder: &Path) -> Result<()> {
    let (recipe, tokenizer) = (&plan.recipe, &vocabulary.tokenizer);
    if let Some(continued) = recipe.adapter.as_ref().and_then(|adapter| adapter.continues()) {
        new_tokens::inherit_tokens(folder, &recipe.model.path, std::iter::once(continued))?;
    }
    new_tokens::write_new_tokens(folder, &vocabulary.new_tokens, tokenizer)?;
    let taught: Vec<u32> = tokenizer.undeclared_stop().filter(|_| recipe.method.generates_text()).into_iter().collect();
    let template = tokenizer.template().map(|t| t.source());
    if let Some(text) = template.filter(|_| recipe.data.template.is_some()) {
        template::write_template(folder, text)?;
    }
    stop_tokens::write_stop_tokens(folder, &recipe.model.path, &taught, template.as_slice())
}

/// Replaces an earlier result in `out` by the files of its subfolder `fresh`.
fn move_into_place(fresh: &Path, out: &Path) -> Result<()> {
    let moving = out.join(MOVING_FOLDER);
    file_change(|| fs::rename(fresh, &moving)).map_err(|e| io_error("moving", &moving, e))?;
    finish_interrupted_move(out)
}

/// Completes a move into `out` that was interrupted. Does nothing if there is none.
pub fn finish_interrupted_move(out: &Path) -> Result<()> {
    let moving = out.join(MOVING_FOLDER);
    if !moving.exists() {
        return Ok(());
    }
    if moving.join(REPORT).exists() {
        remove_result(out)?;
        let entries = fs::read_dir(&moving).map_err(|e| io_error("reading", &moving, e))?;
        let names = entries.map(|e| e.map(|e| e.file_name())).collect::<std::io::Result<Vec<_>>>();
        let names = names.map_err(|e| io_error("reading", &moving, e))?;
        let (last, first): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name == REPORT);
        for name in first.iter().chain(&last) {
            let target = out.join(name);
            file_change(|| fs::rename(moving.join(name), &target))
                .map_err(|e| io_error("moving into place", &target, e))?;
        }
    }
    file_change(|| fs::remove_dir(&moving)).map_err(|e| io_error("removing", &moving, e))
}

/// Removes the weight files of the earlier result, then its report. Without this, shards would remain where the new
/// result has a different number of them.
fn remove_result(out: &Path) -> Result<()> {
    let report = out.join(REPORT);
    if !report.exists() {
        return Ok(());
    }
    let earlier: serde_json::Value = read_json(&report)?;
    let names = earlier["files"].as_object().into_iter().flat_map(|files| files.keys());
    for path in names.map(|name| out.join(name)).filter(|path| path.exists()).chain([report.clone()]) {
        file_change(|| fs::remove_file(&path)).map_err(|e| io_error("removing", &path, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsutil::{refuse_unfinished_move, write_json};
    use serde_json::json;

    /// Writes a result with these weight files; every file contains `content`.
    fn write(folder: &Path, names: &[&str], content: &str) {
        fs::create_dir_all(folder).unwrap();
        names.iter().for_each(|name| fs::write(folder.join(name), content).unwrap());
        fs::write(folder.join("config.json"), content).unwrap();
        let files: serde_json::Map<_, _> = names.iter().map(|name| (name.to_string(), json!("sha"))).collect();
        write_json(&folder.join(REPORT), &json!({ "files": files, "content": content })).unwrap();
    }

    fn content(folder: &Path) -> Vec<(String, String)> {
        let entry = |e: std::io::Result<fs::DirEntry>| {
            let path = e.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap())
        };
        let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(entry).collect();
        found.sort();
        found
    }

    #[test]
    fn a_result_that_a_kill_broke_off_is_refused_and_then_whole() {
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let whole = ["model.safetensors"];
        for (before, after) in [(&shards[..], &whole[..]), (&whole, &shards), (&whole, &whole)] {
            let mut killed = 0;
            for at in 0.. {
                let folder = tempfile::tempdir().unwrap();
                let out = folder.path();
                write(out, before, "old");
                write(&out.join("result.new"), after, "new");
                let expected = content(&out.join("result.new"));
                let done = crate::fsutil::kill_at(at, || move_into_place(&out.join("result.new"), out));
                if done.is_some() {
                    assert_eq!(content(out), expected);
                    break;
                }
                killed += 1;
                if at > 0 {
                    assert!(
                        refuse_unfinished_move(out).unwrap_err().hints()[0].contains("ft resume"),
                        "killed at {at}"
                    );
                }
                // A second kill, during the recovery, does no further harm.
                let again = crate::fsutil::kill_at(1, || finish_interrupted_move(out));
                finish_interrupted_move(out).unwrap();
                if at == 0 {
                    assert!(again.is_some() && out.join("result.new").exists());
                    continue;
                }
                assert_eq!(content(out), expected, "killed at {at}");
                refuse_unfinished_move(out).unwrap();
            }
            assert!(killed >= 6, "{killed}");
        }
    }
}
