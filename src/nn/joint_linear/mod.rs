//! Computes several linear layers of one input together, as one operation of the graph:
//! `y_i = x W_i^T + bias_i + s_i (m x) A_i^T B_i^T`. Each layer is trained or frozen; a frozen one may have a
//! low-rank update.
//!
//! Narrow products are slow (one of width 16 runs at half the rate of wide ones). So the A of all layers are
//! multiplied as one matrix, in the forward and in the backward, and the input's gradient is accumulated in place. To
//! save memory, the backward recomputes what is cheap to recompute: the bfloat16 copy of a float32 weight, and an
//! input that is the result of a norm or an activation.
//!
//! low_rank: the updates and their factors in the dtype of the products; factor_casts: kept on CUDA. joined: frozen layers as one matrix, on
//! CUDA; layer_gradients: the gradients of all factors of a layer there.

mod factor_casts;
mod joined;
mod layer_gradients;
mod low_rank;

pub use factor_casts::FactorCasts;
pub(super) use joined::beside_each_other;
pub use layer_gradients::CollectedGradients;
pub use low_rank::LowRank;

use super::autograd::differentiable_many;
use super::layer_input::LayerInput;
use super::quantised::SharedInput;
use super::weight::{Dense, Weight, cast, weight_gradient};
use crate::native::cuda::FactorProduct;
use joined::Joined;
use low_rank::{Factors, factor_gradient, gradients_at_once};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// One of the layers that are computed together, and its low-rank update if it has one.
pub struct JointLayer<'a> {
    /// The weight (out, in).
    pub weight: &'a Weight,
    /// The bias (out), added to every output row.
    pub bias: Option<&'a Tensor>,
    /// The update of a frozen weight.
    pub update: Option<LowRank>,
    /// True if the layer may be joined with others on CUDA. It must not depend on which adapter is active: a policy and
    /// a reference with equal weights must get equal bits.
    pub joinable: bool,
    /// The rank of each adapter's update, by the adapter's number; `None` if the factors of one are no parameters.
    pub ranks: Option<Vec<(usize, i64)>>,
    /// The number of the active adapter.
    pub adapter: Option<usize>,
    /// The result is added to another tensor by an operation that may put the sum in its place.
    pub summed: bool,
    /// That operation may also compute the update of the result, which nothing else changes.
    pub leaves_update: bool,
    /// Keeps cast factors of the model's updates on CUDA; `None`: they are cast at each call.
    pub casts: Option<&'a FactorCasts>,
}

impl<'a> JointLayer<'a> {
    /// Returns a layer that is not joined with others, with its bias.
    pub fn of(base: &'a Dense, update: Option<LowRank>) -> Self {
        Self::alone(&base.weight, base.bias.as_ref(), update)
    }

    /// Does the same for a weight (out, in) and a bias (out).
    pub fn alone(weight: &'a Weight, bias: Option<&'a Tensor>, update: Option<LowRank>) -> Self {
        let (joinable, ranks, adapter, casts) = (false, None, None, None);
        let (summed, leaves_update) = (false, false);
        Self { weight, bias, update, joinable, ranks, adapter, summed, leaves_update, casts }
    }

    /// Returns the tensors that may be trained, in the order in which the backward returns gradients.
    fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        let base = self.weight.trained().into_iter().chain(self.bias);
        base.chain(self.update.iter().flat_map(|u| &u.masters))
    }

    /// Returns true if a gradient needs the layer's input.
    fn needs_input(&self) -> bool {
        self.weight.trained().is_some() || self.update.as_ref().is_some_and(LowRank::trains_a)
    }
}

/// What one layer's backward needs.
struct SavedLayer {
    weight: Weight,
    /// True if the weight is trained, and so one of the tensors that get a gradient.
    trained: bool,
    bias: Option<Tensor>,
    update: Option<SavedLowRank>,
}

/// What a low-rank update's backward needs.
struct SavedLowRank {
    /// B (out, R), multiplied by the scale.
    b: Tensor,
    scale: f64,
    trains_a: bool,
    /// First column of this update in the low-rank results of all layers (T, R of all).
    column: i64,
}

/// Computes the layers' outputs (T, out) for `input` (T, in). `mask` (T, in) is the dropout mask on the input of the
/// updates.
pub fn products(input: &LayerInput, mask: Option<&Tensor>, parts: &[JointLayer]) -> Vec<Tensor> {
    let x = &input.x;
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(parts.iter().flat_map(JointLayer::leaves)).collect();
    let needs_x = x.requires_grad();
    let needs_input = parts.iter().any(JointLayer::needs_input);
    let (rows, options) = (x.size()[0], (x.kind(), x.device()));
    if mask.is_none()
        && let Some(joined) = tch::no_grad(|| Joined::of(parts, x.kind()))
    {
        return joined::products(joined, input, &inputs, rows, needs_input);
    }
    let forward = || {
        let updates: Vec<&LowRank> = parts.iter().filter_map(|p| p.update.as_ref()).collect();
        let (a, b) = Factors::cast(&updates, x.kind(), parts.first().and_then(|p| p.casts)).map(|f| (f.a, f.b)).unzip();
        let mut b = b.into_iter().flatten();
        let masked = mask.map(|m| x * m);
        let low = a.as_ref().map(|a| masked.as_ref().unwrap_or(x).linear(a, None::<&Tensor>)); // (T, R of all)
        let (mut outputs, mut saved, mut column) = (Vec::new(), Vec::new(), 0);
        let shared = SharedInput::default();
        for JointLayer { weight, bias, update, .. } in parts {
            let mut y = weight.product_of_shared(x, bias.map(|b| cast(b, x.kind())).as_ref(), &shared); // (T, out)
            let update = update.as_ref().zip(low.as_ref()).map(|(u, low)| {
                let b = b.next().expect("a factor B for each update");
                let rank = b.size()[1];
                y = y.addmm_(&low.narrow(1, column, rank), &b.tr());
                column += rank;
                SavedLowRank { b, scale: u.scale, trains_a: u.trains_a(), column: column - rank }
            });
            outputs.push(y);
            saved.push(SavedLayer {
                weight: weight.shallow_clone(),
                trained: weight.trained().is_some(),
                bias: bias.map(Tensor::shallow_clone),
                update,
            });
        }
        let read: Option<Rc<dyn Fn() -> Tensor>> = match (masked, &input.recompute) {
            _ if !needs_input => None,
            (None, Some(again)) => Some(again.clone()),
            (masked, _) => {
                let kept = masked.unwrap_or_else(|| x.detach());
                Some(Rc::new(move || kept.shallow_clone()))
            }
        };
        let mask = mask.map(Tensor::shallow_clone);
        (outputs, (read, mask, low.zip(a), saved))
    };
    differentiable_many(&inputs, forward, move |(read, mask, low, saved), grads| {
        let filled = |(g, s): (&Option<Tensor>, &SavedLayer)| match g {
            Some(g) => g.shallow_clone(),
            None => Tensor::zeros([rows, s.weight.outputs()], options),
        };
        let grads: Vec<Tensor> = grads.iter().zip(saved).map(filled).collect();
        let mut g_x: Option<Tensor> = None;
        for (g, s) in grads.iter().zip(saved).filter(|_| needs_x) {
            g_x = Some(s.weight.product_back(g, g_x.take()));
        }
        // With a mask this is x after dropout; the base is then frozen and does not need x itself.
        let x = read.as_ref().map(|read| read());
        // That of A (R of all, in) if any is trained, then that of each B (out, R), in float32.
        let mut g_factors = Vec::new();
        let trains_a = saved.iter().any(|s| s.update.as_ref().is_some_and(|u| u.trains_a));
        if let Some((low, a)) = low {
            let updates = || grads.iter().zip(saved).filter_map(|(g, s)| Some((g, s.update.as_ref()?)));
            let g_low = gradient_of_low(updates(), low);
            g_x = g_x.map(|mut g_x| match mask {
                Some(m) => g_x + g_low.matmul(a) * m,
                None => g_x.addmm_(&g_low, a),
            });
            let lows: Vec<Tensor> = updates().map(|(_, u)| low.narrow(1, u.column, u.b.size()[1])).collect();
            let of_a = x.as_ref().filter(|_| trains_a);
            let of_a = of_a.map(|x| FactorProduct { wide: x, narrow: &g_low, scale: 1.0, transposed: true });
            let of_b = updates().zip(&lows);
            let of_b =
                of_b.map(|((g, u), low)| FactorProduct { wide: g, narrow: low, scale: u.scale, transposed: false });
            let wanted: Vec<FactorProduct> = of_a.into_iter().chain(of_b).collect();
            g_factors = gradients_at_once(&wanted).unwrap_or_else(|| wanted.iter().map(factor_gradient).collect());
        }
        let mut g_factors = g_factors.into_iter();
        let g_a = if trains_a { g_factors.next() } else { None };
        let mut gradients = vec![g_x];
        for (g, s) in grads.iter().zip(saved) {
            if s.trained {
                gradients.push(x.as_ref().map(|x| weight_gradient(g, x, s.weight.kind())));
            }
            gradients.extend(s.bias.as_ref().map(|b| {
                b.requires_grad().then(|| g.sum_dim_intlist([0i64].as_slice(), false, Kind::Float).to_kind(b.kind()))
            }));
            if let Some(u) = &s.update {
                let of_a = g_a.as_ref().filter(|_| u.trains_a).map(|g_a| g_a.narrow(0, u.column, u.b.size()[1]));
                gradients.extend([of_a, g_factors.next()]);
            }
        }
        gradients
    })
}

/// Returns the gradient of the low-rank results of all updates, `g_i B_i` side by side: (T, R of all), the shape of
/// `low`.
fn gradient_of_low<'a>(updates: impl Iterator<Item = (&'a Tensor, &'a SavedLowRank)>, low: &Tensor) -> Tensor {
    if !low.device().is_cuda() {
        return Tensor::cat(&updates.map(|(g, u)| g.matmul(&u.b)).collect::<Vec<_>>(), 1);
    }
    // The products write to their columns, which saves the launch that would gather them.
    let g_low = low.empty_like();
    for (g, u) in updates {
        let _ = g.mm_out(&g_low.narrow(1, u.column, u.b.size()[1]), &u.b);
    }
    g_low
}

#[cfg(test)]
mod tests;
