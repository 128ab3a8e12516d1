//! Low-rank updates of layers, and their factors cast for the products.

use crate::native::cuda::{self, Cast};
use crate::nn::weight::cast;
use tch::{Kind, Tensor};

/// A low-rank update.
pub struct LowRank {
    /// A (R, in) and B (out, R), float32 or bfloat16: trained parameters, or computed from them.
    pub masters: [Tensor; 2],
    /// The factor on B A.
    pub scale: f64,
}

impl LowRank {
    /// Returns another handle to the same update.
    pub fn shallow_clone(&self) -> Self {
        Self { masters: self.masters.each_ref().map(Tensor::shallow_clone), scale: self.scale }
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
    /// Casts the factors to dtype `kind`; `None` if there are no updates. They are cast at each call: small tensors
    /// kept between large ones that are freed would fragment memory. The scale is applied in float32, because it may
    /// include dropout's 1 / (1 - p): in a bfloat16 mask its rounding would make every update up to 0.4 % too large.
    pub fn cast(updates: &[&LowRank], kind: Kind) -> Option<Self> {
        let first = updates.first()?;
        let masters = || updates.iter().flat_map(|u| &u.masters);
        let own = cuda::kernels(first.masters[0].device(), kind);
        if let Some(kernels) = own.filter(|_| masters().all(|t| t.kind() == Kind::Float && t.is_contiguous())) {
            return Some(Self::cast_at_once(updates, kind, kernels));
        }
        let each = |u: &&LowRank| (cast(&u.masters[0], kind), cast(&(&u.masters[1] * u.scale), kind));
        let (a, b): (Vec<Tensor>, Vec<Tensor>) = updates.iter().map(each).unzip();
        let a = match &a[..] {
            [one] => one.shallow_clone(),
            _ => Tensor::cat(&a, 0),
        };
        Some(Self { a, b })
    }

    /// Does the same by one launch on CUDA.
    fn cast_at_once(updates: &[&LowRank], kind: Kind, kernels: &cuda::Kernels) -> Self {
        let [first, _] = &updates[0].masters;
        let (ranks, options) = (updates.iter().map(|u| u.masters[0].size()[0]), (kind, first.device()));
        let a = Tensor::empty([ranks.clone().sum(), first.size()[1]], options);
        let b: Vec<Tensor> = updates.iter().map(|u| Tensor::empty(u.masters[1].size(), options)).collect();
        let rows: Vec<Tensor> = a.split_with_sizes(ranks.collect::<Vec<_>>(), 0);
        let plain = |from, to, factor| Cast { from, to, factor, column: 0 };
        let of_each = updates.iter().zip(&rows).zip(&b);
        let casts = of_each.flat_map(|((u, a), b)| [plain(&u.masters[0], a, 1.0), plain(&u.masters[1], b, u.scale)]);
        kernels.narrow_all(&casts.collect::<Vec<_>>());
        Self { a, b }
    }
}

/// Multiplies tensors by a factor each and converts them to float32.
pub(super) fn to_float(products: Vec<(Tensor, f64)>) -> Vec<Tensor> {
    if let Some(kernels) = products.first().and_then(|(t, _)| cuda::kernels(t.device(), t.kind())) {
        let (device, contiguous) = (products[0].0.device(), |(t, factor): (Tensor, f64)| (t.contiguous(), factor));
        let products: Vec<(Tensor, f64)> = products.into_iter().map(contiguous).collect();
        let wide: Vec<Tensor> = products.iter().map(|(t, _)| Tensor::empty(t.size(), (Kind::Float, device))).collect();
        let casts =
            products.iter().zip(&wide).map(|((from, factor), to)| Cast { from, to, factor: *factor, column: 0 });
        kernels.widen_all(&casts.collect::<Vec<_>>());
        return wide;
    }
    let scaled = |(t, factor): (Tensor, f64)| match t.to_kind(Kind::Float) {
        t if factor == 1.0 => t,
        t => t * factor,
    };
    products.into_iter().map(scaled).collect()
}
