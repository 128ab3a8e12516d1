//! Soups: means of adapters, chosen by held-out loss; checkpoints of a run as their ingredients.

use crate::support::command::{ft, stderr, stdout, succeed};
use crate::support::resumed::{broken_off, train};
use crate::support::workspace::Workspace;
use crate::support::*;
use serde_json::{Value, json};
use std::os::unix::fs::symlink;

const MODEL: &str = "models/smollm2-135m-instruct";
const LORA: &str = "recipes/lora-medical.yaml";

fn json_of(output: &std::process::Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

#[test]
fn a_soup_is_the_sum_with_equal_weights() {
    let project = tempfile::tempdir().unwrap();
    for (name, to) in
        [("base", "biased-llama"), ("one", "merging/one"), ("two", "merging/two"), ("three", "merging/three")]
    {
        symlink(fixture(to), project.path().join(name)).unwrap();
    }
    let merge = |arguments: &[&str]| succeed(&mut ft(project.path(), &[&["merge", "base"], arguments].concat()));
    let told = json_of(&merge(&["one", "two", "three", "--method", "soup", "--as", "adapter", "--out", "a", "--json"]));
    assert_eq!(told["merge"]["method"], "soup");
    let weights: Vec<f64> = (0..3).map(|i| told["merge"]["adapters"][i]["weight"].as_f64().unwrap()).collect();
    assert_eq!(weights, [1.0 / 3.0; 3]);
    let third = (1.0f64 / 3.0).to_string();
    let weighted: Vec<String> = ["one", "two", "three"].iter().map(|name| format!("{name}={third}")).collect();
    merge(&[&weighted.iter().map(String::as_str).collect::<Vec<_>>()[..], &["--as", "adapter", "--out", "b"]].concat());
    let bytes = |out: &str| std::fs::read(project.path().join(out).join("adapter_model.safetensors")).unwrap();
    assert_eq!(bytes("a"), bytes("b"));

    let refused = |arguments: &[&str]| {
        let output = ft(project.path(), &[&["merge", "base", "one", "two"], arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        stderr(&output)
    };
    let e = refused(&["three=0.5", "--method", "soup", "--out", "x"]);
    assert!(e.contains("three=0.5: a soup has equal weights"), "{e}");
    let e = refused(&["--method", "soup", "--sweep", "rows.jsonl", "--out", "x"]);
    assert!(e.contains("--sweep cannot be combined with `soup`"), "{e}");
    let e = refused(&["--method", "greedy_soup", "--out", "x"]);
    assert!(e.contains("needs rows to choose adapters by") && e.contains("--rows FILE"), "{e}");
    let e = refused(&["--method", "ties", "--rows", "rows.jsonl", "--out", "x"]);
    assert!(e.contains("--rows has no effect: `ties` chooses no adapters"), "{e}");
    assert!(!project.path().join("x").exists());
}

/// The adapter with the smallest loss is in the soup, one that makes it worse is not, and the soup that is written has the
/// loss that the search found.
#[test]
fn a_greedy_soup_leaves_out_what_makes_it_worse() {
    let space = Workspace::new();
    let rows = "datasets/icd10/test.jsonl";
    for (out, sets) in [("good", &["run.seed=1"][..]), ("better", &["run.seed=2", "optim.lr=2e-3"])] {
        train(&space, LORA, out, &[sets, &["run.result=last", "model.dtype=f32"]].concat());
    }
    // It takes back more than both have learnt.
    space.ft(&["merge", MODEL, "better=-8", "--as", "adapter", "--out", "broken"]);
    let merge =
        ["merge", MODEL, "broken", "good", "better", "--method", "greedy_soup", "--rows", rows, "--as", "adapter"];
    let done = space.ft(&[&merge[..], &["--out", "soup", "--json"]].concat());
    let told = json_of(&done);
    let soup = &told["soup"];
    let alone: Vec<f64> = serde_json::from_value(soup["alone"].clone()).unwrap();
    assert!(alone[0] > alone[1].max(alone[2]), "{soup}");
    let members: Vec<usize> = serde_json::from_value(soup["members"].clone()).unwrap();
    assert!(!members.is_empty() && !members.contains(&0), "{soup}");
    let trials = soup["trials"].as_array().unwrap();
    let first = if alone[1] <= alone[2] { 1 } else { 2 };
    assert_eq!((trials.len(), &trials[0]["adapter"], &trials[2]["adapter"]), (3, &json!(first), &json!(0)));
    assert_eq!(trials[2]["kept"], false);
    // Only members are merged, and their mean has the loss that was found.
    assert_eq!(told["export"]["merge"]["adapters"].as_array().unwrap().len(), members.len());
    let loss_of = |adapter: &str| {
        let output =
            space.ft(&["eval", "--model", MODEL, "--adapter", adapter, "--data", rows, "--dtype", "f32", "--json"]);
        json_of(&output)["loss"].as_f64().unwrap()
    };
    let found = soup["loss"].as_f64().unwrap();
    assert_number("the soup", loss_of("soup"), found, 1e-4);
    assert_number("an adapter alone", loss_of("good"), alone[1], 1e-4);
    assert!(found <= alone[first]);

    let said = stderr(&done);
    assert!(said.contains("of 3 adapters are in the soup") && said.contains("left out"), "{said}");
    let page = std::fs::read_to_string(space.path("soup/merge.html")).unwrap();
    assert!(page.contains("3 trials"), "the page has no trials");
    assert!(page.contains("left out") && page.contains("of each adapter alone, and of the soup with it"));
    // A dry run tells the same and writes nothing.
    let dry = json_of(&space.ft(&[&merge[..], &["--dry-run", "--json"]].concat()));
    assert_eq!(dry["soup"], *soup);
}

#[test]
fn checkpoints_of_a_run_are_merged_as_its_result_is() {
    let space = Workspace::new();
    let template = std::fs::read_to_string(space.path(MODEL).join("chat_template.jinja")).unwrap();
    let own = template.replace("message['content']", "'now: ' + message['content']");
    std::fs::write(space.path("own.jinja"), &own).unwrap();
    for (out, more) in
        [("plain", &[][..]), ("pissa", &["adapter.lora.init=pissa", "optim.lr=1e-4"]), ("nf4", &["model.quantize=nf4"])]
    {
        train(&space, LORA, out, &[more, &["data.template=own.jinja", "run.result=last"]].concat());
        let merge = |from: &str, to: &str| {
            let folder = format!("{out}-{to}");
            let done = space.ft(&["merge", MODEL, from, "--as", "adapter", "--out", &folder, "--json"]);
            (json_of(&done), folder)
        };
        let (of_result, result) = merge(out, "result");
        let (of_checkpoint, checkpoint) = merge(&format!("{out}/checkpoints/step-9"), "checkpoint");
        assert_eq!(space.weights(&result), space.weights(&checkpoint), "{out}");
        assert_eq!(of_result["quantised_base"], of_checkpoint["quantised_base"], "{out}");
        assert_eq!(of_checkpoint["quantised_base"].is_null(), out != "nf4", "{out}");
        let inherited = std::fs::read_to_string(space.path(&checkpoint).join("chat_template.jinja")).unwrap();
        assert_eq!(inherited, own, "{out}");
    }
    let all = ["plain/checkpoints/step-7", "plain/checkpoints/step-8", "plain/checkpoints/step-9"];
    let rows = ["--method", "greedy_soup", "--rows", "datasets/icd10/valid.jsonl", "--out", "soup"];
    let told = stderr(&space.ft(&[&["merge", MODEL], &all[..], &rows].concat()));
    assert!(told.contains("plain step-9"), "{told}");

    broken_off(&space, "plain", "cut", 8);
    std::fs::remove_file(space.path("cut/adapter_config.json")).unwrap();
    let merge = |from: &str| space.refused(&["merge", MODEL, from, "--out", "x"]);
    let e = merge("cut/checkpoints/step-8");
    assert!(e.contains("the run has no result yet") && e.contains("ft resume"), "{e}");
    let file = space.path("plain/checkpoints/step-8/trained.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
    assert!(merge("plain/checkpoints/step-8").contains("its SHA-256 is not the one in manifest.json"));
    train(&space, "recipes/full-medical.yaml", "whole", &[]);
    assert!(merge("whole/checkpoints/step-9").contains("a run that trains no adapter"));
}
