//! The setting of a recipe: where token ids are cached.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

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
