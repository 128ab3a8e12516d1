//! Decodes arguments of tool calls that are JSON text (OpenAI's form) where the chat template expects objects.
//!
//! A template that prints the arguments unchanged needs JSON text. A template that encodes them itself, with
//! `arguments | tojson`, would print a quoted string full of escapes (as in transformers), and the model would learn to
//! answer so. Which kind a template is follows from what it renders, not from its source.

use crate::data::rows::ChatMessage;
use crate::json;
use crate::report;
use serde_json::Value;
use std::sync::Once;

/// Returns the messages with all arguments that are the JSON text of an object decoded to that object; `None` if there
/// are no such arguments.
pub(super) fn decode_arguments(messages: &[ChatMessage]) -> Option<Vec<ChatMessage>> {
    texts(messages).next()?;
    let mut messages = messages.to_vec();
    for message in &mut messages {
        for call in message.extra.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            let call = match call.get("function").is_some_and(Value::is_object) {
                true => &mut call["function"],
                false => call,
            };
            if let Some(arguments) = call.get_mut("arguments")
                && let Some(object) = parse_object(arguments)
            {
                *arguments = object;
            }
        }
    }
    Some(messages)
}

/// Returns true if `rendered` shows arguments of these messages as a quoted JSON string.
pub(super) fn quoted_in(messages: &[ChatMessage], rendered: &str) -> bool {
    texts(messages).any(|text| {
        let quoted = Value::from(text).to_string();
        let escaped = |c: char| {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect::<String>()
        };
        let ascii =
            || quoted.chars().map(|c| if c.is_ascii() { c.to_string() } else { escaped(c) }).collect::<String>();
        rendered.contains(&quoted) || !quoted.is_ascii() && rendered.contains(&ascii())
    })
}

/// Reports, once per process, that the template gets decoded arguments.
pub(super) fn report_decoding_once() {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        report::info(
            "tool arguments given as JSON text are decoded first, because the chat template encodes them itself \
             (transformers would render a quoted string)",
        );
    });
}

/// Returns the arguments that are the JSON text of an object.
fn texts(messages: &[ChatMessage]) -> impl Iterator<Item = &str> {
    let calls = messages.iter().filter_map(|m| m.extra.get("tool_calls").and_then(Value::as_array)).flatten();
    let arguments = calls.filter_map(|call| call.get("function").unwrap_or(call).get("arguments"));
    arguments.filter(|a| parse_object(a).is_some()).filter_map(Value::as_str)
}

fn parse_object(arguments: &Value) -> Option<Value> {
    let text = arguments.as_str().filter(|text| text.trim_start().starts_with('{'))?;
    json::parse(text).ok().filter(Value::is_object)
}
