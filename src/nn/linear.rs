//! Linear layers, with the adapters attached to them.

use super::adapter::{Adapter, JointForm, LayerAdapters};
use super::joint_linear::{self, JointLayer, LowRank};
use super::layer_input::LayerInput;
use super::scale::scale_columns;
use super::weight::{Dense, Weight, cast, is_decoding};
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

    /// Computes several layers of one input together: (T, in) -> (T, out) each. In decoding, and where a layer's adapter
    /// has no joint form, a layer is computed on its own.
    pub fn forward_jointly<const N: usize>(layers: [&Self; N], input: impl Into<LayerInput>) -> [Tensor; N] {
        let input = input.into();
        if is_decoding() {
            return layers.map(|l| l.forward_alone(l.adapters.active(), &input.x));
        }
        let (forms, biases) = (layers.map(|l| l.joint_form()), layers.map(|l| l.bias()));
        let parts = layers.iter().zip(&forms).zip(&biases);
        let parts = parts.filter_map(|((l, form), bias)| Some(l.joint_layer(form.as_ref()?, bias.as_ref())));
        let mut products = joint_linear::products(&input, None, &parts.collect::<Vec<_>>()).into_iter();
        std::array::from_fn(|i| match &forms[i] {
            Some(form) => {
                let y = products.next().expect("a product for each joint layer");
                scaled(y, form, biases[i].as_ref())
            }
            None => layers[i].forward_alone(layers[i].adapters.active(), &input.x),
        })
    }

    /// Returns the layer in the form in which it is computed together with others; `None` if its active adapter has no
    /// such form.
    fn joint_form(&self) -> Option<JointForm> {
        match self.adapters.active() {
            Some(adapter) => adapter.joint_form(self.adapters.train()),
            None => Some(JointForm { update: None, output_scale: None }),
        }
    }

    /// Returns the bias under the active adapter.
    fn bias(&self) -> Option<Tensor> {
        let bias = self.dense.bias.as_ref()?;
        Some(self.adapters.active().map_or_else(|| bias.shallow_clone(), |adapter| adapter.merged_bias(bias)))
    }

    fn joint_layer<'a>(&'a self, form: &JointForm, bias: Option<&'a Tensor>) -> JointLayer<'a> {
        // Also those that are not active: see `JointLayer::joinable`.
        let joinable = self.dense.bias.is_none() && self.adapters.list.iter().all(|(_, a)| a.joinable());
        // The bias is not scaled with the outputs, so that it is added after it.
        let bias = bias.filter(|_| form.output_scale.is_none());
        let update = form.update.as_ref().map(LowRank::shallow_clone);
        JointLayer { weight: &self.dense.weight, bias, update, joinable }
    }

    /// Returns true if the layer adds the same vector to every row of its output, under the active adapter.
    pub fn adds_bias(&self) -> bool {
        self.dense.bias.is_some() || self.adapters.active().is_some_and(|adapter| adapter.adds_bias())
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

/// Applies the scale of a joint form to the products y (T, out) and adds the bias, if there is a scale.
fn scaled(y: Tensor, form: &JointForm, bias: Option<&Tensor>) -> Tensor {
    let Some(scale) = &form.output_scale else { return y };
    let y = scale_columns(&y, scale);
    match bias {
        Some(bias) => &y + cast(bias, y.kind()),
        None => y,
    }
}
