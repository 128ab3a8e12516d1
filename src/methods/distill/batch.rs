//! A packed row with the teacher's distributions, and its loss.

use super::cache::{self, TopTokens};
use super::divergence::divergence;
use super::matching::{LayerMatching, TeacherLayers};
use super::spec::DistillSpec;
use super::teacher::TeacherOutputs;
use crate::methods::MicroBatch;
use crate::methods::sft::SupervisedBatch;
use crate::models::{Loss, Metrics, Output};
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
    pub divergence: Tensor,
    pub cross_entropy: Tensor,
}

impl TokenWeights {
    /// Computes the weights for examples, each given as its share of cross-entropy and its number of supervised
    /// tokens. The divergence counts only where `there` (N) is 1.
    pub fn new(examples: impl Iterator<Item = (f64, usize)>, there: Option<Tensor>, device: Device) -> Self {
        let shares: Vec<f32> = examples.flat_map(|(share, n)| std::iter::repeat_n(share as f32, n)).collect();
        let cross_entropy = Tensor::from_slice(&shares).to_device(device);
        let divergence: Tensor = 1.0 - &cross_entropy;
        Self {
            divergence: there.map_or_else(|| divergence.shallow_clone(), |there| &divergence * there),
            cross_entropy,
        }
    }
}

/// A packed row with the teachers' distributions.
pub struct DistillBatch {
    pub answers: SupervisedBatch,
    pub source: Rc<TeacherDistributions>,
    pub weights: Rc<TokenWeights>,
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
        let (spec, source, weights, vocabulary) =
            (self.spec.clone(), self.source.clone(), self.weights.clone(), self.vocabulary);
        let targets = self.answers.targets.shallow_clone();
        let chunked::ChunkedSum { total, rows } = chunked::sum_over_logits(out.head(), &h, move |logits, rows| {
            let logits = logits.narrow(-1, 0, vocabulary);
            let part = |t: &Tensor| t.narrow(0, rows.0, rows.1);
            let target = part(&targets);
            let plain = tempered_log_softmax(&logits, 1.0);
            let student = if spec.temperature == 1.0 {
                plain.shallow_clone()
            } else {
                tempered_log_softmax(&logits, spec.temperature)
            };
            let (teacher, student, best) = source.outcomes(student, rows, spec.temperature);
            let apart = divergence(&spec.loss, &teacher, &student);
            let entropy = -plain.gather(-1, &target.unsqueeze(-1), false).squeeze_dim(-1);
            let own = logits.argmax(-1, false);
            let same = |other: &Tensor| own.eq_tensor(other).to_kind(Kind::Float);
            let loss = &apart * part(&weights.divergence) * (spec.temperature * spec.temperature)
                + &entropy * part(&weights.cross_entropy);
            [loss, apart, entropy, same(&target), same(&best)]
        });
        let mut metrics = Metrics::default();
        let names = ["divergence", "cross_entropy", "accuracy", "teacher_agreement"];
        // Most likely tokens of different vocabularies cannot be compared.
        let told = if self.spec.universal() { 3 } else { 4 };
        for (name, numbers) in names.into_iter().zip(&rows[1..]).take(told) {
            metrics.add(name, &numbers.sum(Kind::Float), self.items());
        }
        let mut sum = total;
        if let Some((matching, shown)) = &self.matching {
            for (name, part) in matching.losses(out, shown, &self.answers) {
                metrics.add(name, &part, self.items());
                sum = &sum + part;
            }
        }
        if let Some(written) = self.written {
            metrics.add("on_policy", &Tensor::from(written), self.items());
        }
        metrics.add("loss", &sum, self.items());
        Loss { sum, metrics }
    }
}

impl TeacherDistributions {
    /// Returns log-probabilities of teacher and student over the same outcomes, and the teacher's most likely token.
    /// The outcomes are all tokens, or the stored tokens and one outcome for all others together. `student` (n, V)
    /// covers all tokens.
    fn outcomes(&self, student: Tensor, rows: RowRange, temperature: f64) -> (Tensor, Tensor, Tensor) {
        match self {
            Self::Online(teaching) => {
                let teacher = teaching.log_probs(rows, temperature);
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
