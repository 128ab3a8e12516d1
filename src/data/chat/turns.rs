//! Splits a prompt back into the turns that its template rendered.
//!
//! Token ids do not record roles. Therefore a conversation of known words is rendered to see what the template writes
//! between turns, and these separators are searched for in the prompt's text.

use super::tokenizer::ChatTokenizer;
use crate::data::rows::ChatMessage;
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// One turn of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatTurn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said, without white space at its ends.
    pub text: String,
}

/// Texts of the known conversation, which no template contains: for system, user, assistant and user.
const PROBE_WORDS: [&str; 4] = ["ftuvorne", "ftufrage", "ftuantwort", "ftuweiter"];
const ROLES: [&str; 4] = ["system", "user", "assistant", "user"];
/// Maximum number of bytes before the first separator: a token that the tokenizer adds.
const MAX_PREFIX_BYTES: usize = 16;

/// The separators that a template writes around turns, without white space at their ends.
struct TurnMarks {
    before_system: Option<String>,
    system_to_user: Option<String>,
    before_user: String,
    user_to_assistant: String,
    assistant_to_user: String,
    /// What the template writes at the end of the prompt, where the answer begins.
    end: String,
}

impl ChatTokenizer {
    /// Returns the turns of a prompt; `None` if the model has no template, or if its text cannot be split again.
    pub fn turns(&self, ids: &[u32]) -> Result<Option<Vec<ChatTurn>>> {
        if self.template().is_none() {
            return Ok(None);
        }
        let Some(marks) = TurnMarks::of(&|messages| self.render(messages, true).ok()) else { return Ok(None) };
        Ok(marks.split_turns(&self.decode(ids, false)?))
    }
}

impl TurnMarks {
    /// Finds the separators by rendering known words; `None` if the template changes the words or their order, or
    /// writes nothing between them.
    fn of(render: &dyn Fn(&[ChatMessage]) -> Option<String>) -> Option<Self> {
        let between = |from: usize| -> Option<Vec<String>> {
            let messages: Vec<ChatMessage> = (from..4).map(|i| ChatMessage::new(ROLES[i], PROBE_WORDS[i])).collect();
            let text = render(&messages)?;
            let (mut rest, mut marks) = (text.as_str(), Vec::new());
            for word in &PROBE_WORDS[from..] {
                let (mark, after) = rest.split_once(word)?;
                marks.push(mark.trim().to_string());
                rest = after;
            }
            marks.push(rest.trim().to_string());
            Some(marks)
        };
        let [before_user, user_to_assistant, assistant_to_user, end] = between(1)?.try_into().ok()?;
        let (before_system, system_to_user) = match between(0).as_deref() {
            Some([before, to_user, ..]) if !before.is_empty() && !to_user.is_empty() => {
                (Some(before.clone()), Some(to_user.clone()))
            }
            _ => (None, None),
        };
        let all = [&before_user, &user_to_assistant, &assistant_to_user];
        all.iter().all(|mark| !mark.is_empty()).then_some(Self {
            before_system,
            system_to_user,
            before_user,
            user_to_assistant,
            assistant_to_user,
            end,
        })
    }

    /// Splits a text at the separators; `None` if it does not begin with one.
    fn split_turns(&self, text: &str) -> Option<Vec<ChatTurn>> {
        let text = text.trim();
        let text = text.strip_suffix(self.end.as_str()).unwrap_or(text);
        let begins =
            |mark: &str| text.find(mark).filter(|at| *at <= MAX_PREFIX_BYTES).map(|at| &text[at + mark.len()..]);
        let system = self.before_system.as_deref().and_then(begins).map(|rest| ("system", rest));
        let (mut role, mut rest) = system.or_else(|| begins(&self.before_user).map(|rest| ("user", rest)))?;
        let mut turns = Vec::new();
        loop {
            let (mark, next) = match role {
                "system" => (self.system_to_user.as_deref()?, "user"),
                "user" => (self.user_to_assistant.as_str(), "assistant"),
                _ => (self.assistant_to_user.as_str(), "user"),
            };
            let (said, after) = rest.split_once(mark).map_or((rest, None), |(said, after)| (said, Some(after)));
            turns.push(ChatTurn { role: role.into(), text: said.trim().into() });
            match after {
                Some(after) => (role, rest) = (next, after),
                None => return Some(turns),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A template as a function: what it writes at the beginning, for each turn, and before the answer.
    fn template(
        head: &'static str,
        turn: impl Fn(&str, &str) -> String + 'static,
        tail: &'static str,
    ) -> impl Fn(&[ChatMessage]) -> Option<String> {
        move |messages| {
            let turns: String = messages.iter().map(|m| turn(&m.role, &m.content)).collect();
            Some(format!("{head}{turns}{tail}"))
        }
    }

    fn roles(turns: &[ChatTurn]) -> Vec<(&str, &str)> {
        turns.iter().map(|t| (t.role.as_str(), t.text.as_str())).collect()
    }

    #[test]
    fn turns_come_back_from_what_a_template_made_of_them() {
        let chatml = template("", |r, c| format!("<|im_start|>{r}\n{c}<|im_end|>\n"), "<|im_start|>assistant\n");
        let llama =
            template("<|begin|>", |r, c| format!("<|start|>{r}<|end|>\n\n{c}<|eot|>"), "<|start|>assistant<|end|>\n\n");
        let inst = template(
            "<s>",
            |r, c| match r {
                "user" => format!("[INST] {c} [/INST]"),
                "system" => format!("[SYS] {c} [/SYS] "),
                _ => format!(" {c}</s>"),
            },
            "",
        );
        let talk = ["Be kind.", "What is 2 + 2?\nAnd 3?", "4 and 3", "Why?"];
        for render in [&chatml as &dyn Fn(&[ChatMessage]) -> Option<String>, &llama, &inst] {
            let marks = TurnMarks::of(render).unwrap();
            for from in 0..2 {
                let messages: Vec<ChatMessage> = (from..4).map(|i| ChatMessage::new(ROLES[i], talk[i])).collect();
                let turns = marks.split_turns(&render(&messages).unwrap()).unwrap();
                let expected: Vec<(&str, &str)> = (from..4).map(|i| (ROLES[i], talk[i])).collect();
                assert_eq!(roles(&turns), expected);
            }
            assert_eq!(marks.split_turns("something else"), None);
        }
    }

    #[test]
    fn a_template_that_hides_its_turns_has_none() {
        let bare = template("", |_, c| format!("{c}\n"), "");
        assert!(TurnMarks::of(&bare).is_none());
        let loud = |messages: &[ChatMessage]| chatty(messages).map(|t| t.to_uppercase());
        fn chatty(messages: &[ChatMessage]) -> Option<String> {
            Some(messages.iter().map(|m| format!("<{}>{}", m.role, m.content)).collect())
        }
        assert!(TurnMarks::of(&loud).is_none());
        // One that refuses system messages still has its other turns.
        let strict = |messages: &[ChatMessage]| match messages[0].role.as_str() {
            "system" => None,
            _ => chatty(messages),
        };
        let marks = TurnMarks::of(&strict).unwrap();
        assert_eq!(roles(&marks.split_turns("<user>a<assistant>b<user>c").unwrap()).len(), 3);
    }
}
