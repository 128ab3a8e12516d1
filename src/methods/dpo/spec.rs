//! The recipe's section for direct preference optimisation.

use crate::methods::reference::ReferenceChoice;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Direct preference optimisation (arXiv 2305.18290).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DpoSpec {
    /// How strongly the distance from the reference is weighted: the larger, the closer the model stays to it. For
    /// `ipo` it is the paper's tau; for `sigmoid_norm`, which compares means over tokens, 2 and more are usual.
    #[schemars(range(min = 0.000001, max = 100.0))]
    pub beta: f64,
    /// How the loss follows from the difference between the two answers.
    pub loss: DpoLoss,
    /// The probability that a pair's labels are swapped, for `sigmoid`, `robust` and `exo`; default: 0 for `sigmoid`,
    /// 0.1 for `robust`, 0.001 for `exo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 0.499))]
    pub label_smoothing: Option<f64>,
    /// Weight of the chosen answer's cross-entropy, added to the loss; keeps its probability from falling.
    #[schemars(range(min = 0.0))]
    pub nll: f64,
    /// Where the reference's log-probabilities come from.
    pub reference: ReferenceChoice,
}

impl Default for DpoSpec {
    fn default() -> Self {
        Self {
            beta: 0.1,
            loss: DpoLoss::Sigmoid,
            label_smoothing: None,
            nll: 0.0,
            reference: ReferenceChoice::default(),
        }
    }
}

impl DpoSpec {
    /// Returns the label smoothing, with the loss's default filled in.
    pub fn smoothing(&self) -> f64 {
        self.label_smoothing.unwrap_or(match self.loss {
            DpoLoss::Robust => 0.1,
            DpoLoss::Exo => 1e-3,
            _ => 0.0,
        })
    }
}

/// The loss of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DpoLoss {
    /// The loss of the DPO paper; with `label_smoothing`, conservative DPO.
    #[default]
    Sigmoid,
    /// The same with means over tokens: long answers weigh no more than short ones.
    SigmoidNorm,
    /// IPO (arXiv 2310.12036): the difference should reach a fixed size, not grow without bound.
    Ipo,
    /// Hinge loss, as in SLiC (arXiv 2305.10425): a pair whose answers differ enough adds no gradient.
    Hinge,
    /// Robust DPO (arXiv 2403.00409): unbiased if some pairs' labels are swapped.
    Robust,
    /// EXO (arXiv 2402.00856): the KL divergence in the reverse direction.
    Exo,
}
