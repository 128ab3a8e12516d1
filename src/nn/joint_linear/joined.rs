//! On CUDA: frozen layers whose weights lie side by side in memory, computed as one layer.

use super::JointLayer;
use super::factor_casts::CastLayout;
use super::layer_gradients::{LayerGradients, WaitingProduct};
use super::low_rank::{LowRank, cast_factors, factor_gradient, gradients_at_once};
use crate::native::cuda::{self, Cast, FactorProduct};
use crate::nn::autograd::differentiable_many;
use crate::nn::awaited_update;
use crate::nn::gradient_room;
use crate::nn::layer_input::LayerInput;
use crate::nn::weight::{Weight, cast};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// On CUDA, frozen layers as one: their weights lie side by side, and the factors B are the blocks of a block-diagonal
/// matrix. That is a third of the launches for q, k and v. If there is room for the A below the weights, the low-rank results come
/// out of the same product; a layer alone is computed so, too.
pub(super) struct Joined {
    kernels: &'static cuda::Kernels,
    /// The weights of all layers (out of all, in), as they are stored; with room below them for the A of all adapters.
    weight: Tensor,
    /// Outputs of all layers.
    outputs: i64,
    /// The A of all updates (R of all, in), and B of each in its own rows and columns (out of all, R of all), otherwise
    /// zero; one of them is multiplied by the scales. `None` without updates.
    factors: Option<(Tensor, Tensor)>,
    /// The row of `weight` at which the A begin, if they lie there.
    low_from: Option<i64>,
    /// Rows of each layer in `weight` and B: the first, and how many.
    rows: Vec<(i64, i64)>,
    /// Where each update is.
    blocks: Vec<UpdatePlace>,
    /// All updates have one scale, which A is multiplied by.
    scale_on_a: bool,
    /// See [`JointLayer::leaves_update`].
    leaves_update: bool,
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
        let room = room_below(parts, kind);
        if !parts.iter().all(|p| p.joinable) || parts.len() < 2 && room.is_none() {
            return None;
        }
        let kernels = cuda::kernels(parts[0].weight.device(), kind)?;
        let weights: Vec<&Weight> = parts.iter().map(|p| p.weight).collect();
        let weight = match (&room, parts[0].casts) {
            (Some(room), Some(casts)) => casts.weights_above_room(&weights, room.rows)?,
            _ => Weight::side_by_side(&weights)?,
        };
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
        let low_from = room.filter(|_| !blocks.is_empty()).map(|room| row + room.active);
        // The scale of all updates is applied to A: their gradients of B then need none.
        let scale_on_a = blocks.iter().all(|block| block.scale == blocks[0].scale);
        let updates: Vec<&LowRank> = parts.iter().filter_map(|p| p.update.as_ref()).collect();
        let lay_out = || {
            let (options, inputs) = ((kind, weight.device()), weight.size()[1]);
            let a = match low_from {
                Some(from) => weight.narrow(0, from, column),
                None => Tensor::empty([column, inputs], options),
            };
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
        let leaves_update = parts.len() == 1 && parts[0].leaves_update;
        let factors = factors.map(|cast| <[Tensor; 2]>::try_from(cast).expect("A and B").into());
        Some(Self { kernels, weight, outputs: row, factors, low_from, rows, blocks, scale_on_a, leaves_update })
    }

    /// Returns the outputs (T, out) of each layer, columns of one matrix, and the low-rank results (T, R of all). The update of a layer
    /// alone may be left to the addition behind it.
    fn forward(&self, x: &Tensor) -> (Vec<Tensor>, Option<Tensor>) {
        let all = x.linear(&cast(&self.weight, x.kind()), None::<&Tensor>);
        let low = self.factors.as_ref().map(|(a, _)| match self.low_from {
            Some(from) => all.narrow(1, from, a.size()[0]),
            None => x.linear(a, None::<&Tensor>),
        });
        let mut y = all.narrow(1, 0, self.outputs);
        if let (Some(low), Some((_, b))) = (&low, &self.factors)
            && !(self.leaves_update && awaited_update::leave(&y, low, b))
        {
            y = y.addmm_(low, &b.tr());
        }
        // Detached, because a view could not become a result of the graph's node.
        (self.rows.iter().map(|(row, n)| y.narrow(1, *row, *n).detach()).collect(), low)
    }

    /// Returns the gradient of x, if it is needed, and those of each update's A and B, given those of the outputs and
    /// what the updates need: the low-rank results, and x unless every A is frozen. The gradients of factors may be left to the node in
    /// front of the `layer`, which has the factors at these places.
    fn backward(
        &self,
        grads: &[Tensor],
        x: Option<Tensor>,
        low: Option<&Tensor>,
        needs_x: bool,
        layer: Option<&(Rc<LayerGradients>, Vec<usize>)>,
    ) -> Vec<Option<Tensor>> {
        let g = beside_each_other(grads); // (T, out of all)
        let room = gradient_room::take(&g); // also where it is not used, so that it does not stay
        let frozen = || cast(&self.weight.narrow(0, 0, self.outputs), g.kind());
        let (Some(low), Some((a, b))) = (low, &self.factors) else {
            return vec![needs_x.then(|| g.matmul(&frozen()))];
        };
        let (g_x, g_low) = if self.low_from == Some(self.outputs) {
            // The gradients of outputs and of low-rank results are columns of one matrix, times weights and A below them. Also where
            // there is no room behind those of the outputs, so that a layer that is replayed gets the same bits.
            let (ranks, width, rows) = (a.size()[0], self.outputs, g.size()[0]);
            let all = room.unwrap_or_else(|| {
                let all = Tensor::empty([rows, self.weight.size()[0]], (g.kind(), g.device()));
                if needs_x {
                    all.narrow(1, 0, width).copy_(&g);
                }
                all
            });
            let g_low = g.mm_out(&all.narrow(1, width, ranks), b);
            let both = || all.narrow(1, 0, width + ranks).matmul(&self.weight.narrow(0, 0, width + ranks));
            (needs_x.then(both), g_low)
        } else {
            let g_low = g.matmul(b); // (T, R of all)
            (needs_x.then(|| g.matmul(&frozen()).addmm_(&g_low, a)), g_low)
        };
        let mut products = self.gradient_products(x, (&g, low), g_low);
        let trains_a = products.len() > self.blocks.len();
        if let Some((layer, places)) = layer {
            products.iter_mut().flat_map(|p| &mut p.of_factors).for_each(|(factor, ..)| *factor = places[*factor]);
            match layer.leave(products) {
                Ok(()) => return std::iter::once(g_x).chain(places.iter().map(|_| None)).collect(),
                Err(all) => products = all,
            }
        }
        let mut all: Vec<FactorProduct> = products.iter().map(WaitingProduct::product).collect();
        let (g_a, of_b) = match gradients_at_once(&all) {
            Some(mut found) => {
                let of_b = found.split_off(trains_a.into());
                (found.pop(), of_b)
            }
            None => {
                all.truncate(trains_a.into());
                (all.first().map(factor_gradient), self.gradients_of_b(&g, low))
            }
        };
        let of_a = |block: &UpdatePlace| g_a.as_ref().map(|g_a| g_a.narrow(0, block.columns.0, block.columns.1));
        let of_factors = self.blocks.iter().zip(of_b).flat_map(|(block, g_b)| [of_a(block), Some(g_b)]);
        std::iter::once(g_x).chain(of_factors).collect()
    }

    /// Returns the products that are the gradients of factors: of all A (R of all, in), if x is given, and of each B (out, R), given those of all
    /// outputs (T, out of all), the low-rank results and their gradient. Factors count as A and B of each update in turn.
    fn gradient_products(&self, x: Option<Tensor>, (g, low): (&Tensor, &Tensor), g_low: Tensor) -> Vec<WaitingProduct> {
        let of_a = x.map(|x| {
            let of_factors = self.blocks.iter().enumerate().map(|(i, block)| (2 * i, block.columns.0, block.columns.1));
            let of_factors = of_factors.collect();
            let scale = if self.scale_on_a { self.blocks[0].scale } else { 1.0 };
            WaitingProduct { wide: x, narrow: g_low, scale, transposed: true, of_factors }
        });
        let of_b = self.blocks.iter().enumerate().map(|(i, block)| WaitingProduct {
            wide: g.narrow(1, block.rows.0, block.rows.1),
            narrow: low.narrow(1, block.columns.0, block.columns.1),
            scale: if self.scale_on_a { 1.0 } else { block.scale },
            transposed: false,
            of_factors: vec![(2 * i + 1, 0, block.rows.1)],
        });
        of_a.into_iter().chain(of_b).collect()
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

/// Room for the factors A below the weights of layers.
struct Room {
    /// Rows for all adapters of these layers, a multiple of 8.
    rows: i64,
    /// The first row of the active adapter.
    active: i64,
}

/// Returns the room for factors A below the weights of layers, whichever adapter is active, so that a policy and its reference are the
/// same products. `None` if there can be none: no adapter, factors that are computed anew at each call, or weights in another dtype than
/// `kind`. The results of a layer alone would keep their memory as long as the low-rank results do, so it has room only if
/// they do not need memory of their own ([`JointLayer::summed`]).
fn room_below(parts: &[JointLayer], kind: Kind) -> Option<Room> {
    const ALIGNED: i64 = 8;
    let fits = |p: &JointLayer| p.casts.is_some() && p.weight.kind() == kind && (parts.len() > 1 || p.summed);
    if !parts.iter().all(fits) {
        return None;
    }
    let of_parts: Vec<&[(usize, i64)]> = parts.iter().map(|p| p.ranks.as_deref()).collect::<Option<_>>()?;
    let active = parts.iter().filter(|p| p.update.is_some()).find_map(|p| p.adapter);
    let ranks = |wanted: &dyn Fn(usize) -> bool| -> i64 {
        of_parts.iter().flat_map(|ranks| ranks.iter()).filter(|(id, _)| wanted(*id)).map(|(_, rank)| rank).sum()
    };
    let rows = (ranks(&|_| true) + ALIGNED - 1) / ALIGNED * ALIGNED;
    let before = active.map_or(0, |active| ranks(&|id| id < active));
    (rows > 0).then_some(Room { rows, active: before })
}

/// Returns matrices (T, …) as one, side by side: a view if they are columns of one already.
pub(in crate::nn) fn beside_each_other(parts: &[Tensor]) -> Tensor {
    let (first, width) = (&parts[0], parts.iter().map(|t| t.size()[1]).sum::<i64>());
    let (bytes, row) = (first.kind().elt_size_in_bytes(), first.stride()[0]);
    let starts = parts.iter().scan(0, |at, t| Some(std::mem::replace(at, *at + t.size()[1])));
    let placed = |(t, at): (&Tensor, i64)| {
        t.stride() == [row, 1] && t.data_ptr() as usize == first.data_ptr() as usize + at as usize * bytes
    };
    if row >= width && parts.iter().zip(starts).all(placed) {
        return first.as_strided([first.size()[0], width], [row, 1], None::<i64>);
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
    let layer = LayerGradients::of(&leaves[1..]).filter(|_| joined.factors.is_some());
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
        joined.backward(&grads, read.as_ref().map(|read| read()), low.as_ref(), needs_x, layer.as_ref())
    })
}
