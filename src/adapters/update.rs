//! What merging knows of an adapter: how it changes one tensor of the base, whatever its kind.

use tch::{Kind, Tensor};

/// The change that an adapter makes to one tensor of the base.
pub trait WeightUpdate {
    /// Adds `factor` times the change of `base` to `sum`, which is float32. `transposed`: both are stored as (in, out).
    fn add(&self, sum: &mut Tensor, base: &Tensor, factor: f64, transposed: bool);

    /// Returns true if a weight of this shape can be changed.
    fn fits(&self, shape: &[i64], transposed: bool) -> bool;

    /// Returns the shape of the change, for errors.
    fn shape(&self) -> String;

    /// Returns the next step for somebody whose base has no such tensor, or one of another shape.
    fn hint(&self) -> &'static str {
        "was the adapter trained on another base?"
    }

    /// Returns the change as a product of two factors, if it is one whatever the base: such changes can be added up in
    /// one adapter.
    fn low_rank(&self) -> Option<&LowRankUpdate> {
        None
    }
}

/// Adds scale · B A.
pub struct LowRankUpdate {
    /// (R, in)
    pub a: Tensor,
    /// (out, R)
    pub b: Tensor,
    /// The factor on B A.
    pub scale: f64,
    /// True for an embedding, whose factors are transposed and have other names in a file.
    pub table: bool,
}

impl WeightUpdate for LowRankUpdate {
    fn add(&self, sum: &mut Tensor, _base: &Tensor, factor: f64, transposed: bool) {
        let scale = self.scale * factor;
        let (a, b) = (self.a.to_kind(Kind::Float), self.b.to_kind(Kind::Float));
        let _ = match transposed {
            true => sum.addmm_(&(a.tr() * scale), &b.tr()),
            false => sum.addmm_(&(b * scale), &a),
        };
    }

    fn fits(&self, shape: &[i64], transposed: bool) -> bool {
        let (inputs, outputs) = (self.a.size()[1], self.b.size()[0]);
        shape == if transposed { [inputs, outputs] } else { [outputs, inputs] }
    }

    fn shape(&self) -> String {
        format!("{:?} · {:?}", self.b.size(), self.a.size())
    }

    fn low_rank(&self) -> Option<&LowRankUpdate> {
        Some(self)
    }
}
