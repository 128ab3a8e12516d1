//! Tests runs of recurrent models through the real binary: from random weights, resumed, adapted, merged; what is recorded of
//! gradients; predicted memory; refusals. The models themselves are in models/recurrent.rs.

use crate::support::command::stdout;
use crate::support::fake_cuda;
use crate::support::resumed::{resumed_equals_straight, train};
use crate::support::workspace::Workspace;
use serde_json::{Value, json};

const FULL: &str = "recipes/full-medical.yaml";
const LORA: &str = "recipes/lora-medical.yaml";
const MODEL: &str = "models/smollm2-135m-instruct";

/// Returns the setting of a new model of this type.
fn new(model_type: &str) -> String {
    format!(
        "model={{init: random, dtype: f32, tokenizer: {MODEL}, config: {{model_type: {model_type}, hidden_size: 24, num_hidden_layers: 2}}}}"
    )
}

#[test]
fn a_resumed_run_equals_a_straight_one() {
    for model_type in ["ft_gru", "ft_lstm"] {
        let sets = [&new(model_type), "optim.truncate=8", "run.reach_every=2", "run.replay={layers: 1}"];
        resumed_equals_straight(&Workspace::new(), FULL, &sets);
    }
}

#[test]
fn a_run_records_gradients_by_distance_without_changing_its_result() {
    let space = Workspace::new();
    train(&space, FULL, "plain", &[&new("ft_rnn"), "optim.truncate=4"]);
    train(&space, FULL, "watched", &[&new("ft_rnn"), "optim.truncate=4", "run.reach_every=4"]);
    assert_eq!(space.weights("plain"), space.weights("watched"));
    train(&space, FULL, "whole", &[&new("ft_rnn")]);
    assert_ne!(space.weights("plain"), space.weights("whole"), "truncation must matter");
    let of_step = |step: u64| -> Vec<(String, f64)> {
        let line =
            space.steps("watched").into_iter().find(|line| line["step"] == step && !line["lr"].is_null()).unwrap();
        let found = line.as_object().unwrap().iter().filter(|(name, _)| name.starts_with("state_gradient_"));
        found.map(|(name, norm)| (name.clone(), norm.as_f64().unwrap())).collect()
    };
    for step in 1..=9 {
        let found = of_step(step);
        assert_eq!(!found.is_empty(), [1, 5, 9].contains(&step), "step {step}: {found:?}");
        assert!(found.iter().all(|(_, norm)| *norm > 0.0), "{found:?}");
    }
    let first = of_step(1);
    assert!(first.len() >= 5, "{first:?}");
    let norm = |distance: u64| first.iter().find(|(name, _)| *name == format!("state_gradient_{distance}")).unwrap().1;
    assert!(norm(16) < 0.1 * norm(1), "the gradient of a new network vanishes: {first:?}");
    let page = std::fs::read_to_string(space.path("watched/report.html")).unwrap();
    assert!(page.contains("Gradient of earlier states") && !page.contains("State gradient 1"));
    let shown = stdout(&space.ft(&["runs", "show", "watched"]));
    assert!(shown.contains("gradient of states by distance in tokens, step 1: 1: "), "{shown}");
    assert!(shown.contains("step 9: 1: "), "{shown}");
}

#[test]
fn adapters_of_a_recurrent_model_are_trained_resumed_and_merged() {
    let space = Workspace::new();
    train(&space, FULL, "base", &[&new("ft_gru")]);
    let written: Value = space.json("base/config.json");
    assert_eq!(
        (
            &written["model_type"],
            &written["architectures"],
            &written["tie_word_embeddings"],
            &written["initializer_range"]
        ),
        (&json!("ft_gru"), &json!(["FtGru"]), &json!(true), &json!(0.1))
    );
    assert!(written["num_attention_heads"].is_null() && written["hidden_act"].is_null(), "{written}");
    let report = space.json("base/export_report.json");
    let readers = report["compatibility"].as_array().unwrap();
    assert!(readers.len() == 8 && readers.iter().all(|reader| reader["reads"] == false), "{report}");
    let sets = ["model.path=base", "optim.truncate=8"];
    resumed_equals_straight(&space, LORA, &sets);
    space.ft(&["merge", "base", "straight", "--out", "merged"]);
    let answer = |arguments: &[&str]| {
        let data = ["--data", "datasets/icd10/valid.jsonl", "--json"];
        let found: Value = serde_json::from_slice(&space.ft(&[&["eval"], arguments, &data].concat()).stdout).unwrap();
        found["loss"].as_f64().unwrap_or_else(|| panic!("{found}"))
    };
    let (adapted, merged) = (answer(&["--model", "base", "--adapter", "straight"]), answer(&["--model", "merged"]));
    assert!((adapted - merged).abs() < 1e-4, "{adapted} {merged}");
    assert_ne!(adapted, answer(&["--model", "base"]));
    space.ft(&["generate", "--model", "base", "--adapter", "straight", "--prompt", "fever", "--max-new-tokens", "4"]);

    let refused = |set: &str| {
        let sets = ["train", LORA, "--set", "model.path=base", "--set", "run.out=refused", "--set", set];
        space.refused(&sets)
    };
    let said = refused("adapter.lora.dropout=0.1");
    assert!(said.contains("layers.0.recurrent") && said.contains("targets: [input]"), "{said}");
    let said = space.refused(&["train", LORA, "--set", "optim.truncate=8", "--set", "run.out=refused"]);
    assert!(said.contains("optim.truncate") && said.contains("has no recurrent layers"), "{said}");
    let said = space.refused(&["check", LORA, "--set", "run.reach_every=8", "--set", "run.out=refused"]);
    assert!(said.contains("run.reach_every"), "{said}");
    let inputs = ["train", LORA, "--set", "model.path=base", "--set", "run.out=inputs", "--set", "run.steps=2"];
    space.ft(&[&inputs[..], &["--set", "adapter.lora={dropout: 0.1, targets: [input]}"]].concat());
}

#[test]
fn predicted_memory_is_near_to_what_a_run_takes() {
    let space = Workspace::new();
    let near = |device: &str, recipe: &str, sets: &[&str]| {
        let device_set = format!("model.device={device}");
        let more = [&device_set, "run.steps=2", "run.samples=0", "run.eval_every=0", "run.eval_at_start=false"];
        let sets: Vec<&str> = sets.iter().chain(&more).flat_map(|set| ["--set", set]).collect();
        let ft = |arguments: &[&str]| match device {
            "cuda" => {
                let run = fake_cuda::ft(&space, arguments, &[]);
                assert!(run.output.status.success(), "{}", run.stderr());
                run.output
            }
            _ => space.ft(arguments),
        };
        let check: Value =
            serde_json::from_slice(&ft(&[&["check", recipe, "--json"][..], &sets].concat()).stdout).unwrap();
        ft(&[&["train", recipe, "--overwrite"][..], &sets].concat());
        let out = sets.iter().find_map(|set| set.strip_prefix("run.out=")).unwrap();
        let metrics = std::fs::read_to_string(space.path(&format!("{out}/metrics.jsonl"))).unwrap();
        let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let most = lines.filter_map(|line| line["memory"].as_u64()).max().expect("steps record their memory");
        let ratio = check["needs"]["memory"].as_f64().unwrap() / most as f64;
        println!("{recipe} {sets:?}: {} predicted, {most} measured: {ratio:.3}", check["needs"]["memory"]);
        let bounds = if device == "cuda" { 0.9..1.1 } else { 0.9..1.2 };
        assert!(
            bounds.contains(&ratio),
            "{recipe} {sets:?}: {} predicted, {most} measured: {ratio:.2}",
            check["needs"]
        );
    };
    std::fs::write(
        space.path("lora.yaml"),
        "model: { path: gru, dtype: f32 }\nmethod: { sft: {} }\nadapter: { lora: { rank: 16 } }\n\
         data: { train: { path: datasets/stories/train.jsonl } }\nbatch: { tokens: 2048, max_len: 256, accumulate: 1 }\n\
         run: { out: lora }\n",
    )
    .unwrap();
    for device in ["cpu", "cuda"] {
        near(device, "recipes/gru-tiny.yaml", &["run.out=gru", "run.reach_every="]);
        near(device, "recipes/gru-tiny.yaml", &["run.out=replayed", "run.reach_every=", "run.replay=all"]);
        near(device, "lora.yaml", &["run.out=lora"]);
        near(device, "lora.yaml", &["run.out=lora", "run.replay=all"]);
        for model_type in ["ft_rnn", "ft_lstm"] {
            let shape = format!("model.config={{model_type: {model_type}, hidden_size: 256, num_hidden_layers: 2}}");
            near(device, "recipes/gru-tiny.yaml", &["run.out=other", "run.reach_every=", &shape]);
        }
    }
}
