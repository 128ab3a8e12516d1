//! Tests number formats: which one `auto` chooses, frozen weights kept in the format of their file, and runs that
//! continue on another machine.
//!
//! `FT_CPU=avx2` makes ft treat the processor as one without bfloat16 products, so that both kinds of machine are
//! tested everywhere.

use crate::support::command::{stderr, succeed};
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::{LoraSpec, ModulePlan};
use ft::generate::engine::complete;
use ft::generate::settings::GenerationSettings;
use ft::models::dtype::{self, Dtype};
use ft::models::{Heads, LayerReplay, LoadOptions, Model, Storage};
use ft::nn::{AdapterPlan, Weights, weights};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tch::{Kind, Tensor};

/// Copies a fixture and stores its weights in `kind`.
fn stored_in(name: &str, kind: Kind) -> tempfile::TempDir {
    let folder = with_weights(name, name);
    let file = folder.path().join("model.safetensors");
    rewrite(&file, kind);
    folder
}

fn rewrite(file: &Path, kind: Kind) {
    let tensors: Vec<(String, Tensor)> =
        Weights::open_file(file).unwrap().all().into_iter().map(|(n, t)| (n, t.to_kind(kind))).collect();
    weights::save(file, tensors.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
}

#[test]
fn auto_is_float32_for_float32_files_and_else_the_devices_native_format() {
    let choose = |kind| {
        let folder = stored_in("tiny-llama", kind);
        assert_eq!(dtype::stored_kind(folder.path()).unwrap(), kind);
        Dtype::Auto.choose(device(), Some(folder.path())).unwrap().dtype
    };
    let native = if dtype::bf16_multiplier(device()).is_some() { Dtype::Bf16 } else { Dtype::F32 };
    assert_eq!([choose(Kind::Float), choose(Kind::BFloat16), choose(Kind::Half)], [Dtype::F32, native, native]);
    assert_eq!(Dtype::Auto.choose(device(), None).unwrap().dtype, native);
    for asked in [Dtype::Bf16, Dtype::F32] {
        assert_eq!(asked.choose(device(), None).unwrap().dtype, asked);
    }
}

/// Frozen 16-bit weights are converted to float32 while they are multiplied. On the CPU all results must be bit-identical to those
/// of float32 copies; on CUDA, where only copies have the factors A below them, equal up to the order of sums.
#[test]
fn weights_kept_in_the_files_format_give_identical_results() {
    let spec = LoraSpec { rank: 4, alpha: 8.0, ..LoraSpec::default() };
    let prompts: Vec<Vec<u32>> = (1..6).map(|i| (0..7 * i).map(|t| (t * 5 + i) % 60).collect()).collect();
    for name in
        ["tiny-llama", "biased-llama", "tiny-gpt2", "tiny-qwen2", "tiny-qwen3", "tiny-mixtral", "tiny-qwen2-moe"]
    {
        for own in [Kind::BFloat16, Kind::Half] {
            let folder = stored_in(name, own);
            let plan = ModulePlan::new(&spec).unwrap();
            let open = |storage| {
                let adapters = vec![("a".to_string(), &plan as &dyn AdapterPlan)];
                let load = LoadOptions {
                    device: device(),
                    kind: Kind::Float,
                    storage,
                    train_base: None,
                    adapters,
                    vocabulary: None,
                    heads: Heads::Tokens,
                };
                let model = Model::load(folder.path(), load).unwrap();
                fill_adapter(&model, 0.1);
                model
            };
            let (held, copied) = (open(Storage::File), open(Storage::Copy));
            assert_eq!([held.storage_summary().0, copied.storage_summary().0], [own, Kind::Float], "{name}");
            assert!(
                held.storage_summary().1 < copied.storage_summary().1 * 2 / 3,
                "{name}: {:?} and {:?}",
                held.storage_summary(),
                copied.storage_summary()
            );
            for replay in [LayerReplay::None, LayerReplay::All] {
                let row = Row::pack(&(1..5).map(|n| Sequence::random(9 * n, 60, n as u64)).collect::<Vec<_>>());
                let step = |model: &Model| {
                    let metrics = model.learn(&row, row.items, replay).unwrap();
                    (metrics.means()["loss"], take_gradients(model))
                };
                let ((a, held), (b, copied)) = (step(&held), step(&copied));
                if device().is_cuda() {
                    assert!((a / b - 1.0).abs() < 1e-6, "{name} {own:?}: losses {a} and {b}");
                    assert_all_close(&held, &copied, 1e-5);
                    continue;
                }
                assert_eq!(a, b, "{name} {own:?}: loss");
                for (parameter, gradient) in &held {
                    assert_same(&format!("{name} {own:?}: {parameter}"), gradient, &copied[parameter]);
                }
            }
            let settings = GenerationSettings { log_probs: true, ..GenerationSettings::greedy(12, &[]) };
            let answer = |model: &Model| complete(model, &prompts, &settings, &mut |_, _| ()).unwrap();
            for (a, b) in answer(&held).iter().zip(&answer(&copied)) {
                assert_eq!(a.tokens, b.tokens, "{name} {own:?}: answers");
                let most = if device().is_cuda() { 1e-5 } else { 0.0 };
                let near = a.log_probs.iter().zip(&b.log_probs).all(|(a, b)| (a - b).abs() <= most);
                assert!(near && a.log_probs.len() == b.log_probs.len(), "{name} {own:?}: log-probabilities");
            }
        }
    }
}

const RECIPE: &str = "\
model:   { path: models/smollm2-135m-instruct }
method:  { sft: {} }
adapter: { lora: { rank: 4 } }
data:    { train: { path: datasets/icd10/train.jsonl } }
batch:   { tokens: 512, max_len: 512, examples: 4 }
run:     { steps: 4, save_every: 2, keep: 9, samples: 0, out: run }
";

/// Creates a workspace with a model stored in bfloat16 and the recipe above.
fn workspace() -> Workspace {
    let space = Workspace::new();
    rewrite(&space.path("models/smollm2-135m-instruct/model.safetensors"), Kind::BFloat16);
    std::fs::write(space.path("r.yaml"), RECIPE).unwrap();
    space
}

/// Runs `ft` as on a processor without bfloat16 products.
fn lesser(space: &Workspace, arguments: &[&str]) -> Output {
    succeed(space.command(arguments).env("FT_CPU", "avx2"))
}

fn on_cpu() -> bool {
    device() == tch::Device::Cpu
}

#[test]
fn a_run_reports_and_records_the_chosen_format() {
    if !on_cpu() {
        return;
    }
    let space = workspace();
    let output = lesser(&space, &["train", "r.yaml"]);
    let text = stderr(&output);
    assert!(text.contains("arithmetic in float32 (this device does not multiply bfloat16)"), "{text}");
    assert_eq!(space.json("run/plan.json")["recipe"]["model"]["dtype"], "f32");
    assert_eq!(space.json("run/ft.lock")["arithmetic"], "f32");
    let output = lesser(&space, &["train", "r.yaml", "--set", "run.out=held", "--set", "model.storage=file"]);
    assert!(stderr(&output).contains("frozen weights stay in bfloat16"), "{}", stderr(&output));
    let adapter = |run: &str| std::fs::read(space.path(&format!("{run}/adapter_model.safetensors"))).unwrap();
    assert!(adapter("run") == adapter("held"), "how weights are held changes a number");
    // The predicted memory is that of the format in which the weights are kept.
    let weights = |sets: &[&str]| {
        let all = [&["check", "r.yaml", "--json"], sets].concat();
        let check: Value = serde_json::from_slice(&lesser(&space, &all).stdout).unwrap();
        check["needs"]["weights"].as_f64().unwrap()
    };
    let held = |storage: &str| weights(&["--set", &format!("model.storage={storage}")]);
    let (held, copied) = (held("file"), held("copy"));
    assert!((1.8..2.1).contains(&(copied / held)), "{held} and {copied}");
}

#[test]
fn slow_bf16_gives_a_warning_with_the_measured_factor() {
    if !on_cpu() {
        return;
    }
    let space = workspace();
    let eval =
        ["eval", "--model", "models/smollm2-135m-instruct", "--data", "datasets/icd10/test.jsonl", "--rows", "1"];
    let asked = stderr(&lesser(&space, &[&eval[..], &["--dtype", "bf16"]].concat()));
    assert!(asked.contains("times slower than in f32 on this device"), "{asked}");
    assert!(asked.contains("arithmetic in bfloat16 (asked for)"), "{asked}");
    let left_out = stderr(&lesser(&space, &eval));
    assert!(!left_out.contains("slower") && left_out.contains("arithmetic in float32"), "{left_out}");
}

#[test]
fn a_resumed_run_keeps_its_format_on_another_kind_of_machine() {
    if !on_cpu() {
        return;
    }
    let space = workspace();
    let cut = |from: &str, to: &str| {
        succeed(Command::new("cp").args(["-r", from, to]).current_dir(space.path("")));
        for gone in ["checkpoints/step-4", "adapter_model.safetensors", "summary.json"] {
            let path = space.path(&format!("{to}/{gone}"));
            let _ = std::fs::remove_dir_all(&path);
            let _ = std::fs::remove_file(&path);
        }
    };
    let dtype = |run: &str| space.json(&format!("{run}/plan.json"))["recipe"]["model"]["dtype"].clone();
    // Started in bfloat16, as on a machine with bfloat16 products, and resumed on one without.
    space.ft(&["train", "r.yaml", "--set", "model.dtype=bf16"]);
    cut("run", "moved");
    let resumed = stderr(&lesser(&space, &["resume", "moved"]));
    assert!(resumed.contains("resuming after step 2") && resumed.contains("arithmetic in bfloat16"), "{resumed}");
    assert!(resumed.contains("times slower than in f32"), "{resumed}");
    assert_eq!(dtype("moved"), "bf16");
    // The same with `train --resume` and the original recipe, in which `auto` chooses the format.
    cut("run", "again");
    let recipe = ["train", "r.yaml", "--resume", "--set", "run.out=again"];
    let resumed = stderr(&lesser(&space, &recipe));
    assert!(resumed.contains("resuming after step 2") && resumed.contains("arithmetic in bfloat16"), "{resumed}");
    // The other way round: started in float32.
    lesser(&space, &["train", "r.yaml", "--set", "run.out=wide"]);
    cut("wide", "back");
    let resumed = stderr(&space.ft(&["resume", "back"]));
    assert!(resumed.contains("resuming after step 2") && resumed.contains("arithmetic in float32"), "{resumed}");
    assert_eq!([dtype("wide"), dtype("back")], ["f32", "f32"]);
    // A format set explicitly to another value is refused: it would be another run.
    let refused = space.command(&["train", "r.yaml", "--resume", "--set", "model.dtype=f32"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("model.dtype: was \"bf16\", is \"f32\""), "{}", stderr(&refused));
}

#[test]
fn an_unknown_ft_cpu_value_is_refused_by_name() {
    let space = Workspace::new();
    let output = space.command(&["doctor"]).env("FT_CPU", "avx1024").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("FT_CPU=avx1024: unknown; expected one of portable, avx2"), "{}", stderr(&output));
}
