//! Causal attention within the segments of a packed row by libtorch's kernels for CUDA, none of which stores scores.
//!
//! The flash kernel computes in half precision on GPUs of compute capability 8.0 and newer. Everything else (float32,
//! older GPUs, heads of more than 256 numbers) is computed by the memory-efficient kernel. Both read the boundaries of
//! the segments, so rows need no padding; heads are padded with zeros to the multiple of 8 numbers that the kernels
//! ask for, which changes no score.

use super::attention::Attention;
use super::autograd::{differentiable, recorded};
use super::tokens::Segments;
use crate::machine;
use crate::native::{self, EfficientAttention};
use tch::{Device, Kind, Tensor};

/// The kernel that computes a layer's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CudaKernel {
    /// The flash kernel.
    Flash,
    /// The memory-efficient kernel, computing in this dtype.
    Efficient(Kind),
}

/// Returns true if one kernel attends within the segments of a row whatever their lengths, for heads of `head_size` numbers of dtype `kind`: the
/// flash kernel, which reads the boundaries of the segments itself.
pub fn attends_whole_rows(device: Device, kind: Kind, head_size: i64) -> bool {
    matches!(device, Device::Cuda(index) if CudaKernel::of(index, kind, head_size) == CudaKernel::Flash)
}

/// Largest head that the flash kernel computes.
const MAX_FLASH_HEAD: i64 = 256;

impl CudaKernel {
    /// Chooses the kernel for heads of `head_size` numbers of dtype `kind` on the device of this number.
    pub(super) fn of(index: usize, kind: Kind, head_size: i64) -> Self {
        Self::for_capability(machine::cuda_capability(index).unwrap_or_default(), kind, head_size)
    }

    fn for_capability(capability: (u32, u32), kind: Kind, head_size: i64) -> Self {
        let modern = capability >= (8, 0);
        match kind {
            Kind::BFloat16 | Kind::Half if modern && head_size <= MAX_FLASH_HEAD => Self::Flash,
            // Older GPUs have no bfloat16 kernel; float32 holds its numbers exactly.
            Kind::BFloat16 if !modern => Self::Efficient(Kind::Float),
            kind => Self::Efficient(kind),
        }
    }

    /// Computes attention without cap and sinks within each segment: q (T, H, E); k, v (T, K, E) -> (T, H, E). Differentiable.
    pub(super) fn attend(
        self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Segments,
        attention: &Attention,
    ) -> Tensor {
        let Attention { scale, window, .. } = *attention;
        match self {
            Self::Flash => {
                let [pq, pk, pv] = [q, k, v].map(pad_heads);
                let out =
                    native::flash_varlen([&pq, &pk, &pv], &segments.bounds, segments.longest, window, scale).unwrap();
                if pq.size() == q.size() { out } else { out.narrow(2, 0, q.size()[2]).contiguous() }
            }
            Self::Efficient(kind) => efficient_attention([q, k, v], segments, attention, kind),
        }
    }

    /// Returns the bytes that a layer's attention takes in training for a row of this shape, computed in `kind`.
    pub(super) fn memory(self, row: AttentionRow, kind: Kind) -> AttentionMemory {
        let width = kind.elt_size_in_bytes() as u64;
        let AttentionRow { tokens, heads, kv_heads, head_size, .. } = row;
        let (size, padded) = (head_size, padded_size(head_size as i64) as u64);
        let (q, kv) = (tokens * heads, 2 * tokens * kv_heads);
        // The result is also the input of the output projection; a copy of it only exists if it is padded or cast.
        let (numbers, padded_numbers) = ((q + kv) * size * width, (2 * q + kv) * padded * width);
        match self {
            Self::Flash => {
                let result = if padded == size { 0 } else { q * size * width };
                // Sums of the gradient of q in float32, with room for 128 more tokens a segment, and keys' and values'
                // gradients for each query head.
                let sums = (tokens + 128 * row.segments) * heads * padded * 4;
                let expanded = if heads == kv_heads { 0 } else { 2 * q * padded * width };
                let temporary = sums + expanded + (q + kv) * padded * width;
                AttentionMemory { kept: padded_numbers + result + 4 * q, temporary }
            }
            Self::Efficient(computed) => {
                let inner = computed.elt_size_in_bytes() as u64;
                let copied = computed != kind || padded != size;
                let result = q * padded * inner + if copied { q * size * width } else { 0 };
                let slots = row.slots();
                let repeated = if copied { 3 } else { 2 * u64::from(heads != kv_heads) };
                let blocks = slots.div_ceil(BACKWARD_BLOCK) + row.segments;
                let workspace = blocks * heads * padded.div_ceil(64) * (BACKWARD_BLOCK * 64 * 4 + 16);
                let temporary = (repeated + 3) * q * padded * inner + workspace;
                AttentionMemory { kept: numbers + result + 4 * slots * heads, temporary }
            }
        }
    }
}

/// The shape of a packed row and of its heads, on which the memory of attention depends.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRow {
    /// Tokens of the row.
    pub tokens: u64,
    /// Number of segments.
    pub segments: u64,
    /// Tokens of the longest segment.
    pub longest: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Numbers of a head.
    pub head_size: u64,
}

impl AttentionRow {
    /// Returns the positions for which the memory-efficient kernel has memory: it pads the segments of a run to the
    /// longest.
    fn slots(&self) -> u64 {
        let padded = (self.segments * self.longest).min(MAX_PADDING as u64 * self.tokens.max(MIN_RUN as u64));
        padded.max(self.tokens)
    }
}

/// Bytes that one layer's attention takes in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionMemory {
    /// Kept from forward to backward, queries, keys, values and result included.
    pub kept: u64,
    /// The largest temporary tensors, those of the backward.
    pub temporary: u64,
}

impl AttentionMemory {
    /// Returns the larger of each number.
    pub fn larger(self, other: Self) -> Self {
        Self { kept: self.kept.max(other.kept), temporary: self.temporary.max(other.temporary) }
    }
}

/// The kernels' heads are multiples of this number.
const HEAD_STEP: i64 = 8;

/// Rows of a tile of the memory-efficient kernel's backward.
const BACKWARD_BLOCK: u64 = 64;

fn padded_size(head_size: i64) -> i64 {
    (head_size + HEAD_STEP - 1) / HEAD_STEP * HEAD_STEP
}

/// Pads heads with zeros: (T, H, E) -> (T, H, E rounded up to a multiple of 8).
fn pad_heads(t: &Tensor) -> Tensor {
    match padded_size(t.size()[2]) - t.size()[2] {
        0 => t.shallow_clone(),
        missing => t.constant_pad_nd([0, missing]),
    }
}

/// How many times as many positions as tokens the memory-efficient kernel may have memory for.
const MAX_PADDING: i64 = 4;

/// Runs of fewer tokens than this are not split: their memory is small.
const MIN_RUN: i64 = 1024;

/// Consecutive segments that one call of the memory-efficient kernel computes.
#[derive(Debug, PartialEq)]
struct Run {
    /// First segment, and the number of segments.
    segments: (i64, i64),
    /// First token, and the number of tokens.
    tokens: (i64, i64),
    /// Tokens of the longest segment.
    longest: i64,
}

/// Splits segments of these lengths into runs. The kernel stores the log-sum-exp, and sums gradients, as if every
/// segment were as long as the longest, so that short segments next to a long one could take many times their memory.
fn runs(lengths: &[i64]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut start = 0;
    for (i, &n) in lengths.iter().enumerate() {
        let fits = |run: &&mut Run| {
            let (count, tokens) = (run.segments.1 + 1, run.tokens.1 + n);
            count * run.longest.max(n) <= MAX_PADDING * tokens.max(MIN_RUN)
        };
        match runs.last_mut().filter(fits) {
            Some(run) => {
                run.segments.1 += 1;
                run.tokens.1 += n;
                run.longest = run.longest.max(n);
            }
            None => runs.push(Run { segments: (i as i64, 1), tokens: (start, n), longest: n }),
        }
        start += n;
    }
    runs
}

/// Computes attention by the memory-efficient kernel in `kind`. Keys and values are repeated for the query heads that
/// share them; the repeated, padded or cast copies are made again in the backward instead of being kept.
fn efficient_attention(inputs: [&Tensor; 3], segments: &Segments, attention: &Attention, kind: Kind) -> Tensor {
    let Attention { scale, window, .. } = *attention;
    let (heads, size, own) = (inputs[0].size()[1], inputs[0].size()[2], inputs[0].kind());
    let with_lse = recorded(&inputs);
    let runs: Vec<Run> = runs(&segments.lengths).into_iter().filter(|run| run.tokens.1 > 0).collect();
    let bounds = segments.bounds.shallow_clone();
    let saved = inputs.map(Tensor::shallow_clone);
    let forward = || {
        let parts: Vec<EfficientAttention> = runs
            .iter()
            .map(|run| {
                let [q, k, v] = inputs.map(|t| operand(t, run, heads, kind));
                native::efficient_varlen([&q, &k, &v], &run.bounds(&bounds), run.longest, window, scale, with_lse)
                    .unwrap()
            })
            .collect();
        let (outs, lses): (Vec<Tensor>, Vec<Option<Tensor>>) = parts.into_iter().map(|p| (p.out, p.lse)).unzip();
        let computed = join(outs, 1); // (1, T, H, E')
        // What the backward needs must not be the result itself, which will own the backward.
        let kept = computed.detach();
        let out = match computed.size()[3] == size && kind == own {
            true => computed,
            false => computed.narrow(3, 0, size).to_kind(own).contiguous(),
        };
        (out, (saved, kept, lses, runs, bounds))
    };
    let out = differentiable(&inputs, forward, move |(inputs, out, lses, runs, bounds), g| {
        let mut grads: [Vec<Tensor>; 3] = Default::default();
        for (run, lse) in runs.iter().zip(lses) {
            let [q, k, v] = inputs.each_ref().map(|t| operand(t, run, heads, kind));
            let g = pad_heads(&g.squeeze_dim(0).narrow(0, run.tokens.0, run.tokens.1).to_kind(kind)).unsqueeze(0);
            let out = out.narrow(1, run.tokens.0, run.tokens.1);
            let lse = lse.as_ref().expect("asked for if a gradient is recorded");
            let bounds = run.bounds(bounds);
            let part =
                native::efficient_varlen_backward(&g, [&q, &k, &v], (&out, lse), &bounds, run.longest, window, scale)
                    .unwrap();
            for ((all, g), input) in grads.iter_mut().zip(part).zip(inputs) {
                all.push(input_gradient(&g, input));
            }
        }
        grads.map(|parts| Some(join(parts, 0))).into()
    });
    out.squeeze_dim(0)
}

/// Concatenates the parts of the runs along `dim`.
fn join(mut parts: Vec<Tensor>, dim: i64) -> Tensor {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, dim) }
}

impl Run {
    /// Returns the boundaries of the run's segments, counted from its first token, given those of the row.
    fn bounds(&self, row: &Tensor) -> Tensor {
        let (first, count) = self.segments;
        match first {
            0 => row.narrow(0, 0, count + 1),
            _ => row.narrow(0, first, count + 1) - self.tokens.0,
        }
    }
}

/// Returns a run's part of an input as the kernel takes it, in `kind`: (T, K, E) -> (1, T of the run, `heads`, E').
fn operand(t: &Tensor, run: &Run, heads: i64, kind: Kind) -> Tensor {
    let part = pad_heads(&t.narrow(0, run.tokens.0, run.tokens.1).to_kind(kind));
    let s = part.size();
    let shared = heads / s[1];
    let part = match shared {
        1 => part,
        _ => part.unsqueeze(2).expand([s[0], s[1], shared, s[2]], false).reshape([s[0], heads, s[2]]),
    };
    part.unsqueeze(0)
}

/// Turns the gradient of an operand into that of the input that it was made of: (1, T, H, E') -> (T, K, E).
fn input_gradient(g: &Tensor, input: &Tensor) -> Tensor {
    let (heads, size) = (input.size()[1], input.size()[2]);
    let g = g.squeeze_dim(0).narrow(2, 0, size);
    let s = g.size();
    let g = match s[1] / heads {
        1 => g,
        shared => g.reshape([s[0], heads, shared, size]).sum_dim_intlist([2i64].as_slice(), false, g.kind()),
    };
    g.to_kind(input.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gpu_gets_a_kernel_that_it_has() {
        use CudaKernel::{Efficient, Flash};
        let (half, bf16, f32) = (Kind::Half, Kind::BFloat16, Kind::Float);
        for (capability, kind, head, kernel) in [
            ((9, 0), bf16, 64, Flash),
            ((8, 0), half, 100, Flash), // padded to 104
            ((8, 0), bf16, 288, Efficient(bf16)),
            ((9, 0), f32, 64, Efficient(f32)),
            ((7, 5), half, 64, Efficient(half)),
            ((7, 5), bf16, 64, Efficient(f32)),
            ((7, 0), f32, 20, Efficient(f32)),
        ] {
            assert_eq!(CudaKernel::for_capability(capability, kind, head), kernel, "{capability:?} {kind:?} {head}");
        }
    }

    #[test]
    fn runs_cover_the_row_and_bound_its_padding() {
        let alike = runs(&[500, 400, 0, 512]);
        assert_eq!(alike, [Run { segments: (0, 4), tokens: (0, 1412), longest: 512 }]);
        let short = [16; 128];
        let mixed = [&[2048][..], &short, &[2048], &short].concat();
        let runs = runs(&mixed);
        assert!(runs.len() <= 4, "{runs:?}");
        let (mut segment, mut token) = (0, 0);
        for run in &runs {
            assert_eq!((run.segments.0, run.tokens.0), (segment, token));
            let own = &mixed[segment as usize..][..run.segments.1 as usize];
            assert_eq!((run.tokens.1, Some(&run.longest)), (own.iter().sum(), own.iter().max()));
            assert!(run.segments.1 * run.longest <= MAX_PADDING * run.tokens.1.max(MIN_RUN), "{run:?}");
            segment += run.segments.1;
            token += run.tokens.1;
        }
        assert_eq!((segment as usize, token), (mixed.len(), mixed.iter().sum()));
    }

    #[test]
    fn no_kernel_takes_memory_for_scores() {
        let row = |longest| AttentionRow {
            tokens: 8192,
            segments: 8192 / longest,
            longest,
            heads: 4,
            kv_heads: 2,
            head_size: 64,
        };
        for kernel in [CudaKernel::Flash, CudaKernel::Efficient(Kind::Float)] {
            let [short, long] = [64, 8192].map(|longest| kernel.memory(row(longest), Kind::Float));
            assert!(long.kept <= short.kept && long.temporary <= short.temporary, "{kernel:?}: {short:?} {long:?}");
        }
    }
}
