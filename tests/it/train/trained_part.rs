//! Tests training a part of the weights (`model.trained`) through the real binary: the chosen weights change, the
//! others keep their bits, and what was chosen is recorded.

use crate::support::{tensors, workspace::Workspace};
use serde_json::Value;
use std::collections::BTreeSet;

/// Trains two steps with `trained` and returns the workspace and the names of the tensors that changed.
fn changed(trained: &str) -> (Workspace, BTreeSet<String>) {
    let space = Workspace::new();
    let sets =
        [format!("model.trained={trained}"), "run.steps=2".into(), "run.samples=0".into(), "optim.lr=0.01".into()];
    let mut arguments = vec!["train", "recipes/full-medical.yaml"];
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    space.ft(&arguments);
    let before = tensors(space.path("models/smollm2-135m-instruct/model.safetensors"));
    let after = tensors(space.path("runs/full-medical/model.safetensors"));
    assert!(before.keys().eq(after.keys()), "the result has other tensors than the base");
    let names = before.keys().filter(|name| !before[*name].equal(&after[*name])).cloned().collect();
    (space, names)
}

#[test]
fn the_last_layers_are_trained_and_the_others_keep_their_bits() {
    let (space, names) = changed("{last_layers: 1}");
    let last = tensors(space.path("models/smollm2-135m-instruct/model.safetensors"));
    let numbers: BTreeSet<&str> =
        last.keys().filter_map(|n| n.strip_prefix("model.layers.")?.split('.').next()).collect();
    let prefix = format!("model.layers.{}.", numbers.last().unwrap());
    let expected: BTreeSet<String> = last
        .keys()
        .filter(|n| n.starts_with(&prefix) || *n == "model.norm.weight" || *n == "lm_head.weight")
        .cloned()
        .collect();
    assert_eq!(names, expected);
    // The check before a run counts the same parameters, and needs less memory than if all were trained.
    let check = |sets: &[&str]| -> Value {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let arguments: Vec<&str> = ["check", "recipes/full-medical.yaml", "--json"].into_iter().chain(sets).collect();
        serde_json::from_slice(&space.ft(&arguments).stdout).unwrap()
    };
    let (part, all) = (check(&["model.trained={last_layers: 1}"]), check(&[]));
    let numbers: usize = expected.iter().map(|name| last[name].numel()).sum();
    assert_eq!(part["trained"], numbers, "{part}");
    let memory = |check: &Value| check["needs"]["training"].as_u64().unwrap();
    assert!(memory(&part) < memory(&all), "{part}");
}

#[test]
fn spectrum_trains_a_share_of_each_kind_of_matrix_and_records_it() {
    let (space, names) = changed("{spectrum: 0.5}");
    let patterns = space.json("runs/full-medical/plan.json")["recipe"]["model"]["trained"]["matching"].clone();
    let chosen: BTreeSet<String> =
        patterns.as_array().unwrap().iter().map(|p| p.as_str().unwrap().replace('\\', "")).collect();
    assert_eq!(names, chosen);
    let kinds: BTreeSet<&str> = chosen.iter().filter_map(|n| n.strip_suffix(".weight")?.rsplit('.').next()).collect();
    let all = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
    assert!(kinds.iter().eq(&all), "{kinds:?}");
}

#[test]
fn a_choice_that_trains_nothing_is_refused() {
    let space = Workspace::new();
    let refused = |recipe: &str, set: &str| space.refused(&["train", recipe, "--set", set]);
    let unmatched = refused("recipes/full-medical.yaml", "model.trained={matching: ['mlp']}");
    assert!(unmatched.contains("`mlp` matches no parameter of the model"), "{unmatched}");
    let adapter = refused("recipes/lora-medical.yaml", "model.trained={last_layers: 2}");
    assert!(adapter.contains("with an `adapter` every weight of the base is frozen"), "{adapter}");
}
