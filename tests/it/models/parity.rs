//! Compares logits and gradients with transformers (tests/fixtures/README.md).

use crate::support::*;
use ft::models::{LayerReplay, Model};
use ft::nn::RelativeBuckets;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Relative tolerance. Both sides compute in float32; the fixtures themselves differ from float64 by about 1e-6.
const RELATIVE: f64 = 1e-4;

#[derive(serde::Deserialize)]
pub(super) struct Case {
    pub weights: String,
    tensors: String,
    pub sequences: Vec<Sequence>,
    loss: f64,
    pub items: f64,
    pub grad_stride: i64,
    grad_norm: BTreeMap<String, f64>,
}

const MODELS: [&str; 20] = [
    "tiny-llama",
    "biased-llama",
    "wide-head-llama",
    "llama3-rope",
    "linear-rope",
    "dynamic-rope",
    "yarn-rope",
    "mistral",
    "mistral-window",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-gpt2",
    "scaled-gpt2",
    "tiny-mixtral",
    "tiny-qwen2-moe",
    "tiny-qwen3-moe",
    "tiny-olmoe",
    "tiny-gpt-oss",
    "tiny-deepseek-v2",
    "deepseek-v2-groups",
];

/// The models of tests/fixtures/dense, each with rows longer than its windows.
const DENSE: [&str; 24] = [
    "dense/gemma",
    "dense/gemma2",
    "dense/gemma3",
    "dense/gemma3-old",
    "dense/phi3",
    "dense/phi3-long",
    "dense/olmo2",
    "dense/olmo3",
    "dense/smollm3",
    "dense/smollm3-window",
    "dense/granite",
    "dense/cohere",
    "dense/cohere2",
    "dense/stablelm",
    "dense/stablelm-parallel",
    "dense/gpt-neox",
    "dense/gpt-neox-sequential",
    "dense/falcon",
    "dense/falcon-new",
    "dense/falcon-alibi",
    "dense/bloom",
    "dense/mpt",
    "dense/ministral",
    "dense/qwen2-window",
];

/// The models of ft's own families (tests/fixtures/own.py), compared with torch.nn.RNN, GRU and LSTM, and with layers of
/// transformers.
const OWN: [&str; 5] = ["own/rnn", "own/gru", "own/lstm", "own/sinusoidal", "own/relative"];

/// The models of tests/fixtures/gemma3n.py.
const GEMMA3N: [&str; 2] = ["gemma3n/shared", "gemma3n/plain"];

pub(super) fn models() -> impl Iterator<Item = &'static str> {
    MODELS.into_iter().chain(DENSE).chain(GEMMA3N).chain(OWN)
}

pub(super) fn open(name: &str) -> (Case, BTreeMap<String, Tensor>, Model) {
    let (folder, own) = name.split_once('/').map_or(("logits".to_string(), name), |(a, b)| (format!("{a}/logits"), b));
    let case: Case = json(format!("{folder}/{own}.json"));
    let expected = tensors(format!("{folder}/{}.safetensors", case.tensors));
    let folder = with_weights(name, &case.weights);
    let model = whole(folder.path(), Kind::Float);
    (case, expected, model)
}

pub(super) fn logits(model: &Model, sequences: &[Sequence]) -> Tensor {
    let row = Row::pack(sequences);
    let all = Tensor::arange(row.tokens.len() as i64, (Kind::Int64, crate::support::device()));
    model.infer(&row.tokens, |out| out.logits(&all)).unwrap()
}

#[test]
fn logits_equal_transformers_packed_and_one_by_one() {
    for name in models() {
        let (case, expected, model) = open(name);
        let packed = logits(&model, &case.sequences);
        let (mut start, mut worst) = (0, Gap::default());
        for (i, s) in case.sequences.iter().enumerate() {
            let theirs = &expected[&format!("logits.{i}")];
            let n = s.ids.len() as i64;
            worst.widen(assert_close(
                &format!("{name} packed, sequence {i}"),
                &packed.narrow(0, start, n),
                theirs,
                RELATIVE,
            ));
            let alone = logits(&model, std::slice::from_ref(s));
            worst.widen(assert_close(&format!("{name} alone, sequence {i}"), &alone, theirs, RELATIVE));
            start += n;
        }
        println!("{name}: {worst:?}");
    }
}

/// Returns the mean loss and the gradients of one optimiser step; each element of `batches` is a micro-batch.
pub(super) fn learn(
    model: &Model,
    batches: &[&[Sequence]],
    items: f64,
    replay: LayerReplay,
) -> (f64, BTreeMap<String, Tensor>) {
    let mut metrics = ft::models::Metrics::default();
    for sequences in batches {
        let row = Row::pack(sequences);
        metrics.merge(model.learn(&row, items, replay).unwrap());
    }
    (metrics.means()["loss"], take_gradients(model))
}

#[test]
fn gradients_equal_transformers_by_name() {
    for name in models() {
        let (case, expected, model) = open(name);
        let wanted: Vec<&String> = expected.keys().filter(|k| k.starts_with("grad.")).collect();
        assert!(!wanted.is_empty());
        let one_by_one: Vec<&[Sequence]> = case.sequences.chunks(1).collect();
        for (how, batches) in [("packed", vec![case.sequences.as_slice()]), ("one by one", one_by_one)] {
            for replay in [LayerReplay::None, LayerReplay::All] {
                let what = format!("{name} {how} {replay:?}");
                let (loss, grads) = learn(&model, &batches, case.items, replay);
                assert_number(&format!("{what}: loss"), loss, case.loss, RELATIVE);
                assert!(grads.keys().eq(case.grad_norm.keys()), "{what}: trainable parameters differ");
                let mut worst = Gap::default();
                for (key, norm) in &case.grad_norm {
                    let ours = grads[key].norm().double_value(&[]);
                    assert_number(&format!("{what}: norm of {key}"), ours, *norm, RELATIVE);
                }
                for key in wanted.iter().map(|k| k.strip_prefix("grad.").unwrap()) {
                    let ours = every(case.grad_stride, &grads[key]);
                    worst.widen(assert_close(
                        &format!("{what}: {key}"),
                        &ours,
                        &expected[&format!("grad.{key}")],
                        RELATIVE,
                    ));
                }
                println!("{what}: loss {:e} apart, {worst:?}", (loss - case.loss).abs());
            }
        }
    }
}

/// Distances fall into the buckets of T5's decoder.
#[test]
fn buckets_of_distances_are_those_of_transformers() {
    #[derive(serde::Deserialize)]
    struct Case {
        count: i64,
        max_distance: i64,
        buckets: Vec<i64>,
    }
    #[derive(serde::Deserialize)]
    struct Buckets {
        cases: Vec<Case>,
    }
    let found: Buckets = json("own/buckets.json");
    assert!(found.cases.len() > 5);
    for Case { count, max_distance, buckets } in found.cases {
        let ours = RelativeBuckets { count, max_distance }.by_distance();
        let ours = Vec::<i64>::try_from(ours).unwrap();
        // What lies beyond the largest distance is in its bucket.
        assert!(buckets[max_distance as usize..].iter().all(|b| *b == ours[max_distance as usize]), "{count}");
        assert_eq!(ours, buckets[..=max_distance as usize], "{count} {max_distance}");
    }
}

/// A window is a bound on what tokens see, not on sequences.
#[test]
fn a_model_with_windows_computes_sequences_of_any_length() {
    let (case, expected, model) = open("mistral-window");
    assert_eq!(model.context_limit(), None);
    assert_eq!(model.attentions().map(|a| a.window).collect::<Vec<_>>(), [Some(8); 2]);
    let [_, long] = case.sequences.as_slice() else { panic!("two sequences") };
    // In a cache: parts of several tokens, single tokens, and a part that is longer than the window.
    let mut cache = model.cache(1);
    let (mut at, mut got) = (0, Vec::new());
    for n in [6, 3, 1, 1, 20, 1, 9, 1, 1, 17] {
        let tokens = ft::nn::Tokens::pack_after(&[&long.ids[at..at + n]], &[at as i64], crate::support::device());
        let rows = Tensor::arange(n as i64, (Kind::Int64, crate::support::device()));
        got.push(model.extend(&tokens, &mut cache, |out| out.logits(&rows)).unwrap());
        at += n;
    }
    assert_eq!(at, long.ids.len());
    assert_close("decoded", &Tensor::cat(&got, 0), &expected["logits.1"], RELATIVE);
}

#[test]
fn a_mistral_without_sliding_window_has_the_default_of_transformers() {
    let folder = with_weights("mistral", "wide-head-llama");
    let window = || whole(folder.path(), Kind::Float).attentions().next().unwrap().window;
    assert_eq!(window(), None, "`sliding_window: null` is no window");
    let file = folder.path().join("config.json");
    let mut config: serde_json::Map<String, serde_json::Value> = ft::fsutil::read_json(&file).unwrap();
    config.remove("sliding_window").unwrap();
    ft::fsutil::write_json(&file, &config).unwrap();
    assert_eq!(window(), Some(4096));
}
