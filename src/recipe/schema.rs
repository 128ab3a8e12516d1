//! Makes the JSON Schema of a recipe from the structs, and reads it.
//!
//! The check, suggestions, `ft recipe explain` and docs/recipe.md all learn from here which keys exist. Invariant,
//! checked by a test: the schema contains only the keywords in `KEYWORDS`, all of which the check knows.

use super::sections::Recipe;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};
use std::sync::OnceLock;

/// Returns the JSON Schema (2020-12) of a recipe, which editors can use, too.
pub fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Recipe>();
        schema.insert("title".into(), "ft recipe".into());
        // Title and description come first, for people who open the file.
        let first = ["$schema", "title", "description"];
        let (mut head, mut rest): (Vec<_>, Vec<_>) =
            schema.ensure_object().clone().into_iter().partition(|(word, _)| first.contains(&word.as_str()));
        head.sort_by_key(|(word, _)| first.iter().position(|f| f == word));
        head.append(&mut rest);
        Value::Object(head.into_iter().collect())
    })
}

/// The kind of value that a schema allows.
pub(super) enum SchemaShape<'a> {
    /// A map with these keys.
    Section { properties: &'a Map<String, Value>, required: Vec<&'a str> },
    /// One of several alternatives, written as a word or as a map with one key.
    Choice(Vec<SchemaChoice<'a>>),
    /// A map with arbitrary keys and values of one kind.
    Map { keys: Option<&'a Value>, values: &'a Value },
    /// A list of values of one kind.
    List { items: &'a Value, min: Option<u64>, max: Option<u64> },
    /// A value of one of these kinds; the first that fits is used.
    Either(Vec<&'a Value>),
    /// A `string`, `number`, `integer` or `boolean` (JSON Schema's names), with its limits.
    Scalar { kind: &'a str, limits: &'a Value },
}

/// One alternative of a choice. With `payload` it is written as a map whose only key is `name`, without as the word
/// `name`.
pub(super) struct SchemaChoice<'a> {
    /// Name as recipes write it.
    pub name: &'a str,
    /// Its documentation.
    pub doc: String,
    /// Schema of its value; `None` for a bare word.
    pub payload: Option<&'a Value>,
}

/// Follows `$ref` to the referenced schema.
fn resolve(mut schema: &'static Value) -> &'static Value {
    while let Some(name) = schema["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")) {
        schema = &self::schema()["$defs"][name];
    }
    schema
}

/// Returns the schema of an optional value without `null`, and true if `null` was allowed.
pub(super) fn strip_null(schema: &'static Value) -> (&'static Value, bool) {
    if let Some(any) = schema["anyOf"].as_array() {
        let some: Vec<&Value> = any.iter().filter(|s| s["type"] != "null").collect();
        if some.len() == 1 && any.len() == 2 {
            return (resolve(some[0]), true);
        }
    }
    let nullable = schema["type"].as_array().is_some_and(|types| types.iter().any(|t| t == "null"));
    (resolve(schema), nullable)
}

/// Returns the kind of value that a schema allows; `null` is ignored.
pub(super) fn shape(schema: &'static Value) -> SchemaShape<'static> {
    let schema = strip_null(schema).0;
    if let Some(any) = schema["anyOf"].as_array() {
        return SchemaShape::Either(any.iter().collect());
    }
    if schema.get("oneOf").is_some() || schema.get("enum").is_some() || schema.get("const").is_some() {
        return SchemaShape::Choice(choices(schema));
    }
    let kind = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).find(|t| *t != "null"),
        other => other.as_str(),
    };
    match kind {
        Some("object") => match schema.get("additionalProperties") {
            Some(values @ Value::Object(_)) => SchemaShape::Map { keys: schema.get("propertyNames"), values },
            _ => SchemaShape::Section {
                properties: schema["properties"].as_object().unwrap_or_else(|| empty()),
                required: schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
            },
        },
        Some("array") => SchemaShape::List {
            items: &schema["items"],
            min: schema["minItems"].as_u64(),
            max: schema["maxItems"].as_u64(),
        },
        kind => SchemaShape::Scalar { kind: kind.unwrap_or("any"), limits: schema },
    }
}

/// Returns the schema of a list's items if they are sections, or of the section that may be given instead of a list (a
/// key such as `data.train` accepts one source or a list of sources).
pub(super) fn section_of(shape: &SchemaShape<'static>) -> Option<&'static Value> {
    match shape {
        SchemaShape::List { items, .. } => {
            Some(*items).filter(|s| matches!(self::shape(s), SchemaShape::Section { .. }))
        }
        SchemaShape::Either(of) => of.iter().copied().find(|s| matches!(self::shape(s), SchemaShape::Section { .. })),
        _ => None,
    }
}

/// Returns a path without the indices of list items: all items of a list have the same keys and documentation.
pub(super) fn without_list_indices(path: &str) -> String {
    let names = path.split('.').filter(|name| name.is_empty() || name.bytes().any(|b| !b.is_ascii_digit()));
    names.collect::<Vec<_>>().join(".")
}

fn empty() -> &'static Map<String, Value> {
    static EMPTY: OnceLock<Map<String, Value>> = OnceLock::new();
    EMPTY.get_or_init(Map::new)
}

fn choices(schema: &'static Value) -> Vec<SchemaChoice<'static>> {
    let doc = doc_of(schema);
    if let Some(name) = schema["const"].as_str() {
        return vec![SchemaChoice { name, doc, payload: None }];
    }
    if let Some(names) = schema["enum"].as_array() {
        let word = |name| SchemaChoice { name, doc: String::new(), payload: None };
        return names.iter().filter_map(Value::as_str).map(word).collect();
    }
    if let Some(of) = schema["oneOf"].as_array() {
        return of.iter().flat_map(choices).collect();
    }
    let tagged = schema["properties"].as_object().into_iter().flatten();
    tagged.map(|(name, payload)| SchemaChoice { name, doc: doc.clone(), payload: Some(payload) }).collect()
}

fn doc_of(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or("").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A key of the recipe, or a section of keys, as the reference shows it.
#[derive(Debug, Clone)]
pub struct RecipeKey {
    /// The dotted path, as `--set` takes it.
    pub path: String,
    /// The doc comment of the field.
    pub doc: String,
    /// Description of the allowed values, such as `number (at least 0)`.
    pub kind: String,
    /// The default, unless it depends on other keys.
    pub default: Option<Value>,
    /// True if the key must be given.
    pub required: bool,
    /// The allowed words, each with its meaning; empty if the key is not a choice.
    pub choices: Vec<(String, String)>,
    /// True if the key contains other keys rather than a value.
    pub section: bool,
}

impl RecipeKey {
    /// Returns the last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// Returns the path without its last part; empty for top-level sections.
    pub fn parent(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }
}

/// Returns every key and section in the order of the structs, each section before its keys.
pub fn keys() -> &'static [RecipeKey] {
    static KEYS: OnceLock<Vec<RecipeKey>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let mut keys = Vec::new();
        collect_keys("", schema(), &mut keys);
        keys
    })
}

/// Returns the key with this dotted path. Indices of list items in the path are ignored.
pub fn key(path: &str) -> Option<&'static RecipeKey> {
    let path = without_list_indices(path);
    keys().iter().find(|k| k.path == path)
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_string() } else { format!("{parent}.{name}") }
}

fn collect_keys(path: &str, schema: &'static Value, keys: &mut Vec<RecipeKey>) {
    match shape(schema) {
        SchemaShape::Section { properties, required } => {
            for (name, property) in properties {
                let path = join(path, name);
                let own = doc_of(property);
                let doc = if own.is_empty() { doc_of(strip_null(property).0) } else { own };
                let required = required.contains(&name.as_str());
                push(path, doc, property, required, keys);
            }
        }
        SchemaShape::Choice(choices) => {
            for choice in choices {
                if let Some(payload) = choice.payload {
                    push(join(path, choice.name), choice.doc, payload, false, keys);
                }
            }
        }
        either => {
            if let Some(section) = section_of(&either) {
                collect_keys(path, section, keys);
            }
        }
    }
}

fn push(path: String, doc: String, schema: &'static Value, required: bool, keys: &mut Vec<RecipeKey>) {
    let of = shape(schema);
    let tagged = matches!(&of, SchemaShape::Choice(choices) if choices.iter().any(|c| c.payload.is_some()));
    let section = tagged || matches!(of, SchemaShape::Section { .. }) || section_of(&of).is_some();
    let choices = match &of {
        SchemaShape::Choice(choices) => choices.iter().map(|c| (c.name.to_string(), c.doc.clone())).collect(),
        _ => Vec::new(),
    };
    let default = schema.get("default").filter(|d| !d.is_null() && !section).cloned();
    keys.push(RecipeKey { path: path.clone(), doc, kind: kind(schema), default, required, choices, section });
    if section {
        collect_keys(&path, schema, keys);
    }
}

/// Describes the values that a schema allows, such as `number (at least 0)`.
pub(super) fn kind(schema: &'static Value) -> String {
    match shape(schema) {
        SchemaShape::Section { .. } => "section".into(),
        SchemaShape::Choice(choices) if choices.iter().any(|c| c.payload.is_some()) => "one of these sections".into(),
        SchemaShape::Choice(_) => "one of the choices".into(),
        SchemaShape::Map { values, .. } => format!("map of names to {}", kind(values)),
        SchemaShape::List { items, min, max } => match (min, max) {
            (Some(a), Some(b)) if a == b => format!("list of {a}: {}", kind(items)),
            _ => format!("list of {}", kind(items)),
        },
        SchemaShape::Either(of) => of.into_iter().map(kind).collect::<Vec<_>>().join(" or "),
        SchemaShape::Scalar { kind, limits } => match range(limits) {
            Some(range) if kind != "string" => format!("{} ({range})", word(kind, limits)),
            _ => word(kind, limits).into(),
        },
    }
}

fn word(kind: &'static str, limits: &Value) -> &'static str {
    match (kind, limits["format"].as_str()) {
        ("string", Some("path")) => "path",
        ("string", Some("regex")) => "regular expression",
        ("string", _) => "text",
        ("boolean", _) => "true or false",
        _ => kind,
    }
}

/// Describes the limits of a number, such as `at least 0` or `from 0 to 1`; `None` if there are none.
pub(super) fn range(limits: &Value) -> Option<String> {
    match (limits.get("minimum"), limits.get("maximum")) {
        (Some(min), Some(max)) => Some(format!("from {} to {}", number(min), number(max))),
        (Some(min), None) => Some(format!("at least {}", number(min))),
        (None, Some(max)) => Some(format!("at most {}", number(max))),
        (None, None) => None,
    }
}

/// Formats a number without needless decimals: `1.0` becomes `1`.
fn number(value: &Value) -> String {
    value.as_f64().filter(|_| !value.is_u64() && !value.is_i64()).map_or_else(|| value.to_string(), |f| f.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schema keywords that `check` and this file know.
    const KEYWORDS: [&str; 22] = [
        "$schema",
        "$defs",
        "$ref",
        "title",
        "description",
        "default",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "propertyNames",
        "oneOf",
        "anyOf",
        "enum",
        "const",
        "items",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "pattern",
        "named",
    ];
    const FORMATS: [&str; 12] =
        ["path", "regex", "double", "float", "int64", "int32", "uint", "uint8", "uint16", "uint32", "uint64", "int"];

    fn walk(schema: &Value, at: &str) {
        for (word, value) in schema.as_object().into_iter().flatten() {
            assert!(word == "format" || KEYWORDS.contains(&word.as_str()), "{at}: `{word}` is not checked by ft");
            match word.as_str() {
                "format" => assert!(FORMATS.contains(&value.as_str().unwrap()), "{at}: format {value}"),
                "properties" | "$defs" => {
                    value.as_object().unwrap().iter().for_each(|(k, s)| walk(s, &format!("{at}.{k}")))
                }
                "oneOf" | "anyOf" => value.as_array().unwrap().iter().for_each(|s| walk(s, at)),
                "additionalProperties" => match value {
                    Value::Bool(open) => assert!(!open, "{at}: a section must deny unknown keys"),
                    values => walk(values, at),
                },
                "items" | "propertyNames" => walk(value, at),
                _ => {}
            }
        }
        if schema.get("properties").is_some() {
            assert_eq!(schema["additionalProperties"], false, "{at}: a section must deny unknown keys");
        }
    }

    #[test]
    fn the_check_knows_every_keyword_of_the_schema() {
        walk(schema(), "");
    }

    #[test]
    fn every_key_has_a_doc() {
        for key in keys() {
            assert!(key.doc.ends_with(['.', ')', '`']), "{}: `{}` is no sentence", key.path, key.doc);
            for (choice, doc) in &key.choices {
                assert!(!doc.is_empty(), "{}: choice `{choice}` has no doc comment", key.path);
            }
        }
    }
}
