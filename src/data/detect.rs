//! Detects the format of a row from its columns, and lists the columns that each format reads.

use super::RowFormat;
use super::preference::is_dialogue;
use super::record::RowColumns;
use crate::error::{Error, Result};
use crate::json;
use serde_json::Value;
use std::path::Path;

/// What rows are used for. Decides between formats if the columns allow several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowPurpose {
    /// To be shown: the format that uses most of the row.
    #[default]
    Anything,
    /// Answers to train on.
    Answers,
    /// Pairs of a better and a worse answer.
    Pairs,
    /// Answers with a label (good or bad).
    Verdicts,
    /// Prompts.
    Prompts,
}

/// Detects the format of a row. Columns that are not null have precedence over null ones, so that rows of several kinds
/// may share the columns of a file; a column with labels always counts.
///
/// Errors: the columns fit no format that serves the purpose.
pub fn detect(columns: &RowColumns, want: RowPurpose, path: &Path) -> Result<RowFormat> {
    let all = PossibleFormats::of(columns, |_| true);
    let filled = PossibleFormats::of(columns, |value| !value.is_null()).best(want);
    // A row whose answers are all null would look like a prompt alone: look at its null columns first.
    if let Some(found) = filled.filter(|f| *f != RowFormat::Prompt).or(all.best(want)).or(filled) {
        return Ok(found);
    }
    let PossibleFormats { pair, verdict, text, prompt, .. } = all;
    let names = columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    let error = |what: &str| Error::user(format!("{}: found columns {names}: {what}", path.display()));
    if want == RowPurpose::Answers {
        if pair.is_some() {
            return Err(error("these are preference pairs")
                .hint("supervised fine-tuning needs one answer per row: rename `chosen` to `completion`, or use a method that trains on pairs"));
        }
        if let Some((name, value)) = verdict.and(verdict_column(columns)).map(|name| (name, &columns[name])) {
            if parse_verdict(value).is_none() && !value.is_null() {
                let value = json::to_text(value);
                return Err(error(&format!("`{name}` is {value}, which is not a label for an answer (good or bad)"))
                    .hint(format!(
                        "labels are {}; set `format` to train on every answer, whatever its label",
                        verdict_words()
                    )));
            }
            return Err(error("these are answers with a label (good or bad)").hint(
                "supervised fine-tuning would train on the bad ones too: keep only the good ones, or set `format` to train on all",
            ));
        }
        if let Some(text) = text {
            return Ok(text);
        }
    }
    let (problem, known) = match want {
        RowPurpose::Pairs => ("no preference pairs", "`chosen`, `rejected`, with or without `prompt`"),
        RowPurpose::Verdicts => ("no answers with a label", "`prompt`, `completion`, `label` | `chosen`, `rejected`"),
        RowPurpose::Prompts => {
            ("no prompts", "`prompt` | `messages` | `conversations` | `instruction`, `output` | `chosen`, `rejected`")
        }
        _ if prompt.is_some() => ("these are prompts without answers", ANSWERS),
        RowPurpose::Answers => ("no known row format has these", ANSWERS),
        RowPurpose::Anything => ("no known row format has these", EVERYTHING),
    };
    let error = error(problem);
    // The rows of a file may be in a list inside one big object.
    let lists = |value: &Value| value.as_array().is_some_and(|l| l.first().is_some_and(Value::is_object));
    if let Some((name, _)) = columns.iter().find(|(_, value)| lists(value)) {
        return Err(error.hint(format!(
            "if the rows are in the list `{name}`, write only that list: jq -c '.[\"{name}\"][]' FILE > rows.jsonl"
        )));
    }
    Err(error.hint(format!("known: {known}; rename the columns to one of these, or map them with `columns`")))
}

/// The formats that the columns of a row allow.
struct PossibleFormats {
    talk: Option<RowFormat>,
    pair: Option<RowFormat>,
    verdict: Option<RowFormat>,
    both: Option<RowFormat>,
    task: Option<RowFormat>,
    text: Option<RowFormat>,
    prompt: Option<RowFormat>,
}

impl PossibleFormats {
    /// Looks at the columns whose value `counts`; a column with labels always counts.
    fn of(columns: &RowColumns, counts: impl Fn(&Value) -> bool) -> Self {
        let has = |key: &str| columns.get(key).is_some_and(&counts);
        let talk = ["messages", "conversations"].into_iter().find(|k| has(k)).map(|list| {
            let first = as_list(&columns[list]).and_then(|turns| turns.first().cloned()).unwrap_or_default();
            if decode_json_text(&first).get("from").is_some() { RowFormat::Sharegpt } else { RowFormat::Messages }
        });
        let pair = (has("chosen") && has("rejected")).then(|| {
            let dialogue = |key: &str| columns[key].as_str().is_some_and(is_dialogue);
            let hh = !has("prompt") && dialogue("chosen") && dialogue("rejected");
            if hh { RowFormat::Hh } else { RowFormat::Preference }
        });
        let judged = verdict_column(columns).is_some();
        let both = has("prompt") && has("completion");
        let task = has("instruction") && has("output");
        Self {
            talk,
            pair,
            verdict: (judged && (both || talk.is_some())).then_some(RowFormat::Unpaired),
            both: both.then_some(RowFormat::PromptCompletion),
            task: task.then_some(RowFormat::Alpaca),
            text: has("text").then_some(RowFormat::Text),
            prompt: has("prompt").then_some(RowFormat::Prompt),
        }
    }

    fn best(&self, want: RowPurpose) -> Option<RowFormat> {
        let Self { talk, pair, verdict, both, task, text, prompt } = *self;
        match want {
            RowPurpose::Anything => pair.or(verdict).or(talk).or(both).or(task).or(text).or(prompt),
            RowPurpose::Answers => talk.or(both).filter(|_| verdict.is_none()).or(task),
            RowPurpose::Pairs => pair,
            RowPurpose::Verdicts => verdict.or(pair),
            RowPurpose::Prompts => prompt.or(talk).or(task).or(pair),
        }
    }
}

const ANSWERS: &str = "`messages` | `conversations` | `instruction`, `output` | `prompt`, `completion` | `text`";
const EVERYTHING: &str = "`messages` | `conversations` | `instruction`, `output` | `prompt`, `completion` | `text` | \
                          `prompt` | `chosen`, `rejected` | `prompt`, `completion`, `label`";

/// Returns the name of the column with the label of an answer. If there are two, the one with a valid label.
pub(super) fn verdict_column(columns: &RowColumns) -> Option<&'static str> {
    let names = ["label", "kto_tag"];
    let says = |key: &&str| columns.get(*key).is_some_and(|v| parse_verdict(v).is_some());
    names.into_iter().find(says).or_else(|| names.into_iter().find(|key| columns.contains_key(*key)))
}

/// Labels for a good and for a bad answer, in pairs.
const VERDICTS: [(&str, &str); 14] = [
    ("true", "false"),
    ("good", "bad"),
    ("desirable", "undesirable"),
    ("yes", "no"),
    ("chosen", "rejected"),
    ("accepted", "rejected"),
    ("accept", "reject"),
    ("positive", "negative"),
    ("correct", "incorrect"),
    ("like", "dislike"),
    ("thumbs up", "thumbs down"),
    ("up", "down"),
    ("👍", "👎"),
    ("upvote", "downvote"),
];

/// Lists the valid labels, for error messages.
pub(super) fn verdict_words() -> String {
    let words = VERDICTS.iter().map(|(good, bad)| format!("{good}/{bad}")).collect::<Vec<_>>().join(", ");
    format!("1/0 and {words}")
}

/// Reads a label: true for good, false for bad. It may be a boolean, 1 or 0, or one of the words in [`VERDICTS`].
pub(super) fn parse_verdict(value: &Value) -> Option<bool> {
    let number = |x: f64| match x {
        0.0 => Some(false),
        1.0 => Some(true),
        _ => None,
    };
    match value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => n.as_f64().and_then(number),
        Value::String(text) => {
            let said = text.trim().to_lowercase().replace(['_', '-'], " ");
            let word = |(good, bad): &(&str, &str)| match said.as_str() {
                said if said == *good => Some(true),
                said if said == *bad => Some(false),
                _ => None,
            };
            VERDICTS.iter().find_map(word).or_else(|| text.trim().parse().ok().and_then(number))
        }
        _ => None,
    }
}

/// Returns the names of the columns that `format` reads.
pub(super) fn format_columns(format: RowFormat) -> &'static [&'static str] {
    match format {
        RowFormat::Auto => &[],
        RowFormat::Messages => &["messages", "conversations", "tools", "functions", "chat_template_kwargs"],
        RowFormat::Sharegpt => &["messages", "conversations", "system", "tools", "functions", "chat_template_kwargs"],
        RowFormat::Alpaca => &["instruction", "input", "output", "system", "history"],
        RowFormat::PromptCompletion => &["prompt", "completion", "tools", "functions", "chat_template_kwargs"],
        RowFormat::Text => &["text"],
        RowFormat::Prompt => &["prompt", "tools", "functions", "chat_template_kwargs"],
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
            "functions",
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
            "functions",
            "chat_template_kwargs",
        ],
    }
}

/// Returns the columns of a row that `format` reads, in the row's order.
pub fn used_columns(columns: &RowColumns, format: RowFormat) -> Vec<String> {
    columns.keys().filter(|k| format_columns(format).contains(&k.as_str())).cloned().collect()
}

/// Returns the columns of a row that `format` does not read, in the row's order. They are reported to the user.
pub fn unused_columns(columns: &RowColumns, format: RowFormat) -> Vec<String> {
    columns.keys().filter(|k| !format_columns(format).contains(&k.as_str())).cloned().collect()
}

/// Returns a list, also if it is written as JSON text (as in CSV files); `None` for other values.
pub(super) fn as_list(value: &Value) -> Option<std::borrow::Cow<'_, [Value]>> {
    match value {
        Value::Array(items) => Some(items.as_slice().into()),
        Value::String(text) if text.trim_start().starts_with('[') => match json::parse(text).ok()? {
            Value::Array(items) => Some(items.into()),
            _ => None,
        },
        _ => None,
    }
}

/// Decodes an object or list that is written as JSON text: files whose columns have one type store values of varying
/// structure so. Other values are returned unchanged.
pub(super) fn decode_json_text(value: &Value) -> std::borrow::Cow<'_, Value> {
    match value {
        Value::String(text) if text.trim_start().starts_with(['{', '[']) => match json::parse(text) {
            Ok(inner @ (Value::Object(_) | Value::Array(_))) => std::borrow::Cow::Owned(inner),
            _ => std::borrow::Cow::Borrowed(value),
        },
        _ => std::borrow::Cow::Borrowed(value),
    }
}

/// Returns true if the text is a JSON list of messages.
pub(super) fn is_messages_json(text: &str) -> bool {
    text.starts_with("[{")
        && json::parse(text).is_ok_and(|v| {
            v.as_array().is_some_and(|l| l.iter().all(|m| m.as_object().is_some_and(|m| m.contains_key("role"))))
        })
}
