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

/// What a chat template writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTurns {
    /// At the very beginning.
    pub opening: String,
    /// Around a system message; `None` if the template has none.
    pub system: Option<TurnText>,
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
    let talk = |roles: &[&str]| -> Vec<ChatMessage> {
        roles.iter().zip(CONTENTS).map(|(role, content)| ChatMessage::new(*role, content)).collect()
    };
    // The texts around the contents: one more than there are messages.
    let pieces = |roles: &[&str]| -> Result<Vec<String>> {
        let text = render(&talk(roles), false)?;
        let mut rest = text.as_str();
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
    let [first, after_user] = array(pieces(&["user"])?)?;
    let [_, _, after_answer] = array(pieces(&["user", "assistant"])?)?;
    let [_, to_answer, to_user, _] = array(pieces(&["user", "assistant", "user"])?)?;
    let prompt = render(&talk(&["user"]), true)?;
    let unfinished = render(&talk(&["user"]), false)?;
    let prompt = strip_start(&prompt, &unfinished, "a prompt does not begin like the conversation")?.to_string();
    let user = TurnText {
        before: strip_start(&to_user, &after_answer, "an answer ends otherwise if a question follows")?.into(),
        after: after_user,
    };
    let assistant = TurnText {
        before: strip_start(&to_answer, &user.after, "a question ends otherwise if an answer follows")?.into(),
        after: after_answer,
    };
    let start = strip_end(&first, &user.before, "the first question begins otherwise than later ones")?;
    let stripped = |text: &str| bos.and_then(|bos| text.strip_prefix(bos)).unwrap_or(text).to_string();
    // A template without system messages refuses them or leaves them out.
    let system = match pieces(&["system", "user"]) {
        Ok(found) => {
            let [before, between, _] = array(found)?;
            let after = strip_end(&between, &user.before, "a system message is part of the first question")?;
            Some(TurnText { before: stripped(&before), after: after.into() })
        }
        Err(_) => None,
    };
    let start = stripped(start);
    let written = system.as_ref().and_then(|s| start.strip_prefix(&s.before)?.strip_suffix(&s.after));
    let (opening, default_system) = match written {
        Some(text) if !text.is_empty() => (String::new(), Some(text.to_string())),
        _ => (start, None),
    };
    let system = match system {
        Some(s) => Some(TurnText {
            before: strip_start(&s.before, &opening, "a system message replaces the beginning")?.into(),
            after: s.after,
        }),
        None => None,
    };
    let turns = ChatTurns { opening, system, default_system, user, assistant, prompt };
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
        let talk = talk(roles);
        if turns.write(&talk) != stripped(&render(&talk, true)?) {
            return Err(irregular(&format!("a conversation of {} is written otherwise", roles.join(", "))));
        }
    }
    Ok(turns)
}

impl ChatTurns {
    /// Writes a prompt as [`find`] understood the template.
    pub fn write(&self, talk: &[ChatMessage]) -> String {
        let mut text = self.opening.clone();
        let default = self.default_system.as_ref().filter(|_| talk.first().is_none_or(|m| m.role != "system"));
        let default = default.map(|content| ChatMessage::new("system", content));
        for message in default.iter().chain(talk) {
            let around = match message.role.as_str() {
                "system" => self.system.as_ref(),
                "assistant" => Some(&self.assistant),
                _ => Some(&self.user),
            };
            let Some(around) = around else { continue };
            text += &around.before;
            text += &message.content;
            text += &around.after;
        }
        text + &self.prompt
    }
}

fn array<const N: usize>(pieces: Vec<String>) -> Result<[String; N]> {
    pieces.try_into().map_err(|_| Error::bug("as many texts as messages, and one more"))
}

fn strip_start<'t>(text: &'t str, start: &str, otherwise: &str) -> Result<&'t str> {
    text.strip_prefix(start).ok_or_else(|| irregular(otherwise))
}

fn strip_end<'t>(text: &'t str, end: &str, otherwise: &str) -> Result<&'t str> {
    text.strip_suffix(end).ok_or_else(|| irregular(otherwise))
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
        assert_eq!(found.system.unwrap().before, "<|im_start|>system\n");
    }

    #[test]
    fn the_beginning_token_is_left_to_the_tokenizer() {
        let inner = chatml(None);
        let render = move |talk: &[ChatMessage], prompt: bool| Ok(format!("<s>{}", inner(talk, prompt)?));
        assert_eq!(find(&render, Some("<s>")).unwrap().opening, "");
        assert_eq!(find(&render, None).unwrap().opening, "<s>");
    }

    #[test]
    fn a_template_without_system_messages_has_none_and_irregular_ones_are_refused() {
        let inner = chatml(None);
        let render = |talk: &[ChatMessage], prompt: bool| match talk[0].role.as_str() {
            "system" => Err(Error::user("system role not supported")),
            _ => inner(talk, prompt),
        };
        assert_eq!(find(&render, None).unwrap().system, None);
        // As in Llama 2: the system message is inside the first question.
        let render = |talk: &[ChatMessage], prompt: bool| {
            let (system, rest) = match talk[0].role.as_str() {
                "system" => (format!("<<SYS>>{}<</SYS>>", talk[0].content), &talk[1..]),
                _ => (String::new(), talk),
            };
            let mut text = String::new();
            for (i, m) in rest.iter().enumerate() {
                let inside = if i == 0 { system.as_str() } else { "" };
                text += &match m.role.as_str() {
                    "user" => format!("[INST] {inside}{} [/INST]", m.content),
                    _ => format!(" {} </s>", m.content),
                };
            }
            Ok(if prompt { text } else { text })
        };
        let e = find(&render, None).unwrap_err();
        assert!(e.message().contains("system message"), "{e}");
        // Numbers its questions.
        let render = |talk: &[ChatMessage], prompt: bool| {
            let turn = |(i, m): (usize, &ChatMessage)| format!("[{i} {}]{};", m.role, m.content);
            let text: String = talk.iter().enumerate().map(turn).collect();
            Ok(if prompt { text + "[answer]" } else { text })
        };
        assert!(find(&render, None).unwrap_err().message().contains("no sequence of turns"));
    }
}
