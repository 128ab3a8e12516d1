//! The sources of a recipe: which files, read as which format, and their share of an epoch.

use super::format::RowFormat;
use indexmap::IndexMap;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, SeqAccess, Visitor, value};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

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
    /// A .jsonl, .json, .csv, .tsv, .parquet or .arrow/.ipc/.feather file, a folder of such files or one that `save_to_disk` wrote, or a pattern (`data/*.jsonl`, `**` for folders below).
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
