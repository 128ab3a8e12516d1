//! The hash of a recipe in `ft.lock`.

use crate::fsutil::hex;
use crate::recipe::neutral::{remove_neutral_settings, take_source_paths};
use crate::recipe::sections::Recipe;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Hashes the recipe without the settings that cannot change a result (`recipe::neutral`) and without the paths of
/// files whose contents are hashed separately.
pub fn recipe_sha256(recipe: &Recipe) -> String {
    let mut value = serde_json::to_value(recipe).unwrap_or_default();
    remove_neutral_settings(&mut value);
    for name in ["train", "valid"] {
        take_source_paths(&mut value, name);
    }
    hash_without(value, &["/model/path", "/data/template"])
}

/// Hashes the recipe as earlier versions of ft did: with `data.cache` and with the paths in lists of sources.
pub fn earlier_recipe_sha256(recipe: &Recipe) -> String {
    let keys = [
        "/run/out",
        "/run/keep",
        "/run/save_every",
        "/run/samples",
        "/run/threads",
        "/run/eval_at_start",
        "/model/path",
        "/model/device",
        "/model/storage",
        "/data/train/path",
        "/data/valid/path",
        "/data/template",
    ];
    hash_without(serde_json::to_value(recipe).unwrap_or_default(), &keys)
}

/// Returns the SHA-256 of a JSON value without some keys, given as JSON pointers.
fn hash_without(mut value: Value, keys: &[&str]) -> String {
    for path in keys {
        let (section, key) = path.rsplit_once('/').expect("paths have a slash");
        if let Some(section) = value.pointer_mut(section).and_then(Value::as_object_mut) {
            section.shift_remove(key); // the rest keeps its order, on which the hash depends
        }
    }
    hex(&Sha256::digest(value.to_string().as_bytes()))
}

#[cfg(test)]
pub(in crate::runs) mod tests {
    use super::*;
    use crate::recipe::plan::{self, Plan};

    /// Returns the plan of a small recipe with some settings changed.
    pub fn plan(sets: &[&str]) -> Plan {
        let text = "model: { path: m }\nmethod: { sft: {} }\ndata: { train: { path: t.jsonl } }\nrun: { out: o }\n";
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        plan::parse("r.yaml", text, &sets).unwrap()
    }

    #[test]
    fn places_and_bookkeeping_are_no_part_of_the_recipe() {
        let hash = |sets: &[&str]| recipe_sha256(&plan(sets).recipe);
        assert_eq!(hash(&[]), hash(&["run.out=elsewhere", "run.keep=9", "run.samples=0", "run.threads=3"]));
        assert_ne!(hash(&[]), hash(&["optim.lr=1e-3"]));
        assert_ne!(hash(&[]), hash(&["run.seed=8"]));
        assert_eq!(hash(&["data.cache=c"]), hash(&["data.cache=d"]));
        let sources = |path: &str| hash(&[&format!("data.train=[{{path: {path}}}, {{path: b.jsonl}}]")]);
        assert_eq!(sources("a.jsonl"), sources("moved/a.jsonl"));
    }
}
