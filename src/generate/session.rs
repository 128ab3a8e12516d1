//! Answers the turns of one conversation. The cache is kept between turns for the tokens that the new prompt has in
//! common with the previous one, so that only new tokens are computed.

use super::answer::{DecodeFn, GeneratedAnswer, StopReason};
use super::logit_rules::LogitEdits;
use super::next_token::NextTokens;
use super::prefill::{PREFILL_TOKENS, prefill};
use super::prompt_check::{check_decoder, check_prompt, max_sequence_tokens};
use super::sampler;
use super::sequence::GrowingSequence;
use super::settings::GenerationSettings;
use crate::error::Result;
use crate::models::Model;
use crate::nn::KvCache;
use std::ops::ControlFlow;

/// A conversation with a model: its cache and the tokens in it.
pub struct ChatSession<'m> {
    model: &'m Model,
    cache: KvCache,
    /// The tokens whose keys and values are in the cache.
    cached_ids: Vec<u32>,
    turns: u64,
    decode: Option<DecodeFn<'m>>,
}

impl<'m> ChatSession<'m> {
    /// Starts a conversation with an empty cache.
    pub fn new(model: &'m Model) -> Self {
        Self { model, cache: model.cache(1), cached_ids: Vec::new(), turns: 0, decode: None }
    }

    /// Sets the function that decodes tokens, which stop texts need.
    pub fn with_decoder(mut self, decode: DecodeFn<'m>) -> Self {
        self.decode = Some(decode);
        self
    }

    /// Returns the number of tokens in the cache.
    pub fn cached_tokens(&self) -> usize {
        self.cached_ids.len()
    }

    /// Answers `prompt`, the token ids of the whole conversation so far. `on_token` is called with each new token and
    /// may stop the answer.
    pub fn answer(
        &mut self,
        prompt: &[u32],
        settings: &GenerationSettings,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<GeneratedAnswer> {
        settings.check()?;
        check_decoder(settings, self.decode)?;
        check_prompt(self.model, prompt, settings, "the conversation")?;
        let mut sequence = GrowingSequence::new(prompt, &[], settings, max_sequence_tokens(self.model), self.turns, 0);
        self.turns += 1;
        // The last token is always computed again: its logits give the first token of the answer.
        let known = self.cached_ids.iter().zip(&prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
        let held = self.model.virtual_tokens() + self.cached_ids.len() as i64;
        let whole = self.model.virtual_tokens() + prompt.len() as i64;
        let known = if self.model.outgrows_cache(held, whole) { 0 } else { known };
        // Layers with a window may no longer have what the first new token sees: the cache is then empty.
        let held = self.cache.truncate(0, if known == 0 { 0 } else { self.model.virtual_tokens() + known as i64 });
        let known = if held == 0 { 0 } else { known };
        self.cached_ids.truncate(known);
        let mut logits = prefill(self.model, &[&prompt[known..]], &mut self.cache, PREFILL_TOKENS)?;
        self.cached_ids = prompt.to_vec();
        let mut next = NextTokens::default();
        loop {
            let mut edits = LogitEdits::default();
            sequence.collect_edits(settings, 0, &mut edits);
            edits.apply(&logits, settings);
            let chosen = sampler::next_tokens(&logits, settings, || vec![sequence.draw_uniform()])?;
            let (id, log_prob) = chosen.tokens[0];
            let ended = sequence.push(id, log_prob, settings, self.decode)?;
            let wanted = on_token(id).is_continue();
            if let Some(stopped) = ended.or((!wanted).then_some(StopReason::Interrupted)) {
                return sequence.finish(stopped, settings, self.decode);
            }
            logits = next.logits(self.model, &mut self.cache, || chosen.ids, |_| &sequence.ids[..])?;
            self.cached_ids.push(id);
        }
    }
}
