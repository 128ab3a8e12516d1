//! The formats of rows, and the columns that each of them reads.

use crate::data::source::RowColumns;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The formats of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RowFormat {
    /// Detected from the columns.
    #[default]
    Auto,
    /// `messages`: a list of `{role, content}`.
    Messages,
    /// `conversations`: a list of `{from, value}`; human, gpt and others become user, assistant, …
    Sharegpt,
    /// `instruction`, optional `input`, `output`.
    Alpaca,
    /// `prompt` and `completion`, as text or as lists of messages.
    PromptCompletion,
    /// `text`: every token is trained on.
    Text,
    /// `prompt` alone, as text or as a list of messages.
    Prompt,
    /// `chosen` and `rejected`, with `prompt` or with their common beginning as the prompt; optional `margin`.
    Preference,
    /// `chosen` and `rejected` as dialogues in text: `\n\nHuman: …\n\nAssistant: …`.
    Hh,
    /// `prompt`, `completion` and `label` (good or bad), or a conversation with `label`.
    Unpaired,
}

impl RowFormat {
    /// Returns the name used in recipes.
    pub fn name(self) -> &'static str {
        match self {
            RowFormat::Auto => "auto",
            RowFormat::Messages => "messages",
            RowFormat::Sharegpt => "sharegpt",
            RowFormat::Alpaca => "alpaca",
            RowFormat::PromptCompletion => "prompt_completion",
            RowFormat::Text => "text",
            RowFormat::Prompt => "prompt",
            RowFormat::Preference => "preference",
            RowFormat::Hh => "hh",
            RowFormat::Unpaired => "unpaired",
        }
    }

    /// Returns the format with this name in recipes.
    pub fn from_name(name: &str) -> Option<Self> {
        std::iter::once(RowFormat::Auto).chain(Self::KNOWN).find(|f| f.name() == name)
    }

    /// All formats except `auto`.
    pub const KNOWN: [RowFormat; 9] = [
        RowFormat::Messages,
        RowFormat::Sharegpt,
        RowFormat::Alpaca,
        RowFormat::PromptCompletion,
        RowFormat::Text,
        RowFormat::Prompt,
        RowFormat::Preference,
        RowFormat::Hh,
        RowFormat::Unpaired,
    ];
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
