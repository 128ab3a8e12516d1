//! Causal attention within the segments of a packed row.
//!
//! On the CPU the forward is libtorch's flash kernel and the backward recomputes the probabilities from the saved
//! log-sum-exp with three plain products over grouped heads: the stock flash backward issues thousands of tiny
//! products and is slower at the lengths fine-tuning sees. Sinks multiply what it returns by a factor for each query. CUDA's
//! kernels are called by `cuda_attention`. What these kernels do not compute (a window on the CPU, sinks on CUDA, capped or
//! biased scores) is composed in `bands`. rules: which keys a query sees. alibi: biases by distance; relative: trained ones.

mod alibi;
mod bands;
mod relative;
mod rules;

pub use alibi::Alibi;
pub use relative::{RelativeBias, RelativeBuckets};
pub use rules::Attention;

use super::autograd::differentiable;
use super::cuda_attention::{AttentionMemory, AttentionRow, CudaKernel};
use super::tokens::{SegmentGroup, Segments};
use crate::native::{kernels, upload};
use tch::{Device, Kind, Tensor};

/// Longest segment, in tokens, whose backward recomputes all scores at once. For longer ones the flash backward is
/// faster.
const RECOMPUTE_MAX_LENGTH: i64 = 1024;

/// Returns the memory of one layer's attention in training, for a row of this shape computed in `kind` on `device`.
pub fn memory(row: AttentionRow, attention: &Attention, kind: Kind, device: Device) -> AttentionMemory {
    let attention = attention.within(row.longest as i64);
    match device {
        Device::Cuda(_) if !attention.has_plain_softmax() => return bands::memory(row, &attention, kind),
        Device::Cuda(index) => return CudaKernel::of(index, kind, row.head_size as i64).memory(row, kind),
        _ if attention.has_plain_scores() => {}
        _ => return bands::memory(row, &attention, kind),
    }
    let width = kind.elt_size_in_bytes() as u64;
    // q, k, v and result, padded; the gathered result.
    let kept = row.tokens * row.head_size * (3 * row.heads + 2 * row.kv_heads) * width;
    let temporary = match row.longest <= RECOMPUTE_MAX_LENGTH as u64 {
        // Probabilities and their gradient.
        true => 2 * row.tokens * row.longest * row.heads * width,
        // Keys and values of each query head, their gradients and those of the queries, and sums over query heads.
        false => row.tokens * row.head_size * (5 * row.heads + 2 * row.kv_heads) * width,
    };
    AttentionMemory { kept, temporary }
}

/// Computes attention within each segment: q (T, H, E); k, v (T, K, E) -> (T, H, E).
pub fn packed_attention(q: &Tensor, k: &Tensor, v: &Tensor, segments: &Segments, attention: &Attention) -> Tensor {
    // A bias is known up to a number that all scores of a query share, and a sink's is none of them.
    assert!(!attention.has_bias() || attention.sinks.is_none(), "no family has a bias of scores beside sinks");
    let attention = attention.within(segments.longest);
    match q.device() {
        Device::Cuda(index) if attention.has_plain_softmax() => {
            return CudaKernel::of(index, q.kind(), q.size()[2]).attend(q, k, v, segments, &attention);
        }
        _ => {}
    }
    let (groups, shape) = (segments.groups().iter().map(SegmentGroup::shallow_clone).collect::<Vec<_>>(), q.size());
    let table = attention.relative.as_ref().map(|bias| bias.table());
    let biased = table.is_some();
    let inputs: Vec<&Tensor> = [q, k, v].into_iter().chain(attention.sinks.as_deref()).chain(table).collect();
    differentiable(
        &inputs,
        || {
            let blocks: Vec<AttendedGroup> =
                groups.into_iter().map(|g| AttendedGroup::new(g, q, k, v, &attention)).collect();
            let out = scatter(blocks.iter().map(|b| (b.group(), b.out())), &shape, q);
            (out, blocks)
        },
        move |blocks, g| {
            let parts: Vec<Gradients> = blocks.iter().map(|b| b.backward(&b.group().gather(g))).collect();
            let join = |i: usize, like: [i64; 3]| {
                Some(scatter(blocks.iter().zip(&parts).map(|(b, p)| (b.group(), &p.of_inputs[i])), &like, g))
            };
            let kv = [g.size()[0], blocks[0].kv_heads(), g.size()[2]];
            let full = [g.size()[0], g.size()[1], g.size()[2]];
            let of_sinks = parts.iter().filter_map(|p| Some(p.of_sinks.as_ref()?.shallow_clone()));
            let of_sinks = of_sinks.reduce(|sum, g| sum + g).map(Some);
            let of_bias = parts.iter().filter_map(|p| Some(p.of_bias.as_ref()?.shallow_clone()));
            // A frozen table is an input without a gradient.
            let of_bias = biased.then(|| of_bias.reduce(|sum, g| sum + g));
            [join(0, full), join(1, kv), join(2, kv)].into_iter().chain(of_sinks).chain(of_bias).collect()
        },
    )
}

/// The gradients of one group of segments.
struct Gradients {
    /// Of q (n, H, L, E), k and v (n, K, L, E).
    of_inputs: [Tensor; 3],
    /// (H) of the sinks, in their dtype, if there are any.
    of_sinks: Option<Tensor>,
    /// (buckets, H) of trained biases, in their dtype, if there are any.
    of_bias: Option<Tensor>,
}

/// One group of segments with its result: computed by libtorch's kernel, or composed.
enum AttendedGroup {
    Kernel(PaddedBlock),
    Bands(bands::BandedBlock),
}

impl AttendedGroup {
    fn new(group: SegmentGroup, q: &Tensor, k: &Tensor, v: &Tensor, attention: &Attention) -> Self {
        let own = attention.within(group.longest);
        match own.has_plain_scores() && q.device() == Device::Cpu {
            true => Self::Kernel(PaddedBlock::new(group, q, k, v, own)),
            false => Self::Bands(bands::BandedBlock::new(group, q, k, v, own)),
        }
    }

    fn group(&self) -> &SegmentGroup {
        match self {
            Self::Kernel(block) => &block.group,
            Self::Bands(block) => &block.group,
        }
    }

    /// Returns the result (n, H, L, E).
    fn out(&self) -> &Tensor {
        match self {
            Self::Kernel(block) => &block.out,
            Self::Bands(block) => &block.out,
        }
    }

    fn kv_heads(&self) -> i64 {
        match self {
            Self::Kernel(block) => block.k.size()[1],
            Self::Bands(block) => block.kv_heads(),
        }
    }

    /// Returns the gradients, given that of the result (n, H, L, E).
    fn backward(&self, g: &Tensor) -> Gradients {
        match self {
            Self::Kernel(block) => {
                Gradients { of_inputs: block.backward(g), of_sinks: block.gradient_of_sinks(g), of_bias: None }
            }
            Self::Bands(block) => block.backward(g),
        }
    }
}

/// One group of segments as a padded block, with everything that its backward needs.
struct PaddedBlock {
    group: SegmentGroup,
    q: Tensor,   // (n, H, L, E)
    k: Tensor,   // (n, K, L, E)
    v: Tensor,   // (n, K, L, E)
    out: Tensor, // (n, H, L, E)
    lse: Tensor, // (n, H, L) log-sum-exp of the scores, sinks included
    attention: Attention,
}

impl PaddedBlock {
    fn new(group: SegmentGroup, q: &Tensor, k: &Tensor, v: &Tensor, attention: Attention) -> Self {
        let (q, k, v, scale) = (group.gather(q), group.gather(k), group.gather(v), attention.scale);
        let (out, lse) =
            Tensor::internal_scaled_dot_product_flash_attention_for_cpu(&q, &k, &v, 0.0, true, None::<&Tensor>, scale);
        let (out, lse) = attention.with_sinks(out, lse);
        Self { group, q, k, v, out, lse, attention }
    }

    /// Returns the gradient of the sinks, given the gradient `g` of the output (n, H, L, E): the share of a sink times what
    /// the mean of the values loses by it, summed over the queries.
    fn gradient_of_sinks(&self, g: &Tensor) -> Option<Tensor> {
        let sinks = self.attention.sinks.as_deref()?;
        let along = (g.to_kind(Kind::Float) * self.out.to_kind(Kind::Float)).sum_dim_intlist(
            [-1i64].as_slice(),
            false,
            Kind::Float,
        ); // (n, H, L)
        let shares = (sinks.to_kind(Kind::Float).view([1, -1, 1]) - &self.lse).exp();
        let sum = (shares * along).sum_dim_intlist([0i64, 2].as_slice(), false, Kind::Float);
        Some((-sum).to_kind(sinks.kind()))
    }

    /// Returns the gradients of q (n, H, L, E), k and v (n, K, L, E), given the gradient `g` of the output (n, H, L, E). The
    /// share of the sinks, which have no value, is in the log-sum-exp and in the output.
    fn backward(&self, g: &Tensor) -> [Tensor; 3] {
        let Self { q, k, v, out, lse, .. } = self;
        let scale = self.attention.scale;
        let (size, heads) = (k.size(), q.size()[1]);
        if self.group.longest > RECOMPUTE_MAX_LENGTH {
            let (rk, rv) = (repeat_kv(k, heads), repeat_kv(v, heads));
            let (gq, gk, gv) = Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
                g,
                q,
                &rk,
                &rv,
                out,
                lse,
                0.0,
                true,
                None::<&Tensor>,
                scale,
            );
            let sum = |t: Tensor| {
                t.view([size[0], size[1], -1, size[2], size[3]]).sum_dim_intlist([2i64].as_slice(), false, t.kind())
            };
            return [gq, sum(gk), sum(gv)];
        }
        let grouped = |t: &Tensor| t.reshape([size[0] * size[1], -1, size[3]]); // (n*K, G*L, E)
        if kernels::supports(&[q, k, v]) {
            let (gy, y, k) = (grouped(g), grouped(out).contiguous(), merge_heads(k));
            let p = grouped(q).bmm(&k.transpose(1, 2)); // (n*K, G*L, L)
            kernels::best().probabilities(&p, &lse.contiguous(), scale);
            let gv = p.transpose(1, 2).bmm(&gy);
            let gs = gy.bmm(&merge_heads(v).transpose(1, 2));
            kernels::best().score_gradient(&gs, &p, &gy, &y, scale);
            drop(p);
            let (gq, gk) = (gs.bmm(&k), gs.transpose(1, 2).bmm(&grouped(q)));
            return [gq.view_as(q), gk.view_as(&self.k), gv.view_as(v)];
        }
        let lse = lse.reshape([size[0] * size[1], -1, 1]);
        let p = (scores(q, k, scale) - lse).exp(); // (n*K, G*L, L)
        let (gy, y) = (grouped(g), grouped(out));
        let dot =
            (gy.to_kind(Kind::Float) * y.to_kind(Kind::Float)).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
        let gv = p.to_kind(v.kind()).transpose(1, 2).bmm(&gy);
        let gp = gy.bmm(&merge_heads(v).transpose(1, 2));
        let gs = ((gp.to_kind(Kind::Float) - dot) * p * scale).to_kind(q.kind());
        let gq = gs.bmm(&merge_heads(k));
        let gk = gs.transpose(1, 2).bmm(&grouped(q));
        [gq.view_as(q), gk.view_as(k), gv.view_as(v)]
    }
}

/// Merges the first two dimensions: (n, K, L, E) -> (n*K, L, E).
fn merge_heads(t: &Tensor) -> Tensor {
    let s = t.size();
    t.reshape([s[0] * s[1], s[2], s[3]])
}

/// Repeats keys or values for each query head that shares them: (n, K, L, E) -> (n, H, L, E).
fn repeat_kv(t: &Tensor, heads: i64) -> Tensor {
    let s = t.size();
    if s[1] == heads {
        return t.shallow_clone();
    }
    let g = heads / s[1];
    t.unsqueeze(2).expand([s[0], s[1], g, s[2], s[3]], false).reshape([s[0], heads, s[2], s[3]])
}

/// Computes scaled causal scores in float32: (n*K, G*L, L). The G query heads that share a key head follow each other
/// in the second dimension.
fn scores(q: &Tensor, k: &Tensor, scale: f64) -> Tensor {
    let s = k.size();
    let raw = q.reshape([s[0] * s[1], -1, s[3]]).bmm(&merge_heads(k).transpose(1, 2)).to_kind(Kind::Float) * scale;
    let hidden = Tensor::ones([s[2], s[2]], (Kind::Bool, q.device())).triu(1);
    raw.view([s[0] * s[1], -1, s[2], s[2]]).masked_fill_(&hidden, f64::NEG_INFINITY).view_as(&raw)
}

impl SegmentGroup {
    fn shallow_clone(&self) -> Self {
        Self { count: self.count, longest: self.longest, rows: self.rows.as_ref().map(Tensor::shallow_clone) }
    }

    /// Copies the rows of a packed row (T, heads, E) into a padded block (n, heads, L, E), contiguous. Padding is zero.
    fn gather(&self, t: &Tensor) -> Tensor {
        if t.device() == Device::Cpu {
            return kernels::gather_heads(t, self.rows.as_ref(), self.count, self.longest);
        }
        let blocks = |t: Tensor| {
            let s = t.size();
            t.view([self.count, self.longest, s[1], s[2]]).transpose(1, 2).contiguous()
        };
        let Some(rows) = &self.rows else { return blocks(t.contiguous()) };
        let [rows, real] = upload([rows.clamp_min(0), rows.ge(0).to_kind(t.kind())], t.device());
        blocks(t.index_select(0, &rows) * real.view([-1, 1, 1]))
    }

    /// Copies a padded block (n, heads, L, E) back to its rows of a packed row (T, heads, E), without padding.
    fn scatter(&self, block: &Tensor, rows: &Tensor) {
        if rows.device() == Device::Cpu {
            return kernels::scatter_heads(block, self.rows.as_ref(), rows);
        }
        let flat = block.transpose(1, 2).reshape([-1, rows.size()[1], rows.size()[2]]);
        match &self.rows {
            None => rows.shallow_clone().copy_(&flat),
            Some(places) => {
                let real = places.ge(0).nonzero().view([-1]);
                let [from, to] = upload([real.shallow_clone(), places.index_select(0, &real)], rows.device());
                let _ = rows.shallow_clone().index_copy_(0, &to, &flat.index_select(0, &from));
            }
        };
    }
}

/// Copies the rows of blocks (n, heads, L, E) back to where they belong in the packed row (T, heads, E), without
/// padding.
fn scatter<'a>(blocks: impl Iterator<Item = (&'a SegmentGroup, &'a Tensor)>, shape: &[i64], like: &Tensor) -> Tensor {
    let rows = Tensor::empty(shape, (like.kind(), like.device()));
    for (group, block) in blocks {
        group.scatter(block, &rows);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes attention by the formula, one segment at a time.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, lengths: &[i64], attention: &Attention) -> Tensor {
        let groups = q.size()[1] / k.size()[1];
        let mut at = 0;
        let mut parts = Vec::new();
        for &n in lengths {
            let pick = |t: &Tensor| t.narrow(0, at, n).transpose(0, 1); // (heads, n, E)
            let wide = |t: &Tensor| pick(t).repeat_interleave_self_int(groups, 0, None::<i64>);
            let back = attention.window.unwrap_or(n);
            let seen = Tensor::ones([n, n], (Kind::Bool, Device::Cpu)).tril(0).triu(1 - back);
            let s = attention.cap(pick(q).matmul(&wide(k).transpose(1, 2)) * attention.scale);
            let s = match attention.alibi {
                Some(alibi @ Alibi { factor, .. }) => {
                    let slopes = Tensor::from_slice(&alibi.slopes(q.size()[1])).to_kind(Kind::Float).view([-1, 1, 1]);
                    s + slopes * factor * Tensor::arange(n, (Kind::Float, Device::Cpu))
                }
                None => s,
            };
            let s = match &attention.relative {
                Some(bias) => s + bias.of_positions((0, n), (0, n)),
                None => s,
            };
            let s = s.masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
            let sinks = attention.sinks.as_deref().map(|sinks| sinks.view([-1, 1, 1]).expand([-1, n, 1], false));
            let all: Vec<Tensor> = std::iter::once(s).chain(sinks).collect();
            let p = Tensor::cat(&all, -1).softmax(-1, Kind::Float).narrow(-1, 0, n);
            parts.push(p.matmul(&wide(v)).transpose(0, 1));
            at += n;
        }
        Tensor::cat(&parts, 0)
    }

    fn compare(lengths: &[i64], heads: i64, kv: i64, attention: &Attention) -> f64 {
        tch::manual_seed(5);
        let total: i64 = lengths.iter().sum();
        let leaf = |h: i64| Tensor::randn([total, h, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (q, k, v) = (leaf(heads), leaf(kv), leaf(kv));
        let weights = Tensor::randn([total, heads, 8], (Kind::Float, Device::Cpu));
        let grads = |y: &Tensor| -> Vec<Tensor> {
            (y * &weights).sum(Kind::Float).backward();
            let table = attention.relative.as_ref().map(|bias| bias.table());
            let leaves = [&q, &k, &v].into_iter().chain(attention.sinks.as_deref()).chain(table);
            leaves
                .map(|t| {
                    let g = t.grad().copy();
                    t.shallow_clone().zero_grad();
                    g
                })
                .collect()
        };
        let ours = packed_attention(&q, &k, &v, &Segments::new(lengths.to_vec(), Device::Cpu), attention);
        let theirs = plain(&q, &k, &v, lengths, attention);
        let gap = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        let (a, b) = (grads(&ours), grads(&theirs));
        a.iter().zip(&b).map(|(a, b)| gap(a, b)).fold(gap(&ours, &theirs), f64::max)
    }

    /// Scores are stored where the backward recomputes them, and nowhere else.
    #[test]
    fn scores_are_counted_where_they_are_made() {
        let row = |longest| AttentionRow { tokens: 8192, segments: 8, longest, heads: 4, kv_heads: 2, head_size: 16 };
        let bytes = |longest| memory(row(longest), &Attention::causal(1.0), Kind::Float, Device::Cpu).temporary;
        assert_eq!([64, 8192].map(bytes), [2 * 8192 * 64 * 4 * 4, 8192 * 16 * (5 * 4 + 2 * 2) * 4]);
    }

    #[test]
    fn packed_attention_equals_one_segment_at_a_time() {
        for (lengths, heads, kv) in [
            (vec![7], 4, 2),
            (vec![5, 5, 5], 4, 2),
            (vec![3, 40, 1, 38, 100, 7], 6, 3),
            (vec![9, 2], 1, 1),
            (vec![1100, 30], 2, 1), // the long segment takes the flash backward
        ] {
            let causal = Attention::causal(0.3);
            // Windows shorter than some, than all and than no segment, of one token, and longer than a band of queries.
            for window in [None, Some(1), Some(4), Some(39), Some(300), Some(2000)] {
                for (softcap, sinks) in [(None, false), (Some(1.5), false), (None, true), (Some(1.5), true)] {
                    // Some sinks take nearly all of the sum, some next to nothing.
                    let new =
                        || (Tensor::arange(heads, (Kind::Float, Device::Cpu)) * 2.0 - 3.0).set_requires_grad(true);
                    let attention = Attention { window, softcap, sinks: sinks.then(|| new().into()), ..causal.clone() };
                    let gap = compare(&lengths, heads, kv, &attention);
                    assert!(gap < 3e-5, "{lengths:?}, {attention:?}: {gap}");
                    if !sinks && window.is_none_or(|window| window == 39) {
                        let alibi = Some(Alibi { factor: 0.7, rounded: false });
                        let with_alibi = Attention { alibi, ..attention.clone() };
                        let gap = compare(&lengths, heads, kv, &with_alibi);
                        assert!(gap < 5e-5, "{lengths:?}, {with_alibi:?}: {gap}");
                        let table = Tensor::randn([8, heads], (Kind::Float, Device::Cpu)).set_requires_grad(true);
                        let buckets = RelativeBuckets { count: 8, max_distance: 30 };
                        let relative = Some(RelativeBias::new(table, buckets));
                        let gap = compare(&lengths, heads, kv, &Attention { relative, ..attention });
                        assert!(gap < 2e-4, "{lengths:?}, relative: {gap}");
                    }
                }
            }
        }
    }
}
