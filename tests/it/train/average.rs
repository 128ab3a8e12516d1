//! Results that are the mean of a run's last checkpoints.

use crate::support::command::stderr;
use crate::support::resumed::*;
use crate::support::workspace::Workspace;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

const LORA: &str = "recipes/lora-medical.yaml";
const FULL: &str = "recipes/full-medical.yaml";

/// Returns the trained tensors of a checkpoint in float64.
fn trained(space: &Workspace, out: &str, step: u64) -> BTreeMap<String, Tensor> {
    let file = checkpoint(space, out, step).join("trained.safetensors");
    let all = ft::nn::Weights::open_file(&file).unwrap().all();
    all.into_iter().map(|(name, t)| (name, t.to_kind(Kind::Double).copy())).collect()
}

#[test]
fn the_result_is_the_mean_of_the_last_checkpoints() {
    let space = Workspace::new();
    let sets = ["run.save_every=2", "run.eval_every=3", "run.keep=1", "run.result={average: 3}"];
    let said = stderr(&train(&space, LORA, "run", &sets));
    // Steps 3 and 9 are validated and 2, 4, 6, 8 and 9 saved: 6, 8 and 9 are averaged and kept, although `keep` is 1.
    let checkpoints = [6, 8, 9].map(|step| trained(&space, "run", step));
    assert!(!checkpoint(&space, "run", 4).exists());
    let result = ft::nn::Weights::open_file(&space.path("run/adapter_model.safetensors")).unwrap();
    let mut compared = 0;
    for (name, first) in &checkpoints[0] {
        let name = name.strip_prefix("0/").unwrap();
        let mean = (first + &checkpoints[1][&format!("0/{name}")] + &checkpoints[2][&format!("0/{name}")]) / 3.0;
        let published = result.get(&format!("base_model.model.{name}")).unwrap();
        assert!(published.equal(&mean.to_kind(Kind::Float)), "{name}");
        assert!(!first.equal(&checkpoints[2][&format!("0/{name}")]), "{name} was not trained");
        compared += 1;
    }
    assert!(compared > 10, "{compared}");

    let average = &space.json("run/summary.json")["average"];
    assert_eq!((&average["steps"], &average["metric"]), (&json!([6, 8, 9]), &json!("loss")));
    let last = space.steps("run").iter().rev().find_map(|line| line["eval_loss"].as_f64()).unwrap();
    assert!((average["last_value"].as_f64().unwrap() - last).abs() < 1e-9);
    // The published adapter has the loss that was recorded.
    let flags = ["--model", "models/smollm2-135m-instruct", "--adapter", "run", "--dtype", "f32", "--json"];
    let valid = ["--data", "datasets/icd10/valid.jsonl"];
    let dtype = space.json("run/plan.json")["recipe"]["model"]["dtype"].clone();
    let measured: Value = serde_json::from_slice(&space.ft(&[&["eval"], &flags[..], &valid].concat()).stdout).unwrap();
    let (value, loss) = (average["value"].as_f64().unwrap(), measured["loss"].as_f64().unwrap());
    let tolerance = if dtype == "f32" { 1e-5 } else { 1e-2 };
    assert!((value - loss).abs() < tolerance * loss, "{value}, {loss} ({dtype})");
    assert_ne!(value, last);

    let words = "the average of the checkpoints of steps 6, 8, 9: validation loss ";
    assert!(said.contains(&format!("the result is {words}")) && said.contains("(last "), "{said}");
    let page = std::fs::read_to_string(space.path("run/report.html")).unwrap();
    assert!(page.contains(&format!("The result is {words}")));
    let shown = space.ft(&["runs", "show", "run"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains(words));
}

#[test]
fn a_resumed_run_gets_the_same_mean() {
    let space = Workspace::new();
    // The checkpoints of both sessions are averaged.
    resumed_equals_straight(&space, LORA, &["run.result={average: 7}", "run.keep=1", "adapter.lora.dropout=0.1"]);
}

#[test]
fn weights_in_turn_and_rounded_weights_are_averaged() {
    let space = Workspace::new();
    // Masters in bfloat16 get a mean in bfloat16.
    for (out, master, sets) in [
        ("lisa", Kind::Float, &["model.trained={lisa: {layers: 1, every: 2}}"][..]),
        ("rounded", Kind::BFloat16, &["optim.master=stochastic_rounding", "model.dtype=bf16"]),
    ] {
        train(&space, FULL, out, &[sets, &["run.result={average: 2}"]].concat());
        let [before, last] = [8, 9].map(|step| trained(&space, out, step));
        let result = ft::nn::Weights::open_file(&space.path(out).join("model.safetensors")).unwrap();
        let mut moved = 0;
        for (name, before) in &before {
            let published = result.get(name).unwrap();
            let mean = ((before + &last[name]) / 2.0).to_kind(Kind::Float).to_kind(master);
            assert!(published.equal(&mean.to_kind(published.kind())), "{out}: {name}");
            moved += i32::from(!before.equal(&last[name]));
        }
        assert!(moved > 5, "{out}: {moved}");
    }
}

#[test]
fn a_damaged_checkpoint_is_left_out_and_named() {
    let space = Workspace::new();
    train(&space, LORA, "run", &["run.result={average: 3}"]);
    broken_off(&space, "run", "damaged", 8);
    let file = checkpoint(&space, "damaged", 7).join("trained.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
    let said = stderr(&space.ft(&["resume", "damaged"]));
    assert!(said.contains("the checkpoint of step 7 is damaged and left out of the average"), "{said}");
    assert_eq!(space.json("damaged/summary.json")["average"]["steps"], json!([8, 9]));
}

#[test]
fn a_mean_needs_enough_checkpoints_of_plain_weights() {
    let space = Workspace::new();
    let refused = |sets: &[&str]| {
        let mut arguments = vec!["check", LORA, "--set", "run.result={average: 4}"];
        arguments.extend(sets.iter().flat_map(|s| ["--set", s]));
        space.refused(&arguments)
    };
    let e = refused(&["run.save_every=0"]);
    assert!(e.contains("without `run.save_every` there is only the last one"), "{e}");
    let e = refused(&["run.save_every=5", "optim.ema=0.9"]);
    assert!(e.contains("`optim.ema` both average the weights"), "{e}");
    let e = refused(&["run.save_every=5", "adapter={adalora: {}}"]);
    assert!(e.contains("AdaLoRA has removed"), "{e}");
    let e = refused(&["run.save_every=4", "run.steps=9"]);
    assert!(e.contains("the mean of 4 checkpoints, but a run of 9 steps saves 3 (run.save_every 4)"), "{e}");
    assert!(e.contains("average 3 or fewer, or set run.save_every to at most 2"), "{e}");
    let e = refused(&["run.result={average: 1}"]);
    assert!(e.contains("run.result"), "{e}");

    // The checkpoints that are averaged count in the prediction of disk space.
    let disk = |result: &str| -> u64 {
        let sets = ["--set", "run.save_every=1", "--set", "run.steps=9", "--set", result];
        let told = space.ft(&[&["check", LORA, "--json"], &sets[..]].concat());
        serde_json::from_slice::<Value>(&told.stdout).unwrap()["needs"]["disk"].as_u64().unwrap()
    };
    let (plain, two, six) = (disk("run.result=last"), disk("run.result={average: 2}"), disk("run.result={average: 6}"));
    assert_eq!(six - two, 2 * (two - plain));
}

/// How often checkpoints are saved changes such a result, so a resumed run keeps it.
#[test]
fn a_resumed_run_keeps_the_schedule_of_checkpoints() {
    let space = Workspace::new();
    train(&space, LORA, "run", &["run.result={average: 3}"]);
    broken_off(&space, "run", "broken", 5);
    let mut arguments = vec!["train", LORA, "--resume", "--set", "run.out=broken", "--set", "run.result={average: 3}"];
    arguments.extend(STEPS.iter().flat_map(|s| ["--set", s]));
    let e = space.refused(&[&arguments[..], &["--set", "run.save_every=2"]].concat());
    assert!(e.contains("save_every"), "{e}");
    space.ft(&arguments);
}
