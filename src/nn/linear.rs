//! Linear layers, with the adapters attached to them.

use super::adapter::{Adapter, LayerAdapters};
use super::joint_linear::{self, JointLayer};
use super::layer_input::LayerInput;
use super::weight::{Dense, Weight, is_decoding};
use tch::Tensor;

/// A linear layer with its adapters.
pub struct Linear {
    pub(super) dense: Dense,
    pub(super) adapters: LayerAdapters,
}

impl Linear {
    /// Computes the layer's output under the active adapter: (T, in) -> (T, out).
    pub fn forward(&self, input: impl Into<LayerInput>) -> Tensor {
        let [y] = Self::forward_jointly([self], input);
        y
    }

    /// Computes the same under the adapter with this number, whichever is active: (…, in) -> (…, out).
    pub fn forward_with_adapter(&self, adapter: usize, x: &Tensor) -> Tensor {
        self.forward_alone(self.adapters.by_id(adapter), x)
    }

    /// Computes the layer's output under an adapter, or without.
    fn forward_alone(&self, adapter: Option<&dyn Adapter>, x: &Tensor) -> Tensor {
        match adapter {
            Some(adapter) => adapter.forward(x, &self.dense, self.adapters.train()),
            None => self.dense.forward(x),
        }
    }

    /// Computes several layers of one input together: (T, in) -> (T, out) each. If a layer's adapter is more than a
    /// low-rank update, and in decoding, they are computed one by one.
    pub fn forward_jointly<const N: usize>(layers: [&Self; N], input: impl Into<LayerInput>) -> [Tensor; N] {
        let input = input.into();
        let parts = || layers.iter().map(|l| l.joint_layer()).collect::<Option<Vec<JointLayer>>>();
        match if is_decoding() { None } else { parts() } {
            Some(parts) => joint_linear::products(&input, None, &parts).try_into().expect("a result for each layer"),
            None => layers.map(|l| l.forward_alone(l.adapters.active(), &input.x)),
        }
    }

    /// Returns the layer as a product with at most a low-rank update; `None` if its active adapter is anything else.
    fn joint_layer(&self) -> Option<JointLayer<'_>> {
        let update = match self.adapters.active() {
            Some(adapter) => Some(adapter.low_rank(self.adapters.train())?),
            None => None,
        };
        // Also those that are not active: see `JointLayer::joinable`.
        let each = |a: &dyn Adapter| a.low_rank(true).is_some_and(|update| update.joinable());
        let joinable = self.dense.bias.is_none() && self.adapters.list.iter().all(|(_, a)| each(&**a));
        Some(JointLayer { base: &self.dense, update, joinable })
    }

    /// Returns the weight (out, in) if the layer is a plain product: no bias and no active adapter.
    pub fn plain_weight(&self) -> Option<&Weight> {
        (self.dense.bias.is_none() && self.adapters.active().is_none()).then_some(&self.dense.weight)
    }

    /// Returns the number of outputs; 0 for the head of a model without output head.
    pub fn outputs(&self) -> i64 {
        self.dense.weight.outputs()
    }
}
