//! Interprets the columns of a row as a record of one of the known formats.
//!
//! A record is a conversation, an instruction, a prompt with its completion, plain text, a prompt alone, a pair of
//! answers or a labelled answer. A column that is missing or has the wrong type is an error that names file, line and
//! key; nothing is guessed from an incomplete row. Independent of file formats.

use super::RowFormat;
use super::detect::{as_list, decode_json_text};
use super::preference::{AnswerContent, JudgedAnswer, Preference, PromptContent};
use crate::error::{Error, Result};
use crate::json;
use serde_json::{Map, Value};
use std::fmt;
use std::path::Path;

/// Columns of one row, in the file's order.
pub type RowColumns = Map<String, Value>;

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

/// A row of the Alpaca format: instruction, input and output.
#[derive(Debug, Clone, PartialEq)]
pub struct AlpacaRow {
    pub system: Option<String>,
    pub history: Vec<(String, String)>,
    pub instruction: String,
    pub input: Option<String>,
    pub output: String,
}

impl AlpacaRow {
    /// Returns the row as a conversation, for models with a chat template. Instruction and input are one user turn, as
    /// a user would type them. The fixed text of the Alpaca prompt is left out: it replaces a template and would be
    /// noise inside one.
    pub fn conversation(&self) -> Conversation {
        let mut messages = Vec::new();
        messages.extend(self.system.iter().map(|s| ChatMessage::new("system", s)));
        for (asked, answered) in &self.history {
            messages.push(ChatMessage::new("user", asked));
            messages.push(ChatMessage::new("assistant", answered));
        }
        let user = match &self.input {
            Some(input) => format!("{}\n\n{input}", self.instruction),
            None => self.instruction.clone(),
        };
        messages.push(ChatMessage::new("user", user));
        messages.push(ChatMessage::new("assistant", &self.output));
        Conversation { messages, ..Default::default() }
    }

    /// Returns the standard Alpaca prompt, for models without a chat template; the output is its completion.
    pub fn prompt(&self) -> String {
        match &self.input {
            Some(input) => format!(
                "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
                 response that appropriately completes the request.\n\n### Instruction:\n{}\n\n### Input:\n{input}\n\n### Response:\n",
                self.instruction
            ),
            None => format!(
                "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
                 ### Instruction:\n{}\n\n### Response:\n",
                self.instruction
            ),
        }
    }
}

/// The content of a row, by its format.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// From `messages`, `conversations`, or a prompt and completion given as messages.
    Messages(Conversation),
    Alpaca(AlpacaRow),
    PromptCompletion {
        prompt: String,
        completion: String,
    },
    Text(String),
    /// A prompt without an answer.
    Prompt(PromptContent),
    Preference(Preference),
    Unpaired(JudgedAnswer),
}

impl Record {
    /// Returns all texts of the record.
    pub fn into_texts(self) -> Vec<String> {
        let talk = |messages: Vec<ChatMessage>| messages.into_iter().map(|m| m.content).collect::<Vec<_>>();
        let asked = |prompt: PromptContent| match prompt {
            PromptContent::Text(text) => vec![text],
            PromptContent::Talk(conversation) => talk(conversation.messages),
        };
        let answer = |answer: AnswerContent| match answer {
            AnswerContent::Text(text) => vec![text],
            AnswerContent::Talk(messages) => talk(messages),
        };
        match self {
            Self::Messages(conversation) => talk(conversation.messages),
            Self::Alpaca(row) => talk(row.conversation().messages),
            Self::PromptCompletion { prompt, completion } => vec![prompt, completion],
            Self::Text(text) => vec![text],
            Self::Prompt(prompt) => asked(prompt),
            Self::Preference(p) => [asked(p.prompt), answer(p.chosen), answer(p.rejected)].concat(),
            Self::Unpaired(v) => [asked(v.prompt), answer(v.answer)].concat(),
        }
    }
}

/// A record with its line in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordRow {
    /// From 1: the line in a JSON Lines file, the number of the row in other files.
    pub line: usize,
    pub record: Record,
}

/// A place in a file, which errors write as `data/train.jsonl:17`.
#[derive(Debug, Clone, Copy)]
pub struct RowPlace<'a> {
    pub path: &'a Path,
    pub line: usize,
}

impl fmt::Display for RowPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// Reads the columns of a row as a record of `format`, which must not be `auto`. Errors name file, line and key.
pub fn read_record(columns: RowColumns, format: RowFormat, place: RowPlace) -> Result<Record> {
    let reader = RecordReader { place };
    match format {
        RowFormat::Auto => Err(Error::bug("a row was read before its format was known")),
        RowFormat::Messages | RowFormat::Sharegpt => reader.conversation(columns, format).map(Record::Messages),
        RowFormat::Alpaca => reader.alpaca(&columns).map(Record::Alpaca),
        RowFormat::PromptCompletion => reader.prompt_completion(columns),
        RowFormat::Text => reader.filled_text(&columns, "text").map(Record::Text),
        RowFormat::Prompt => reader.prompt_only(columns).map(Record::Prompt),
        RowFormat::Preference | RowFormat::Hh => reader.preference(columns, format).map(Record::Preference),
        RowFormat::Unpaired => reader.unpaired(columns).map(Record::Unpaired),
    }
}

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

/// Reads the columns of one row; its errors name the row's place.
pub(super) struct RecordReader<'a> {
    place: RowPlace<'a>,
}

impl RecordReader<'_> {
    pub(super) fn error(&self, message: impl fmt::Display) -> Error {
        Error::user(format!("{}: {message}", self.place))
    }

    pub(super) fn missing(&self, key: &str, columns: &RowColumns) -> Error {
        let found = columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
        self.error(format!("key `{key}` is missing; found {}", if found.is_empty() { "none".into() } else { found }))
    }

    pub(super) fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.error(format!("key `{key}` is {}, expected {expected}", type_name(found)))
    }

    /// Returns the error for a value that is not a list. If it is text that looks like a list, the error says what is
    /// wrong with it.
    pub(super) fn no_list(&self, key: &str, expected: &str, found: &Value) -> Error {
        let text = found.as_str().filter(|text| text.trim_start().starts_with('['));
        let Some(e) = text.and_then(|text| json::parse(text).err()) else { return self.wrong(key, expected, found) };
        let python = text.is_some_and(|text| text.contains("{'") || text.contains("['"));
        let what = if python { "a list as printed by Python" } else { "a list as text" };
        let what = e
            .to_string()
            .split(" at line ")
            .next()
            .map_or(what.to_string(), |e| format!("{what}, which is not valid JSON: {e}"));
        self.error(format!("key `{key}` is {what}"))
            .hint("write such columns with json.dumps, or the rows as JSON Lines or Parquet (`to_json`, `to_parquet`)")
    }

    /// Reads text that is required but may be empty.
    pub(super) fn text(&self, columns: &RowColumns, key: &str) -> Result<String> {
        match columns.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.wrong(key, "text", other)),
            None => Err(self.missing(key, columns)),
        }
    }

    /// Reads text that is required and must not be empty.
    fn filled_text(&self, columns: &RowColumns, key: &str) -> Result<String> {
        let text = self.text(columns, key)?;
        if text.is_empty() {
            return Err(self
                .error(format!("key `{key}` is empty, so there is nothing to train on"))
                .hint("remove the row, or fill it"));
        }
        Ok(text)
    }

    /// Reads optional text; missing, null and empty text are `None`.
    pub(super) fn optional_text(&self, columns: &RowColumns, key: &str) -> Result<Option<String>> {
        match columns.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|t| !t.is_empty())),
            Some(other) => Err(self.wrong(key, "text", other)),
        }
    }

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

    fn alpaca(&self, columns: &RowColumns) -> Result<AlpacaRow> {
        let mut history = Vec::new();
        if let Some(value) = columns.get("history").filter(|v| !v.is_null()) {
            let pairs = as_list(value).ok_or_else(|| self.no_list("history", "a list of [question, answer]", value))?;
            for (i, pair) in pairs.iter().enumerate() {
                match pair.as_array().map(Vec::as_slice) {
                    Some([Value::String(asked), Value::String(answered)]) => {
                        history.push((asked.clone(), answered.clone()))
                    }
                    _ => return Err(self.wrong(&format!("history[{i}]"), "[question, answer]", pair)),
                }
            }
        }
        Ok(AlpacaRow {
            system: self.optional_text(columns, "system")?,
            history,
            instruction: self.filled_text(columns, "instruction")?,
            input: self.optional_text(columns, "input")?,
            output: self.filled_text(columns, "output")?,
        })
    }

    fn prompt_completion(&self, columns: RowColumns) -> Result<Record> {
        let side = |key: &str| match columns.get(key) {
            None => Err(self.missing(key, &columns)),
            Some(value @ (Value::String(_) | Value::Array(_))) => Ok(value),
            Some(other) => Err(self.wrong(key, "text or a list of messages", other)),
        };
        match (side("prompt")?, side("completion")?) {
            (Value::String(prompt), Value::String(answer))
                if !(super::detect::is_messages_json(prompt) && super::detect::is_messages_json(answer)) =>
            {
                Ok(Record::PromptCompletion {
                    prompt: prompt.clone(),
                    completion: self.filled_text(&columns, "completion")?,
                })
            }
            (prompt, completion) => {
                let mut talk = Conversation::default();
                for (key, value) in [("prompt", prompt), ("completion", completion)] {
                    let expected = "text or a list of messages, like the other column";
                    let turns = as_list(value).ok_or_else(|| self.no_list(key, expected, value))?;
                    if turns.is_empty() {
                        return Err(self.error(format!("key `{key}` has no message")));
                    }
                    talk.prompt_len = talk.messages.len();
                    for (i, turn) in turns.iter().enumerate() {
                        let at = format!("{key}[{i}]");
                        let message = self.turn(turn, &at)?;
                        self.push(&mut talk, message, &at)?;
                    }
                }
                self.read_tools_and_kwargs(&mut talk, &columns)?;
                Ok(Record::Messages(talk))
            }
        }
    }
}
