//! Multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434, section 2.1): keys and values of all heads are made of one
//! vector of a few numbers, and all heads share the rotated part of their keys.
//!
//! Keys and values are made before attention is computed, and the cache of decoding holds them: the values with zeros behind
//! them, so that they are as long as the keys.

use super::design::{Design, LatentSizes};
use super::norm::Norm;
use super::self_attention::halves;
use crate::models::family::Config;
use crate::nn::{Attention, ForwardPass, LayerInput, Linear, ModuleScope, Rope};
use std::rc::Rc;
use tch::Tensor;

/// What norms between two factors of a projection add to the variance, whatever config.json says of the others.
const EPS: f64 = 1e-6;

/// Attention of one layer.
pub struct LatentAttention {
    queries: QueryLayers,
    /// Makes the vector of keys and values, and the rotated part of the keys.
    compress: Linear,
    norm: Norm,
    /// Makes the other part of the keys, and the values.
    expand: Linear,
    output: Linear,
    rope: Rc<Rope>,
    heads: i64,
    sizes: LatentSizes,
    pub attention: Attention,
}

/// The layers that make queries.
enum QueryLayers {
    Direct(Linear),
    LowRank { first: Linear, norm: Norm, second: Linear },
}

impl LatentAttention {
    /// Builds the attention of layer `i` at `scope`.
    pub fn build(
        c: &Config,
        scope: &ModuleScope,
        (design, sizes): (&Design, LatentSizes),
        i: usize,
        rope: &Rc<Rope>,
    ) -> Self {
        let (d, heads, bias) = (c.hidden_size, c.num_attention_heads, design.attention.qkv_bias);
        let LatentSizes { query_rank, key_value_rank, plain, rotated, value } = sizes;
        let norm = |name: &str, width: i64| Norm::build(design.norm, &(scope / name), width, EPS);
        let queries = match query_rank {
            None => QueryLayers::Direct((scope / "q_proj").linear(d, heads * (plain + rotated), false)),
            Some(rank) => QueryLayers::LowRank {
                first: (scope / "q_a_proj").linear(d, rank, bias),
                norm: norm("q_a_layernorm", rank),
                second: (scope / "q_b_proj").linear(rank, heads * (plain + rotated), false),
            },
        };
        Self {
            queries,
            compress: (scope / "kv_a_proj_with_mqa").linear(d, key_value_rank + rotated, bias),
            norm: norm("kv_a_layernorm", key_value_rank),
            expand: (scope / "kv_b_proj").linear(key_value_rank, heads * (plain + value), false),
            output: (scope / design.attention.output).linear(heads * value, d, design.attention.output_bias),
            rope: rope.clone(),
            heads,
            sizes,
            attention: Attention { window: c.windows[i], ..Attention::causal(design.attention.scale) },
        }
    }

    /// Computes layer `i`'s attention: (T, D) -> (T, D).
    pub fn forward(&self, i: usize, input: LayerInput, pass: &mut ForwardPass) -> Tensor {
        let LatentSizes { key_value_rank, plain, rotated, value, .. } = self.sizes;
        let (q, compressed) = match &self.queries {
            QueryLayers::Direct(q) => {
                let [q, compressed] = Linear::forward_jointly([q, &self.compress], input);
                (q, compressed)
            }
            QueryLayers::LowRank { first, norm, second } => {
                let [q, compressed] = Linear::forward_jointly([first, &self.compress], input);
                (second.forward(norm.forward(&q)), compressed)
            }
        };
        let q = q.view([-1, self.heads, plain + rotated]);
        let made = self.expand.forward(self.norm.forward(&compressed.narrow(1, 0, key_value_rank).contiguous()));
        let made = made.view([-1, self.heads, plain + value]);
        let q_rotated = halves(&q.narrow(2, plain, rotated));
        let k_rotated = halves(&compressed.narrow(1, key_value_rank, rotated).unsqueeze(1));
        let (q_rotated, k_rotated) = pass.rotate(&self.rope, q_rotated, k_rotated); // (T, H, rotated), (T, 1, rotated)
        let q = Tensor::cat(&[q.narrow(2, 0, plain), q_rotated], 2);
        let k = Tensor::cat(&[made.narrow(2, 0, plain), k_rotated.expand([-1, self.heads, -1], false)], 2);
        let v = made.narrow(2, plain, value);
        let v = if value == plain + rotated { v.contiguous() } else { v.constant_pad_nd([0, plain + rotated - value]) };
        let y = pass.attend(i, &q, &k, &v, &self.attention).narrow(2, 0, value);
        self.output.forward(&y.reshape([-1, self.heads * value]))
    }

    /// Returns the length up to which sequences are rotated by other frequencies than beyond it, if there is such a length.
    pub fn rotation_switch(&self) -> Option<i64> {
        self.rope.switch()
    }
}
