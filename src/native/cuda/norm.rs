//! Root-mean-square normalisation, with the addition before it, and its gradient.

use super::kernels::{Kernel, Kernels, blocks, last, pointer, pointer_or_null};
use super::module::Argument;
use tch::{Kind, Tensor};

/// Returns the distance at which the rows (the last dimension) of a tensor begin, if each is contiguous and they are at equal
/// distances: those of a contiguous tensor, or of a matrix that is a part of wider rows.
pub fn row_stride(t: &Tensor) -> Option<i64> {
    if t.is_contiguous() {
        return Some(last(t));
    }
    let (size, stride) = (t.size(), t.stride());
    (size.len() == 2 && stride[1] == 1 && stride[0] >= size[1]).then(|| stride[0])
}

/// Returns an uninitialised tensor of the size of `t` whose rows begin at the same distances: where those of `t` are parts of
/// wider rows, there is room behind each.
fn with_rows_like(t: &Tensor) -> Tensor {
    let (size, stride) = (t.size(), row_stride(t).expect("rows at equal distances"));
    if t.is_contiguous() {
        return t.empty_like();
    }
    Tensor::empty([size[0], stride], (t.kind(), t.device())).narrow(1, 0, size[1])
}

/// A low-rank update `low B^T` of rows.
pub struct RowUpdate {
    /// (T, R)
    pub low: Tensor,
    /// (D, R), contiguous.
    pub b: Tensor,
}

impl Kernels {
    /// Panics unless the tensors have the kernels' dtype, one size, and rows at equal distances. Returns these.
    fn strides<const N: usize>(&self, tensors: [&Tensor; N]) -> [i64; N] {
        let size = tensors[0].size();
        tensors.map(|t| {
            assert!(t.kind() == self.kind && t.size() == size, "tensors of one kind and size");
            row_stride(t).expect("rows at equal distances")
        })
    }

    /// Computes RMSNorm of x (…, D), or of x + `residual`, with weight w (D). Returns the sum (x itself without a
    /// residual), the norm (…, D), contiguous, and the reciprocal root mean square of each row (rows), float32.
    ///
    /// Rows may be parts of wider ones. If those of `residual` are, the sum takes its place.
    pub fn rms_norm(&self, x: &Tensor, residual: Option<&Tensor>, w: &Tensor, eps: f64) -> (Tensor, Tensor, Tensor) {
        self.add_rms_norm(x, residual, None, w, eps)
    }

    /// Does the same with an update of the residual, which is added in float32 before the sum is rounded.
    pub fn add_rms_norm(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        update: Option<&RowUpdate>,
        w: &Tensor,
        eps: f64,
    ) -> (Tensor, Tensor, Tensor) {
        let (width, y) = (last(x), Tensor::empty(x.size(), (self.kind, x.device())));
        self.check(&[w]);
        assert_eq!(w.size(), [width]);
        let inverse = Tensor::empty([x.numel() as i64 / width], (Kind::Float, x.device()));
        let sum = self.sum_of_rows(x, residual, update, Some((w, &y, &inverse, eps)));
        (sum, y, inverse)
    }

    /// Returns the sum of x (…, D), `y` and an update of y, with the bits of [`Kernels::add_rms_norm`]'s.
    pub fn add_update(&self, x: &Tensor, y: &Tensor, update: &RowUpdate) -> Tensor {
        self.sum_of_rows(x, Some(y), Some(update), None)
    }

    /// Launches the kernel of both, which writes the norm with a weight, and the reciprocal root mean squares, if they are asked for.
    fn sum_of_rows(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        update: Option<&RowUpdate>,
        norm: Option<(&Tensor, &Tensor, &Tensor, f64)>,
    ) -> Tensor {
        let (width, rows) = (last(x), x.numel() as i64 / last(x));
        let sum = match residual {
            Some(residual) if residual.is_contiguous() => residual.empty_like(),
            Some(residual) => residual.detach(),
            None => x.shallow_clone(),
        };
        let added = residual.unwrap_or(x);
        let strides = self.strides([x, added, &sum]);
        let (low, b) = update.map(|update| (&update.low, &update.b)).unzip();
        let (rank, low_stride) =
            low.map_or((0, 0), |low| (last(low), row_stride(low).expect("rows at equal distances")));
        if let (Some(low), Some(b)) = (low, b) {
            assert!(residual.is_some() && low.kind() == self.kind && low.numel() as i64 == rows * rank);
            assert!(b.kind() == self.kind && b.is_contiguous() && b.size() == [width, rank]);
        }
        let (w, y, inverse) = norm.map_or((None, None, None), |(w, y, inverse, _)| (Some(w), Some(y), Some(inverse)));
        let read: Vec<&Tensor> = [x, added, &sum].into_iter().chain(w).chain(y).collect();
        let packed = self.packed(&read, strides.iter().fold(width, |all, stride| all | stride));
        let of_update: Vec<&Tensor> = low.into_iter().chain(b).collect();
        let packed_update = self.packed(&of_update, rank | low_stride);
        let arguments: Vec<Argument> = [pointer(x)]
            .into_iter()
            .chain([residual, low, b, w].map(pointer_or_null))
            .chain([pointer(&sum), pointer_or_null(y), pointer_or_null(inverse), Argument::Long(width)])
            .chain(strides.into_iter().chain([low_stride]).map(Argument::Long))
            .chain([Argument::Int(rank as i32), Argument::Float(norm.map_or(0.0, |(.., eps)| eps) as f32)])
            .chain([packed, packed_update])
            .collect();
        self.module.launch(Kernel::RmsNorm, rows, x.device(), &arguments);
        sum
    }

    /// Returns the gradient of x (…, D), the tensor that was normalised, plus `g_residual` if there is one, given the
    /// gradient `g` of the norm, contiguous; and, if `weight` is true, the gradient of w (D), float32. The rows of x's gradient
    /// begin at the distances of those of x.
    pub fn rms_norm_backward(
        &self,
        x: &Tensor,
        w: &Tensor,
        inverse: &Tensor,
        g: &Tensor,
        g_residual: Option<&Tensor>,
        weight: bool,
    ) -> (Tensor, Option<Tensor>) {
        let (width, g_x) = (last(x), with_rows_like(x));
        let rows = x.numel() as i64 / width;
        self.check(&[g]);
        self.check(&[w]);
        assert!(g.size() == x.size() && w.size() == [width]);
        assert!(inverse.kind() == Kind::Float && inverse.numel() as i64 == rows);
        let added = g_residual.unwrap_or(x);
        let strides = self.strides([x, added, &g_x]);
        let packed = self.packed(&[x, w, g, &g_x, added], strides.iter().fold(width, |all, stride| all | stride));
        let arguments: Vec<Argument> = [
            pointer(x),
            pointer(w),
            pointer(inverse),
            pointer(g),
            pointer_or_null(g_residual),
            pointer(&g_x),
            Argument::Long(width),
        ]
        .into_iter()
        .chain(strides.map(Argument::Long))
        .chain([packed])
        .collect();
        self.module.launch(Kernel::RmsNormBackward, rows, x.device(), &arguments);
        let g_w = weight.then(|| {
            // Enough parts to fill a device, few enough to add up quickly.
            let each = blocks(rows, 64).max(16);
            let parts = Tensor::empty([blocks(rows, each), width], (Kind::Float, x.device()));
            let arguments = [
                pointer(x),
                pointer(inverse),
                pointer(g),
                pointer(&parts),
                Argument::Long(rows),
                Argument::Long(width),
                Argument::Long(strides[0]),
                Argument::Long(each),
            ];
            self.module.launch(Kernel::RmsNormWeight, blocks(rows, each) * blocks(width, 256), x.device(), &arguments);
            parts.sum_dim_intlist([0i64].as_slice(), false, Kind::Float)
        });
        (g_x, g_w)
    }
}
