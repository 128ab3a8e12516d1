//! Linear layers, with the adapters attached to them.

use super::adapter::{Adapter, JointForm, LayerAdapters};
use super::joint_linear::{self, JointLayer, LowRank};
use super::layer_input::LayerInput;
use super::scale::scale_columns;
use super::weight::{Dense, Weight, cast, is_decoding};
use tch::{Kind, Tensor};

/// A linear layer with its adapters.
pub struct Linear {
    pub(super) dense: Dense,
    pub(super) adapters: LayerAdapters,
    /// What happens to the outputs; nothing, except for some output heads.
    pub(super) logits: LogitChange,
    /// See `JointLayer::summed`.
    pub(super) summed: bool,
}

/// What an output head does to its products: `c tanh(scale z / c)`, or `scale z` without a cap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitChange {
    /// Factor on the products.
    pub scale: f64,
    /// Bound c of the logits; `None`: they have no bound.
    pub softcap: Option<f64>,
}

impl LogitChange {
    /// Changes nothing.
    pub const NONE: Self = Self { scale: 1.0, softcap: None };

    fn apply(self, logits: Tensor) -> Tensor {
        let scaled = if self.scale == 1.0 { logits } else { logits * self.scale };
        match self.softcap {
            Some(cap) => (scaled / cap).tanh() * cap,
            None => scaled,
        }
    }
}

impl Linear {
    /// Returns the output head with this change of its products.
    pub fn with_logits(self, logits: LogitChange) -> Self {
        Self { logits, ..self }
    }

    /// Returns the layer, whose result may be overwritten if `summed` is true: [`super::ops::add_rms_norm`] adds it to another
    /// tensor.
    pub fn with_sum(self, summed: bool) -> Self {
        Self { summed, ..self }
    }

    /// Computes the layer's output under the active adapter: (T, in) -> (T, out).
    pub fn forward(&self, input: impl Into<LayerInput>) -> Tensor {
        let [y] = Self::forward_jointly([self], input);
        y
    }

    /// Computes the same, in training with each number of the weight under the adapter limited to this magnitude. Gradients reach
    /// a number that is limited only if `learns_beyond` is true.
    pub fn forward_limited(&self, x: &Tensor, limit: f64, learns_beyond: bool) -> Tensor {
        let y = self.forward(x);
        if !self.adapters.train() {
            return y;
        }
        let (weight, _) = self.merged();
        let beyond = weight.clamp(-limit, limit) - &weight;
        let beyond = if learns_beyond { beyond.detach() } else { beyond };
        y + x.matmul(&cast(&beyond, x.kind()).tr())
    }

    /// Computes the same under the adapter with this number, whichever is active: (…, in) -> (…, out).
    pub fn forward_with_adapter(&self, adapter: usize, x: &Tensor) -> Tensor {
        self.forward_alone(self.adapters.by_id(adapter), x)
    }

    /// Computes the layer's output under an adapter, or without.
    fn forward_alone(&self, adapter: Option<&dyn Adapter>, x: &Tensor) -> Tensor {
        self.logits.apply(match adapter {
            Some(adapter) => adapter.forward(x, &self.dense, self.adapters.train()),
            None => self.dense.forward(x),
        })
    }

    /// Computes the layer's output in decoding: (S, in) -> (S, out). If rows have different adapters, the frozen layer is
    /// computed once for all of them.
    fn decode(&self, x: &Tensor) -> Tensor {
        let Some(groups) = self.adapters.groups() else { return self.forward_alone(self.adapters.active(), x) };
        self.logits.apply(self.adapters.replace_rows(&groups, self.dense.forward(x), |adapter, rows, y| {
            let x = x.index_select(0, rows);
            adapter.add_update(y, &x).unwrap_or_else(|| adapter.forward(&x, &self.dense, self.adapters.train()))
        }))
    }

    /// Computes several layers of one input together: (T, in) -> (T, out) each. In decoding, and where a layer's adapter
    /// has no joint form, a layer is computed on its own.
    pub fn forward_jointly<const N: usize>(layers: [&Self; N], input: impl Into<LayerInput>) -> [Tensor; N] {
        let input = input.into();
        if is_decoding() {
            return layers.map(|l| l.decode(&input.x));
        }
        let (forms, biases) = (layers.map(|l| l.joint_form()), layers.map(|l| l.bias()));
        let parts = layers.iter().zip(&forms).zip(&biases);
        let parts = parts.filter_map(|((l, form), bias)| Some(l.joint_layer(form.as_ref()?, bias.as_ref())));
        let mut products = joint_linear::products(&input, None, &parts.collect::<Vec<_>>()).into_iter();
        std::array::from_fn(|i| match &forms[i] {
            Some(form) => {
                let y = products.next().expect("a product for each joint layer");
                layers[i].logits.apply(scaled(y, form, biases[i].as_ref()))
            }
            None => layers[i].forward_alone(layers[i].adapters.active(), &input.x),
        })
    }

    /// Returns the weight (out, in) and the bias (out) in float32 that give the layer's output under the active adapter, but
    /// for the adapter's dropout; differentiable. For layers whose products are computed elsewhere, token after token.
    pub fn merged(&self) -> (Tensor, Tensor) {
        let weight = self.dense.weight.dense(Kind::Float);
        let weight = self.adapters.active().map_or_else(|| weight.shallow_clone(), |adapter| adapter.merged(&weight));
        let zeros = || Tensor::zeros([weight.size()[0]], (Kind::Float, weight.device()));
        let bias = self.bias().map_or_else(zeros, |bias| cast(&bias, Kind::Float));
        (weight, bias)
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
        let casts = Some(&self.adapters.switches.casts);
        let rank = |(id, a): &(usize, Box<dyn Adapter>)| Some((*id, a.factor_parameters()?[0].size()[0]));
        let ranks = self.adapters.list.iter().map(rank).collect();
        let (adapter, summed) = (self.adapters.switches.active.get(), self.summed);
        let leaves_update = summed && form.output_scale.is_none() && self.logits == LogitChange::NONE;
        JointLayer { weight: &self.dense.weight, bias, update, joinable, ranks, adapter, summed, leaves_update, casts }
    }

    /// Returns true if an adapter, active or not, has a low-rank update of the layer whose factors are parameters.
    pub fn has_update(&self) -> bool {
        self.adapters.list.iter().any(|(_, adapter)| adapter.factor_parameters().is_some())
    }

    /// Returns the factors of the active adapter's low-rank update, A and B, if they are parameters.
    pub fn factors(&self) -> Vec<Tensor> {
        let factors = self.adapters.active().and_then(|adapter| adapter.factor_parameters());
        factors.map_or_else(Vec::new, Into::into)
    }

    /// Returns true if the layer adds the same vector to every row of its output, under the active adapter.
    pub fn adds_bias(&self) -> bool {
        self.dense.bias.is_some() || self.adapters.active().is_some_and(|adapter| adapter.adds_bias())
    }

    /// Returns the weight (out, in) if it is frozen and the layer a plain product, whichever adapter is active: none is attached.
    pub(super) fn unadapted_weight(&self) -> Option<&Weight> {
        let plain = self.dense.bias.is_none() && self.logits == LogitChange::NONE && self.adapters.list.is_empty();
        plain.then_some(&self.dense.weight).filter(|weight| weight.trained().is_none())
    }

    /// Returns the weight (out, in) if the layer is a plain product: no bias, no active adapter and no change of the
    /// outputs.
    pub fn plain_weight(&self) -> Option<&Weight> {
        let unadapted = self.adapters.groups().is_none() && self.adapters.active().is_none();
        let plain = self.dense.bias.is_none() && self.logits == LogitChange::NONE && unadapted;
        plain.then_some(&self.dense.weight)
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
