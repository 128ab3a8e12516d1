//! The changes of the base's tensors that DoRA and LoRA's bias make, for merging.

use crate::adapters::update::{LowRankUpdate, WeightUpdate};
use tch::{Kind, Tensor};

/// Replaces W by `m ∘ (W + s B A) / ||W + s B A||`.
pub(super) struct DoraUpdate {
    pub low_rank: LowRankUpdate,
    /// One number for each row, of a table for each column.
    pub magnitude: Tensor,
    /// The weight that the update was trained on, if the adapter's file contains it.
    pub own: Option<Tensor>,
}

impl WeightUpdate for DoraUpdate {
    fn add(&self, sum: &mut Tensor, base: &Tensor, factor: f64, transposed: bool) {
        let LowRankUpdate { a, b, scale, table } = &self.low_rank;
        let wide = |t: &Tensor| t.to_kind(Kind::Float);
        let turned = |t: &Tensor| if transposed { t.tr() } else { t.shallow_clone() };
        let weight = turned(&wide(self.own.as_ref().unwrap_or(base))); // (out, in)
        let updated = weight.addmm(&(wide(b) * *scale), &wide(a));
        let dim = if *table { 0 } else { 1 };
        let norm = updated.norm_scalaropt_dim(2.0, [dim].as_slice(), true);
        let magnitude = wide(&self.magnitude).unsqueeze(dim);
        *sum += turned(&(updated * (magnitude / norm) - weight)) * factor;
    }

    fn fits(&self, shape: &[i64], transposed: bool) -> bool {
        let LowRankUpdate { a, b, table, .. } = &self.low_rank;
        let wanted = if *table { a.size()[1] } else { b.size()[0] };
        self.low_rank.fits(shape, transposed) && self.magnitude.size() == [wanted]
    }

    fn shape(&self) -> String {
        format!("{} with magnitudes {:?}", self.low_rank.shape(), self.magnitude.size())
    }

    fn magnitudes(&self) -> Option<(&LowRankUpdate, &Tensor)> {
        // With a weight of its own the change depends on more than the factors.
        self.own.is_none().then_some((&self.low_rank, &self.magnitude))
    }

    fn is_table(&self) -> bool {
        self.low_rank.table
    }
}

/// Adds `scale · bias` to the layer's bias.
pub(super) struct BiasUpdate {
    /// (out)
    pub bias: Tensor,
    pub scale: f64,
}

impl WeightUpdate for BiasUpdate {
    fn add(&self, sum: &mut Tensor, _base: &Tensor, factor: f64, _transposed: bool) {
        *sum += self.bias.to_kind(Kind::Float) * (self.scale * factor);
    }

    fn fits(&self, shape: &[i64], _transposed: bool) -> bool {
        self.bias.size() == shape
    }

    fn shape(&self) -> String {
        format!("{:?}", self.bias.size())
    }

    fn hint(&self) -> &'static str {
        "a layer without a bias cannot hold the bias behind B; use the adapter without merging it"
    }
}
