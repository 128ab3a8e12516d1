//! Messages, and conversations made of them.

use crate::data::source::RowColumns;
use serde_json::{Map, Value};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatMessage {
    /// The speaker: system, user, assistant, tool, or another role that the template knows.
    pub role: String,
    /// The text. Empty if `extra` has the content in another form.
    pub content: String,
    /// All other keys as the template gets them (`tool_calls`, `name`, `reasoning_content`, …). Also contains `content`
    /// if that is not text: null in a message of tool calls, or a list of parts.
    pub extra: RowColumns,
}

impl ChatMessage {
    /// Makes a message of text without further keys.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// Returns the message as the template gets it.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("role".into(), self.role.clone().into());
        map.insert("content".into(), self.content.clone().into());
        map.extend(self.extra.iter().map(|(k, v)| (k.clone(), v.clone())));
        Value::Object(map)
    }
}

/// Messages in order, with tools and variables for the template.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conversation {
    /// The messages, in order.
    pub messages: Vec<ChatMessage>,
    /// Number of messages at the beginning that are given and never trained on (the prompt of a prompt-completion row).
    pub prompt_len: usize,
    /// Indices of the messages that the row excludes from training (`weight: 0`).
    pub excluded: Vec<usize>,
    /// Tool definitions, passed to the template unchanged.
    pub tools: Option<Value>,
    /// `chat_template_kwargs` of the row, e.g. `enable_thinking`.
    pub kwargs: RowColumns,
}
