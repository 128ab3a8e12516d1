//! Rows of several adapters in one batch equal those of each adapter on its own.

use super::decoding::{drain, drain_prompt_by_prompt};
use crate::support::*;
use ft::adapters::AdapterSpec;
use ft::generate::answering_adapter::AnsweringAdapter;
use ft::generate::engine::{BatchLimits, Engine, FinishedAnswer, GenerationRequest};
use ft::generate::settings::GenerationSettings;
use ft::models::{Heads, LoadOptions, Model, Storage};
use ft::nn::{AdapterPlan, RowAdapters};
use serde_json::{Value, json};
use std::path::Path;
use tch::Kind;

/// Loads a model with an adapter of each spec, whose trained parameters are random.
pub fn with_adapters(folder: &Path, kind: Kind, specs: &[Value]) -> Model {
    let specs: Vec<AdapterSpec> = specs.iter().map(|spec| serde_json::from_value(spec.clone()).unwrap()).collect();
    let plans: Vec<Box<dyn AdapterPlan>> = specs.iter().map(|spec| spec.plan().unwrap()).collect();
    let adapters = plans.iter().enumerate().map(|(i, plan)| (i.to_string(), &**plan)).collect();
    let (storage, heads) = (Storage::Auto, Heads::Tokens);
    let load = LoadOptions { device: device(), kind, storage, train_base: None, adapters, vocabulary: None, heads };
    tch::set_num_threads(1);
    let model = Model::load(folder, load).unwrap();
    let _no_grad = tch::no_grad_guard();
    for i in 0..specs.len() {
        for p in model.params().adapter(i).filter(|p| p.trainable()) {
            let noise = noise(&p.tensor.size(), &format!("{i} {}", p.name)).to_device(p.tensor.device());
            p.tensor.shallow_clone().copy_(&(&p.tensor + noise * 0.3));
        }
    }
    model
}

/// Prompts of different lengths, whose adapters take turns with the base.
pub fn requests(adapters: usize, vocabulary: u32) -> Vec<GenerationRequest> {
    let request = |i: u64| {
        let length = [3, 17, 7, 30, 1, 22, 5][i as usize % 7];
        let prompt: Vec<u32> = (0..length).map(|t| (t * 31 + i as u32 * 7) % vocabulary).collect();
        let adapter = AnsweringAdapter::Chosen((i as usize % (adapters + 1)).checked_sub(1));
        GenerationRequest { answers: 1 + i as usize % 2, adapter, ..GenerationRequest::new(&prompt, i) }
    };
    (0..4 * (adapters as u64 + 1)).map(request).collect()
}

/// Answers each request on its own, with its adapter switched on in the whole model.
fn one_by_one(model: &Model, settings: &GenerationSettings, requests: &[GenerationRequest]) -> Vec<FinishedAnswer> {
    let alone = |(i, request): (usize, &GenerationRequest)| {
        let AnsweringAdapter::Chosen(number) = request.adapter else { panic!("an adapter was chosen") };
        let request = GenerationRequest { adapter: AnsweringAdapter::Active, ..request.clone() };
        model.with_adapter_id(number, |model| {
            let engine = Engine::new(model, settings.clone(), BatchLimits { rows: 1, tokens: 1 }).unwrap();
            drain(engine, &[request]).into_iter().map(|f| FinishedAnswer { request: i, ..f }).collect::<Vec<_>>()
        })
    };
    requests.iter().enumerate().flat_map(alone).collect()
}

fn settings(last_stop: u32) -> GenerationSettings {
    GenerationSettings {
        temperature: 1.2,
        stop_ids: (0..last_stop).collect(),
        seed: 5,
        log_probs: true,
        ..GenerationSettings::greedy(14, &[])
    }
}

/// One adapter of every kind; those with virtual tokens too, whose prompts are run on their own.
const SPECS: &str = r#"[
    {"lora": {"rank": 4, "targets": "all-linear"}},
    {"lora": {"rank": 3, "targets": ["q_proj", "down_proj", "lm_head", "embed_tokens"], "rslora": true}},
    {"lora": {"rank": 2, "dora": true}},
    {"lora": {"rank": 2, "modules_to_save": ["lm_head", "norm"]}},
    {"adalora": {"rank": 4, "target_rank": 2}},
    {"ia3": {}},
    {"ln_tuning": {}},
    {"bitfit": {}},
    {"vera": {"rank": 8}},
    {"loha": {"rank": 2, "alpha": 4}},
    {"lokr": {"rank": 2}},
    {"oft": {"block": 4}},
    {"trainable_tokens": {"tokens": [1, 4, 7, 10, 30, 33], "head": true}},
    {"prompt_tuning": {"virtual_tokens": 3}},
    {"prefix_tuning": {"virtual_tokens": 4}}
]"#;

#[test]
fn adapters_of_every_kind_share_a_batch() {
    let specs: Vec<Value> = serde_json::from_str(SPECS).unwrap();
    let model = with_adapters(&fixture("biased-llama"), Kind::Float, &specs);
    let (settings, requests) = (settings(6), requests(specs.len(), 64));
    let alone = one_by_one(&model, &settings, &requests);
    let lengths: std::collections::BTreeSet<usize> = alone.iter().map(|f| f.completion.tokens.len()).collect();
    assert!(lengths.len() > 5, "too few different lengths to test rows that end at different times: {lengths:?}");
    // Prompts and settings are equal every 7 * 16 requests: the answers differ by their adapters.
    assert_equal_in_batches(&model, &settings, &requests, &alone);
}

/// Fails unless batches of several sizes give the answers that each request gets alone.
fn assert_equal_in_batches(
    model: &Model,
    settings: &GenerationSettings,
    requests: &[GenerationRequest],
    alone: &[FinishedAnswer],
) {
    for (rows, tokens) in [(64, 1 << 20), (5, 1 << 20), (64, 300)] {
        let engine = Engine::new(model, settings.clone(), BatchLimits { rows, tokens }).unwrap();
        let together = drain(engine, requests);
        assert_eq!(together.len(), alone.len());
        for (a, b) in alone.iter().zip(&together) {
            let what =
                format!("{rows} rows, {tokens} tokens, request {} ({:?})", a.request, requests[a.request].adapter);
            assert_eq!((a.request, a.sample), (b.request, b.sample), "{what}");
            assert_eq!(a.completion.tokens, b.completion.tokens, "{what}");
            let gaps = a.completion.log_probs.iter().zip(&b.completion.log_probs).map(|(a, b)| (a - b).abs());
            assert!(gaps.fold(0.0, f32::max) < 2e-4, "{what}");
        }
    }
}

/// Their batches have one adapter at a time: experts compute other rows than the batch's, and a sequence beyond LongRoPE's
/// switch is computed again.
#[test]
fn models_that_cannot_mix_adapters_answer_the_same() {
    let experts: Vec<Value> = vec![
        json!({"lora": {"rank": 4, "targets": ["w1", "w2", "q_proj"]}}),
        json!({"lora": {"rank": 2, "targets": "all-linear"}}),
    ];
    let long: Vec<Value> =
        vec![json!({"lora": {"rank": 4, "targets": "all-linear"}}), json!({"ia3": {"targets": ["o_proj"]}})];
    for (base, weights, specs) in [("tiny-mixtral", "tiny-mixtral", experts), ("dense/phi3-long", "dense/phi3", long)] {
        let folder = with_weights(base, weights);
        let model = with_adapters(folder.path(), Kind::Float, &specs);
        assert!(!model.mixes_adapters(), "{base}");
        let (settings, requests) = (settings(2), requests(specs.len(), 60));
        let alone = one_by_one(&model, &settings, &requests);
        assert_equal_in_batches(&model, &settings, &requests, &alone);
    }
}

#[test]
fn other_families_have_rows_of_several_adapters() {
    for (base, targets) in [("tiny-gpt2", json!(["c_attn", "c_fc", "wpe", "wte"])), ("tiny-qwen3", json!("all-linear"))]
    {
        let specs = [json!({ "lora": { "rank": 3, "targets": targets } }), json!({ "ln_tuning": {} })];
        let model = with_adapters(&fixture(base), Kind::Float, &specs);
        let (settings, requests) = (settings(6), requests(specs.len(), 60));
        let engine = Engine::new(&model, settings.clone(), BatchLimits { rows: 64, tokens: 1 << 20 }).unwrap();
        let tokens = |all: Vec<FinishedAnswer>| all.into_iter().map(|f| f.completion.tokens).collect::<Vec<_>>();
        assert_eq!(tokens(drain(engine, &requests)), tokens(one_by_one(&model, &settings, &requests)), "{base}");
    }
}

/// On the CPU the kernels of decoding give a row the same bits whatever is beside it, also beside rows of other adapters:
/// the base's products are shared, and each update is computed for its own rows.
#[test]
fn rows_of_lora_have_the_bits_that_they_have_alone() {
    if device() != tch::Device::Cpu {
        return;
    }
    let specs: Vec<Value> = (2..6).map(|rank| json!({ "lora": { "rank": rank, "targets": "all-linear" } })).collect();
    for kind in [Kind::Float, Kind::BFloat16] {
        let model = with_adapters(&fixture("tiny-llama"), kind, &specs);
        let (settings, requests) = (settings(40), requests(specs.len(), 512));
        let rows = ft::native::product_rows(kind, kind) as usize;
        let engine = Engine::new(&model, settings.clone(), BatchLimits { rows, tokens: 1 << 20 }).unwrap();
        let together = drain_prompt_by_prompt(engine, &requests);
        assert_eq!(together, one_by_one(&model, &settings, &requests), "{kind:?}");
    }
}

#[test]
fn the_active_adapter_is_the_same_after_a_step_of_several() {
    let specs = [json!({ "lora": { "rank": 2 } }), json!({ "ia3": {} })];
    let model = with_adapters(&fixture("tiny-llama"), Kind::Float, &specs);
    let groups = RowAdapters::new(&[None, Some(1), Some(0)], device());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        model.with_row_adapters(&groups, |_| panic!("on purpose"))
    }));
    assert!(panicked.is_err());
    assert_eq!(model.active_adapter(), Some("0"));
    // A layer that asks for one adapter works again.
    let tokens = ft::nn::Tokens::pack(&[[1u32, 2, 3]], device());
    model.infer(&tokens, |_| ()).unwrap();
}
