//! Tests recurrent models: truncated gradients and gradients by distance against torch, adapters, decoding with states, and
//! what is refused. Logits and gradients are compared in parity.rs, packing, replay and cached decoding in families.rs.

use crate::support::*;
use ft::adapters::{AdapterSpec, LoraSpec, ModulePlan};
use ft::generate::beam::{self, BeamEarlyStopping, BeamSettings};
use ft::generate::engine::{BatchLimits, Engine, GenerationRequest};
use ft::generate::settings::GenerationSettings;
use ft::models::new_config::{self, VocabularyInfo};
use ft::models::{Config, Heads, LayerReplay, LoadOptions, Model, Storage, TrainedPart};
use ft::nn::Tokens;
use serde_json::{Value, json as value};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

const CELLS: [&str; 3] = ["rnn", "gru", "lstm"];

#[derive(serde::Deserialize)]
struct RecurrentLosses {
    sequences: Vec<Sequence>,
    items: f64,
}

fn case(cell: &str) -> (Model, RecurrentLosses, BTreeMap<String, Tensor>) {
    let case = json(format!("own/logits/{cell}.json"));
    (whole(&fixture(format!("own/{cell}")), Kind::Float), case, tensors(format!("own/logits/{cell}.safetensors")))
}

fn gradients(model: &Model, case: &RecurrentLosses, replay: LayerReplay) -> BTreeMap<String, Tensor> {
    model.learn(&Row::pack(&case.sequences), case.items, replay).unwrap();
    take_gradients(model)
}

#[test]
fn truncated_gradients_equal_torchs_and_reach_no_further() {
    for cell in CELLS {
        let (model, case, expected) = case(cell);
        let full = gradients(&model, &case, LayerReplay::None);
        model.set_truncation(Some(4));
        for replay in [LayerReplay::None, LayerReplay::All] {
            let found = gradients(&model, &case, replay);
            let mut worst = Gap::default();
            let of_layers: Vec<_> = found.iter().filter(|(name, _)| name.starts_with("layers.")).collect();
            assert_eq!(of_layers.len(), 8);
            for (name, g) in of_layers {
                let theirs = &expected[&format!("truncated.{name}")];
                worst.widen(assert_close(&format!("{cell} {replay:?} {name}"), g, theirs, 1e-4));
            }
            println!("{cell} {replay:?}: {worst:?}");
            let of_states = "layers.0.recurrent.weight";
            assert!(Gap::between(&found[of_states], &full[of_states]).norm > 0.01, "{cell}: truncation must matter");
        }
        // The longest sequence has 24 tokens.
        for longer in [24, 25] {
            model.set_truncation(Some(longer));
            let found = gradients(&model, &case, LayerReplay::None);
            full.iter().for_each(|(name, g)| assert_same(&format!("{cell} {longer} {name}"), &found[name], g));
        }
        model.set_truncation(None);
    }
}

#[test]
fn gradients_by_distance_equal_torchs_and_leave_the_model_alone() {
    let expected: Value = json("own/distances.json");
    for cell in CELLS {
        let (model, case, _) = case(cell);
        let row = &case.sequences[expected["sequence"].as_u64().unwrap() as usize];
        let measure =
            |model: &Model, rows: &[&[u32]]| model.gradient_by_distance(&Tokens::pack(rows, device())).unwrap();
        let found = measure(&model, &[&row.ids]);
        let distances: Vec<i64> = found.iter().map(|(distance, _)| *distance).collect();
        assert_eq!(distances, [1, 2, 4, 8, 16], "{cell}");
        for (distance, norm) in &found {
            let theirs = expected["norms"][cell][distance.to_string()].as_f64().unwrap();
            assert_number(&format!("{cell}, distance {distance}"), *norm, theirs, 1e-4);
        }
        assert!(model.params().trainable().all(|p| !p.tensor.grad().defined()), "{cell}: a parameter got a gradient");
        // In a packed row, a mean over the segments that reach back so far; truncation does not limit what is measured.
        model.set_truncation(Some(2));
        let short = &case.sequences[1].ids[..7];
        let (both, alone) = (measure(&model, &[short, &row.ids, &[5]]), measure(&model, &[short]));
        assert_eq!(alone.iter().map(|(distance, _)| *distance).collect::<Vec<_>>(), [1, 2, 4]);
        for (i, (distance, norm)) in both.iter().enumerate() {
            let mean = alone.get(i).map_or(found[i].1, |own| (own.1 + found[i].1) / 2.0);
            assert_number(&format!("{cell} packed, distance {distance}"), *norm, mean, 1e-4);
        }
        // An adapter's base is frozen; the measure is of the adapted model.
        let plan = ModulePlan::new(&LoraSpec { rank: 4, alpha: 8.0, ..LoraSpec::default() }).unwrap();
        let adapted = adapted(&fixture(format!("own/{cell}")), Kind::Float, &plan);
        let fresh = measure(&adapted, &[&row.ids]);
        fresh.iter().zip(&found).for_each(|(a, b)| assert_number(cell, a.1, b.1, 1e-4));
        fill_adapter(&adapted, 0.3);
        assert!((measure(&adapted, &[&row.ids])[0].1 / found[0].1 - 1.0).abs() > 1e-3, "{cell}");
    }
    let llama = frozen(&fixture("tiny-llama"), Kind::Float);
    assert_eq!(llama.gradient_by_distance(&Tokens::pack(&[&[3u32, 4, 5]], device())).unwrap(), []);
}

/// Returns a new model with random weights.
fn new(model_type: &str, width: i64, seed: u64) -> Model {
    let Value::Object(given) = value!({"model_type": model_type, "hidden_size": width, "num_hidden_layers": 1}) else {
        unreachable!()
    };
    let vocabulary = VocabularyInfo { size: 64, bos: Some(1), eos: Some(2), pad: None };
    let config = new_config::config(&given, vocabulary, Path::new("model.config")).unwrap();
    let (train_base, adapters) = (Some(&TrainedPart::All), Vec::new());
    let (device, kind, storage, heads) = (device(), Kind::Float, Storage::Auto, Heads::Tokens);
    let load = LoadOptions { device, kind, storage, train_base, adapters, vocabulary: None, heads };
    Model::initialise(config, Path::new("."), seed, load).unwrap()
}

/// In a plain recurrent network the gradient shrinks by a factor per token; the gates of a GRU let more of it through
/// (Pascanu et al. 2013).
#[test]
fn the_gradient_of_a_plain_network_vanishes_faster_than_that_of_a_gru() {
    let rows: Vec<Vec<u32>> = (0..8).map(|i| Sequence::random(80, 64, i).ids).collect();
    let remaining = |model_type: &str, seed: u64| {
        let found = new(model_type, 256, seed).gradient_by_distance(&Tokens::pack(&rows, device())).unwrap();
        let norms: BTreeMap<i64, f64> = found.into_iter().collect();
        println!("{model_type}: {norms:?}");
        [16, 64].map(|distance| norms[&distance] / norms[&1])
    };
    for seed in [1, 2] {
        let (rnn, gru) = (remaining("ft_rnn", seed), remaining("ft_gru", seed));
        assert!(rnn[1] < rnn[0] && gru[1] < gru[0], "both vanish");
        assert!(rnn[0] < 0.7 * gru[0] && rnn[1] < 0.3 * gru[1], "seed {seed}: {rnn:?} {gru:?}");
    }
}

/// The gradients of LoRA's factors follow from those of the whole weights of the merged model: dA = s B^T dW, dB = s dW A^T.
#[test]
fn gradients_of_adapters_follow_from_those_of_the_merged_weights() {
    for cell in CELLS {
        let base = fixture(format!("own/{cell}"));
        let plan = ModulePlan::new(&LoraSpec { rank: 3, alpha: 6.0, ..LoraSpec::default() }).unwrap();
        let model = adapted(&base, Kind::Float, &plan);
        fill_adapter(&model, 0.3);
        let (_, case, _) = case(cell);
        let factors: BTreeMap<String, Tensor> =
            model.params().adapter(0).map(|p| (p.name.clone(), p.tensor.detach().copy())).collect();
        assert_eq!(factors.len(), 8, "two layers with two matrices each");
        let found = gradients(&model, &case, LayerReplay::None);
        let merged = with_changed_weights(&format!("own/{cell}"), |weights| {
            for (name, a) in factors.iter().filter(|(name, _)| name.ends_with(".lora_A.weight")) {
                let module = name.strip_suffix(".lora_A.weight").unwrap();
                let weight = weights.get_mut(&format!("{module}.weight")).unwrap();
                let update = factors[&format!("{module}.lora_B.weight")].matmul(a) * 2.0;
                *weight = (weight.to_kind(Kind::Float).to_device(device()) + update).to_device(tch::Device::Cpu);
            }
        });
        let full = gradients(&whole(merged.path(), Kind::Float), &case, LayerReplay::None);
        let mut worst = Gap::default();
        for (name, g) in &found {
            let module = name.rsplit_once(".lora_").unwrap().0;
            let of = |part: &str| &factors[&format!("{module}.lora_{part}.weight")];
            let of_weight = &full[&format!("{module}.weight")];
            let expected = match name.ends_with("lora_A.weight") {
                true => of("B").tr().matmul(of_weight) * 2.0,
                false => of_weight.matmul(&of("A").tr()) * 2.0,
            };
            worst.widen(assert_close(&format!("{cell} {name}"), g, &expected, 1e-5));
        }
        println!("{cell}: {worst:?}");
    }
}

#[test]
fn states_follow_sequences_that_end_join_and_fork() {
    for cell in CELLS {
        let model = frozen(&fixture(format!("own/{cell}")), Kind::Float);
        let settings = GenerationSettings {
            temperature: 1.2,
            stop_ids: (0..16).collect(),
            seed: 5,
            log_probs: true,
            ..GenerationSettings::greedy(14, &[])
        };
        let requests: Vec<GenerationRequest> = (0..10u64)
            .map(|i| {
                let prompt = Sequence::random([3, 17, 7, 30, 1][i as usize % 5], 64, i).ids;
                GenerationRequest { answers: 1 + i as usize % 3, ..GenerationRequest::new(&prompt, i) }
            })
            .collect();
        let run = |rows: usize| {
            let mut engine = Engine::new(&model, settings.clone(), BatchLimits { rows, tokens: 1 << 20 }).unwrap();
            for request in &requests {
                engine.add(request.clone()).unwrap();
            }
            let mut done = Vec::new();
            while !engine.is_idle() {
                done.extend(engine.step().unwrap().finished);
            }
            done.sort_by_key(|f| (f.request, f.sample));
            done
        };
        let alone = run(1);
        for rows in [3, 64] {
            let together = run(rows);
            assert_eq!(alone.len(), together.len());
            for (a, b) in alone.iter().zip(&together) {
                assert_eq!(a.completion.tokens, b.completion.tokens, "{cell}, {rows} rows");
                let gaps = a.completion.log_probs.iter().zip(&b.completion.log_probs).map(|(a, b)| (a - b).abs());
                assert!(gaps.fold(0.0, f32::max) < 1e-4);
            }
        }
        // Beams are copied and dropped at every step; their scores must be those of whole passes.
        let prompt = Sequence::random(9, 64, 3).ids;
        let beams =
            BeamSettings { count: 4, answers: 4, length_penalty: 0.0, early_stopping: BeamEarlyStopping::Never };
        let answers = beam::search(&model, &prompt, &[], &GenerationSettings::greedy(6, &[2]), beams, None).unwrap();
        assert_eq!(answers.len(), 4);
        for answer in answers {
            let all = [&prompt[..], &answer.tokens].concat();
            let rows = Tensor::arange(all.len() as i64, (Kind::Int64, device()));
            let logits = model.infer(&Tokens::pack(&[&all], device()), |out| out.logits(&rows)).unwrap();
            let log_probs = logits.log_softmax(-1, Kind::Float);
            let of = |at: usize| log_probs.double_value(&[at as i64 - 1, i64::from(all[at])]);
            let score: f64 = (prompt.len()..all.len()).map(of).sum();
            assert!((f64::from(answer.score.unwrap()) - score).abs() < 1e-4, "{cell}: {:?} {score}", answer.score);
        }
    }
}

#[test]
fn a_bf16_run_stays_near_float32() {
    for cell in CELLS {
        let ids = Sequence::random(40, 64, 1).ids;
        let logits = |kind| {
            let rows = Tensor::arange(40, (Kind::Int64, device()));
            let model = frozen(&fixture(format!("own/{cell}")), kind);
            model.infer(&Tokens::pack(&[&ids], device()), |out| out.logits(&rows)).unwrap()
        };
        let gap = Gap::between(&logits(Kind::BFloat16), &logits(Kind::Float));
        println!("{cell}: {gap:?}");
        assert!((1e-4..0.03).contains(&gap.norm), "{cell}: {gap:?}");
    }
}

#[test]
fn what_means_nothing_without_attention_is_refused() {
    let base = fixture("own/gru");
    let spec: AdapterSpec = serde_json::from_value(value!({"prefix_tuning": {"virtual_tokens": 3}})).unwrap();
    let plan = spec.plan().unwrap();
    let load = LoadOptions {
        device: device(),
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: None,
        adapters: vec![("a".into(), &*plan)],
        vocabulary: None,
        heads: Heads::Tokens,
    };
    let said = Model::load(&base, load).err().unwrap().to_string();
    assert!(said.contains("prefix tuning"), "{said}");
    let folder = with_weights("own/gru", "own/gru");
    let file = folder.path().join("config.json");
    let mut config: Value = ft::fsutil::read_json(&file).unwrap();
    config["num_attention_heads"] = 4.into();
    ft::fsutil::write_json(&file, &config).unwrap();
    let load = LoadOptions {
        device: device(),
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: None,
        adapters: Vec::new(),
        vocabulary: None,
        heads: Heads::Tokens,
    };
    let said = Model::load(folder.path(), load).err().unwrap().to_string();
    assert!(said.contains("`num_attention_heads` means nothing"), "{said}");
    assert!(!Config::read(&base).unwrap().has_attention());
}
