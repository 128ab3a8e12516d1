//! TIES (Yadav et al. 2023, arXiv 2306.01708): for every entry a sign is elected, and the changes with that sign are
//! averaged. Trimming, its first step, is [`keep_largest`](super::prune::keep_largest).

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// How the sign of an entry is elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MajoritySign {
    /// The sign of the sum of the changes, as in the paper.
    #[default]
    Total,
    /// The sign that more of the changes have.
    Frequency,
}

impl MajoritySign {
    /// The names of the choices.
    pub const NAMES: [&'static str; 2] = ["total", "frequency"];

    /// Returns the choice of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "total" => Some(Self::Total),
            "frequency" => Some(Self::Frequency),
            _ => None,
        }
    }
}

/// Elects the sign of every entry: 1 or -1 in the shape of the changes; 1 for a draw.
pub fn elected_sign(changes: &[Tensor], by: MajoritySign) -> Tensor {
    let vote = |change: &Tensor| match by {
        MajoritySign::Total => change.shallow_clone(),
        MajoritySign::Frequency => change.sign(),
    };
    let mut sum = vote(&changes[0]).copy();
    changes[1..].iter().for_each(|change| sum += vote(change));
    sum.ge(0.0).to_kind(Kind::Float) * 2.0 - 1.0
}

/// Returns, for every entry, the weighted changes that have the elected sign, added up and divided by their number; zero if
/// no change has it (section 4, "disjoint merge"; with weights as in PEFT).
pub fn agreeing_mean(changes: &[Tensor], weights: &[f64], sign: &Tensor) -> Tensor {
    let mut sum = changes[0].zeros_like();
    let mut count = changes[0].zeros_like();
    for (change, weight) in changes.iter().zip(weights) {
        let agrees = change.sign().eq_tensor(sign);
        sum += change * *weight * &agrees;
        count += agrees.to_kind(Kind::Float);
    }
    sum / count.clamp_min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_elected_and_the_agreeing_changes_averaged() {
        let changes =
            [[1f32, -4.0, 0.0, 3.0], [2.0, 1.0, 0.0, -3.0], [-1.0, 1.0, 0.0, 0.0]].map(|c| Tensor::from_slice(&c));
        let numbers = |t: Tensor| Vec::<f32>::try_from(t).unwrap();
        let total = elected_sign(&changes, MajoritySign::Total);
        assert_eq!(numbers(total.shallow_clone()), [1.0, -1.0, 1.0, 1.0]);
        assert_eq!(numbers(elected_sign(&changes, MajoritySign::Frequency)), [1.0, 1.0, 1.0, 1.0]);
        assert_eq!(numbers(agreeing_mean(&changes, &[1.0, 1.0, 1.0], &total)), [1.5, -4.0, 0.0, 3.0]);
        assert_eq!(numbers(agreeing_mean(&changes, &[2.0, 0.5, 1.0], &total)), [1.5, -8.0, 0.0, 6.0]);
    }
}
