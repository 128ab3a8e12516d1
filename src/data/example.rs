//! From one row to token ids and a mask of what is learnt.
//!
//! The mask comes from the structure of the messages, never from searching the text. For an answer, the text before it
//! with the generation prompt and the text up to its end are rendered; where both are the beginning of one rendering,
//! the characters between are the answer, and the tokens of that one encoding that lie inside are learnt, up to the stop
//! token that ends it. What follows (the newline after `<|im_end|>`) is never generated and never learnt.
//!
//! A template may rewrite earlier turns when later ones come (Qwen3 drops old thinking), or write the last one otherwise
//! than its prompt (`answered`). Such turns do not stand in the whole rendering as generation would see them, so they are
//! learnt in an example of their own that ends with them: a conversation becomes as few examples as its template allows.
//!
//! Where a token would reach from the prompt into the answer, the text is encoded in two pieces, as generation does: the
//! second goes on where the first ends, without the space that some tokenizers put before every text. A space at the end
//! of a prompt is the exception: where tokens hold the space before their word, it belongs to the answer
//! (`ChatTokenizer::border`), and the ids are those of the joined text.

use super::Supervise;
use super::answered::{self, Answered};
use super::notes::Note;
use super::record::{Conversation, Message, Place, Record, Row};
use super::template::ChatTemplate;
use super::tokenizer::ChatTokenizer;
use crate::error::{Context, Error, Result};
use std::ops::Range;
use std::path::Path;

/// Token ids with what of them is learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    pub ids: Vec<u32>,
    /// Whether this token is a target. Never the first one: nothing comes before it.
    pub supervised: Vec<bool>,
    /// 1-based place in its file.
    pub line: usize,
}

impl Example {
    /// How many tokens are targets.
    pub fn targets(&self) -> usize {
        self.supervised.iter().filter(|s| **s).count()
    }
}

/// The examples of a row, how many boundaries were encoded in two pieces, and what else its author should know.
pub struct Encoded<T = Example> {
    pub examples: Vec<T>,
    pub split_boundaries: usize,
    pub notes: Vec<Note>,
}

/// The examples that a row makes: one, or more where the template rewrites earlier turns.
pub fn encode_row(row: &Row, path: &Path, tokenizer: &ChatTokenizer, supervise: Supervise) -> Result<Encoded> {
    let place = Place { path, line: row.line };
    let mut encoded = match &row.record {
        Record::Messages(talk) => conversation(talk, row.line, tokenizer, supervise),
        Record::Alpaca(row_) if tokenizer.has_template() => {
            conversation(&row_.conversation(), row.line, tokenizer, supervise)
        }
        Record::Alpaca(row_) => {
            alpaca_text(row_).and_then(|prompt| completion(&prompt, &row_.output, row.line, tokenizer, supervise))
        }
        Record::PromptCompletion { prompt, completion: answer } => {
            completion(prompt, answer, row.line, tokenizer, supervise)
        }
        Record::Text(text) => plain(text, row.line, tokenizer),
        Record::Prompt(_) | Record::Preference(_) | Record::Unpaired(_) => {
            Err(Error::user("a question, a pair or a judged answer is no answer to learn")
                .hint("supervised fine-tuning needs one answer a row; `ft data convert` writes rows in another format"))
        }
    }
    .context(|| place)?;
    for example in &mut encoded.examples {
        if let Some(first) = example.supervised.first_mut() {
            *first = false;
        }
        check_bos(&example.ids, tokenizer).context(|| place)?;
        if example.targets() == 0 {
            return Err(Error::user(format!("{place}: no token is learnt"))
                .hint("a row needs an answer: an assistant turn, a completion, or text of two tokens or more"));
        }
    }
    Ok(encoded)
}

/// One BOS and no more.
pub(super) fn check_bos(ids: &[u32], tokenizer: &ChatTokenizer) -> Result<()> {
    match (ids, tokenizer.bos()) {
        ([a, b, ..], Some(bos)) if *a == bos && *b == bos => {
            let token = tokenizer.token(bos).unwrap_or_default();
            Err(Error::user(format!("begins with {token} twice"))
                .hint("the text holds a BOS beside the one that the template or the tokenizer adds: take it out of the rows, or correct data.template"))
        }
        _ => Ok(()),
    }
}

fn alpaca_text(row: &super::record::Instruction) -> Result<String> {
    if row.system.is_some() || !row.history.is_empty() {
        return Err(Error::user("`system` and `history` need a chat template, and the model has none")
            .hint("give one with data.template"));
    }
    Ok(row.prompt())
}

/// Plain text: BOS where the tokenizer adds one, the text, EOS; all learnt.
fn plain(text: &str, line: usize, tokenizer: &ChatTokenizer) -> Result<Encoded> {
    let mut ids = tokenizer.encode_plain(text)?;
    append_eos(&mut ids, tokenizer)?;
    let supervised = vec![true; ids.len()];
    Ok(Encoded { examples: vec![Example { ids, supervised, line }], split_boundaries: 0, notes: Vec::new() })
}

pub(super) fn append_eos(ids: &mut Vec<u32>, tokenizer: &ChatTokenizer) -> Result<()> {
    let eos = tokenizer.eos().ok_or_else(|| {
        Error::user("the tokenizer names no EOS token, so the model would never learn to stop")
            .hint("set eos_token in tokenizer_config.json, or eos_token_id in generation_config.json")
    })?;
    if ids.last() != Some(&eos) {
        ids.push(eos);
    }
    Ok(())
}

/// Prompt and completion as text: the ids of the joined text where the prompt's ids are its beginning, and otherwise the
/// ids of the two pieces; EOS at the end is learnt.
fn completion(
    prompt: &str,
    answer: &str,
    line: usize,
    tokenizer: &ChatTokenizer,
    supervise: Supervise,
) -> Result<Encoded> {
    let prompt_ids = tokenizer.encode_plain_prompt(prompt)?;
    let mut ids = tokenizer.encode_open(&format!("{prompt}{answer}"))?;
    let split = !ids.starts_with(&prompt_ids);
    if split {
        ids = prompt_ids.clone();
        ids.extend(tokenizer.encode_answer_after(prompt, answer)?);
    }
    append_eos(&mut ids, tokenizer)?;
    let supervised = (0..ids.len()).map(|t| supervise == Supervise::All || t >= prompt_ids.len()).collect();
    let examples = vec![Example { ids, supervised, line }];
    Ok(Encoded { examples, split_boundaries: split.into(), notes: Vec::new() })
}

fn conversation(talk: &Conversation, line: usize, tokenizer: &ChatTokenizer, supervise: Supervise) -> Result<Encoded> {
    let template = tokenizer.need_template()?;
    check_roles(&talk.messages, template)?;
    let n = talk.messages.len();
    let whole = template.render(talk, n, false)?;
    let mut result = Encoded { examples: Vec::new(), split_boundaries: 0, notes: Vec::new() };
    if supervise == Supervise::All {
        check_nothing_dropped(talk, &[&whole], template)?;
        let ids = tokenizer.encode(&whole)?;
        let supervised = vec![true; ids.len()];
        result.examples.push(Example { ids, supervised, line });
        return Ok(result);
    }
    let mut open = answers(talk);
    if supervise == Supervise::Last {
        open.drain(..open.len().saturating_sub(1));
    }
    if open.is_empty() {
        check_nothing_dropped(talk, &[&whole], template)?;
        return Err(Error::user("no assistant turn is learnt")
            .hint("a conversation needs an assistant turn (with `weight` other than 0)"));
    }
    let stops = tokenizer.stop_texts();
    let turn = |index: &usize| -> Result<Turn> {
        Turn::of(*index, answered::answered(talk, *index, template, &stops)?, tokenizer)
    };
    let turns = open.iter().map(turn).collect::<Result<Vec<_>>>()?;
    let learnt: Vec<(usize, &Answered)> = turns.iter().map(|turn| (turn.index, &turn.answer)).collect();
    let seen: Vec<&str> =
        std::iter::once(&whole).chain(learnt.iter().map(|(_, a)| &a.text)).map(|t| t.as_str()).collect();
    check_nothing_dropped(talk, &seen, template)?;
    result.notes = answered::passed_over(talk, &learnt, template)?;
    result.notes.extend(turns.iter().flat_map(|turn| &turn.answer.notes));
    let mut open: Vec<&Turn> = turns.iter().collect();
    let mut text = whole;
    loop {
        let (here, elsewhere): (Vec<&Turn>, Vec<&Turn>) = open.iter().partition(|turn| turn.stands_in(&text));
        if !here.is_empty() {
            let example = one_rendering(&text, &here, line, tokenizer, &mut result.split_boundaries)?;
            result.examples.push(example);
        }
        open = elsewhere;
        let Some(last) = open.last() else { break };
        if text == last.answer.text {
            return Err(Error::bug(format!("turn {} does not stand in its own rendering", last.index + 1)));
        }
        text = last.answer.text.clone();
    }
    result.examples.reverse();
    Ok(result)
}

/// Which messages are learnt: assistant turns that are neither given nor excluded.
fn answers(talk: &Conversation) -> Vec<usize> {
    let learnt = |i: &usize| talk.messages[*i].role == "assistant" && !talk.excluded.contains(i);
    (talk.given..talk.messages.len()).filter(learnt).collect()
}

/// A learnt answer.
struct Turn {
    index: usize,
    answer: Answered,
    /// The byte where the ids of its prompt end.
    start: usize,
    /// The byte after the stop token that ends it.
    end: usize,
}

impl Turn {
    fn of(index: usize, answer: Answered, tokenizer: &ChatTokenizer) -> Result<Self> {
        let text = &answer.text;
        let encoding = tokenizer.encode_offsets(text)?;
        let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
        let start = tokenizer.border(&answer.asked);
        let tokens = tokens_in(&(start..text.len()), offsets);
        let end = end_of_turn(ids, offsets, text, tokens, tokenizer)
            .ok_or_else(|| no_stop(index, &text[start..], tokenizer))?;
        Ok(Self { index, start, end: offsets[end].1, answer })
    }

    /// Whether `text` shows this answer as generation saw it, up to its stop token: a template may close the last turn in
    /// a further way (Phi adds an end of text).
    fn stands_in(&self, text: &str) -> bool {
        text.starts_with(&self.answer.text[..self.end])
    }
}

/// Whether the text ends its last turn in a stop token.
pub(super) fn ends_in_stop(text: &str, tokenizer: &ChatTokenizer) -> Result<bool> {
    let encoding = tokenizer.encode_offsets(text)?;
    let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
    Ok(end_of_turn(ids, offsets, text, 0..ids.len(), tokenizer).is_some())
}

/// One rendering as an example; `turns` stand in it.
fn one_rendering(
    text: &str,
    turns: &[&Turn],
    line: usize,
    tokenizer: &ChatTokenizer,
    splits: &mut usize,
) -> Result<Example> {
    let starts: Vec<usize> = turns.iter().map(|turn| turn.start).collect();
    let (ids, offsets) = encode_at(text, &starts, tokenizer, splits)?;
    let mut supervised = vec![false; ids.len()];
    for turn in turns {
        let span = turn.start..turn.end;
        let tokens = tokens_in(&span, &offsets);
        let end = end_of_turn(&ids, &offsets, text, tokens.clone(), tokenizer)
            .ok_or_else(|| no_stop(turn.index, &text[span], tokenizer))?;
        if (tokens.start..end).all(|t| closes(t, &ids, &offsets, text, tokenizer)) {
            return Err(Error::user(format!(
                "message {} (assistant): the chat template leaves out what it says",
                turn.index + 1
            ))
            .hint("does the template know tool calls? Give one that does with data.template, or remove the row"));
        }
        supervised[tokens.start..=end].fill(true);
    }
    Ok(Example { ids, supervised, line })
}

/// First and last byte of each token in the text.
type Offsets = Vec<(usize, usize)>;

/// Ids and offsets of `text`. Where a token would reach over one of `starts`, the text is encoded in two pieces there.
fn encode_at(
    text: &str,
    starts: &[usize],
    tokenizer: &ChatTokenizer,
    splits: &mut usize,
) -> Result<(Vec<u32>, Offsets)> {
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

/// The tokens that lie inside the characters of `span`.
fn tokens_in(span: &Range<usize>, offsets: &[(usize, usize)]) -> Range<usize> {
    let start = offsets.partition_point(|(a, _)| *a < span.start);
    let end = offsets.partition_point(|(_, b)| *b <= span.end);
    start..end.max(start)
}

/// The stop token that ends the turn: the first in the run of stop tokens, other specials and spaces that closes it.
fn end_of_turn(
    ids: &[u32],
    offsets: &[(usize, usize)],
    text: &str,
    tokens: Range<usize>,
    tokenizer: &ChatTokenizer,
) -> Option<usize> {
    let stops = |t: &usize| tokenizer.stop_ids().contains(&ids[*t]);
    tokens.rev().take_while(|t| closes(*t, ids, offsets, text, tokenizer)).filter(stops).last()
}

/// Whether a token may stand after the words of an answer: a special, or blank.
fn closes(t: usize, ids: &[u32], offsets: &[(usize, usize)], text: &str, tokenizer: &ChatTokenizer) -> bool {
    tokenizer.stop_ids().contains(&ids[t])
        || tokenizer.is_special(ids[t])
        || text[offsets[t].0..offsets[t].1].trim().is_empty()
}

fn no_stop(index: usize, answer: &str, tokenizer: &ChatTokenizer) -> Error {
    let stops: Vec<String> = tokenizer.stop_ids().iter().filter_map(|id| tokenizer.token(*id)).collect();
    Error::user(format!(
        "message {} (assistant) ends in {:?} and not in a stop token ({}): the model would never learn to stop",
        index + 1,
        tail(answer),
        if stops.is_empty() { "the model names none".into() } else { stops.join(", ") }
    ))
    .hint("give a template with data.template that ends the assistant's turn in a stop token, or add the token that does to eos_token_id in generation_config.json")
}

/// A role that the template does not know would be dropped, or read as text that no other tool writes.
pub(super) fn check_roles(messages: &[Message], template: &ChatTemplate) -> Result<()> {
    for (i, message) in messages.iter().enumerate() {
        let role = message.role.as_str();
        if !matches!(role, "system" | "user" | "assistant" | "tool") && !template.mentions(role) {
            let error = Error::user(format!("message {}: the chat template knows no role \"{role}\"", i + 1));
            return Err(match role {
                "human" | "gpt" | "bot" | "model" | "ai" => error.hint("usual roles: system, user, assistant, tool; rows of `from` and `value` are mapped with format: sharegpt"),
                _ => error.hint("usual roles: system, user, assistant, tool"),
            });
        }
    }
    Ok(())
}

/// Templates pass over what they do not expect (a system message, the result of a tool, content in parts) without a word:
/// each message must stand in one of the texts that the row becomes, or be read by the template, which may change it.
pub fn check_nothing_dropped(talk: &Conversation, texts: &[&str], template: &ChatTemplate) -> Result<()> {
    for (i, message) in talk.messages.iter().enumerate() {
        let shown = |content: &str| texts.iter().any(|text| text.contains(content.trim()));
        let checked = matches!(message.role.as_str(), "system" | "user" | "tool");
        if checked && !answered::said(message).into_iter().all(shown) && !answered::is_read(talk, i, template) {
            let error = Error::user(format!("message {} ({}): the chat template leaves it out", i + 1, message.role))
                .hint("remove the message from the row, or give a template with data.template that knows it");
            return Err(match message.extra.contains_key("content") {
                true => error.hint("content in parts is read by few templates: write it as text"),
                false => error,
            });
        }
    }
    Ok(())
}

/// The length in bytes of what both begin with, at a character's boundary.
pub(super) fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    (0..=same).rev().find(|n| a.is_char_boundary(*n) && b.is_char_boundary(*n)).unwrap_or(0)
}

fn tail(text: &str) -> &str {
    text.char_indices().rev().nth(39).map_or(text, |(at, _)| &text[at..])
}
