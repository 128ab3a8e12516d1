//! Tests of packed attention on the device under test, on the CPU or (FT_TEST_DEVICE=cuda) a GPU: output and gradients
//! against the formula.

use crate::support::*;
use ft::nn::attention::packed_attention;
use ft::nn::{Attention, Segments};
use tch::{Device, Kind, Tensor};

/// Computes attention by its formula in float64 on the CPU, one segment at a time: q (T, H, E); k, v (T, K, E) ->
/// (T, H, E).
fn formula(q: &Tensor, k: &Tensor, v: &Tensor, lengths: &[i64], scale: f64) -> Tensor {
    let groups = q.size()[1] / k.size()[1];
    let mut start = 0;
    let mut parts = Vec::new();
    for &n in lengths {
        let heads = |t: &Tensor| t.narrow(0, start, n).transpose(0, 1); // (heads, n, E)
        let repeated = |t: &Tensor| heads(t).repeat_interleave_self_int(groups, 0, None::<i64>);
        let hidden = Tensor::ones([n, n], (Kind::Bool, Device::Cpu)).triu(1);
        let scores = heads(q).matmul(&repeated(k).transpose(1, 2)) * scale; // (H, n, n)
        let weights = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Double);
        parts.push(weights.matmul(&repeated(v)).transpose(0, 1));
        start += n;
    }
    Tensor::cat(&parts, 0)
}

/// Compares packed attention with the formula on the same rounded inputs: the gaps of the output and of the gradients
/// of q, k and v.
fn gaps(kind: Kind, heads: i64, kv: i64, size: i64, lengths: &[i64]) -> [Gap; 4] {
    let total = lengths.iter().sum();
    let rounded = |heads: i64, name: &str| noise(&[total, heads, size], name).to_kind(kind);
    // Uniform numbers times the square root of 3 have a variance of 1, as queries and keys behind a norm have.
    let [q, k, v] = [(heads, "q"), (kv, "k"), (kv, "v")].map(|(heads, name)| rounded(heads, name) * 3f64.sqrt());
    let g = rounded(heads, "gradient");
    let scale = (size as f64).powf(-0.5);
    let with_gradients = |leaves: &[Tensor; 3], out: Tensor, g: &Tensor| {
        (&out * g).sum(out.kind()).backward();
        [out.detach(), leaves[0].grad(), leaves[1].grad(), leaves[2].grad()]
    };
    let ours = [&q, &k, &v].map(|t| t.to_device(device()).copy().set_requires_grad(true));
    let segments = Segments::new(lengths.to_vec(), device());
    let out = packed_attention(&ours[0], &ours[1], &ours[2], &segments, &Attention::causal(scale));
    let ours = with_gradients(&ours, out, &g.to_device(device()));
    let theirs = [&q, &k, &v].map(|t| t.to_kind(Kind::Double).set_requires_grad(true));
    let out = formula(&theirs[0], &theirs[1], &theirs[2], lengths, scale);
    let theirs = with_gradients(&theirs, out, &g.to_kind(Kind::Double));
    std::array::from_fn(|i| Gap::between(&ours[i], &theirs[i]))
}

/// Shapes of real models (query heads, key/value heads, size of a head), and the lengths of the segments.
const SHAPES: [(i64, i64, i64, &[i64]); 4] = [
    (9, 3, 64, &[200, 1, 57, 128, 301]), // SmolLM2-135M
    (8, 1, 64, &[256, 256]),             // TinyLlama: eight query heads share a key head
    (4, 4, 128, &[700, 12]),             // Llama 2
    (2, 1, 128, &[1300]),                // one long segment, which other code computes on the CPU
];

/// On a GPU, bfloat16 runs libtorch's packed flash kernel. It rounds the probabilities and the result to bfloat16, each
/// to half a unit in the last place (2^-9); its backward also rounds the scores' gradient, and reads the rounded
/// output. So at most two roundings of 2^-9 add up in the output, and four in a gradient.
#[test]
fn attention_in_bfloat16_equals_the_formula_up_to_its_roundings() {
    tch::set_num_threads(1);
    for (heads, kv, size, lengths) in SHAPES {
        let [out, q, k, v] = gaps(Kind::BFloat16, heads, kv, size, lengths).map(|gap| gap.norm);
        println!(
            "attention bf16 {heads}/{kv} heads of {size}, {lengths:?}: output {out:.1e}, gradients of q, k, v {q:.1e}, {k:.1e}, {v:.1e}"
        );
        assert!(out > 0.0 && out <= 2f64.powi(-8), "output: {out:e}");
        for (name, gap) in [("q", q), ("k", k), ("v", v)] {
            assert!(gap > 0.0 && gap <= 2f64.powi(-7), "gradient of {name}: {gap:e}");
        }
    }
}

/// float32 products of up to 1,300 terms, each rounded to 2^-24, of numbers that partly cancel.
#[test]
fn attention_in_float32_equals_the_formula() {
    tch::set_num_threads(1);
    for (heads, kv, size, lengths) in SHAPES {
        let all = gaps(Kind::Float, heads, kv, size, lengths).map(|gap| gap.norm);
        println!(
            "attention f32 {heads}/{kv} heads of {size}, {lengths:?}: output {:.1e}, gradients of q, k, v {:.1e}, {:.1e}, {:.1e}",
            all[0], all[1], all[2], all[3]
        );
        assert!(all.iter().all(|gap| *gap < 3e-6), "{heads}/{kv} heads of {size}: {all:?}");
    }
}
