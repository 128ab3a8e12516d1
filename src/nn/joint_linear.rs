//! Computes several linear layers of one input together, as one operation of the graph:
//! `y_i = x W_i^T + bias_i + s_i (m x) A_i^T B_i^T`. Each layer is trained or frozen; a frozen one may have a
//! low-rank update.
//!
//! Narrow products are slow (one of width 16 runs at half the rate of wide ones). So the A of all layers are
//! multiplied as one matrix, in the forward and in the backward, and the input's gradient is accumulated in place. To
//! save memory, the backward recomputes what is cheap to recompute: the bfloat16 copy of a float32 weight, and an
//! input that is the result of a norm or an activation.

use super::autograd::differentiable_many;
use super::layer_input::LayerInput;
use super::weight::{Dense, Weight, cast};
use crate::native::cuda::{self, Cast};
use std::rc::Rc;
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
    fn trains_a(&self) -> bool {
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
struct Factors {
    /// The A of all updates (R of all, in).
    a: Tensor,
    /// B (out, R) of each update, multiplied by its scale.
    b: Vec<Tensor>,
}

impl Factors {
    /// Casts the factors to dtype `kind`; `None` if there are no updates. They are cast at each call: small tensors
    /// kept between large ones that are freed would fragment memory. The scale is applied in float32, because it may
    /// include dropout's 1 / (1 - p): in a bfloat16 mask its rounding would make every update up to 0.4 % too large.
    fn cast(updates: &[&LowRank], kind: Kind) -> Option<Self> {
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
fn to_float(products: Vec<(Tensor, f64)>) -> Vec<Tensor> {
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

/// On CUDA, frozen layers as one: their weights lie side by side, and the factors B are the blocks of a block-diagonal
/// matrix. That is a third of the launches for q, k and v.
struct Joined {
    kernels: &'static cuda::Kernels,
    /// The weights of all layers (out of all, in), as they are stored.
    weight: Tensor,
    /// The A of all updates (R of all, in), and B of each, multiplied by its scale, in its own rows and columns (out of
    /// all, R of all), otherwise zero; `None` without updates.
    factors: Option<(Tensor, Tensor)>,
    /// Rows of each layer in `weight` and B: the first, and how many.
    rows: Vec<(i64, i64)>,
    /// Where each update is.
    blocks: Vec<Block>,
}

/// The place of an update in the factors of joined layers.
struct Block {
    /// First row, and how many.
    rows: (i64, i64),
    /// First column, and how many: the rank.
    columns: (i64, i64),
    scale: f64,
}

impl Joined {
    /// Joins layers and casts their factors to dtype `kind`; `None` unless all of them can be joined.
    fn of(parts: &[JointLayer], kind: Kind) -> Option<Self> {
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
                blocks.push(Block { rows: (row, outputs), columns: (column, rank), scale: u.scale });
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
            let place = |block: &Block| {
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
        let of_block = |block: &Block| {
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
}

impl<'a> JointLayer<'a> {
    /// Returns a layer that is not joined with others, with its bias.
    pub fn of(base: &'a Dense, update: Option<LowRank>) -> Self {
        Self { weight: &base.weight, bias: base.bias.as_ref(), update, joinable: false }
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
        return joined_products(joined, input, &inputs, rows, needs_input);
    }
    let forward = || {
        let updates: Vec<&LowRank> = parts.iter().filter_map(|p| p.update.as_ref()).collect();
        let (a, b) = Factors::cast(&updates, x.kind()).map(|f| (f.a, f.b)).unzip();
        let mut b = b.into_iter().flatten();
        let masked = mask.map(|m| x * m);
        let low = a.as_ref().map(|a| masked.as_ref().unwrap_or(x).linear(a, None::<&Tensor>)); // (T, R of all)
        let (mut outputs, mut saved, mut column) = (Vec::new(), Vec::new(), 0);
        for JointLayer { weight, bias, update, .. } in parts {
            let mut y = weight.product(x, bias.map(|b| cast(b, x.kind())).as_ref()); // (T, out)
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
        let mut g_factors = Vec::new(); // that of A (R of all, in) if any is trained, then that of each B (out, R)
        let trains_a = saved.iter().any(|s| s.update.as_ref().is_some_and(|u| u.trains_a));
        if let Some((low, a)) = low {
            let updates = || grads.iter().zip(saved).filter_map(|(g, s)| Some((g, s.update.as_ref()?)));
            let g_low = gradient_of_low(updates(), low);
            g_x = g_x.map(|mut g_x| match mask {
                Some(m) => g_x + g_low.matmul(a) * m,
                None => g_x.addmm_(&g_low, a),
            });
            g_factors.extend(x.as_ref().filter(|_| trains_a).map(|x| (g_low.tr().matmul(x), 1.0)));
            let of_b =
                |(g, u): (&Tensor, &SavedLowRank)| (g.tr().matmul(&low.narrow(1, u.column, u.b.size()[1])), u.scale);
            g_factors.extend(updates().map(of_b));
        }
        let mut g_factors = to_float(g_factors).into_iter();
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

/// Returns the gradient `g^T x` of a weight (out, in) in dtype `kind`, given those of its outputs g (T, out) and its
/// inputs x (T, in). On a GPU the product of half-precision factors is written in float32 without a second operation.
fn weight_gradient(g: &Tensor, x: &Tensor, kind: Kind) -> Tensor {
    let half = matches!(g.kind(), Kind::BFloat16 | Kind::Half);
    if half && kind == Kind::Float && g.device().is_cuda() {
        return g.tr().mm_dtype(x, kind);
    }
    g.tr().matmul(x).to_kind(kind)
}

/// Computes the outputs of joined layers, (T, out) each; `leaves` are the input and the trained factors. `needs_input`:
/// a gradient needs the input.
fn joined_products(
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
mod tests {
    use super::*;
    use tch::Device;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(Kind::Float)
    }

    fn leaf(shape: &[i64]) -> Tensor {
        random(shape).set_requires_grad(true)
    }

    /// Three layers of one input (T 7, in 6): with rank 2, with none, and with rank 3 and a bias.
    struct TestLayers {
        x: Tensor,
        dense: [Dense; 3],
        factors: [(Tensor, Tensor, f64); 2],
    }

    impl TestLayers {
        fn new() -> Self {
            tch::manual_seed(5);
            let dense = |outputs: i64, bias: bool| Dense {
                weight: random(&[outputs, 6]).into(),
                bias: bias.then(|| random(&[outputs])),
            };
            Self {
                x: leaf(&[7, 6]),
                dense: [dense(4, false), dense(5, false), dense(3, true)],
                factors: [(leaf(&[2, 6]), leaf(&[4, 2]), 0.5), (leaf(&[3, 6]), leaf(&[3, 3]), 2.0)],
            }
        }

        fn parts(&self) -> Vec<JointLayer<'_>> {
            let update = |i: usize| {
                let (a, b, scale) = &self.factors[i];
                Some(LowRank { masters: [a.shallow_clone(), b.shallow_clone()], scale: *scale })
            };
            let updates = [update(0), None, update(1)];
            self.dense.iter().zip(updates).map(|(base, update)| JointLayer::of(base, update)).collect()
        }

        /// Computes the same outputs by libtorch's operations.
        fn composed(&self, mask: Option<&Tensor>) -> Vec<Tensor> {
            let masked = mask.map_or_else(|| self.x.shallow_clone(), |m| &self.x * m);
            let factors = [Some(&self.factors[0]), None, Some(&self.factors[1])];
            let one = |(dense, factors): (&Dense, Option<&(Tensor, Tensor, f64)>)| {
                let y = self.x.linear(&dense.weight.dense(Kind::Float), dense.bias.as_ref());
                factors.map_or_else(|| y.shallow_clone(), |(a, b, s)| &y + masked.matmul(&a.tr()).matmul(&b.tr()) * *s)
            };
            self.dense.iter().zip(factors).map(one).collect()
        }

        /// Returns the outputs, and the gradients of x and all factors for a loss over the outputs that are `used`.
        fn learn(&self, outputs: Vec<Tensor>, used: &[usize]) -> Vec<Tensor> {
            let loss = used.iter().map(|i| (&outputs[*i] * (&outputs[*i] + 1.0)).sum(Kind::Float));
            loss.reduce(|a, b| a + b).expect("one is used").backward();
            let leaves = std::iter::once(&self.x).chain(self.factors.iter().flat_map(|(a, b, _)| [a, b]));
            outputs.iter().map(Tensor::detach).chain(leaves.map(take_gradient)).collect()
        }
    }

    /// Takes a leaf's gradient away from it; returns zeros if it has none.
    fn take_gradient(t: &Tensor) -> Tensor {
        let g = t.grad();
        let taken = if g.defined() { g.copy() } else { t.zeros_like() };
        crate::native::drop_gradients(std::iter::once(t));
        taken
    }

    #[track_caller]
    fn near(a: &[Tensor], b: &[Tensor]) {
        let gap = |(a, b): (&Tensor, &Tensor)| ((a - b).abs().max() / b.abs().max().clamp_min(1.0)).double_value(&[]);
        let worst = a.iter().zip(b).map(gap).fold(0.0, f64::max);
        assert!(a.len() == b.len() && worst < 2e-6, "gap {worst}");
    }

    #[test]
    fn products_equal_their_composition() {
        let layers = TestLayers::new();
        for used in [&[0, 1, 2][..], &[2], &[1], &[0, 1]] {
            let expected = layers.learn(layers.composed(None), used);
            let found = layers.learn(products(&LayerInput::kept(&layers.x), None, &layers.parts()), used);
            near(&found, &expected);
        }
    }

    #[test]
    fn dropout_is_on_the_way_to_the_updates_alone() {
        let layers = TestLayers::new();
        let mask = Tensor::rand([7, 6], (Kind::Float, Device::Cpu)).gt(0.4).to_kind(Kind::Float) / 0.6;
        let expected = layers.learn(layers.composed(Some(&mask)), &[0, 2]);
        let found = layers.learn(products(&LayerInput::kept(&layers.x), Some(&mask), &layers.parts()), &[0, 2]);
        near(&found, &expected);
    }

    /// The result and every gradient have the same bits, and the input is recomputed once in the backward.
    #[test]
    fn an_input_made_again_teaches_the_same() {
        let layers = TestLayers::new();
        let kept = layers.learn(products(&LayerInput::kept(&layers.x), None, &layers.parts()), &[0, 1, 2]);
        let (made, x) = (Rc::new(std::cell::Cell::new(0)), layers.x.detach());
        let count = made.clone();
        let again = LayerInput::recomputable(layers.x.shallow_clone(), || {
            move || {
                count.set(count.get() + 1);
                x.copy()
            }
        });
        let found = layers.learn(products(&again, None, &layers.parts()), &[0, 1, 2]);
        assert!(kept.iter().zip(&found).all(|(a, b)| a.equal(b)));
        assert_eq!(made.get(), 1);
    }

    /// With every A frozen (LoRA-FA), x and B get the same gradients, and the input is neither kept nor recomputed.
    #[test]
    fn frozen_factors_need_no_input() {
        let mut layers = TestLayers::new();
        let learn = |layers: &TestLayers, input: &LayerInput| {
            let outputs = products(input, None, &layers.parts());
            outputs.iter().map(|y| (y * (y + 1.0)).sum(Kind::Float)).reduce(|a, b| a + b).unwrap().backward();
            [&layers.x, &layers.factors[0].1, &layers.factors[1].1].map(take_gradient)
        };
        let expected = learn(&layers, &LayerInput::kept(&layers.x));
        assert!(layers.factors.iter().all(|(a, ..)| take_gradient(a).abs().max().double_value(&[]) > 0.0));
        layers.factors = layers.factors.map(|(a, b, scale)| (a.detach(), b, scale));
        let input =
            LayerInput::recomputable(layers.x.shallow_clone(), || || -> Tensor { panic!("the input was recomputed") });
        let found = learn(&layers, &input);
        assert!(expected.iter().zip(&found).all(|(a, b)| a.equal(b)));
        assert!(layers.factors.iter().all(|(a, ..)| !a.grad().defined()));
    }

    /// Two layers with trained weights, one of which has an unused output, and one with a frozen weight and a trained
    /// bias.
    #[test]
    fn trained_layers_learn_as_by_libtorch() {
        tch::manual_seed(6);
        let x = leaf(&[7, 6]);
        let dense = [
            Dense { weight: leaf(&[4, 6]).into(), bias: Some(leaf(&[4])) },
            Dense { weight: leaf(&[5, 6]).into(), bias: None },
            Dense { weight: random(&[3, 6]).into(), bias: Some(leaf(&[3])) },
        ];
        let leaves: Vec<&Tensor> = [&x]
            .into_iter()
            .chain(dense.iter().filter_map(|d| d.weight.trained()))
            .chain(dense.iter().filter_map(|d| d.bias.as_ref()))
            .collect();
        let learn = |outputs: Vec<Tensor>| -> Vec<Tensor> {
            ((&outputs[0] * &outputs[0]).sum(Kind::Float) + (&outputs[2] * 3.0).sum(Kind::Float)).backward();
            outputs.iter().map(Tensor::detach).chain(leaves.iter().copied().map(take_gradient)).collect()
        };
        let expected = learn(dense.iter().map(|d| x.linear(&d.weight.dense(Kind::Float), d.bias.as_ref())).collect());
        let parts: Vec<JointLayer> = dense.iter().map(|base| JointLayer::of(base, None)).collect();
        near(&learn(products(&LayerInput::kept(&x), None, &parts)), &expected);
    }
}
