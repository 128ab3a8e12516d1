//! Which format the columns of a row have, and which columns a format reads.

use super::RowFormat;
use super::preference::is_dialogue;
use super::record::Columns;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// What rows are wanted for: it decides between formats where columns would allow several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Want {
    /// To look at: the format that says most.
    #[default]
    Anything,
    /// Answers to learn.
    Answers,
    /// Pairs of a better and a worse answer.
    Pairs,
    /// Answers with a verdict.
    Verdicts,
    /// Questions.
    Prompts,
}

/// The format that these columns have.
pub fn detect(columns: &Columns, want: Want, path: &Path) -> Result<RowFormat> {
    let has = |key: &str| columns.contains_key(key);
    let talk = ["messages", "conversations"].into_iter().find(|k| has(k)).map(|list| {
        let first = list_of(&columns[list]).and_then(|turns| turns.first().cloned()).unwrap_or_default();
        if first.get("from").is_some() { RowFormat::Sharegpt } else { RowFormat::Messages }
    });
    let pair = (has("chosen") && has("rejected")).then(|| {
        let dialogue = |key: &str| columns[key].as_str().is_some_and(is_dialogue);
        if !has("prompt") && dialogue("chosen") && dialogue("rejected") { RowFormat::Hh } else { RowFormat::Preference }
    });
    let verdict = (label_of(columns).is_some() && (has("prompt") && has("completion") || talk.is_some()))
        .then_some(RowFormat::Unpaired);
    let both = (has("prompt") && has("completion")).then_some(RowFormat::PromptCompletion);
    let task = (has("instruction") && has("output")).then_some(RowFormat::Alpaca);
    let text = (has("text")).then_some(RowFormat::Text);
    let prompt = has("prompt").then_some(RowFormat::Prompt);
    let found = match want {
        Want::Anything => pair.or(verdict).or(talk).or(both).or(task).or(text).or(prompt),
        Want::Answers => talk.filter(|_| verdict.is_none()).or(both.filter(|_| verdict.is_none())).or(task),
        Want::Pairs => pair,
        Want::Verdicts => verdict.or(pair),
        Want::Prompts => prompt.or(talk).or(task).or(pair),
    };
    if let Some(found) = found {
        return Ok(found);
    }
    let names = columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    let error = |what: &str| Error::user(format!("{}: found columns {names}: {what}", path.display()));
    if want == Want::Answers {
        if pair.is_some() {
            return Err(error("these are preference pairs")
                .hint("supervised fine-tuning needs one answer a row: rename `chosen` to `completion`, or use a method that learns from pairs"));
        }
        if verdict.is_some() {
            return Err(error("these are answers with a verdict").hint(
                "supervised fine-tuning would learn the bad ones too: keep the good ones, or give `format` to learn them all",
            ));
        }
        if let Some(text) = text {
            return Ok(text);
        }
    }
    let (problem, known) = match want {
        Want::Pairs => ("no preference pairs", "`chosen`, `rejected`, with or without `prompt`"),
        Want::Verdicts => ("no answers with a verdict", "`prompt`, `completion`, `label` | `chosen`, `rejected`"),
        Want::Prompts => {
            ("no prompts", "`prompt` | `messages` | `conversations` | `instruction`, `output` | `chosen`, `rejected`")
        }
        _ if prompt.is_some() => ("these are prompts without answers", ANSWERS),
        Want::Answers => ("no known row format has these", ANSWERS),
        Want::Anything => ("no known row format has these", EVERYTHING),
    };
    Err(error(problem).hint(format!("known: {known}; rename the columns to one of these, or map them with `columns`")))
}

const ANSWERS: &str = "`messages` | `conversations` | `instruction`, `output` | `prompt`, `completion` | `text`";
const EVERYTHING: &str = "`messages` | `conversations` | `instruction`, `output` | `prompt`, `completion` | `text` | \
                          `prompt` | `chosen`, `rejected` | `prompt`, `completion`, `label`";

/// The name of the column with the verdict on an answer.
pub(super) fn label_of(columns: &Columns) -> Option<&'static str> {
    ["label", "kto_tag"].into_iter().find(|key| columns.get(*key).is_some_and(|v| truth(v).is_some()))
}

/// True or false, also as a number or as text (in CSV).
pub(super) fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => match n.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => None,
        },
        Value::String(text) => match text.as_str() {
            "true" | "True" | "TRUE" | "1" => Some(true),
            "false" | "False" | "FALSE" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Columns that `format` reads.
fn used(format: RowFormat) -> &'static [&'static str] {
    match format {
        RowFormat::Auto => &[],
        RowFormat::Messages => &["messages", "conversations", "tools", "chat_template_kwargs"],
        RowFormat::Sharegpt => &["messages", "conversations", "system", "tools", "chat_template_kwargs"],
        RowFormat::Alpaca => &["instruction", "input", "output", "system", "history"],
        RowFormat::PromptCompletion => &["prompt", "completion", "tools", "chat_template_kwargs"],
        RowFormat::Text => &["text"],
        RowFormat::Prompt => &["prompt", "tools", "chat_template_kwargs"],
        RowFormat::Preference => &[
            "prompt",
            "question",
            "instruction",
            "input",
            "system",
            "conversations",
            "chosen",
            "rejected",
            "margin",
            "tools",
            "chat_template_kwargs",
        ],
        RowFormat::Hh => &["chosen", "rejected", "margin"],
        RowFormat::Unpaired => &[
            "prompt",
            "completion",
            "messages",
            "conversations",
            "system",
            "label",
            "kto_tag",
            "tools",
            "chat_template_kwargs",
        ],
    }
}

/// The columns of a row that `format` reads, in the row's order.
pub fn used_columns(columns: &Columns, format: RowFormat) -> Vec<String> {
    columns.keys().filter(|k| used(format).contains(&k.as_str())).cloned().collect()
}

/// Columns that `format` does not read, in order: shown, never silently lost.
pub fn unused_columns(columns: &Columns, format: RowFormat) -> Vec<String> {
    columns.keys().filter(|k| !used(format).contains(&k.as_str())).cloned().collect()
}

/// A list, or a string that holds one as JSON (as CSV files do).
pub(super) fn list_of(value: &Value) -> Option<std::borrow::Cow<'_, [Value]>> {
    match value {
        Value::Array(items) => Some(items.into()),
        Value::String(text) if text.trim_start().starts_with('[') => {
            serde_json::from_str::<Vec<Value>>(text).ok().map(Into::into)
        }
        _ => None,
    }
}

/// Whether this text is a list of messages as JSON.
pub(super) fn spells_messages(text: &str) -> bool {
    text.starts_with("[{")
        && serde_json::from_str::<Vec<Columns>>(text).is_ok_and(|l| l.iter().all(|m| m.contains_key("role")))
}
