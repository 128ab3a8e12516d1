//! Tests `ft train --profile`.

use crate::support::workspace::Workspace;
use serde_json::Value;

const RECIPE: &str = "recipes/lora-medical.yaml";

fn train<'a>(steps: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let settings = ["run.out=run", "run.samples=0", "run.eval_every=0", steps];
    ["train", RECIPE]
        .into_iter()
        .chain(settings.into_iter().flat_map(|s| ["--set", s]))
        .chain(more.iter().copied())
        .collect()
}

#[test]
fn a_profile_holds_one_step_and_changes_no_bit() {
    let space = Workspace::new();
    space.ft(&train("run.steps=4", &[]));
    let (lines, weights) = (space.steps("run"), space.weights("run"));
    space.ft(&train("run.steps=4", &["--overwrite", "--profile", "step.json"]));
    assert!(space.steps("run") == lines && space.weights("run") == weights, "the profile changed the run");

    let events = space.json("step.json")["traceEvents"].take();
    let count = |name: &str| {
        let named = |event: &&Value| event["cat"] == "cpu_op" && event["name"] == name;
        events.as_array().expect("events").iter().filter(named).count()
    };
    // One update of the optimiser, and its backward pass in the thread of autograd.
    assert_eq!((count("aten::_fused_adamw_"), count("RustBackward") > 0), (1, true));
    assert!(count("aten::mm") + count("aten::bmm") + count("aten::linear") > 0);
}

#[test]
fn a_run_too_short_for_a_profile_is_refused_before_anything_is_deleted() {
    let space = Workspace::new();
    space.ft(&train("run.steps=4", &[]));
    let lines = space.steps("run");
    let told = space.refused(&train("run.steps=2", &["--overwrite", "--profile", "step.json"]));
    assert!(told.contains("--profile records step 3, but the run ends after step 2"), "{told}");
    let told = space.refused(&train("run.steps=4", &["--overwrite", "--profile", "nowhere/step.json"]));
    assert!(told.contains("not a file in an existing folder"), "{told}");
    assert!(space.steps("run") == lines, "the earlier run was deleted");
}
