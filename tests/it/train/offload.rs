//! Tests `run.offload` through the real binary on the fake CUDA device: inputs of replayed layers in the host's memory.

use crate::support::fake_cuda::{self, FakeRun};
use crate::support::stored::write_wide;
use crate::support::workspace::Workspace;
use serde_json::{Value, json};

const LORA: &str = "adapter={lora: {rank: 8, alpha: 16, targets: all-linear, dropout: 0.1}}";

/// Returns a workspace with a model of four layers and a recipe `run.yaml`, on long rows.
fn space() -> Workspace {
    let space = Workspace::new();
    write_wide("plain", &space.path("models/wide"));
    let row = |i: usize| json!({ "prompt": format!("{i}"), "completion": "river ".repeat(100 + i) }).to_string();
    std::fs::write(space.path("rows.jsonl"), (0..16).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let recipe = "model: { path: models/wide, dtype: f32, device: cuda }\nmethod: { sft: {} }\n\
                  data: { train: { path: rows.jsonl } }\nbatch: { tokens: 1024, max_len: 1024, examples: 2 }\n\
                  run: { steps: 3, samples: 0, save_every: 0, replay: all, out: out }\n";
    std::fs::write(space.path("run.yaml"), recipe).unwrap();
    space
}

fn ft(space: &Workspace, arguments: &[&str], settings: &[&str]) -> FakeRun {
    let sets: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
    fake_cuda::ft(space, &[arguments, &sets].concat(), &[("FAKE_CUDA_STACKS", "1")])
}

fn needs(space: &Workspace, settings: &[&str]) -> Value {
    let check = ft(space, &["check", "run.yaml", "--json"], settings);
    assert!(check.output.status.success(), "{}", check.stderr());
    serde_json::from_slice::<Value>(&check.output.stdout).unwrap()["needs"].take()
}

/// Weights, losses and gradient norms have the same bits as without offloading, and the host waits no more than before.
#[test]
fn offloaded_inputs_change_nothing_but_the_memory() {
    let space = space();
    for (name, more) in [("lora", &[LORA][..]), ("whole", &[][..]), ("partly", &["run.replay={layers: 3}"][..])] {
        let mut most = Vec::new();
        for offload in ["false", "true"] {
            let (out, offload) = (format!("run.out={name}-{offload}"), format!("run.offload={offload}"));
            let sets: Vec<&str> = [out.as_str(), &offload].into_iter().chain(more.iter().copied()).collect();
            let trace = ft(&space, &["train", "run.yaml"], &sets).succeeded();
            let waits: Vec<i64> = trace.marks[1..].iter().map(|counts| counts.waits).collect();
            assert!(waits.iter().all(|waits| *waits == 1), "{name}: {waits:?} {:#?}", trace.stacks);
            let folder = out.strip_prefix("run.out=").unwrap();
            let text = std::fs::read_to_string(space.path(&format!("{folder}/metrics.jsonl"))).unwrap();
            let memory = |line: &str| serde_json::from_str::<Value>(line).unwrap()["memory"].as_f64();
            let measured = text.lines().filter_map(memory).fold(0.0, f64::max);
            let needs = needs(&space, &sets);
            let predicted = needs["memory"].as_f64().unwrap();
            println!("{name}, {offload}: {predicted} predicted, {measured} measured, host {}", needs["host"]);
            let near = (0.9..1.1).contains(&(predicted / measured));
            assert!(near || name != "lora", "{name}, {offload}: {predicted} {measured}");
            most.push((measured, needs["host"].as_f64().unwrap(), trace.marks[1].download_bytes));
        }
        let (plain, offloaded) = (most[0], most[1]);
        // Inputs of (at least 600 tokens, 256 numbers) in float32; that of the highest layer stays.
        let (layers, input) = (if name == "partly" { 3 } else { 4 }, 600.0 * 256.0 * 4.0);
        // Of whole models the gradients take most, whatever is offloaded.
        assert!(plain.0 > offloaded.0 || name != "lora", "{name}: {most:?}");
        assert!(plain.1 == 0.0 && offloaded.1 >= (layers - 1) as f64 * input, "{name}: {most:?}");
        assert!(offloaded.2 - plain.2 >= ((layers - 1) as f64 * input) as i64, "{name}: {most:?}");
        assert_eq!(space.steps(&format!("{name}-false")), space.steps(&format!("{name}-true")), "{name}");
        let [plain, offloaded] = ["false", "true"].map(|offload| space.weights(&format!("{name}-{offload}")));
        assert!(plain == offloaded, "{name}: offloading changed the result");
    }
}

/// `--fit` offloads where recomputing every layer is not enough, and says so.
#[test]
fn fit_offloads_last() {
    let space = space();
    let memory = |settings: &[&str]| needs(&space, settings)["memory"].as_f64().unwrap();
    let (replayed, offloaded) = (memory(&[LORA]), memory(&[LORA, "run.offload=true"]));
    assert!(offloaded < 0.99 * replayed, "{offloaded} {replayed}");
    let fit = |bytes: f64| {
        // The examples are longer than half of a row, so that no shorter row is tried.
        let fit = format!("--fit={}", (bytes / 0.87) as u64);
        ft(&space, &["check", "run.yaml", &fit], &[LORA, "run.replay=none"])
    };
    let said = |run: FakeRun| run.stderr() + &String::from_utf8_lossy(&run.output.stdout);
    let (enough, tight) = (said(fit(replayed * 1.01)), said(fit((replayed + offloaded) / 2.0)));
    assert!(enough.contains("--fit:") && !enough.contains("host"), "{enough}");
    assert!(tight.contains("every layer replayed, their inputs in the host's memory"), "{tight}");
    assert!(tight.contains("page-locked memory of the host about"), "{tight}");
    let none = fit(offloaded * 0.9);
    assert_eq!(none.output.status.code(), Some(1), "{}", none.stderr());
}

#[test]
fn there_is_nothing_to_offload_on_a_cpu_or_without_replay() {
    let space = space();
    let refused = |settings: &[&str]| {
        let sets: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
        space.refused(&[&["train", "run.yaml"][..], &sets].concat())
    };
    let said = refused(&["run.offload=true", "model.device=cpu"]);
    assert!(said.contains("`run.offload` has no effect") && said.contains("the host's memory already"), "{said}");
    let said = refused(&["run.offload=true", "model.device=auto"]);
    assert!(said.contains("run.offload") && said.contains("ft doctor"), "{said}");
    let said = refused(&["run.offload=true", "model.device=auto", "run.replay=none"]);
    assert!(said.contains("without `run.replay`"), "{said}");
}
