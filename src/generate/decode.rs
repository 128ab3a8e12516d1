//! Many prompts at once: packed prefill, then one token a row and step; rows that end leave the cache.
//!
//! Invariant: a row's draws come from its own random stream, so they do not depend on its batch mates.

use super::{Completion, Settings, Stop, check_prompt, context, ending, sampler};
use crate::error::Result;
use crate::models::Model;
use crate::nn::Tokens;
use crate::{native, rng};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind};

/// Answers every prompt, in their order; `on_token` hears of each token (prompt index, id) as it is made. Prompts of
/// like length are decoded together, as many as memory allows.
pub fn complete(
    model: &Model,
    prompts: &[Vec<u32>],
    settings: &Settings,
    on_token: &mut dyn FnMut(usize, u32),
) -> Result<Vec<Completion>> {
    settings.check()?;
    for (i, prompt) in prompts.iter().enumerate() {
        check_prompt(model, prompt, &format!("prompt {}", i + 1))?;
    }
    let room = Room::of(model)?;
    let mut answers: Vec<Option<Completion>> = prompts.iter().map(|_| None).collect();
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    for batch in batches(&lengths, settings.max_new_tokens, &room) {
        decode(model, prompts, &batch, settings, on_token, &mut answers)?;
    }
    Ok(answers.into_iter().map(|a| a.expect("every prompt is in one batch")).collect())
}

/// How much is decoded together.
struct Room {
    rows: usize,
    /// Tokens that the cache may hold.
    tokens: usize,
}

impl Room {
    fn of(model: &Model) -> Result<Self> {
        let c = model.config();
        let number = if model.kind() == Kind::Float { 4 } else { 2 };
        let token = 2 * model.depth() as u64 * (c.num_key_value_heads * c.head_dim) as u64 * number;
        let (rows, tokens, memory) = match model.device() {
            Device::Cuda(i) => (256, 1 << 17, native::cuda_capacity(i)?.0 / 2),
            _ => (64, 1 << 15, 2 << 30),
        };
        Ok(Self { rows, tokens: tokens.min((memory / token.max(1)) as usize) })
    }
}

/// Prompt indexes, the longest first, in batches that fit; a prompt too long for the room is alone.
fn batches(lengths: &[usize], new: usize, room: &Room) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut made: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match made.last_mut() {
            // The first row is the longest, and the cache is as long as it for every row.
            Some(b) if b.len() < room.rows && (b.len() + 1) * (lengths[b[0]].saturating_add(new)) <= room.tokens => {
                b.push(i)
            }
            _ => made.push(vec![i]),
        }
    }
    made
}

/// A row that is being answered.
struct Row {
    prompt: usize,
    tokens: Vec<u32>,
    chance: ChaCha8Rng,
}

fn decode(
    model: &Model,
    prompts: &[Vec<u32>],
    batch: &[usize],
    settings: &Settings,
    on_token: &mut dyn FnMut(usize, u32),
    answers: &mut [Option<Completion>],
) -> Result<()> {
    let context = context(model);
    let row = |&prompt: &usize| Row {
        prompt,
        tokens: Vec::new(),
        chance: rng::stream(settings.seed, "sample", prompt as u64),
    };
    let mut rows: Vec<Row> = batch.iter().map(row).collect();
    let mut cache = model.cache(rows.len());
    let first: Vec<&[u32]> = batch.iter().map(|&i| prompts[i].as_slice()).collect();
    let mut tokens = Tokens::pack(&first, model.device());
    loop {
        let logits = model.extend(&tokens, &mut cache, |out| out.logits(&tokens.segments.last_rows()))?;
        let picked = sampler::next(&logits, settings, || rows.iter_mut().map(|r| r.chance.random()).collect())?;
        for (row, id) in rows.iter_mut().zip(picked) {
            row.tokens.push(id);
            on_token(row.prompt, id);
        }
        // The last row takes the place of one that ended, here and in the cache.
        let mut slots: Vec<usize> = (0..rows.len()).collect();
        let mut at = 0;
        while at < rows.len() {
            match rows[at].ended(settings, context, prompts) {
                Some(stopped) => {
                    slots.swap_remove(at);
                    let row = rows.swap_remove(at);
                    answers[row.prompt] = Some(Completion { tokens: row.tokens, stopped });
                }
                None => at += 1,
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        if slots.len() < cache.lengths.len() {
            cache.keep(&slots);
        }
        let last: Vec<&[u32]> = rows.iter().map(|r| &r.tokens[r.tokens.len() - 1..]).collect();
        tokens = Tokens::pack_after(&last, &cache.lengths, model.device());
    }
}

impl Row {
    fn ended(&self, settings: &Settings, context: usize, prompts: &[Vec<u32>]) -> Option<Stop> {
        let last = *self.tokens.last()?;
        ending(settings, context, prompts[self.prompt].len(), self.tokens.len(), last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_like_lengths_and_every_prompt_once() {
        let lengths = [5, 90, 10, 500, 80, 7, 6];
        let made = batches(&lengths, 10, &Room { rows: 3, tokens: 210 });
        assert_eq!(made, [vec![3], vec![1, 4], vec![2, 5, 6], vec![0]]);
        assert_eq!(batches(&[], 10, &Room { rows: 3, tokens: 210 }), Vec::<Vec<usize>>::new());
        assert_eq!(batches(&[4, 4], usize::MAX, &Room { rows: 3, tokens: 210 }).len(), 2);
    }
}
