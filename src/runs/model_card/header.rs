//! The block of keys at the beginning of a model card, which hubs read.

use super::sections::{Measure, measures, plain_name};
use crate::fsutil;
use crate::runs::folder::RunFolder;
use serde_json::json;

/// Returns the keys of a card's header as lines, without their fences, and the text after it.
pub fn split(card: &str) -> (&str, &str) {
    let inside = card.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n"));
    inside.unwrap_or(("", card))
}

/// Returns the header with its fences: the existing keys, and those that the run adds.
pub fn header(run: &RunFolder, existing: &str) -> String {
    // The measurements are the run's; whatever else is there is kept.
    let mut lines: Vec<String> =
        existing.lines().filter(|line| !line.starts_with("model-index:")).map(str::to_string).collect();
    let base = run.plan.recipe.model.path.to_string_lossy().into_owned();
    let adapter = run.plan.recipe.adapter.is_some();
    let generates = run.plan.recipe.method.generates_text();
    let task = if generates { "text-generation" } else { "text-classification" };
    let mut add = |key: &str, value: String| {
        let present = lines.iter().any(|line| line.split_once(':').is_some_and(|(name, _)| name == key));
        if !present && !value.is_empty() {
            lines.push(format!("{key}: {value}"));
        }
    };
    add("library_name", if adapter { "peft" } else { "transformers" }.into());
    if !run.plan.recipe.model.is_random() {
        add("base_model", json!(base).to_string());
        add("base_model_relation", if adapter { "adapter" } else { "finetune" }.into());
    }
    add("pipeline_tag", task.into());
    add("tags", json!(["ft", run.plan.method()]).to_string());
    for key in ["license", "license_name", "license_link", "language"] {
        add(key, key_of_base(run, key).unwrap_or_default());
    }
    add("model-index", model_index(run, task));
    format!("---\n{}\n---\n", lines.join("\n"))
}

/// Returns a key of the header of the base's own model card, as written there; `None` if the base has no card or no such key.
fn key_of_base(run: &RunFolder, key: &str) -> Option<String> {
    let card = fsutil::read_to_string(&run.plan.recipe.model.path.join(super::FILE)).ok()?;
    let (keys, _) = split(&card);
    let mut lines = keys.lines().skip_while(|line| line.split_once(':').is_none_or(|(name, _)| name != key));
    let value = lines.next()?.split_once(':')?.1.trim();
    if !value.is_empty() {
        return Some(value.to_string());
    }
    let items: Vec<&str> = lines
        .map_while(|line| line.trim_start().strip_prefix("- "))
        .map(|item| item.trim().trim_matches('"'))
        .collect();
    (!items.is_empty()).then(|| json!(items).to_string())
}

/// Returns the measurements in the format of a hub's `model-index`, as JSON, which is YAML, too; empty without any.
fn model_index(run: &RunFolder, task: &str) -> String {
    let result = |(data, measures): (String, Vec<Measure>)| {
        let metrics: Vec<_> =
            measures.iter().map(|m| json!({ "type": m.name, "name": m.name, "value": m.value })).collect();
        json!({ "task": { "type": task }, "dataset": { "name": data, "type": data }, "metrics": metrics })
    };
    let results: Vec<_> = measures(run).into_iter().filter(|(_, all)| !all.is_empty()).map(result).collect();
    match results.is_empty() {
        true => String::new(),
        false => json!([{ "name": plain_name(run), "results": results }]).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_split_from_its_text() {
        assert_eq!(split("---\na: 1\nb: 2\n---\n\nText --- here.\n"), ("a: 1\nb: 2", "\nText --- here.\n"));
        assert_eq!(split("No header\n---\n"), ("", "No header\n---\n"));
    }

    #[test]
    fn licence_and_language_are_those_of_the_base() {
        let base = tempfile::tempdir().unwrap();
        let mut run = crate::runs::model_card::example::finished();
        run.plan.recipe.model.path = base.path().to_path_buf();
        assert!(!header(&run, "").contains("license"));
        let card = "---\nlicense: apache-2.0\nlanguage:\n- en\n- \"de\"\ntags: [x]\n---\nText\nlicense: mit\n";
        std::fs::write(base.path().join("README.md"), card).unwrap();
        let found = header(&run, "license: mit");
        assert!(found.contains("license: mit\n") && !found.contains("apache"), "what is there is kept: {found}");
        let found = header(&run, "");
        assert!(found.contains("license: apache-2.0\n") && found.contains("language: [\"en\",\"de\"]\n"), "{found}");
    }
}
