//! Detects the format of a row from its columns.

use super::dialogue::is_dialogue;
use super::format::RowFormat;
use super::json_text::{as_list, decode_json_text};
use super::verdict::{parse_verdict, verdict_column, verdict_words};
use crate::data::source::RowColumns;
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
pub fn detect_format(columns: &RowColumns, want: RowPurpose, path: &Path) -> Result<RowFormat> {
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
