//! Attention of a layer without keys and values of its own: it reads those of an earlier layer.

use super::design::{AttentionDesign, Design, QkNorm};
use super::norm::Norm;
use crate::models::family::Config;
use crate::nn::{Attention, CachedKeys, ForwardPass, LayerInput, Linear, ModuleScope, Producer, Rope};
use std::rc::Rc;
use tch::Tensor;

/// Attention of one layer.
pub struct SharingAttention {
    queries: Linear,
    norm: Option<Norm>,
    output: Linear,
    /// `None`: the layer does not know positions.
    rope: Option<Rc<Rope>>,
    heads: i64,
    head_dim: i64,
    keys: CachedKeys,
    pub attention: Attention,
}

impl SharingAttention {
    /// Builds the attention of layer `i` at `scope`: queries have a projection of their own, and a norm of each head if there
    /// are norms. `rope` is the rotary embedding that the layer has if it has one.
    pub fn build(c: &Config, scope: &ModuleScope, design: &Design, i: usize, rope: &Rc<Rope>) -> Self {
        let AttentionDesign { qkv_bias, output, output_bias, qk_norm, scale, softcap, .. } = design.attention;
        let (d, e, heads) = (c.hidden_size, c.head_dim, c.num_attention_heads);
        let norm = || Norm::build(design.norm, &(scope / "q_norm"), e, c.norm_eps);
        let source = c.key_value_layers[i];
        Self {
            queries: (scope / "q_proj").linear(d, heads * e, qkv_bias),
            norm: (qk_norm != QkNorm::None).then(norm),
            output: (scope / output).linear(heads * e, d, output_bias),
            rope: design.attention.rotates[i].then(|| rope.clone()),
            heads,
            head_dim: e,
            keys: CachedKeys { layer: source, write: !c.key_value_layers[i + 1..].contains(&source) },
            attention: Attention { window: c.windows[i], softcap, ..Attention::causal(scale) },
        }
    }

    /// Computes layer `i`'s attention: (T, D) -> (T, D).
    pub fn forward(&self, i: usize, input: LayerInput, pass: &mut ForwardPass) -> Tensor {
        let q = self.queries.forward(input).view([-1, self.heads, self.head_dim]);
        let q = self.norm.as_ref().map_or_else(|| q.shallow_clone(), |norm| norm.forward(&q).x);
        let q = self.rope.as_ref().map_or_else(|| q.shallow_clone(), |rope| pass.rotate_queries(rope, &q));
        let [k, v] = pass.handed_on(Producer::Layer(self.keys.layer)) else { panic!("keys and values") };
        let (k, v) = (k.shallow_clone(), v.shallow_clone());
        let y = pass.attend_to(self.keys, i, [&q, &k, &v], &self.attention);
        self.output.forward(&y.view([-1, self.heads * self.head_dim]))
    }

    /// Returns the length up to which sequences are rotated by other frequencies than beyond it, if there is such a length.
    pub fn rotation_switch(&self) -> Option<i64> {
        self.rope.as_ref()?.switch()
    }
}
