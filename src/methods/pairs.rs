//! Packs prompts with answers into one row and computes the log-probability of each answer. All preference methods use
//! this.
//!
//! Invariant: only tokens of answers are scored, so predicting a prompt's token adds no gradient; the numbers of a
//! sequence do not depend on the other sequences in the row. Computes no loss.

use super::targets::TargetTokens;
use crate::data::dataset::Dataset;
use crate::data::encode::{Example, PairExample};
use crate::error::{Error, Result};
use crate::models::{Metrics, Output};
use crate::nn::Tokens;
use tch::{Device, Kind, Tensor};

/// Sequences packed into one row, and which tokens of each are the answer.
pub struct PackedAnswers {
    /// The packed row.
    pub tokens: Tokens,
    /// The answers in it.
    pub spans: AnswerSpans,
}

impl PackedAnswers {
    /// Packs sequences whose answers are marked as supervised.
    pub fn pack(sequences: &[Example], device: Device) -> Self {
        let ids: Vec<&[u32]> = sequences.iter().map(|e| e.ids.as_slice()).collect();
        let (tokens, spans) = TargetTokens::pack(&ids, |i, t| sequences[i].supervised[t], device);
        Self { tokens, spans: spans.into() }
    }

    /// Packs pairs in the order chosen, rejected, chosen, rejected, ….
    pub fn pack_pairs(pairs: &[PairExample], device: Device) -> Self {
        Self::pack(&sequences(pairs), device)
    }

    /// Returns the number of tokens of both answers of each pair, at least 1.
    pub fn lengths(&self) -> PairStatistics {
        PairStatistics::of(&self.spans.lengths())
    }
}

/// Returns the sequences of all pairs, in each pair the chosen one before the rejected one.
pub fn sequences(pairs: &[PairExample]) -> Vec<Example> {
    pairs.iter().flat_map(PairExample::sequences).collect()
}

/// The tokens to be scored: one span for each of S sequences, N tokens in all.
pub struct AnswerSpans {
    /// (N) rows of the trunk's output that predict these tokens, span after span.
    at: Tensor,
    /// (N) the tokens.
    targets: Tensor,
    /// Number of tokens in each sequence's span.
    counts: Vec<i64>,
    /// (S) the same, int64 on the device.
    counts_on_device: Tensor,
}

/// Per-sequence results of scoring a packed row.
pub struct AnswerScores {
    /// (S) log-probability of each span, summed over its tokens; float64, differentiable.
    pub log_probs: Tensor,
    /// (S) how many tokens of each span were the model's most likely token; float64.
    pub hits: Tensor,
}

impl AnswerSpans {
    /// Selects the tokens for which `wanted(sequence index, sequence, token index)` is true. The first token of a
    /// sequence is never selected: nothing precedes it that could predict it.
    pub fn of(sequences: &[Example], wanted: impl Fn(usize, &Example, usize) -> bool, device: Device) -> Self {
        let ids = sequences.iter().map(|e| e.ids.as_slice());
        TargetTokens::select(ids, |i, t| wanted(i, &sequences[i], t), device).into()
    }

    /// Returns the number of tokens of each span: (S) float64.
    pub fn counts(&self) -> Tensor {
        self.counts_on_device.to_kind(Kind::Double)
    }

    /// Returns the number of tokens of each span, at least 1 so that a mean can divide by it: (S) float64.
    pub fn lengths(&self) -> Tensor {
        self.counts().clamp_min(1.0)
    }

    /// Computes the log-probability of each span. Sums are float64, so that the difference of two large sums is exact.
    pub fn scores(&self, out: &Output) -> AnswerScores {
        if self.at.size()[0] == 0 {
            let none = self.counts(); // all zero
            return AnswerScores { log_probs: none.copy(), hits: none };
        }
        let scores = out.log_probs(&self.at, &self.targets);
        AnswerScores { log_probs: self.sums(&scores.log_probs), hits: self.sums(&scores.hits) }
    }

    /// Sums numbers of tokens (N) over each span: (S) float64. On a GPU one operation does it for all spans.
    fn sums(&self, t: &Tensor) -> Tensor {
        let t = t.to_kind(Kind::Double);
        if t.device().is_cuda() {
            let none = None::<&Tensor>;
            return Tensor::segment_reduce(&t, "sum", Some(&self.counts_on_device), none, none, 0, true, 0.0);
        }
        let parts = t.split_with_sizes(&self.counts, 0);
        Tensor::stack(&parts.iter().map(|part| part.sum(Kind::Double)).collect::<Vec<_>>(), 0)
    }
}

impl From<TargetTokens> for AnswerSpans {
    fn from(TargetTokens { at, targets, counts, counts_on_device, .. }: TargetTokens) -> Self {
        Self { at, targets, counts, counts_on_device }
    }
}

/// One number (a log-probability, a length) for both answers of P pairs.
pub struct PairStatistics {
    /// (P)
    pub chosen: Tensor,
    /// (P)
    pub rejected: Tensor,
}

impl PairStatistics {
    /// Splits one number per sequence (2P), in the order of [`PackedAnswers::pack_pairs`], into chosen and rejected.
    pub fn of(numbers: &Tensor) -> Self {
        let pairs = numbers.view([-1, 2]);
        Self { chosen: pairs.select(1, 0), rejected: pairs.select(1, 1) }
    }

    /// Applies `f` to both numbers.
    pub fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        Self { chosen: f(&self.chosen), rejected: f(&self.rejected) }
    }

    /// Combines the chosen numbers of both arguments, and the rejected ones, by `f`.
    pub fn zip_with(&self, other: &Self, f: impl Fn(&Tensor, &Tensor) -> Tensor) -> Self {
        Self { chosen: f(&self.chosen, &other.chosen), rejected: f(&self.rejected, &other.rejected) }
    }

    /// Returns chosen minus rejected: (P).
    pub fn difference(&self) -> Tensor {
        &self.chosen - &self.rejected
    }
}

/// Returns an error if truncation to `batch.max_len` made the two answers of a pair identical: such a pair teaches
/// nothing, and its loss would stay at ln 2 = 0.693. (Pairs that are identical as written are refused when they are
/// read.)
pub fn refuse_identical_answers(rows: &Dataset<PairExample>) -> Result<()> {
    if rows.summary.truncated == 0 {
        return Ok(());
    }
    for (i, pair) in rows.iter().enumerate() {
        let pair = pair?;
        if pair.chosen == pair.rejected {
            let (file, line) = rows.location(i);
            return Err(Error::user(format!(
                "{}:{line}: truncated to batch.max_len, `chosen` and `rejected` are the same {} tokens",
                file.display(),
                pair.prompt.len() + pair.chosen.len()
            ))
            .hint("raise batch.max_len, or drop such pairs with data.on_overflow: drop"));
        }
    }
    Ok(())
}

/// Adds the metrics that TRL logs for pairs: `rewards/*` (`rewards`: what the loss compares, before any margin) and
/// `logps/*`.
pub fn add_preference_metrics(metrics: &mut Metrics, rewards: &PairStatistics, log_probs: &PairStatistics) {
    let pairs = rewards.chosen.size()[0] as f64;
    let margins = rewards.difference();
    let mut mean = |name, t: &Tensor| metrics.add(name, &t.detach().sum(Kind::Double), pairs);
    mean("rewards/chosen", &rewards.chosen);
    mean("rewards/rejected", &rewards.rejected);
    mean("rewards/accuracies", &margins.gt(0.0).to_kind(Kind::Double));
    mean("rewards/margins", &margins);
    mean("logps/chosen", &log_probs.chosen);
    mean("logps/rejected", &log_probs.rejected);
}

/// Adds the share of the chosen answers' tokens that were the model's most likely token.
pub fn add_chosen(metrics: &mut Metrics, scores: &AnswerScores, spans: &AnswerSpans) {
    let tokens: i64 = spans.counts.iter().step_by(2).sum();
    metrics.add("mean_token_accuracy", &PairStatistics::of(&scores.hits).chosen.sum(Kind::Double), tokens as f64);
}
