//! Writes the folder of an adapter that a program reads in PEFT's files.

use super::{RuntimeChoice, choose_adapter};
use crate::adapters::merging::WeightedAdapter;
use crate::adapters::{AdapterFile, HEAD, file};
use crate::convert::export::adapter_folder::write_adapter_folder;
use crate::convert::folder::destination::Destination;
use crate::convert::merge::adapters::inherit_training;
use crate::convert::quantised_base;
use crate::convert::verify::compatibility::{self, Compatibility, Runtime, answer_of};
use crate::convert::verify::report::{ExportVerdict, REPORT, WeightFile, weight_file};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::models::{self, Config, QuantisedBase};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is written, and to where.
pub struct RuntimeAdapterOptions<'a> {
    /// The program.
    pub runtime: Runtime,
    /// The model that the adapter belongs to.
    pub base: &'a Path,
    /// The folder to write.
    pub out: &'a Path,
    /// Replace an existing adapter.
    pub force: bool,
}

/// Describes a written adapter: export_report.json in its folder, and printed as JSON by `ft export --json`.
#[derive(Debug, Serialize)]
pub struct AdapterFolderSummary {
    /// Always `passed`: an adapter that differs from what was to be written is not moved into place.
    pub verdict: ExportVerdict,
    /// Always `adapter`.
    pub export: &'static str,
    /// The form in which it was written, and why.
    #[serde(rename = "for")]
    pub choice: RuntimeChoice,
    /// The adapter that it was made of.
    pub adapter: PathBuf,
    /// The model that it belongs to.
    pub base: PathBuf,
    /// The folder.
    pub out: PathBuf,
    /// A short description, such as `lora r16`.
    pub description: String,
    /// Number of tensors that were read back and compared bit for bit with what was to be written.
    pub tensors: usize,
    /// Size and SHA-256 of the weight file, by name.
    pub files: BTreeMap<String, WeightFile>,
    /// How the base was quantised when the adapter was trained, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantised_base: Option<QuantisedBase>,
    /// Which programs read the folder.
    pub compatibility: Vec<Compatibility>,
    /// The version of ft that wrote the folder.
    pub ft_version: &'static str,
}

/// Writes the adapter `part` as it is or as a plain LoRA, whichever the program reads. The files are read back and compared before
/// they are moved into place. Fails if the program reads neither.
pub fn write_adapter(options: &RuntimeAdapterOptions, part: &WeightedAdapter) -> Result<AdapterFolderSummary> {
    let _no_grad = tch::no_grad_guard();
    Destination::adapter(options.out, "exported/icd10-vllm").check(options.force, &[options.base, &part.folder])?;
    let chosen = choose_adapter(options.runtime, options.base, part)?;
    let content = chosen.file.as_ref().unwrap_or(&part.file);
    require_fit(options.base, part, content)?;
    let folder: PathBuf = options.out.components().collect(); // without a slash at the end
    let base_name = options.base.to_string_lossy();
    let quantised_base = quantised_base::recorded(&part.companions)?;
    let mut made = None;
    fsutil::replace_dir(&folder, |temp| {
        let tensors = content.tensors.iter().map(|(name, t)| (name.as_str(), t));
        write_adapter_folder(temp, &content.spec, &base_name, options.base, tensors)?;
        inherit_training(temp, options.base, std::slice::from_ref(part))?;
        let read = read_back(temp, content)?;
        let mut answers = compatibility::of_adapter(&read, temp, Some(&Config::read(options.base)?))?;
        if let Some(QuantisedBase::Loaded { format, corrected: true }) = &quantised_base {
            compatibility::require_quantised_base(&mut answers, format.linear);
        }
        if answer_of(&answers, options.runtime).is_none_or(|answer| answer.reads != Some(true)) {
            return Err(Error::bug(format!("{} does not read what was written for it", options.runtime.title())));
        }
        let summary = AdapterFolderSummary {
            verdict: ExportVerdict::Passed,
            export: "adapter",
            choice: chosen.choice.clone(),
            adapter: part.folder.clone(),
            base: options.base.into(),
            out: folder.clone(),
            description: content.spec.describe(),
            tensors: read.tensors.len(),
            files: BTreeMap::from([weight_file(&temp.join(file::TENSORS))?]),
            quantised_base: quantised_base.clone(),
            compatibility: answers,
            ft_version: env!("CARGO_PKG_VERSION"),
        };
        fsutil::write_json(&temp.join(REPORT), &summary)?;
        made = Some(summary);
        Ok(())
    })?;
    made.ok_or_else(|| Error::bug("a folder was written without a report"))
}

/// Fails if the adapter changes weights that the base does not have, or has in another shape.
fn require_fit(base: &Path, part: &WeightedAdapter, content: &AdapterFile) -> Result<()> {
    let config = Config::read(base)?;
    let unchanged = content.spec.why_not_merged().is_some();
    if unchanged || config.stored.is_some() && content.spec.as_lora().is_none() {
        return Ok(()); // no updates of weights, or such that the sizes of quantised weights do not tell
    }
    let weights = models::weights(base, &config)?;
    let modules = content.tensors.keys().filter_map(|name| content.spec.module_of(name)).collect();
    let head = format!("{HEAD}.weight");
    let origin = part.folder.join(file::TENSORS);
    for (name, update) in content.spec.updates_on(&weights, &modules, &content.tensors, &origin)? {
        let fits = match (weights.shape(&name), weights.quantised(&name)) {
            (Some(shape), _) => update.fits(shape, weights.transposed(&name)),
            (None, Some(matrix)) => update.fits(&matrix.shape(), false),
            (None, None) => config.tie_word_embeddings && name == head,
        };
        if !fits {
            return Err(Error::user(format!(
                "{}: the change of {name} has the shape {}, the base's weight {:?}",
                part.folder.display(),
                update.shape(),
                weights.shape(&name)
            ))
            .hint("was the adapter trained on another base? name it with --base"));
        }
    }
    Ok(())
}

/// Reads the adapter in a folder, which must contain exactly these tensors, bit for bit, and settings that fit them.
fn read_back(folder: &Path, content: &AdapterFile) -> Result<AdapterFile> {
    let read = file::read(folder)?;
    let same = read.tensors.len() == content.tensors.len()
        && content.tensors.iter().all(|(name, t)| read.tensors.get(name).is_some_and(|found| found == t));
    if !same {
        return Err(Error::bug(format!("{}: the written adapter differs from the one in memory", folder.display())));
    }
    let modules = read.tensors.keys().filter_map(|name| read.spec.module_of(name)).collect();
    if read.spec.as_lora().is_some() {
        read.spec.updates(&modules, &read.tensors, &folder.join(file::TENSORS))?;
    }
    Ok(read)
}
