//! Tests training a part of the weights (`model.trained`) through the real binary: the chosen weights change, the
//! others keep their bits, and what was chosen is recorded.

use crate::support::resumed::{checkpoint, resumed_equals_straight, train};
use crate::support::{Row, Sequence, device, fixture, take_gradients, tensors, whole, workspace::Workspace};
use ft::models::{Heads, LayerReplay, LayerSampling, LoadOptions, Model, Storage, TrainedPart, layer_number};
use serde_json::Value;
use std::collections::BTreeSet;
use tch::Kind;

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

/// In every family, the trained layers get the gradients of full fine-tuning, and the others none.
#[test]
fn layers_that_are_not_drawn_get_no_gradient() {
    for base in ["tiny-llama", "tiny-qwen3", "tiny-gpt2", "biased-llama", "tiny-mixtral"] {
        let part = TrainedPart::Lisa(LayerSampling::default());
        let load = LoadOptions {
            device: device(),
            kind: Kind::Float,
            storage: Storage::Auto,
            train_base: Some(&part),
            adapters: Vec::new(),
            vocabulary: None,
            heads: Heads::Tokens,
        };
        let (model, full) = (Model::load(&fixture(base), load).unwrap(), whole(&fixture(base), Kind::Float));
        let row = Row::pack(&[Sequence::random(12, 60, 3)]);
        let _ = full.learn(&row, row.items, LayerReplay::None).unwrap();
        let expected = take_gradients(&full);
        for (layer, replay) in [(1, LayerReplay::None), (0, LayerReplay::All), (1, LayerReplay::First(1))] {
            model.train_layers(&BTreeSet::from([layer]));
            ft::native::drop_gradients(model.params().iter().map(|p| &p.tensor));
            let _ = model.learn(&row, row.items, replay).unwrap();
            let frozen = |p: &&ft::nn::Param| !p.trainable() && p.tensor.grad().defined();
            assert!(model.params().iter().find(frozen).is_none(), "{base}: a frozen weight has a gradient");
            let found = take_gradients(&model);
            let trained = |name: &&String| layer_number(name).is_none_or(|number| number == layer);
            assert!(found.keys().eq(expected.keys().filter(trained)), "{base}: {:?}", found.keys());
            assert!(found.iter().all(|(name, g)| g.equal(&expected[name])), "{base}, layer {layer}, {replay:?}");
        }
    }
}

#[test]
fn lisa_trains_the_drawn_layers_and_everything_outside_of_layers() {
    let (space, names) = changed("{lisa: {layers: 1, every: 2}}");
    let plan = space.json("runs/full-medical/plan.json");
    let seed = plan["recipe"]["run"]["seed"].as_u64().unwrap();
    let all = tensors(space.path("models/smollm2-135m-instruct/model.safetensors"));
    let depth = all.keys().filter_map(|name| layer_number(name)).max().unwrap() + 1;
    let drawn = LayerSampling { layers: 1, every: 2 }.drawn(depth, seed, 1);
    let trained = |name: &&String| layer_number(name).is_none_or(|number| drawn.contains(&number));
    let expected: BTreeSet<String> = all.keys().filter(trained).cloned().collect();
    assert!(depth > 1 && expected.len() < all.len());
    assert_eq!(names, expected);
}

/// A layer that leaves loses its optimiser state, and one that comes has its own count of steps.
#[test]
fn a_resumed_run_of_lisa_equals_a_straight_one() {
    let space = Workspace::new();
    let recipe = "recipes/full-medical.yaml";
    let sets = ["model.trained={lisa: {layers: 1, every: 2}}", "optim.groups=[{match: 'layers\\.', lr: 1e-3}]"];
    resumed_equals_straight(&space, recipe, &sets);
    let states = |out: &str, step: u64| {
        let state = tensors(checkpoint(&space, out, step).join("optimiser.safetensors"));
        let layers: BTreeSet<usize> = state.keys().filter_map(|name| layer_number(name)).collect();
        (layers, state)
    };
    let seed = space.json("straight/plan.json")["recipe"]["run"]["seed"].as_u64().unwrap();
    let (mut seen, weights) = (BTreeSet::new(), tensors(checkpoint(&space, "straight", 9).join("trained.safetensors")));
    let depth = weights.keys().filter_map(|name| layer_number(name)).max().unwrap() + 1;
    for step in 1..=9 {
        let (layers, _) = states("straight", step);
        assert_eq!(layers, LayerSampling { layers: 1, every: 2 }.drawn(depth, seed, step - 1), "step {step}");
        seen.extend(layers);
    }
    assert!(seen.len() > 1, "the run draws one layer only: it tests no change");
    // The settings say how long a layer stays, and a run of full fine-tuning has the state of all.
    train(&space, recipe, "full", &[]);
    assert_eq!(states("full", 9).0, (0..depth).collect());
    let check = |sets: &[&str]| -> Value {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let arguments: Vec<&str> = ["check", recipe, "--json"].into_iter().chain(sets).collect();
        serde_json::from_slice(&space.ft(&arguments).stdout).unwrap()
    };
    let (part, all) = (check(&sets[..1]), check(&[]));
    let of = |check: &Value, key: &str| check["needs"][key].as_u64().unwrap();
    // Of 16 bytes a parameter, masters remain for every weight.
    let (frozen, expected) = (of(&all, "training") - of(&part, "training"), &part["parameters"]);
    let trained = part["trained"].as_u64().unwrap();
    assert_eq!(frozen, 12 * (expected.as_u64().unwrap() - trained), "{part}");
    assert_eq!(of(&part, "weights"), 0);
}

#[test]
fn averages_of_layers_that_leave_are_refused() {
    let space = Workspace::new();
    for set in ["optim.ema=0.99", "optim.kind=schedule_free"] {
        let lisa = "model.trained={lisa: {}}";
        let said = space.refused(&["train", "recipes/full-medical.yaml", "--set", lisa, "--set", set]);
        assert!(said.contains("`lisa` drops the optimiser's state"), "{said}");
    }
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
