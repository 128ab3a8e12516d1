//! The tokenizer of a model directory, with its chat template and the special tokens that conversations need.
//!
//! Invariant: texts are never truncated or padded, whatever tokenizer.json asks for, and only `encode_plain` (and what
//! is built on it) adds special tokens.

use super::template::ChatTemplate;
use crate::data::rows::ChatMessage;
use crate::error::{Error, Result};
use crate::fsutil;
use jiff::civil::Date;
use serde_json::Map;
use sha2::{Digest, Sha256};
use tokenizers::{Encoding, PostProcessor, PostProcessorWrapper, Tokenizer};

/// The tokenizer, chat template and special tokens of a model directory.
#[derive(Debug)]
pub struct ChatTokenizer {
    /// Has no post-processor, because that would add special tokens and trim spaces from offsets.
    pub(super) inner: Tokenizer,
    pub(super) post: Option<PostProcessorWrapper>,
    pub(super) template: Option<ChatTemplate>,
    pub(super) vocab_size: usize,
    /// Number of rows of the embedding, from the directory's config.json.
    pub(super) rows: Option<usize>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) turn_end: Option<u32>,
    /// The tokens that the template writes after `turn_end`.
    pub(super) after_turn: Vec<u32>,
    pub(super) stop_ids: Vec<u32>,
    /// Stop tokens that generation_config.json (or config.json) names: the only ones that other programs know.
    pub(super) written_stops: Vec<u32>,
    /// Whether the tokenizer adds a space before every text.
    pub(super) prefixes: bool,
    /// Whether the token of a word includes the space before it, which is not decoded at the beginning of a text
    /// (SentencePiece).
    pub(super) holds_spaces: bool,
}

impl ChatTokenizer {
    /// Returns the tokenizer without the limit of the directory's config.json, for a model that will be made to fit it.
    pub fn without_embedding_limit(self) -> Self {
        Self { rows: None, ..self }
    }

    /// Encodes `text`. Special tokens written in it are recognised, none is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.inner.encode_fast(text, false).map(|e| e.get_ids().to_vec()).map_err(|e| tokenizer_error(&e))
    }

    /// Encodes `text` with the special tokens that the tokenizer adds (a BOS if the model has one).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| tokenizer_error(&e))?;
        match &self.post {
            Some(post) => {
                post.process(encoding, None, true).map(|e| e.get_ids().to_vec()).map_err(|e| tokenizer_error(&e))
            }
            None => Ok(encoding.get_ids().to_vec()),
        }
    }

    /// Returns the byte position at which the token ids of a prompt end: before a last space if that space belongs to
    /// the token of the next word, else at the end. The answer then begins with the space, in training and in
    /// generation.
    pub fn prompt_end(&self, prompt: &str) -> usize {
        match prompt.strip_suffix(' ') {
            Some(before) if self.holds_spaces && !before.is_empty() => before.len(),
            _ => prompt.len(),
        }
    }

    /// Encodes a rendered prompt as in generation.
    pub fn encode_prompt(&self, rendered: &str) -> Result<Vec<u32>> {
        self.encode(&rendered[..self.prompt_end(rendered)])
    }

    /// As `encode_prompt`, for text without a template: adds a BOS if the model has one.
    pub fn encode_plain_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_without_eos(&text[..self.prompt_end(text)])
    }

    /// Encodes text that will be continued: as `encode_plain`, but without the EOS that some tokenizers add at the end.
    pub fn encode_without_eos(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_plain(text)?;
        if self.eos.is_some_and(|eos| ids.last() == Some(&eos)) && self.encode(text)?.last() != ids.last() {
            ids.pop();
        }
        Ok(ids)
    }

    /// Encodes a given answer, or the given beginning of one, that follows `prompt`.
    pub fn encode_answer_after(&self, prompt: &str, answer: &str) -> Result<Vec<u32>> {
        self.encode_after(&format!("{}{answer}", &prompt[self.prompt_end(prompt)..]))
    }

    /// Encodes `text` with the range of bytes of each token; adds no special tokens.
    pub(in crate::data) fn encode_offsets(&self, text: &str) -> Result<Encoding> {
        self.inner.encode(text, false).map_err(|e| tokenizer_error(&e))
    }

    /// Encodes text that continues another text: without the space that SentencePiece-like tokenizers add before every
    /// text.
    pub fn encode_after(&self, text: &str) -> Result<Vec<u32>> {
        if self.prefixes { self.encode_offsets_after(text).map(|(ids, _)| ids) } else { self.encode(text) }
    }

    /// As `encode_after`, with the range of bytes of each token.
    ///
    /// Errors: the tokenizer joins every tried guard character with the beginning of the text.
    pub(in crate::data) fn encode_offsets_after(&self, text: &str) -> Result<(Vec<u32>, Vec<(usize, usize)>)> {
        // Put a guard character before the text: the space is added before it, and its own tokens are dropped
        // afterwards.
        let stands_before: &[&str] = if self.prefixes { &["\n", ".", "a", "。", "\u{1}"] } else { &[""] };
        for guard in stands_before {
            let encoding = self.encode_offsets(&format!("{guard}{text}"))?;
            let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
            let from = offsets.partition_point(|(a, _)| *a < guard.len());
            if offsets[..from].iter().all(|(_, b)| *b <= guard.len()) {
                let shifted = offsets[from..].iter().map(|(a, b)| (a - guard.len(), b - guard.len()));
                return Ok((ids[from..].to_vec(), shifted.collect()));
            }
        }
        Err(Error::user(format!(
            "the tokenizer cannot encode text that begins with {:?} without adding a space",
            text.chars().next()
        ))
        .hint("move the boundary between prompt and answer by one character"))
    }

    /// Decodes `ids`; with `skip_special`, leaves out special tokens.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| tokenizer_error(&e))
    }

    /// Returns the last line of a prompt's text, without special tokens and the assistant's header; for display.
    pub fn last_prompt_line(&self, ids: &[u32]) -> Result<String> {
        let prompt = self.decode(ids, true)?;
        let asked = prompt.trim().lines().rfind(|l| !l.trim().is_empty() && *l != "assistant");
        Ok(asked.unwrap_or_default().trim().to_string())
    }

    /// Returns a decoder for one token at a time, for streaming output; special tokens are left out.
    pub fn stream(&self) -> DecodeStream<'_> {
        DecodeStream { inner: self.inner.decode_stream(true) }
    }

    /// Returns the SHA-256 of everything that ids and masks depend on: vocabulary, rules, template, special and stop
    /// tokens.
    pub fn fingerprint(&self) -> Result<String> {
        let json = |e: &dyn std::fmt::Display| Error::bug(format!("writing the tokenizer as JSON: {e}"));
        let mut hash = Sha256::new();
        hash.update(self.inner.to_string(false).map_err(|e| json(&e))?);
        hash.update(serde_json::to_string(&self.post).map_err(|e| json(&e))?);
        hash.update(format!("{:?}{:?}{:?}{:?}", self.bos, self.eos, self.turn_end, self.stop_ids));
        if self.embedded_size() < self.vocab_size {
            hash.update(format!("{:?}", self.rows));
        }
        hash.update(self.template.as_ref().map(ChatTemplate::identity).unwrap_or_default());
        Ok(fsutil::hex(&hash.finalize()))
    }

    /// Returns the highest token id plus one: the number of rows an embedding for all tokens needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns the number of token ids that the model has embeddings for.
    pub fn embedded_size(&self) -> usize {
        self.vocab_size.min(self.rows.unwrap_or(usize::MAX))
    }

    /// Returns the tokens that the model has no embedding for, with their ids.
    pub fn without_embedding(&self) -> Vec<(u32, String)> {
        let beyond = self.embedded_size() as u32..self.vocab_size as u32;
        beyond.filter_map(|id| Some((id, self.token(id)?))).collect()
    }

    /// Fails if the model has no embedding for one of the ids.
    pub fn check_embedded(&self, ids: &[u32]) -> Result<()> {
        let rows = self.rows.unwrap_or(usize::MAX);
        let Some(id) = ids.iter().find(|id| **id as usize >= rows) else { return Ok(()) };
        let token = self.token(*id).unwrap_or_default();
        Err(Error::user(format!(
            "the token `{token}` has id {id}, but the model (vocab_size {rows} in config.json) has no embedding for it"
        ))
        .hint("remove it from the rows or the chat template, or use the tokenizer that belongs to the model"))
    }

    /// Returns the id of the token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Returns the id of the token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Returns the id of the padding token.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Returns the special token that the template writes after an assistant turn.
    pub fn turn_end(&self) -> Option<u32> {
        self.turn_end
    }

    /// Returns the stop tokens, which end an answer: those of generation_config.json, EOS, and the template's end of
    /// turn.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Returns the texts of the stop tokens.
    pub(in crate::data) fn stop_texts(&self) -> Vec<String> {
        self.stop_ids.iter().filter_map(|id| self.token(*id)).collect()
    }

    /// Returns the token that ends a turn, if generation_config.json does not name it, so that other programs do not
    /// stop at it.
    pub fn undeclared_stop(&self) -> Option<u32> {
        self.turn_end.filter(|id| !self.written_stops.contains(id))
    }

    /// Returns true if the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Returns the chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Fixes the date of the chat template to today, if the template uses the date and none is set.
    pub fn fix_date(&mut self) {
        self.template = self.template.take().map(ChatTemplate::at_fixed_date);
    }

    /// Returns the fixed date of the chat template, if there is one and the template uses it.
    pub fn date(&self) -> Option<Date> {
        self.template.as_ref().and_then(ChatTemplate::date)
    }

    /// Renders the messages with the chat template, exactly as transformers does.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        self.require_template()?.render_with(messages, None, &Map::new(), add_generation_prompt)
    }

    pub(in crate::data) fn require_template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            Error::user("the rows are conversations, but the model has no chat template")
                .hint("set data.template (a .jinja file), use an instruct model, or use rows of prompt and completion")
        })
    }

    /// Returns the text of a token as written in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns true if a token was added to the vocabulary, so that it is found in texts as a whole.
    pub fn is_added(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id)
    }

    /// Returns true for a special token, which is not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// Completes a generated answer as in a rendered conversation: appends what the template writes after the end of a
    /// turn (often a newline), where a reward model was trained to score. An answer without its end of turn is left
    /// unchanged.
    pub fn close_turn(&self, ids: &mut Vec<u32>) {
        if self.turn_end.is_some() && ids.last().copied() == self.turn_end {
            ids.extend(&self.after_turn);
        }
    }
}

/// Decodes tokens one at a time; text is returned as soon as its last character is complete.
pub struct DecodeStream<'t> {
    inner: tokenizers::DecodeStream<
        't,
        tokenizers::ModelWrapper,
        tokenizers::NormalizerWrapper,
        tokenizers::PreTokenizerWrapper,
        PostProcessorWrapper,
        tokenizers::DecoderWrapper,
    >,
}

impl DecodeStream<'_> {
    /// Adds a token. Returns the text that it completes, if any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.inner.step(id).map_err(|e| tokenizer_error(&e))
    }
}

pub(super) fn tokenizer_error(e: &tokenizers::Error) -> Error {
    Error::user(format!("tokenizer: {e}")).hint("is tokenizer.json complete, and made for this model?")
}
