//! Finds where an answer begins and ends in the text that a chat template renders.
//!
//! An answer must be trained on after exactly the prompt that generation uses. Usually the rendered conversation starts
//! with that prompt, and the rest is the answer. Some templates render a conversation differently once it is answered
//! (Llama 2 and Mistral put the system message into the last user turn; R1 opens a thought in its prompt and drops
//! thoughts from the history). Then prompt and answer are joined here as generation would join them. A conversation
//! that begins with the assistant has no prompt at all; its first answer is found by rendering the conversation with a
//! marker in its place.

use super::notes::RowNote;
use super::template::{ChatTemplate, REASONING_KEYS};
use crate::data::rows::{ChatMessage, Conversation};
use crate::error::{Context, Error, Result};
use serde_json::{Value, json};

/// An answer and its prompt as text, joined as in generation.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderedAnswer {
    /// The prompt.
    pub prompt: String,
    /// The prompt, the answer, and what the template writes after the answer.
    pub text: String,
    /// What the user should know about the row.
    pub notes: Vec<RowNote>,
}

/// Renders the answer at message `index` together with its prompt. `stops` are the texts of the stop tokens.
///
/// Errors: the template refuses the conversation, or leaves the answer out.
pub fn render_answer(
    talk: &Conversation,
    index: usize,
    template: &ChatTemplate,
    stops: &[String],
) -> Result<RenderedAnswer> {
    let turn = || format!("message {} (assistant)", index + 1);
    let told = template.render(talk, index + 1, false);
    // The first message has no prompt.
    let asked = if index == 0 { None } else { Some(template.render(talk, index, true)) };
    match (asked, told) {
        (Some(Ok(asked)), Ok(told)) if told.starts_with(&asked) && told.len() > asked.len() => {
            Ok(RenderedAnswer { prompt: asked, text: told, notes: Vec::new() })
        }
        (Some(Ok(asked)), Ok(told)) => {
            let place = find_answer(talk, index, &told, |t| template.render(t, index + 1, false)).context(turn)?;
            Ok(join_as_generated(&talk.messages[index], asked, &told, place))
        }
        // The template refuses a conversation that ends before the answer, but accepts one that ends with it.
        (_, Ok(told)) => {
            let place = find_answer(talk, index, &told, |t| template.render(t, index + 1, false)).context(turn)?;
            Ok(RenderedAnswer { prompt: told[..place.start].to_string(), text: told, notes: Vec::new() })
        }
        // It refuses that too: find the answer in the rendering of the whole conversation.
        (_, Err(refused)) => {
            let whole = template.render(talk, talk.messages.len(), false).context(turn)?;
            let place =
                find_answer(talk, index, &whole, |t| template.render(t, t.messages.len(), false)).context(turn)?;
            let rest = &whole[place.end..];
            let stop = stops.iter().filter_map(|s| Some((rest.find(s.as_str())?, s.len()))).min();
            match stop.filter(|(at, _)| rest[..*at].trim().is_empty()) {
                Some((at, length)) => {
                    let (asked, end) = (whole[..place.start].to_string(), place.end + at + length);
                    Ok(RenderedAnswer { prompt: asked, text: whole[..end].to_string(), notes: Vec::new() })
                }
                None => Err(refused).context(turn),
            }
        }
    }
}

/// The range of bytes in a rendering that show the content of a message.
struct AnswerRange {
    start: usize,
    end: usize,
}

/// Marker characters from the Unicode private use area, which no template looks for.
pub(super) const MARKS: [char; 2] = ['\u{f8f3}', '\u{f8f4}'];

/// Returns the conversation with a marker text in place of the content of message `index`.
pub(super) fn marked(talk: &Conversation, index: usize) -> Conversation {
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

/// Finds the content of message `index` in `rendered`, by rendering the conversation with a marker in its place.
///
/// Errors: the template does not render the message.
fn find_answer(
    talk: &Conversation,
    index: usize,
    rendered: &str,
    render: impl Fn(&Conversation) -> Result<String>,
) -> Result<AnswerRange> {
    let marked = render(&marked(talk, index))?;
    let (first, last) = (marked.find(MARKS[0]), marked.rfind(MARKS[1]));
    let (Some(first), Some(last)) = (first, last) else {
        return Err(Error::user("the chat template leaves out what it says")
            .hint("does the template support tool calls? Set data.template to one that does, or remove the row"));
    };
    let start = common_prefix(&marked[..first], rendered);
    let after = &marked[last + MARKS[1].len_utf8()..];
    let same = after.bytes().rev().zip(rendered[start..].bytes().rev()).take_while(|(a, b)| a == b).count();
    let end = (0..=same).rev().map(|n| rendered.len() - n).find(|at| rendered.is_char_boundary(*at));
    Ok(AnswerRange { start, end: end.unwrap_or(rendered.len()) })
}

/// Joins prompt and answer as generation would. `told` is the rendered conversation that ends with the answer, `place`
/// the answer's range in it.
fn join_as_generated(message: &ChatMessage, asked: String, told: &str, place: AnswerRange) -> RenderedAnswer {
    let before = told[..place.start].trim_end();
    let mut notes = vec![RowNote::AsGenerated];
    let opened = asked.starts_with(before).then(|| asked[before.len()..].trim()).and_then(closing_of);
    let answer = match opened {
        Some((open, close)) => {
            let end = &told[place.end..];
            let shown = told[place.start..].trim_start();
            match find_thought(message, open, close) {
                Some(Thought::InContent(text)) => format!("{}{end}", text.trim_start_matches('\n')),
                Some(Thought::SeparateKey(thought)) => format!("{}\n{close}\n\n{shown}", thought.trim()),
                None => {
                    notes.push(RowNote::EmptyThought);
                    format!("\n{close}\n\n{shown}")
                }
            }
        }
        // Text that the template writes between the assistant's header and its content (a space) belongs to the answer.
        None if ends_alike(&asked, before) => told[before.len()..].to_string(),
        None => told[place.start..].to_string(),
    };
    RenderedAnswer { text: format!("{asked}{answer}"), prompt: asked, notes }
}

/// Returns true if the prompt ends in the same header that precedes the answer in the history: their last three
/// characters are equal and none of them is a space.
fn ends_alike(asked: &str, before: &str) -> bool {
    let same = asked.chars().rev().zip(before.chars().rev()).take_while(|(a, b)| a == b);
    same.take(3).filter(|(c, _)| !c.is_whitespace()).count() == 3
}

/// Returns `tag` and the tag that closes it if `tag` opens a thought.
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

/// The reasoning of a message, by where the row keeps it.
enum Thought {
    /// In its content, together with the answer; without the opening tag.
    InContent(String),
    /// Under a key of its own, such as `reasoning_content`.
    SeparateKey(String),
}

fn find_thought(message: &ChatMessage, open: &str, close: &str) -> Option<Thought> {
    if let Some((before, _)) = message.content.split_once(close) {
        let begins = before.trim_start().starts_with(open).then(|| message.content.find(open)).flatten();
        return Some(Thought::InContent(message.content[begins.map_or(0, |at| at + open.len())..].to_string()));
    }
    reasoning(message).map(|text| Thought::SeparateKey(text.to_string()))
}

/// Returns the reasoning that a message has under a key of its own, if it is not blank.
pub(super) fn reasoning(message: &ChatMessage) -> Option<&str> {
    REASONING_KEYS
        .iter()
        .find_map(|key| message.extra.get(*key).and_then(Value::as_str))
        .filter(|text| !text.trim().is_empty())
}

/// Returns the length in bytes of the longest common prefix that ends at a character boundary.
pub(in crate::data) fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    (0..=same).rev().find(|n| a.is_char_boundary(*n) && b.is_char_boundary(*n)).unwrap_or(0)
}
