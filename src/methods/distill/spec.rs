//! The recipe's section for distillation.

use crate::data::encode::Supervise;
use crate::models::Dtype;
use crate::rewards::spec::RewardSourceSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Distillation: the student is trained on the teacher's distributions over the supervised tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DistillSpec {
    /// The teacher models. If there are several, the weighted mean of their distributions is the target.
    #[schemars(length(min = 1))]
    pub teachers: Vec<TeacherSpec>,
    /// A folder of teacher distributions that `ft teach RECIPE` has filled; default: teachers run during training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub cache: Option<PathBuf>,
    /// How the distance between student and teacher is measured.
    #[serde(default, with = "crate::choice")]
    #[schemars(with = "Divergence")]
    pub loss: Divergence,
    /// Temperature: the logits of both models are divided by it; the loss is multiplied by its square, so that
    /// gradients keep their size (Hinton et al. 2015, arXiv 1503.02531).
    #[serde(default = "one")]
    #[schemars(range(min = 0.01))]
    pub temperature: f64,
    /// The share of cross-entropy on the rows' own tokens; the rest is the divergence.
    #[serde(default)]
    pub cross_entropy: CrossEntropyShare,
    /// Losses between layers of the student and layers of the teacher, in addition to the distributions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#match: Option<MatchSpec>,
    /// Rows whose answers the student writes itself; the teacher then judges these answers token by token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_policy: Option<OnPolicySpec>,
    /// How the teacher generates answers for `ft teach --generate`; training does not use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generate: Option<GenerateSpec>,
    /// Which tokens are trained on.
    #[serde(default)]
    pub supervise: Supervise,
}

/// A teacher model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TeacherSpec {
    /// A Hugging Face model directory with the student's tokenizer (any tokenizer with `loss: { universal: {} }`).
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// An adapter on this model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub adapter: Option<PathBuf>,
    /// The number format that it computes in; default: the student's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Its weight in the mean of several teachers.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    pub weight: f64,
}

/// The share of cross-entropy in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CrossEntropyShare {
    /// The share at the beginning.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub from: f64,
    /// The share after `epochs`, and from then on; default: as at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub to: Option<f64>,
    /// The number of epochs in which the share changes linearly from `from` to `to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub epochs: Option<f64>,
}

impl CrossEntropyShare {
    /// Returns the share after `epoch` epochs.
    pub fn at(self, epoch: f64) -> f64 {
        let Some(to) = self.to else { return self.from };
        let done = (epoch / self.epochs.unwrap_or(1.0).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        self.from + (to - self.from) * done
    }
}

/// The divergence of the student's distribution q from the teacher's p.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// KL(p, q): the student covers everything the teacher might say.
    ForwardKl(NoSettings),
    /// KL(q, p): the student says nothing the teacher would not say (MiniLLM, Gu et al. 2023, arXiv 2306.08543).
    ReverseKl(NoSettings),
    /// Generalised Jensen-Shannon (GKD, Agarwal et al. 2023, arXiv 2306.13649).
    Jsd(JsdSpec),
    /// Skewed KL(p, a p + (1 - a) q) (DistiLLM, Ko et al. 2024, arXiv 2402.03898).
    SkewedKl(SkewSpec),
    /// Skewed KL(q, (1 - a) p + a q), from the same paper.
    SkewedReverseKl(SkewSpec),
    /// Total variation, half the sum of |p - q| (Wen et al. 2023, arXiv 2307.15190).
    TotalVariation(NoSettings),
    /// Universal logit distillation (Boizard et al. 2024, arXiv 2402.12030): the sum of differences of sorted
    /// probabilities, for a teacher with another tokenizer. Answers are compared token by token from their beginning.
    Universal(NoSettings),
}

impl Default for Divergence {
    fn default() -> Self {
        Self::ForwardKl(NoSettings {})
    }
}

/// No settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Generalised Jensen-Shannon.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JsdSpec {
    /// The teacher's share of the mixture: near 0 it behaves like forward KL, near 1 like reverse KL.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta: f64,
}

impl Default for JsdSpec {
    fn default() -> Self {
        Self { beta: 0.5 }
    }
}

/// Skewed KL.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SkewSpec {
    /// How much of the first distribution is mixed into the second.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub alpha: f64,
}

impl Default for SkewSpec {
    fn default() -> Self {
        Self { alpha: 0.1 }
    }
}

/// Pairs of layers whose states are trained to agree. Projections from the student's sizes to the teacher's are
/// trained together with the student; they are no part of the result.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchSpec {
    /// Hidden states of layers, at the positions that predict a supervised token (TinyBERT, Jiao et al. 2019, arXiv
    /// 1909.10351).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<HiddenMatch>,
    /// Attention probabilities at the same positions, head by head: squared differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionMatch>,
}

/// Matching of hidden states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HiddenMatch {
    /// Pairs of a student's layer and a teacher's, counted from 0; default: each layer of the student with one of the
    /// teacher's, evenly spaced, the last with the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<[usize; 2]>,
    /// The distance between two vectors.
    #[serde(default)]
    pub distance: StateDistance,
    /// Weight of the mean over pairs and tokens.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    pub weight: f64,
}

/// The distance between two vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateDistance {
    /// The mean of squared differences.
    #[default]
    Mse,
    /// 1 minus the cosine of the angle between them.
    Cosine,
}

/// Matching of attention maps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionMatch {
    /// Pairs of a student's layer and a teacher's, as those of `hidden`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<[usize; 2]>,
    /// Weight of the mean over pairs, heads and tokens.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    pub weight: f64,
}

/// Answers that the student writes (GKD, Agarwal et al. 2023, arXiv 2306.13649, algorithm 1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OnPolicySpec {
    /// The share of rows whose last answer the student writes anew, chosen at random for each row; the paper's lambda.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub share: f64,
    /// Maximum length of an answer in tokens.
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
    /// Sampling temperature; 0: greedy decoding.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
}

impl Default for OnPolicySpec {
    fn default() -> Self {
        Self { share: 0.5, max_new_tokens: 128, temperature: 1.0 }
    }
}

/// Answers that the teacher generates (sequence-level distillation, Kim and Rush 2016, arXiv 1606.07947).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateSpec {
    /// Answers to each prompt, of which the one with the highest reward is kept.
    #[schemars(range(min = 1))]
    pub answers: usize,
    /// Maximum length of an answer in tokens; one that does not end within it is discarded.
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
    /// Sampling temperature; 0: greedy decoding.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Texts that end an answer and are no part of it, in addition to the model's stop tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Sources of rewards for the answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rewards: Vec<RewardSourceSpec>,
    /// Answers with a lower reward are discarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least: Option<f64>,
}

impl Default for GenerateSpec {
    fn default() -> Self {
        Self { answers: 1, max_new_tokens: 256, temperature: 1.0, stop: Vec::new(), rewards: Vec::new(), least: None }
    }
}

impl DistillSpec {
    /// Returns true if teachers may have another tokenizer.
    pub fn universal(&self) -> bool {
        matches!(self.loss, Divergence::Universal(_))
    }
}

fn one() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::CrossEntropyShare;

    #[test]
    fn the_share_changes_linearly_and_then_stays() {
        let moving = CrossEntropyShare { from: 0.5, to: Some(0.1), epochs: Some(2.0) };
        for (epoch, share) in [(0.0, 0.5), (0.5, 0.4), (1.0, 0.3), (2.0, 0.1), (7.0, 0.1)] {
            assert!((moving.at(epoch) - share).abs() < 1e-12, "{epoch}");
        }
        assert_eq!(CrossEntropyShare { from: 0.2, to: None, epochs: None }.at(3.0), 0.2);
        assert_eq!(CrossEntropyShare { from: 0.2, to: Some(0.8), epochs: Some(0.0) }.at(0.0), 0.2);
        assert_eq!(CrossEntropyShare { from: 0.2, to: Some(0.8), epochs: Some(0.0) }.at(0.1), 0.8);
    }
}
