//! Attention of a layer with its projections, norms and rotation.

use super::design::{AttentionDesign, Design, NormKind, Projections, QkNorm};
use super::norm::Norm;
use crate::models::family::Config;
use crate::nn::{Attention, CachedKeys, ForwardPass, LayerInput, Linear, ModuleScope, Producer, Rope, ops};
use std::rc::Rc;
use tch::Tensor;

/// Attention of one layer.
pub struct SelfAttention {
    projections: ProjectionLayers,
    output: Linear,
    norms: Option<QkNorms>,
    /// (E) ones, and what is added to the variance: values are normalised.
    value_norm: Option<(Tensor, f64)>,
    /// Later layers read its keys and values.
    shared: bool,
    /// `None`: the layer does not know positions.
    rope: Option<Rc<Rope>>,
    interleaved: bool,
    clip_qkv: Option<f64>,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    pub attention: Attention,
}

enum ProjectionLayers {
    Separate { q: Linear, k: Linear, v: Linear },
    ByKind(Linear),
    ByGroup(Linear),
}

struct QkNorms {
    q: Norm,
    k: Norm,
    /// They read all heads of a token as one vector.
    whole: bool,
}

impl SelfAttention {
    /// Builds the attention of layer `i` at `scope`. `rope` is the rotary embedding that the layer has if it has one.
    pub fn build(c: &Config, scope: &ModuleScope, design: &Design, i: usize, rope: &Rc<Rope>) -> Self {
        let AttentionDesign { projections, qkv_bias, output, output_bias, qk_norm, interleaved, .. } = design.attention;
        let (d, e, heads, kv_heads) = (c.hidden_size, c.head_dim, c.num_attention_heads, c.num_key_value_heads);
        let projection = |name: &str, heads: i64| (scope / name).linear(d, heads * e, qkv_bias);
        let projections = match projections {
            Projections::Separate => ProjectionLayers::Separate {
                q: projection("q_proj", heads),
                k: projection("k_proj", kv_heads),
                v: projection("v_proj", kv_heads),
            },
            Projections::ByKind(name) => ProjectionLayers::ByKind(projection(name, heads + 2 * kv_heads)),
            Projections::ByGroup(name) => ProjectionLayers::ByGroup(projection(name, heads + 2 * kv_heads)),
            Projections::Latent(_) => unreachable!("`LayerAttention` builds latent attention"),
        };
        let AttentionDesign { softcap, scale, alibi, .. } = design.attention;
        let ones = || Tensor::ones([e], (scope.kind(), scope.device()));
        let sinks = design.attention.sinks.then(|| Rc::new(scope.vector("sinks", heads)));
        Self {
            projections,
            output: (scope / output).linear(heads * e, d, output_bias).with_sum(design.sums_results()),
            norms: QkNorms::build(c, scope, design.norm, qk_norm),
            value_norm: design.attention.value_norm.then(|| (ones(), c.norm_eps)),
            shared: c.key_value_layers.iter().filter(|source| **source == i).count() > 1,
            rope: design.attention.rotates[i].then(|| rope.clone()),
            interleaved,
            clip_qkv: design.attention.clip_qkv,
            heads,
            kv_heads,
            head_dim: e,
            attention: Attention { scale, window: c.windows[i], softcap, alibi, relative: None, sinks },
        }
    }

    /// Computes layer `i`'s attention: (T, D) -> (T, D).
    pub fn forward(&self, i: usize, input: LayerInput, pass: &mut ForwardPass) -> Tensor {
        let [q, k, v] = self.project(input);
        let [q, k, v] = match &self.rope {
            Some(rope) if self.interleaved => {
                let (q, k) = pass.rotate(rope, halves(&q), halves(&k));
                [q, k, v]
            }
            Some(rope) => pass.rotate_beside(rope, q, k, v),
            None => [q, k, v],
        };
        if self.shared {
            pass.hand_on(Producer::Layer(i), vec![k.shallow_clone(), v.shallow_clone()]);
        }
        let y = pass.attend_to(CachedKeys { layer: i, write: !self.shared }, i, [&q, &k, &v], &self.attention);
        self.output.forward(&y.view([-1, self.heads * self.head_dim]))
    }

    /// Returns its linear layers.
    pub fn linear_layers(&self) -> Vec<&Linear> {
        match &self.projections {
            ProjectionLayers::Separate { q, k, v } => vec![q, k, v, &self.output],
            ProjectionLayers::ByKind(all) | ProjectionLayers::ByGroup(all) => vec![all, &self.output],
        }
    }

    /// Returns the length up to which sequences are rotated by other frequencies than beyond it, if there is such a length.
    pub fn rotation_switch(&self) -> Option<i64> {
        self.rope.as_ref()?.switch()
    }

    /// Returns queries (T, H, E), keys and values (T, K, E).
    fn project(&self, input: LayerInput) -> [Tensor; 3] {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        let counts = [heads, kv_heads, kv_heads];
        let [q, k, v] = match &self.projections {
            ProjectionLayers::Separate { q, k, v } => Linear::forward_jointly([q, k, v], input),
            ProjectionLayers::ByKind(all) => {
                let all = all.forward(input);
                let from = [0, heads, heads + kv_heads];
                std::array::from_fn(|i| all.narrow(1, from[i] * head_dim, counts[i] * head_dim).contiguous())
            }
            ProjectionLayers::ByGroup(all) => {
                let shared = heads / kv_heads;
                let groups = all.forward(input).view([-1, kv_heads, shared + 2, head_dim]);
                let part = |from: i64, count: i64| groups.narrow(2, from, count).contiguous();
                [part(0, shared), part(shared, 1), part(shared + 1, 1)]
            }
        };
        let by_head = |t: Tensor, heads: i64| t.view([-1, heads, head_dim]);
        let (q, k) = match &self.norms {
            Some(norms) if norms.whole => (norms.q.forward(&q).x, norms.k.forward(&k).x),
            _ => (q, k),
        };
        let [q, k, v] = match self.clip_qkv {
            Some(limit) => [q, k, v].map(|t| t.clamp(-limit, limit)),
            None => [q, k, v],
        };
        let (q, k) = (by_head(q, heads), by_head(k, kv_heads));
        let (q, k) = match &self.norms {
            Some(norms) if !norms.whole => (norms.q.forward(&q).x, norms.k.forward(&k).x),
            _ => (q, k),
        };
        let v = by_head(v, kv_heads);
        let v = match &self.value_norm {
            Some((ones, eps)) => ops::rms_norm(&v, ones, *eps),
            None => v,
        };
        [q, k, v]
    }
}

impl QkNorms {
    fn build(c: &Config, scope: &ModuleScope, kind: NormKind, norm: QkNorm) -> Option<Self> {
        let (e, heads) = (c.head_dim, [c.num_attention_heads, c.num_key_value_heads]);
        let of = |name: &str, heads: i64| {
            let scope = scope / name;
            match (norm, kind) {
                (QkNorm::Whole, _) => Norm::build(kind, &scope, heads * e, c.norm_eps),
                (QkNorm::EachHead, NormKind::Layer { bias }) => {
                    Norm::Layer(scope.layer_norm_of(&[heads, e], bias, c.norm_eps))
                }
                _ => Norm::build(kind, &scope, e, c.norm_eps),
            }
        };
        let build = || Self { q: of("q_norm", heads[0]), k: of("k_norm", heads[1]), whole: norm == QkNorm::Whole };
        (norm != QkNorm::None).then(build)
    }
}

/// Moves the pairs (2i, 2i + 1) of each head to (i, i + E/2), which rotation turns. Queries and keys are moved alike, so their
/// products stay the same.
pub(super) fn halves(t: &Tensor) -> Tensor {
    let s = t.size();
    t.view([s[0], s[1], s[2] / 2, 2]).transpose(2, 3).reshape(s)
}
