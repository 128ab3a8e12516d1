//! Generates the reference of recipe keys from the schema: docs/recipe.md and `ft recipe explain`.

use super::schema::{RecipeKey, key, keys};
use super::suggest;
use crate::error::{Error, Result};
use std::fmt::Write;

/// Returns the text of docs/recipe.md.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Recipe reference\n\n\
         Made from the doc comments of the recipe's structs by `ft recipe reference > docs/recipe.md`; do not edit.\n\n\
         A key may be set on the command line by its dotted path, as in `--set optim.lr=1e-4`; an empty value\n\
         (`--set adapter=`) removes it. Relative paths are relative to the folder in which `ft` runs.\n\
         `ft recipe explain KEY` shows a row of this page, `ft recipe schema` the JSON Schema for editors.\n",
    );
    let tops = keys().iter().filter(|k| k.section);
    for section in tops {
        let depth = 2 + section.path.matches('.').count();
        let need = if section.required { "Required." } else { "Optional." };
        let _ = write!(out, "\n{} `{}`\n\n{} {need}\n", "#".repeat(depth.min(4)), section.path, section.doc);
        let rows: Vec<&RecipeKey> = keys().iter().filter(|k| k.parent() == section.path).collect();
        if !section.choices.is_empty() {
            let _ = writeln!(out, "\nOne of:\n");
            for (name, doc) in &section.choices {
                let _ = writeln!(out, "- `{name}`: {doc}");
            }
            continue;
        }
        let _ = writeln!(out, "\n| key | value | default | meaning |\n|---|---|---|---|");
        for k in rows {
            let value = match (k.section, k.choices.is_empty()) {
                (true, _) if k.kind.starts_with("list") => "list of sections".to_string(),
                (true, _) => "section".to_string(),
                (false, true) => k.kind.clone(),
                (false, false) => k.choices.iter().map(|(c, _)| format!("`{c}`")).collect::<Vec<_>>().join(", "),
            };
            let mut doc = k.doc.clone();
            for (choice, meaning) in k.choices.iter().filter(|_| !k.section) {
                let _ = write!(doc, " `{choice}`: {meaning}");
            }
            let _ = writeln!(out, "| `{}` | {} | {} | {} |", k.name(), cell(&value), cell(&default(k)), cell(&doc));
        }
    }
    out
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn default(k: &RecipeKey) -> String {
    match &k.default {
        Some(serde_json::Value::String(s)) => format!("`{s}`"),
        Some(value) => format!("`{value}`"),
        None if k.required => "**required**".into(),
        None => "–".into(),
    }
}

/// Returns the text of `ft recipe explain` for a key, a section, or (empty path) all keys. The last part of a path is
/// enough if only one key has it. Fails if there is no such key.
pub fn explain(path: &str) -> Result<String> {
    if path.is_empty() {
        return Ok(list(&keys().iter().collect::<Vec<_>>()));
    }
    // Keys of list items are considered only if no other key has the name.
    let mut named: Vec<&RecipeKey> = keys().iter().filter(|k| k.name() == path).collect();
    let in_list = |k: &RecipeKey| key(k.parent()).is_some_and(|parent| parent.kind.starts_with("list"));
    if named.iter().any(|k| !in_list(k)) {
        named.retain(|k| !in_list(k));
    }
    let found = key(path).or(if let [one] = named.as_slice() { Some(*one) } else { None });
    let Some(k) = found else {
        if named.len() > 1 {
            return Ok(named.iter().map(|k| one(k)).collect::<Vec<_>>().join("\n"));
        }
        let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
        return Err(Error::user(format!("unknown key `{path}`")).hint(suggest::suggest_key(section, name).hint));
    };
    let prefix = format!("{}.", k.path);
    let below: Vec<&RecipeKey> = keys().iter().filter(|b| b.path.starts_with(&prefix)).collect();
    Ok(if below.is_empty() { one(k) } else { format!("{}\n{}", one(k), list(&below)) })
}

fn list(keys: &[&RecipeKey]) -> String {
    let rows: Vec<Vec<String>> = keys.iter().map(|k| vec![k.path.clone(), k.doc.clone()]).collect();
    crate::report::table(&rows) + "\n"
}

fn one(k: &RecipeKey) -> String {
    let mut out = format!("{}\n  {}\n", k.path, k.doc);
    if !k.section && k.choices.is_empty() {
        let _ = writeln!(out, "  value:   {}", k.kind);
    }
    if !k.section || k.required {
        let _ = writeln!(out, "  default: {}", default(k).replace(['`', '*'], ""));
    }
    let width = k.choices.iter().map(|(c, _)| c.len()).max().unwrap_or(0);
    for (choice, doc) in &k.choices {
        let _ = writeln!(out, "  {choice:width$}  {doc}");
    }
    out
}
