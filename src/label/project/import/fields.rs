//! Finds the prompt, its id and the answers among the columns of a row.

use super::row::LabelImportOptions;
use crate::error::{Error, Result};
use crate::json;
use crate::label::record::answer::{JsonMap, NewPrompt};
use serde_json::{Value, json};

/// Returns the id of a prompt from the columns that may contain one.
pub(super) fn own_id(columns: &JsonMap) -> Option<String> {
    let id =
        ["prompt_id", "external_id", "id", "key"].into_iter().find_map(|k| columns.get(k).filter(|v| !v.is_null()))?;
    match id {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(n) => Some(n.to_string()),
        other => json::long_number(other).map(String::from),
    }
}

/// Creates a prompt with its own id, or with a hash of the messages if it has none.
pub(super) fn new_prompt(messages: Value, id: Option<String>, columns: JsonMap) -> NewPrompt {
    match id {
        Some(key) => NewPrompt { key, messages, columns },
        None => NewPrompt::keyed_by_content(messages, columns),
    }
}

/// Returns the messages of a prompt: text becomes one user turn, a list of messages is unchanged.
pub(super) fn as_messages(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(json!([{ "role": "user", "content": text }])),
        Value::Array(turns) if !turns.is_empty() && turns.iter().all(|t| t.get("role").is_some()) => {
            Some(value.clone())
        }
        _ => None,
    }
}

/// Returns the names of the fields with the prompt and the answers: those given in the options, or known names.
pub(super) fn prompt_and_answer_fields(data: &JsonMap, options: &LabelImportOptions) -> Result<(String, Vec<String>)> {
    let found = || data.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    let known = ["prompt", "instruction", "question", "query", "input", "chat", "messages", "conversation"];
    let prompt = match &options.prompt {
        Some(name) => data.contains_key(name).then(|| name.clone()),
        None => known.iter().find(|k| data.contains_key(**k)).map(|k| k.to_string()),
    };
    let prompt = prompt.ok_or_else(|| {
        Error::user(format!("no field with the prompt among {}", found())).hint("name it with --prompt FIELD")
    })?;
    let stems = ["generation", "generations", "response", "answer", "completion", "output", "candidate", "text"];
    let is_answer = |name: &&String| {
        let stem =
            name.trim_end_matches(|c: char| c.is_ascii_alphanumeric() && (c.is_ascii_digit() || c.is_uppercase()));
        let stem = stem.trim_end_matches(['-', '_', ' ']).to_lowercase();
        (stem.len() < name.len() && stems.contains(&stem.as_str()))
            || matches!(name.as_str(), "left" | "right" | "chosen" | "rejected")
    };
    let answers: Vec<String> = match options.answers.is_empty() {
        false => options.answers.clone(),
        true => data.keys().filter(is_answer).filter(|n| **n != prompt).cloned().collect(),
    };
    if let Some(missing) = answers.iter().find(|a| !data.contains_key(*a)) {
        return Err(Error::user(format!("no field `{missing}`; found {}", found())));
    }
    if answers.len() < 2 {
        return Err(Error::user(format!("no two fields with answers among {}", found()))
            .hint("name them with --answer FIELD --answer FIELD"));
    }
    Ok((prompt, answers))
}
