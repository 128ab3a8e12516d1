//! Saves adapters and models from memory, and verifies every save.
//!
//! A directory is written under a temporary name, read back into a fresh model and compared with the model in memory.
//! Only then it is moved into place, with `export_report.json` inside. A directory that fails the comparison is kept as
//! `NAME.failed`.

pub mod adapter_folder;
pub(super) mod publish;
mod reward_folder;

use super::folder::companions::{MODEL_FILES, copy_companion_files, write_text};
use super::folder::config_file::{dtype_keys, dtype_name, write_config};
use super::folder::disk_space::check_disk_space;
use super::quantised_base;
use super::verify::compatibility;
use super::verify::kind::{ExportKind, written_tensors};
use super::verify::report::ExportReport;
use super::verify::{verify, verify_adapter};
use crate::adapters::AdapterSpec;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::models::{FileTensor, Heads, Model, QuantisedBase, file_tensors};
use crate::nn::Param;
use crate::nn::safetensors::{SHARD_BYTES, TensorHeader, write_model};
use crate::nn::weight::cast;
use crate::nn::weights;
use adapter_folder::{with_named_targets, write_adapter_folder};
use publish::{publish, tensor_entry};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Kind;

/// Writes an adapter of `model` as a PEFT directory and verifies it. `base` is the folder of the model it was trained
/// on.
pub fn save_adapter(
    model: &Model,
    adapter: &str,
    spec: &AdapterSpec,
    base: &Path,
    folder: &Path,
) -> Result<ExportReport> {
    let id = model.adapter_id(adapter).ok_or_else(|| Error::bug(format!("no adapter `{adapter}` to save")))?;
    let corrects = spec.corrects_quantisation() || spec.continues().map_or(Ok(false), quantised_base::is_correction)?;
    let mut spec = spec.clone();
    let tensors = spec.publish(model.adapter_tensors(id));
    let adapted = tensors.keys().filter_map(|name| spec.module_of(name)).collect();
    let mut spec = with_named_targets(&spec, &adapted, model.params().base().map(|p| p.name.as_str()));
    let module = |p: &Param| p.name.strip_suffix(".weight").is_some_and(|m| adapted.contains(m));
    spec.set_base_sizes(model.sizes());
    spec.set_transposed(model.params().base().any(|p| p.transposed && module(p)));
    publish(folder, |temp| {
        let named = tensors.iter().map(|(name, t)| (name.as_str(), t));
        write_adapter_folder(temp, &spec, &base.to_string_lossy(), base, named)?;
        if model.heads() == Heads::Score {
            let pad = model.with_adapter(Some(adapter), |m| reward_folder::complete_folder(m, temp))?;
            write_text(&temp.join("README.md"), &reward_folder::adapter_card(&base.to_string_lossy(), pad))?;
        }
        let mut report = model.with_adapter(Some(adapter), |m| verify_adapter(m, temp, base, &tensors))?;
        if let Some(QuantisedBase::Loaded { corrected, format }) = &mut report.quantised_base
            && corrects
        {
            *corrected = true;
            compatibility::require_quantised_base(&mut report.compatibility, format.linear);
        }
        Ok(report)
    })
}

/// Writes the base weights of `model`, without adapters, as a Hugging Face directory in `dtype` and verifies it.
pub fn save_model(model: &Model, folder: &Path, dtype: Kind) -> Result<ExportReport> {
    let tensors = written_tensors(model);
    let files: BTreeMap<String, FileTensor> =
        file_tensors(model.config(), tensors.iter().map(|(name, t)| (*name, t.size())))
            .into_iter()
            .map(|tensor| (tensor.name.clone(), tensor))
            .collect();
    let entries = files.values().map(|t| tensor_entry(&t.name, &t.shape, dtype)).collect::<Result<Vec<_>>>()?;
    let values = |name: &str| files[name].values(|part| Ok(cast(tensors[part], dtype)));
    publish(folder, |temp| {
        check_disk_space(temp, entries.iter().map(TensorHeader::bytes).sum())?;
        write_model(temp, &entries, SHARD_BYTES, |e| Ok(weights::bytes(&values(&e.name)?)))?;
        copy_companion_files(model.folder(), temp, MODEL_FILES)?;
        if model.heads() == Heads::Score {
            let pad = reward_folder::complete_folder(model, temp)?;
            let key = dtype_keys(&model.config().raw)[0];
            fsutil::write_json(
                &temp.join("config.json"),
                &reward_folder::reward_config(model.config(), (key, dtype_name(dtype)?), pad)?,
            )?;
        } else {
            write_config(model.config(), temp, Some(dtype))?;
        }
        model.with_adapter(None, |m| verify(m, temp, ExportKind::Model))
    })
}
