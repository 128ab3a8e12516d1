//! What a recipe says about distillation.

use crate::data::Supervise;
use crate::models::Dtype;
use crate::rewards::RewardSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Distillation: the student learns the teacher's distributions on the supervised tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DistillSpec {
    /// The models to learn from. Of several, the weighted mean of their distributions is learnt.
    #[schemars(length(min = 1))]
    pub teachers: Vec<TeacherSpec>,
    /// A folder of teacher distributions that `ft teach RECIPE` has filled; left out, teachers run beside the student.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub cache: Option<PathBuf>,
    /// How far the student is from the teacher.
    #[serde(default, with = "crate::choice")]
    #[schemars(with = "Divergence")]
    pub loss: Divergence,
    /// Both distributions are those of logits divided by it; the loss is multiplied by its square, so that gradients
    /// keep their size (Hinton et al. 2015, arXiv 1503.02531).
    #[serde(default = "one")]
    #[schemars(range(min = 0.01))]
    pub temperature: f64,
    /// The share of cross-entropy on the rows' own tokens; the rest is the divergence.
    #[serde(default)]
    pub cross_entropy: Share,
    /// What layers of the student learn from layers of the teacher, beside the distributions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#match: Option<MatchSpec>,
    /// Rows whose answers the student writes itself, for the teacher to judge token by token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_policy: Option<OnPolicySpec>,
    /// How the teacher writes answers of its own for `ft teach --generate`; training does not read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generate: Option<GenerateSpec>,
    /// Which tokens are learnt.
    #[serde(default)]
    pub supervise: Supervise,
}

/// A model to learn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TeacherSpec {
    /// A Hugging Face model directory with the student's tokenizer (any tokenizer with `loss: { universal: {} }`).
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// An adapter on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub adapter: Option<PathBuf>,
    /// The number format that it computes in; left out, the student's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Its weight in the mean of several.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    pub weight: f64,
}

/// The share of cross-entropy in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Share {
    /// At the beginning.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub from: f64,
    /// After `epochs`, and from then on; left out, as at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub to: Option<f64>,
    /// The epochs in which the share moves, evenly.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub epochs: Option<f64>,
}

impl Share {
    /// The share when so many epochs are done.
    pub fn at(self, epoch: f64) -> f64 {
        let Some(to) = self.to else { return self.from };
        let done = (epoch / self.epochs.unwrap_or(1.0).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        self.from + (to - self.from) * done
    }
}

/// How far the student's distribution q is from the teacher's p.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// KL(p, q): the student covers all that the teacher would say.
    ForwardKl(Plain),
    /// KL(q, p): the student says nothing that the teacher would not (MiniLLM, Gu et al. 2023, arXiv 2306.08543).
    ReverseKl(Plain),
    /// Generalised Jensen-Shannon (GKD, Agarwal et al. 2023, arXiv 2306.13649).
    Jsd(Jsd),
    /// Skewed KL(p, a p + (1 - a) q) (DistiLLM, Ko et al. 2024, arXiv 2402.03898).
    SkewedKl(Skew),
    /// Skewed KL(q, (1 - a) p + a q), of the same paper.
    SkewedReverseKl(Skew),
    /// Total variation, half the sum of |p - q| (Wen et al. 2023, arXiv 2307.15190).
    TotalVariation(Plain),
    /// Universal logit distillation (Boizard et al. 2024, arXiv 2402.12030): the sum of differences of sorted
    /// probabilities, for a teacher with another tokenizer. Answers are compared token by token from their beginning.
    Universal(Plain),
}

impl Default for Divergence {
    fn default() -> Self {
        Self::ForwardKl(Plain {})
    }
}

/// Nothing to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plain {}

/// Generalised Jensen-Shannon.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Jsd {
    /// The teacher's part of the mixture: near 0 as forward KL, near 1 as reverse KL.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta: f64,
}

impl Default for Jsd {
    fn default() -> Self {
        Self { beta: 0.5 }
    }
}

/// Skewed KL.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Skew {
    /// How much of the first distribution is mixed into the second.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub alpha: f64,
}

impl Default for Skew {
    fn default() -> Self {
        Self { alpha: 0.1 }
    }
}

/// Layers that are drawn together. Projections from the student's sizes to the teacher's are learnt beside the student;
/// they are no part of the result.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchSpec {
    /// What layers give, at the tokens whose next one is learnt (TinyBERT, Jiao et al. 2019, arXiv 1909.10351).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<HiddenMatch>,
    /// What those tokens attend to, head by head: squared differences of the probabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionMatch>,
}

/// Hidden states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HiddenMatch {
    /// Pairs of a student's layer and a teacher's, from 0; left out, each layer of the student with one of the teacher's,
    /// evenly, the last with the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<[usize; 2]>,
    /// How far two vectors are apart.
    #[serde(default)]
    pub distance: Distance,
    /// What the mean over pairs and tokens is multiplied by.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    pub weight: f64,
}

/// How far two vectors are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// The mean of squared differences.
    #[default]
    Mse,
    /// 1 less the cosine of the angle between them.
    Cosine,
}

/// Attention maps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionMatch {
    /// Pairs of a student's layer and a teacher's, as those of `hidden`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<[usize; 2]>,
    /// What the mean over pairs, heads and tokens is multiplied by.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    pub weight: f64,
}

/// Answers that the student writes (GKD, Agarwal et al. 2023, arXiv 2306.13649, algorithm 1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OnPolicySpec {
    /// The share of rows whose last answer the student writes anew, drawn row by row; the paper's lambda.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub share: f64,
    /// The longest answer, in tokens.
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
    /// The temperature that it writes at; 0: the most likely token each time.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
}

impl Default for OnPolicySpec {
    fn default() -> Self {
        Self { share: 0.5, max_new_tokens: 128, temperature: 1.0 }
    }
}

/// Answers that the teacher writes (sequence-level distillation, Kim and Rush 2016, arXiv 1606.07947).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateSpec {
    /// Answers to each prompt, of which the one with the highest reward is kept.
    #[schemars(range(min = 1))]
    pub answers: usize,
    /// The longest answer, in tokens; one that does not end within it is thrown away.
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
    /// The temperature that they are written at; 0: the most likely token each time.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Texts that end an answer and are no part of it, beside the model's stop tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// What answers are worth.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rewards: Vec<RewardSpec>,
    /// An answer that is worth less is thrown away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least: Option<f64>,
}

impl Default for GenerateSpec {
    fn default() -> Self {
        Self { answers: 1, max_new_tokens: 256, temperature: 1.0, stop: Vec::new(), rewards: Vec::new(), least: None }
    }
}

impl DistillSpec {
    /// Teachers may have tokenizers of their own.
    pub fn universal(&self) -> bool {
        matches!(self.loss, Divergence::Universal(_))
    }
}

fn one() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::Share;

    #[test]
    fn the_share_moves_evenly_and_then_stays() {
        let moving = Share { from: 0.5, to: Some(0.1), epochs: Some(2.0) };
        for (epoch, share) in [(0.0, 0.5), (0.5, 0.4), (1.0, 0.3), (2.0, 0.1), (7.0, 0.1)] {
            assert!((moving.at(epoch) - share).abs() < 1e-12, "{epoch}");
        }
        assert_eq!(Share { from: 0.2, to: None, epochs: None }.at(3.0), 0.2);
        assert_eq!(Share { from: 0.2, to: Some(0.8), epochs: Some(0.0) }.at(0.0), 0.2);
        assert_eq!(Share { from: 0.2, to: Some(0.8), epochs: Some(0.0) }.at(0.1), 0.8);
    }
}
