//! Tests memory limits through the real binary. A run that does not fit is refused before it allocates its memory, and
//! a run that exhausts memory halfway ends in an error and can be resumed from its last checkpoint.

use crate::support::command::{output_and_peak_memory, proc_bytes};
use crate::support::files::write_sparse;
use crate::support::gguf::tiny_gguf;
use crate::support::needs::{LIMITS, needs};
use crate::support::stored::write_wide;
use crate::support::workspace::Workspace;
use crate::support::{alone, families, fixture};
use ft::gguf::quant::GgmlType;
use ft::models::{Heads, LoadOptions, Model, Storage};
use ft::nn::{BaseQuantisation, Quantisation, QuantisedFormat, TableFormat};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tch::Kind;

/// Writes a one-layer llama with hidden size `width` and vocabulary size `rows`. Its weights are zeros in a sparse
/// file, which takes no disk space.
pub(super) fn write_sparse_model(folder: &Path, rows: u64, width: u64) {
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    for (key, value) in [("vocab_size", rows), ("hidden_size", width), ("num_hidden_layers", 1)] {
        config[key] = value.into();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let (narrow, inner) = (64, 96);
    let shapes = [
        ("model.embed_tokens.weight".to_string(), vec![rows, width]),
        ("model.norm.weight".into(), vec![width]),
        (layer("input_layernorm"), vec![width]),
        (layer("post_attention_layernorm"), vec![width]),
        (layer("self_attn.q_proj"), vec![narrow, width]),
        (layer("self_attn.k_proj"), vec![narrow / 2, width]),
        (layer("self_attn.v_proj"), vec![narrow / 2, width]),
        (layer("self_attn.o_proj"), vec![width, narrow]),
        (layer("mlp.gate_proj"), vec![inner, width]),
        (layer("mlp.up_proj"), vec![inner, width]),
        (layer("mlp.down_proj"), vec![width, inner]),
    ];
    write_sparse(&folder.join("model.safetensors"), &shapes);
}

#[test]
fn a_run_that_does_not_fit_is_refused_before_its_model_is_read() {
    let space = Workspace::new();
    let free = proc_bytes("/proc/meminfo", "MemAvailable").unwrap();
    // The weights file is as large as a quarter of the free memory; float32 masters, gradients and moments need eight
    // times that.
    let width = 4096;
    write_sparse_model(&space.path("models/smollm2-135m-instruct"), free / 4 / 2 / width, width);
    let sets = ["batch.max_len=256", "batch.tokens=256"].iter().flat_map(|s| ["--set", s]);
    let arguments: Vec<&str> = ["train", "recipes/full-medical.yaml"].into_iter().chain(sets).collect();
    let child = space.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    let (output, most) = output_and_peak_memory(child);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("of memory are needed") && text.contains("--fit"), "{text}");
    assert!(most < free / 8, "the refused run used {most} bytes; its weights file has {} bytes", free / 4);
    assert!(!space.path("runs/full-medical").exists(), "the refused run left its folder behind");
}

/// Limits a running process to `more` bytes of address space in addition to what it has now.
fn limit(child: &Child, more: u64) {
    let now = proc_bytes(&format!("/proc/{}/status", child.id()), "VmSize").unwrap();
    let set = Command::new("prlimit")
        .args(["--pid", &child.id().to_string(), &format!("--as={}", now + more)])
        .status()
        .unwrap();
    assert!(set.success());
}

#[test]
fn running_out_of_memory_ends_in_an_error_and_the_run_can_be_resumed() {
    needs!(LIMITS);
    let space = Workspace::new();
    // The first eight steps need little memory, which leaves time to set the limit; the ninth needs more address space
    // than the limit allows.
    let rows = [4, 4, 4, 4, 4, 4, 4, 4, 150].iter().flat_map(|words| {
        (0..500).map(move |i| json!({ "prompt": format!("{i}"), "completion": "river ".repeat(*words) }))
    });
    let rows: Vec<String> = rows.map(|row| row.to_string()).collect();
    std::fs::write(space.path("datasets/icd10/train.jsonl"), rows.join("\n")).unwrap();
    let sets = [
        "data.shuffle=false",
        "batch.examples=500",
        "batch.tokens=1048576",
        "batch.max_len=2048",
        "run.epochs=1",
        "run.save_every=1",
        "run.eval_every=100",
        "run.samples=0",
        "run.out=run",
    ];
    let sets = sets.iter().flat_map(|s| ["--set", s]);
    let arguments: Vec<&str> = ["train", "recipes/lora-medical.yaml"].into_iter().chain(sets).collect();
    let mut child = space.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    let (began, first) = (Instant::now(), space.path("run/checkpoints/step-1"));
    while !first.exists() {
        assert!(child.try_wait().unwrap().is_none(), "ft ended before its first checkpoint");
        assert!(began.elapsed() < Duration::from_secs(120), "no checkpoint after two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    limit(&child, 128 << 20);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("ran out of memory") && text.contains("batch.tokens"), "{text}");
    assert!(text.contains("the checkpoint of step 8 is kept") && !text.contains("panicked"), "{text}");
    space.ft(&["resume", "run"]);
    assert_eq!(space.json("run/summary.json")["steps"], 9);
}

/// Compares the memory that is predicted for a run with the most that its tensors take. `--fit` leaves 13 % of the free memory
/// unused, so a prediction may be a little too small; a larger one costs speed.
fn assert_predicted(space: &Workspace, sets: &[&str]) {
    let common = ["model.dtype=f32", "batch.examples=8", "batch.tokens=4096", "run.out=run", "run.samples=0"];
    let sets: Vec<&str> = common.iter().chain(sets).flat_map(|s| ["--set", s]).collect();
    let check = space.ft(&[&["check", "recipes/lora-medical.yaml", "--json"][..], &sets].concat());
    let check: Value = serde_json::from_slice(&check.stdout).unwrap();
    let steps = ["--overwrite", "--set", "run.steps=2", "--set", "run.eval_every=0", "--set", "run.save_every=0"];
    space.ft(&[&["train", "recipes/lora-medical.yaml"][..], &sets, &steps].concat());
    let metrics = std::fs::read_to_string(space.path("run/metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let most = lines.filter_map(|line| line["memory"].as_u64()).max().expect("steps record their memory");
    let ratio = check["needs"]["memory"].as_f64().unwrap() / most as f64;
    assert!((0.95..1.2).contains(&ratio), "{sets:?}: {} predicted, {most} measured: {ratio:.2}", check["needs"]);
}

/// Makes a workspace with wider models and longer rows than those of other tests, in which tensors are most of the memory.
fn wide_space() -> Workspace {
    let space = Workspace::new();
    let text = |i: usize| (0..60).map(|j| format!("{} ", (i * 7 + j * 13) % 97)).collect::<String>();
    let rows = (0..24).map(|i| json!({ "prompt": text(i), "completion": text(i + 50) }).to_string());
    std::fs::write(space.path("datasets/icd10/train.jsonl"), rows.collect::<Vec<_>>().join("\n")).unwrap();
    space
}

#[test]
fn predictions_for_every_kind_of_adapter_are_near_to_what_a_run_takes() {
    let space = wide_space();
    write_wide("plain", &space.path("models/smollm2-135m-instruct"));
    for adapter in [
        "lora: {rank: 16}",
        "lora: {rank: 16, dropout: 0.1}",
        "lora: {rank: 16, dora: true}",
        "lora: {rank: 16, init: pissa}",
        "lora: {rank: 16, targets: [q_proj, lm_head]}",
        "ia3: {}",
        "ln_tuning: {}",
        "vera: {rank: 64}",
        "vera: {rank: 64, dropout: 0.1}",
        "loha: {rank: 4}",
        "loha: {rank: 16}",
        "loha: {rank: 4, targets: [q_proj, lm_head]}",
        "lokr: {rank: 4}",
        "oft: {block: 32}",
        "oft: {block: 32, targets: [embed_tokens, lm_head]}",
        "adalora: {rank: 12, target_rank: 8}",
        "trainable_tokens: {tokens: [5, 6, 7]}",
        "prompt_tuning: {virtual_tokens: 20}",
        "p_tuning: {virtual_tokens: 20}",
        "prefix_tuning: {virtual_tokens: 20}",
    ] {
        assert_predicted(&space, &[&format!("adapter={{{adapter}}}")]);
    }
}

#[test]
fn predictions_for_quantised_bases_are_near_to_what_a_run_takes() {
    let space = wide_space();
    write_wide("plain", &space.path("models/smollm2-135m-instruct"));
    for format in ["nf4", "int8", "gptq", "awq"] {
        write_wide(format, &space.path(&format!("models/{format}")));
    }
    tiny_gguf("qwen2", GgmlType::Q4_K).write(&space.path("models/wide.gguf"));
    // The tensors of a file that is mapped are not measured; here they are less than 2 % of the memory.
    for settings in [
        "model.quantize=nf4",
        "model.quantize=int8",
        "model.quantize=fp8",
        "model.path=models/nf4",
        "model.path=models/int8",
        "model.path=models/gptq",
        "model.path=models/awq",
        "model.path=models/wide.gguf",
    ] {
        assert_predicted(&space, &[settings]);
    }
    for format in ["nf4", "int8"] {
        let format = format!("model.quantize={format}");
        assert_predicted(&space, &[&format, "model.quantize_embeddings=int8"]);
        assert_predicted(&space, &[&format, "model.quantize_embeddings=int8", "adapter.lora.token_rows=[5, 6]"]);
    }
}

/// A table of 134 MB in bfloat16 is read and quantised in parts: beside its codes there are never more than some of them.
#[test]
fn no_copy_of_a_table_exists_while_it_is_quantised() {
    alone("train::memory::no_copy_of_a_table_exists_while_it_is_quantised", || {
        let device = ft::models::device("cpu").unwrap(); // also counts the memory of tensors
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(fixture("tiny-llama/config.json"), folder.path().join("config.json")).unwrap();
        let (rows, width) = (1 << 18, 256);
        write_sparse_model(folder.path(), rows, width);
        let linear = Quantisation::new(QuantisedFormat::Nf4, true);
        let storage = Storage::Quantised(BaseQuantisation { linear, embeddings: Some(TableFormat::Int8) });
        let (kind, heads, adapters) = (Kind::Float, Heads::Tokens, Vec::new());
        let load = LoadOptions { device, kind, storage, train_base: None, adapters, vocabulary: None, heads };
        ft::native::reset_peak(device).unwrap();
        let before = ft::native::memory(device).unwrap().live;
        let model = Model::load(folder.path(), load).unwrap();
        let (_, bytes) = model.storage_summary();
        let most = ft::native::memory(device).unwrap().peak - before;
        assert!((rows * width..rows * width * 11 / 10).contains(&bytes), "{bytes}");
        assert!(most < bytes + (24 << 20), "{most} bytes while {bytes} were loaded");
    });
}

/// Several streams, vectors of tokens for each layer, keys and values that layers share.
#[test]
fn predictions_for_gemma3n_are_near_to_what_a_run_takes() {
    let space = wide_space();
    let folder = space.path("models/gemma3n");
    families::write("gemma3n_text", json!({"hidden_size": 256, "intermediate_size": 512}), Kind::Float, &folder);
    for settings in ["run.replay=none", "run.replay=all", "run.replay={layers: 3}", "run.mlp_tile=128"] {
        assert_predicted(&space, &["model.path=models/gemma3n", "adapter={lora: {rank: 16}}", settings]);
    }
}

/// Norms of queries and keys, and norms behind attention and MLP.
#[test]
fn predictions_for_families_with_more_norms_are_near_to_what_a_run_takes() {
    let space = wide_space();
    for family in ["qwen3", "gemma3_text", "olmo2"] {
        let sizes = json!({"hidden_size": 256, "intermediate_size": 512, "head_dim": 64});
        families::write(family, sizes, Kind::Float, &space.path("models").join(family));
        let path = format!("model.path=models/{family}");
        for adapter in [Some("adapter={lora: {rank: 16}}"), None] {
            let sets: Vec<&str> = [&*path, "run.replay=none"].into_iter().chain(adapter).collect();
            assert_predicted(&space, &sets);
        }
    }
}

#[test]
fn predictions_with_mlps_in_tiles_are_near_to_what_a_run_takes() {
    let space = wide_space();
    write_wide("plain", &space.path("models/smollm2-135m-instruct"));
    for adapter in ["lora: {rank: 16}", "lora: {rank: 16, dropout: 0.1}", "ia3: {}", "oft: {block: 32}"] {
        for replay in ["none", "all"] {
            let (adapter, replay) = (format!("adapter={{{adapter}}}"), format!("run.replay={replay}"));
            assert_predicted(&space, &[&adapter, &replay, "run.mlp_tile=128"]);
        }
    }
}
