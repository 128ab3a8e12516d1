//! Log-likelihoods of continuations, of which many begin alike.
//!
//! The choices of one question share their prompt, and the prompts of a task often their examples. A batch of questions is
//! therefore computed in three steps, each of which continues the cache of the one before: what all questions begin with, what
//! the choices of each begin with, and the rest of each choice. No token that two sequences begin with is computed twice in a batch.
//! The last token of a prompt always belongs to the rest, because its output predicts the first token of the continuation.
//!
//! A sequence whose rotations depend on its length (dynamic NTK, LongRoPE) is computed as a whole.

use crate::error::{Error, Result};
use crate::generate::engine::BatchLimits;
use crate::generate::prefill::PREFILL_TOKENS;
use crate::models::Model;
use crate::native::upload_slice;
use crate::nn::{KvCache, Tokens};
use tch::{Kind, Tensor};

/// Tokens of a context, and of the continuation whose likelihood is asked. Neither is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPair {
    /// The context. If both together are longer than what the model sees, its beginning is left out.
    pub context: Vec<u32>,
    /// The continuation.
    pub continuation: Vec<u32>,
}

/// How likely a continuation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// The natural logarithm of its probability.
    pub log_prob: f64,
    /// Whether each of its tokens is the most likely one.
    pub greedy: bool,
}

/// The pairs of one question, which begin alike.
pub type PairGroup = Vec<TokenPair>;

/// Computes the likelihoods of the pairs of each group. `done` is called with the number of a group and its likelihoods, in any
/// order. `window`: the most tokens that the model sees.
///
/// Errors: a continuation is longer than the window, or its log-likelihood is not finite.
pub fn likelihoods(
    model: &Model,
    groups: &[PairGroup],
    window: usize,
    limits: BatchLimits,
    done: &mut dyn FnMut(usize, Vec<Likelihood>) -> Result<()>,
) -> Result<()> {
    let mut planned = groups.iter().map(|pairs| PlannedGroup::of(pairs, window)).collect::<Result<Vec<_>>>()?;
    // Groups of similar length share a batch; the longest come first, so that a lack of memory shows at once.
    let mut order: Vec<usize> = (0..planned.len()).collect();
    order.sort_by(|a, b| {
        planned[*b].longest().cmp(&planned[*a].longest()).then_with(|| planned[*a].cmp_tokens(&planned[*b]))
    });
    let mut from = 0;
    while from < order.len() {
        let to = from + batch_size(&order[from..], &planned, limits);
        let batch: Vec<PlannedGroup> = order[from..to].iter().map(|i| std::mem::take(&mut planned[*i])).collect();
        for (i, found) in order[from..to].iter().zip(compute(model, &batch)?) {
            if let Some(bad) = found.iter().find(|found| !found.log_prob.is_finite()) {
                return Err(Error::user(format!("a log-likelihood is {}", bad.log_prob)).hint(
                    "the model's weights or its adapter contain NaN or infinite values; was the training run stable?",
                ));
            }
            done(*i, found)?;
        }
        from = to;
    }
    Ok(())
}

/// The distinct inputs of a group, and what is asked of each.
#[derive(Default)]
struct PlannedGroup {
    /// What the model sees for each distinct input.
    inputs: Vec<Vec<u32>>,
    /// Number of tokens that all inputs begin with and that predict no continuation.
    shared: usize,
    /// For each pair: its input, the number of input tokens before the one that predicts its first token, and its continuation.
    pairs: Vec<(usize, usize, Vec<u32>)>,
}

impl PlannedGroup {
    fn of(pairs: &[TokenPair], window: usize) -> Result<Self> {
        let mut group = Self::default();
        for TokenPair { context, continuation } in pairs {
            if context.is_empty() || continuation.is_empty() {
                return Err(Error::bug("a likelihood of nothing"));
            }
            if continuation.len() > window {
                return Err(Error::user(format!(
                    "a continuation of {} tokens, the model sees {window}",
                    continuation.len()
                )));
            }
            let all = context.len() + continuation.len();
            let from = all.saturating_sub(window + 1);
            let input: Vec<u32> = context.iter().chain(continuation).copied().take(all - 1).skip(from).collect();
            let before = input.len() - continuation.len();
            let number = group.inputs.iter().position(|known| *known == input).unwrap_or_else(|| {
                group.inputs.push(input);
                group.inputs.len() - 1
            });
            group.pairs.push((number, before, continuation.clone()));
        }
        let alike = group.inputs.iter().map(|input| common_beginning(&group.inputs[0], input)).min().unwrap_or(0);
        group.shared = group.pairs.iter().map(|(_, before, _)| *before).fold(alike, usize::min);
        Ok(group)
    }

    fn longest(&self) -> usize {
        self.inputs.iter().map(Vec::len).max().unwrap_or(0)
    }

    fn cmp_tokens(&self, other: &Self) -> std::cmp::Ordering {
        self.inputs.first().cmp(&other.inputs.first())
    }

    /// Returns the number of tokens that are computed for it.
    fn tokens(&self) -> usize {
        self.shared + self.inputs.iter().map(|input| input.len() - self.shared).sum::<usize>()
    }
}

fn common_beginning(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The most tokens whose keys and values a batch keeps, if it has more than one group. Each choice has a copy of those of its question,
/// which take more memory than all else that a batch needs.
const CACHED_TOKENS: usize = 2 * PREFILL_TOKENS;

/// Returns how many of the groups in `order` are computed together: at least one.
fn batch_size(order: &[usize], planned: &[PlannedGroup], limits: BatchLimits) -> usize {
    let first = &planned[order[0]];
    let (mut groups, mut tokens, mut slots, mut head) = (0, 0, 0, usize::MAX);
    let fits = |i: &&usize| {
        let group = &planned[**i];
        head = head.min(common_beginning(&first.inputs[0], &group.inputs[0])).min(group.shared);
        groups += 1;
        tokens += group.tokens();
        slots += group.inputs.len();
        // What all begin with is computed once, but each input has keys and values of its own.
        let computed = tokens - head * (groups - 1);
        computed <= PREFILL_TOKENS && slots * first.longest() <= limits.tokens.min(CACHED_TOKENS)
    };
    order.iter().take_while(fits).count().max(1)
}

/// Computes a batch.
fn compute(model: &Model, batch: &[PlannedGroup]) -> Result<Vec<Vec<Likelihood>>> {
    let inputs: Vec<&[u32]> = batch.iter().flat_map(|group| group.inputs.iter().map(Vec::as_slice)).collect();
    let longest = inputs.iter().map(|input| input.len()).max().unwrap_or(0);
    // Number of tokens of each input that are in the cache.
    let mut cached: Vec<usize> = Vec::new();
    let cache = if shares(model, longest, batch) { Some(prefixes(model, batch, &mut cached)?) } else { None };
    cached.resize(inputs.len(), 0);
    let rest: Vec<&[u32]> = inputs.iter().zip(&cached).map(|(input, cached)| &input[*cached..]).collect();
    let mut starts = vec![0i64];
    rest.iter().for_each(|rest| starts.push(starts[starts.len() - 1] + rest.len() as i64));
    let (mut at, mut targets, mut number) = (Vec::new(), Vec::new(), 0);
    for group in batch {
        for (input, before, continuation) in &group.pairs {
            let first = starts[number + input] + (before - cached[number + input]) as i64;
            at.extend((0..continuation.len() as i64).map(|t| first + t));
            targets.extend(continuation.iter().map(|id| i64::from(*id)));
        }
        number += group.inputs.len();
    }
    if let Some(id) = targets.iter().find(|id| **id >= model.config().vocab_size) {
        return Err(Error::user(format!(
            "token {id}, the model's vocabulary ends at {}",
            model.config().vocab_size - 1
        ))
        .hint("does tokenizer.json belong to this model?"));
    }
    let [at, targets] = [at, targets].map(|list| upload_slice(&list, model.device()));
    let score = |out: &crate::models::Output| {
        let scores = out.log_probs(&at, &targets);
        Tensor::stack(&[scores.log_probs.to_kind(Kind::Double), scores.hits.to_kind(Kind::Double)], 0)
    };
    let scores = match cache {
        Some(mut cache) => {
            let tokens = Tokens::pack_after(&rest, cache.last(rest.len()), model.device());
            model.extend(&tokens, &mut cache, score)?
        }
        None => model.infer(&Tokens::pack(&rest, model.device()), score)?,
    };
    let numbers =
        Vec::<f64>::try_from(scores.reshape([-1])).map_err(|e| Error::bug(format!("log-probabilities: {e}")))?;
    let (log_probs, hits) = numbers.split_at(numbers.len() / 2);
    let mut from = 0;
    let mut one = |continuation: &[u32]| {
        let own = from..from + continuation.len();
        from = own.end;
        Likelihood { log_prob: log_probs[own.clone()].iter().sum(), greedy: hits[own].iter().all(|hit| *hit == 1.0) }
    };
    Ok(batch.iter().map(|group| group.pairs.iter().map(|(_, _, c)| one(c)).collect()).collect())
}

/// Returns true if sequences may be computed in parts, and it saves anything.
fn shares(model: &Model, longest: usize, batch: &[PlannedGroup]) -> bool {
    let alike = batch.iter().any(|group| group.inputs.len() > 1 && group.shared > 0)
        || (batch.len() > 1 && batch.iter().all(|group| group.shared > 0) && head_of(batch) > 0);
    alike && model.rotates_alike_up_to(longest as i64)
}

/// Returns the number of tokens that all inputs of a batch begin with.
fn head_of(batch: &[PlannedGroup]) -> usize {
    let first = &batch[0].inputs[0];
    batch.iter().map(|group| common_beginning(first, &group.inputs[0]).min(group.shared)).min().unwrap_or(0)
}

/// Computes what the inputs begin with. Returns the cache with one sequence for each input, and sets the number of tokens in each.
fn prefixes(model: &Model, batch: &[PlannedGroup], cached: &mut Vec<usize>) -> Result<KvCache> {
    let head = if batch.len() > 1 { head_of(batch) } else { 0 };
    let mut cache = model.cache(1);
    if head > 0 {
        extend(model, &[&batch[0].inputs[0][..head]], &mut cache)?;
        cache.retain_slots(&vec![0; batch.len()]);
    } else {
        cache = model.cache(batch.len());
    }
    // One input alone has nothing to share with others of its group: it is computed in the last step.
    let shared = |group: &PlannedGroup| if group.inputs.len() > 1 { group.shared } else { head };
    let parts: Vec<&[u32]> = batch.iter().map(|group| &group.inputs[0][head..shared(group)]).collect();
    if parts.iter().any(|part| !part.is_empty()) {
        extend(model, &parts, &mut cache)?;
    }
    let slots: Vec<usize> =
        batch.iter().enumerate().flat_map(|(i, group)| std::iter::repeat_n(i, group.inputs.len())).collect();
    if slots.len() > batch.len() {
        cache.retain_slots(&slots);
    }
    *cached = batch.iter().flat_map(|group| std::iter::repeat_n(shared(group), group.inputs.len())).collect();
    Ok(cache)
}

fn extend(model: &Model, parts: &[&[u32]], cache: &mut KvCache) -> Result<()> {
    let tokens = Tokens::pack_after(parts, cache.last(parts.len()), model.device());
    model.extend(&tokens, cache, |_| ())
}
