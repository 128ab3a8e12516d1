//! The origin of a run: the recipe and the hashes of the data that its weights come from. A checkpoint stores it, and a
//! run resumes only from a checkpoint with an equal origin.

use super::prepare::Prepared;
use crate::adapters::file;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::methods::rows::SplitStatistics;
use crate::recipe::neutral::{remove_neutral_settings, take_source_paths};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Returns the recipe and the hashes of its data, as a checkpoint stores them. A run resumes only from a checkpoint
/// with equal values. Settings that cannot change the result (`recipe::neutral`) are left out. Data and adapters are
/// identified by their content, not by their path.
pub fn origin_of(prepared: &Prepared) -> Result<Value> {
    let mut recipe = serde_json::to_value(&prepared.plan.recipe).map_err(|e| Error::bug(e.to_string()))?;
    remove_neutral_settings(&mut recipe);
    // An adapter to continue from is identified by its content, too.
    if let Some(adapter) = &prepared.plan.recipe.adapter
        && let Some(folder) = adapter.continues()
    {
        recipe["adapter"][adapter.name()]["from"] = json!(fsutil::sha256(&folder.join(file::TENSORS))?);
    }
    let mut data = serde_json::Map::new();
    for (name, rows) in [("train", Some(prepared.rows.train())), ("valid", prepared.rows.valid())] {
        let path = take_source_paths(&mut recipe, name);
        if let Some(SplitStatistics { summary, .. }) = rows {
            let file = json!({ "path": path, "rows": summary.rows, "sha256": summary.sha256 });
            data.insert(name.into(), file);
        }
    }
    Ok(json!({ "recipe": recipe, "data": data }))
}

/// Describes the differences between the recipe and data of a checkpoint (`then`) and the current ones: one line for
/// each key or file, empty if there are none.
pub fn differences(then: &Value, now: &Value) -> Vec<String> {
    let (a, b) = (comparable_settings(then), comparable_settings(now));
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let show = |m: &BTreeMap<String, String>, k: &String| m.get(k).cloned().unwrap_or("not set".into());
    let mut found: Vec<String> = keys
        .into_iter()
        .filter(|k| a.get(*k) != b.get(*k))
        .map(|k| format!("{k}: was {}, is {}", show(&a, k), show(&b, k)))
        .collect();
    for name in ["train", "valid"] {
        let (a, b) = (&then["data"][name], &now["data"][name]);
        if a["sha256"] != b["sha256"] || a["rows"] != b["rows"] {
            found.push(format!("data.{name}: was {}, is {}", describe_rows(a), describe_rows(b)));
        }
    }
    found
}

/// Returns the settings of an origin by dotted key. Checkpoints of earlier versions also record settings that cannot
/// change a result; these are left out.
fn comparable_settings(origin: &Value) -> BTreeMap<String, String> {
    let (mut recipe, mut keys) = (origin["recipe"].clone(), BTreeMap::new());
    remove_neutral_settings(&mut recipe);
    flatten("", &recipe, &mut keys);
    keys
}

fn flatten(prefix: &str, v: &Value, into: &mut BTreeMap<String, String>) {
    match v {
        Value::Object(o) => {
            for (k, v) in o {
                flatten(&if prefix.is_empty() { k.clone() } else { format!("{prefix}.{k}") }, v, into);
            }
        }
        Value::Null => {}
        other => {
            into.insert(prefix.to_string(), other.to_string());
        }
    }
}

fn describe_rows(rows: &Value) -> String {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), String::from);
    match rows.is_object() {
        true => format!("{} ({} rows, sha256 {:.12})", text(&rows["path"]), rows["rows"], text(&rows["sha256"])),
        false => "none".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_of_earlier_versions_are_accepted() {
        let earlier = json!({
            "recipe": {
                "run": {"seed": 7, "threads": 2, "samples": 2, "eval_at_start": true},
                "model": {"path": "/m", "device": "auto"},
            },
            "data": {"train": {"path": "/t", "rows": 3, "sha256": "1"}},
        });
        let mut now = json!({
            "recipe": {"run": {"seed": 7}, "model": {"path": "/m"}},
            "data": {"train": {"path": "/t", "rows": 3, "sha256": "1"}},
        });
        assert_eq!(differences(&earlier, &now), Vec::<String>::new());
        now["recipe"]["run"]["seed"] = json!(8);
        assert_eq!(differences(&earlier, &now), ["run.seed: was 7, is 8"]);
    }
}
