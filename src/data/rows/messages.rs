//! Reads messages and conversations, in OpenAI's form (`role`, `content`) and ShareGPT's (`from`, `value`), with tools
//! and variables for the template.

use super::conversation::{ChatMessage, Conversation};
use super::format::RowFormat;
use super::json_text::{as_list, decode_json_text};
use super::record_reader::RecordReader;
use crate::data::source::RowColumns;
use crate::error::Result;
use crate::json;
use serde_json::{Map, Value};

/// Brings tool calls to one form: JSON text is decoded, and OpenAI's older form of a call, `function_call`, becomes a
/// list of one call. Arguments are left unchanged, because JSON text is a valid form of them.
fn normalise_tool_calls(message: &mut RowColumns) {
    if let Some(call) = message.get("function_call").filter(|v| !v.is_null()) {
        let call = serde_json::json!([{ "type": "function", "function": *decode_json_text(call) }]);
        message.shift_remove("function_call");
        let calls = message.entry("tool_calls").or_insert(Value::Null);
        if calls.is_null() {
            *calls = call;
        }
    }
    let Some(calls) = message.get_mut("tool_calls") else { return };
    *calls = decode_json_text(calls).into_owned();
    for call in calls.as_array_mut().into_iter().flatten() {
        *call = decode_json_text(call).into_owned();
        if let Some(function) = call.get_mut("function") {
            *function = decode_json_text(function).into_owned();
        }
    }
}

impl RecordReader<'_> {
    pub(super) fn conversation(&self, mut columns: RowColumns, format: RowFormat) -> Result<Conversation> {
        let names =
            if format == RowFormat::Sharegpt { ["conversations", "messages"] } else { ["messages", "conversations"] };
        let filled = |k: &&str| columns.get(*k).is_some_and(|v| !v.is_null());
        let key = names.into_iter().find(filled).or(names.into_iter().find(|k| columns.contains_key(*k)));
        let key = key.ok_or_else(|| self.missing(names[0], &columns))?;
        let list = columns.remove(key).unwrap_or_default();
        let turns = as_list(&list).ok_or_else(|| self.no_list(key, "a list of messages", &list))?;
        let mut talk = Conversation::default();
        if format == RowFormat::Sharegpt {
            talk.messages.extend(self.optional_text(&columns, "system")?.map(|s| ChatMessage::new("system", s)));
        }
        for (i, turn) in turns.iter().enumerate() {
            let at = format!("{key}[{i}]");
            let message =
                if format == RowFormat::Sharegpt { self.sharegpt_turn(turn, &at)? } else { self.turn(turn, &at)? };
            self.push(&mut talk, message, &at)?;
        }
        if talk.messages.is_empty() {
            return Err(self.error(format!("key `{key}` has no message")));
        }
        self.read_tools_and_kwargs(&mut talk, &columns)?;
        Ok(talk)
    }

    /// Adds a message. Its `weight` (0 or 1) says whether it is trained on; the key is removed, so the template does
    /// not see it.
    pub(super) fn push(&self, talk: &mut Conversation, mut message: ChatMessage, at: &str) -> Result<()> {
        match message.extra.shift_remove("weight") {
            None | Some(Value::Null) => {}
            Some(weight) => match weight.as_f64() {
                Some(0.0) => talk.excluded.push(talk.messages.len()),
                Some(1.0) => {}
                _ => return Err(self.error(format!("key `{at}.weight` is {weight}, expected 0 (not trained on) or 1"))),
            },
        }
        talk.messages.push(message);
        Ok(())
    }

    /// Reads the columns next to the messages: tool definitions and variables for the template.
    pub(super) fn read_tools_and_kwargs(&self, talk: &mut Conversation, columns: &RowColumns) -> Result<()> {
        talk.tools = match columns.get("tools") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(value) => self.definitions(value, "tools")?,
        };
        // OpenAI's older form of tools, called functions.
        if let (None, Some(value)) = (&talk.tools, columns.get("functions").filter(|v| !v.is_null())) {
            let wrap = |function: &Value| serde_json::json!({ "type": "function", "function": function });
            let list = self.definitions(value, "functions")?;
            talk.tools = list.map(|l| l.as_array().map_or(&[][..], Vec::as_slice).iter().map(wrap).collect());
        }
        talk.kwargs = match columns.get("chat_template_kwargs").map(decode_json_text).as_deref() {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(other) => return Err(self.wrong("chat_template_kwargs", "an object", other)),
        };
        Ok(())
    }

    /// Reads a list of tool definitions, each of which may be JSON text; `None` for an empty list.
    fn definitions(&self, value: &Value, key: &str) -> Result<Option<Value>> {
        let list =
            as_list(value).ok_or_else(|| self.no_list(key, "a list of tool definitions (or its JSON text)", value))?;
        let list: Vec<Value> = list.iter().map(|tool| decode_json_text(tool).into_owned()).collect();
        Ok((!list.is_empty()).then_some(Value::Array(list)))
    }

    pub(super) fn turn(&self, turn: &Value, at: &str) -> Result<ChatMessage> {
        let turn = &*decode_json_text(turn);
        let Value::Object(map) = turn else { return Err(self.wrong(at, "an object with `role` and `content`", turn)) };
        let mut extra = map.clone();
        let role = match extra.shift_remove("role") {
            // The result of a call in OpenAI's older form of tools.
            Some(Value::String(role)) if role == "function" => "tool".to_string(),
            Some(Value::String(role)) if !role.is_empty() => role,
            Some(other) => return Err(self.wrong(&format!("{at}.role"), "a role such as user or assistant", &other)),
            None => return Err(self.missing(&format!("{at}.role"), map)),
        };
        normalise_tool_calls(&mut extra);
        let acts = extra.get("tool_calls").is_some_and(|calls| !calls.is_null() && *calls != Value::Array(Vec::new()));
        let content = match extra.shift_remove("content") {
            Some(Value::String(text)) => text,
            Some(parts @ Value::Array(_)) => {
                extra.insert("content".into(), self.text_parts(parts, at)?);
                String::new()
            }
            null @ (Some(Value::Null) | None) if acts => {
                if null.is_some() {
                    extra.insert("content".into(), Value::Null);
                }
                String::new()
            }
            Some(other) => return Err(self.wrong(&format!("{at}.content"), "text", &other)),
            None => return Err(self.missing(&format!("{at}.content"), map)),
        };
        if role == "assistant" && content.is_empty() && !acts && !extra.contains_key("content") {
            return Err(self
                .error(format!("key `{at}.content` is empty, so there is nothing to train on"))
                .hint("remove the row, or fill the answer"));
        }
        Ok(ChatMessage { role, content, extra })
    }

    /// Checks a list of content parts, which is passed to the template as a list. Fails unless all parts are text.
    fn text_parts(&self, parts: Value, at: &str) -> Result<Value> {
        for (i, part) in parts.as_array().into_iter().flatten().enumerate() {
            if part.get("text").and_then(Value::as_str).is_none() {
                return Err(self.error(format!("key `{at}.content[{i}]` is not a text part")).hint(
                    "only text is supported: write `content` as text, or as parts {\"type\": \"text\", \"text\": …}",
                ));
            }
        }
        Ok(parts)
    }

    pub(super) fn sharegpt_turn(&self, turn: &Value, at: &str) -> Result<ChatMessage> {
        let turn = &*decode_json_text(turn);
        let Value::Object(map) = turn else { return Err(self.wrong(at, "an object with `from` and `value`", turn)) };
        let from = self.text_at(map, "from", at)?;
        let value = self.text_at(map, "value", at)?;
        let role = match from.as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "model" => "assistant",
            "system" => "system",
            "observation" | "tool" | "function_response" => "tool",
            "function_call" => return self.function_call(&value, at),
            other => {
                return Err(self
                    .error(format!("key `{at}.from` is \"{other}\", which is not a known speaker"))
                    .hint("known: human, user, gpt, assistant, chatgpt, model, system, function_call, observation, tool, function_response"));
            }
        };
        if role == "assistant" && value.is_empty() {
            return Err(self
                .error(format!("key `{at}.value` is empty, so there is nothing to train on"))
                .hint("remove the row, or fill the answer"));
        }
        let mut message = ChatMessage::new(role, value);
        message.extra = map
            .iter()
            .filter(|(k, _)| !matches!(k.as_str(), "from" | "value"))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        Ok(message)
    }

    fn text_at(&self, map: &RowColumns, key: &str, at: &str) -> Result<String> {
        match map.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.wrong(&format!("{at}.{key}"), "text", other)),
            None => Err(self.missing(&format!("{at}.{key}"), map)),
        }
    }

    /// Reads ShareGPT's form of a tool call: the JSON text of `{name, arguments}`, or of a list of them.
    fn function_call(&self, value: &str, at: &str) -> Result<ChatMessage> {
        let bad = || {
            self.error(format!("key `{at}.value` is not a function call"))
                .hint("expected the JSON of {\"name\": …, \"arguments\": {…}}, or a list of such calls")
        };
        let parsed = json::parse(value).map_err(|_| bad())?;
        let calls = if let Value::Array(calls) = parsed { calls } else { vec![parsed] };
        if calls.is_empty() || calls.iter().any(|c| !c.get("name").is_some_and(Value::is_string)) {
            return Err(bad());
        }
        let calls = calls.into_iter().map(|call| serde_json::json!({ "type": "function", "function": call })).collect();
        let mut message = ChatMessage::new("assistant", "");
        message.extra.insert("tool_calls".into(), Value::Array(calls));
        Ok(message)
    }
}
