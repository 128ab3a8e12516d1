//! Writes the directory of an adapter in PEFT's format.

use crate::adapters::{LoraSpec, Targets, file, lora, targets};
use crate::convert::folder::companions::{TOKENIZER_FILES, copy_companion_files, write_text};
use crate::convert::verify::report::REPORT;
use crate::error::Result;
use std::collections::BTreeSet;
use std::path::Path;
use tch::Tensor;

/// Writes an adapter directory, with tokenizer, chat template and a README.md (model card).
pub(in crate::convert) fn write_adapter_folder<'t>(
    folder: &Path,
    spec: &LoraSpec,
    base_name: &str,
    base: &Path,
    tensors: impl Iterator<Item = (&'t str, &'t Tensor)>,
) -> Result<()> {
    file::write(folder, spec, base_name, tensors)?;
    copy_companion_files(base, folder, TOKENIZER_FILES)?;
    let card = format!(
        "---\nlibrary_name: peft\nbase_model: {}\npipeline_tag: text-generation\ntags:\n- lora\n---\n\nA LoRA adapter trained with ft {}. \
         Read it with PEFT, or with `ft generate --model BASE --adapter DIR`; fold it into the base with `ft merge`.\n\
         `{REPORT}` reports how the saved files were checked.\n",
        serde_json::to_string(base_name).unwrap_or_default(),
        env!("CARGO_PKG_VERSION"),
    );
    write_text(&folder.join("README.md"), &card)
}

/// Returns `spec` with its targets written as endings or full names of modules, which every reader of adapters
/// understands. Targets that are already a list of names stay unchanged.
pub fn with_named_targets<'n>(
    spec: &LoraSpec,
    adapted: &BTreeSet<&str>,
    base: impl Iterator<Item = &'n str>,
) -> LoraSpec {
    if matches!(spec.targets, Targets::Names(_)) && spec.exclude.is_none() {
        return spec.clone();
    }
    let saved = |module: &str| spec.modules_to_save.iter().any(|s| module.ends_with(s.as_str()));
    let all = base.filter_map(|n| n.strip_suffix(".weight")).chain(["lm_head"]).filter(|m| !saved(m));
    let names = targets::shortest_target_names(adapted, all);
    LoraSpec { targets: Targets::Names(names), exclude: None, layers: None, layers_pattern: Vec::new(), ..spec.clone() }
}

/// Returns the modules that have a low-rank update, from the names of an adapter's tensors.
pub fn adapted_modules<'n>(names: impl Iterator<Item = &'n str>) -> BTreeSet<&'n str> {
    names.filter_map(lora::adapted_module).collect()
}
