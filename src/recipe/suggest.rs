//! Suggests what was meant by an unknown key or choice: first the names of other tools, then keys of other sections,
//! then similar names.

use super::schema::{self, RecipeKey, key, keys};
use super::synonyms::{SYNONYMS, Synonym, VALUE_SYNONYMS};

/// Hint for an unknown key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    /// The hint as the user reads it.
    pub hint: String,
    /// The key that was probably meant.
    pub path: Option<String>,
}

/// Returns what was probably meant by the unknown key `name` in `section` (a dotted path; empty at the top level). If
/// nothing is similar, the hint lists the section's keys.
pub fn suggest_key(section: &str, name: &str) -> Suggestion {
    let plain = name.trim().to_lowercase().replace('-', "_");
    let section = &schema::without_list_indices(section);
    missing_space(section, name)
        .or_else(|| dotted(name))
        .or_else(|| synonym(name, &plain))
        .or_else(|| elsewhere(section, name, &plain))
        .or_else(|| alike(section, &plain))
        .unwrap_or_else(|| listing(section))
}

/// Returns what was probably meant by a word that is none of `choices`; `None` if nothing is similar.
pub fn suggest_choice(choices: &[&str], word: &str) -> Option<String> {
    let plain = word.trim().to_lowercase();
    let known =
        VALUE_SYNONYMS.iter().find(|(theirs, ours)| *theirs == plain && choices.contains(ours)).map(|(_, ours)| *ours);
    known.or_else(|| nearest(&plain, choices.iter().copied())).map(str::to_string)
}

/// Recognises a missing space: `lr:2e-4` is one word in YAML.
fn missing_space(section: &str, name: &str) -> Option<Suggestion> {
    let (front, back) = name.split_once(':')?;
    let path = if section.is_empty() { front.to_string() } else { format!("{section}.{front}") };
    key(&path)?;
    Some(Suggestion { hint: format!("put a space after the colon: `{front}: {back}`"), path: Some(path) })
}

/// Recognises a dotted name, such as `optim.lr`, as a key in the file.
fn dotted(name: &str) -> Option<Suggestion> {
    let found = key(name).filter(|k| !k.parent().is_empty())?;
    let hint = format!("write `{}` under `{}`; dotted names are for `--set`", found.name(), found.parent());
    Some(Suggestion { hint, path: Some(found.path.clone()) })
}

fn synonym(name: &str, plain: &str) -> Option<Suggestion> {
    let found = SYNONYMS.iter().find(|s| s.theirs.contains(&plain))?;
    Some(synonym_suggestion(name, found))
}

fn synonym_suggestion(name: &str, found: &Synonym) -> Suggestion {
    let hint = match (found.ours, found.note) {
        (Some(ours), "") => format!("`{name}` is `{ours}` here"),
        (Some(ours), note) => format!("`{name}` is `{ours}` here: {note}"),
        (None, note) => format!("remove `{name}`: {note}"),
    };
    Suggestion { hint, path: found.ours.map(str::to_string) }
}

fn elsewhere(section: &str, name: &str, plain: &str) -> Option<Suggestion> {
    let mut found: Vec<&RecipeKey> = keys().iter().filter(|k| k.name() == plain).collect();
    // Keys below this section come first, then the others in the order of the reference.
    found.sort_by_key(|k| section.is_empty() || !k.path.starts_with(section));
    let first = found.first()?;
    if first.parent() == section {
        return Some(Suggestion { hint: format!("did you mean `{}`?", first.name()), path: Some(first.path.clone()) });
    }
    let below: Vec<String> = found.iter().filter(|k| k.parent() != section).map(|k| place(k)).collect();
    let hint = format!("`{name}` belongs {}", join_with_or(&below));
    Some(Suggestion { hint, path: Some(first.path.clone()) })
}

fn place(key: &RecipeKey) -> String {
    if key.parent().is_empty() { "at the top".to_string() } else { format!("under `{}`", key.parent()) }
}

fn alike(section: &str, plain: &str) -> Option<Suggestion> {
    let siblings = keys().iter().filter(|k| k.parent() == section).map(RecipeKey::name);
    if let Some(name) = nearest(plain, siblings) {
        let path = if section.is_empty() { name.to_string() } else { format!("{section}.{name}") };
        return Some(Suggestion { hint: format!("did you mean `{name}`?"), path: Some(path) });
    }
    // A short name is similar to many others, so outside this section only longer names are suggested.
    let long = |name: &&str| name.len() > 3;
    if let Some(name) = nearest(plain, SYNONYMS.iter().flat_map(|s| s.theirs).copied().filter(long)) {
        return synonym(name, name);
    }
    let name = nearest(plain, keys().iter().map(RecipeKey::name).filter(long))?;
    let path = &keys().iter().find(|k| k.name() == name)?.path;
    Some(Suggestion { hint: format!("did you mean `{path}`?"), path: Some(path.clone()) })
}

fn listing(section: &str) -> Suggestion {
    let names: Vec<&str> = keys().iter().filter(|k| k.parent() == section).map(RecipeKey::name).collect();
    let of = if section.is_empty() { "a recipe has".to_string() } else { format!("`{section}` has") };
    Suggestion { hint: format!("{of} {}", names.join(", ")), path: None }
}

/// Returns the name with the smallest edit distance, if that is at most a third of the longer word.
fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let far = |name: &str| (word.chars().count().max(name.chars().count()) / 3).max(1);
    names
        .map(|name| (strsim::damerau_levenshtein(word, name), name))
        .filter(|(distance, name)| *distance <= far(name) && *distance < word.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Joins words as `a, b or c`.
pub(super) fn join_with_or(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [front @ .., last] => format!("{} or {last}", front.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_come_in_order() {
        let path = |section, name| suggest_key(section, name).path.unwrap_or_default();
        assert_eq!(path("", "learning_rate"), "optim.lr");
        assert_eq!(path("optim", "Learning-Rate"), "optim.lr");
        assert_eq!(path("adapter.lora", "r"), "adapter.lora.rank");
        assert_eq!(path("adapter", "rank"), "adapter.lora.rank");
        assert_eq!(path("", "max_len"), "batch.max_len");
        assert_eq!(path("optim", "shedule"), "optim.schedule");
        assert_eq!(path("", "lerning_rate"), "optim.lr");
        assert_eq!(path("", "optim.lr"), "optim.lr");
        assert_eq!(path("optim", "lr:2e-4"), "optim.lr");
        assert_eq!(suggest_key("run", "packing").path, None);
        assert!(suggest_key("run", "zzzzzzzz").hint.starts_with("`run` has out, epochs"));
        assert_eq!(suggest_choice(&["bf16", "f32"], "float32").as_deref(), Some("f32"));
        assert_eq!(suggest_choice(&["bf16", "f32"], "bf61").as_deref(), Some("bf16"));
        assert_eq!(suggest_choice(&["linear", "cosine"], "wild"), None);
    }
}
