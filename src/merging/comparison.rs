//! How far the changes of one weight agree, and what a merge keeps of them.

use super::delta::Delta;
use super::method::WeightedDelta;
use serde::Serialize;
use tch::Kind;

/// The changes of one weight, compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Frobenius norms of the changes times their weights, by the parts' positions in the merge; 0 for a part that does not
    /// change the weight.
    pub norms: Vec<f64>,
    /// Cosines between the weighted changes: the upper triangle of the table, row by row. `null` where one of them is zero.
    pub cosines: Vec<Option<f64>>,
    /// Of the entries that at least two parts change, the share where their signs differ; `null` if there are none.
    pub sign_conflicts: Option<f64>,
    /// Frobenius norm of the merged change.
    pub merged_norm: f64,
    /// Cosines between the merged change and each weighted change.
    pub with_merged: Vec<Option<f64>>,
}

impl Comparison {
    /// Compares the changes of one weight with each other and with what was `merged` of them; `parts`: the number of parts
    /// in the merge.
    pub fn between(parts: usize, changes: &[WeightedDelta], merged: &Delta) -> Self {
        let merged_norm = merged.norm();
        let mut weighted: Vec<Option<(&Delta, f64, f64)>> = vec![None; parts]; // change, weight, norm
        for change in changes {
            weighted[change.part] = Some((&change.delta, change.weight, change.weight.abs() * change.delta.norm()));
        }
        let cosine =
            |dot: f64, one: f64, two: f64| (one > 0.0 && two > 0.0).then(|| (dot / (one * two)).clamp(-1.0, 1.0));
        let pair = |i: usize, j: usize| {
            let ((one, w1, n1), (two, w2, n2)) = (weighted[i]?, weighted[j]?);
            cosine(w1 * w2 * one.dot(two), n1, n2)
        };
        Self {
            norms: weighted.iter().map(|part| part.map_or(0.0, |(.., norm)| norm)).collect(),
            cosines: pairs(parts).map(|(i, j)| pair(i, j)).collect(),
            sign_conflicts: sign_conflicts(changes),
            merged_norm,
            with_merged: weighted
                .iter()
                .map(|part| {
                    part.and_then(|(delta, weight, norm)| cosine(weight * delta.dot(merged), norm, merged_norm))
                })
                .collect(),
        }
    }
}

/// Returns the pairs of different parts in the order of [`Comparison::cosines`].
pub fn pairs(parts: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..parts).flat_map(move |i| (i + 1..parts).map(move |j| (i, j)))
}

/// Returns, of the entries that at least two changes have, the share where their signs differ.
fn sign_conflicts(changes: &[WeightedDelta]) -> Option<f64> {
    if changes.len() < 2 {
        return None;
    }
    let signs = |c: &WeightedDelta| c.delta.dense().sign() * c.weight.signum();
    let first = signs(&changes[0]);
    let (mut up, mut down) = (first.gt(0.0).to_kind(Kind::Int), first.lt(0.0).to_kind(Kind::Int));
    for change in &changes[1..] {
        let sign = signs(change);
        up += sign.gt(0.0).to_kind(Kind::Int);
        down += sign.lt(0.0).to_kind(Kind::Int);
    }
    let count = |t: tch::Tensor| t.sum(Kind::Int64).int64_value(&[]) as f64;
    let shared = count((&up + &down).ge(2));
    (shared > 0.0).then(|| count(up.gt(0).logical_and(&down.gt(0))) / shared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    #[test]
    fn norms_cosines_and_conflicts_are_those_of_the_weighted_changes() {
        let change = |part, numbers: [f32; 4], weight| WeightedDelta {
            part,
            delta: Delta::Dense(Tensor::from_slice(&numbers).view([2, 2])),
            weight,
            density: 1.0,
        };
        let changes = [change(0, [3.0, 0.0, 4.0, 0.0], 2.0), change(2, [3.0, 1.0, -4.0, 0.0], -1.0)];
        let merged = Delta::Dense(Tensor::from_slice(&[3f32, -1.0, 12.0, 0.0]).view([2, 2]));
        let found = Comparison::between(3, &changes, &merged);
        assert_eq!(found.norms, [10.0, 0.0, 26f64.sqrt()]);
        // Of two shared entries, the first has the signs + and -, the third + and +.
        assert_eq!(found.sign_conflicts, Some(0.5));
        assert_eq!((found.cosines[0], found.cosines[2]), (None, None));
        assert!((found.cosines[1].unwrap() - 14.0 / (10.0 * 26f64.sqrt())).abs() < 1e-9);
        assert!((found.with_merged[0].unwrap() - 114.0 / (10.0 * 154f64.sqrt())).abs() < 1e-9);
        assert_eq!(pairs(3).collect::<Vec<_>>(), [(0, 1), (0, 2), (1, 2)]);
    }
}
