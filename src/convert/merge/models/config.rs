//! Writes config.json of a merged model: that of the base or of the first model, with the sizes and the format of the result.

use super::ModelMerge;
use super::tensors::layer_range;
use crate::convert::folder::config_file::{choose_layers, write_config};
use crate::error::{Error, Result};
use crate::models::Config;
use serde_json::json;
use std::path::Path;
use tch::Kind;

/// Writes config.json into `folder`.
pub(super) fn write(merge: &ModelMerge, folder: &Path) -> Result<()> {
    let config = &merge.inputs[merge.leading()].config;
    let mut raw = config.raw.clone();
    if let Some(layers) = chosen_layers(merge, config) {
        choose_layers(config, &mut raw, &layers);
    }
    if let Some(vocabulary) = &merge.vocabulary {
        raw["vocab_size"] = json!(vocabulary.rows);
    }
    let kind = written_kind(merge);
    if raw == config.raw {
        return write_config(config, folder, kind);
    }
    let text = serde_json::to_string_pretty(&raw).map_err(|e| Error::bug(format!("config.json: {e}")))? + "\n";
    write_config(&Config::parse(config.file(), &text)?, folder, kind)
}

/// Fails for a merge that the config cannot describe.
pub(super) fn check(merge: &ModelMerge) -> Result<()> {
    let config = &merge.inputs[merge.leading()].config;
    if chosen_layers(merge, config).is_some() {
        config.require_separate_layers("a merge that chooses layers")?;
    }
    if merge.vocabulary.as_ref().is_some_and(|vocabulary| vocabulary.rows as i64 != config.vocab_size) {
        config.require_separate_layers("a merge with another vocabulary")?;
    }
    Ok(())
}

/// Returns the layers of the model that the result has; `None`: all of them, in their order.
fn chosen_layers(merge: &ModelMerge, config: &Config) -> Option<Vec<usize>> {
    let ranges = merge.file.slices.iter().map(|slice| layer_range(&slice.sources[0], &merge.inputs));
    let layers: Vec<usize> = ranges.flat_map(|(from, to)| from..to).collect();
    (layers != (0..config.num_hidden_layers as usize).collect::<Vec<_>>()).then_some(layers)
}

/// Returns the number format of most of the written numbers.
fn written_kind(merge: &ModelMerge) -> Option<Kind> {
    let count = |kind: Kind| -> i64 {
        merge.tensors.iter().filter(|t| t.kind == kind).map(|t| t.shape.iter().product::<i64>()).sum()
    };
    [Kind::Float, Kind::BFloat16, Kind::Half].into_iter().max_by_key(|kind| count(*kind))
}
