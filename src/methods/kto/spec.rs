//! The recipe's section for KTO.

use crate::methods::reference::ReferenceChoice;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kahneman-Tversky optimisation (arXiv 2402.01306): trains on answers labelled good or bad, one by one; pairs are
/// split into two such answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KtoSpec {
    /// How strongly the distance from the reference is weighted: the larger, the closer the model stays to it.
    #[schemars(range(min = 0.000001, max = 100.0))]
    pub beta: f64,
    /// How the loss of one answer is computed.
    pub loss: KtoLoss,
    /// Weight of the loss of good answers. This weight times the number of good answers should be 1 to 1.33 times the
    /// same product of the bad ones.
    #[schemars(range(min = 0.0))]
    pub desirable_weight: f64,
    /// Weight of the loss of bad answers.
    #[schemars(range(min = 0.0))]
    pub undesirable_weight: f64,
    /// Where the reference's log-probabilities come from.
    pub reference: ReferenceChoice,
}

impl Default for KtoSpec {
    fn default() -> Self {
        Self {
            beta: 0.1,
            loss: KtoLoss::Kto,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            reference: ReferenceChoice::default(),
        }
    }
}

impl KtoSpec {
    /// Returns advice if the weights do not balance the numbers of good and bad answers: weight times number of the
    /// good ones should be 1 to 4/3 times that of the bad ones (the paper's eq. 8).
    pub fn weight_advice(&self, good: usize, bad: usize) -> Option<String> {
        let (desirable, undesirable) = (self.desirable_weight * good as f64, self.undesirable_weight * bad as f64);
        let ratio = desirable / undesirable;
        if good == 0 || bad == 0 {
            let missing = if good == 0 { "good" } else { "bad" };
            return Some(format!(
                "no answer of the training rows is {missing}: KTO needs both kinds to learn the difference"
            ));
        }
        // Unequal weights or numbers within the recommended range need no advice; neither do equal numbers, which come
        // from pairs.
        if good == bad || (0.99..=1.34).contains(&ratio) {
            return None;
        }
        let wanted = if good > bad {
            format!("undesirable_weight: {:.2}", desirable / bad as f64)
        } else {
            format!("desirable_weight: {:.2}", undesirable / good as f64)
        };
        Some(format!(
            "{good} good and {bad} bad answers have total weights of {ratio:.2} to 1, but 1 to 1.33 are recommended; \
             method.kto.{wanted} balances them"
        ))
    }
}

/// The loss of a labelled answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KtoLoss {
    /// The loss of the KTO paper: an answer is compared with the average distance from the reference.
    #[default]
    Kto,
    /// The unpaired form of APO-zero (arXiv 2408.06266): the reference point is zero and needs no estimate.
    ApoZero,
}
