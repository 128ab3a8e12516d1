//! Encodes one row as token ids with a mask of the tokens to train on.
//!
//! The mask comes from the structure of the messages, never from searching the text. For each answer, two texts are
//! rendered: the conversation before it with the generation prompt, and the conversation up to its end. If both are
//! beginnings of one rendering, the characters between them are the answer. The rendering is encoded once, and the
//! tokens inside the answer are trained on, up to its stop token. What follows the stop token (the newline after
//! `<|im_end|>`) is never generated and never trained on.
//!
//! A template may rewrite earlier turns when later ones follow (Qwen3 drops old thinking), or render the last turn
//! differently than its prompt (see `answered`). The rendering of the whole conversation does not show such turns as
//! generation would see them. Each of them is therefore trained on in an example that ends with it. A conversation
//! becomes as few examples as its template allows.
//!
//! If a token would cover the end of the prompt and the beginning of the answer, the text is encoded in two pieces, as
//! in generation. The second piece continues the first, without the space that some tokenizers add before every text.
//! The exception is a space at the end of a prompt: if the tokenizer's tokens include the space before their word, the
//! space belongs to the answer (`ChatTokenizer::border`), and the ids are those of the joined text.

use super::Supervise;
use super::answer_text::{self, RenderedAnswer};
use super::notes::RowNote;
use super::record::{ChatMessage, Conversation, Record, RecordRow, RowPlace};
use super::template::ChatTemplate;
use super::tokenizer::ChatTokenizer;
use crate::error::{Context, Error, Result};
use std::ops::Range;
use std::path::Path;

/// Token ids, and which of them are trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    pub ids: Vec<u32>,
    /// Whether each token is a target. The first one never is: nothing precedes it that could predict it.
    pub supervised: Vec<bool>,
    /// Line in its file, from 1.
    pub line: usize,
}

impl Example {
    /// Returns the number of tokens that are targets.
    pub fn target_count(&self) -> usize {
        self.supervised.iter().filter(|s| **s).count()
    }
}

/// The examples of a row, the number of answers whose beginning was encoded apart from the prompt, and notes for the
/// user.
pub struct EncodedRow<T = Example> {
    pub examples: Vec<T>,
    pub split_boundaries: usize,
    pub notes: Vec<RowNote>,
}

/// Encodes a row as one example, or as several if the template rewrites earlier turns.
///
/// Errors (with file and line): the row has no answer to train on, the template refuses it or leaves a message out, an
/// answer has no stop token.
pub fn encode_row(row: &RecordRow, path: &Path, tokenizer: &ChatTokenizer, supervise: Supervise) -> Result<EncodedRow> {
    let place = RowPlace { path, line: row.line };
    let mut encoded = match &row.record {
        Record::Messages(talk) => encode_conversation(talk, row.line, tokenizer, supervise),
        Record::Alpaca(row_) if tokenizer.has_template() => {
            encode_conversation(&row_.conversation(), row.line, tokenizer, supervise)
        }
        Record::Alpaca(row_) => alpaca_text(row_)
            .and_then(|prompt| encode_completion(&prompt, &row_.output, row.line, tokenizer, supervise)),
        Record::PromptCompletion { prompt, completion: answer } => {
            encode_completion(prompt, answer, row.line, tokenizer, supervise)
        }
        Record::Text(text) => encode_text(text, row.line, tokenizer),
        Record::Prompt(_) | Record::Preference(_) | Record::Unpaired(_) => {
            Err(Error::user("a prompt, a pair or a labelled answer cannot be trained on as it is")
                .hint("supervised fine-tuning needs one answer per row; `ft data convert` converts rows"))
        }
    }
    .context(|| place)?;
    for example in &mut encoded.examples {
        if let Some(first) = example.supervised.first_mut() {
            *first = false;
        }
        check_bos(&example.ids, tokenizer).context(|| place)?;
        if example.target_count() == 0 {
            return Err(Error::user(format!("{place}: the row has no token to train on"))
                .hint("a row needs an answer: an assistant turn, a completion, or text of at least two tokens"));
        }
    }
    Ok(encoded)
}

/// Fails if the ids begin with two BOS tokens.
pub(super) fn check_bos(ids: &[u32], tokenizer: &ChatTokenizer) -> Result<()> {
    match (ids, tokenizer.bos()) {
        ([a, b, ..], Some(bos)) if *a == bos && *b == bos => {
            let token = tokenizer.token(bos).unwrap_or_default();
            Err(Error::user(format!("begins with {token} twice"))
                .hint("the text contains a BOS in addition to the one that the template or the tokenizer adds: remove it from the rows, or correct data.template"))
        }
        _ => Ok(()),
    }
}

fn alpaca_text(row: &super::record::AlpacaRow) -> Result<String> {
    if row.system.is_some() || !row.history.is_empty() {
        return Err(Error::user("`system` and `history` need a chat template, and the model has none")
            .hint("set data.template to one"));
    }
    Ok(row.prompt())
}

/// Encodes plain text as BOS (if the tokenizer adds one), the text and EOS; every token is trained on.
fn encode_text(text: &str, line: usize, tokenizer: &ChatTokenizer) -> Result<EncodedRow> {
    let mut ids = tokenizer.encode_plain(text)?;
    append_eos(&mut ids, tokenizer)?;
    let supervised = vec![true; ids.len()];
    Ok(EncodedRow { examples: vec![Example { ids, supervised, line }], split_boundaries: 0, notes: Vec::new() })
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

/// Encodes prompt and completion given as text. The ids are those of the joined text if it begins with the prompt's
/// ids, else those of the two pieces. EOS at the end is trained on.
fn encode_completion(
    prompt: &str,
    answer: &str,
    line: usize,
    tokenizer: &ChatTokenizer,
    supervise: Supervise,
) -> Result<EncodedRow> {
    let prompt_ids = tokenizer.encode_plain_prompt(prompt)?;
    let mut ids = tokenizer.encode_without_eos(&format!("{prompt}{answer}"))?;
    let split = !ids.starts_with(&prompt_ids);
    if split {
        ids = prompt_ids.clone();
        ids.extend(tokenizer.encode_answer_after(prompt, answer)?);
    }
    append_eos(&mut ids, tokenizer)?;
    let supervised = (0..ids.len()).map(|t| supervise == Supervise::All || t >= prompt_ids.len()).collect();
    let examples = vec![Example { ids, supervised, line }];
    Ok(EncodedRow { examples, split_boundaries: split.into(), notes: Vec::new() })
}

fn encode_conversation(
    talk: &Conversation,
    line: usize,
    tokenizer: &ChatTokenizer,
    supervise: Supervise,
) -> Result<EncodedRow> {
    let template = tokenizer.require_template()?;
    check_roles(&talk.messages, template)?;
    let n = talk.messages.len();
    let whole = template.render(talk, n, false)?;
    let mut result = EncodedRow { examples: Vec::new(), split_boundaries: 0, notes: Vec::new() };
    if supervise == Supervise::All {
        check_nothing_dropped(talk, &[&whole], template)?;
        let ids = tokenizer.encode(&whole)?;
        let supervised = vec![true; ids.len()];
        result.examples.push(Example { ids, supervised, line });
        return Ok(result);
    }
    let mut open = trained_messages(talk);
    if supervise == Supervise::Last {
        open.drain(..open.len().saturating_sub(1));
    }
    if open.is_empty() {
        check_nothing_dropped(talk, &[&whole], template)?;
        return Err(Error::user("no assistant turn to train on")
            .hint("a conversation needs an assistant turn (with `weight` other than 0)"));
    }
    let stops = tokenizer.stop_texts();
    let turn = |index: &usize| -> Result<TrainedTurn> {
        TrainedTurn::of(*index, answer_text::render_answer(talk, *index, template, &stops)?, tokenizer)
    };
    let turns = open.iter().map(turn).collect::<Result<Vec<_>>>()?;
    let learnt: Vec<(usize, &RenderedAnswer)> = turns.iter().map(|turn| (turn.index, &turn.answer)).collect();
    let seen: Vec<&str> =
        std::iter::once(&whole).chain(learnt.iter().map(|(_, a)| &a.text)).map(|t| t.as_str()).collect();
    check_nothing_dropped(talk, &seen, template)?;
    result.notes = answer_text::omitted_parts(talk, &learnt, template)?;
    result.notes.extend(turns.iter().flat_map(|turn| &turn.answer.notes));
    let mut open: Vec<&TrainedTurn> = turns.iter().collect();
    let mut text = whole;
    loop {
        let (here, elsewhere): (Vec<&TrainedTurn>, Vec<&TrainedTurn>) =
            open.iter().partition(|turn| turn.is_shown_by(&text));
        if !here.is_empty() {
            let example = encode_rendering(&text, &here, line, tokenizer, &mut result.split_boundaries)?;
            result.examples.push(example);
        }
        open = elsewhere;
        let Some(last) = open.last() else { break };
        if text == last.answer.text {
            return Err(Error::bug(format!("turn {} is not in its own rendering", last.index + 1)));
        }
        text = last.answer.text.clone();
    }
    result.examples.reverse();
    Ok(result)
}

/// Returns the indices of the messages to train on: assistant turns that are neither part of the prompt nor excluded.
fn trained_messages(talk: &Conversation) -> Vec<usize> {
    let learnt = |i: &usize| talk.messages[*i].role == "assistant" && !talk.excluded.contains(i);
    (talk.prompt_len..talk.messages.len()).filter(learnt).collect()
}

/// An answer that is trained on.
struct TrainedTurn {
    index: usize,
    answer: RenderedAnswer,
    /// The byte where the ids of its prompt end.
    start: usize,
    /// The byte after the stop token that ends it.
    end: usize,
}

impl TrainedTurn {
    fn of(index: usize, answer: RenderedAnswer, tokenizer: &ChatTokenizer) -> Result<Self> {
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
    fn is_shown_by(&self, text: &str) -> bool {
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
fn encode_rendering(
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

/// Fails if the template does not know the role of a message: it would drop the message, or render it in a way that no
/// other tool does.
pub(super) fn check_roles(messages: &[ChatMessage], template: &ChatTemplate) -> Result<()> {
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

/// Fails if the template leaves out a message. Templates silently skip what they do not expect (a system message, the
/// result of a tool, content in parts). Each message must therefore appear in one of `texts`, which the row becomes, or
/// be rendered by the template in a changed form.
pub fn check_nothing_dropped(talk: &Conversation, texts: &[&str], template: &ChatTemplate) -> Result<()> {
    for (i, message) in talk.messages.iter().enumerate() {
        let shown = |content: &str| texts.iter().any(|text| text.contains(content.trim()));
        let checked = matches!(message.role.as_str(), "system" | "user" | "tool");
        if checked
            && !answer_text::message_texts(message).into_iter().all(shown)
            && !answer_text::is_rendered(talk, i, template)
        {
            let error = Error::user(format!("message {} ({}): the chat template leaves it out", i + 1, message.role))
                .hint("remove the message from the row, or set data.template to a template that renders it");
            return Err(match message.extra.contains_key("content") {
                true => error.hint("few templates can render content in parts: write it as text"),
                false => error,
            });
        }
    }
    Ok(())
}

/// Returns the length in bytes of the longest common prefix that ends at a character boundary.
pub(super) fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    (0..=same).rev().find(|n| a.is_char_boundary(*n) && b.is_char_boundary(*n)).unwrap_or(0)
}

fn tail(text: &str) -> &str {
    text.char_indices().rev().nth(39).map_or(text, |(at, _)| &text[at..])
}
