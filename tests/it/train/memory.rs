//! Tests memory limits through the real binary. A run that does not fit is refused before it allocates its memory, and
//! a run that exhausts memory halfway ends in an error and can be resumed from its last checkpoint.

use crate::support::command::{output_and_peak_memory, proc_bytes};
use crate::support::files::write_sparse;
use crate::support::needs::{LIMITS, needs};
use crate::support::workspace::Workspace;
use serde_json::json;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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
