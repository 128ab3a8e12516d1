//! Reads rows of prompts, pairs of answers and labelled answers, for reward models, DPO, KTO and reinforcement
//! learning.
//!
//! If a pair has no prompt, the common beginning of its two sides is the prompt, compared by message or by character
//! (TRL's rule). A pair of equal answers has nothing to train on and is an error that names its line.

use super::RowFormat;
use super::detect::{label_of, list_of, opened, spells_messages, truth, verdict_words};
use super::json;
use super::record::{Columns, Conversation, Message, Reader};
use crate::error::Result;
use serde_json::Value;

/// A prompt, as text or as messages.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    Text(String),
    /// Messages up to the answer, with tools and template arguments.
    Talk(Conversation),
}

/// An answer: text if its prompt is text, messages if its prompt is messages.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Text(String),
    Talk(Vec<Message>),
}

/// A prompt with a better and a worse answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    pub prompt: Asked,
    pub chosen: Answer,
    pub rejected: Answer,
    /// By how much the chosen answer is better, if the row says so.
    pub margin: Option<f64>,
    /// Prompt and both answers as text, if the row is a dialogue in text (HH); used by models without a chat template.
    pub text: Option<(String, [String; 2])>,
}

/// A prompt with an answer and its label: good or bad.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub prompt: Asked,
    pub answer: Answer,
    pub good: bool,
}

/// A prompt or an answer as the row gives it, before the two are brought to the same kind.
enum Side {
    Text(String),
    Talk(Vec<Message>),
}

impl Reader<'_> {
    /// Reads a row of format `prompt`.
    pub(super) fn prompt_only(&self, columns: Columns) -> Result<Asked> {
        let value = columns.get("prompt").ok_or_else(|| self.missing("prompt", &columns))?;
        match self.side(value, "prompt")? {
            Side::Text(text) => Ok(Asked::Text(text)),
            Side::Talk(messages) => self.talk(messages, &columns).map(Asked::Talk),
        }
    }

    /// Reads a row of `prompt`, `completion` and `label`, or of a conversation and `label`.
    pub(super) fn unpaired(&self, columns: Columns) -> Result<Verdict> {
        let key = label_of(&columns).ok_or_else(|| self.missing("label", &columns))?;
        let good = truth(&columns[key]).ok_or_else(|| {
            let found = json::text(&columns[key]);
            let error = self.error(format!("key `{key}` is {found}, which is not a label for an answer (good or bad)"));
            error.hint(format!("labels are {}; without one there is nothing to train on", verdict_words()))
        })?;
        let has = |key: &str| columns.get(key).is_some_and(|v| !v.is_null());
        if !has("prompt") && (has("messages") || has("conversations")) {
            let list = if has("messages") { columns.get("messages") } else { columns.get("conversations") };
            let list = list.and_then(list_of);
            let from = list.is_some_and(|turns| turns.first().is_some_and(|t| opened(t).get("from").is_some()));
            let format = if from { RowFormat::Sharegpt } else { RowFormat::Messages };
            let mut talk = self.conversation(columns, format)?;
            let last = talk.messages.pop().filter(|m| m.role == "assistant");
            let last = last.ok_or_else(|| {
                self.error("the conversation does not end with an assistant turn, so there is no answer to label")
            })?;
            return Ok(Verdict { prompt: Asked::Talk(talk), answer: Answer::Talk(vec![last]), good });
        }
        let value = |key: &str| columns.get(key).ok_or_else(|| self.missing(key, &columns));
        let prompt = self.side(value("prompt")?, "prompt")?;
        let answer = self.side(value("completion")?, "completion")?;
        let (prompt, [answer]) = self.joined(prompt, [answer], ["completion"], &columns)?;
        self.ends_in_answer(&answer, "completion")?;
        Ok(Verdict { prompt, answer, good })
    }

    /// Reads a row of `chosen` and `rejected`.
    pub(super) fn preference(&self, columns: Columns, format: RowFormat) -> Result<Preference> {
        let value = |key: &str| columns.get(key).ok_or_else(|| self.missing(key, &columns));
        let margin = match columns.get("margin") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.trim().parse::<f64>().is_ok_and(f64::is_finite) => {
                text.trim().parse().ok()
            }
            Some(number) => Some(json::as_f64(number).ok_or_else(|| self.wrong("margin", "a number", number))?),
        };
        let (chosen, rejected) = (value("chosen")?, value("rejected")?);
        if chosen == rejected {
            return Err(self
                .error("`chosen` and `rejected` are the same: there is nothing to prefer")
                .hint("remove the row; `ft data convert --drop-bad` leaves such rows out"));
        }
        if format == RowFormat::Hh {
            let side = |key: &str, value: &Value| match value.as_str().filter(|t| is_dialogue(t)) {
                Some(text) => Ok(dialogue(text)),
                None => Err(self.wrong(key, "a dialogue of \"\\n\\nHuman: …\\n\\nAssistant: …\"", value)),
            };
            let sides = [side("chosen", chosen)?, side("rejected", rejected)?];
            let (prompt, [chosen_, rejected_]) = self.common_messages(sides, &columns)?;
            self.ends_in_answer(&chosen_, "chosen")?;
            self.ends_in_answer(&rejected_, "rejected")?;
            let text = [chosen, rejected].map(|v| v.as_str().unwrap_or_default().to_string());
            let text = Some(common_text(text));
            return Ok(Preference { prompt, chosen: chosen_, rejected: rejected_, margin, text });
        }
        let sides = [self.side(chosen, "chosen")?, self.side(rejected, "rejected")?];
        let names = ["chosen", "rejected"];
        let (prompt, [chosen, rejected]) = match (self.pair_prompt(&columns)?, sides) {
            (Some(prompt), sides) => self.joined(prompt, sides, names, &columns)?,
            (None, [Side::Text(a), Side::Text(b)]) => {
                let (prompt, sides) = common_text([a, b]);
                (Asked::Text(prompt), sides.map(Answer::Text))
            }
            (None, [Side::Talk(a), Side::Talk(b)]) => self.common_messages([a, b], &columns)?,
            (None, _) => return Err(self.error("`chosen` and `rejected` must both be text or both be messages")),
        };
        self.ends_in_answer(&chosen, "chosen")?;
        self.ends_in_answer(&rejected, "rejected")?;
        if chosen == rejected {
            return Err(self
                .error("`chosen` and `rejected` are the same after their prompt: there is nothing to prefer")
                .hint("remove the row; `ft data convert --drop-bad` leaves such rows out"));
        }
        Ok(Preference { prompt, chosen, rejected, margin, text: None })
    }

    /// Fails if the answer does not end with an assistant turn: the model would never generate what follows it.
    fn ends_in_answer(&self, answer: &Answer, key: &str) -> Result<()> {
        match answer {
            Answer::Talk(messages) => match messages.last() {
                Some(last) if last.role != "assistant" => Err(self
                    .error(format!("`{key}` ends with a {} turn, so it has no answer to compare", last.role))
                    .hint("the last turn must be the assistant's answer")),
                _ => Ok(()),
            },
            Answer::Text(_) => Ok(()),
        }
    }

    /// Returns the prompt that a row of a pair states in its own column, as text or messages; `None` if it has none.
    /// Columns of other tools (`question`, `instruction` with `input`, `system`, `conversations`) are read too.
    fn pair_prompt(&self, columns: &Columns) -> Result<Option<Side>> {
        let system = self.optional_text(columns, "system")?;
        if let Some(value) = columns.get("conversations").filter(|v| !v.is_null()) {
            let Side::Talk(mut messages) = self.side(value, "conversations")? else {
                return Err(self.wrong("conversations", "a list of messages", value));
            };
            messages.splice(0..0, system.map(|s| Message::new("system", s)));
            return Ok(Some(Side::Talk(messages)));
        }
        let key =
            ["prompt", "question", "instruction"].into_iter().find(|k| columns.get(*k).is_some_and(|v| !v.is_null()));
        let Some(key) = key else { return Ok(None) };
        let mut prompt = self.side(&columns[key], key)?;
        if let (Side::Text(text), "instruction") = (&mut prompt, key)
            && let Some(input) = self.optional_text(columns, "input")?
        {
            *text = format!("{text}\n\n{input}");
        }
        Ok(Some(match (prompt, system) {
            (Side::Text(text), Some(system)) => {
                Side::Talk(vec![Message::new("system", system), Message::new("user", text)])
            }
            // An instruction is what a user would type, so it becomes a user turn; a `prompt` of text stays text.
            (Side::Text(text), None) if key == "instruction" => Side::Talk(vec![Message::new("user", text)]),
            (prompt, _) => prompt,
        }))
    }

    /// Brings prompt and answers to the same kind: if one of them is messages, text becomes a message. `names` are the
    /// columns of the answers.
    fn joined<const N: usize>(
        &self,
        prompt: Side,
        sides: [Side; N],
        names: [&str; N],
        columns: &Columns,
    ) -> Result<(Asked, [Answer; N])> {
        let talks = sides.iter().any(|s| matches!(s, Side::Talk(_)));
        let of_text = matches!(prompt, Side::Text(_));
        let messages = match prompt {
            Side::Text(text) if !talks => {
                let answers = sides.map(|side| match side {
                    Side::Text(text) => Answer::Text(text),
                    Side::Talk(messages) => Answer::Talk(messages),
                });
                return Ok((Asked::Text(text), answers));
            }
            Side::Text(text) => vec![Message::new("user", text)],
            Side::Talk(messages) => messages,
        };
        let mut answers = sides.map(|side| match side {
            Side::Text(text) => vec![Message::new("assistant", text)],
            Side::Talk(messages) => messages,
        });
        // Some files repeat the prompt in front of each answer; others (UltraFeedback) have it in a column next to
        // whole conversations.
        if answers.iter().all(|a| a.starts_with(&messages)) {
            answers.iter_mut().for_each(|a| drop(a.drain(..messages.len())));
        } else if of_text && N == 2 && answers.iter().all(|a| a.first().is_some_and(|m| m.role != "assistant")) {
            let mut sides = answers.into_iter();
            let pair = std::array::from_fn(|_| sides.next().unwrap_or_default());
            let (prompt, pair) = self.common_messages(pair, columns)?;
            let mut pair = pair.into_iter();
            return Ok((prompt, std::array::from_fn(|_| pair.next().unwrap_or(Answer::Talk(Vec::new())))));
        }
        for (answer, name) in answers.iter().zip(names) {
            if answer.is_empty() {
                return Err(self.error(format!("key `{name}` has no message after the prompt")));
            }
        }
        Ok((Asked::Talk(self.talk(messages, columns)?), answers.map(Answer::Talk)))
    }

    /// Splits two conversations into their common messages, which are the prompt, and their answers. If one side has no
    /// further message, its last common message is its answer.
    fn common_messages(&self, sides: [Vec<Message>; 2], columns: &Columns) -> Result<(Asked, [Answer; 2])> {
        let [mut a, mut b] = sides;
        let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
        let prompt = if same == a.len().min(b.len()) { same.saturating_sub(1) } else { same };
        if prompt == 0 {
            return Err(self
                .error("`chosen` and `rejected` share no message, so there is no prompt")
                .hint("write the prompt in a column `prompt`, or begin both with the same messages"));
        }
        let answers = [a.split_off(prompt), b.split_off(prompt)];
        if answers[0] == answers[1] {
            return Err(self
                .error("`chosen` and `rejected` are the same: there is nothing to prefer")
                .hint("remove the row"));
        }
        Ok((Asked::Talk(self.talk(a, columns)?), answers.map(Answer::Talk)))
    }

    fn talk(&self, messages: Vec<Message>, columns: &Columns) -> Result<Conversation> {
        let mut talk = Conversation { given: messages.len(), messages, ..Default::default() };
        self.beside(&mut talk, columns)?;
        Ok(talk)
    }

    /// Reads text, a message, or a list of messages (with `role` and `content`, or with `from` and `value`).
    fn side(&self, value: &Value, key: &str) -> Result<Side> {
        let list = match value {
            Value::String(text) if !spells_messages(text) => return Ok(Side::Text(text.clone())),
            Value::Object(_) => vec![value.clone()],
            Value::Null => return Err(self.wrong(key, "text or messages", value)),
            value => list_of(value).ok_or_else(|| self.no_list(key, "text or messages", value))?.into_owned(),
        };
        if list.is_empty() {
            return Err(self.error(format!("key `{key}` has no message")));
        }
        let read = |(i, turn): (usize, &Value)| {
            let at = if value.is_object() { key.to_string() } else { format!("{key}[{i}]") };
            if opened(turn).get("from").is_some() { self.sharegpt_turn(turn, &at) } else { self.turn(turn, &at) }
        };
        list.iter().enumerate().map(read).collect::<Result<_>>().map(Side::Talk)
    }
}

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// Returns true if the text is a dialogue in the form of the HH files.
pub(super) fn is_dialogue(text: &str) -> bool {
    text.trim_start().starts_with("Human:") && text.contains(ASSISTANT)
}

/// Splits a dialogue in text into its turns.
fn dialogue(text: &str) -> Vec<Message> {
    let text = format!("\n\n{}", text.trim_start());
    let mut turns = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (role, mark) = if rest.starts_with(HUMAN) { ("user", HUMAN) } else { ("assistant", ASSISTANT) };
        let said = &rest[mark.len()..];
        let end = [HUMAN, ASSISTANT].iter().filter_map(|m| said.find(m)).min().unwrap_or(said.len());
        turns.push(Message::new(role, said[..end].trim()));
        rest = &said[end..];
    }
    turns
}

/// Splits two texts into their common beginning and the rest of each. A space before the difference belongs to the
/// answers, because tokens include the space in front of their word.
fn common_text([a, b]: [String; 2]) -> (String, [String; 2]) {
    let same = a.chars().zip(b.chars()).take_while(|(x, y)| x == y);
    let mut at: usize = same.map(|(c, _)| c.len_utf8()).sum();
    if a[..at].ends_with(' ') {
        at -= 1;
    }
    (a[..at].to_string(), [a[at..].to_string(), b[at..].to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialogues_become_turns() {
        let text = "\n\nHuman: Hi there\n\nAssistant: Hello.\nYes?\n\nHuman: And?\n\nAssistant:";
        let turns: Vec<(String, String)> = dialogue(text).into_iter().map(|m| (m.role, m.content)).collect();
        let expected = [("user", "Hi there"), ("assistant", "Hello.\nYes?"), ("user", "And?"), ("assistant", "")];
        assert_eq!(turns, expected.map(|(r, c)| (r.to_string(), c.to_string())));
        assert!(is_dialogue(text) && is_dialogue("Human: a\n\nAssistant: b") && !is_dialogue("Human: alone"));
    }

    #[test]
    fn a_space_before_the_difference_belongs_to_the_answers() {
        let split = |a: &str, b: &str| common_text([a.into(), b.into()]);
        assert_eq!(split("Sky is blue", "Sky is green"), ("Sky is".into(), [" blue".into(), " green".into()]));
        assert_eq!(split("ä🙂x", "ä🙂y"), ("ä🙂".into(), ["x".into(), "y".into()]));
        assert_eq!(split("abc", "abcd"), ("abc".into(), ["".into(), "d".into()]));
        assert_eq!(split("a", "b"), ("".into(), ["a".into(), "b".into()]));
    }
}
