//! Reads the adapters of a merge, and refuses those that cannot be merged.

use super::checkpoint;
use crate::adapters::file;
use crate::adapters::merging::WeightedAdapter;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::model_files::{is_gguf, is_model};
use crate::models::Config;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Fails if one of the adapters cannot be merged into a base: it is a reward model's, with a head, or of a kind that has no
/// update of weights.
pub(in crate::convert) fn refuse_unmergeable(base: &Path, parts: &[WeightedAdapter]) -> Result<()> {
    if let Some((part, why)) = parts.iter().find_map(|part| Some((part, part.file.spec.why_not_merged()?))) {
        return Err(Error::user(format!("{}: {why}", part.folder.display())).hint(format!(
            "use it without merging: ft generate --model {} --adapter {}",
            base.display(),
            part.folder.display()
        )));
    }
    match parts.iter().find(|part| part.file.spec.has_scalar_head()) {
        None => Ok(()),
        Some(part) => Err(Error::user(format!("{}: a reward model's adapter cannot be merged", part.folder.display()))
            .hint(format!(
                "use it without merging: ft score --model {} --adapter {} --input FILE --out FILE; to get a whole reward model, train with a recipe without `adapter`",
                base.display(),
                part.folder.display()
            ))),
    }
}

/// Parses `ADAPTER` or `ADAPTER=WEIGHT` and reads the adapter.
pub fn parse_part(text: &str) -> Result<WeightedAdapter> {
    let (folder, weight) = split_weight(text);
    let weight = match weight.map(str::parse::<f64>) {
        None => 1.0,
        Some(Ok(w)) if w.is_finite() => w,
        Some(_) => {
            return Err(
                Error::user(format!("{text}: the weight after `=` must be a number")).hint("e.g. adapters/a=0.7")
            );
        }
    };
    read_part(Path::new(folder), weight)
}

/// Reads the adapter in a folder, or that of a run's checkpoint.
pub fn read_part(folder: &Path, weight: f64) -> Result<WeightedAdapter> {
    if folder.join("config.json").is_file() && !folder.join("adapter_config.json").exists() {
        return Err(Error::user(format!("{}: a whole model, and no adapter", folder.display()))
            .hint("list whole models in a file, as mergekit does: ft merge merge.yaml --out DIR (docs/merging.md)"));
    }
    match checkpoint::run_of(folder) {
        Some(run) => checkpoint::read(folder, &run, weight),
        None => WeightedAdapter::read(folder, weight),
    }
}

/// Splits `ADAPTER=WEIGHT` into folder and weight. If a folder of the whole name exists, `=` is part of its name.
pub fn split_weight(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once('=').filter(|_| !Path::new(text).is_dir()) {
        Some((folder, weight)) => (folder, Some(weight)),
        None => (text, None),
    }
}

/// Returns true for a folder with an adapter.
pub fn is_adapter(folder: &Path) -> bool {
    folder.join(file::CONFIG).is_file()
}

const NAME_IT: &str = "name the base before the adapters: ft merge BASE ADAPTER … --out DIR";

/// Returns the base that adapters name in their files (`base_model_name_or_path`), to merge them into it. Fails if they name several or
/// none, if it is not there, or if its weights are stored quantised, which no change can be added to.
pub fn named_base(parts: &[WeightedAdapter]) -> Result<PathBuf> {
    let path = named_directory(parts)?;
    match Config::read(&path)?.stored {
        Some(_) => Err(rounds_away(parts, &path)),
        None => Ok(path),
    }
}

fn rounds_away(parts: &[WeightedAdapter], base: &Path) -> Error {
    let folder = parts.first().map(|part| part.folder.display().to_string()).unwrap_or_default();
    Error::user(format!(
        "{folder} was trained over `{}`, whose weights are stored quantised: merging into them would round the adapter away",
        base.display()
    ))
    .hint(format!("with the model's full-precision weights, {NAME_IT}"))
}

/// Returns the directory of the base that adapters name in their files, also of one whose weights are stored quantised. Fails if they
/// name several or none, if it is not there, or if it is a GGUF file.
pub fn named_directory(parts: &[WeightedAdapter]) -> Result<PathBuf> {
    let mut named: Option<(&str, &Path)> = None;
    for part in parts {
        let folder = part.folder.display();
        let Some(base) = part.file.base.as_deref().filter(|base| !base.is_empty()) else {
            return Err(Error::user(format!("{folder}: {} names no base", file::CONFIG)).hint(NAME_IT));
        };
        match named {
            Some((other, first)) if other != base => {
                let first = first.display();
                return Err(
                    Error::user(format!("{first} names the base `{other}`, {folder} names `{base}`")).hint(NAME_IT)
                );
            }
            _ => named = Some((base, &part.folder)),
        }
    }
    let Some((base, folder)) = named else { return Err(Error::bug("the base of no adapter")) };
    let (path, folder) = (Path::new(base), folder.display());
    if !is_model(path) {
        return Err(Error::user(format!("{folder} names the base `{base}`, and there is no model at this path"))
            .hint(format!("fetch it, or {NAME_IT}")));
    }
    if is_gguf(path) {
        return Err(rounds_away(parts, path));
    }
    Ok(path.into())
}

/// Returns what is suspicious about merging an adapter into this base: it names a base whose folder has another name, or
/// whose config.json differs. This is no error: the same base may have been moved, and adapters are merged into relatives of
/// their base on purpose.
pub fn other_base(base: &Path, part: &WeightedAdapter) -> Option<String> {
    let named = Path::new(part.file.base.as_deref().filter(|b| !b.is_empty())?);
    let last = |p: &Path| p.file_name().map(|n| n.to_string_lossy().to_lowercase());
    let config = |folder: &Path| fsutil::read_json::<Value>(&folder.join("config.json")).ok();
    let given = fsutil::absolute(base);
    let about =
        format!("{}: was trained on `{}`; merging into {}", part.folder.display(), named.display(), base.display());
    match (config(named), config(&given)) {
        (Some(one), Some(two)) if one != two => {
            let keys = differing_keys(&one, &two).join(", ");
            Some(format!("{about}, whose config.json differs ({keys})"))
        }
        _ => (last(named) != last(&given)).then_some(about),
    }
}

/// Returns the keys of two configs that differ, at most five.
fn differing_keys(one: &Value, two: &Value) -> Vec<String> {
    let keys = [one, two].into_iter().filter_map(Value::as_object).flat_map(|map| map.keys());
    let mut found: Vec<String> = keys.filter(|key| one.get(key) != two.get(key)).cloned().collect();
    found.sort();
    found.dedup();
    found.truncate(5);
    found
}
