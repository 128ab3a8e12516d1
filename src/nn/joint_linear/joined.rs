//! On CUDA: frozen layers whose weights lie side by side in memory, computed as one layer.

use super::JointLayer;
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
    /// The A of all updates (R of all, in), and B of each, multiplied by its scale, in its own rows and columns (out of
    /// all, R of all), otherwise zero; `None` without updates.
    factors: Option<(Tensor, Tensor)>,
    /// Rows of each layer in `weight` and B: the first, and how many.
    rows: Vec<(i64, i64)>,
    /// Where each update is.
    blocks: Vec<UpdatePlace>,
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
        let (options, inputs) = ((kind, weight.device()), weight.size()[1]);
        let factors = (!blocks.is_empty()).then(|| {
            let a = Tensor::empty([column, inputs], options);
            let b = match blocks.len() == parts.len() {
                true => Tensor::empty([row, column], options),
                false => Tensor::zeros([row, column], options), // a layer without an update
            };
            let place = |block: &UpdatePlace| {
                let ((row, outputs), (column, rank)) = (block.rows, block.columns);
                (a.narrow(0, column, rank), b.narrow(0, row, outputs))
            };
            let places: Vec<(Tensor, Tensor)> = blocks.iter().map(place).collect();
            let updates = parts.iter().filter_map(|p| p.update.as_ref());
            let casts = updates.zip(&places).zip(&blocks).flat_map(|((u, (a, b)), block)| {
                let of_a = Cast { from: &u.masters[0], to: a, factor: 1.0, column: 0 };
                [of_a, Cast { from: &u.masters[1], to: b, factor: block.scale, column: block.columns.0 }]
            });
            kernels.narrow_all(&casts.collect::<Vec<_>>());
            (a, b)
        });
        Some(Self { kernels, weight, factors, rows, blocks })
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
        let g_b = g.tr().matmul(low); // (out of all, R of all)
        let g_a = x.map(|x| g_low.tr().matmul(&x)); // (R of all, in)
        let floats = |rows: i64, columns: i64| Tensor::empty([rows, columns], (Kind::Float, g.device()));
        let wide_a = g_a.as_ref().map(|g_a| floats(g_a.size()[0], g_a.size()[1]));
        let of_block = |block: &UpdatePlace| {
            let ((row, outputs), (_, rank)) = (block.rows, block.columns);
            (g_b.narrow(0, row, outputs), floats(outputs, rank))
        };
        let of_b: Vec<(Tensor, Tensor)> = self.blocks.iter().map(of_block).collect();
        let casts = of_b.iter().zip(&self.blocks).map(|((from, to), block)| Cast {
            from,
            to,
            factor: block.scale,
            column: -block.columns.0,
        });
        let of_a = g_a.iter().zip(&wide_a).map(|(from, to)| Cast { from, to, factor: 1.0, column: 0 });
        self.kernels.widen_all(&of_a.chain(casts).collect::<Vec<_>>());
        let mut gradients = vec![g_x];
        for ((_, g_b), block) in of_b.into_iter().zip(&self.blocks) {
            let of_a = wide_a.as_ref().map(|wide_a| wide_a.narrow(0, block.columns.0, block.columns.1));
            gradients.extend([of_a, Some(g_b)]);
        }
        gradients
    }
}

/// Returns matrices (T, …) as one, side by side: a view if they are columns of one already.
fn beside_each_other(parts: &[Tensor]) -> Tensor {
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
