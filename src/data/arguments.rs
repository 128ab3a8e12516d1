//! Arguments of tool calls that stand as JSON text, which is OpenAI's form of them.
//!
//! A template that writes text as it is needs them so. One that writes JSON itself (`arguments | tojson`) would write a
//! quoted text with escapes, as transformers does, and a model would learn to answer with that. Which of both a template
//! is shows in what it writes, whatever its source looks like.

use super::json;
use super::record::Message;
use crate::report;
use serde_json::Value;
use std::sync::Once;

/// The same messages with every argument that is text and spells an object as that object; none where there is no such
/// argument.
pub(super) fn decoded(messages: &[Message]) -> Option<Vec<Message>> {
    texts(messages).next()?;
    let mut messages = messages.to_vec();
    for message in &mut messages {
        for call in message.extra.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            let call = match call.get("function").is_some_and(Value::is_object) {
                true => &mut call["function"],
                false => call,
            };
            if let Some(arguments) = call.get_mut("arguments")
                && let Some(object) = spelt(arguments)
            {
                *arguments = object;
            }
        }
    }
    Some(messages)
}

/// Whether `rendered` shows arguments of these messages as a quoted text.
pub(super) fn quoted_in(messages: &[Message], rendered: &str) -> bool {
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

/// Says once that arguments are given to the template decoded.
pub(super) fn say_decoded() {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        report::info(
            "tool arguments that are JSON text are decoded: the chat template writes JSON itself (transformers would write them as a quoted text)",
        );
    });
}

/// Arguments that are text and spell an object.
fn texts(messages: &[Message]) -> impl Iterator<Item = &str> {
    let calls = messages.iter().filter_map(|m| m.extra.get("tool_calls").and_then(Value::as_array)).flatten();
    let arguments = calls.filter_map(|call| call.get("function").unwrap_or(call).get("arguments"));
    arguments.filter(|a| spelt(a).is_some()).filter_map(Value::as_str)
}

fn spelt(arguments: &Value) -> Option<Value> {
    let text = arguments.as_str().filter(|text| text.trim_start().starts_with('{'))?;
    json::parse(text).ok().filter(Value::is_object)
}
