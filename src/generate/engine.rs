//! Continuous batching: the engine runs the prompts of queued requests packed, then gives every row one token per step.
//! Rows that end leave the cache, and queued prompts take their place.
//!
//! Invariant: a row samples from its own random stream, and its logits depend on no other row. Only their last bits may
//! depend on the number of rows in a product: docs/generation.md says when. The engine must not know text, files or the
//! terminal.

use super::answer::{DecodeFn, GeneratedAnswer};
use super::logit_rules::LogitEdits;
use super::next_token::next_logits;
use super::prompt_check::{check_decoder, check_prompt, max_sequence_tokens};
use super::sampler;
use super::sequence::GrowingSequence;
use super::settings::GenerationSettings;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::native;
use crate::native::upload_slice;
use crate::nn::{KvCache, Tokens};
use std::collections::VecDeque;
use tch::{Device, Tensor};

/// A prompt to be answered.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens that every answer begins with.
    pub prefix: Vec<u32>,
    /// Number of answers.
    pub answers: usize,
    /// Index of its random stream. Requests with equal stream, prompt and settings get equal answers.
    pub stream: u64,
}

impl GenerationRequest {
    /// Returns a request for one answer.
    pub fn new(prompt: &[u32], stream: u64) -> Self {
        Self { prompt: prompt.to_vec(), prefix: Vec::new(), answers: 1, stream }
    }
}

/// Limits on what is decoded together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Number of rows.
    pub rows: usize,
    /// Size of the cache in tokens: rows times the longest sequence.
    pub tokens: usize,
}

impl BatchLimits {
    /// Returns limits that fit the memory of the model's device.
    pub fn of(model: &Model) -> Result<Self> {
        match model.device() {
            Device::Cuda(i) => Ok(Self::within(model, native::cuda_capacity(i)?.0 / 2)),
            _ => Ok(Self::within(model, 2 << 30)),
        }
    }

    /// Returns limits under which the cache takes at most `memory` bytes, on a device at any moment. One sequence is
    /// always decoded, even if it alone takes more.
    pub fn within(model: &Model, memory: u64) -> Self {
        let (rows, tokens, tables) = match model.device() {
            // While a table is replaced by a larger one, both exist.
            Device::Cuda(_) => (256, 1 << 17, model.cache_layout().tables() + 1),
            _ => (64, 1 << 15, model.cache_layout().tables()),
        };
        let token = tables * model.cache_layout().row_bytes(model.config().head_dim, model.kind());
        Self { rows, tokens: tokens.min((memory / token.max(1)) as usize) }
    }
}

/// Most prompt tokens in one packed row, unless one prompt alone is longer.
const PREFILL_TOKENS: usize = 4096;

/// A finished answer and its request.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedAnswer {
    /// The id that `Engine::add` returned.
    pub request: usize,
    /// Index of the answer within its request.
    pub sample: usize,
    /// The answer.
    pub completion: GeneratedAnswer,
}

/// The result of one step.
#[derive(Debug, Default)]
pub struct DecodingStep {
    /// New tokens as (request, sample, token id).
    pub tokens: Vec<(usize, usize, u32)>,
    /// Prompt tokens computed in this step; 0 in a step that gives existing rows their next token.
    pub prompt_tokens: usize,
    /// Answers that ended in this step.
    pub finished: Vec<FinishedAnswer>,
}

/// A row of the batch. Row i has slot i of the cache.
struct DecodingRow {
    request: usize,
    sample: usize,
    sequence: GrowingSequence,
}

/// A queued request: `answers_begun` of its answers have begun, the others wait.
struct WaitingRequest {
    id: usize,
    request: GenerationRequest,
    answers_begun: usize,
}

/// Answers requests in batches. The caller must keep the model's active adapter the same in every step.
pub struct Engine<'m> {
    model: &'m Model,
    settings: GenerationSettings,
    limits: BatchLimits,
    decode: Option<DecodeFn<'m>>,
    context: usize,
    waiting: VecDeque<WaitingRequest>,
    rows: Vec<DecodingRow>,
    cache: KvCache,
    /// (rows) int64: each row's last token on the model's device, if it is there already: then it need not be uploaded.
    last_ids: Option<Tensor>,
    requests_added: usize,
}

impl<'m> Engine<'m> {
    /// Returns an engine without requests. Fails for settings out of range.
    pub fn new(model: &'m Model, settings: GenerationSettings, limits: BatchLimits) -> Result<Self> {
        settings.check()?;
        Ok(Self {
            context: max_sequence_tokens(model),
            cache: model.cache(0),
            waiting: VecDeque::new(),
            rows: Vec::new(),
            last_ids: None,
            requests_added: 0,
            decode: None,
            model,
            settings,
            limits,
        })
    }

    /// Sets the function that decodes tokens, which stop texts need.
    pub fn with_decoder(mut self, decode: DecodeFn<'m>) -> Self {
        self.decode = Some(decode);
        self
    }

    /// Queues a request and returns its id, which its answers carry. Fails if prompt or prefix is too long.
    pub fn add(&mut self, request: GenerationRequest) -> Result<usize> {
        let id = self.requests_added;
        check_decoder(&self.settings, self.decode)?;
        check_prompt(self.model, &request.prompt, &self.settings, &format!("prompt {}", id + 1))?;
        let longest = self.settings.max_answer_tokens(request.prompt.len()).min(self.context - request.prompt.len());
        if request.prefix.len() >= longest {
            return Err(Error::user(format!(
                "prompt {}: the prefix has {} tokens, the answer may have {longest}",
                id + 1,
                request.prefix.len()
            )));
        }
        if request.answers == 0 {
            return Err(Error::bug("a request for no answer"));
        }
        self.requests_added += 1;
        self.waiting.push_back(WaitingRequest { id, request, answers_begun: 0 });
        Ok(id)
    }

    /// Returns the number of requests with answers that have not begun. A caller with many prompts adds more when it is
    /// 0.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns true if all requests are answered.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.rows.is_empty()
    }

    /// Runs queued prompts if there is room for them, else gives each row its next token.
    pub fn step(&mut self) -> Result<DecodingStep> {
        let old = self.rows.len();
        let first = self.admit_waiting();
        if !first.is_empty() {
            let prompt_tokens = self.rows[old..old + first.len()].iter().map(|r| r.sequence.ids.len()).sum();
            let logits = self.prefill_rows(old, &first)?;
            return Ok(DecodingStep { prompt_tokens, ..self.choose_tokens(old, logits)? });
        }
        if self.rows.is_empty() {
            return Ok(DecodingStep::default());
        }
        let (rows, device, ids) = (&self.rows, self.model.device(), self.last_ids.take());
        let last = || {
            let last: Vec<i64> = rows.iter().map(|r| r.sequence.last_id()).collect();
            upload_slice(&last, device)
        };
        let sequence = |i: usize| &rows[i].sequence.ids[..];
        let logits = next_logits(self.model, &mut self.cache, || ids.unwrap_or_else(last), sequence)?;
        self.choose_tokens(0, logits)
    }

    /// Turns queued answers into rows: first one row per prompt, then the other answers of these prompts. Returns the
    /// number of answers for each prompt.
    fn admit_waiting(&mut self) -> Vec<usize> {
        let virtual_tokens = self.model.virtual_tokens() as usize;
        let cached = |sequence: &GrowingSequence| virtual_tokens + sequence.max_length();
        let mut longest = self.rows.iter().map(|r| cached(&r.sequence)).max().unwrap_or(0);
        let (mut free, mut used, mut tokens) = (self.limits.rows.max(1), self.rows.len(), 0);
        free = free.saturating_sub(used);
        let (mut counts, mut first, mut others) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(w) = self.waiting.front_mut() {
            let r = &w.request;
            let make = |sample: usize| {
                GrowingSequence::new(&r.prompt, &r.prefix, &self.settings, self.context, r.stream, sample as u64)
            };
            let sequence = make(w.answers_begun);
            longest = longest.max(cached(&sequence));
            let room = free.min((self.limits.tokens / longest).saturating_sub(used)).max(usize::from(used == 0));
            let n = room.min(r.answers - w.answers_begun);
            if n == 0 || (tokens > 0 && tokens + sequence.ids.len() > PREFILL_TOKENS) {
                break;
            }
            tokens += sequence.ids.len();
            first.push(DecodingRow { request: w.id, sample: w.answers_begun, sequence });
            others.extend((w.answers_begun + 1..w.answers_begun + n).map(|s| DecodingRow {
                request: w.id,
                sample: s,
                sequence: make(s),
            }));
            counts.push(n);
            (used, free) = (used + n, free.saturating_sub(n));
            w.answers_begun += n;
            if w.answers_begun < r.answers {
                break;
            }
            self.waiting.pop_front();
        }
        self.rows.extend(first);
        self.rows.extend(others);
        if !counts.is_empty() {
            self.allocate_cache(longest);
        }
        counts
    }

    /// Makes room in a device's cache for all rows, and for as many of the waiting answers as the limits allow with
    /// sequences of up to `longest` tokens.
    fn allocate_cache(&mut self, longest: usize) {
        let waiting: usize = self.waiting.iter().map(|w| w.request.answers - w.answers_begun).sum();
        let most = self.limits.rows.min(self.limits.tokens / longest);
        let rows = (self.rows.len() + waiting).min(most).max(self.rows.len());
        self.cache.allocate(rows, longest as i64);
    }

    /// Runs the prompts of the new rows, from row `old` on, each once for all its `counts` answers. Returns logits
    /// (answers, vocabulary).
    fn prefill_rows(&mut self, old: usize, counts: &[usize]) -> Result<Tensor> {
        self.cache.add_slots(counts.len());
        let prompts: Vec<&[u32]> = self.rows[old..old + counts.len()].iter().map(|r| &r.sequence.ids[..]).collect();
        let tokens = Tokens::pack(&prompts, self.model.device());
        let logits = self.model.extend(&tokens, &mut self.cache, |out| out.logits(&tokens.segments.last_rows()))?;
        let mut source: Vec<i64> = (0..counts.len() as i64).collect();
        for (i, n) in counts.iter().enumerate().filter(|(_, n)| **n > 1) {
            self.cache.fork_slot(old + i, n - 1);
            source.extend(std::iter::repeat_n(i as i64, n - 1));
        }
        if source.len() == counts.len() {
            return Ok(logits);
        }
        Ok(logits.index_select(0, &upload_slice(&source, logits.device())))
    }

    /// Chooses the next token of the rows from `from` on, and removes the rows that end.
    fn choose_tokens(&mut self, from: usize, logits: Tensor) -> Result<DecodingStep> {
        let mut edits = LogitEdits::default();
        for (i, row) in self.rows[from..].iter().enumerate() {
            row.sequence.collect_edits(&self.settings, i, &mut edits);
        }
        edits.apply(&logits, &self.settings);
        let rows = &mut self.rows[from..];
        let chosen = sampler::next_tokens(&logits, &self.settings, || {
            rows.iter_mut().map(|r| r.sequence.draw_uniform()).collect()
        })?;
        let (mut step, mut ended) = (DecodingStep::default(), Vec::new());
        for (i, (row, (id, log_prob))) in rows.iter_mut().zip(chosen.tokens).enumerate() {
            step.tokens.push((row.request, row.sample, id));
            if let Some(stopped) = row.sequence.push(id, log_prob, &self.settings, self.decode)? {
                ended.push((from + i, stopped));
            }
        }
        self.last_ids = (from == 0 && ended.is_empty()).then_some(chosen.ids);
        // `swap_remove` moves the last row into the gap. Rows are removed from the end on, so that the last row is
        // always one that stays.
        let mut slots: Vec<usize> = (0..self.rows.len()).collect();
        for (i, stopped) in ended.into_iter().rev() {
            slots.swap_remove(i);
            let DecodingRow { request, sample, sequence } = self.rows.swap_remove(i);
            let completion = sequence.finish(stopped, &self.settings, self.decode)?;
            step.finished.push(FinishedAnswer { request, sample, completion });
        }
        step.finished.reverse();
        if slots.len() < self.cache.lengths.len() {
            self.cache.retain_slots(&slots);
        }
        Ok(step)
    }
}

/// Answers every prompt and returns the answers in the order of the prompts. `on_token` is called with the prompt index
/// and the id of each new token. Long prompts are decoded first, so that prompts of similar length share the cache.
pub fn complete(
    model: &Model,
    prompts: &[Vec<u32>],
    settings: &GenerationSettings,
    on_token: &mut dyn FnMut(usize, u32),
) -> Result<Vec<GeneratedAnswer>> {
    settings.check()?;
    for (i, prompt) in prompts.iter().enumerate() {
        check_prompt(model, prompt, settings, &format!("prompt {}", i + 1))?;
    }
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(prompts[i].len()));
    let mut engine = Engine::new(model, settings.clone(), BatchLimits::of(model)?)?;
    for &i in &order {
        engine.add(GenerationRequest::new(&prompts[i], i as u64))?;
    }
    let mut answers: Vec<Option<GeneratedAnswer>> = prompts.iter().map(|_| None).collect();
    while !engine.is_idle() {
        let step = engine.step()?;
        step.tokens.iter().for_each(|(request, _, id)| on_token(order[*request], *id));
        for done in step.finished {
            answers[order[done.request]] = Some(done.completion);
        }
    }
    Ok(answers.into_iter().map(|a| a.expect("every prompt is answered")).collect())
}
