//! Runs that are interrupted and resumed, compared with uninterrupted ("straight") ones.

use super::files::copy_folder;
use super::workspace::Workspace;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Output;

/// Settings of every run here: three steps per epoch, with a checkpoint after each step.
pub const STEPS: [&str; 6] =
    ["run.epochs=3", "batch.examples=8", "run.eval_every=4", "run.save_every=1", "run.keep=20", "run.samples=0"];

/// Trains a recipe with the settings `STEPS` and `sets`.
pub fn train(space: &Workspace, recipe: &str, out: &str, sets: &[&str]) -> Output {
    let out = format!("run.out={out}");
    let mut arguments = vec!["train", recipe, "--overwrite", "--set", &out];
    arguments.extend(STEPS.iter().chain(sets).flat_map(|s| ["--set", s]));
    space.ft(&arguments)
}

/// Copies a run as if it had been killed after `step`: with its checkpoints up to that step and without a result.
pub fn broken_off(space: &Workspace, from: &str, to: &str, step: u64) {
    copy_folder(&space.path(from), &space.path(to));
    for later in step + 1..=9 {
        let _ = std::fs::remove_dir_all(checkpoint(space, to, later));
    }
    for name in ["adapter_model.safetensors", "model.safetensors", "summary.json"] {
        let _ = std::fs::remove_file(space.path(to).join(name));
    }
    assert!(checkpoint(space, to, step).exists());
}

/// Returns the folder of a run's checkpoint.
pub fn checkpoint(space: &Workspace, out: &str, step: u64) -> PathBuf {
    space.path(&format!("{out}/checkpoints/step-{step}"))
}

/// Asserts that two runs have the same result, metrics and last checkpoint.
pub fn assert_same_end(space: &Workspace, straight: &str, broken: &str, case: &str) {
    assert_eq!(space.weights(straight), space.weights(broken), "{case}: the result differs");
    assert_eq!(space.steps(straight), space.steps(broken), "{case}: the metrics differ");
    for file in ["trained.safetensors", "optimiser.safetensors", "generator.safetensors"] {
        let read = |out: &str| std::fs::read(checkpoint(space, out, 9).join(file)).unwrap();
        assert!(read(straight) == read(broken), "{case}: {file} of the last checkpoint differs");
    }
}

/// Runs a recipe, resumes a copy that is interrupted in the middle of its second epoch, and compares result, metrics
/// and checkpoints.
pub fn resumed_equals_straight(space: &Workspace, recipe: &str, sets: &[&str]) {
    train(space, recipe, "straight", sets);
    broken_off(space, "straight", "broken", 5);
    space.ft(&["resume", "broken"]);
    assert_same_end(space, "straight", "broken", &sets.join(" "));
    let verdict = space.ft(&["resume", "straight", "--verify", "2", "--json"]);
    let verdict: Value = serde_json::from_slice(&verdict.stdout).unwrap();
    assert_eq!((&verdict["same"], &verdict["to"]), (&Value::Bool(true), &9.into()), "{verdict}");
    assert_eq!(verdict["checkpoints_compared"], serde_json::json!([8, 9]), "{verdict}");
}
