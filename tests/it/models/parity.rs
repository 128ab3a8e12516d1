//! Compares logits and gradients with transformers (tests/fixtures/README.md).

use crate::support::*;
use ft::models::{LayerReplay, Model};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Relative tolerance. Both sides compute in float32; the fixtures themselves differ from float64 by about 1e-6.
const RELATIVE: f64 = 1e-4;

#[derive(serde::Deserialize)]
struct Case {
    weights: String,
    tensors: String,
    sequences: Vec<Sequence>,
    loss: f64,
    items: f64,
    grad_stride: i64,
    grad_norm: BTreeMap<String, f64>,
}

const MODELS: [&str; 16] = [
    "tiny-llama",
    "biased-llama",
    "wide-head-llama",
    "llama3-rope",
    "linear-rope",
    "dynamic-rope",
    "yarn-rope",
    "mistral",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-gpt2",
    "scaled-gpt2",
    "tiny-mixtral",
    "tiny-qwen2-moe",
    "tiny-qwen3-moe",
    "tiny-olmoe",
];

fn open(name: &str) -> (Case, BTreeMap<String, Tensor>, Model) {
    let case: Case = json(format!("logits/{name}.json"));
    let expected = tensors(format!("logits/{}.safetensors", case.tensors));
    let folder = with_weights(name, &case.weights);
    let model = whole(folder.path(), Kind::Float);
    (case, expected, model)
}

fn logits(model: &Model, sequences: &[Sequence]) -> Tensor {
    let row = Row::pack(sequences);
    let all = Tensor::arange(row.tokens.len() as i64, (Kind::Int64, crate::support::device()));
    model.infer(&row.tokens, |out| out.logits(&all)).unwrap()
}

#[test]
fn logits_equal_transformers_packed_and_one_by_one() {
    for name in MODELS {
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
fn learn(model: &Model, batches: &[&[Sequence]], items: f64, replay: LayerReplay) -> (f64, BTreeMap<String, Tensor>) {
    let mut metrics = ft::models::Metrics::default();
    for sequences in batches {
        let row = Row::pack(sequences);
        metrics.merge(model.learn(&row, items, replay).unwrap());
    }
    (metrics.means()["loss"], take_gradients(model))
}

#[test]
fn gradients_equal_transformers_by_name() {
    for name in MODELS {
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

#[test]
fn a_sliding_window_is_exact_within_and_refused_beyond() {
    let (case, expected, model) = open("mistral-window");
    assert_eq!(model.context_limit(), Some(8));
    let [short, long] = case.sequences.as_slice() else { panic!("two sequences") };
    assert!(short.ids.len() <= 8 && long.ids.len() > 8);
    assert_close("within the window", &logits(&model, std::slice::from_ref(short)), &expected["logits.0"], RELATIVE);

    let row = Row::pack(&case.sequences);
    let learnt = model.learn(&row, row.items, LayerReplay::None).err();
    let inferred = model.infer(&row.tokens, |_| ()).err();
    // Six tokens in the cache, then three more: the window limits their sum.
    let mut cache = model.cache(1);
    let part = |ids: &[u32], past| ft::nn::Tokens::pack_after(&[ids], &[past], crate::support::device());
    model.extend(&part(&long.ids[..6], 0), &mut cache, |_| ()).unwrap();
    let extended = model.extend(&part(&long.ids[6..9], 6), &mut cache, |_| ()).err();
    assert_eq!(cache.lengths, [6], "a refused pass must not change the cache");
    for e in [learnt, inferred, extended] {
        let e = e.expect("refused").to_string();
        assert!(e.contains("sliding window of 8") && e.contains("hint:"), "{e}");
    }
    assert!(model.params().trainable().all(|p| !p.tensor.grad().defined()));
}

#[test]
fn a_mistral_without_sliding_window_has_the_default_of_transformers() {
    let folder = with_weights("mistral", "wide-head-llama");
    assert_eq!(whole(folder.path(), Kind::Float).context_limit(), None, "`sliding_window: null` is no window");
    let file = folder.path().join("config.json");
    let mut config: serde_json::Map<String, serde_json::Value> = ft::fsutil::read_json(&file).unwrap();
    config.remove("sliding_window").unwrap();
    ft::fsutil::write_json(&file, &config).unwrap();
    assert_eq!(whole(folder.path(), Kind::Float).context_limit(), Some(4096));
}
