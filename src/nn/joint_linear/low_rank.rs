//! Low-rank updates of layers, and their factors cast for the products.

use super::factor_casts::{CastLayout, FactorCasts, cast_once};
use crate::native;
use crate::native::cuda::{self, FactorProduct};
use crate::nn::weight::cast;
use tch::{Kind, Tensor};

/// A low-rank update.
pub struct LowRank {
    /// A (R, in) and B (out, R), float32 or bfloat16: trained parameters, or computed from them.
    pub masters: [Tensor; 2],
    /// The factor on B A.
    pub scale: f64,
    /// True if both are parameters, whose casts may be kept; false if they are computed at each call.
    pub parameters: bool,
}

impl LowRank {
    /// Returns another handle to the same update.
    pub fn shallow_clone(&self) -> Self {
        Self { masters: self.masters.each_ref().map(Tensor::shallow_clone), ..*self }
    }

    /// Returns true if A is trained, so that its gradient needs the layer's input. With a frozen A (LoRA-FA) only the
    /// low-rank results are kept for the backward.
    pub(super) fn trains_a(&self) -> bool {
        self.masters[0].requires_grad()
    }

    /// Returns true if the update may be a block of a matrix.
    pub fn joinable(&self) -> bool {
        Self::is_joinable(self.masters[0].size()[0], self.masters.each_ref())
    }

    /// Returns true if an update of this rank may be a block of a matrix: the rank is small, so that the zeros beside the
    /// block cost little, and the factors, or the parameters that they are computed from, are ready to be cast.
    pub fn is_joinable(rank: i64, factors: [&Tensor; 2]) -> bool {
        const MOST_RANKS: i64 = 64;
        let ready = |t: &Tensor| t.kind() == Kind::Float && t.is_contiguous();
        rank <= MOST_RANKS && factors.into_iter().all(ready)
    }
}

/// The factors of several updates of one input, cast for the products.
pub(super) struct Factors {
    /// The A of all updates (R of all, in).
    pub a: Tensor,
    /// B (out, R) of each update, multiplied by its scale.
    pub b: Vec<Tensor>,
}

impl Factors {
    /// Casts the factors to dtype `kind`; `None` if there are no updates. On the CPU they are cast at each call: small tensors
    /// kept between large ones that are freed would fragment memory; on CUDA `casts` may keep them. The scale is applied in
    /// float32, because it may include dropout's 1 / (1 - p): in a bfloat16 mask its rounding would make every update up to
    /// 0.4 % too large.
    pub fn cast(updates: &[&LowRank], kind: Kind, casts: Option<&FactorCasts>) -> Option<Self> {
        let first = updates.first()?;
        let masters = || updates.iter().flat_map(|u| &u.masters);
        let own = cuda::kernels(first.masters[0].device(), kind);
        if let Some(kernels) = own.filter(|_| masters().all(|t| t.kind() == Kind::Float && t.is_contiguous())) {
            return Some(Self::cast_at_once(updates, kind, kernels, casts));
        }
        let each = |u: &&LowRank| (cast(&u.masters[0], kind), cast(&(&u.masters[1] * u.scale), kind));
        let (a, b): (Vec<Tensor>, Vec<Tensor>) = updates.iter().map(each).unzip();
        let a = match &a[..] {
            [one] => one.shallow_clone(),
            _ => Tensor::cat(&a, 0),
        };
        Some(Self { a, b })
    }

    /// Does the same by one launch on CUDA, or by none if the casts are kept.
    fn cast_at_once(updates: &[&LowRank], kind: Kind, kernels: &cuda::Kernels, casts: Option<&FactorCasts>) -> Self {
        let lay_out = || {
            let [first, _] = &updates[0].masters;
            let (ranks, options) = (updates.iter().map(|u| u.masters[0].size()[0]), (kind, first.device()));
            let a = Tensor::empty([ranks.clone().sum(), first.size()[1]], options);
            let b: Vec<Tensor> = updates.iter().map(|u| Tensor::empty(u.masters[1].size(), options)).collect();
            let rows = a.split_with_sizes(ranks.collect::<Vec<_>>(), 0);
            let places = rows.into_iter().zip(&b).flat_map(|(a, b)| [(a, 0), (b.shallow_clone(), 0)]).collect();
            CastLayout { results: std::iter::once(a).chain(b).collect(), places }
        };
        let mut cast = cast_factors(updates, casts, kernels, kind, |scale| [1.0, scale], lay_out);
        Self { a: cast.remove(0), b: cast }
    }
}

/// Casts A and B of all updates, multiplied by what `scales` returns for each update's scale. Casts of parameters are kept in
/// `casts`.
pub(super) fn cast_factors(
    updates: &[&LowRank],
    casts: Option<&FactorCasts>,
    kernels: &cuda::Kernels,
    kind: Kind,
    scales: impl Fn(f64) -> [f64; 2],
    lay_out: impl FnOnce() -> CastLayout,
) -> Vec<Tensor> {
    let of_update = |u: &&'_ LowRank| {
        let [of_a, of_b] = scales(u.scale);
        [(u.masters[0].shallow_clone(), of_a), (u.masters[1].shallow_clone(), of_b)]
    };
    let factors: Vec<(Tensor, f64)> = updates.iter().flat_map(of_update).collect();
    match casts.filter(|_| updates.iter().all(|u| u.parameters)) {
        Some(casts) => casts.get(kernels, kind, factors, lay_out),
        None => cast_once(kernels, &factors, lay_out()),
    }
}

/// Computes a gradient of a factor in float32. A GPU does it in one launch.
pub(super) fn factor_gradient(product: &FactorProduct) -> Tensor {
    let FactorProduct { wide, narrow, scale, transposed } = *product;
    let (g, x) = if transposed { (narrow, wide) } else { (wide, narrow) };
    if native::has_wide_products(x) {
        return native::wide_product(&g.tr(), x, scale);
    }
    match g.tr().matmul(x).to_kind(Kind::Float) {
        product if scale == 1.0 => product,
        product => product * scale,
    }
}

/// Multiplications up to which our own kernel computes the gradients of factors. It uses no tensor cores: by their data sheets, GPUs
/// from the A100 on multiply that often in about 0.1 ms, while a launch costs the host 4 us.
const MOST_MULTIPLICATIONS: i64 = 1 << 30;

/// Returns true if our own kernel computes these gradients of factors, on CUDA, and about as fast as libtorch's products.
pub(super) fn is_computed_at_once(products: &[FactorProduct]) -> bool {
    let Some(first) = products.first().map(|p| p.wide) else { return false };
    let Some(kernels) = cuda::kernels(first.device(), first.kind()) else { return false };
    let fits = products.iter().all(|p| kernels.takes_rows(p.wide) && kernels.takes_rows(p.narrow));
    fits && products.iter().map(FactorProduct::multiplications).sum::<i64>() <= MOST_MULTIPLICATIONS
}

/// Computes gradients of factors, float32, in one launch on CUDA; `None` unless [`is_computed_at_once`].
pub(super) fn gradients_at_once(products: &[FactorProduct]) -> Option<Vec<Tensor>> {
    let first = products.first().filter(|_| is_computed_at_once(products))?.wide;
    Some(cuda::kernels(first.device(), first.kind())?.factor_products(products))
}
