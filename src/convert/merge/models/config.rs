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
    let layers: Vec<usize> = merge
        .file
        .slices
        .iter()
        .map(|slice| layer_range(&slice.sources[0], &merge.inputs))
        .flat_map(|(from, to)| from..to)
        .collect();
    let mut raw = config.raw.clone();
    if layers != (0..config.num_hidden_layers as usize).collect::<Vec<_>>() {
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

/// Returns the number format of most of the written numbers.
fn written_kind(merge: &ModelMerge) -> Option<Kind> {
    let count = |kind: Kind| -> i64 {
        merge.tensors.iter().filter(|t| t.kind == kind).map(|t| t.shape.iter().product::<i64>()).sum()
    };
    [Kind::Float, Kind::BFloat16, Kind::Half].into_iter().max_by_key(|kind| count(*kind))
}
