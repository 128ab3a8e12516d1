//! Reads rows of prompts, pairs of answers and labelled answers, for reward models, DPO, KTO and reinforcement
//! learning.
//!
//! If a pair has no prompt, the common beginning of its two sides is the prompt, compared by message or by character
//! (TRL's rule). A pair of equal answers has nothing to train on and is an error that names its line.

use super::conversation::{ChatMessage, Conversation};
use super::dialogue::{is_dialogue, parse_dialogue};
use super::format::RowFormat;
use super::json_text::{as_list, decode_json_text, is_messages_json};
use super::record::{AnswerContent, JudgedAnswer, Preference, PromptContent};
use super::record_reader::RecordReader;
use super::verdict::{parse_verdict, verdict_column, verdict_words};
use crate::data::source::RowColumns;
use crate::error::Result;
use crate::json;
use serde_json::Value;

/// A prompt or an answer as the row gives it, before the two are brought to the same kind.
enum TextOrMessages {
    Text(String),
    Talk(Vec<ChatMessage>),
}

impl RecordReader<'_> {
    /// Reads a row of format `prompt`.
    pub(super) fn prompt_only(&self, columns: RowColumns) -> Result<PromptContent> {
        let value = columns.get("prompt").ok_or_else(|| self.missing("prompt", &columns))?;
        match self.text_or_messages(value, "prompt")? {
            TextOrMessages::Text(text) => Ok(PromptContent::Text(text)),
            TextOrMessages::Talk(messages) => self.talk(messages, &columns).map(PromptContent::Talk),
        }
    }

    /// Reads a row of `prompt`, `completion` and `label`, or of a conversation and `label`.
    pub(super) fn unpaired(&self, columns: RowColumns) -> Result<JudgedAnswer> {
        let key = verdict_column(&columns).ok_or_else(|| self.missing("label", &columns))?;
        let good = parse_verdict(&columns[key]).ok_or_else(|| {
            let found = json::to_text(&columns[key]);
            let error = self.error(format!("key `{key}` is {found}, which is not a label for an answer (good or bad)"));
            error.hint(format!("labels are {}; without one there is nothing to train on", verdict_words()))
        })?;
        let has = |key: &str| columns.get(key).is_some_and(|v| !v.is_null());
        if !has("prompt") && (has("messages") || has("conversations")) {
            let list = if has("messages") { columns.get("messages") } else { columns.get("conversations") };
            let list = list.and_then(as_list);
            let from =
                list.is_some_and(|turns| turns.first().is_some_and(|t| decode_json_text(t).get("from").is_some()));
            let format = if from { RowFormat::Sharegpt } else { RowFormat::Messages };
            let mut talk = self.conversation(columns, format)?;
            let last = talk.messages.pop().filter(|m| m.role == "assistant");
            let last = last.ok_or_else(|| {
                self.error("the conversation does not end with an assistant turn, so there is no answer to label")
            })?;
            return Ok(JudgedAnswer {
                prompt: PromptContent::Talk(talk),
                answer: AnswerContent::Talk(vec![last]),
                good,
            });
        }
        let value = |key: &str| columns.get(key).ok_or_else(|| self.missing(key, &columns));
        let prompt = self.text_or_messages(value("prompt")?, "prompt")?;
        let answer = self.text_or_messages(value("completion")?, "completion")?;
        let (prompt, [answer]) = self.join_prompt(prompt, [answer], ["completion"], &columns)?;
        self.ends_in_answer(&answer, "completion")?;
        Ok(JudgedAnswer { prompt, answer, good })
    }

    /// Reads a row of `chosen` and `rejected`.
    pub(super) fn preference(&self, columns: RowColumns, format: RowFormat) -> Result<Preference> {
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
                Some(text) => Ok(parse_dialogue(text)),
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
        let sides = [self.text_or_messages(chosen, "chosen")?, self.text_or_messages(rejected, "rejected")?];
        let names = ["chosen", "rejected"];
        let (prompt, [chosen, rejected]) = match (self.pair_prompt(&columns)?, sides) {
            (Some(prompt), sides) => self.join_prompt(prompt, sides, names, &columns)?,
            (None, [TextOrMessages::Text(a), TextOrMessages::Text(b)]) => {
                let (prompt, sides) = common_text([a, b]);
                (PromptContent::Text(prompt), sides.map(AnswerContent::Text))
            }
            (None, [TextOrMessages::Talk(a), TextOrMessages::Talk(b)]) => self.common_messages([a, b], &columns)?,
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
    fn ends_in_answer(&self, answer: &AnswerContent, key: &str) -> Result<()> {
        match answer {
            AnswerContent::Talk(messages) => match messages.last() {
                Some(last) if last.role != "assistant" => Err(self
                    .error(format!("`{key}` ends with a {} turn, so it has no answer to compare", last.role))
                    .hint("the last turn must be the assistant's answer")),
                _ => Ok(()),
            },
            AnswerContent::Text(_) => Ok(()),
        }
    }

    /// Returns the prompt that a row of a pair states in its own column, as text or messages; `None` if it has none.
    /// Columns of other tools (`question`, `instruction` with `input`, `system`, `conversations`) are read too.
    fn pair_prompt(&self, columns: &RowColumns) -> Result<Option<TextOrMessages>> {
        let system = self.optional_text(columns, "system")?;
        if let Some(value) = columns.get("conversations").filter(|v| !v.is_null()) {
            let TextOrMessages::Talk(mut messages) = self.text_or_messages(value, "conversations")? else {
                return Err(self.wrong("conversations", "a list of messages", value));
            };
            messages.splice(0..0, system.map(|s| ChatMessage::new("system", s)));
            return Ok(Some(TextOrMessages::Talk(messages)));
        }
        let key =
            ["prompt", "question", "instruction"].into_iter().find(|k| columns.get(*k).is_some_and(|v| !v.is_null()));
        let Some(key) = key else { return Ok(None) };
        let mut prompt = self.text_or_messages(&columns[key], key)?;
        if let (TextOrMessages::Text(text), "instruction") = (&mut prompt, key)
            && let Some(input) = self.optional_text(columns, "input")?
        {
            *text = format!("{text}\n\n{input}");
        }
        Ok(Some(match (prompt, system) {
            (TextOrMessages::Text(text), Some(system)) => {
                TextOrMessages::Talk(vec![ChatMessage::new("system", system), ChatMessage::new("user", text)])
            }
            // An instruction is what a user would type, so it becomes a user turn; a `prompt` of text stays text.
            (TextOrMessages::Text(text), None) if key == "instruction" => {
                TextOrMessages::Talk(vec![ChatMessage::new("user", text)])
            }
            (prompt, _) => prompt,
        }))
    }

    /// Brings prompt and answers to the same kind: if one of them is messages, text becomes a message. `names` are the
    /// columns of the answers.
    fn join_prompt<const N: usize>(
        &self,
        prompt: TextOrMessages,
        sides: [TextOrMessages; N],
        names: [&str; N],
        columns: &RowColumns,
    ) -> Result<(PromptContent, [AnswerContent; N])> {
        let talks = sides.iter().any(|s| matches!(s, TextOrMessages::Talk(_)));
        let of_text = matches!(prompt, TextOrMessages::Text(_));
        let messages = match prompt {
            TextOrMessages::Text(text) if !talks => {
                let answers = sides.map(|side| match side {
                    TextOrMessages::Text(text) => AnswerContent::Text(text),
                    TextOrMessages::Talk(messages) => AnswerContent::Talk(messages),
                });
                return Ok((PromptContent::Text(text), answers));
            }
            TextOrMessages::Text(text) => vec![ChatMessage::new("user", text)],
            TextOrMessages::Talk(messages) => messages,
        };
        let mut answers = sides.map(|side| match side {
            TextOrMessages::Text(text) => vec![ChatMessage::new("assistant", text)],
            TextOrMessages::Talk(messages) => messages,
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
            return Ok((prompt, std::array::from_fn(|_| pair.next().unwrap_or(AnswerContent::Talk(Vec::new())))));
        }
        for (answer, name) in answers.iter().zip(names) {
            if answer.is_empty() {
                return Err(self.error(format!("key `{name}` has no message after the prompt")));
            }
        }
        Ok((PromptContent::Talk(self.talk(messages, columns)?), answers.map(AnswerContent::Talk)))
    }

    /// Splits two conversations into their common messages, which are the prompt, and their answers. If one side has no
    /// further message, its last common message is its answer.
    fn common_messages(
        &self,
        sides: [Vec<ChatMessage>; 2],
        columns: &RowColumns,
    ) -> Result<(PromptContent, [AnswerContent; 2])> {
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
        Ok((PromptContent::Talk(self.talk(a, columns)?), answers.map(AnswerContent::Talk)))
    }

    fn talk(&self, messages: Vec<ChatMessage>, columns: &RowColumns) -> Result<Conversation> {
        let mut talk = Conversation { prompt_len: messages.len(), messages, ..Default::default() };
        self.read_tools_and_kwargs(&mut talk, columns)?;
        Ok(talk)
    }

    /// Reads text, a message, or a list of messages (with `role` and `content`, or with `from` and `value`).
    fn text_or_messages(&self, value: &Value, key: &str) -> Result<TextOrMessages> {
        let list = match value {
            Value::String(text) if !is_messages_json(text) => return Ok(TextOrMessages::Text(text.clone())),
            Value::Object(_) => vec![value.clone()],
            Value::Null => return Err(self.wrong(key, "text or messages", value)),
            value => as_list(value).ok_or_else(|| self.no_list(key, "text or messages", value))?.into_owned(),
        };
        if list.is_empty() {
            return Err(self.error(format!("key `{key}` has no message")));
        }
        let read = |(i, turn): (usize, &Value)| {
            let at = if value.is_object() { key.to_string() } else { format!("{key}[{i}]") };
            if decode_json_text(turn).get("from").is_some() {
                self.sharegpt_turn(turn, &at)
            } else {
                self.turn(turn, &at)
            }
        };
        list.iter().enumerate().map(read).collect::<Result<_>>().map(TextOrMessages::Talk)
    }
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
    fn a_space_before_the_difference_belongs_to_the_answers() {
        let split = |a: &str, b: &str| common_text([a.into(), b.into()]);
        assert_eq!(split("Sky is blue", "Sky is green"), ("Sky is".into(), [" blue".into(), " green".into()]));
        assert_eq!(split("ä🙂x", "ä🙂y"), ("ä🙂".into(), ["x".into(), "y".into()]));
        assert_eq!(split("abc", "abcd"), ("abc".into(), ["".into(), "d".into()]));
        assert_eq!(split("a", "b"), ("".into(), ["a".into(), "b".into()]));
    }
}
