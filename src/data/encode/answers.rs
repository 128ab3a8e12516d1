//! Encodes prompts, and prompts with given answers: pairs, labelled answers, prompts alone.
//!
//! All of them are made with the same template and the same rules for the boundary between prompt and answer.

use super::example::{EncodedRow, PairExample, PromptExample, UnpairedExample};
use super::mask::ends_in_stop;
use super::special::{append_eos, check_bos};
use crate::data::chat::{ChatTokenizer, RowNote, check_nothing_dropped, check_roles, common_prefix, render_answer};
use crate::data::rows::{AnswerContent, ChatMessage, Conversation, PromptContent, Record, RecordRow};
use crate::data::source::RowPlace;
use crate::error::{Context, Error, Result};
use std::path::Path;

/// Encodes a pair of answers to one prompt. Errors name file and line.
pub fn encode_pair(row: &RecordRow, path: &Path, tokenizer: &ChatTokenizer) -> Result<EncodedRow<PairExample>> {
    let place = RowPlace { path, line: row.line };
    let Record::Preference(pair) = &row.record else {
        return Err(Error::user(format!("{place}: not a pair of a chosen and a rejected answer")));
    };
    let mut seen = EncodingNotes::default();
    let (prompt, [chosen, rejected]) = match &pair.text {
        Some((prompt, [a, b])) if !tokenizer.has_template() => {
            let (a, b) = (AnswerContent::Text(a.clone()), AnswerContent::Text(b.clone()));
            encode_answers(&PromptContent::Text(prompt.clone()), [&a, &b], tokenizer, &mut seen)
        }
        _ => encode_answers(&pair.prompt, [&pair.chosen, &pair.rejected], tokenizer, &mut seen),
    }
    .context(|| place)?;
    if chosen == rejected {
        return Err(Error::user(format!("{place}: `chosen` and `rejected` become the same tokens"))
            .hint("the chat template renders them alike: remove the row, or set data.template to another template"));
    }
    let pair = PairExample { prompt, chosen, rejected, margin: pair.margin, line: row.line };
    Ok(EncodedRow { examples: vec![pair], split_boundaries: seen.splits, notes: seen.notes })
}

/// Encodes an answer with its label. A pair becomes two items: a good answer and a bad one. Errors name file and line.
pub fn encode_unpaired(row: &RecordRow, path: &Path, tokenizer: &ChatTokenizer) -> Result<EncodedRow<UnpairedExample>> {
    let place = RowPlace { path, line: row.line };
    if matches!(row.record, Record::Preference(_)) {
        let EncodedRow { examples, split_boundaries, notes } = encode_pair(row, path, tokenizer)?;
        let two = examples.into_iter().flat_map(|p| {
            let of = |completion, good| UnpairedExample { prompt: p.prompt.clone(), completion, good, line: p.line };
            [of(p.chosen, true), of(p.rejected, false)]
        });
        return Ok(EncodedRow { examples: two.collect(), split_boundaries, notes });
    }
    let Record::Unpaired(verdict) = &row.record else {
        return Err(Error::user(format!("{place}: not an answer with a label (good or bad)")));
    };
    let mut seen = EncodingNotes::default();
    let (prompt, [completion]) =
        encode_answers(&verdict.prompt, [&verdict.answer], tokenizer, &mut seen).context(|| place)?;
    let one = UnpairedExample { prompt, completion, good: verdict.good, line: row.line };
    Ok(EncodedRow { examples: vec![one], split_boundaries: seen.splits, notes: seen.notes })
}

/// Encodes a prompt. That of a conversation ends before its last answer. Errors name file and line.
pub fn encode_prompt(row: &RecordRow, path: &Path, tokenizer: &ChatTokenizer) -> Result<EncodedRow<PromptExample>> {
    let RenderedPrompt { ids, notes, .. } = render_prompt(row, path, tokenizer)?;
    Ok(EncodedRow { examples: vec![PromptExample { ids, line: row.line }], split_boundaries: 0, notes })
}

/// The prompt of a row, rendered and tokenised.
pub(in crate::data) struct RenderedPrompt {
    /// The prompt as text, including what the template adds.
    pub text: String,
    /// Its token ids, as in generation.
    pub ids: Vec<u32>,
    /// What the user should know about the row.
    pub notes: Vec<RowNote>,
}

/// Renders and tokenises the prompt of a row. If a conversation ends in an answer, its prompt ends before that answer.
///
/// Errors (with file and line): the row has no prompt, the prompt is empty, or the template refuses it.
pub(in crate::data) fn render_prompt(
    row: &RecordRow,
    path: &Path,
    tokenizer: &ChatTokenizer,
) -> Result<RenderedPrompt> {
    let place = RowPlace { path, line: row.line };
    let talk = |mut talk: Conversation| {
        if talk.messages.last().is_some_and(|m| m.role == "assistant") {
            talk.messages.pop();
        }
        PromptContent::Talk(talk)
    };
    let asked = match &row.record {
        Record::Prompt(asked) => asked.clone(),
        Record::Messages(messages) => talk(messages.clone()),
        Record::Alpaca(task) if tokenizer.has_template() => talk(task.conversation()),
        Record::Alpaca(task) => PromptContent::Text(task.prompt()),
        Record::PromptCompletion { prompt, .. } => PromptContent::Text(prompt.clone()),
        Record::Preference(pair) => pair.prompt.clone(),
        Record::Unpaired(verdict) => verdict.prompt.clone(),
        Record::Text(_) => return Err(Error::user(format!("{place}: plain text has no prompt"))),
    };
    let mut seen = EncodingNotes::default();
    let text = prompt_text(&asked, tokenizer, &mut seen).context(|| place)?;
    let ids = prompt_ids(&asked, &text, tokenizer).context(|| place)?;
    if ids.is_empty() {
        return Err(Error::user(format!("{place}: the prompt is empty")).hint("remove the row, or fill it"));
    }
    Ok(RenderedPrompt { text, ids, notes: seen.notes })
}

/// Counts and notes collected while a row is encoded.
#[derive(Default)]
struct EncodingNotes {
    /// Number of answers that were encoded apart from their prompt.
    splits: usize,
    notes: Vec<RowNote>,
}

/// Returns the text of a prompt; messages are rendered with the generation prompt.
fn prompt_text(asked: &PromptContent, tokenizer: &ChatTokenizer, seen: &mut EncodingNotes) -> Result<String> {
    match asked {
        PromptContent::Text(text) => Ok(text.clone()),
        PromptContent::Talk(talk) => {
            if talk.messages.is_empty() {
                return Err(Error::user("there is no message before the answer"));
            }
            let template = tokenizer.require_template()?;
            check_roles(&talk.messages, template)?;
            let text = template.render(talk, talk.messages.len(), true)?;
            check_nothing_dropped(talk, &[&text], template)?;
            let without = || template.render_with(&talk.messages, None, &talk.kwargs, true);
            if talk.tools.is_some() && without().is_ok_and(|without| without == text) {
                seen.notes.push(RowNote::ToolsLeftOut);
            }
            Ok(text)
        }
    }
}

fn prompt_ids(asked: &PromptContent, text: &str, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
    let ids = match asked {
        PromptContent::Text(_) => tokenizer.encode_plain_prompt(text)?,
        PromptContent::Talk(_) => tokenizer.encode_prompt(text)?,
    };
    check_bos(&ids, tokenizer)?;
    Ok(ids)
}

/// Returns the ids of the prompt and of each answer. The ids of an answer are taken from the encoding of the joined
/// text if that begins with the prompt's ids; if a token would cover the boundary, the answer is encoded apart.
fn encode_answers<const N: usize>(
    asked: &PromptContent,
    answers: [&AnswerContent; N],
    tokenizer: &ChatTokenizer,
    seen: &mut EncodingNotes,
) -> Result<(Vec<u32>, [Vec<u32>; N])> {
    let mut question = prompt_text(asked, tokenizer, seen)?;
    let mut wholes = Vec::new();
    if let PromptContent::Talk(talk) = asked {
        for answer in answers {
            let AnswerContent::Talk(messages) = answer else {
                return Err(Error::bug("a prompt of messages with an answer of text"));
            };
            let whole = rendered(talk, messages, &question, tokenizer, seen)?;
            // Conversations that differ from a user turn on do not answer this prompt: the answers begin where the
            // texts differ.
            if messages.first().is_some_and(|m| m.role != "assistant") {
                question.truncate(common_prefix(&question, &whole));
            }
            wholes.push(whole);
        }
    }
    let prompt = prompt_ids(asked, &question, tokenizer)?;
    let mut ids: [Vec<u32>; N] = std::array::from_fn(|_| Vec::new());
    for (i, (ids, answer)) in ids.iter_mut().zip(answers).enumerate() {
        *ids = match answer {
            AnswerContent::Text(answer) => {
                let joint = tokenizer.encode_without_eos(&format!("{question}{answer}"))?;
                let mut ids = answer_ids(&prompt, joint, [&question, answer], tokenizer, seen)?;
                append_eos(&mut ids, tokenizer)?;
                ids
            }
            AnswerContent::Talk(_) => {
                let whole = wholes.get(i).ok_or_else(|| Error::bug("a prompt of text with an answer of messages"))?;
                let answer = whole.strip_prefix(question.as_str()).filter(|answer| !answer.is_empty());
                let answer = answer.ok_or_else(|| {
                    Error::user("the rendered conversation does not begin with the rendered prompt")
                        .hint("training would see another text than generation; set data.template to another template")
                })?;
                if !ends_in_stop(answer, tokenizer)? {
                    return Err(Error::user(
                        "the answer does not end in a stop token: the model would never learn to stop",
                    )
                    .hint("set data.template to a template that ends the assistant's turn in a stop token"));
                }
                answer_ids(&prompt, tokenizer.encode(whole)?, [&question, answer], tokenizer, seen)?
            }
        };
    }
    Ok((prompt, ids))
}

/// Renders the conversation with an answer. If it does not begin with the prompt `question` and the answer is one
/// message, the answer is joined to the prompt as in generation. Fails if the template leaves out a message.
fn rendered(
    talk: &Conversation,
    answer: &[ChatMessage],
    question: &str,
    tokenizer: &ChatTokenizer,
    seen: &mut EncodingNotes,
) -> Result<String> {
    let template = tokenizer.require_template()?;
    let mut talk = talk.clone();
    let asked = talk.messages.len();
    talk.messages.extend_from_slice(answer);
    check_roles(&talk.messages, template)?;
    let whole = template.render(&talk, talk.messages.len(), false)?;
    let whole = match answer {
        [one] if one.role == "assistant" && !whole.starts_with(question) => {
            let answered = render_answer(&talk, asked, template, &tokenizer.stop_texts())?;
            seen.notes.extend(answered.notes);
            answered.text
        }
        _ => whole,
    };
    check_nothing_dropped(&talk, &[&whole], template)?;
    Ok(whole)
}

/// Returns the ids of the answer: those after the prompt in the encoding `joint` of the joined text, or those of the
/// answer encoded apart.
fn answer_ids(
    prompt: &[u32],
    mut joint: Vec<u32>,
    [question, answer]: [&str; 2],
    tokenizer: &ChatTokenizer,
    seen: &mut EncodingNotes,
) -> Result<Vec<u32>> {
    if joint.starts_with(prompt) {
        return Ok(joint.split_off(prompt.len()));
    }
    seen.splits += 1;
    tokenizer.encode_answer_after(question, answer)
}
