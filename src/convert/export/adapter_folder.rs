//! Writes the directory of an adapter in PEFT's format.

use crate::adapters::{AdapterSpec, file, targets};
use crate::convert::folder::companions::{LICENCE_FILES, copy_companion_files, write_text};
use crate::convert::verify::report::REPORT;
use crate::error::Result;
use crate::models::{Config, VocabularyRows};
use std::collections::BTreeSet;
use std::path::Path;
use tch::Tensor;

/// Writes an adapter directory, with tokenizer, chat template, the base's licence and a README.md (model card).
pub(in crate::convert) fn write_adapter_folder<'t>(
    folder: &Path,
    spec: &AdapterSpec,
    base_name: &str,
    base: &Path,
    tensors: impl Iterator<Item = (&'t str, &'t Tensor)>,
) -> Result<()> {
    let config = Config::read(base)?;
    match config.stacked_experts() {
        Some(experts) => file::write_for_stacks(folder, spec, base_name, tensors, experts)?,
        None => file::write(folder, spec, base_name, tensors)?,
    }
    copy_companion_files(base, folder, LICENCE_FILES)?;
    let adapter = file::read(folder)?;
    let rows = VocabularyRows::of_adapters(&config, &[(&adapter, folder)])?.and_then(|rows| rows.grown(&config));
    let resize = rows.map_or(String::new(), |rows| {
        format!(
            "\nThe adapter was trained with new tokens, which the tokenizer here has. For PEFT, give the base their rows first:\n\n\
             ```python\nmodel.resize_token_embeddings({rows})\nmodel = PeftModel.from_pretrained(model, DIR)\n```\n\n"
        )
    });
    let card = format!(
        "---\nlibrary_name: peft\nbase_model: {}\npipeline_tag: text-generation\ntags:\n- {}\n---\n\nA {} adapter trained with ft {}. \
         Read it with PEFT, or with `ft generate --model BASE --adapter DIR`; {}.\n{resize}\
         `{REPORT}` reports how the saved files were checked.\n",
        serde_json::to_string(base_name).unwrap_or_default(),
        spec.name(),
        spec.title(),
        env!("CARGO_PKG_VERSION"),
        spec.why_not_merged().unwrap_or_else(|| "fold it into the base with `ft merge`".into()),
    );
    write_text(&folder.join("README.md"), &card)
}

/// Returns `spec` with its targets written as endings or full names of modules, which every reader of adapters
/// understands. Targets that are already a list of names stay unchanged.
pub fn with_named_targets<'n>(
    spec: &AdapterSpec,
    adapted: &BTreeSet<&str>,
    base: impl Iterator<Item = &'n str>,
) -> AdapterSpec {
    let mut spec = spec.clone();
    if spec.has_named_targets() {
        return spec;
    }
    let saved = |module: &str| spec.modules_to_save().iter().any(|s| module.ends_with(s.as_str()));
    let all = base.filter_map(|n| n.strip_suffix(".weight")).chain(["lm_head"]).filter(|m| !saved(m));
    let names = targets::shortest_target_names(adapted, all);
    spec.set_named_targets(names);
    spec
}
