//! Trained biases of scores by distance (Raffel et al. 2020, arXiv 1910.10683, section 2.1): each head has a number for every
//! short distance, and one for each of some ranges of longer ones, which grow in proportion to the distance.

use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// How distances are divided into buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelativeBuckets {
    /// The number of buckets, at least 2. The first half of them has one distance each, from 0 on.
    pub count: i64,
    /// From this distance on, all are in the last bucket; more than half as many as buckets.
    pub max_distance: i64,
}

impl RelativeBuckets {
    /// Returns the bucket of each distance from 0 to `max_distance`: (`max_distance` + 1) int64 on the CPU. It is that of causal
    /// attention in transformers, where the range of a bucket ends is rounded as there (float32).
    pub fn by_distance(self) -> Tensor {
        let exact = self.count / 2;
        let distances = Tensor::arange(self.max_distance + 1, (Kind::Int64, Device::Cpu));
        let ratio =
            (distances.to_kind(Kind::Float) / exact as f64).log() / (self.max_distance as f64 / exact as f64).ln();
        let far = (ratio * (self.count - exact) as f64).clamp_min(0.0).to_kind(Kind::Int64) + exact;
        distances.where_self(&distances.lt(exact), &far.clamp_max(self.count - 1))
    }
}

/// The biases of a model's scores.
#[derive(Debug)]
pub struct RelativeBias {
    /// (buckets, H)
    table: Tensor,
    buckets: RelativeBuckets,
    /// (`max_distance` + 1) the bucket of each distance, on the table's device.
    by_distance: Tensor,
}

impl RelativeBias {
    /// Returns the biases in `table` (buckets, H).
    pub fn new(table: Tensor, buckets: RelativeBuckets) -> Rc<Self> {
        let by_distance = buckets.by_distance().to_device(table.device());
        Rc::new(Self { table, buckets, by_distance })
    }

    /// Returns the table (buckets, H).
    pub fn table(&self) -> &Tensor {
        &self.table
    }

    /// Returns what is added to scores of queries at `from` and the positions after it, of keys at `first` and those after it:
    /// (H, queries, keys) float32, differentiable. A key after its query, which is hidden, has the bias of distance 0.
    pub(super) fn of_positions(&self, (from, queries): (i64, i64), (first, keys): (i64, i64)) -> Tensor {
        self.of_distances(&self.distances((from, queries), (first, keys)))
    }

    /// Returns the biases of distances (…): (H, …) float32, differentiable.
    pub fn of_distances(&self, distances: &Tensor) -> Tensor {
        let heads = self.table.size()[1];
        let rows = self.table.to_kind(Kind::Float).index_select(0, &self.bucket_of(distances)); // (n, H)
        let mut shape = distances.size();
        shape.insert(0, heads);
        rows.tr().reshape(shape)
    }

    /// Returns the gradient of the table in its dtype, given that of biases of these positions (H, queries, keys) in float32.
    pub(super) fn gradient(&self, g: &Tensor, queries: (i64, i64), keys: (i64, i64)) -> Tensor {
        let buckets = self.bucket_of(&self.distances(queries, keys));
        let sums = Tensor::zeros([g.size()[0], self.buckets.count], (Kind::Float, g.device()));
        sums.index_add(1, &buckets, &g.reshape([g.size()[0], -1])).tr().to_kind(self.table.kind())
    }

    fn distances(&self, (from, queries): (i64, i64), (first, keys): (i64, i64)) -> Tensor {
        let range =
            |from: i64, count: i64| Tensor::arange_start(from, from + count, (Kind::Int64, self.table.device()));
        range(from, queries).unsqueeze(1) - range(first, keys).unsqueeze(0)
    }

    /// Returns the bucket of each of the distances, in one dimension.
    fn bucket_of(&self, distances: &Tensor) -> Tensor {
        self.by_distance.index_select(0, &distances.clamp(0, self.buckets.max_distance).flatten(0, -1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The derivative of the result by each bias is near to what changing it does, in float32.
    #[test]
    fn gradients_of_biases_are_finite_differences() {
        use super::super::{Attention, packed_attention};
        use crate::nn::tokens::Segments;
        tch::manual_seed(11);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let segments = Segments::new(vec![9, 4, 40], Device::Cpu);
        let (q, k, v, w) = (random(&[53, 4, 6]), random(&[53, 2, 6]), random(&[53, 2, 6]), random(&[53, 4, 6]));
        let buckets = RelativeBuckets { count: 6, max_distance: 20 };
        let value = |table: &Tensor| {
            let relative = Some(RelativeBias::new(table.shallow_clone(), buckets));
            let attention = Attention { relative, ..Attention::causal(0.4) };
            (packed_attention(&q, &k, &v, &segments, &attention) * &w).to_kind(Kind::Double).sum(Kind::Double)
        };
        let table = random(&[6, 4]).set_requires_grad(true);
        value(&table).backward();
        let (found, base) = (table.grad(), table.detach());
        for (bucket, head) in (0..6).flat_map(|b| (0..4).map(move |h| (b, h))) {
            let moved = |by: f64| {
                let t = base.copy();
                let _ = t.get(bucket).get(head).g_add_scalar_(by);
                value(&t).double_value(&[])
            };
            let (slope, ours) = ((moved(1e-2) - moved(-1e-2)) / 2e-2, found.double_value(&[bucket, head]));
            assert!((slope - ours).abs() < 2e-3 * (1.0 + slope.abs()), "{bucket} {head}: {slope} {ours}");
        }
        assert!(found.abs().min().double_value(&[]) > 0.0, "{found:?}");
    }
}
