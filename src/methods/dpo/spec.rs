//! What a recipe says about direct preference optimisation.

use crate::methods::reference::ReferenceChoice;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Direct preference optimisation (arXiv 2305.18290).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DpoSpec {
    /// How much the distance from the reference weighs: the larger, the closer the model stays to it. For `ipo` it is the paper's tau; for `sigmoid_norm`, which compares means over tokens, 2 and more are usual.
    #[schemars(range(min = 0.000001, max = 100.0))]
    pub beta: f64,
    /// What is made of the difference between the two answers.
    pub loss: DpoLoss,
    /// The chance that a pair is the wrong way round, for `sigmoid`, `robust` and `exo`; left out, 0 for `sigmoid`, 0.1 for `robust`, 0.001 for `exo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 0.499))]
    pub label_smoothing: Option<f64>,
    /// Weight of the cross-entropy of the chosen answer beside the loss; keeps its probability from falling.
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
    /// The smoothing that counts.
    pub fn smoothing(&self) -> f64 {
        self.label_smoothing.unwrap_or(match self.loss {
            DpoLoss::Robust => 0.1,
            DpoLoss::Exo => 1e-3,
            _ => 0.0,
        })
    }
}

/// Losses of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DpoLoss {
    /// The loss of the DPO paper; with `label_smoothing`, conservative DPO.
    #[default]
    Sigmoid,
    /// The same of means over tokens: long answers weigh no more than short ones.
    SigmoidNorm,
    /// IPO (arXiv 2310.12036): the difference should reach a set size, not grow without end.
    Ipo,
    /// Hinge, as SLiC has it (arXiv 2305.10425): nothing more to learn from a pair that is far enough apart.
    Hinge,
    /// Robust DPO (arXiv 2403.00409): unbiased where some pairs are the wrong way round.
    Robust,
    /// EXO (arXiv 2402.00856): the KL divergence the other way round.
    Exo,
}
