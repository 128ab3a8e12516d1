//! A packed row with the teacher's distributions, and its loss.

use super::cache::{self, TopTokens};
use super::divergence::divergence;
use super::matching::{LayerMatching, TeacherLayers};
use super::spec::DistillSpec;
use super::teacher::TeacherOutputs;
use crate::methods::sft::SupervisedBatch;
use crate::models::learning::MicroBatch;
use crate::models::{Loss, Metrics, Output};
use crate::native::upload_slice;
use crate::nn::Tokens;
use crate::nn::chunked::{self, RowRange};
use crate::nn::head::tempered_log_softmax;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// The teacher's distributions for the tokens of a row.
pub enum TeacherDistributions {
    /// Computed during training, over all tokens.
    Online(TeacherOutputs),
    /// Read from a cache: the most likely tokens, and the probability of all others.
    Stored(TopTokens),
}

/// Weights of the N supervised tokens: (N) float32 each.
pub struct TokenWeights {
    /// Weight of the divergence from the teacher.
    pub divergence: Tensor,
    /// Weight of the cross-entropy.
    pub cross_entropy: Tensor,
}

impl TokenWeights {
    /// Computes the weights for examples, each given as its share of cross-entropy and its number of supervised
    /// tokens. The divergence counts only where `mask` (N) is 1.
    pub fn new(examples: impl Iterator<Item = (f64, usize)>, mask: Option<Tensor>, device: Device) -> Self {
        let shares: Vec<f32> = examples.flat_map(|(share, n)| std::iter::repeat_n(share as f32, n)).collect();
        let cross_entropy = upload_slice(&shares, device);
        let divergence: Tensor = 1.0 - &cross_entropy;
        Self { divergence: mask.map_or_else(|| divergence.shallow_clone(), |mask| &divergence * mask), cross_entropy }
    }
}

/// A packed row with the teachers' distributions.
pub struct DistillBatch {
    /// The packed row and its supervised tokens.
    pub answers: SupervisedBatch,
    /// The teacher's distributions for these tokens.
    pub source: Rc<TeacherDistributions>,
    /// What each token counts.
    pub weights: Rc<TokenWeights>,
    /// The recipe's section.
    pub spec: Rc<DistillSpec>,
    /// Number of tokens that teacher and student share.
    pub vocabulary: i64,
    /// Matched layers, and the states of the teacher's layers.
    pub matching: Option<(Rc<LayerMatching>, TeacherLayers)>,
    /// How many of the supervised tokens the student wrote itself; `None` if it writes none.
    pub written: Option<f64>,
}

impl MicroBatch for DistillBatch {
    fn tokens(&self) -> &Tokens {
        &self.answers.tokens
    }

    fn items(&self) -> f64 {
        self.answers.target_count()
    }

    fn loss(&self, out: &Output) -> Loss {
        let h = out.hidden.index_select(0, &self.answers.at);
        let tokens = TokenLosses {
            spec: self.spec.clone(),
            source: self.source.clone(),
            weights: self.weights.clone(),
            targets: self.answers.targets.shallow_clone(),
            vocabulary: self.vocabulary,
        };
        let sums = chunked::sum_over_logits(out.head(), &h, move |logits, rows| tokens.of_rows(logits, rows));
        let chunked::ChunkedSum { total, rows } = sums;
        let mut metrics = Metrics::default();
        let names = ["divergence", "cross_entropy", "accuracy", "teacher_agreement"];
        // Most likely tokens of different vocabularies cannot be compared.
        let shown = if self.spec.universal() { 3 } else { 4 };
        for (name, numbers) in names.into_iter().zip(&rows[1..]).take(shown) {
            metrics.add(name, &numbers.sum(Kind::Float), self.items());
        }
        let mut sum = total;
        if let Some((matching, layers)) = &self.matching {
            for (name, part) in matching.losses(out, layers, &self.answers) {
                metrics.add(name, &part, self.items());
                sum = &sum + part;
            }
        }
        if let Some(written) = self.written {
            metrics.add("on_policy", &sum.full_like(written), self.items());
        }
        metrics.add("loss", &sum, self.items());
        Loss { sum, metrics }
    }
}

/// What the loss of a token depends on besides the student's logits.
struct TokenLosses {
    spec: Rc<DistillSpec>,
    source: Rc<TeacherDistributions>,
    weights: Rc<TokenWeights>,
    /// (N)
    targets: Tensor,
    vocabulary: i64,
}

impl TokenLosses {
    /// Computes numbers of some of the N tokens from the student's logits (n, V), each (n): the loss, the divergence
    /// from the teacher, the cross-entropy, and whether the most likely token is the row's own, and the teacher's.
    fn of_rows(&self, logits: &Tensor, rows: RowRange) -> [Tensor; 5] {
        let temperature = self.spec.temperature;
        let part = |t: &Tensor| t.narrow(0, rows.0, rows.1);
        let logits = logits.narrow(-1, 0, self.vocabulary);
        let target = part(&self.targets);
        let plain = tempered_log_softmax(&logits, 1.0);
        let student = match temperature {
            1.0 => plain.shallow_clone(),
            _ => tempered_log_softmax(&logits, temperature),
        };
        let (teacher, student, best) = self.source.outcomes(student, rows, temperature);
        let apart = divergence(&self.spec.loss, &teacher, &student);
        let entropy = -plain.gather(-1, &target.unsqueeze(-1), false).squeeze_dim(-1);
        let loss = &apart * part(&self.weights.divergence) * (temperature * temperature)
            + &entropy * part(&self.weights.cross_entropy);
        let own = logits.argmax(-1, false);
        let same = |other: &Tensor| own.eq_tensor(other).to_kind(Kind::Float);
        [loss, apart, entropy, same(&target), same(&best)]
    }
}

impl TeacherDistributions {
    /// Returns log-probabilities of teacher and student over the same outcomes, and the teacher's most likely token.
    /// The outcomes are all tokens, or the stored tokens and one outcome for all others together. `student` (n, V)
    /// covers all tokens.
    fn outcomes(&self, student: Tensor, rows: RowRange, temperature: f64) -> (Tensor, Tensor, Tensor) {
        match self {
            Self::Online(outputs) => {
                let teacher = outputs.log_probs(rows, temperature);
                let best = teacher.argmax(-1, false);
                (teacher, student, best)
            }
            Self::Stored(stored) => {
                let part = |t: &Tensor| t.narrow(0, rows.0, rows.1);
                let (ids, teacher) = (part(&stored.ids), part(&stored.log_probs));
                let best = ids.select(-1, 0);
                let student = student.gather(-1, &ids, false);
                let Some(tail) = &stored.tail else { return (teacher, student, best) };
                let others = cache::log_remainder(&student).unsqueeze(-1);
                let teacher = Tensor::cat(&[teacher, part(tail).unsqueeze(-1)], -1);
                (teacher, Tensor::cat(&[student, others], -1), best)
            }
        }
    }
}
