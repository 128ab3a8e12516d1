//! Linear layers and embeddings, with the adapters attached to them.

use super::joint_linear::{self, JointLayer, LayerInput, LowRank};
use crate::native;
use std::cell::Cell;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// A small trainable addition to one frozen layer.
pub trait Adapter {
    /// Computes the adapted layer's output: (…, in) -> (…, out). `train` turns dropout on.
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor;
    /// Returns the rows `ids` of the adapted embedding table `weight` (V, D): (T) -> (T, D).
    fn embed(&self, ids: &Tensor, weight: &Tensor) -> Tensor {
        embedding_rows(&self.merged(weight), ids)
    }
    /// Returns the weight that gives the same output without the adapter; differentiable.
    fn merged(&self, weight: &Tensor) -> Tensor;
    /// Returns the bias that belongs to the merged weight.
    fn merged_bias(&self, bias: &Tensor) -> Tensor {
        bias.shallow_clone()
    }
    /// Returns the update's factors for products in dtype `kind`, if the adapter is nothing but a low-rank update of
    /// the layer's own weight. `None` if it also needs dropout, which it does only with `train`.
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
    /// Computes `x W^T + bias`: (…, in) -> (…, out).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let bias = self.bias.as_ref().map(|b| cast(b, x.kind()));
        product(x, &self.weight, bias.as_ref())
    }
}

thread_local! {
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// While a value of this type exists, products on this thread use the kernels of decoding, for which a row's result
/// does not depend on the other rows of the batch.
pub struct DecodingGuard(bool);

impl DecodingGuard {
    /// Switches the thread to the kernels of decoding until the value is dropped.
    pub fn begin() -> Self {
        Self(DECODING.replace(true))
    }
}

impl Drop for DecodingGuard {
    fn drop(&mut self) {
        DECODING.set(self.0);
    }
}

/// Returns true while a [`Decoding`] exists on this thread.
pub fn is_decoding() -> bool {
    DECODING.get()
}

/// Computes `x (…, in) @ weight (out, in)^T + bias` in the dtype of x; a weight of another dtype is converted.
pub fn product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    // The kernels of decoding read bfloat16 weights with any x; other formats are converted for them first. Widening
    // is exact, so the result has the same bits either way.
    let weight = if weight.kind() == Kind::BFloat16 { weight.shallow_clone() } else { cast(weight, x.kind()) };
    let decoded = if is_decoding() { native::product(x, &weight, bias, None) } else { None };
    decoded.unwrap_or_else(|| aligned_operand(x, x.kind()).linear(&aligned_operand(&weight, x.kind()), bias))
}

/// Computes `y + x (T, in) @ weight (out, in)^T`, rounded once; may overwrite y.
pub fn add_product(mut y: Tensor, x: &Tensor, weight: &Tensor) -> Tensor {
    let decoded = if is_decoding() { native::product(x, weight, None, Some(&y)) } else { None };
    decoded.unwrap_or_else(|| y.addmm_(x, &weight.tr()))
}

/// Converts a tensor to dtype `kind`; returns the same tensor if it already has it.
pub fn cast(t: &Tensor, kind: Kind) -> Tensor {
    if t.kind() == kind { t.shallow_clone() } else { t.to_kind(kind) }
}

/// Converts a tensor to dtype `kind` for use in libtorch's products, on the CPU at an address that is a multiple of
/// 16 bytes. On AMD's processors MKL sums in another order if the address is not, and a weight in a mapped file may
/// be at any address: equal weights would then give different bits.
pub fn aligned_operand(t: &Tensor, kind: Kind) -> Tensor {
    let t = cast(t, kind);
    let misplaced = t.device() == Device::Cpu && t.data_ptr() as usize % 16 != 0;
    if misplaced { t.copy() } else { t }
}

/// The active adapter of a model, and whether dropout is on; shared by all its layers.
#[derive(Default)]
pub struct AdapterSwitches {
    /// Number of the active adapter; `None`: the bare base.
    pub active: Cell<Option<usize>>,
    /// True while the model is trained: dropout is on.
    pub train: Cell<bool>,
}

/// The adapters attached to one layer, with their numbers in the model.
pub struct LayerAdapters {
    pub(super) switches: Rc<AdapterSwitches>,
    pub(super) list: Vec<(usize, Box<dyn Adapter>)>,
}

impl LayerAdapters {
    /// Returns this layer's part of the active adapter; `None` if none is active or it does not adapt this layer.
    pub fn active(&self) -> Option<&dyn Adapter> {
        self.by_id(self.switches.active.get()?)
    }

    fn by_id(&self, id: usize) -> Option<&dyn Adapter> {
        self.list.iter().find(|(i, _)| *i == id).map(|(_, a)| &**a)
    }

    fn train(&self) -> bool {
        self.switches.train.get()
    }
}

/// A linear layer with its adapters.
pub struct Linear {
    pub(super) dense: Dense,
    pub(super) adapters: LayerAdapters,
}

impl Linear {
    /// Computes the layer's output under the active adapter: (…, in) -> (…, out).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match self.adapters.active() {
            Some(adapter) => adapter.forward(x, &self.dense, self.adapters.train()),
            None => self.dense.forward(x),
        }
    }

    /// Computes the same under the adapter with this number, whichever is active.
    pub fn forward_with_adapter(&self, adapter: usize, x: &Tensor) -> Tensor {
        match self.adapters.by_id(adapter) {
            Some(adapter) => adapter.forward(x, &self.dense, self.adapters.train()),
            None => self.dense.forward(x),
        }
    }

    /// Computes several layers of one input together: (T, in) -> (T, out) each. If a layer's adapter is more than a
    /// low-rank update, and in decoding, they are computed one by one.
    pub fn forward_jointly<const N: usize>(layers: [&Self; N], input: &LayerInput) -> [Tensor; N] {
        let parts = || layers.iter().map(|l| l.joint_layer(input.x.kind())).collect::<Option<Vec<JointLayer>>>();
        match if is_decoding() { None } else { parts() } {
            Some(parts) => joint_linear::products(input, None, &parts).try_into().expect("a result for each layer"),
            None => layers.map(|l| l.forward(&input.x)),
        }
    }

    /// Does the same as [`Linear::together`] for one layer.
    pub fn forward_input(&self, input: &LayerInput) -> Tensor {
        let [y] = Self::forward_jointly([self], input);
        y
    }

    /// Returns the layer as a product with at most a low-rank update; `None` if its active adapter is anything else.
    fn joint_layer(&self, kind: Kind) -> Option<JointLayer<'_>> {
        let update = match self.adapters.active() {
            Some(adapter) => Some(adapter.low_rank(kind, self.adapters.train())?),
            None => None,
        };
        Some(JointLayer { base: &self.dense, update })
    }

    /// Returns the weight (out, in) if the layer is a plain product: no bias and no active adapter.
    pub fn plain_weight(&self) -> Option<&Tensor> {
        (self.dense.bias.is_none() && self.adapters.active().is_none()).then_some(&self.dense.weight)
    }
}

/// An embedding table: one vector per token or position.
pub struct Embedding {
    pub(super) weight: Tensor, // (V, D)
    pub(super) adapters: LayerAdapters,
    pub(super) kind: Kind,
}

impl Embedding {
    /// Returns the number of vectors.
    pub fn count(&self) -> i64 {
        self.weight.size()[0]
    }

    /// Returns the vectors of `ids` under the active adapter, in the run's dtype: (T) -> (T, D).
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        let rows = match self.adapters.active() {
            Some(adapter) => adapter.embed(ids, &self.weight),
            None => embedding_rows(&self.weight, ids),
        };
        cast(&rows, self.kind)
    }
}

/// Returns the rows `ids` (T) of a table (V, D): (T, D).
pub fn embedding_rows(table: &Tensor, ids: &Tensor) -> Tensor {
    Tensor::embedding(table, ids, -1, false, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Returns a copy of the tensor whose data begins `by` bytes after a multiple of 64.
    fn displaced(t: &Tensor, by: i64) -> Tensor {
        let bytes = t.contiguous().view([-1]).view_dtype(Kind::Uint8);
        let room = Tensor::zeros([bytes.size()[0] + 128], (Kind::Uint8, Device::Cpu));
        let start = (64 - room.data_ptr() as i64 % 64) % 64 + by;
        let part = room.narrow(0, start, bytes.size()[0]);
        part.shallow_clone().copy_(&bytes);
        part.view_dtype(t.kind()).view(t.size().as_slice())
    }

    /// A reference model mapped from a file and a policy in allocated memory must compute the same numbers.
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
