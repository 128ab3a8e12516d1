//! Continuous batching: the engine runs the prompts of queued requests packed, then gives every row one token per step.
//! Rows that end leave the cache, and queued prompts take their place.
//!
//! Requests may have different adapters. Prompts are then run adapter by adapter, and the rows of all adapters get their next
//! tokens in one step, in which the base is computed once (`nn::row_adapters`).
//!
//! Invariant: a row samples from its own random stream, and its logits depend on no other row. Only their last bits may
//! depend on the number of rows in a product: docs/generation.md says when. The engine must not know text, files or the
//! terminal.

use super::answer::{DecodeFn, GeneratedAnswer};
use super::answering_adapter::AnsweringAdapter;
use super::logit_rules::LogitEdits;
use super::next_token::NextTokens;
use super::prefill::{PREFILL_TOKENS, prefill};
use super::prompt_check::{check_decoder, check_prompt};
use super::sampler;
use super::sequence::GrowingSequence;
use super::settings::GenerationSettings;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::native;
use crate::native::upload_slice;
use crate::nn::{CacheLayout, KvCache, RowAdapters};
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
    /// Which adapter answers.
    pub adapter: AnsweringAdapter,
}

impl GenerationRequest {
    /// Returns a request for one answer.
    pub fn new(prompt: &[u32], stream: u64) -> Self {
        Self { prompt: prompt.to_vec(), prefix: Vec::new(), answers: 1, stream, adapter: AnsweringAdapter::Active }
    }
}

/// Limits on what is decoded together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Number of rows.
    pub rows: usize,
    /// Size of the cache in tokens: rows times what a layer keeps of the longest sequence, which is all of it unless the layer
    /// has a window.
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
        let layout = model.cache_layout();
        let token = layout.tables() * layout.row_bytes(model.config().head_dim, model.kind());
        Self::of_layout(&layout, token, memory)
    }

    /// Returns the same for a cache of this layout, of which a token takes `token` bytes in all tables.
    pub fn of_layout(layout: &CacheLayout, token: u64, memory: u64) -> Self {
        let (rows, tokens) = match layout.device {
            Device::Cuda(_) => (256, 1 << 17),
            _ => (64, 1 << 15),
        };
        Self { rows, tokens: tokens.min((memory / token.max(1)) as usize) }
    }

    /// Returns the number of rows that are decoded together if the longest sequence has `longest` tokens; perhaps 0.
    pub fn rows_of(&self, longest: usize, layout: &CacheLayout) -> usize {
        let longest = longest.min(1 << 40) as i64;
        self.rows.max(1).min(self.tokens / layout.kept_tokens(longest) as usize)
    }
}

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
    adapter: AnsweringAdapter,
    sequence: GrowingSequence,
}

/// A queued request: `answers_begun` of its answers have begun, the others wait.
struct WaitingRequest {
    id: usize,
    request: GenerationRequest,
    answers_begun: usize,
    /// The most tokens that a sequence may have.
    context: usize,
}

/// Answers requests in batches.
pub struct Engine<'m> {
    model: &'m Model,
    settings: GenerationSettings,
    limits: BatchLimits,
    decode: Option<DecodeFn<'m>>,
    share_beginnings: bool,
    waiting: VecDeque<WaitingRequest>,
    rows: Vec<DecodingRow>,
    cache: KvCache,
    /// (rows) int64: each row's last token on the model's device, if it is there already: then it need not be uploaded.
    last_ids: Option<Tensor>,
    /// The adapters of the rows, as long as these stay the same.
    row_adapters: Option<RowAdapters>,
    next: NextTokens,
    requests_added: usize,
}

impl<'m> Engine<'m> {
    /// Returns an engine without requests. Fails for settings out of range.
    pub fn new(model: &'m Model, settings: GenerationSettings, limits: BatchLimits) -> Result<Self> {
        settings.check()?;
        Ok(Self {
            cache: model.cache(0),
            waiting: VecDeque::new(),
            rows: Vec::new(),
            last_ids: None,
            row_adapters: None,
            next: NextTokens::default(),
            requests_added: 0,
            decode: None,
            share_beginnings: false,
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

    /// Computes what the prompts of a batch begin with once, such as examples before a question. The last bits of logits then
    /// depend on which prompts are run together.
    pub fn with_shared_beginnings(mut self) -> Self {
        self.share_beginnings = self.model.rotates_alike();
        self
    }

    /// Queues a request and returns its id, which its answers carry. Fails if prompt or prefix is too long.
    pub fn add(&mut self, request: GenerationRequest) -> Result<usize> {
        let id = self.requests_added;
        check_decoder(&self.settings, self.decode)?;
        let number = request.adapter.number(self.model);
        let name = format!("prompt {}", id + 1);
        self.model.with_adapter_id(number, |model| check_prompt(model, &request.prompt, &self.settings, &name))?;
        let context = request.adapter.context(self.model);
        let longest = self.settings.max_answer_tokens(request.prompt.len()).min(context - request.prompt.len());
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
        self.waiting.push_back(WaitingRequest { id, request, answers_begun: 0, context });
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
            let adapter = self.rows[old].adapter.number(self.model);
            let logits = self.model.with_adapter_id(adapter, |_| self.prefill_rows(old, &first))?;
            return Ok(DecodingStep { prompt_tokens, ..self.choose_tokens(old, logits)? });
        }
        if self.rows.is_empty() {
            return Ok(DecodingStep::default());
        }
        let (model, rows, ids) = (self.model, &self.rows, self.last_ids.take());
        let adapters = self.row_adapters.get_or_insert_with(|| {
            let numbers: Vec<Option<usize>> = rows.iter().map(|r| r.adapter.number(model)).collect();
            RowAdapters::new(&numbers, model.device())
        });
        let last = || {
            let last: Vec<i64> = rows.iter().map(|r| r.sequence.last_id()).collect();
            upload_slice(&last, model.device())
        };
        let sequence = |i: usize| &rows[i].sequence.ids[..];
        let logits = model.with_row_adapters(adapters, |model| {
            self.next.logits(model, &mut self.cache, || ids.unwrap_or_else(last), sequence)
        })?;
        self.choose_tokens(0, logits)
    }

    /// Turns queued answers into rows: first one row per prompt, then the other answers of these prompts. All have the
    /// adapter of the first request in the queue; those with others are passed over, and their places in the batch are kept
    /// free for the next steps. If the model cannot mix adapters, a batch has one. Returns the number of answers for each prompt.
    fn admit_waiting(&mut self) -> Vec<usize> {
        let (model, limits, layout) = (self.model, self.limits, self.model.cache_layout());
        let cached = |adapter: AnsweringAdapter, sequence: &GrowingSequence| {
            adapter.virtual_tokens(model) + sequence.max_length()
        };
        let mut longest = self.rows.iter().map(|r| cached(r.adapter, &r.sequence)).max().unwrap_or(0);
        let (mut used, mut tokens, mut at) = (self.rows.len(), 0, 0);
        let (mut counts, mut first, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let shared = self.waiting.front().and_then(|w| w.request.adapter.number(model));
        if !model.mixes_adapters() && self.rows.first().is_some_and(|r| r.adapter.number(model) != shared) {
            return counts; // until the batch's rows have ended
        }
        while let Some(w) = self.waiting.get_mut(at) {
            let (r, adapter) = (&w.request, w.request.adapter);
            let make = |sample: usize| {
                GrowingSequence::new(&r.prompt, &r.prefix, &self.settings, w.context, r.stream, sample as u64)
            };
            let sequence = make(w.answers_begun);
            longest = longest.max(cached(adapter, &sequence));
            let free = limits.rows_of(longest, &layout).saturating_sub(used).max(usize::from(used == 0));
            let n = free.min(r.answers - w.answers_begun);
            if n > 0 && adapter.number(model) != shared {
                (used, at) = (used + n, at + 1);
                continue;
            }
            if n == 0 || (tokens > 0 && tokens + sequence.ids.len() > PREFILL_TOKENS) {
                break;
            }
            tokens += sequence.ids.len();
            let row = |sample, sequence| DecodingRow { request: w.id, sample, adapter, sequence };
            first.push(row(w.answers_begun, sequence));
            others.extend((w.answers_begun + 1..w.answers_begun + n).map(|sample| row(sample, make(sample))));
            counts.push(n);
            used += n;
            w.answers_begun += n;
            if w.answers_begun < r.answers {
                break;
            }
            self.waiting.remove(at);
        }
        self.rows.extend(first);
        self.rows.extend(others);
        if !counts.is_empty() {
            self.rows_changed();
            self.allocate_cache(longest);
        }
        counts
    }

    fn rows_changed(&mut self) {
        self.row_adapters = None;
        self.next.sequences_changed();
    }

    /// Makes room in a device's cache for all rows, and for as many of the waiting answers as the limits allow with
    /// sequences of up to `longest` tokens.
    fn allocate_cache(&mut self, longest: usize) {
        let waiting: usize = self.waiting.iter().map(|w| w.request.answers - w.answers_begun).sum();
        let most = self.limits.rows_of(longest, &self.model.cache_layout());
        let rows = (self.rows.len() + waiting).min(most).max(self.rows.len());
        self.cache.allocate(rows, longest as i64);
    }

    /// Runs the prompts of the new rows, from row `old` on, each once for all its `counts` answers. Returns logits
    /// (answers, vocabulary).
    fn prefill_rows(&mut self, old: usize, counts: &[usize]) -> Result<Tensor> {
        let mut prompts: Vec<&[u32]> = self.rows[old..old + counts.len()].iter().map(|r| &r.sequence.ids[..]).collect();
        let shared = if self.share_beginnings { common_beginning(&prompts) } else { 0 };
        if shared > 0 {
            self.cache.add_slots(1);
            let _ = prefill(self.model, &[&prompts[0][..shared]], &mut self.cache, PREFILL_TOKENS)?;
            self.cache.fork_slot(old, counts.len() - 1);
            prompts.iter_mut().for_each(|prompt| *prompt = &prompt[shared..]);
        } else {
            self.cache.add_slots(counts.len());
        }
        let logits = prefill(self.model, &prompts, &mut self.cache, PREFILL_TOKENS)?;
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
            let DecodingRow { request, sample, sequence, .. } = self.rows.swap_remove(i);
            let completion = sequence.finish(stopped, &self.settings, self.decode)?;
            step.finished.push(FinishedAnswer { request, sample, completion });
        }
        step.finished.reverse();
        if slots.len() < self.cache.lengths.len() {
            self.rows_changed();
            self.cache.retain_slots(&slots);
        }
        Ok(step)
    }
}

/// Returns the number of tokens that several prompts begin with, without the last token of any.
fn common_beginning(prompts: &[&[u32]]) -> usize {
    let [first, others @ ..] = prompts else { return 0 };
    let alike = |other: &&[u32]| {
        let most = first.len().min(other.len()) - 1;
        first.iter().zip(*other).take(most).take_while(|(a, b)| a == b).count()
    };
    others.iter().map(alike).min().unwrap_or(0)
}

/// Answers every prompt and returns the answers in the order of the prompts. `on_token` is called with the prompt index
/// and the id of each new token. Long prompts are decoded first, so that prompts of similar length share the cache.
pub fn complete(
    model: &Model,
    prompts: &[Vec<u32>],
    settings: &GenerationSettings,
    on_token: &mut dyn FnMut(usize, u32),
) -> Result<Vec<GeneratedAnswer>> {
    let request = |(i, prompt): (usize, &Vec<u32>)| GenerationRequest::new(prompt, i as u64);
    complete_requests(model, prompts.iter().enumerate().map(request).collect(), settings, on_token)
}

/// Does the same for requests of one answer each, which may have different adapters.
pub fn complete_requests(
    model: &Model,
    requests: Vec<GenerationRequest>,
    settings: &GenerationSettings,
    on_token: &mut dyn FnMut(usize, u32),
) -> Result<Vec<GeneratedAnswer>> {
    settings.check()?;
    for (i, r) in requests.iter().enumerate() {
        let check = |model: &Model| check_prompt(model, &r.prompt, settings, &format!("prompt {}", i + 1));
        model.with_adapter_id(r.adapter.number(model), check)?;
    }
    let mut answers: Vec<Option<GeneratedAnswer>> = vec![None; requests.len()];
    let mut requests: Vec<(usize, GenerationRequest)> = requests.into_iter().enumerate().collect();
    requests.sort_by_key(|(_, r)| std::cmp::Reverse(r.prompt.len()));
    let order: Vec<usize> = requests.iter().map(|(i, _)| *i).collect();
    let mut engine = Engine::new(model, settings.clone(), BatchLimits::of(model)?)?;
    for (_, request) in requests {
        engine.add(request)?;
    }
    while !engine.is_idle() {
        let step = engine.step()?;
        step.tokens.iter().for_each(|(request, _, id)| on_token(order[*request], *id));
        for done in step.finished {
            answers[order[done.request]] = Some(done.completion);
        }
    }
    Ok(answers.into_iter().map(|a| a.expect("every prompt is answered")).collect())
}
