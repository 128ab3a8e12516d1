//! Encodes one row as token ids with a mask of the tokens to train on.
//!
//! The mask comes from the structure of the messages, never from searching the text. For each answer, two texts are
//! rendered: the conversation before it with the generation prompt, and the conversation up to its end. If both are
//! beginnings of one rendering, the characters between them are the answer. The rendering is encoded once, and the
//! tokens inside the answer are trained on, up to its stop token. What follows the stop token (the newline after
//! `<|im_end|>`) is never generated and never trained on.
//!
//! A template may rewrite earlier turns when later ones follow (Qwen3 drops old thinking), or render the last turn
//! differently than its prompt (see `chat::answer_text`). The rendering of the whole conversation does not show such
//! turns as generation would see them. Each of them is therefore trained on in an example that ends with it. A
//! conversation becomes as few examples as its template allows.

use super::example::{EncodedRow, Example};
use super::mask::{TrainedTurn, encode_rendering};
use super::special::{append_eos, check_bos};
use crate::data::chat::{
    ChatTokenizer, RenderedAnswer, check_nothing_dropped, check_roles, omitted_parts, render_answer,
};
use crate::data::rows::{AlpacaRow, Conversation, Record, RecordRow};
use crate::data::source::RowPlace;
use crate::error::{Context, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Which tokens of a conversation are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Supervise {
    /// Every assistant turn with its end token (for prompt and completion: the completion).
    #[default]
    Assistant,
    /// Only the last assistant turn.
    Last,
    /// Every token.
    All,
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

fn alpaca_text(row: &AlpacaRow) -> Result<String> {
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
        TrainedTurn::of(*index, render_answer(talk, *index, template, &stops)?, tokenizer)
    };
    let turns = open.iter().map(turn).collect::<Result<Vec<_>>>()?;
    let learnt: Vec<(usize, &RenderedAnswer)> = turns.iter().map(|turn| (turn.index, &turn.answer)).collect();
    let seen: Vec<&str> =
        std::iter::once(&whole).chain(learnt.iter().map(|(_, a)| &a.text)).map(|t| t.as_str()).collect();
    check_nothing_dropped(talk, &seen, template)?;
    result.notes = omitted_parts(talk, &learnt, template)?;
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
