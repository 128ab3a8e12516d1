//! Compares reward models with TRL, transformers and PEFT (tests/fixtures/reward/make.py), and tests what needs no
//! reference: saving, refusals, the report card, `ft score` and packing.

use crate::support::command::stderr;
use crate::support::files::{copied, jsonl};
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::{AdapterSpec, LoraSpec, ModulePlan, file};
use ft::convert::export;
use ft::data::encode::PairExample;
use ft::fsutil::{read_json, write_json};
use ft::methods::reward::loss::RewardBatch;
use ft::methods::reward::{ReportCard, RewardMethodSpec};
use ft::models::learning::MicroBatch;
use ft::models::{Heads, LayerReplay, LoadOptions, Model, RewardScorer, Storage, TrainedPart, open_scorer, reward};
use ft::nn::{AdapterPlan, weights};
use ft::recipe::optim::OptimSection;
use ft::train::optim::Optimiser;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

#[derive(serde::Deserialize)]
struct Scored {
    ids: Vec<Vec<u32>>,
    scores: Vec<f64>,
}

fn expected() -> BTreeMap<String, Value> {
    json("reward/scores.json")
}

fn scored(name: &str) -> Scored {
    serde_json::from_value(expected()[name].clone()).unwrap()
}

fn assert_scores(model: &Model, scoring: &RewardScorer, expected: &Scored) {
    let together = scoring.scores(model, &expected.ids).unwrap();
    for (i, (ours, theirs)) in together.iter().zip(&expected.scores).enumerate() {
        assert!((ours - theirs).abs() < 1e-5, "sequence {i}: {ours}, transformers has {theirs}");
        let alone = scoring.scores(model, &expected.ids[i..i + 1]).unwrap()[0];
        assert!((ours - alone).abs() < 1e-5, "sequence {i}: {ours} packed, {alone} alone");
    }
}

/// Loads a model with a scalar head for training: the adapter if there is one, else every weight.
fn with_head(folder: &Path, adapter: Option<&dyn AdapterPlan>) -> Model {
    let adapters = adapter.map(|a| ("default".to_string(), a)).into_iter().collect::<Vec<_>>();
    let train_base = adapters.is_empty().then_some(&TrainedPart::All);
    Model::load(
        folder,
        LoadOptions {
            device: device(),
            kind: Kind::Float,
            storage: Storage::Auto,
            train_base,
            adapters,
            vocabulary: None,
            heads: Heads::Score,
        },
    )
    .unwrap()
}

/// Returns the message of an error and its hints as one text.
fn told(error: &ft::error::Error) -> String {
    format!("{} {}", error.message(), error.hints().join(" "))
}

#[test]
fn scores_of_transformers_directories_are_the_same() {
    for name in ["llama", "qwen3", "gpt2"] {
        let (model, scoring) = open_scorer(&fixture(format!("reward/{name}")), None, device(), Kind::Float).unwrap();
        assert_eq!((model.heads(), scoring.pad_token_id), (Heads::Score, Some(3)));
        assert_scores(&model, &scoring, &scored(name));
    }
}

#[test]
fn scores_of_a_peft_adapter_are_the_same() {
    let (base, adapter) = (fixture("tiny-llama"), fixture("reward/adapter"));
    let (model, _) = open_scorer(&base, Some(&adapter), device(), Kind::Float).unwrap();
    let scoring =
        RewardScorer { pad_token_id: Some(3), ..RewardScorer::read_or_default(&adapter, model.config()).unwrap() };
    assert_scores(&model, &scoring, &scored("adapter"));
}

/// The head is trained beside virtual tokens; the fixtures of tests/fixtures/virtual_tokens.py.
#[test]
fn scores_over_virtual_tokens_are_pefts() {
    for kind in ["prompt_tuning", "prefix_tuning"] {
        let adapter = fixture(format!("virtual-scores/{kind}"));
        let (model, scoring) = open_scorer(&fixture("tiny-llama"), Some(&adapter), device(), Kind::Float).unwrap();
        let expected: Scored = json(format!("virtual-scores/{kind}/scores.json"));
        assert!(expected.scores.iter().any(|score| score.abs() > 0.1), "{kind}");
        assert_scores(&model, &scoring, &expected);
        let out = tempfile::tempdir().unwrap();
        let read = file::read(&adapter).unwrap();
        let tensors = read.tensors.iter().map(|(name, t)| (name.as_str(), t));
        file::write(out.path(), &read.spec, "base", tensors).unwrap();
        let names = |folder: &Path| -> Vec<String> {
            let file = ft::nn::Weights::open_file(&folder.join(file::TENSORS)).unwrap();
            file.names().map(String::from).collect()
        };
        assert_eq!(names(out.path()), names(&adapter), "{kind}");
    }
}

#[test]
fn scores_equal_transformers_if_the_padding_token_ends_answers() {
    let folder = copied(&fixture("reward/llama"));
    let path = folder.path().join("config.json");
    let mut config: Value = read_json(&path).unwrap();
    config["pad_token_id"] = json!(2);
    write_json(&path, &config).unwrap();
    let (model, scoring) = open_scorer(folder.path(), None, device(), Kind::Float).unwrap();
    assert_scores(&model, &scoring, &scored("llama with pad = eos"));
}

#[derive(serde::Deserialize)]
struct Steps {
    optimiser: Rates,
    center: f64,
    pairs_a_step: usize,
    pairs: Vec<Ids>,
    steps: Vec<BTreeMap<String, f64>>,
    final_stride: i64,
}

#[derive(serde::Deserialize)]
struct Rates {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    max_norm: f64,
}

#[derive(serde::Deserialize)]
struct Ids {
    chosen_ids: Vec<u32>,
    rejected_ids: Vec<u32>,
    margin: Option<f64>,
}

impl Ids {
    fn pair(&self) -> PairExample {
        let (chosen, rejected) = (self.chosen_ids.clone(), self.rejected_ids.clone());
        PairExample { prompt: Vec::new(), chosen, rejected, margin: self.margin, line: 1 }
    }
}

/// Takes ten steps, with `micro` pairs per packed row, and compares each with what TRL logged.
fn ten_steps(case: &Steps, model: &Model, micro: usize, replay: LayerReplay) {
    let Rates { lr, betas, eps, max_norm } = case.optimiser;
    let settings = OptimSection { lr: Some(lr), betas, eps, weight_decay: 0.0, ..OptimSection::default() };
    let mut optimiser = Optimiser::new(model.params(), &settings, 0).unwrap();
    let spec = RewardMethodSpec { center: case.center, ..RewardMethodSpec::default() };
    for (i, (batch, expected)) in case.pairs.chunks(case.pairs_a_step).zip(&case.steps).enumerate() {
        let pairs: Vec<PairExample> = batch.iter().map(Ids::pair).collect();
        let mut metrics = ft::models::Metrics::default();
        for row in pairs.chunks(micro) {
            let row = RewardBatch::new(row, spec, device());
            let items = pairs.len() as f64;
            metrics.merge(model.learn(&row, items, replay).unwrap());
        }
        let norm = optimiser.clip(max_norm).unwrap().double_value(&[]);
        let means = metrics.means();
        let close = |name: &str, ours: f64| {
            let theirs = expected[name];
            assert!((ours - theirs).abs() < 1e-4 * theirs.abs().max(1.0), "step {i}: {name} {ours}, TRL has {theirs}");
        };
        close("grad_norm", norm);
        for name in ["loss", "accuracy", "margin", "mean_reward"] {
            close(name, means[name]);
        }
        if micro == case.pairs_a_step {
            close("min_reward", means["min_reward"]);
            close("max_reward", means["max_reward"]);
        }
        optimiser.step(lr).unwrap();
        optimiser.zero_gradients();
    }
    assert_eq!(case.steps.len(), 10);
}

fn compare_final(name: &str, case: &Steps, model: &Model) {
    let expected = tensors(format!("reward/steps/{name}/final.safetensors"));
    let ours: BTreeMap<&str, &Tensor> = model.params().trainable().map(|p| (p.name.as_str(), &p.tensor)).collect();
    assert!(
        ours.keys().copied().eq(expected.keys().map(String::as_str)),
        "{:?} and {:?}",
        ours.keys(),
        expected.keys()
    );
    for (key, t) in &ours {
        assert_within(key, &every(case.final_stride, t), &expected[*key], 1e-4);
    }
}

#[test]
fn ten_steps_on_every_weight_equal_trl() {
    let case: Steps = json("reward/steps/full/expected.json");
    for (micro, replay) in [(4, LayerReplay::None), (1, LayerReplay::All)] {
        let model = with_head(&fixture("reward/llama"), None);
        ten_steps(&case, &model, micro, replay);
        compare_final("full", &case, &model);
    }
}

#[test]
fn ten_steps_of_lora_with_margins_and_centring_equal_trl() {
    let case: Steps = json("reward/steps/lora/expected.json");
    let folder = fixture("reward/steps/lora/initial");
    let initial = file::read(&folder).unwrap();
    for (micro, replay) in [(4, LayerReplay::None), (3, LayerReplay::All)] {
        let plan = initial.plan(&folder).unwrap();
        let model = with_head(&fixture("tiny-llama"), Some(&*plan));
        file::load_into(model.params().adapter(0), &initial.tensors, &folder).unwrap();
        ten_steps(&case, &model, micro, replay);
        compare_final("lora", &case, &model);
    }
}

/// Makes a folder with a tiny model and a tokenizer whose padding token also ends answers.
fn base() -> tempfile::TempDir {
    let folder = copied(&fixture("tiny-llama"));
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(fixture("tiny-tokenizer").join(name), folder.path().join(name)).unwrap();
    }
    for (name, key, value) in
        [("tokenizer_config.json", "pad_token", json!("<|im_end|>")), ("config.json", "pad_token_id", json!(2))]
    {
        let path = folder.path().join(name);
        let mut config: Value = read_json(&path).unwrap();
        config[key] = value;
        write_json(&path, &config).unwrap();
    }
    folder
}

fn lora() -> LoraSpec {
    LoraSpec { rank: 2, modules_to_save: vec!["score".into()], ..LoraSpec::default() }
}

/// Saves a reward model's adapter. Returns (temporary folder that must be kept alive, folder of the adapter inside it).
fn saved_adapter(base: &Path) -> (tempfile::TempDir, PathBuf) {
    let (spec, out) = (lora(), tempfile::tempdir().unwrap());
    let plan = ModulePlan::new(&spec).unwrap();
    let model = with_head(base, Some(&plan));
    fill_adapter(&model, 0.3);
    let folder = out.path().join("rm");
    let report = export::save_adapter(&model, "default", &AdapterSpec::Lora(spec), base, &folder).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    (out, folder)
}

#[test]
fn a_saved_adapter_has_its_head_and_a_padding_token_that_ends_no_answer() {
    let base = base();
    let (_out, folder) = saved_adapter(base.path());
    let config: Value = read_json(&folder.join("adapter_config.json")).unwrap();
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("SEQ_CLS"), &json!(["score"])));
    let saved = weights::Weights::open_file(&folder.join(file::TENSORS)).unwrap();
    assert_eq!(saved.shape("base_model.model.score.weight"), Some([1, 64].as_slice()));
    let scoring = RewardScorer::read(&folder).unwrap().unwrap();
    assert_eq!((scoring.pad_token_id, scoring.probes.len()), (Some(3), 7), "`<|pad|>` exists and ends no answer");
    let tokens: Value = read_json(&folder.join("tokenizer_config.json")).unwrap();
    assert_eq!(tokens["pad_token"], "<|pad|>");
    // Loaded from disk onto its base, the adapter gives the same scores.
    let (model, again) = open_scorer(base.path(), Some(&folder), device(), Kind::Float).unwrap();
    assert_eq!(again, scoring);
    let ids: Vec<&Vec<u32>> = scoring.probes.iter().map(|p| &p.ids).collect();
    for (probe, now) in scoring.probes.iter().zip(scoring.scores(&model, &ids).unwrap()) {
        assert!((probe.score - now).abs() < 1e-5);
    }
    // In bfloat16, too, the stored probe scores match the model.
    open_scorer(base.path(), Some(&folder), device(), Kind::BFloat16).unwrap();
}

#[test]
fn a_fully_trained_reward_model_is_saved_as_a_transformers_directory() {
    let base = base();
    let model = with_head(base.path(), None);
    let _ = tch::no_grad(|| {
        model.params().base().find(|p| p.name == "score.weight").unwrap().tensor.shallow_clone().fill_(0.1)
    });
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("rm");
    let report = export::save_model(&model, &folder, Kind::Float).unwrap();
    assert_eq!((report.problems.len(), report.tied), (0, false));
    let config: Value = read_json(&folder.join("config.json")).unwrap();
    for (key, value) in [
        ("architectures", json!(["LlamaForSequenceClassification"])),
        ("id2label", json!({ "0": "LABEL_0" })),
        ("label2id", json!({ "LABEL_0": 0 })),
        ("pad_token_id", json!(3)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let names: Vec<String> = weights::Weights::open(&folder).unwrap().names().map(String::from).collect();
    assert!(names.contains(&"score.weight".into()) && !names.contains(&"lm_head.weight".into()), "{names:?}");
    // The saved model can be loaded for further training.
    assert_eq!(with_head(&folder, None).params().base().count(), names.len());
    let refused = ft::models::open(&folder, &[], Device::Cpu, Kind::Float).err().unwrap();
    assert!(refused.message().contains("reward model") && told(&refused).contains("ft score"), "{refused}");
}

#[test]
fn a_model_other_than_the_trained_reward_model_is_refused() {
    let base = base();
    let (_out, good) = saved_adapter(base.path());
    let refused = |base: &Path, folder: &Path| {
        let error = open_scorer(base, Some(folder), device(), Kind::Float).err().expect("it must be refused");
        told(&error)
    };
    let with = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let folder = copied(&good);
        let mut tensors = tensors(good.join(file::TENSORS)).into_iter().map(|(k, t)| (k, t.copy())).collect();
        change(&mut tensors);
        save_tensors(&folder.path().join(file::TENSORS), &tensors);
        refused(base.path(), folder.path())
    };
    const HEAD: &str = "base_model.model.score.weight";
    let missing = with(&|t| drop(t.remove(HEAD)));
    assert!(missing.contains("no `score.weight`") && missing.contains("random"), "{missing}");
    let wide = with(&|t| drop(t.insert(HEAD.into(), Tensor::ones([2, 64], (Kind::Float, Device::Cpu)))));
    assert!(wide.contains("[2, 64]") && wide.contains("[1, 64]") && wide.contains("num_labels"), "{wide}");
    let random = with(&|t| drop(t.insert(HEAD.into(), noise(&[1, 64], "another head"))));
    assert!(random.contains("when it was saved") && random.contains("reward.json"), "{random}");
    let broken = with(&|t| drop(t.insert(HEAD.into(), Tensor::full([1, 64], f64::NAN, (Kind::Float, Device::Cpu)))));
    assert!(broken.contains("when it was saved"), "{broken}");
    // The same adapter on another base of the same shape.
    let other = copied(base.path());
    let path = other.path().join("model.safetensors");
    let mut moved: BTreeMap<String, Tensor> =
        tensors(base.path().join("model.safetensors")).into_iter().map(|(k, t)| (k, t.copy())).collect();
    let _ = moved.get_mut("model.layers.0.mlp.down_proj.weight").unwrap().neg_();
    save_tensors(&path, &moved);
    assert!(refused(other.path(), &good).contains("base"), "another base");
    // A PEFT config that does not name the head.
    let bare = copied(&good);
    let config = bare.path().join("adapter_config.json");
    let mut value: Value = read_json(&config).unwrap();
    value["modules_to_save"] = Value::Null;
    write_json(&config, &value).unwrap();
    assert!(refused(base.path(), bare.path()).contains("never saved"));
    // Models without a head at all.
    let plain = open_scorer(base.path(), None, device(), Kind::Float).err().unwrap();
    assert!(plain.message().contains("no `score.weight`"), "{plain}");
    let language = refused(&fixture("biased-llama"), &fixture("adapters/plain"));
    assert!(language.contains("language model's adapter"), "{language}");
    // A reward model's adapter cannot be opened to generate text.
    let speaking = ft::models::open(base.path(), std::slice::from_ref(&good), Device::Cpu, Kind::Float).err().unwrap();
    assert!(told(&speaking).contains("ft score"), "{speaking}");
}

#[test]
fn an_untrained_head_scores_zero_and_saves() {
    let base = base();
    let plan = ModulePlan::new(&lora()).unwrap();
    let model = with_head(base.path(), Some(&plan));
    assert_eq!(reward::scores(&model, &[[5u32, 6, 7]], None).unwrap(), [0.0]);
    let out = tempfile::tempdir().unwrap();
    export::save_adapter(&model, "default", &AdapterSpec::Lora(lora()), base.path(), &out.path().join("rm")).unwrap();
}

/// Trains a reward model on datasets/preference.jsonl in a workspace.
fn trained(space: &Workspace) {
    let recipe = "model: { path: models/smollm2-135m-instruct, dtype: f32 }
method: { reward: { center: 0.01 } }
adapter: { lora: { rank: 4 } }
data: { train: { path: datasets/preference.jsonl }, valid: { path: datasets/preference.jsonl } }
batch: { tokens: 1024, max_len: 256, examples: 8 }
optim: { lr: 5e-3 }
run: { epochs: 2, out: rm, eval_at_start: true }
";
    std::fs::write(space.path("reward.yaml"), recipe).unwrap();
    space.ft(&["train", "reward.yaml"]);
}

#[test]
fn a_run_writes_a_report_card_and_ft_score_scores_every_row() {
    let space = Workspace::new();
    trained(&space);
    let card = ReportCard::read(&space.path("rm")).unwrap().expect("report_card.json");
    assert_eq!(card.pairs, 46);
    let (swap, cut) = (card.swap.unwrap(), card.without_stop.unwrap());
    assert!(swap.pairs == 46 && swap.max_difference < 1e-4, "{swap:?}");
    assert!(cut.pairs == 46 && cut.mean_size > 0.0, "{cut:?}");
    let page = std::fs::read_to_string(space.path("rm/report.html")).unwrap();
    assert!(page.contains("Report card") && page.contains("Margins"));
    assert!(
        !space.path("rm/samples.jsonl").exists() || std::fs::read(space.path("rm/samples.jsonl")).unwrap().is_empty()
    );
    let best = space.json("rm/summary.json");
    assert_eq!(best["best_metric"], "loss");

    let model = ["--model", "models/smollm2-135m-instruct", "--adapter", "rm", "--dtype", "f32"];
    let score = |input: &str, out: &str| -> Value {
        let run = space.ft(&[&["score"], &model[..], &["--input", input, "--out", out, "--json"]].concat());
        serde_json::from_slice(&run.stdout).unwrap()
    };
    let all = score("datasets/preference.jsonl", "scores.jsonl");
    assert_eq!((&all["rows"], &all["pairs"]), (&json!(46), &json!(46)));
    assert_eq!(all["accuracy"], card.accuracy.share);
    let text = std::fs::read_to_string(space.path("scores.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((lines.len(), &lines[7]["line"]), (46, &json!(8)));
    let right = lines.iter().filter(|l| l["score_chosen"].as_f64() > l["score_rejected"].as_f64()).count();
    assert_eq!(right, lines.iter().filter(|l| l["correct"] == true).count());
    assert!((right as f64 / 46.0 - card.accuracy.share).abs() < 1e-9);

    // The same answers in other row formats have the same scores.
    let rows: Vec<Value> = lines
        .iter()
        .map(|l| {
            let turns = [l["prompt"].as_array().unwrap().clone(), l["chosen"].as_array().unwrap().clone()].concat();
            json!({ "messages": turns })
        })
        .collect();
    let file = |name: &str, rows: &[Value]| {
        std::fs::write(space.path(name), jsonl(rows)).unwrap();
    };
    file("chats.jsonl", &rows);
    let judged: Vec<Value> = lines
        .iter()
        .flat_map(|l| {
            [("chosen", true), ("rejected", false)]
                .map(|(side, label)| json!({ "prompt": l["prompt"], "completion": l[side], "label": label }))
        })
        .collect();
    file("judged.jsonl", &judged);
    score("chats.jsonl", "chats.out.jsonl");
    let auc = score("judged.jsonl", "judged.out.jsonl")["auc"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&auc));
    let read = |name: &str| -> Vec<Value> {
        std::fs::read_to_string(space.path(name)).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let near = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-4;
    for (i, (chat, line)) in read("chats.out.jsonl").iter().zip(&lines).enumerate() {
        assert!(near(&chat["score"], &line["score_chosen"]), "row {i}: {chat} and {line}");
    }
    for (i, one) in read("judged.out.jsonl").iter().enumerate() {
        let side = if i % 2 == 0 { "score_chosen" } else { "score_rejected" };
        assert!(near(&one["score"], &lines[i / 2][side]), "row {i}");
    }

    // Rows without an answer are refused, and no partial file is left.
    for (input, word) in [("datasets/prompts.jsonl", "no answer"), ("datasets/text.jsonl", "no answer")] {
        let out = space
            .command(&[&["score"], &model[..], &["--input", input, "--out", "none.jsonl"]].concat())
            .output()
            .unwrap();
        let said = stderr(&out);
        assert!(out.status.code() == Some(1) && said.contains(word), "{input}: {said}");
        assert!(!space.path("none.jsonl").exists());
    }
    let eval = space.command(&[&["eval"], &model[..], &["--data", "datasets/chat.jsonl"]].concat()).output().unwrap();
    let said = stderr(&eval);
    assert!(eval.status.code() == Some(1) && said.contains("ft score"), "{said}");
}

#[test]
fn packing_does_not_change_the_loss() {
    let model = with_head(&fixture("reward/llama"), None);
    let case: Steps = json("reward/steps/full/expected.json");
    let pairs: Vec<PairExample> = case.pairs.iter().take(9).map(Ids::pair).collect();
    let spec = RewardMethodSpec { center: 0.1, label_smoothing: 0.1, ..RewardMethodSpec::default() };
    let value = |pairs: &[PairExample]| {
        let row = RewardBatch::new(pairs, spec, device());
        model.infer(row.tokens(), |out| row.loss(out)).unwrap().sum.double_value(&[])
    };
    let (together, alone) = (value(&pairs), pairs.iter().map(|p| value(std::slice::from_ref(p))).sum::<f64>());
    assert!((together - alone).abs() < 1e-4 * alone.abs(), "{together} and {alone}");
}
