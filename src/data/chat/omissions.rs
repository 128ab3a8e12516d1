//! Finds what a chat template leaves out of a conversation: messages (an error), and parts of messages (notes).

use super::answer_text::{MARKS, RenderedAnswer, marked, reasoning};
use super::notes::RowNote;
use super::template::ChatTemplate;
use crate::data::rows::{ChatMessage, Conversation};
use crate::error::{Error, Result};
use serde_json::Value;

/// Fails if the template does not know the role of a message: it would drop the message, or render it in a way that no
/// other tool does.
pub(in crate::data) fn check_roles(messages: &[ChatMessage], template: &ChatTemplate) -> Result<()> {
    for (i, message) in messages.iter().enumerate() {
        let role = message.role.as_str();
        if !matches!(role, "system" | "user" | "assistant" | "tool") && !template.mentions(role) {
            let error = Error::user(format!("message {}: the chat template knows no role \"{role}\"", i + 1));
            return Err(match role {
                "human" | "gpt" | "bot" | "model" | "ai" => error.hint("usual roles: system, user, assistant, tool; rows of `from` and `value` are mapped with format: sharegpt"),
                _ => error.hint("usual roles: system, user, assistant, tool"),
            });
        }
    }
    Ok(())
}

/// Fails if the template leaves out a message. Templates silently skip what they do not expect (a system message, the
/// result of a tool, content in parts). Each message must therefore appear in one of `texts`, which the row becomes, or
/// be rendered by the template in a changed form.
pub fn check_nothing_dropped(talk: &Conversation, texts: &[&str], template: &ChatTemplate) -> Result<()> {
    for (i, message) in talk.messages.iter().enumerate() {
        let shown = |content: &str| texts.iter().any(|text| text.contains(content.trim()));
        let checked = matches!(message.role.as_str(), "system" | "user" | "tool");
        if checked && !message_texts(message).into_iter().all(shown) && !is_rendered(talk, i, template) {
            let error = Error::user(format!("message {} ({}): the chat template leaves it out", i + 1, message.role))
                .hint("remove the message from the row, or set data.template to a template that renders it");
            return Err(match message.extra.contains_key("content") {
                true => error.hint("few templates can render content in parts: write it as text"),
                false => error,
            });
        }
    }
    Ok(())
}

/// Returns true if the template renders the content of message `index`, even if it changes it (removes flags, escapes
/// quotes).
fn is_rendered(talk: &Conversation, index: usize, template: &ChatTemplate) -> bool {
    let (marked, n) = (marked(talk, index), talk.messages.len());
    // With its answer, and as a prompt: a template may render the two differently.
    let ways = [(n, false), (n, true), (n.saturating_sub(1).max(index + 1), true)];
    ways.iter().any(|(upto, prompt)| template.render(&marked, *upto, *prompt).is_ok_and(|t| t.contains(MARKS[0])))
}

/// Returns notes on parts of the row that the template leaves out, so that training does not see them: tools, tool
/// calls next to text, reasoning. `learnt` are the answers that are trained on, with their message indices.
pub(in crate::data) fn omitted_parts(
    talk: &Conversation,
    learnt: &[(usize, &RenderedAnswer)],
    template: &ChatTemplate,
) -> Result<Vec<RowNote>> {
    let mut notes = Vec::new();
    let Some((last, answer)) = learnt.last() else { return Ok(notes) };
    // Remove each part and compare the new rendering with the old one: if they are equal, the template ignores the
    // part.
    let told = |talk: &Conversation, index: usize| template.render(talk, index + 1, false);
    if talk.tools.is_some() {
        let without = Conversation { tools: None, ..talk.clone() };
        let asked = if *last > 0 { template.render(&without, *last, true).ok() } else { Some(answer.prompt.clone()) };
        let whole = |t: &Conversation| template.render(t, t.messages.len(), false);
        if asked.as_deref() == Some(answer.prompt.as_str()) && whole(&without).ok() == whole(talk).ok() {
            notes.push(RowNote::ToolsLeftOut);
        }
    }
    if talk.messages.iter().any(|m| has_tool_calls(m) && m.role == "assistant") {
        let mut without = talk.clone();
        without.messages.iter_mut().for_each(|m| drop(m.extra.shift_remove("tool_calls")));
        if told(&without, *last).ok() == told(talk, *last).ok() {
            notes.push(RowNote::CallsLeftOut);
        }
    }
    for (index, answer) in learnt {
        let message = &talk.messages[*index];
        let within = message.content.contains("</think>") && !answer.text.contains("</think>");
        let beside = reasoning(message).is_some_and(|text| !answer.text.contains(text.trim()));
        if within || beside {
            notes.push(RowNote::ReasoningLeftOut);
        }
    }
    let parts = |m: &ChatMessage| m.extra.get("content").is_some_and(Value::is_array);
    let as_code = ["{'type': 'text'", "{\"type\": \"text\""];
    if talk.messages.iter().any(parts) && as_code.iter().any(|code| answer.text.contains(code)) {
        notes.push(RowNote::PartsPrinted);
    }
    Ok(notes)
}

/// Returns true if the message calls tools.
fn has_tool_calls(message: &ChatMessage) -> bool {
    message.extra.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
}

/// Returns the texts of a message: its content, or the texts of its content parts.
fn message_texts(message: &ChatMessage) -> Vec<&str> {
    match message.extra.get("content") {
        Some(Value::Array(parts)) => parts.iter().filter_map(|p| p.get("text").and_then(Value::as_str)).collect(),
        _ => vec![&message.content],
    }
}
