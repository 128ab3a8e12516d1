//! Tests `ft adapter suggest` through the real binary.

use crate::support::workspace::Workspace;
use serde_json::Value;

/// If every step has the same rows and all directions are measured, the gain of all layers is the squared norm of the
/// gradient of their weights, which a run that trains these weights reports.
#[test]
fn the_gain_of_all_directions_is_the_squared_norm_of_the_gradient() {
    let space = Workspace::new();
    let same = ["--set", "batch.examples=24", "--set", "model.dtype=f32", "--set", "run.threads=1"];
    let output = space.ft(&[
        &["adapter", "suggest", "recipes/lora-medical.yaml", "--steps", "1", "--largest", "256", "--json"],
        &same[..],
    ]
    .concat());
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let modules = found["modules"].as_array().unwrap();
    let gain: f64 = modules.iter().map(|m| m["gain"].as_f64().unwrap()).sum();
    let agreement = modules.iter().map(|m| m["agreement"].as_f64().unwrap()).fold(1.0, f64::min);
    assert!(agreement > 0.999, "the same rows agree: {agreement}");
    let linear = "model.trained={matching: ['.*_proj.weight']}";
    space.ft(&[
        &["train", "recipes/full-medical.yaml", "--set", linear, "--set", "run.steps=1", "--set", "run.samples=0"],
        &same[..],
    ]
    .concat());
    let steps = space.steps("runs/full-medical");
    let norm = steps.iter().find_map(|line| line["grad_norm"].as_f64()).unwrap();
    assert!((gain - norm * norm).abs() < 1e-4 * norm * norm, "{gain} measured, {} of the run", norm * norm);
}

#[test]
fn the_suggested_recipe_costs_no_more_and_trains() {
    let space = Workspace::new();
    let recipe = ["adapter", "suggest", "recipes/lora-medical.yaml", "--steps", "1", "--rank", "2"];
    let said = space.ft(&[&recipe[..], &["--out", "suggested.yaml", "--largest", "8"]].concat());
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(text.contains("down_proj") && text.contains("rank 2 in every layer"), "{text}");
    space.ft(&["train", "suggested.yaml", "--set", "run.steps=1", "--set", "run.samples=0"]);
    let found: Value = serde_json::from_slice(&space.ft(&[&recipe[..], &["--json"]].concat()).stdout).unwrap();
    let [suggested, uniform] = [0, 1].map(|i| found["parameters"][i].as_i64().unwrap());
    assert!(0 < suggested && suggested <= uniform, "{suggested} of {uniform}");
    assert!(found["reached"][0].as_f64() >= found["reached"][1].as_f64(), "{}", found["reached"]);
    let again = space.refused(&[&recipe[..], &["--out", "suggested.yaml"]].concat());
    assert!(again.contains("the file exists"), "{again}");
    let continued = space.refused(&[&recipe[..], &["--set", "adapter.lora.from=adapters/x"]].concat());
    assert!(continued.contains("continues an adapter"), "{continued}");
}
