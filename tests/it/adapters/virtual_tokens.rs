//! Compares prompt tuning, P-tuning and prefix tuning with PEFT (tests/fixtures/virtual_tokens.py): logits, training steps
//! and files. Tests that packed rows, cached decoding and half precision compute the same, and that such adapters are not
//! merged.

use crate::support::command::{ft_binary, stderr};
use crate::support::resumed::{resumed_equals_straight, train};
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::{AdapterSpec, PTuningSpec, PrefixTuningSpec, file};
use ft::generate::engine::{BatchLimits, Engine, GenerationRequest, complete};
use ft::generate::session::ChatSession;
use ft::generate::settings::GenerationSettings;
use ft::models::{ExposedLayers, LayerReplay, Loss, Model, open};
use ft::nn::Tokens;
use ft::nn::virtual_tokens::PROMPT_EMBEDDINGS;
use ft::recipe::optim::OptimSection;
use ft::train::optim::Optimiser;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// All fixtures: kinds, families and ways to compute rotary embeddings.
const CASES: [&str; 11] = [
    "prompt_tuning",
    "prompt_tuning-gpt2",
    "prompt_tuning-qwen3",
    "prompt_tuning-dynamic",
    "p_tuning",
    "p_tuning-gpt2",
    "prefix_tuning",
    "prefix_tuning-projection",
    "prefix_tuning-gpt2",
    "prefix_tuning-qwen3",
    "prefix_tuning-dynamic",
];

#[derive(serde::Deserialize)]
struct Case {
    model: String,
    rows: Vec<Sequence>,
    optimiser: Settings,
    batches: Vec<Vec<Sequence>>,
    batch_of_step: Vec<usize>,
    steps: Vec<Step>,
    float64_difference: Noise,
}

#[derive(serde::Deserialize)]
struct Settings {
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    max_norm: f64,
    weight_decay: f64,
}

#[derive(serde::Deserialize)]
struct Step {
    loss: f64,
    grad_norm: f64,
    items: f64,
}

#[derive(serde::Deserialize)]
struct Noise {
    final_abs: f64,
}

/// The base of a case; a folder of its own if its weights are shared with another one.
enum Base {
    Own(PathBuf),
    Shared(tempfile::TempDir),
}

impl Base {
    fn of(case: &Case) -> Self {
        match fixture(&case.model).join("model.safetensors").exists() {
            true => Self::Own(fixture(&case.model)),
            false => Self::Shared(with_weights(&case.model, "wide-head-llama")),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Own(path) => path,
            Self::Shared(folder) => folder.path(),
        }
    }
}

fn case(name: &str) -> Case {
    json(format!("virtual-tokens/{name}/expected.json"))
}

fn saved(name: &str) -> PathBuf {
    fixture(format!("virtual-tokens/{name}/initial"))
}

/// Opens a base with the adapter that PEFT saved before training.
fn opened(name: &str, kind: Kind) -> (Case, Model) {
    let case = case(name);
    tch::set_num_threads(1);
    let model = open(Base::of(&case).path(), &[saved(name)], device(), kind).unwrap();
    (case, model)
}

/// Returns the logits of all tokens of a packed row: (T, V) float32.
fn logits(model: &Model, rows: &[&[u32]]) -> Tensor {
    let tokens = Tokens::pack(rows, device());
    let all = Tensor::arange(tokens.len() as i64, (Kind::Int64, device()));
    model.infer(&tokens, |out| out.logits(&all)).unwrap()
}

fn ids(case: &Case) -> Vec<&[u32]> {
    case.rows.iter().map(|row| row.ids.as_slice()).collect()
}

#[test]
fn logits_equal_peft_alone_and_packed() {
    for name in CASES {
        let (case, model) = opened(name, Kind::Float);
        let expected = tensors(format!("virtual-tokens/{name}/expected.safetensors"));
        let rows = ids(&case);
        let wanted: Vec<&Tensor> = (0..rows.len()).map(|i| &expected[&format!("logits.{i}")]).collect();
        for (i, row) in rows.iter().enumerate() {
            assert_close(&format!("{name}: row {i} alone"), &logits(&model, &[row]), wanted[i], 1e-5);
        }
        let packed = logits(&model, &rows);
        assert_close(&format!("{name}: packed"), &packed, &Tensor::cat(&wanted, 0), 1e-5);
        // Without the adapter, the same model is its base.
        let base = frozen(Base::of(&case).path(), Kind::Float);
        let without = model.with_adapter(None, |m| logits(m, &rows));
        assert_same(&format!("{name}: base"), &without, &logits(&base, &rows));
        assert!((without - packed).abs().max().double_value(&[]) > 1e-2, "{name} changes nothing");
    }
}

#[test]
fn half_precision_is_near_float32_and_not_equal() {
    for name in CASES {
        let (case, model) = opened(name, Kind::Float);
        let (_, half) = opened(name, Kind::BFloat16);
        let (wide, narrow) = (logits(&model, &ids(&case)), logits(&half, &ids(&case)));
        let gap = (&narrow - &wide).norm().double_value(&[]) / wide.norm().double_value(&[]);
        assert!(gap > 1e-4 && gap < 0.05, "{name}: {gap}");
    }
}

/// Returns the settings that train a case as PEFT did.
fn trained_spec(name: &str) -> AdapterSpec {
    let config: Value = json(format!("virtual-tokens/{name}/initial/adapter_config.json"));
    let virtual_tokens = config["num_virtual_tokens"].as_i64().unwrap();
    let encoder_hidden_size = config["encoder_hidden_size"].as_i64();
    match config["peft_type"].as_str().unwrap() {
        "P_TUNING" => {
            AdapterSpec::PTuning(PTuningSpec { virtual_tokens, encoder_hidden_size, ..PTuningSpec::default() })
        }
        "PREFIX_TUNING" => AdapterSpec::PrefixTuning(PrefixTuningSpec {
            virtual_tokens,
            projection: config["prefix_projection"].as_bool().unwrap(),
            encoder_hidden_size,
            ..PrefixTuningSpec::default()
        }),
        _ => serde_json::from_value(json!({ "prompt_tuning": { "virtual_tokens": virtual_tokens } })).unwrap(),
    }
}

/// Builds the model of a case with the parameters that PEFT's training started from.
fn at_start(name: &str, case: &Case) -> Model {
    let plan = trained_spec(name).plan().unwrap();
    let model = adapted(Base::of(case).path(), Kind::Float, &*plan);
    let start = tensors(format!("virtual-tokens/{name}/start.safetensors"));
    let plain = model.params().adapter(0).any(|p| p.name == PROMPT_EMBEDDINGS);
    assert_eq!(model.params().adapter(0).count(), start.len(), "{name}");
    tch::no_grad(|| {
        for p in model.params().adapter(0) {
            let theirs = if plain { "embedding.weight" } else { p.name.strip_prefix("prompt_encoder.").unwrap() };
            p.tensor.shallow_clone().copy_(&start[theirs]);
        }
    });
    model
}

#[test]
fn training_steps_equal_peft() {
    let mut encoders = 0;
    for name in CASES.into_iter().filter(|name| !name.ends_with("dynamic")) {
        let case = case(name);
        assert!(!case.steps.is_empty(), "{name}");
        for replay in [LayerReplay::None, LayerReplay::First(1), LayerReplay::All] {
            let model = at_start(name, &case);
            encoders += u32::from(model.params().adapter(0).count() > 1);
            let Settings { lr, betas, eps, max_norm, weight_decay } = case.optimiser;
            let betas = [betas.0, betas.1];
            let settings =
                OptimSection { lr: Some(lr), betas, eps, weight_decay, decay_norms: true, ..OptimSection::default() };
            let mut optimiser = Optimiser::new(model.params(), &settings, 0).unwrap();
            for (i, (batch, expected)) in case.batch_of_step.iter().zip(&case.steps).enumerate() {
                // Two sequences share a packed row: each has virtual tokens of its own.
                let rows: Vec<Row> = case.batches[*batch].chunks(2).map(Row::pack).collect();
                let items: f64 = rows.iter().map(|r| r.items).sum();
                assert_eq!(items, expected.items);
                let mut metrics = ft::models::Metrics::default();
                for row in &rows {
                    metrics.merge(model.learn(row, items, replay).unwrap());
                }
                let (loss, norm) = (metrics.means()["loss"], optimiser.clip(max_norm).unwrap().double_value(&[]));
                assert_number(&format!("{name} {replay:?}, step {i}: loss"), loss, expected.loss, 1e-4);
                assert_number(&format!("{name} {replay:?}, step {i}: norm"), norm, expected.grad_norm, 1e-4);
                optimiser.step(lr).unwrap();
                optimiser.zero_gradients();
            }
            let expected = tensors(format!("virtual-tokens/{name}/expected.safetensors"));
            let bound = (10.0 * case.float64_difference.final_abs).max(2e-5);
            let ours = &model.adapter_tensors(0)[PROMPT_EMBEDDINGS];
            assert_within(&format!("{name} {replay:?}: final"), ours, &expected["final"], bound);
        }
    }
    assert_eq!(encoders, 9, "P-tuning twice and a projection, with three replays each");
}

#[test]
fn gradients_of_a_packed_row_are_those_of_its_sequences() {
    for name in ["prompt_tuning-gpt2", "p_tuning", "prefix_tuning", "prefix_tuning-projection"] {
        let case = case(name);
        let model = at_start(name, &case);
        let gradients = |parts: Vec<&[Sequence]>, replay| {
            for part in parts {
                let _ = model.learn(&Row::pack(part), 10.0, replay).unwrap();
            }
            take_gradients(&model)
        };
        let alone = gradients(case.rows.chunks(1).collect(), LayerReplay::None);
        assert!(!alone.is_empty() && alone.values().all(|g| g.abs().max().double_value(&[]) > 0.0), "{name}");
        for replay in [LayerReplay::None, LayerReplay::All] {
            assert_all_close(&gradients(vec![&case.rows], replay), &alone, 1e-5);
        }
    }
}

#[test]
fn a_loss_on_activations_sees_real_tokens_whether_layers_are_replayed_or_not() {
    for name in ["prompt_tuning", "prefix_tuning", "p_tuning-gpt2"] {
        let case = case(name);
        let model = at_start(name, &case);
        model.expose(ExposedLayers { states: vec![0, 1], attention: vec![1] });
        let row = Row::pack(&case.rows);
        let count = row.tokens.len() as i64;
        let batch = row.with(|row, out| {
            let seen = &out.activations;
            let (states, attention) = (seen.hidden_state(0) * seen.hidden_state(1), seen.attention(1));
            assert_eq!([states.size()[0], attention.q.size()[0], attention.k.size()[0]], [count; 3], "{name}");
            let more =
                states.sum(Kind::Float) + attention.q.square().sum(Kind::Float) + attention.k.sin().sum(Kind::Float);
            let Loss { sum, metrics } = row.loss(out);
            Loss { sum: sum + more * 0.01, metrics }
        });
        let gradients = |replay| {
            let _ = model.learn(&batch, 7.0, replay).unwrap();
            take_gradients(&model)
        };
        let plain = gradients(LayerReplay::None);
        for replay in [LayerReplay::First(1), LayerReplay::All] {
            assert_all_close(&gradients(replay), &plain, 1e-5);
        }
        model.expose(ExposedLayers::default());
        let _ = model.learn(&row, 7.0, LayerReplay::None).unwrap();
        let without = take_gradients(&model);
        assert!(without.iter().any(|(n, g)| Gap::between(g, &plain[n]).norm > 1e-3), "{name}");
    }
}

#[test]
fn cached_steps_equal_the_full_forward() {
    for name in CASES.into_iter().filter(|name| !name.ends_with("dynamic")) {
        let (_, model) = opened(name, Kind::Float);
        let full = |sequences: &[Vec<u32>]| {
            let tokens = Tokens::pack(sequences, device());
            model.infer(&tokens, |out| out.logits(&tokens.segments.last_rows())).unwrap()
        };
        let mut sequences: Vec<Vec<u32>> =
            [9u32, 21, 14].iter().map(|n| (0..*n).map(|t| (t * 7 + n) % 60 + 3).collect()).collect();
        let mut cache = model.cache(sequences.len());
        let mut run = Tokens::pack(&sequences, device());
        for step in 0..6u32 {
            let cached = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
            assert_close(&format!("{name} step {step}"), &cached, &full(&sequences), 2e-5);
            if step == 3 {
                cache.retain_slots(&[2, 1]);
                sequences.swap_remove(0);
                // A sequence that begins beside others that go on gets virtual tokens of its own.
                cache.add_slots(1);
                sequences.push(vec![5, 9, 4]);
            }
            let held: Vec<i64> = cache.lengths.clone();
            sequences.iter_mut().zip(&held).filter(|(_, n)| **n > 0).for_each(|(s, _)| s.push(3 + step * 5));
            let new = sequences.iter().zip(&held).map(|(s, n)| if *n > 0 { &s[s.len() - 1..] } else { &s[..] });
            run = Tokens::pack_after(&new.collect::<Vec<_>>(), &held, device());
        }
        // Several tokens at once after the cached ones, another number for each sequence.
        let before: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let _ = model.extend(&run, &mut cache, |_| ()).unwrap();
        sequences.iter_mut().zip([5usize, 2, 3]).for_each(|(s, n)| s.extend(std::iter::repeat_n(11, n)));
        let new: Vec<&[u32]> = sequences.iter().zip(&before).map(|(s, n)| &s[*n..]).collect();
        let run = Tokens::pack_after(&new, &cache.lengths, device());
        let cached = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
        assert_close(&format!("{name} continued"), &cached, &full(&sequences), 2e-5);
    }
}

#[test]
fn answers_are_the_same_in_a_batch_alone_and_in_a_session() {
    for name in ["prompt_tuning", "p_tuning", "prefix_tuning", "prefix_tuning-gpt2"] {
        let (_, model) = opened(name, Kind::Float);
        let prompts: Vec<Vec<u32>> =
            [7u32, 19, 2, 12].iter().map(|n| (0..*n).map(|t| (t * 5 + n) % 60).collect()).collect();
        let settings = GenerationSettings::greedy(6, &[]);
        let answers = complete(&model, &prompts, &settings, &mut |_, _| ()).unwrap();
        // Greedy decoding by full forward passes.
        for (prompt, answer) in prompts.iter().zip(&answers) {
            let mut sequence = prompt.clone();
            for id in &answer.tokens {
                let best = logits(&model, &[&sequence]).get(-1).argmax(0, false).int64_value(&[]);
                assert_eq!(best, i64::from(*id), "{name}");
                sequence.push(*id);
            }
        }
        // Two rows at a time: prompts begin while others go on, in their places in the cache.
        let mut engine = Engine::new(&model, settings.clone(), BatchLimits { rows: 2, tokens: 4096 }).unwrap();
        prompts.iter().for_each(|p| _ = engine.add(GenerationRequest::new(p, 0)).unwrap());
        let (mut found, mut prompt_tokens) = (BTreeMap::new(), 0);
        while !engine.is_idle() {
            let step = engine.step().unwrap();
            prompt_tokens += step.prompt_tokens;
            found.extend(step.finished.into_iter().map(|done| (done.request, done.completion.tokens)));
        }
        assert!(found.values().eq(answers.iter().map(|a| &a.tokens)), "{name}: {found:?}");
        assert_eq!(prompt_tokens, prompts.iter().map(Vec::len).sum::<usize>(), "virtual tokens are no text");
        let mut session = ChatSession::new(&model);
        let longer = [&prompts[1][..], &answers[1].tokens, &[3, 4]].concat();
        for prompt in [&prompts[1], &longer, &prompts[0], &prompts[2]] {
            let fresh = complete(&model, std::slice::from_ref(prompt), &settings, &mut |_, _| ()).unwrap();
            let again = session.answer(prompt, &settings, &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(again, fresh[0], "{name}");
        }
    }
}

#[test]
fn virtual_tokens_take_positions_of_a_model_that_has_few() {
    let (_, model) = opened("prompt_tuning-gpt2", Kind::Float); // 64 positions, 3 virtual tokens
    assert_eq!((model.context_limit(), model.virtual_tokens()), (Some(61), 3));
    assert_eq!(model.with_adapter(None, |m| m.context_limit()), Some(64));
    let fits: Vec<u32> = vec![7; 61];
    let _ = logits(&model, &[&fits]);
    let long: Vec<u32> = vec![7; 62];
    let e = model.infer(&Tokens::pack(&[&long], device()), |_| ()).unwrap_err();
    assert!(e.message().contains("65 tokens, virtual ones included") && e.hints()[0].contains("within 61"), "{e}");
}

#[test]
fn virtual_tokens_start_as_their_settings_say() {
    let base = fixture("tiny-llama");
    let table = tensors("tiny-llama/model.safetensors").remove("model.embed_tokens.weight").unwrap();
    let start = |settings: Value| {
        let mut spec: AdapterSpec = serde_json::from_value(settings).unwrap();
        spec.start_from_text(&|text| Ok(text.bytes().map(u32::from).collect())).unwrap();
        let model = adapted(&base, Kind::Float, &*spec.plan().unwrap());
        model.adapter_tensors(0).remove(PROMPT_EMBEDDINGS).unwrap().to_device(tch::Device::Cpu)
    };
    for (count, tokens) in [(7, "abcabca"), (2, "ab")] {
        let ids: Vec<i64> = tokens.bytes().map(i64::from).collect();
        let found = start(json!({ "prompt_tuning": { "virtual_tokens": count, "text": "abc" } }));
        assert_same(tokens, &found, &table.index_select(0, &Tensor::from_slice(&ids)));
    }
    let sampled = start(json!({ "prompt_tuning": { "virtual_tokens": 9, "init": "vocabulary" } }));
    for row in 0..9 {
        let nearest = (&table - sampled.get(row)).abs().sum_dim_intlist([1i64].as_slice(), false, Kind::Float).min();
        assert_eq!(nearest.double_value(&[]), 0.0, "row {row} is no row of the table");
    }
    assert_eq!(start(json!({ "prefix_tuning": { "init": "zero" } })).abs().max().double_value(&[]), 0.0);
    let projected = json!({ "prefix_tuning": { "init": "zero", "projection": true } });
    assert_eq!(start(projected).abs().max().double_value(&[]), 0.0);
    let random = start(json!({ "prefix_tuning": { "virtual_tokens": 50 } }));
    assert_eq!(random.size(), [50, 192]);
    let std = random.std(true).double_value(&[]);
    assert!((std - 1.0).abs() < 0.05, "{std}");
}

#[test]
fn peft_files_are_rewritten_unchanged() {
    for name in CASES {
        let (out, from) = (tempfile::tempdir().unwrap(), saved(name));
        let read = file::read(&from).unwrap();
        let tensors = read.tensors.iter().map(|(n, t)| (n.as_str(), t));
        file::write(out.path(), &read.spec, read.base.as_deref().unwrap(), tensors).unwrap();
        let config = |folder: &Path| -> Value { ft::fsutil::read_json(&folder.join(file::CONFIG)).unwrap() };
        let (before, after) = (config(&from), config(out.path()));
        for (key, value) in after.as_object().unwrap() {
            assert_eq!(before.get(key), Some(value), "{name}: {key}");
        }
        let weights = |folder: &Path| ft::nn::Weights::open_file(&folder.join(file::TENSORS)).unwrap().all();
        let (before, after) = (weights(&from), weights(out.path()));
        assert!(before.keys().eq(after.keys()) && before.keys().eq([PROMPT_EMBEDDINGS]), "{name}");
        assert_same(name, &after[PROMPT_EMBEDDINGS], &before[PROMPT_EMBEDDINGS]);
    }
}

#[test]
fn files_that_say_more_are_refused_by_name() {
    let refused = |name: &str, key: &str, value: Value| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(saved(name).join(file::TENSORS), folder.path().join(file::TENSORS)).unwrap();
        let mut config: Value = json(format!("virtual-tokens/{name}/initial/adapter_config.json"));
        config[key] = value;
        ft::fsutil::write_json(&folder.path().join(file::CONFIG), &config).unwrap();
        let base = fixture(case(name).model);
        let e = open(&base, &[folder.path().to_path_buf()], device(), Kind::Float).err().expect(key);
        assert!(!e.hints().is_empty() && e.exit_code() == 1, "{e}");
        e.message().to_string()
    };
    for (name, key, value) in [
        ("p_tuning", "encoder_reparameterization_type", json!("LSTM")),
        ("prompt_tuning", "modules_to_save", json!(["lm_head"])),
        ("prompt_tuning", "task_type", json!("SEQ_CLS")),
        ("prompt_tuning", "task_type", json!("SEQ_2_SEQ_LM")),
        ("prompt_tuning", "num_transformer_submodules", json!(2)),
        ("prompt_tuning", "num_virtual_tokens", json!(0)),
        ("prompt_tuning", "num_virtual_tokens", json!(1u64 << 40)),
        ("prefix_tuning", "something_new", json!(1)),
        ("prefix_tuning", "peft_type", json!("MULTITASK_PROMPT_TUNING")),
    ] {
        let message = refused(name, key, value);
        assert!(message.contains(key), "{message}");
    }
    // Another number of tokens than the file has, and a kind with tensors of another width.
    assert!(refused("prompt_tuning", "num_virtual_tokens", json!(6)).contains("[5, 64], expected [6, 64]"));
    assert!(refused("prompt_tuning", "peft_type", json!("PREFIX_TUNING")).contains("expected [5, 192]"));
    // A file without virtual tokens, or with other tensors.
    for tensors in [
        BTreeMap::new(),
        BTreeMap::from([("base_model.model.x".to_string(), Tensor::zeros([1], tch::kind::FLOAT_CPU))]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(saved("p_tuning").join(file::CONFIG), folder.path().join(file::CONFIG)).unwrap();
        save_tensors(&folder.path().join(file::TENSORS), &tensors);
        let e = open(&fixture("tiny-llama"), &[folder.path().to_path_buf()], device(), Kind::Float).err().unwrap();
        assert!(e.message().contains("`prompt_embeddings` is missing"), "{e}");
    }
}

#[test]
fn merging_says_how_to_use_the_adapter() {
    for name in ["prompt_tuning", "p_tuning", "prefix_tuning"] {
        let (base, adapter, out) = (fixture("tiny-llama"), saved(name), tempfile::tempdir().unwrap());
        for form in ["model", "adapter"] {
            let merged = out.path().join("merged");
            let run = std::process::Command::new(ft_binary())
                .arg("merge")
                .args([&base, &adapter])
                .args(["--as", form, "--out"])
                .arg(&merged)
                .output()
                .unwrap();
            let said = stderr(&run);
            assert_eq!(run.status.code(), Some(1), "{said}");
            let use_it = format!("ft generate --model {} --adapter {}", base.display(), adapter.display());
            assert!(said.contains("no update of weights") && said.contains(&use_it), "{said}");
            assert!(!merged.exists());
        }
    }
}

const LORA: &str = "recipes/lora-medical.yaml";

macro_rules! resumed {
    ($($name:ident: $sets:expr;)*) => {$(
        #[test]
        fn $name() {
            resumed_equals_straight(&Workspace::new(), LORA, &$sets);
        }
    )*};
}

resumed! {
    a_resumed_run_of_prompt_tuning_equals_a_straight_one: [
        "adapter={prompt_tuning: {virtual_tokens: 6, text: Answer briefly}}", "optim.neftune=5",
    ];
    a_resumed_run_of_p_tuning_equals_a_straight_one: [
        "adapter={p_tuning: {virtual_tokens: 4, encoder_hidden_size: 12}}", "run.replay=all",
    ];
    a_resumed_run_of_prefix_tuning_equals_a_straight_one: [
        "adapter={prefix_tuning: {virtual_tokens: 4, projection: true}}", "run.replay=all",
    ];
}

#[test]
fn a_run_is_continued_by_another_one() {
    let space = Workspace::new();
    for kind in ["prompt_tuning", "prefix_tuning"] {
        let _ = train(&space, LORA, "first", &[&format!("adapter={{{kind}: {{virtual_tokens: 3}}}}")]);
        let report = space.json("first/export_report.json");
        assert_eq!((&report["verdict"], &report["difference"]["max_abs"]), (&json!("passed"), &json!(0.0)), "{report}");
        let before = space.weights("first");
        // No step changes anything at a rate of 0: what is saved is what was continued.
        let again = format!("adapter={{{kind}: {{virtual_tokens: 3, from: first}}}}");
        let _ = train(&space, LORA, "second", &[&again, "optim.lr=0", "optim.weight_decay=0"]);
        assert_eq!(space.weights("second"), before, "{kind}");
        // Of preference methods it is then the reference too: equal models have a loss of log(2).
        let dpo = ["--set", &again, "--set", "run.steps=1", "--set", "run.out=dpo", "--set", "model.dtype=f32"];
        space.ft(&[&["train", "recipes/dpo-medical.yaml", "--overwrite"], &dpo[..]].concat());
        let loss = space.steps("dpo").iter().find_map(|line| line.get("loss")?.as_f64()).unwrap();
        assert!((loss - 2f64.ln()).abs() < 1e-6, "{kind}: {loss}");
        let other = format!("adapter={{{kind}: {{virtual_tokens: 4, from: first}}}}");
        let said = space.refused(&["train", LORA, "--overwrite", "--set", &other]);
        assert!(said.contains("virtual_tokens: 3, not 4"), "{said}");
    }
}

#[test]
fn every_method_trains_virtual_tokens() {
    let space = Workspace::new();
    let steps = ["run.steps=2", "run.samples=1", "run.eval_every=1", "run.save_every=0"];
    let run = |name: &str, recipe: &str, adapter: &str, more: &[&str]| {
        let (out, adapter) = (format!("run.out=runs/{name}"), format!("adapter={adapter}"));
        let mut arguments = vec!["train", recipe, "--overwrite", "--set", &out, "--set", &adapter];
        arguments.extend(steps.iter().chain(more).flat_map(|s| ["--set", s]));
        space.ft(&arguments);
        space.steps(&format!("runs/{name}"))
    };
    for adapter in ["{prompt_tuning: {init: vocabulary}}", "{prefix_tuning: {init: zero}}", "{p_tuning: {}}"] {
        let pairs = run("dpo", "recipes/dpo-medical.yaml", adapter, &["batch.tokens=512", "batch.max_len=256"]);
        // The reference is the base without virtual tokens, from which the model differs before its first step: log(2)
        // would be the loss of equal models.
        let loss = pairs.iter().find_map(|line| line.get("loss")?.as_f64()).unwrap();
        assert!(loss.is_finite() && (loss - 2f64.ln()).abs() > 1e-4, "{adapter}: {loss}");
        let short = ["method.grpo.sampling.max_new_tokens=8", "model.dtype=f32"];
        let sampled = run("grpo", "recipes/grpo-icd10.yaml", adapter, &short);
        // Training computes the probabilities that answers were sampled with.
        let gaps = sampled.iter().filter_map(|line| line.get("sampling/sampling_logp_difference/max")?.as_f64());
        let gaps: Vec<f64> = gaps.collect();
        assert!(!gaps.is_empty() && gaps.iter().all(|gap| *gap < 1e-4), "{adapter}: {gaps:?}");
    }
    space.ft(&["train", "recipes/reward-helpful.yaml", "--set", "run.steps=2"]);
    let judge = "method.ppo.rewards=[{model: {path: adapters/reward-helpful, force: true}}]";
    let ppo = [judge, "method.ppo.sampling.prompts=4", "method.ppo.sampling.max_new_tokens=8"];
    let iterations = run("ppo", "recipes/ppo-helpful.yaml", "{prompt_tuning: {}}", &ppo);
    assert!(iterations.iter().any(|line| line.get("loss").is_some()), "{iterations:?}");
    let said = space.refused(&["train", "recipes/reward-helpful.yaml", "--set", "adapter={prompt_tuning: {}}"]);
    assert!(said.contains("`adapter.prompt_tuning`") && said.contains("lora"), "{said}");
}

#[test]
fn memory_is_predicted_with_virtual_tokens_and_lengths_without() {
    let space = Workspace::new();
    let check = |adapter: &str| -> Value {
        let adapter = format!("adapter={adapter}");
        let run = space.ft(&["check", LORA, "--json", "--set", &adapter]);
        serde_json::from_slice(&run.stdout).unwrap()
    };
    let checks: Vec<Value> = [2, 200].map(|n| check(&format!("{{prompt_tuning: {{virtual_tokens: {n}}}}}"))).into();
    let memory: Vec<u64> = checks.iter().map(|c| c["needs"]["activations"].as_u64().unwrap()).collect();
    assert!(memory[1] > memory[0] * 2, "{memory:?}");
    assert_eq!(checks[0]["longest_row"], checks[1]["longest_row"]);
    for key in ["tokens", "supervised_tokens", "lengths", "too_long"] {
        assert_eq!(checks[0]["train"][key], checks[1]["train"][key], "{key}");
    }
    assert_eq!(checks[1]["trained"], json!(200 * 64));
    let prefix = check("{prefix_tuning: {virtual_tokens: 200}}");
    assert_eq!(prefix["trained"], json!(200 * 192));
    let mistakes = [
        ("{prompt_tuning: {text: x, init: vocabulary}}", "`adapter.prompt_tuning.init` has no effect"),
        ("{prefix_tuning: {encoder_hidden_size: 4}}", "no effect without `projection`"),
        ("{prefix_tuning: {projection: true, from: x}}", "`adapter.prefix_tuning.from`"),
        ("{prompt_tuning: {virtual_tokens: 0}}", "adapter.prompt_tuning.virtual_tokens"),
        ("{p_tuning: {encoder: lstm}}", "encoder"),
    ];
    for (adapter, expected) in mistakes {
        let said = space.refused(&["check", LORA, "--set", &format!("adapter={adapter}")]);
        assert!(said.contains(expected), "{adapter}: {said}");
    }
}
