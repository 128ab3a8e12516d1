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
        let (width, y) = (last(x), Tensor::empty(x.size(), (self.kind, x.device())));
        self.check(&[w]);
        assert_eq!(w.size(), [width]);
        let rows = x.numel() as i64 / width;
        let inverse = Tensor::empty([rows], (Kind::Float, x.device()));
        let sum = match residual {
            Some(residual) if residual.is_contiguous() => residual.empty_like(),
            Some(residual) => residual.detach(),
            None => x.shallow_clone(),
        };
        let added = residual.unwrap_or(x);
        let strides = self.strides([x, added, &sum]);
        let packed = self.packed(&[x, added, w, &sum, &y], strides.iter().fold(width, |all, stride| all | stride));
        let arguments: Vec<Argument> = [
            pointer(x),
            pointer_or_null(residual),
            pointer(w),
            pointer(&sum),
            pointer(&y),
            pointer(&inverse),
            Argument::Long(width),
        ]
        .into_iter()
        .chain(strides.map(Argument::Long))
        .chain([Argument::Float(eps as f32), packed])
        .collect();
        self.module.launch(Kernel::RmsNorm, rows, x.device(), &arguments);
        (sum, y, inverse)
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
