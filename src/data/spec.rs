//! The data settings of a recipe: where rows come from, how they are read, and what happens to rows that are too long.

use indexmap::IndexMap;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, SeqAccess, Visitor, value};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

/// Which tokens of a conversation are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Supervise {
    /// Every assistant turn with its end token (for prompt and completion: the completion).
    #[default]
    Assistant,
    /// Only the last assistant turn.
    Last,
    /// Every token.
    All,
}

/// Where rows come from: one source, or a list of them.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceList(pub Vec<SourceSpec>);

impl SourceList {
    /// Returns true if any source has a weight.
    pub fn weighted(&self) -> bool {
        self.0.iter().any(|s| s.weight.is_some())
    }
}

impl Serialize for SourceList {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(out),
            several => several.serialize(out),
        }
    }
}

impl<'de> Deserialize<'de> for SourceList {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = SourceList;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a source or a list of sources")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<SourceList, A::Error> {
                SourceSpec::deserialize(value::MapAccessDeserializer::new(map)).map(|one| SourceList(vec![one]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<SourceList, A::Error> {
                Vec::deserialize(value::SeqAccessDeserializer::new(list)).map(SourceList)
            }
        }
        input.deserialize_any(OneOrMore)
    }
}

impl JsonSchema for SourceList {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Sources".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<SourceSpec>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
    }
}

/// A source of rows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// A .jsonl, .json, .csv, .parquet or .arrow/.ipc/.feather file, a folder of such files or one that `save_to_disk` wrote, or a pattern (`data/*.jsonl`, `**` for folders below).
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// The format of the rows; `auto` detects it from the columns of each file and reports it.
    #[serde(default)]
    pub format: RowFormat,
    /// Columns with other names: `{ prompt: question, completion: answer }` reads `prompt` from the column `question`.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub columns: IndexMap<String, String>,
    /// Use only this many rows, from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub rows: Option<usize>,
    /// The share of an epoch's examples that come from this source, relative to the other sources. If no source has a weight, every example occurs once per epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub weight: Option<f64>,
}

impl SourceSpec {
    /// Makes a source of one file or path, read as `format`.
    pub fn file(path: impl Into<PathBuf>, format: RowFormat) -> Self {
        Self { path: path.into(), format, ..Default::default() }
    }
}

/// Where token ids are cached between runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum CacheChoice {
    /// In the user's cache folder; small files are not cached.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// In this folder, for files of any size.
    Folder(PathBuf),
}

impl CacheChoice {
    /// Returns true for the default.
    pub fn is_auto(&self) -> bool {
        *self == CacheChoice::Auto
    }
}

impl Serialize for CacheChoice {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            CacheChoice::Auto => out.serialize_bool(true),
            CacheChoice::Off => out.serialize_bool(false),
            CacheChoice::Folder(path) => path.serialize(out),
        }
    }
}

impl<'de> Deserialize<'de> for CacheChoice {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct FlagOrFolder;
        impl Visitor<'_> for FlagOrFolder {
            type Value = CacheChoice;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("true, false or a folder")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<CacheChoice, E> {
                Ok(if on { CacheChoice::Auto } else { CacheChoice::Off })
            }
            fn visit_str<E: de::Error>(self, path: &str) -> Result<CacheChoice, E> {
                Ok(CacheChoice::Folder(path.into()))
            }
        }
        input.deserialize_any(FlagOrFolder)
    }
}

impl JsonSchema for CacheChoice {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "CacheChoice".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "boolean" }, { "type": "string", "format": "path" }] })
    }
}

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

/// What happens to a row that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// Stop when more than `data.overflow_tolerance` of the rows are too long; drop and report those below it.
    #[default]
    Error,
    /// Leave such rows out.
    Drop,
    /// Keep the first `batch.max_len` tokens; the end of the answer is lost.
    Truncate,
    /// Cut into several rows of at most `batch.max_len` tokens.
    Split,
}
