//! Prompts: system prompt, answered examples and the question, as text or as a chat.
//!
//! As in lm-evaluation-harness 0.4 (`fewshot_context`): in plain text everything is joined without anything between that the
//! task does not name; in a chat, examples are turns, or stand before the question in one turn.

use crate::data::chat::ChatTokenizer;
use crate::data::rows::ChatMessage;
use crate::error::Result;
use crate::recipe::suite_file::FewShotForm;
use crate::text_metrics::words::is_python_whitespace;

/// The parts of a prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptParts {
    /// The system prompt.
    pub system: Option<String>,
    /// Questions and answers of the examples.
    pub examples: Vec<(String, String)>,
    /// The question.
    pub question: String,
}

/// How the parts of a task's prompts become one text.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptForm {
    /// Whether the chat template is used.
    pub chat: bool,
    /// How examples are written.
    pub examples: FewShotForm,
    /// What stands between a question and its answer in text.
    pub separator: String,
    /// What stands between two examples in text.
    pub between: String,
}

impl PromptForm {
    /// Writes a prompt. Fails if the chat template refuses it.
    pub fn write(&self, parts: &PromptParts, tokenizer: &ChatTokenizer) -> Result<String> {
        let system = parts.system.as_deref().filter(|text| !text.is_empty());
        if !self.chat {
            return Ok(self.plain(parts));
        }
        let mut messages: Vec<ChatMessage> = system.map(|text| ChatMessage::new("system", text)).into_iter().collect();
        match self.examples {
            FewShotForm::Text => messages.push(ChatMessage::new("user", self.as_text(parts))),
            FewShotForm::Turns => {
                for (question, answer) in &parts.examples {
                    messages.push(ChatMessage::new("user", question));
                    messages.push(ChatMessage::new("assistant", answer));
                }
                messages.push(ChatMessage::new("user", &parts.question));
            }
        }
        tokenizer.render(&messages, true)
    }

    /// Writes a prompt as plain text.
    pub fn plain(&self, parts: &PromptParts) -> String {
        parts.system.clone().unwrap_or_default() + &self.as_text(parts)
    }

    /// Returns examples and question in one text.
    fn as_text(&self, parts: &PromptParts) -> String {
        let example =
            |(question, answer): &(String, String)| format!("{question}{}{answer}{}", self.separator, self.between);
        parts.examples.iter().map(example).collect::<String>() + &parts.question
    }

    /// Returns what a continuation begins with: the separator in plain text, nothing in a chat.
    pub fn before_answer(&self) -> &str {
        if self.chat { "" } else { &self.separator }
    }

    /// Encodes a written prompt alone, for an answer that the model writes.
    pub fn encode(&self, prompt: &str, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
        if self.chat { tokenizer.encode(prompt) } else { encode_text(prompt, tokenizer) }
    }

    /// Encodes a written prompt and a continuation, as lm-evaluation-harness does (`_encode_pair`): whitespace at the end of the
    /// prompt belongs to the continuation, and the continuation has the tokens of the whole text after those of the prompt alone.
    /// Without a prompt, the context is the token that begins a text. The context may be empty if the tokenizer has none.
    pub fn encode_pair(
        &self,
        prompt: &str,
        continuation: &str,
        tokenizer: &ChatTokenizer,
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        let context = prompt.trim_end_matches(is_python_whitespace);
        if context.is_empty() {
            let ids = tokenizer.encode(&format!("{prompt}{continuation}"))?;
            return Ok(match (prefix_token(tokenizer), ids.split_first()) {
                (Some(prefix), Some((first, rest))) if prefix == *first => (vec![prefix], rest.to_vec()),
                (prefix, _) => (prefix.into_iter().collect(), ids),
            });
        }
        let whole = self.encode(&format!("{prompt}{continuation}"), tokenizer)?;
        let context = self.encode(context, tokenizer)?;
        let rest = whole.get(context.len()..).unwrap_or_default().to_vec();
        Ok((context, rest))
    }
}

/// Returns the token that stands before a text without a context: that which begins texts, or else that which ends them.
pub fn prefix_token(tokenizer: &ChatTokenizer) -> Option<u32> {
    tokenizer.bos().or(tokenizer.eos())
}

/// Encodes a text with the special tokens that the tokenizer adds, unless the text has the first of them already.
pub fn encode_text(text: &str, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
    let begins = match prefix_token(tokenizer) {
        Some(prefix) => tokenizer.decode(&[prefix], false)?,
        None => String::new(),
    };
    match !begins.is_empty() && text.starts_with(&begins) {
        true => tokenizer.encode(text),
        false => tokenizer.encode_without_eos(text),
    }
}
