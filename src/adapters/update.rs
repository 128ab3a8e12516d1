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

    /// Returns true if the base may lack the tensor, which then is not added: the bias of a layer that has none.
    fn is_optional(&self) -> bool {
        false
    }

    /// Returns the tensor that takes the place of the base's, if the change is that.
    fn replacement(&self) -> Option<&Tensor> {
        None
    }

    /// Returns the next step for somebody whose base has no such tensor, or one of another shape.
    fn hint(&self) -> &'static str {
        "was the adapter trained on another base?"
    }

    /// Returns the change as a product of two factors, if it is one whatever the base: such changes can be added up in
    /// one adapter.
    fn low_rank(&self) -> Option<&LowRankUpdate> {
        None
    }

    /// Returns the tensor that is added to the base's, if the change is that: a matrix (out, in) or a vector.
    fn addition(&self) -> Option<&Tensor> {
        None
    }

    /// Returns the factors and the magnitudes (out) of a DoRA, if the change is that.
    fn magnitudes(&self) -> Option<(&LowRankUpdate, &Tensor)> {
        None
    }

    /// Returns true if the weight is a table of tokens or positions, whose factors have other names in a file.
    fn is_table(&self) -> bool {
        self.low_rank().is_some_and(|factors| factors.table)
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

/// Multiplies the rows or columns of a weight, or the entries of a bias, by factors.
pub struct ScaleUpdate {
    /// (out, 1) factors of a weight's rows, (1, in) factors of its columns, or (out) factors of a bias.
    pub scale: Tensor,
}

impl WeightUpdate for ScaleUpdate {
    fn add(&self, sum: &mut Tensor, base: &Tensor, factor: f64, transposed: bool) {
        let more = (self.scale.to_kind(Kind::Float) - 1.0) * factor;
        let more = if transposed && more.dim() == 2 { more.tr() } else { more };
        let _ = sum.addcmul_(&base.to_kind(Kind::Float), &more);
    }

    fn fits(&self, shape: &[i64], transposed: bool) -> bool {
        match (self.scale.size().as_slice(), shape) {
            ([n], [size]) => n == size,
            ([rows, columns], [first, second]) => {
                let (outputs, inputs) = if transposed { (second, first) } else { (first, second) };
                (*rows == *outputs && *columns == 1) || (*rows == 1 && *columns == *inputs)
            }
            _ => false,
        }
    }

    fn shape(&self) -> String {
        format!("{:?}", self.scale.size())
    }

    fn is_optional(&self) -> bool {
        self.scale.dim() == 1
    }
}

/// Replaces a tensor.
pub struct ReplacementUpdate(pub Tensor);

impl WeightUpdate for ReplacementUpdate {
    fn add(&self, sum: &mut Tensor, base: &Tensor, factor: f64, _transposed: bool) {
        *sum += (self.0.to_kind(Kind::Float) - base.to_kind(Kind::Float)) * factor;
    }

    fn fits(&self, shape: &[i64], _transposed: bool) -> bool {
        self.0.size() == shape
    }

    fn shape(&self) -> String {
        format!("{:?}", self.0.size())
    }

    fn replacement(&self) -> Option<&Tensor> {
        Some(&self.0)
    }
}

/// Adds a matrix (out, in) to a weight, or a vector (out) to a bias.
pub struct SumUpdate(pub Tensor);

impl WeightUpdate for SumUpdate {
    fn add(&self, sum: &mut Tensor, _base: &Tensor, factor: f64, transposed: bool) {
        let more = self.0.to_kind(Kind::Float) * factor;
        *sum += if transposed && more.dim() == 2 { more.tr() } else { more };
    }

    fn fits(&self, shape: &[i64], transposed: bool) -> bool {
        match (self.0.size().as_slice(), shape) {
            ([outputs, inputs], [first, second]) if transposed => (inputs, outputs) == (first, second),
            (ours, theirs) => ours == theirs,
        }
    }

    fn addition(&self) -> Option<&Tensor> {
        Some(&self.0)
    }

    fn shape(&self) -> String {
        format!("{:?}", self.0.size())
    }
}
