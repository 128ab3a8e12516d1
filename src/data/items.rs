//! What methods are given: examples to learn, pairs, judged answers, questions. Each is made from a row by the same
//! template and the same rules for boundaries, and is kept as sequences of token ids.

use super::Supervise;
use super::answered;
use super::detect::Want;
use super::example::{self, Encoded, Example};
use super::notes::Note;
use super::preference::{Answer, Asked};
use super::record::{Message, Place, Record, Row};
use super::tokenizer::ChatTokenizer;
use crate::error::{Context, Error, Result};
use std::path::Path;

/// A sequence as it is stored: what the model sees, with a mark on each token that is learnt or judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    pub ids: Vec<u32>,
    pub marked: Vec<bool>,
}

/// One thing a method is given.
pub trait Item: Sized + Send {
    /// What rows must hold.
    const WANT: Want;
    /// Sequences of each item.
    const WIDTH: usize;

    /// The items that a row makes.
    fn encode(row: &Row, path: &Path, tokenizer: &ChatTokenizer, supervise: Supervise) -> Result<Encoded<Self>>;
    /// What the model sees, with what is learnt or judged.
    fn shown(&self) -> Vec<Example>;
    /// As stored: `WIDTH` sequences, the line, and a number beside them.
    fn store(self) -> (Vec<Sequence>, usize, f64);
    /// The item that was stored so.
    fn restore(sequences: Vec<Sequence>, line: usize, value: f64) -> Self;
}

/// A prompt with a better and a worse answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Token ids up to the answers, as generation is given them.
    pub prompt: Vec<u32>,
    /// What follows the prompt, with its stop token.
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
    /// By how much the chosen one is better, where the row says so.
    pub margin: Option<f64>,
    /// 1-based place in its file.
    pub line: usize,
}

/// A prompt with an answer and the verdict on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Unpaired {
    pub prompt: Vec<u32>,
    pub completion: Vec<u32>,
    pub good: bool,
    pub line: usize,
}

/// A prompt to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    pub ids: Vec<u32>,
    pub line: usize,
}

impl Pair {
    /// The chosen and the rejected sequence; the answers' tokens are supervised.
    pub fn sequences(&self) -> [Example; 2] {
        [&self.chosen, &self.rejected].map(|answer| joined(&self.prompt, answer, self.line))
    }
}

impl Unpaired {
    /// Prompt and completion; the completion's tokens are supervised.
    pub fn sequence(&self) -> Example {
        joined(&self.prompt, &self.completion, self.line)
    }
}

fn joined(prompt: &[u32], answer: &[u32], line: usize) -> Example {
    let mark = |t: usize| t >= prompt.len().max(1);
    let ids = [prompt, answer].concat();
    Example { supervised: (0..ids.len()).map(mark).collect(), ids, line }
}

fn marked(prompt: &[u32], answer: &[u32]) -> Sequence {
    let ids = [prompt, answer].concat();
    Sequence { marked: (0..ids.len()).map(|t| t >= prompt.len()).collect(), ids }
}

/// The unmarked beginning and the rest.
fn parted(sequence: Sequence) -> (Vec<u32>, Vec<u32>) {
    let at = sequence.marked.iter().position(|m| *m).unwrap_or(sequence.ids.len());
    let mut prompt = sequence.ids;
    let answer = prompt.split_off(at);
    (prompt, answer)
}

impl Item for Example {
    const WANT: Want = Want::Answers;
    const WIDTH: usize = 1;

    fn encode(row: &Row, path: &Path, tokenizer: &ChatTokenizer, supervise: Supervise) -> Result<Encoded> {
        example::encode_row(row, path, tokenizer, supervise)
    }
    fn shown(&self) -> Vec<Example> {
        vec![self.clone()]
    }
    fn store(self) -> (Vec<Sequence>, usize, f64) {
        (vec![Sequence { ids: self.ids, marked: self.supervised }], self.line, 0.0)
    }
    fn restore(sequences: Vec<Sequence>, line: usize, _: f64) -> Self {
        let Sequence { ids, marked } = sequences.into_iter().next().unwrap_or(Sequence { ids: vec![], marked: vec![] });
        Self { ids, supervised: marked, line }
    }
}

impl Item for Pair {
    const WANT: Want = Want::Pairs;
    const WIDTH: usize = 2;

    fn encode(row: &Row, path: &Path, tokenizer: &ChatTokenizer, _: Supervise) -> Result<Encoded<Self>> {
        let place = Place { path, line: row.line };
        let Record::Preference(pair) = &row.record else {
            return Err(Error::user(format!("{place}: no pair of a chosen and a rejected answer")));
        };
        let mut seen = Seen::default();
        let (prompt, [chosen, rejected]) = match &pair.text {
            Some((prompt, [a, b])) if !tokenizer.has_template() => {
                let (a, b) = (Answer::Text(a.clone()), Answer::Text(b.clone()));
                sides(&Asked::Text(prompt.clone()), [&a, &b], tokenizer, &mut seen)
            }
            _ => sides(&pair.prompt, [&pair.chosen, &pair.rejected], tokenizer, &mut seen),
        }
        .context(|| place)?;
        if chosen == rejected {
            return Err(Error::user(format!("{place}: `chosen` and `rejected` become the same tokens"))
                .hint("the chat template shows no difference between them: remove the row, or give another template"));
        }
        let pair = Pair { prompt, chosen, rejected, margin: pair.margin, line: row.line };
        Ok(Encoded { examples: vec![pair], split_boundaries: seen.splits, notes: seen.notes })
    }
    fn shown(&self) -> Vec<Example> {
        self.sequences().into()
    }
    fn store(self) -> (Vec<Sequence>, usize, f64) {
        let sequences = [&self.chosen, &self.rejected].map(|answer| marked(&self.prompt, answer));
        (sequences.into(), self.line, self.margin.unwrap_or(f64::NAN))
    }
    fn restore(sequences: Vec<Sequence>, line: usize, value: f64) -> Self {
        let mut sequences = sequences.into_iter().map(parted);
        let (prompt, chosen) = sequences.next().unwrap_or_default();
        let (_, rejected) = sequences.next().unwrap_or_default();
        Self { prompt, chosen, rejected, margin: Some(value).filter(|v| !v.is_nan()), line }
    }
}

impl Item for Unpaired {
    const WANT: Want = Want::Verdicts;
    const WIDTH: usize = 1;

    /// A pair makes two: a good one and a bad one.
    fn encode(row: &Row, path: &Path, tokenizer: &ChatTokenizer, supervise: Supervise) -> Result<Encoded<Self>> {
        let place = Place { path, line: row.line };
        if matches!(row.record, Record::Preference(_)) {
            let Encoded { examples, split_boundaries, notes } = Pair::encode(row, path, tokenizer, supervise)?;
            let two = examples.into_iter().flat_map(|p| {
                let of = |completion, good| Unpaired { prompt: p.prompt.clone(), completion, good, line: p.line };
                [of(p.chosen, true), of(p.rejected, false)]
            });
            return Ok(Encoded { examples: two.collect(), split_boundaries, notes });
        }
        let Record::Unpaired(verdict) = &row.record else {
            return Err(Error::user(format!("{place}: no answer with a verdict")));
        };
        let mut seen = Seen::default();
        let (prompt, [completion]) =
            sides(&verdict.prompt, [&verdict.answer], tokenizer, &mut seen).context(|| place)?;
        let one = Unpaired { prompt, completion, good: verdict.good, line: row.line };
        Ok(Encoded { examples: vec![one], split_boundaries: seen.splits, notes: seen.notes })
    }
    fn shown(&self) -> Vec<Example> {
        vec![self.sequence()]
    }
    fn store(self) -> (Vec<Sequence>, usize, f64) {
        (vec![marked(&self.prompt, &self.completion)], self.line, f64::from(u8::from(self.good)))
    }
    fn restore(sequences: Vec<Sequence>, line: usize, value: f64) -> Self {
        let (prompt, completion) = sequences.into_iter().next().map(parted).unwrap_or_default();
        Self { prompt, completion, good: value != 0.0, line }
    }
}

impl Item for Prompt {
    const WANT: Want = Want::Prompts;
    const WIDTH: usize = 1;

    /// A conversation is asked up to its last answer.
    fn encode(row: &Row, path: &Path, tokenizer: &ChatTokenizer, _: Supervise) -> Result<Encoded<Self>> {
        let Question { ids, notes, .. } = question(row, path, tokenizer)?;
        Ok(Encoded { examples: vec![Prompt { ids, line: row.line }], split_boundaries: 0, notes })
    }
    fn shown(&self) -> Vec<Example> {
        vec![Example { ids: self.ids.clone(), supervised: vec![false; self.ids.len()], line: self.line }]
    }
    fn store(self) -> (Vec<Sequence>, usize, f64) {
        (vec![Sequence { marked: vec![false; self.ids.len()], ids: self.ids }], self.line, 0.0)
    }
    fn restore(sequences: Vec<Sequence>, line: usize, _: f64) -> Self {
        Self { ids: sequences.into_iter().next().map(|s| s.ids).unwrap_or_default(), line }
    }
}

/// What a row asks.
pub(super) struct Question {
    pub text: String,
    pub ids: Vec<u32>,
    pub notes: Vec<Note>,
}

/// What a row asks, as text and as token ids. A conversation that ends in an answer is asked up to it.
pub(super) fn question(row: &Row, path: &Path, tokenizer: &ChatTokenizer) -> Result<Question> {
    let place = Place { path, line: row.line };
    let talk = |mut talk: super::Conversation| {
        if talk.messages.last().is_some_and(|m| m.role == "assistant") {
            talk.messages.pop();
        }
        Asked::Talk(talk)
    };
    let asked = match &row.record {
        Record::Prompt(asked) => asked.clone(),
        Record::Messages(messages) => talk(messages.clone()),
        Record::Alpaca(task) if tokenizer.has_template() => talk(task.conversation()),
        Record::Alpaca(task) => Asked::Text(task.prompt()),
        Record::PromptCompletion { prompt, .. } => Asked::Text(prompt.clone()),
        Record::Preference(pair) => pair.prompt.clone(),
        Record::Unpaired(verdict) => verdict.prompt.clone(),
        Record::Text(_) => return Err(Error::user(format!("{place}: plain text asks nothing"))),
    };
    let mut seen = Seen::default();
    let text = asked_text(&asked, tokenizer, &mut seen).context(|| place)?;
    let ids = prompt_ids(&asked, &text, tokenizer).context(|| place)?;
    if ids.is_empty() {
        return Err(Error::user(format!("{place}: the prompt is empty")).hint("remove the row, or fill it"));
    }
    Ok(Question { text, ids, notes: seen.notes })
}

/// What is found out on the way from a row to its token ids.
#[derive(Default)]
struct Seen {
    /// Boundaries that were encoded in two pieces.
    splits: usize,
    notes: Vec<Note>,
}

/// The text that asks.
fn asked_text(asked: &Asked, tokenizer: &ChatTokenizer, seen: &mut Seen) -> Result<String> {
    match asked {
        Asked::Text(text) => Ok(text.clone()),
        Asked::Talk(talk) => {
            if talk.messages.is_empty() {
                return Err(Error::user("there is no message before the answer"));
            }
            let template = tokenizer.need_template()?;
            example::check_roles(&talk.messages, template)?;
            let text = template.render(talk, talk.messages.len(), true)?;
            example::check_nothing_dropped(talk, &[&text], template)?;
            let without = || template.render_with(&talk.messages, None, &talk.kwargs, true);
            if talk.tools.is_some() && without().is_ok_and(|without| without == text) {
                seen.notes.push(Note::ToolsLeftOut);
            }
            Ok(text)
        }
    }
}

fn prompt_ids(asked: &Asked, text: &str, tokenizer: &ChatTokenizer) -> Result<Vec<u32>> {
    let ids = match asked {
        Asked::Text(_) => tokenizer.encode_plain_prompt(text)?,
        Asked::Talk(_) => tokenizer.encode_prompt(text)?,
    };
    example::check_bos(&ids, tokenizer)?;
    Ok(ids)
}

/// Ids of the prompt, and of each answer after it. An answer is taken from the encoding of the joined text where the
/// prompt's ids are its beginning, and encoded by itself where a token would reach over the boundary.
fn sides<const N: usize>(
    asked: &Asked,
    answers: [&Answer; N],
    tokenizer: &ChatTokenizer,
    seen: &mut Seen,
) -> Result<(Vec<u32>, [Vec<u32>; N])> {
    let mut question = asked_text(asked, tokenizer, seen)?;
    let mut wholes = Vec::new();
    if let Asked::Talk(talk) = asked {
        for answer in answers {
            let Answer::Talk(messages) = answer else {
                return Err(Error::bug("a prompt of messages with an answer of text"));
            };
            let whole = rendered(talk, messages, &question, tokenizer, seen)?;
            // Sides that part at a turn of the user do not answer the question: they begin where the texts differ from it.
            if messages.first().is_some_and(|m| m.role != "assistant") {
                question.truncate(example::common_prefix(&question, &whole));
            }
            wholes.push(whole);
        }
    }
    let prompt = prompt_ids(asked, &question, tokenizer)?;
    let mut ids: [Vec<u32>; N] = std::array::from_fn(|_| Vec::new());
    for (i, (ids, answer)) in ids.iter_mut().zip(answers).enumerate() {
        *ids = match answer {
            Answer::Text(answer) => {
                let joint = tokenizer.encode_open(&format!("{question}{answer}"))?;
                let mut ids = after(&prompt, joint, [&question, answer], tokenizer, seen)?;
                example::append_eos(&mut ids, tokenizer)?;
                ids
            }
            Answer::Talk(_) => {
                let whole = wholes.get(i).ok_or_else(|| Error::bug("a prompt of text with an answer of messages"))?;
                let answer = whole.strip_prefix(question.as_str()).filter(|answer| !answer.is_empty());
                let answer = answer.ok_or_else(|| {
                    Error::user("the text with the answer does not begin with the text that asks for it").hint(
                        "what is learnt would differ from what is generated; give another template with data.template",
                    )
                })?;
                if !example::ends_in_stop(answer, tokenizer)? {
                    return Err(Error::user(
                        "the answer does not end in a stop token: the model would never learn to stop",
                    )
                    .hint("give a template with data.template that ends the assistant's turn in a stop token"));
                }
                after(&prompt, tokenizer.encode(whole)?, [&question, answer], tokenizer, seen)?
            }
        };
    }
    Ok((prompt, ids))
}

/// The conversation with an answer; it leaves out no message. Where the template writes it otherwise than the prompt, and
/// the answer is one message, it is put after the prompt as generation would.
fn rendered(
    talk: &super::Conversation,
    answer: &[Message],
    question: &str,
    tokenizer: &ChatTokenizer,
    seen: &mut Seen,
) -> Result<String> {
    let template = tokenizer.need_template()?;
    let mut talk = talk.clone();
    let asked = talk.messages.len();
    talk.messages.extend_from_slice(answer);
    example::check_roles(&talk.messages, template)?;
    let whole = template.render(&talk, talk.messages.len(), false)?;
    let whole = match answer {
        [one] if one.role == "assistant" && !whole.starts_with(question) => {
            let answered = answered::answered(&talk, asked, template, &tokenizer.stop_texts())?;
            seen.notes.extend(answered.notes);
            answered.text
        }
        _ => whole,
    };
    example::check_nothing_dropped(&talk, &[&whole], template)?;
    Ok(whole)
}

/// Ids of the answer: those of the joined text after the prompt's, or its own.
fn after(
    prompt: &[u32],
    mut joint: Vec<u32>,
    [question, answer]: [&str; 2],
    tokenizer: &ChatTokenizer,
    seen: &mut Seen,
) -> Result<Vec<u32>> {
    if joint.starts_with(prompt) {
        return Ok(joint.split_off(prompt.len()));
    }
    seen.splits += 1;
    tokenizer.encode_answer_after(question, answer)
}
