//! Lists the settings that cannot change the result of a run.
//!
//! A run is compared with an earlier one in two places: `ft.lock` (by a hash of the recipe) and checkpoints (key by
//! key). Both leave out the settings listed here, so that they accept and refuse the same changes. Number of threads
//! and device do change the last bits of a result, but they belong to the machine: `ft.lock` records those in use, and
//! a difference is reported as one of the machine.

use serde_json::Value;

/// Keys that cannot change a result: places of files, what is kept and shown, and how the machine is used.
const NEUTRAL_KEYS: [(&str, &str); 12] = [
    ("run", "out"),
    ("run", "keep"),
    ("run", "save_every"),
    ("run", "samples"),
    ("run", "threads"),
    ("run", "offload"),
    ("run", "eval_at_start"),
    ("run", "evaluate"),
    ("run", "reach_every"),
    ("model", "device"),
    ("model", "storage"),
    ("data", "cache"),
];

/// Removes the settings that cannot change a result from a recipe given as JSON. The other keys keep their order. How often
/// checkpoints are saved changes a result that is their mean.
pub fn remove_neutral_settings(recipe: &mut Value) {
    let averaged = recipe.pointer("/run/result/average").is_some();
    for (section, key) in NEUTRAL_KEYS.into_iter().filter(|key| !(averaged && *key == ("run", "save_every"))) {
        if let Some(section) = recipe.get_mut(section).and_then(Value::as_object_mut) {
            section.shift_remove(key);
        }
    }
}

/// Removes and returns the path of the source `data.NAME` of a recipe given as JSON; for a list of sources, the list of
/// their paths. Returns null if the recipe has no such source. Rows are identified by their content, not by their path.
pub fn take_source_paths(recipe: &mut Value, name: &str) -> Value {
    fn take(sources: &mut Value) -> Value {
        match sources {
            Value::Array(list) => list.iter_mut().map(take).collect(),
            Value::Object(source) => source.shift_remove("path").unwrap_or_default(),
            _ => Value::Null,
        }
    }
    recipe.get_mut("data").and_then(|data| data.get_mut(name)).map_or(Value::Null, take)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn neutral_settings_are_recipe_keys_and_only_they_are_removed() {
        for (section, key) in NEUTRAL_KEYS {
            assert!(crate::recipe::schema::key(&format!("{section}.{key}")).is_some(), "{section}.{key}");
        }
        let mut recipe = json!({"run": {"out": "o", "seed": 7, "threads": 2, "steps": 3}, "data": {"cache": false}});
        remove_neutral_settings(&mut recipe);
        assert_eq!(recipe.to_string(), json!({"run": {"seed": 7, "steps": 3}, "data": {}}).to_string());
        let averaged = json!({"run": {"save_every": 5, "result": {"average": 2}}});
        let mut recipe = averaged.clone();
        remove_neutral_settings(&mut recipe);
        assert_eq!(recipe, averaged);
    }

    #[test]
    fn paths_are_taken_from_a_source_and_from_a_list_of_sources() {
        let mut recipe = json!({"data": {"train": [{"path": "a", "rows": 3}, {"path": "b"}], "valid": {"path": "v"}}});
        assert_eq!(take_source_paths(&mut recipe, "train"), json!(["a", "b"]));
        assert_eq!(take_source_paths(&mut recipe, "valid"), json!("v"));
        assert_eq!(take_source_paths(&mut recipe, "other"), Value::Null);
        assert_eq!(recipe, json!({"data": {"train": [{"rows": 3}, {}], "valid": {}}}));
    }
}
