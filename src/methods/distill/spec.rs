//! What a recipe says about distillation.

use crate::data::Supervise;
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
    /// Which tokens are learnt.
    #[serde(default)]
    pub supervise: Supervise,
}

/// A model to learn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TeacherSpec {
    /// A Hugging Face model directory with the student's tokenizer.
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// An adapter on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub adapter: Option<PathBuf>,
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

fn one() -> f64 {
    1.0
}
