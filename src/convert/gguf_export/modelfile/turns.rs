//! Finds what a chat template writes around each turn, by rendering conversations and looking at the text between their contents.
//!
//! Nothing is guessed: what was found is put together again for conversations of several shapes, and must equal what the
//! template writes.

use crate::data::rows::ChatMessage;
use crate::error::{Error, Result};

/// The text before and after the content of a turn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TurnText {
    /// Before the content.
    pub before: String,
    /// After it.
    pub after: String,
}

/// How a system message is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemText {
    /// As a turn of its own.
    Turn(TurnText),
    /// Inside the first question: the text before it, and the text between it and the question.
    InQuestion(TurnText),
}

/// What a chat template writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTurns {
    /// At the very beginning.
    pub opening: String,
    /// At the very beginning of conversations without a system message.
    pub without_system: String,
    /// Around a system message; `None` if the template has none.
    pub system: Option<SystemText>,
    /// The system message of conversations without one.
    pub default_system: Option<String>,
    /// Around a user's message.
    pub user: TurnText,
    /// Around an answer.
    pub assistant: TurnText,
    /// At the end of a prompt, before the answer.
    pub prompt: String,
}

/// Contents that no template contains, and that no template changes.
const CONTENTS: [&str; 6] = ["Xa1q.", "Xb2r?", "Xc3s!", "Xd4t;", "Xe5u:", "Xf6v,"];

/// Finds the texts of a template. `render` writes a conversation, with or without the beginning of an answer; `bos` is the text of the
/// token that the tokenizer puts before each prompt, which is then left out of the opening.
pub fn find(render: &dyn Fn(&[ChatMessage], bool) -> Result<String>, bos: Option<&str>) -> Result<ChatTurns> {
    let pieces = |roles: &[&str], prompt: bool| -> Result<Vec<String>> {
        let text = render(&talk(roles), prompt)?;
        let mut rest = bos.and_then(|bos| text.strip_prefix(bos)).unwrap_or(&text);
        let mut found = Vec::new();
        for content in &CONTENTS[..roles.len()] {
            let (before, after) =
                rest.split_once(content).ok_or_else(|| irregular("it does not write every message once"))?;
            found.push(before.to_string());
            rest = after;
        }
        found.push(rest.to_string());
        Ok(found)
    };
    let [first, to_prompt] = array(pieces(&["user"], true)?)?;
    let [_, to_answer, to_user, _] = array(pieces(&["user", "assistant", "user"], true)?)?;
    // A turn ends as a conversation does that ends with it, unless the template writes more at the end of a conversation.
    let [_, end] = array(pieces(&["user"], false)?)?;
    let after_user = match to_answer.starts_with(&end) && to_prompt.starts_with(&end) {
        true => end,
        false => shared_beginning(&to_answer, &to_prompt).to_string(),
    };
    let [_, _, end] = array(pieces(&["user", "assistant"], false)?)?;
    let before_user = match to_user.strip_prefix(&end).filter(|before| first.ends_with(before)) {
        Some(before) => before,
        None => shared_ending(&first, &to_user),
    };
    let after_answer = to_user.strip_suffix(before_user).unwrap_or_default();
    let user = TurnText { before: before_user.into(), after: after_user };
    let assistant = TurnText { before: to_answer[user.after.len()..].into(), after: after_answer.into() };
    let prompt = to_prompt[user.after.len()..].to_string();
    let start = first.strip_suffix(before_user).unwrap_or_default();
    let mut turns = ChatTurns {
        opening: start.into(),
        without_system: String::new(),
        system: None,
        default_system: None,
        user,
        assistant,
        prompt,
    };
    // A template without system messages refuses them or leaves them out.
    if let Ok(found) = pieces(&["system", "user"], true) {
        let [before, between, _] = array(found)?;
        turns.set_system(&before, &between)?;
    }
    for roles in [
        &["user"][..],
        &["system", "user"],
        &["user", "assistant", "user"],
        &["system", "user", "assistant", "user"],
        &["system", "user", "assistant", "user", "assistant", "user"],
    ] {
        if roles[0] == "system" && turns.system.is_none() {
            continue;
        }
        let (talk, whole) = (talk(roles), render(&talk(roles), true)?);
        if turns.write(&talk) != bos.and_then(|bos| whole.strip_prefix(bos)).unwrap_or(&whole) {
            return Err(irregular(&format!("a conversation of {} is written otherwise", roles.join(", "))));
        }
    }
    Ok(turns)
}

/// Returns a conversation with these roles.
fn talk(roles: &[&str]) -> Vec<ChatMessage> {
    roles.iter().zip(CONTENTS).map(|(role, content)| ChatMessage::new(*role, content)).collect()
}

/// Returns the longest text that both begin with.
fn shared_beginning<'t>(a: &'t str, b: &str) -> &'t str {
    let same = a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum::<usize>();
    &a[..same]
}

/// Returns the longest text that both end with.
fn shared_ending<'t>(a: &'t str, b: &str) -> &'t str {
    let same =
        a.chars().rev().zip(b.chars().rev()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum::<usize>();
    &a[a.len() - same..]
}

impl ChatTurns {
    /// Understands the texts before a system message, and between it and the first question, of a conversation that
    /// begins with `self.opening` if it has none. Fails if they do not fit together.
    fn set_system(&mut self, before: &str, between: &str) -> Result<()> {
        match between.strip_suffix(self.user.before.as_str()) {
            Some(after) => {
                let around = |before: &str| SystemText::Turn(TurnText { before: before.into(), after: after.into() });
                if let Some(own) = before.strip_prefix(self.opening.as_str()) {
                    self.system = Some(around(own));
                    return Ok(());
                }
                let opening = std::mem::take(&mut self.opening);
                let content = opening.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
                match content.filter(|text| !text.is_empty()) {
                    Some(text) => self.default_system = Some(text.into()),
                    None => self.without_system = opening,
                }
                self.system = Some(around(before));
            }
            None => {
                let inside = before.strip_prefix(self.opening.as_str());
                let inside = inside.ok_or_else(|| irregular("a system message replaces the beginning"))?;
                let turn = TurnText { before: inside.into(), after: between.into() };
                self.system = Some(SystemText::InQuestion(turn));
            }
        }
        Ok(())
    }

    /// Writes a prompt as [`find`] understood the template.
    pub fn write(&self, talk: &[ChatMessage]) -> String {
        let system = talk.first().filter(|m| m.role == "system").map(|m| m.content.as_str());
        let mut text = self.opening.clone();
        if system.is_none() && self.default_system.is_none() {
            text += &self.without_system;
        }
        let mut inside = None;
        match (&self.system, system.or(self.default_system.as_deref())) {
            (Some(SystemText::Turn(around)), Some(content)) => text += &around.around(content),
            (Some(SystemText::InQuestion(around)), Some(content)) => inside = Some(around.around(content)),
            _ => {}
        }
        for message in talk.iter().filter(|m| m.role != "system") {
            if message.role == "assistant" {
                text += &self.assistant.around(&message.content);
                continue;
            }
            text += &inside.take().unwrap_or_else(|| self.user.before.clone());
            text += &message.content;
            text += &self.user.after;
        }
        text + &self.prompt
    }
}

impl TurnText {
    fn around(&self, content: &str) -> String {
        format!("{}{content}{}", self.before, self.after)
    }
}

fn array<const N: usize>(pieces: Vec<String>) -> Result<[String; N]> {
    pieces.try_into().map_err(|_| Error::bug("as many texts as messages, and one more"))
}

fn irregular(why: &str) -> Error {
    Error::user(format!("the chat template is no sequence of turns that a Modelfile could describe: {why}"))
        .hint("leave out --modelfile: llama.cpp reads the template in the GGUF file itself")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chatml(default: Option<&str>) -> impl Fn(&[ChatMessage], bool) -> Result<String> {
        let default = default.map(|content| ChatMessage::new("system", content));
        move |talk, prompt| {
            let default = default.iter().filter(|_| talk[0].role != "system");
            let turn = |m: &ChatMessage| format!("<|im_start|>{}\n{}<|im_end|>\n", m.role, m.content);
            let text: String = default.chain(talk).map(turn).collect();
            Ok(if prompt { text + "<|im_start|>assistant\n" } else { text })
        }
    }

    #[test]
    fn turns_of_chatml_with_and_without_a_default_system_message() {
        let found = find(&chatml(None), None).unwrap();
        assert_eq!(found.user, TurnText { before: "<|im_start|>user\n".into(), after: "<|im_end|>\n".into() });
        assert_eq!(found.prompt, "<|im_start|>assistant\n");
        assert_eq!((found.opening.as_str(), found.default_system), ("", None));
        let found = find(&chatml(Some("Be kind.")), None).unwrap();
        assert_eq!(found.default_system.as_deref(), Some("Be kind."));
        let Some(SystemText::Turn(system)) = found.system else { panic!("a turn of its own") };
        assert_eq!(system.before, "<|im_start|>system\n");
    }

    #[test]
    fn the_beginning_token_is_left_to_the_tokenizer() {
        let inner = chatml(None);
        let render = move |talk: &[ChatMessage], prompt: bool| Ok(format!("<s>{}", inner(talk, prompt)?));
        assert_eq!(find(&render, Some("<s>")).unwrap().opening, "");
        assert_eq!(find(&render, None).unwrap().opening, "<s>");
    }

    #[test]
    fn a_system_message_may_be_inside_the_first_question() {
        // As in Llama 2.
        let render = |talk: &[ChatMessage], _: bool| {
            let (system, rest) = match talk[0].role.as_str() {
                "system" => (format!("<<SYS>>{}<</SYS>>", talk[0].content), &talk[1..]),
                _ => (String::new(), talk),
            };
            let turn = |(i, m): (usize, &ChatMessage)| match m.role.as_str() {
                "user" => format!("[INST] {}{} [/INST]", if i == 0 { system.as_str() } else { "" }, m.content),
                _ => format!(" {} </s>", m.content),
            };
            Ok(rest.iter().enumerate().map(turn).collect())
        };
        let found = find(&render, None).unwrap();
        let expected = TurnText { before: "[INST] <<SYS>>".into(), after: "<</SYS>>".into() };
        assert_eq!(found.system, Some(SystemText::InQuestion(expected)));
    }

    #[test]
    fn what_ends_a_conversation_only_is_left_out() {
        // As in Phi-3: a conversation that is over ends with a token.
        let inner = chatml(None);
        let render =
            |talk: &[ChatMessage], prompt: bool| Ok(inner(talk, prompt)? + if prompt { "" } else { "<|endoftext|>" });
        let found = find(&render, None).unwrap();
        assert_eq!(found.user.after.clone() + &found.prompt, "<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn a_beginning_may_depend_on_the_system_message() {
        // As in Llama 3.1: without a system message its turn has the date alone.
        let render = |talk: &[ChatMessage], prompt: bool| {
            let system = talk.first().filter(|m| m.role == "system").map_or("", |m| m.content.as_str());
            let rest = talk.iter().filter(|m| m.role != "system").map(|m| format!("[{}]{};", m.role, m.content));
            let text = format!("[system]date\n{system};{}", rest.collect::<String>());
            Ok(if prompt { text + "[assistant]" } else { text })
        };
        let found = find(&render, None).unwrap();
        assert_eq!(found.without_system, "[system]date\n;");
        assert_eq!(found.default_system, None);
    }

    #[test]
    fn a_template_without_system_messages_has_none_and_irregular_ones_are_refused() {
        let inner = chatml(None);
        let render = |talk: &[ChatMessage], prompt: bool| match talk[0].role.as_str() {
            "system" => Err(Error::user("system role not supported")),
            _ => inner(talk, prompt),
        };
        assert_eq!(find(&render, None).unwrap().system, None);
        // Numbers its questions.
        let render = |talk: &[ChatMessage], prompt: bool| {
            let turn = |(i, m): (usize, &ChatMessage)| format!("[{i} {}]{};", m.role, m.content);
            let text: String = talk.iter().enumerate().map(turn).collect();
            Ok(if prompt { text + "[answer]" } else { text })
        };
        assert!(find(&render, None).unwrap_err().message().contains("no sequence of turns"));
    }
}
