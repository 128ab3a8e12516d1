//! Reads the adapter in a checkpoint of a run, `RUN/checkpoints/step-N`.
//!
//! A checkpoint has the trained tensors alone. What the adapter was trained with besides (chat template, new tokens, stop
//! tokens, how the base was quantised) is in the run's result, which is the same for all its checkpoints; so the run must
//! be finished.

use crate::adapters::file;
use crate::adapters::merging::WeightedAdapter;
use crate::adapters::{AdapterFile, AdapterSpec};
use crate::error::{Error, Result};
use crate::fsutil::{read_json, sha256};
use crate::nn::Weights;
use crate::recipe::plan::Plan;
use crate::runs::folder::{CHECKPOINT_MANIFEST, CHECKPOINT_WEIGHTS, PLAN};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// What the names of the trained adapter's tensors begin with in a checkpoint.
const TRAINED: &str = "0/";

/// Returns the folder of the run that a checkpoint belongs to; `None` for any other folder.
pub(super) fn run_of(folder: &Path) -> Option<PathBuf> {
    let is_checkpoint = [CHECKPOINT_WEIGHTS, CHECKPOINT_MANIFEST].iter().all(|file| folder.join(file).is_file());
    let folder = folder.canonicalize().ok().filter(|_| is_checkpoint)?;
    let run = folder.parent()?.parent()?;
    run.join(PLAN).is_file().then(|| run.to_path_buf())
}

/// Reads the adapter in a checkpoint of `run`. Fails for a damaged checkpoint, for a run without result, and for one that
/// trains no adapter.
pub(super) fn read(folder: &Path, run: &Path, weight: f64) -> Result<WeightedAdapter> {
    let weights = folder.join(CHECKPOINT_WEIGHTS);
    let manifest: BTreeMap<String, String> = read_json(&folder.join(CHECKPOINT_MANIFEST))?;
    if manifest.get(CHECKPOINT_WEIGHTS) != Some(&sha256(&weights)?) {
        return Err(Error::user(format!("{}: its SHA-256 is not the one in {CHECKPOINT_MANIFEST}", weights.display()))
            .hint("the checkpoint is damaged: choose another one of the run"));
    }
    let recipe = Plan::read(&run.join(PLAN))?.recipe;
    let Some(mut spec) = recipe.adapter else {
        return Err(Error::user(format!("{}: a checkpoint of a run that trains no adapter", folder.display()))
            .hint("its result is a whole model; ft merge takes adapters"));
    };
    if !run.join(file::CONFIG).is_file() {
        return Err(Error::user(format!(
            "{}: the run has no result yet, and a checkpoint does not say with which chat template and base it was trained",
            folder.display()
        ))
        .hint(format!("finish the run first: ft resume {}", run.display())));
    }
    let result = file::read(run)?;
    let own = |(name, tensor): (String, Tensor)| Some((name.strip_prefix(TRAINED)?.to_string(), tensor));
    let tensors = spec.publish(Weights::open_file(&weights)?.all().into_iter().filter_map(own).collect());
    check_names(folder, &spec, &tensors, &result)?;
    let base = Some(recipe.model.path.to_string_lossy().into_owned());
    let file = AdapterFile { spec, base, tensors, tables: result.tables };
    Ok(WeightedAdapter { folder: folder.into(), companions: run.into(), file, weights: weight.into() })
}

/// Fails if a checkpoint lacks tensors that the run's result has: some are saved with the result alone.
fn check_names(
    folder: &Path,
    spec: &AdapterSpec,
    tensors: &BTreeMap<String, Tensor>,
    result: &AdapterFile,
) -> Result<()> {
    if spec.why_not_merged().is_some() {
        return Ok(()); // refused later, with the reason
    }
    match result.tensors.keys().find(|name| !tensors.contains_key(*name)) {
        None => Ok(()),
        Some(name) => {
            Err(Error::user(format!("{}: the checkpoint lacks `{name}`, which the run's result has", folder.display()))
                .hint("merge the result of the run instead"))
        }
    }
}
