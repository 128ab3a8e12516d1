//! On CUDA: frozen layers whose weights lie side by side in memory, computed as one layer.

use super::JointLayer;
use super::factor_casts::CastLayout;
use super::low_rank::{LowRank, cast_factors, factor_gradient};
use crate::native::cuda::{self, Cast};
use crate::nn::autograd::differentiable_many;
use crate::nn::layer_input::LayerInput;
use crate::nn::weight::{Weight, cast};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// On CUDA, frozen layers as one: their weights lie side by side, and the factors B are the blocks of a block-diagonal
/// matrix. That is a third of the launches for q, k and v.
pub(super) struct Joined {
    kernels: &'static cuda::Kernels,
    /// The weights of all layers (out of all, in), as they are stored.
    weight: Tensor,
    /// The A of all updates (R of all, in), and B of each in its own rows and columns (out of all, R of all), otherwise
    /// zero; one of them is multiplied by the scales. `None` without updates.
    factors: Option<(Tensor, Tensor)>,
    /// Rows of each layer in `weight` and B: the first, and how many.
    rows: Vec<(i64, i64)>,
    /// Where each update is.
    blocks: Vec<UpdatePlace>,
    /// All updates have one scale, which A is multiplied by.
    scale_on_a: bool,
}

/// The place of an update in the factors of joined layers.
struct UpdatePlace {
    /// First row, and how many.
    rows: (i64, i64),
    /// First column, and how many: the rank.
    columns: (i64, i64),
    scale: f64,
}

impl Joined {
    /// Joins layers and casts their factors to dtype `kind`; `None` unless all of them can be joined.
    pub fn of(parts: &[JointLayer], kind: Kind) -> Option<Self> {
        if parts.len() < 2 || !parts.iter().all(|p| p.joinable) {
            return None;
        }
        let kernels = cuda::kernels(parts[0].weight.device(), kind)?;
        let weight = Weight::side_by_side(&parts.iter().map(|p| p.weight).collect::<Vec<_>>())?;
        let (mut rows, mut blocks, mut row, mut column) = (Vec::new(), Vec::new(), 0, 0);
        for p in parts {
            let outputs = p.weight.outputs();
            rows.push((row, outputs));
            if let Some(u) = &p.update {
                let rank = u.masters[0].size()[0];
                blocks.push(UpdatePlace { rows: (row, outputs), columns: (column, rank), scale: u.scale });
                column += rank;
            }
            row += outputs;
        }
        // The scale of all updates is applied to A: their gradients of B then need none.
        let scale_on_a = blocks.iter().all(|block| block.scale == blocks[0].scale);
        let updates: Vec<&LowRank> = parts.iter().filter_map(|p| p.update.as_ref()).collect();
        let lay_out = || {
            let (options, inputs) = ((kind, weight.device()), weight.size()[1]);
            let a = Tensor::empty([column, inputs], options);
            let b = match blocks.len() == parts.len() {
                true => Tensor::empty([row, column], options),
                false => Tensor::zeros([row, column], options), // a layer without an update
            };
            let place = |block: &UpdatePlace| {
                let ((row, outputs), (column, rank)) = (block.rows, block.columns);
                [(a.narrow(0, column, rank), 0), (b.narrow(0, row, outputs), column)]
            };
            let places = blocks.iter().flat_map(place).collect();
            CastLayout { results: vec![a, b], places }
        };
        let factors = (!blocks.is_empty()).then(|| {
            let scales = |scale: f64| if scale_on_a { [scale, 1.0] } else { [1.0, scale] };
            cast_factors(&updates, parts[0].casts, kernels, kind, scales, lay_out)
        });
        let factors = factors.map(|cast| <[Tensor; 2]>::try_from(cast).expect("A and B").into());
        Some(Self { kernels, weight, factors, rows, blocks, scale_on_a })
    }

    /// Returns the outputs (T, out) of each layer, columns of one matrix, and the low-rank results (T, R of all).
    fn forward(&self, x: &Tensor) -> (Vec<Tensor>, Option<Tensor>) {
        let low = self.factors.as_ref().map(|(a, _)| x.linear(a, None::<&Tensor>));
        let mut y = x.linear(&cast(&self.weight, x.kind()), None::<&Tensor>);
        if let (Some(low), Some((_, b))) = (&low, &self.factors) {
            y = y.addmm_(low, &b.tr());
        }
        // Detached, because a view could not become a result of the graph's node.
        (self.rows.iter().map(|(row, n)| y.narrow(1, *row, *n).detach()).collect(), low)
    }

    /// Returns the gradient of x, if it is needed, and those of each update's A and B, given those of the outputs and
    /// what the updates need: the low-rank results, and x unless every A is frozen.
    fn backward(
        &self,
        grads: &[Tensor],
        x: Option<Tensor>,
        low: Option<&Tensor>,
        needs_x: bool,
    ) -> Vec<Option<Tensor>> {
        let g = beside_each_other(grads); // (T, out of all)
        let mut g_x = needs_x.then(|| g.matmul(&cast(&self.weight, g.kind())));
        let (Some(low), Some((a, b))) = (low, &self.factors) else { return vec![g_x] };
        let g_low = g.matmul(b); // (T, R of all)
        g_x = g_x.map(|mut g_x| g_x.addmm_(&g_low, a));
        let scale = if self.scale_on_a { self.blocks[0].scale } else { 1.0 };
        let g_a = x.map(|x| factor_gradient(&g_low, &x, scale)); // (R of all, in)
        let of_a = |block: &UpdatePlace| g_a.as_ref().map(|g_a| g_a.narrow(0, block.columns.0, block.columns.1));
        let of_b = self.gradients_of_b(&g, low);
        let of_factors = self.blocks.iter().zip(of_b).flat_map(|(block, g_b)| [of_a(block), Some(g_b)]);
        std::iter::once(g_x).chain(of_factors).collect()
    }

    /// Returns the gradient of each B (out, R), float32, given that of all outputs (T, out of all) and the low-rank results.
    fn gradients_of_b(&self, g: &Tensor, low: &Tensor) -> Vec<Tensor> {
        let (first, n) = (&self.blocks[0], self.blocks.len() as i64);
        let (outputs, rank) = (first.rows.1, first.columns.1);
        let alike = self.blocks.iter().all(|block| (block.rows.1, block.columns.1) == (outputs, rank));
        if alike && n == self.rows.len() as i64 && self.scale_on_a {
            // (n, out, T) x (n, T, R), without the products of one layer's outputs with another's low-rank results.
            let (t, width, columns) = (g.size()[0], g.stride()[0], low.stride()[0]);
            let g = g.as_strided([n, outputs, t], [outputs, 1, width], None::<i64>);
            let low = low.as_strided([n, t, rank], [rank, columns, 1], None::<i64>);
            return g.bmm_dtype(&low, Kind::Float).unbind(0);
        }
        let all = g.tr().matmul(low); // (out of all, R of all)
        let of_block = |block: &UpdatePlace| {
            let ((row, outputs), (_, rank)) = (block.rows, block.columns);
            (all.narrow(0, row, outputs), Tensor::empty([outputs, rank], (Kind::Float, g.device())))
        };
        let of_b: Vec<(Tensor, Tensor)> = self.blocks.iter().map(of_block).collect();
        let casts = of_b.iter().zip(&self.blocks).map(|((from, to), block)| Cast {
            from,
            to,
            factor: if self.scale_on_a { 1.0 } else { block.scale },
            column: -block.columns.0,
        });
        self.kernels.widen_all(&casts.collect::<Vec<_>>());
        of_b.into_iter().map(|(_, g_b)| g_b).collect()
    }
}

/// Returns matrices (T, …) as one, side by side: a view if they are columns of one already.
pub(in crate::nn) fn beside_each_other(parts: &[Tensor]) -> Tensor {
    let (first, width) = (&parts[0], parts.iter().map(|t| t.size()[1]).sum::<i64>());
    let bytes = first.kind().elt_size_in_bytes();
    let starts = parts.iter().scan(0, |at, t| Some(std::mem::replace(at, *at + t.size()[1])));
    let placed = |(t, at): (&Tensor, i64)| {
        t.stride() == [width, 1] && t.data_ptr() as usize == first.data_ptr() as usize + at as usize * bytes
    };
    if parts.iter().zip(starts).all(placed) {
        return first.as_strided([first.size()[0], width], [width, 1], None::<i64>);
    }
    Tensor::cat(parts, 1)
}

/// Computes the outputs of joined layers, (T, out) each; `leaves` are the input and the trained factors. `needs_input`:
/// a gradient needs the input.
pub(super) fn products(
    joined: Joined,
    input: &LayerInput,
    leaves: &[&Tensor],
    rows: i64,
    needs_input: bool,
) -> Vec<Tensor> {
    let (x, needs_x) = (&input.x, input.x.requires_grad());
    let options = (x.kind(), x.device());
    let read: Option<Rc<dyn Fn() -> Tensor>> = needs_input.then(|| match &input.recompute {
        Some(again) => again.clone(),
        None => {
            let kept = x.detach();
            Rc::new(move || kept.shallow_clone()) as Rc<dyn Fn() -> Tensor>
        }
    });
    let forward = || {
        let (outputs, low) = joined.forward(x);
        (outputs, (joined, low))
    };
    differentiable_many(leaves, forward, move |(joined, low), grads| {
        let filled = |(g, (_, n)): (&Option<Tensor>, &(i64, i64))| match g {
            Some(g) => g.shallow_clone(),
            None => Tensor::zeros([rows, *n], options),
        };
        let grads: Vec<Tensor> = grads.iter().zip(&joined.rows).map(filled).collect();
        joined.backward(&grads, read.as_ref().map(|read| read()), low.as_ref(), needs_x)
    })
}
