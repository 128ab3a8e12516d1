//! Where an answer stands in what a chat template writes.
//!
//! What is learnt must follow the prompt that generation is given. Mostly the conversation with the answer begins with
//! that prompt. It does not where a template writes a conversation otherwise once it is answered (Llama 2 and Mistral
//! give the system message to the last turn of the user, R1 opens a thought in its prompt and drops thoughts from its
//! history): then prompt and answer are put together as generation would. And a conversation that begins with the
//! assistant has no prompt at all: its first answer is found in the rendering by putting another text in its place.

use super::notes::Note;
use super::record::{Conversation, Message};
use super::template::{ChatTemplate, REASONING};
use crate::error::{Context, Error, Result};
use serde_json::{Value, json};

/// An answer as generation sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The text that asks for it.
    pub asked: String,
    /// `asked`, the answer, and what the template writes after it.
    pub text: String,
    pub notes: Vec<Note>,
}

/// The answer at `index`. `stops` are texts that end a turn.
pub fn answered(talk: &Conversation, index: usize, template: &ChatTemplate, stops: &[String]) -> Result<Answered> {
    let turn = || format!("message {} (assistant)", index + 1);
    let told = template.render(talk, index + 1, false);
    // Nothing comes before the first message: there is no prompt to render.
    let asked = if index == 0 { None } else { Some(template.render(talk, index, true)) };
    match (asked, told) {
        (Some(Ok(asked)), Ok(told)) if told.starts_with(&asked) && told.len() > asked.len() => {
            Ok(Answered { asked, text: told, notes: Vec::new() })
        }
        (Some(Ok(asked)), Ok(told)) => {
            let place = place(talk, index, &told, |t| template.render(t, index + 1, false)).context(turn)?;
            Ok(as_generated(&talk.messages[index], asked, &told, place))
        }
        // The template takes no conversation that ends before the answer, but one that ends with it.
        (_, Ok(told)) => {
            let place = place(talk, index, &told, |t| template.render(t, index + 1, false)).context(turn)?;
            Ok(Answered { asked: told[..place.start].to_string(), text: told, notes: Vec::new() })
        }
        // Nor such a one: what is left is the whole.
        (_, Err(refused)) => {
            let whole = template.render(talk, talk.messages.len(), false).context(turn)?;
            let place = place(talk, index, &whole, |t| template.render(t, t.messages.len(), false)).context(turn)?;
            let rest = &whole[place.end..];
            let stop = stops.iter().filter_map(|s| Some((rest.find(s.as_str())?, s.len()))).min();
            match stop.filter(|(at, _)| rest[..*at].trim().is_empty()) {
                Some((at, length)) => {
                    let (asked, end) = (whole[..place.start].to_string(), place.end + at + length);
                    Ok(Answered { asked, text: whole[..end].to_string(), notes: Vec::new() })
                }
                None => Err(refused).context(turn),
            }
        }
    }
}

/// The bytes of a rendering that hold what a message says.
struct AnswerPlace {
    start: usize,
    end: usize,
}

/// Characters for private use: no template looks for them.
const MARKS: [char; 2] = ['\u{f8f3}', '\u{f8f4}'];

/// The conversation with a mark in place of what the message at `index` says.
fn marked(talk: &Conversation, index: usize) -> Conversation {
    let mut marked = talk.clone();
    let message = &mut marked.messages[index];
    let text: String = [MARKS[0], 'x', MARKS[1]].iter().collect();
    match message.extra.get_mut("content") {
        Some(Value::Array(parts)) => *parts = vec![json!({ "type": "text", "text": text })],
        Some(content) => *content = text.into(),
        None => message.content = text,
    }
    marked
}

/// Whether the template writes what the message at `index` says, perhaps changed: flags taken out, quotes escaped.
pub fn is_read(talk: &Conversation, index: usize, template: &ChatTemplate) -> bool {
    let (marked, n) = (marked(talk, index), talk.messages.len());
    // With its answer, and as it is asked for: a template may write the two otherwise.
    let ways = [(n, false), (n, true), (n.saturating_sub(1).max(index + 1), true)];
    ways.iter().any(|(upto, prompt)| template.render(&marked, *upto, *prompt).is_ok_and(|t| t.contains(MARKS[0])))
}

/// Finds what the message at `index` says in `rendered`, by rendering the conversation with a mark in its place.
fn place(
    talk: &Conversation,
    index: usize,
    rendered: &str,
    render: impl Fn(&Conversation) -> Result<String>,
) -> Result<AnswerPlace> {
    let marked = render(&marked(talk, index))?;
    let (first, last) = (marked.find(MARKS[0]), marked.rfind(MARKS[1]));
    let (Some(first), Some(last)) = (first, last) else {
        return Err(Error::user("the chat template leaves out what it says")
            .hint("does the template know tool calls? Give one that does with data.template, or remove the row"));
    };
    let start = super::example::common_prefix(&marked[..first], rendered);
    let after = &marked[last + MARKS[1].len_utf8()..];
    let same = after.bytes().rev().zip(rendered[start..].bytes().rev()).take_while(|(a, b)| a == b).count();
    let end = (0..=same).rev().map(|n| rendered.len() - n).find(|at| rendered.is_char_boundary(*at));
    Ok(AnswerPlace { start, end: end.unwrap_or(rendered.len()) })
}

/// Prompt and answer as generation puts them together. `told` is the conversation as the template writes it with the answer.
fn as_generated(message: &Message, asked: String, told: &str, place: AnswerPlace) -> Answered {
    let before = told[..place.start].trim_end();
    let mut notes = vec![Note::AsGenerated];
    let opened = asked.starts_with(before).then(|| asked[before.len()..].trim()).and_then(closing_of);
    let answer = match opened {
        Some((open, close)) => {
            let end = &told[place.end..];
            let shown = told[place.start..].trim_start();
            match thought(message, open, close) {
                Some(Thought::Within(text)) => format!("{}{end}", text.trim_start_matches('\n')),
                Some(Thought::Beside(thought)) => format!("{}\n{close}\n\n{shown}", thought.trim()),
                None => {
                    notes.push(Note::EmptyThought);
                    format!("\n{close}\n\n{shown}")
                }
            }
        }
        // What the template writes between the mark of the assistant and its words belongs to the answer (a space).
        None if aligned(&asked, before) => told[before.len()..].to_string(),
        None => told[place.start..].to_string(),
    };
    Answered { text: format!("{asked}{answer}"), asked, notes }
}

/// Whether the prompt ends in the mark that stands before the answer in its history too.
fn aligned(asked: &str, before: &str) -> bool {
    let same = asked.chars().rev().zip(before.chars().rev()).take_while(|(a, b)| a == b);
    same.take(3).filter(|(c, _)| !c.is_whitespace()).count() == 3
}

/// Where `tag` opens a thought: the tag, and the one that closes it.
fn closing_of(tag: &str) -> Option<(&str, &'static str)> {
    const TAGS: [(&str, &str); 7] = [
        ("<think>", "</think>"),
        ("<thinking>", "</thinking>"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
    ];
    TAGS.iter().find(|(open, _)| *open == tag).map(|(_, close)| (tag, *close))
}

/// What a message thinks before it speaks.
enum Thought {
    /// In its content, without the opening tag.
    Within(String),
    /// Under a key of its own.
    Beside(String),
}

fn thought(message: &Message, open: &str, close: &str) -> Option<Thought> {
    if let Some((before, _)) = message.content.split_once(close) {
        let begins = before.trim_start().starts_with(open).then(|| message.content.find(open)).flatten();
        return Some(Thought::Within(message.content[begins.map_or(0, |at| at + open.len())..].to_string()));
    }
    reasoning(message).map(|text| Thought::Beside(text.to_string()))
}

/// The reasoning that stands under a key of its own.
pub fn reasoning(message: &Message) -> Option<&str> {
    REASONING
        .iter()
        .find_map(|key| message.extra.get(*key).and_then(Value::as_str))
        .filter(|text| !text.trim().is_empty())
}

/// What the template passes over of the row, in rows that are learnt without it: tools, calls beside text, reasoning.
pub fn passed_over(talk: &Conversation, learnt: &[(usize, &Answered)], template: &ChatTemplate) -> Result<Vec<Note>> {
    let mut notes = Vec::new();
    let Some((last, answer)) = learnt.last() else { return Ok(notes) };
    // Each is left out and what the template writes is compared with what it wrote.
    let told = |talk: &Conversation, index: usize| template.render(talk, index + 1, false);
    if talk.tools.is_some() {
        let without = Conversation { tools: None, ..talk.clone() };
        let asked = if *last > 0 { template.render(&without, *last, true).ok() } else { Some(answer.asked.clone()) };
        let whole = |t: &Conversation| template.render(t, t.messages.len(), false);
        if asked.as_deref() == Some(answer.asked.as_str()) && whole(&without).ok() == whole(talk).ok() {
            notes.push(Note::ToolsLeftOut);
        }
    }
    if talk.messages.iter().any(|m| calls(m) && m.role == "assistant") {
        let mut without = talk.clone();
        without.messages.iter_mut().for_each(|m| drop(m.extra.shift_remove("tool_calls")));
        if told(&without, *last).ok() == told(talk, *last).ok() {
            notes.push(Note::CallsLeftOut);
        }
    }
    for (index, answer) in learnt {
        let message = &talk.messages[*index];
        let within = message.content.contains("</think>") && !answer.text.contains("</think>");
        let beside = reasoning(message).is_some_and(|text| !answer.text.contains(text.trim()));
        if within || beside {
            notes.push(Note::ReasoningLeftOut);
        }
    }
    let parts = |m: &Message| m.extra.get("content").is_some_and(Value::is_array);
    let as_code = ["{'type': 'text'", "{\"type\": \"text\""];
    if talk.messages.iter().any(parts) && as_code.iter().any(|code| answer.text.contains(code)) {
        notes.push(Note::PartsPrinted);
    }
    Ok(notes)
}

/// Whether the message calls tools.
fn calls(message: &Message) -> bool {
    message.extra.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
}

/// What the message says as text: its content, or the texts of its parts.
pub fn said(message: &Message) -> Vec<&str> {
    match message.extra.get("content") {
        Some(Value::Array(parts)) => parts.iter().filter_map(|p| p.get("text").and_then(Value::as_str)).collect(),
        _ => vec![&message.content],
    }
}
