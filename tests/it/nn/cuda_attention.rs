//! Tests attention by CUDA's packed kernels on the fake device of tests/fake_cuda: the forward and the gradients are
//! those of the formula.

use crate::support::fake_cuda::inside;
use crate::support::noise;
use ft::nn::Segments;
use ft::nn::attention::{Attention, packed_attention};
use tch::{Device, Kind, Tensor};

const GPU: Device = Device::Cuda(0);

/// Computes attention by the formula in float64 on the CPU, one segment at a time: q (T, H, E); k, v (T, K, E).
fn formula(q: &Tensor, k: &Tensor, v: &Tensor, lengths: &[i64], attention: &Attention) -> Tensor {
    let mut at = 0;
    let mut parts = Vec::new();
    for &n in lengths {
        let pick = |t: &Tensor| t.narrow(0, at, n).transpose(0, 1); // (heads, n, E)
        let wide = |t: &Tensor| pick(t).repeat_interleave_self_int(q.size()[1] / k.size()[1], 0, None::<i64>);
        let seen = Tensor::ones([n, n], (Kind::Bool, Device::Cpu)).tril(0).triu(1 - attention.window.unwrap_or(n));
        let scores = attention.cap(pick(q).matmul(&wide(k).transpose(1, 2)) * attention.scale);
        let scores = scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
        let sinks = attention
            .sinks
            .as_deref()
            .map(|sinks| sinks.to_device(Device::Cpu).to_kind(Kind::Double).view([-1, 1, 1]).expand([-1, n, 1], false));
        let all: Vec<Tensor> = std::iter::once(scores).chain(sinks).collect();
        let p = Tensor::cat(&all, -1).softmax(-1, Kind::Double).narrow(-1, 0, n);
        parts.push(p.matmul(&wide(v)).transpose(0, 1));
        at += n;
    }
    Tensor::cat(&parts, 0)
}

/// Returns the result and the gradients of q, k and v on the CPU in float64, for the sum of the result times `weights`.
fn results(inputs: &[Tensor; 3], weights: &Tensor, attend: impl Fn(&[Tensor; 3]) -> Tensor) -> Vec<Tensor> {
    let leaves = inputs.each_ref().map(|t| t.detach().copy().set_requires_grad(true));
    let out = attend(&leaves);
    (&out * weights).sum(Kind::Float).backward();
    std::iter::once(out.detach())
        .chain(leaves.iter().map(|t| t.grad()))
        .map(|t| t.to_kind(Kind::Double).to_device(Device::Cpu))
        .collect()
}

/// Compares a kernel with the formula: (lengths, query heads, key heads, head size) of each case.
fn compare(kind: Kind, bound: f64) {
    let causal = Attention::causal(0.3);
    for (window, softcap) in
        [(None, None), (Some(1), None), (Some(6), None), (Some(64), None), (Some(6), Some(2.0)), (None, Some(2.0))]
    {
        compare_with(kind, bound, Attention { window, softcap, ..causal.clone() }, false);
    }
    compare_with(kind, bound, causal.clone(), true);
    compare_with(kind, bound, Attention { window: Some(6), ..causal }, true);
}

/// Does the same with these settings of attention, with sinks or without.
fn compare_with(kind: Kind, bound: f64, attention: Attention, sinks: bool) {
    let mixed = [&[300i64][..], &[5; 40], &[300], &[3; 40]].concat();
    for (lengths, heads, kv, size) in [
        (vec![7], 4, 2, 8),
        (vec![3, 40, 1, 38, 100, 7], 6, 3, 16),
        (vec![9, 2], 1, 1, 8),
        (vec![30, 20], 4, 1, 10), // heads are padded
        (mixed, 2, 1, 8),         // several runs of the memory-efficient kernel
    ] {
        let own = || noise(&[heads], "sinks").to_kind(kind).to_device(GPU);
        let attention = &Attention { sinks: sinks.then(|| own().into()), ..attention.clone() };
        let total: i64 = lengths.iter().sum();
        let input = |heads: i64, name: &str| noise(&[total, heads, size], name).to_kind(kind);
        let inputs = [input(heads, "q"), input(kv, "k"), input(kv, "v")];
        let weights = input(heads, "weights");
        let segments = Segments::new(lengths.clone(), GPU);
        let ours = results(&inputs.each_ref().map(|t| t.to_device(GPU)), &weights.to_device(GPU), |[q, k, v]| {
            packed_attention(q, k, v, &segments, attention)
        });
        let exact = results(
            &inputs.each_ref().map(|t| t.to_kind(Kind::Double)),
            &weights.to_kind(Kind::Double),
            |[q, k, v]| formula(q, k, v, &lengths, attention),
        );
        for (i, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
            // Where a window holds one token, queries and keys have no influence: their exact gradient is 0.
            let largest = Some(exact.abs().max().double_value(&[])).filter(|n| *n > 0.0).unwrap_or(1.0);
            let gap = (ours - exact).abs().max().double_value(&[]) / largest;
            assert!(gap < bound, "{kind:?}, {attention:?}, {lengths:?}, heads of {size}: result {i} is off by {gap}");
        }
        // Without gradient the kernel computes the same, and may leave empty segments out.
        let _no_grad = tch::no_grad_guard();
        let with_empty: Vec<i64> = lengths.iter().flat_map(|n| [0, *n]).collect();
        let [q, k, v] = inputs.each_ref().map(|t| t.to_device(GPU));
        let again = packed_attention(&q, &k, &v, &Segments::new(with_empty, GPU), attention);
        assert_eq!(again.to_device(Device::Cpu).to_kind(Kind::Double), ours[0], "{kind:?}, {lengths:?}");
    }
}

#[test]
fn packed_kernels_compute_the_formula() {
    if inside("nn::cuda_attention::packed_kernels_compute_the_formula", &[]) {
        compare(Kind::Float, 1e-5);
        compare(Kind::BFloat16, 0.03);
    }
}

/// These GPUs have no flash kernel, and none for bfloat16.
#[test]
fn older_gpus_compute_the_formula() {
    let turing = [("FAKE_CUDA_CAPABILITY", "75")];
    if inside("nn::cuda_attention::older_gpus_compute_the_formula", &turing) {
        compare(Kind::Float, 1e-5);
        compare(Kind::BFloat16, 0.03);
        compare(Kind::Half, 0.01);
    }
}
