//! Opens models for inference: a base with adapters from disk, on a device.

use super::checkpoint::{SCORE, weights};
use super::dtype::Storage;
use super::family::Config;
use super::model::{Heads, LoadOptions, Model, not_a_language_model};
use super::reward::RewardScorer;
use super::vocabulary::VocabularyRows;
use crate::adapters::file;
use crate::error::{Error, Result};
use crate::native;
use crate::nn::Param;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// Loads a base with adapters from disk, for inference. Adapters are named by their index in `adapters`
/// (`0`, `1`, …); the first one is active. Fails for a reward model or a reward model's adapter.
pub fn open(base: &Path, adapters: &[PathBuf], device: Device, kind: Kind) -> Result<Model> {
    open_stored(base, adapters, device, kind, Storage::Auto)
}

/// Does the same with the base's weights held as `storage` says.
pub fn open_stored(base: &Path, adapters: &[PathBuf], device: Device, kind: Kind, storage: Storage) -> Result<Model> {
    let files = adapters.iter().map(|folder| file::read(folder)).collect::<Result<Vec<_>>>()?;
    if let Some((_, folder)) = files.iter().zip(adapters).find(|(f, _)| f.spec.has_scalar_head()) {
        return Err(not_a_language_model(base, Some(folder)));
    }
    let plans = files.iter().zip(adapters).map(|(file, folder)| file.plan(folder)).collect::<Result<Vec<_>>>()?;
    let named = plans.iter().enumerate().map(|(i, p)| (i.to_string(), &**p)).collect();
    let read: Vec<_> = files.iter().zip(adapters).map(|(file, folder)| (file, folder.as_path())).collect();
    let rows = if read.is_empty() { None } else { VocabularyRows::of_adapters(&Config::read(base)?, &read)? };
    let (vocabulary, heads) = (rows.as_ref(), Heads::Tokens);
    let load = LoadOptions { device, kind, storage, train_base: None, adapters: named, vocabulary, heads };
    let model = Model::load(base, load)?;
    for (i, (file, folder)) in files.iter().zip(adapters).enumerate() {
        file::load_into(model.params().adapter(i), &file.tensors, folder)?;
    }
    Ok(model)
}

/// Loads a reward model for inference: a directory with a scalar head, or a base and an adapter with one. Fails if
/// the head is not on disk, or if the probes in reward.json get other scores than when they were written.
pub fn open_scorer(base: &Path, adapter: Option<&Path>, device: Device, kind: Kind) -> Result<(Model, RewardScorer)> {
    let config = Config::read(base)?;
    // An adapter that was trained over quantised weights is used over them: its scores depend on them.
    let recorded = RewardScorer::read(adapter.unwrap_or(base))?.and_then(|scoring| scoring.quantised_base);
    let storage = recorded.and_then(|base| base.at_load()).map_or(Storage::Auto, Storage::Quantised);
    let file = adapter.map(|folder| file::read(folder).map(|file| (file, folder))).transpose()?;
    let read: Vec<_> = file.iter().map(|(file, folder)| (file, *folder)).collect();
    let rows = VocabularyRows::of_adapters(&config, &read)?;
    let (vocabulary, heads) = (rows.as_ref(), Heads::Score);
    let load = |adapters| LoadOptions { device, kind, storage, train_base: None, adapters, vocabulary, heads };
    let Some((file, folder)) = &file else {
        let weights = weights(base, &config)?;
        require_scalar_head(weights.shape(SCORE), &config, base, || {
            match config.raw["architectures"][0].as_str() {
            Some(class) if class.ends_with("ForSequenceClassification") => {
                "its head was not saved with it, and a random head gives random scores: save the model again".into()
            }
            _ => "this is a language model: train a reward model with method: reward, and give its adapter with --adapter".into(),
        }
        })?;
        let (model, scoring) = (Model::load(base, load(Vec::new()))?, RewardScorer::read_or_default(base, &config)?);
        scoring.check(&model, base)?;
        return Ok((model, scoring));
    };
    let shape = file.tensors.get(SCORE).map(|t| t.size());
    require_scalar_head(shape.as_deref(), &config, folder, || match file.spec.has_scalar_head() {
        true => "its head was not saved with it, and a random head gives random scores: save the adapter again".into(),
        false => "this is a language model's adapter: train a reward model's adapter with method: reward".into(),
    })?;
    let plan = file.plan(folder)?;
    let model = Model::load(base, load(vec![("0".into(), &*plan)]))?;
    file::load_into(model.params().adapter(0), &file.tensors, folder)?;
    let scoring = RewardScorer::read_or_default(folder, &config)?;
    scoring.check(&model, folder)?;
    Ok((model, scoring))
}

/// Fails if there is no scalar head, or if it gives more than one number. `why` is the hint for a missing head.
fn require_scalar_head(
    shape: Option<&[i64]>,
    config: &Config,
    folder: &Path,
    why: impl FnOnce() -> String,
) -> Result<()> {
    match shape {
        Some([1, width]) if *width == config.hidden_size => Ok(()),
        Some(shape) => Err(Error::user(format!(
            "{}: `{SCORE}` has shape {shape:?}, a scalar head on {} has [1, {}]",
            folder.display(),
            config.file().display(),
            config.hidden_size
        ))
        .hint("a reward model has one label (num_labels 1); is the base the one it was trained on?")),
        None => {
            Err(Error::user(format!("{}: no `{SCORE}`, the weight of a scalar head", folder.display())).hint(why()))
        }
    }
}

/// Fails if an adapter that [`open`] has loaded contains NaN or infinite values, with which every answer is nonsense.
pub fn require_finite_adapters(model: &Model, adapters: &[PathBuf]) -> Result<()> {
    for (i, folder) in adapters.iter().enumerate() {
        let broken = |p: &&Param| p.tensor.isfinite().all().int64_value(&[]) == 0;
        if let Some(p) = model.params().adapter(i).find(broken) {
            return Err(Error::user(format!(
                "{}: `{}` has NaN or infinite values",
                folder.join(file::TENSORS).display(),
                p.name
            ))
            .hint("the training run was not stable, or the file is damaged: use an earlier checkpoint"));
        }
    }
    Ok(())
}

/// Parses a device: `auto` (CUDA if there is one, otherwise CPU), `cpu`, `cuda` or `cuda:N`. Fails if it does not
/// exist. Also installs our allocator for tensors on the CPU, which counts and reuses their memory and places it in
/// large pages.
pub fn device(name: &str) -> Result<Device> {
    native::install_cpu_allocator();
    let cuda = |index: usize| {
        let count = tch::Cuda::device_count() as usize;
        if tch::Cuda::is_available() && index < count {
            Ok(Device::Cuda(index))
        } else {
            Err(Error::user(format!("device {name} not found: this machine has {count} usable CUDA devices"))
                .hint("see what is missing with: ft doctor; or use cpu"))
        }
    };
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(if tch::Cuda::is_available() { Device::Cuda(0) } else { Device::Cpu }),
        "cuda" => cuda(0),
        other => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(index) => cuda(index),
            None => Err(Error::user(format!("device `{other}` is not known")).hint("one of: auto, cpu, cuda, cuda:N")),
        },
    }
}
