//! Lists and objects in columns, which some files store as JSON text.

use crate::json;
use serde_json::Value;
use std::borrow::Cow;

/// Names the JSON type of a value, for errors.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        number if json::long_number(number).is_some() => "a number",
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Returns a list, also if it is written as JSON text (as in CSV files); `None` for other values.
pub(super) fn as_list(value: &Value) -> Option<Cow<'_, [Value]>> {
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
pub(super) fn decode_json_text(value: &Value) -> Cow<'_, Value> {
    match value {
        Value::String(text) if text.trim_start().starts_with(['{', '[']) => match json::parse(text) {
            Ok(inner @ (Value::Object(_) | Value::Array(_))) => Cow::Owned(inner),
            _ => Cow::Borrowed(value),
        },
        _ => Cow::Borrowed(value),
    }
}

/// Returns true if the text is a JSON list of messages.
pub(super) fn is_messages_json(text: &str) -> bool {
    text.starts_with("[{")
        && json::parse(text).is_ok_and(|v| {
            v.as_array().is_some_and(|l| l.iter().all(|m| m.as_object().is_some_and(|m| m.contains_key("role"))))
        })
}
