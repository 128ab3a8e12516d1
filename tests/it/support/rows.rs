//! Data rows and the small tokenizer that reads them.

use super::fixture;
use ft::data::chat::ChatTokenizer;
use ft::data::rows::ChatMessage;
use ft::error::Result;
use serde_json::{Value, json};

/// Loads the small tokenizer with its own chat template (ChatML).
pub fn tiny_tokenizer() -> ChatTokenizer {
    ChatTokenizer::load(&fixture("tiny-tokenizer"), None).unwrap()
}

/// Loads the small tokenizer with a chat template of tests/fixtures/templates.
pub fn with_template(name: &str) -> Result<ChatTokenizer> {
    ChatTokenizer::load(&fixture("tiny-tokenizer"), Some(&fixture("templates").join(name)))
}

/// Returns a message of a conversation as rows have it.
pub fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// Returns a user's message.
pub fn user(content: &str) -> Value {
    turn("user", content)
}

/// Returns an assistant's message.
pub fn says(content: &str) -> Value {
    turn("assistant", content)
}

/// Returns a row with a conversation: (role, content) of each turn.
pub fn talk(turns: &[(&str, &str)]) -> Value {
    json!({ "messages": turns.iter().map(|(role, content)| turn(role, content)).collect::<Vec<_>>() })
}

/// Converts a JSON message to the form that records have.
pub fn message(value: &Value) -> ChatMessage {
    let mut extra = value.as_object().unwrap().clone();
    let role = extra.shift_remove("role").unwrap().as_str().unwrap().to_string();
    let content = match extra.get("content") {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    };
    extra.retain(|key, value| key != "content" || !value.is_string());
    ChatMessage { role, content, extra }
}
