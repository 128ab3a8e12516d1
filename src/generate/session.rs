//! One conversation: the cache stays between turns as far as the new prompt begins like what it holds.

use super::{Completion, Settings, Stop, check_prompt, context, ending, sampler};
use crate::error::Result;
use crate::models::Model;
use crate::nn::{Cache, Tokens};
use crate::rng;
use rand::RngExt;
use std::ops::ControlFlow;

/// A model with the tokens it has seen.
pub struct Session<'m> {
    model: &'m Model,
    cache: Cache,
    /// The tokens whose keys and values the cache holds.
    seen: Vec<u32>,
    turns: u64,
}

impl<'m> Session<'m> {
    pub fn new(model: &'m Model) -> Self {
        Self { model, cache: model.cache(1), seen: Vec::new(), turns: 0 }
    }

    /// How many tokens the cache holds.
    pub fn held(&self) -> usize {
        self.seen.len()
    }

    /// Answers `prompt`, the whole conversation so far. `on_token` hears of each token, and may want no more.
    pub fn answer(
        &mut self,
        prompt: &[u32],
        settings: &Settings,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Completion> {
        settings.check()?;
        check_prompt(self.model, prompt, "the conversation")?;
        let mut chance = rng::stream(settings.seed, "sample", self.turns);
        self.turns += 1;
        let context = context(self.model);
        let mut made = Vec::new();
        // The last token always runs: its output is the answer's first token.
        let known = self.seen.iter().zip(&prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
        self.seen.truncate(known);
        self.cache.truncate(0, known as i64);
        let mut new = prompt[known..].to_vec();
        loop {
            let tokens = Tokens::pack_after(&[&new], &self.cache.lengths, self.model.device());
            let logits = self.model.extend(&tokens, &mut self.cache, |out| out.logits(&tokens.segments.last_rows()))?;
            self.seen.append(&mut new);
            let id = sampler::next(&logits, settings, || vec![chance.random()])?[0];
            made.push(id);
            let wanted = on_token(id).is_continue();
            let ended = ending(settings, context, prompt.len(), made.len(), id);
            if let Some(stopped) = ended.or((!wanted).then_some(Stop::Interrupted)) {
                return Ok(Completion { tokens: made, stopped });
            }
            new.push(id);
        }
    }
}
