//! Linear layers and embeddings, with room for adapters.

use super::joint::{self, Input, LowRank, Part};
use crate::native;
use std::cell::Cell;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// A small trainable addition to one frozen layer.
pub trait Adapter {
    /// The adapted layer's output: (…, in) -> (…, out). `train` turns dropout on.
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor;
    /// Rows `ids` (T) of the adapted table `weight` (V, D): (T) -> (T, D).
    fn embed(&self, ids: &Tensor, weight: &Tensor) -> Tensor {
        look_up(&self.merged(weight), ids)
    }
    /// The weight that gives the same output without the adapter; differentiable.
    fn merged(&self, weight: &Tensor) -> Tensor;
    /// The bias that goes with it.
    fn merged_bias(&self, bias: &Tensor) -> Tensor {
        bias.shallow_clone()
    }
    /// The update's factors for products in `kind`, where the adapter is a low-rank update and, with dropout if `train`
    /// is on, nothing else.
    fn low_rank(&self, _kind: Kind, _train: bool) -> Option<LowRank<'_>> {
        None
    }
}

/// A weight (out, in) and perhaps a bias (out).
pub struct Dense {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

impl Dense {
    /// (…, in) -> (…, out)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let bias = self.bias.as_ref().map(|b| cast(b, x.kind()));
        product(x, &self.weight, bias.as_ref())
    }
}

thread_local! {
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, this thread's products are those of decoding: a row's result does not depend on the rows beside it.
pub struct Decoding(bool);

impl Decoding {
    pub fn begin() -> Self {
        Self(DECODING.replace(true))
    }
}

impl Drop for Decoding {
    fn drop(&mut self) {
        DECODING.set(self.0);
    }
}

/// Whether a `Decoding` lives on this thread.
pub fn decoding() -> bool {
    DECODING.get()
}

/// `x (…, in) @ weight (out, in)^T + bias`; a weight of another dtype than x is read as one of x's.
pub fn product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    // What the kernels of decoding do not read is brought into x's format for them, too: the same bits either way.
    let weight = if weight.kind() == Kind::BFloat16 { weight.shallow_clone() } else { cast(weight, x.kind()) };
    let decoded = if decoding() { native::product(x, &weight, bias, None) } else { None };
    decoded.unwrap_or_else(|| operand(x, x.kind()).linear(&operand(&weight, x.kind()), bias))
}

/// `y + x (T, in) @ weight (out, in)^T`, rounded once; may write to y.
pub fn product_onto(mut y: Tensor, x: &Tensor, weight: &Tensor) -> Tensor {
    let decoded = if decoding() { native::product(x, weight, None, Some(&y)) } else { None };
    decoded.unwrap_or_else(|| y.addmm_(x, &weight.tr()))
}

/// The tensor in `kind`; the same tensor where it already is.
pub fn cast(t: &Tensor, kind: Kind) -> Tensor {
    if t.kind() == kind { t.shallow_clone() } else { t.to_kind(kind) }
}

/// As `cast`, for libtorch's products. On the CPU it lies at a multiple of 16 bytes: on some processors (AMD's) MKL sums in
/// another order where it does not, and a weight in a mapped file may lie anywhere.
pub fn operand(t: &Tensor, kind: Kind) -> Tensor {
    let t = cast(t, kind);
    let misplaced = t.device() == Device::Cpu && t.data_ptr() as usize % 16 != 0;
    if misplaced { t.copy() } else { t }
}

/// Which adapter answers and whether dropout is on; one per model, shared by its layers.
#[derive(Default)]
pub struct Switches {
    pub active: Cell<Option<usize>>,
    pub train: Cell<bool>,
}

/// The adapters of one layer, by their number in the model.
pub struct Attached {
    pub(super) switches: Rc<Switches>,
    pub(super) list: Vec<(usize, Box<dyn Adapter>)>,
}

impl Attached {
    pub fn active(&self) -> Option<&dyn Adapter> {
        self.numbered(self.switches.active.get()?)
    }

    fn numbered(&self, id: usize) -> Option<&dyn Adapter> {
        self.list.iter().find(|(i, _)| *i == id).map(|(_, a)| &**a)
    }

    fn train(&self) -> bool {
        self.switches.train.get()
    }
}

/// A linear layer.
pub struct Linear {
    pub(super) dense: Dense,
    pub(super) adapters: Attached,
}

impl Linear {
    /// (…, in) -> (…, out)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match self.adapters.active() {
            Some(adapter) => adapter.forward(x, &self.dense, self.adapters.train()),
            None => self.dense.forward(x),
        }
    }

    /// As `forward`, under the adapter of this number, whichever is switched on.
    pub fn forward_under(&self, adapter: usize, x: &Tensor) -> Tensor {
        match self.adapters.numbered(adapter) {
            Some(adapter) => adapter.forward(x, &self.dense, self.adapters.train()),
            None => self.dense.forward(x),
        }
    }

    /// Several layers of one input (T, in) -> (T, out) each, side by side.
    pub fn together<const N: usize>(layers: [&Self; N], input: &Input) -> [Tensor; N] {
        let parts = || layers.iter().map(|l| l.part(input.x.kind())).collect::<Option<Vec<Part>>>();
        match if decoding() { None } else { parts() } {
            Some(parts) => joint::products(input, None, &parts).try_into().expect("a result for each layer"),
            None => layers.map(|l| l.forward(&input.x)),
        }
    }

    /// As `together`, of one layer.
    pub fn read(&self, input: &Input) -> Tensor {
        let [y] = Self::together([self], input);
        y
    }

    /// The layer as a product with at most a low-rank update, where it is that.
    fn part(&self, kind: Kind) -> Option<Part<'_>> {
        let update = match self.adapters.active() {
            Some(adapter) => Some(adapter.low_rank(kind, self.adapters.train())?),
            None => None,
        };
        Some(Part { base: &self.dense, update })
    }

    /// The weight (out, in), where the layer is a plain product: no bias, no adapter.
    pub fn plain(&self) -> Option<&Tensor> {
        (self.dense.bias.is_none() && self.adapters.active().is_none()).then_some(&self.dense.weight)
    }
}

/// A table of vectors, one a token.
pub struct Embedding {
    pub(super) weight: Tensor, // (V, D)
    pub(super) adapters: Attached,
    pub(super) kind: Kind,
}

impl Embedding {
    /// Number of vectors.
    pub fn count(&self) -> i64 {
        self.weight.size()[0]
    }

    /// (T) -> (T, D), in the run's dtype.
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        let rows = match self.adapters.active() {
            Some(adapter) => adapter.embed(ids, &self.weight),
            None => look_up(&self.weight, ids),
        };
        cast(&rows, self.kind)
    }
}

/// Rows `ids` (T) of a table (V, D): (T, D).
pub fn look_up(table: &Tensor, ids: &Tensor) -> Tensor {
    Tensor::embedding(table, ids, -1, false, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// The same numbers, so many bytes after an address that is a multiple of 64.
    fn displaced(t: &Tensor, by: i64) -> Tensor {
        let bytes = t.contiguous().view([-1]).view_dtype(Kind::Uint8);
        let room = Tensor::zeros([bytes.size()[0] + 128], (Kind::Uint8, Device::Cpu));
        let start = (64 - room.data_ptr() as i64 % 64) % 64 + by;
        let part = room.narrow(0, start, bytes.size()[0]);
        part.shallow_clone().copy_(&bytes);
        part.view_dtype(t.kind()).view(t.size().as_slice())
    }

    /// A reference that is mapped from a file and a policy in memory of its own must compute the same.
    #[test]
    fn a_product_does_not_depend_on_where_its_operands_lie() {
        if !crate::machine::Cpu::read().avx2 {
            return; // MKL's products for SSE begin at the first aligned number
        }
        tch::manual_seed(3);
        for kind in [Kind::Float, Kind::BFloat16] {
            for (rows, inputs, outputs) in [(1, 64, 96), (7, 64, 512), (130, 576, 200), (33, 100, 77), (257, 48, 64)] {
                let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
                let (x, w) = (random([rows, inputs]), random([outputs, inputs]));
                let expected = product(&displaced(&x, 0), &displaced(&w, 0), None);
                for by in [8, 16, 24, 32, 40, 48] {
                    for (dx, dw) in [(0, by), (by, 0), (by, by)] {
                        let found = product(&displaced(&x, dx), &displaced(&w, dw), None);
                        assert!(found.equal(&expected), "{kind:?} {rows} x {inputs} x {outputs}: x {dx}, w {dw}");
                    }
                }
            }
        }
    }
}
