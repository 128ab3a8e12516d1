//! Decides which tokens of a rendered conversation are trained on: those of its answers, up to their stop tokens.
//!
//! The mask comes from the structure of the messages, never from searching the text (see `row`). If a token would cover
//! the end of the prompt and the beginning of the answer, the text is encoded in two pieces, as in generation. The
//! second piece continues the first, without the space that some tokenizers add before every text. The exception is a
//! space at the end of a prompt: if the tokenizer's tokens include the space before their word, the space belongs to
//! the answer (`ChatTokenizer::prompt_end`), and the ids are those of the joined text.

use super::example::Example;
use crate::data::chat::{ChatTokenizer, RenderedAnswer};
use crate::error::{Error, Result};
use std::ops::Range;

/// An answer that is trained on.
pub(super) struct TrainedTurn {
    pub(super) index: usize,
    pub(super) answer: RenderedAnswer,
    /// The byte where the ids of its prompt end.
    start: usize,
    /// The byte after the stop token that ends it.
    end: usize,
}

impl TrainedTurn {
    pub(super) fn of(index: usize, answer: RenderedAnswer, tokenizer: &ChatTokenizer) -> Result<Self> {
        let text = &answer.text;
        let encoding = tokenizer.encode_offsets(text)?;
        let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
        let start = tokenizer.prompt_end(&answer.prompt);
        let tokens = tokens_in(&(start..text.len()), offsets);
        let end = end_of_turn(ids, offsets, text, tokens, tokenizer)
            .ok_or_else(|| missing_stop_error(index, &text[start..], tokenizer))?;
        Ok(Self { index, start, end: offsets[end].1, answer })
    }

    /// Returns true if `text` shows this answer after its prompt as generation sees it, up to its stop token. What
    /// follows may differ: some templates close the last turn further (Phi adds an end of text).
    pub(super) fn is_shown_by(&self, text: &str) -> bool {
        text.starts_with(&self.answer.text[..self.end])
    }
}

/// Returns true if the last turn of the text ends in a stop token.
pub(super) fn ends_in_stop(text: &str, tokenizer: &ChatTokenizer) -> Result<bool> {
    let encoding = tokenizer.encode_offsets(text)?;
    let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
    Ok(end_of_turn(ids, offsets, text, 0..ids.len(), tokenizer).is_some())
}

/// Encodes one rendering as an example; `turns` are the answers in it to train on. Adds the number of cuts to `splits`.
pub(super) fn encode_rendering(
    text: &str,
    turns: &[&TrainedTurn],
    line: usize,
    tokenizer: &ChatTokenizer,
    splits: &mut usize,
) -> Result<Example> {
    let starts: Vec<usize> = turns.iter().map(|turn| turn.start).collect();
    let (ids, offsets) = encode_with_cuts(text, &starts, tokenizer, splits)?;
    let mut supervised = vec![false; ids.len()];
    for turn in turns {
        let span = turn.start..turn.end;
        let tokens = tokens_in(&span, &offsets);
        let end = end_of_turn(&ids, &offsets, text, tokens.clone(), tokenizer)
            .ok_or_else(|| missing_stop_error(turn.index, &text[span], tokenizer))?;
        if (tokens.start..end).all(|t| may_end_turn(t, &ids, &offsets, text, tokenizer)) {
            return Err(Error::user(format!(
                "message {} (assistant): the chat template leaves out what it says",
                turn.index + 1
            ))
            .hint("does the template support tool calls? Set data.template to one that does, or remove the row"));
        }
        supervised[tokens.start..=end].fill(true);
    }
    Ok(Example { ids, supervised, line })
}

/// First and last byte of each token in the text.
type ByteOffsets = Vec<(usize, usize)>;

/// Returns ids and offsets of `text`. If a token would cover one of the positions in `starts`, the text is cut there
/// and the pieces are encoded one by one; `splits` counts the cuts.
fn encode_with_cuts(
    text: &str,
    starts: &[usize],
    tokenizer: &ChatTokenizer,
    splits: &mut usize,
) -> Result<(Vec<u32>, ByteOffsets)> {
    let whole = tokenizer.encode_offsets(text)?;
    let reaches_over = |at: usize| whole.get_offsets().iter().any(|(a, b)| *a < at && at < *b);
    let mut cuts: Vec<usize> = starts.iter().copied().filter(|at| reaches_over(*at)).collect();
    if cuts.is_empty() {
        return Ok((whole.get_ids().to_vec(), whole.get_offsets().to_vec()));
    }
    *splits += cuts.len();
    cuts.push(text.len());
    let (mut ids, mut offsets, mut from) = (Vec::new(), Vec::new(), 0);
    for to in cuts {
        let piece = &text[from..to];
        let (more, places) = if from == 0 {
            let piece = tokenizer.encode_offsets(piece)?;
            (piece.get_ids().to_vec(), piece.get_offsets().to_vec())
        } else {
            tokenizer.encode_offsets_after(piece)?
        };
        ids.extend(more);
        offsets.extend(places.iter().map(|(a, b)| (a + from, b + from)));
        from = to;
    }
    Ok((ids, offsets))
}

/// Returns the tokens that are inside the bytes of `span`.
fn tokens_in(span: &Range<usize>, offsets: &[(usize, usize)]) -> Range<usize> {
    let start = offsets.partition_point(|(a, _)| *a < span.start);
    let end = offsets.partition_point(|(_, b)| *b <= span.end);
    start..end.max(start)
}

/// Returns the stop token that ends the turn: the first one among the stop tokens, other special tokens and spaces at
/// its end.
fn end_of_turn(
    ids: &[u32],
    offsets: &[(usize, usize)],
    text: &str,
    tokens: Range<usize>,
    tokenizer: &ChatTokenizer,
) -> Option<usize> {
    let stops = |t: &usize| tokenizer.stop_ids().contains(&ids[*t]);
    tokens.rev().take_while(|t| may_end_turn(*t, ids, offsets, text, tokenizer)).filter(stops).last()
}

/// Returns true if a token may follow the words of an answer: a special token, or blank.
fn may_end_turn(t: usize, ids: &[u32], offsets: &[(usize, usize)], text: &str, tokenizer: &ChatTokenizer) -> bool {
    tokenizer.stop_ids().contains(&ids[t])
        || tokenizer.is_special(ids[t])
        || text[offsets[t].0..offsets[t].1].trim().is_empty()
}

fn missing_stop_error(index: usize, answer: &str, tokenizer: &ChatTokenizer) -> Error {
    let stops: Vec<String> = tokenizer.stop_ids().iter().filter_map(|id| tokenizer.token(*id)).collect();
    Error::user(format!(
        "message {} (assistant) ends in {:?}, not in a stop token ({}): the model would never learn to stop",
        index + 1,
        tail(answer),
        if stops.is_empty() { "the model names none".into() } else { stops.join(", ") }
    ))
    .hint("set data.template to a template that ends the assistant's turn in a stop token, or add the token that ends it to eos_token_id in generation_config.json")
}

fn tail(text: &str) -> &str {
    text.char_indices().rev().nth(39).map_or(text, |(at, _)| &text[at..])
}
