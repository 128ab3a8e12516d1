//! How far the changes of one weight agree, and what a merge keeps of them.

use super::delta::Delta;
use super::method::WeightedDelta;
use crate::native::merging::best;
use serde::Serialize;
use tch::{Kind, Tensor};

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
        let mut weighted: Vec<Option<(&Delta, f64)>> = vec![None; parts]; // change, weight
        for change in changes {
            weighted[change.part] = Some((&change.delta, change.weight));
        }
        let pair = |(i, j): (usize, usize)| {
            let ((one, w1), (two, w2)) = (weighted[i]?, weighted[j]?);
            Some(w1 * w2 * one.dot(two))
        };
        let products = ChangeProducts {
            norms: weighted
                .iter()
                .map(|part| part.map_or(0.0, |(delta, weight)| weight.abs() * delta.norm()))
                .collect(),
            pairs: pairs(parts).map(pair).collect(),
            merged_norm: merged.norm(),
            with_merged: weighted.iter().map(|part| part.map(|(delta, weight)| weight * delta.dot(merged))).collect(),
        };
        products.comparison(sign_conflicts(changes))
    }
}

/// Norms and inner products of changes and of what was merged of them.
struct ChangeProducts {
    norms: Vec<f64>,
    pairs: Vec<Option<f64>>,
    merged_norm: f64,
    with_merged: Vec<Option<f64>>,
}

impl ChangeProducts {
    fn comparison(self, sign_conflicts: Option<f64>) -> Comparison {
        let cosine = |dot: Option<f64>, one: f64, two: f64| {
            dot.filter(|_| one > 0.0 && two > 0.0).map(|dot| (dot / (one * two)).clamp(-1.0, 1.0))
        };
        let of_pair = |((i, j), dot): ((usize, usize), &Option<f64>)| cosine(*dot, self.norms[i], self.norms[j]);
        let with = self.with_merged.iter().zip(&self.norms);
        Comparison {
            cosines: pairs(self.norms.len()).zip(&self.pairs).map(of_pair).collect(),
            sign_conflicts,
            merged_norm: self.merged_norm,
            with_merged: with.map(|(dot, norm)| cosine(*dot, *norm, self.merged_norm)).collect(),
            norms: self.norms,
        }
    }
}

/// Compares changes of one weight that are given block by block: one of every part of the merge.
pub struct BlockComparison {
    /// Inner products of the parts' changes and of the merged change, the last vector: the upper triangle with the diagonal.
    products: Vec<f64>,
    vectors: usize,
    shared: i64,
    conflicts: i64,
}

impl BlockComparison {
    /// Begins a comparison of `parts` changes.
    pub fn new(parts: usize) -> Self {
        let vectors = parts + 1;
        Self { products: vec![0.0; vectors * (vectors + 1) / 2], vectors, shared: 0, conflicts: 0 }
    }

    /// Compares a block of the changes with each other and with what was merged of them.
    pub fn of_block(changes: &[&[f32]], merged: &[f32]) -> Self {
        let mut found = Self::new(changes.len());
        let vectors: Vec<&[f32]> = changes.iter().copied().chain([merged]).collect();
        best().products(&vectors, &mut found.products);
        if changes.len() > 1 {
            (found.shared, found.conflicts) = best().signs(changes);
        }
        found
    }

    /// Adds the comparison of the next block.
    pub fn add(&mut self, block: &Self) {
        self.products.iter_mut().zip(&block.products).for_each(|(sum, product)| *sum += product);
        self.shared += block.shared;
        self.conflicts += block.conflicts;
    }

    /// Returns the comparison of all blocks.
    pub fn finish(self) -> Comparison {
        let parts = self.vectors - 1;
        // Row i of the triangle begins after those of i longer rows.
        let product = |i: usize, j: usize| self.products[i * self.vectors - i * (i + 1) / 2 + j];
        let norm = |i: usize| product(i, i).max(0.0).sqrt();
        let products = ChangeProducts {
            norms: (0..parts).map(norm).collect(),
            pairs: pairs(parts).map(|(i, j)| Some(product(i, j))).collect(),
            merged_norm: norm(parts),
            with_merged: (0..parts).map(|i| Some(product(i, parts))).collect(),
        };
        products.comparison((self.shared > 0).then(|| self.conflicts as f64 / self.shared as f64))
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
    let (shared, conflicts) =
        shared_and_conflicting(changes.iter().map(|c| c.delta.dense().sign() * c.weight.signum()));
    (shared > 0).then(|| conflicts as f64 / shared as f64)
}

/// Returns the number of entries that at least two changes have, and of those where their signs differ. Zero is no sign.
fn shared_and_conflicting(signs: impl Iterator<Item = Tensor>) -> (i64, i64) {
    let mut counted: Option<(Tensor, Tensor)> = None; // numbers of + and of -, by entry
    for sign in signs {
        let (up, down) = (sign.gt(0.0).to_kind(Kind::Int8), sign.lt(0.0).to_kind(Kind::Int8));
        counted = Some(match counted {
            None => (up, down),
            Some((ups, downs)) => (ups + up, downs + down),
        });
    }
    let Some((up, down)) = counted else { return (0, 0) };
    let count = |t: Tensor| t.sum(Kind::Int64).int64_value(&[]);
    (count((&up + &down).ge(2)), count(up.gt(0).logical_and(&down.gt(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    #[test]
    fn blocks_together_are_compared_as_the_whole() {
        let random = || Tensor::randn([6, 5], (Kind::Float, tch::Device::Cpu));
        let (tensors, merged) = ([random(), random(), random()], random());
        let deltas: Vec<WeightedDelta> = tensors
            .iter()
            .enumerate()
            .map(|(part, t)| WeightedDelta { part, delta: Delta::Dense(t.shallow_clone()), weight: 1.0, density: 1.0 })
            .collect();
        let whole = Comparison::between(3, &deltas, &Delta::Dense(merged.shallow_clone()));
        let numbers = |t: &Tensor| Vec::<f32>::try_from(t.flatten(0, -1)).unwrap();
        let (all, of_merged) = (tensors.each_ref().map(numbers), numbers(&merged));
        let mut blocks = BlockComparison::new(3);
        for rows in [0..10, 10..30] {
            let block = all.each_ref().map(|change| &change[rows.clone()]);
            blocks.add(&BlockComparison::of_block(&block, &of_merged[rows.clone()]));
        }
        let found = blocks.finish();
        assert_eq!(found.sign_conflicts, whole.sign_conflicts);
        let results = |c: &Comparison| {
            let optional = c.cosines.iter().chain(&c.with_merged).map(|x| x.unwrap());
            c.norms.iter().copied().chain([c.merged_norm]).chain(optional).collect::<Vec<f64>>()
        };
        for (one, two) in results(&found).iter().zip(results(&whole)) {
            assert!((one - two).abs() < 1e-5, "{one} {two}");
        }
    }
}
