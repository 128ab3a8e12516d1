//! Weights by layer and by module that are trained on held-out rows: their gradient, what training finds, `ft merge --sweep-by`.

use crate::support::command::{stderr, stdout};
use crate::support::files::copy_folder;
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::merging::plan::{MergeForm, MergePlan};
use ft::adapters::merging::{MergedWeights, WeightedAdapter};
use ft::convert::merge::adapters::PreparedMerge;
use ft::data::encode::Example;
use ft::eval::merge_losses::LoadedMerge;
use ft::eval::rows::EvalRow;
use ft::eval::sweep::gradient::SumGradient;
use ft::eval::sweep::groups::WeightGroups;
use ft::eval::sweep::trained::WeightTraining;
use ft::nn::Weights;
use ft::recipe::merge_file::SweepBy;
use rand::RngExt;
use serde_json::Value;

const MODEL: &str = "models/smollm2-135m-instruct";

fn parts(names: &[&str]) -> Vec<WeightedAdapter> {
    names.iter().map(|name| WeightedAdapter::read(&fixture(name), 1.0).unwrap()).collect()
}

/// Rows of random tokens for a model with a vocabulary of 64.
fn random_rows(count: usize) -> Vec<EvalRow> {
    let row = |i: usize| {
        let mut rng = ft::rng::stream(7, "tests: rows of a search", i as u64);
        let ids: Vec<u32> = (0..12).map(|_| rng.random_range(3..64)).collect();
        let supervised = (0..12).map(|t| t > 4).collect();
        EvalRow { line: i + 1, question: None, examples: vec![Example { ids, supervised, line: i + 1 }] }
    };
    (0..count).map(row).collect()
}

fn plan() -> MergePlan {
    MergePlan::default()
}

/// The gradient of every weight is the slope of the loss: of LoRAs side by side, and of sums that are saved in full because one
/// adapter is no LoRA.
#[test]
fn the_gradient_of_a_weight_is_the_slope_of_the_loss() {
    let rows = random_rows(6);
    let examples: Vec<&Example> = rows.iter().flat_map(|row| &row.examples).collect();
    for (names, by) in [
        (["merging/one", "merging/three"], SweepBy::Layer),
        (["merging/one", "merging/two"], SweepBy::Module),
        (["merging/one", "kinds/loha"], SweepBy::Module),
        (["merging/one", "merging/three"], SweepBy::Component),
    ] {
        let (mut parts, plan) = (parts(&names), plan());
        let merge = LoadedMerge::open(&fixture("biased-llama"), &parts, &plan, MergeForm::Model).unwrap();
        let groups = WeightGroups::new(by, &merge.changes(&parts).unwrap());
        let gradient = SumGradient::new(&merge, &groups, &mut parts).unwrap();
        let start: Vec<Vec<f64>> = (0..2)
            .map(|i| (0..groups.names.len()).map(|g| 0.4 + 0.3 * i as f64 + 0.02 * (g % 20) as f64).collect())
            .collect();
        let mut set = |weights: &[Vec<f64>]| {
            groups.assign(&mut parts, weights);
            merge.set(&parts).unwrap();
        };
        set(&start);
        let found = gradient.of(&examples).unwrap();
        assert_number("loss", found.loss, merge.loss(&rows).unwrap().0, 1e-6);
        let largest = found.gradient.iter().flatten().fold(0.0, |most: f64, g| most.max(g.abs()));
        assert!(largest > 1e-2, "{names:?}: {largest}");
        for part in 0..2 {
            for group in (0..groups.names.len()).step_by(if by == SweepBy::Component { 7 } else { 1 }) {
                let mut at = |step: f64| {
                    let mut weights = start.clone();
                    weights[part][group] += step;
                    set(&weights);
                    merge.loss(&rows).unwrap().0
                };
                let slope = (at(0.02) - at(-0.02)) / 0.04;
                let far = (slope - found.gradient[part][group]).abs();
                let name = &groups.names[group];
                assert!(far < 5e-3 * largest, "{names:?} {part} {name}: {slope}, {:?}", found.gradient[part][group]);
            }
        }
    }
}

/// What is written has the loss that the search found, with the weights that it reports, as a model and as an adapter.
#[test]
fn the_written_merge_has_the_loss_of_the_search() {
    let (base, plan) = (fixture("biased-llama"), plan());
    let mut parts = parts(&["merging/one", "merging/two"]);
    let merge = LoadedMerge::open(&base, &parts, &plan, MergeForm::Adapter).unwrap();
    let training = WeightTraining { by: SweepBy::Module, steps: 12, seed: 0 };
    let found = training.run(&merge, &mut parts, random_rows(40)).unwrap();
    assert_eq!((found.rows, found.kept_rows, found.starts.len()), (30, 10, 4));
    let steps: Vec<usize> = found.steps.iter().map(|s| s.step).collect();
    assert_eq!(steps, [0, 10, 12]);
    assert!(found.steps.iter().all(|s| s.kept_loss >= found.loss));
    let last = found.steps.last().unwrap().loss.unwrap();
    let start = found.starts.iter().map(|s| s.loss).fold(f64::INFINITY, f64::min);
    assert!(last < start - 0.05, "{found:?}");

    let rows = random_rows(8);
    merge.set(&parts).unwrap();
    let wanted = merge.loss(&rows).unwrap().0;
    let out = tempfile::tempdir().unwrap();
    let prepared = PreparedMerge::new(&base, &parts, plan.clone(), MergeForm::Adapter).unwrap();
    for report in &prepared.report.weights {
        let module = report.name.strip_suffix(".weight").unwrap();
        let group = found.groups.iter().position(|name| name == module).unwrap();
        let weights: Vec<Option<f64>> = found.weights.iter().map(|weights| weights[group]).collect();
        assert_eq!(report.weights, weights, "{module}");
    }
    prepared.write_adapter(&out.path().join("adapter")).unwrap();
    let again = [WeightedAdapter::read(&out.path().join("adapter"), 1.0).unwrap()];
    let one = LoadedMerge::open(&base, &again, &plan, MergeForm::Adapter).unwrap();
    assert_number("the adapter", one.loss(&rows).unwrap().0, wanted, 1e-6);

    let merged = PreparedMerge::new(&base, &parts, plan.clone(), MergeForm::Model).unwrap();
    merged.write_model(&out.path().join("model"), None, u64::MAX).unwrap();
    let base = Weights::open(&base).unwrap();
    let sum = MergedWeights::new(&base, &[], &again).unwrap();
    let model = Weights::open(&out.path().join("model")).unwrap().all();
    for name in sum.changed() {
        assert_within(name, &model[name], &sum.tensor(name).unwrap(), 1e-5);
    }
}

/// Trains an adapter on the shared rows, and makes another one of noise beside it.
fn learned_and_noise() -> Workspace {
    let space = Workspace::new();
    let sets = ["run.epochs=2", "optim.lr=3e-3", "run.out=learned", "model.dtype=f32"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    space.ft(&[&["train", "recipes/lora-chat.yaml"], &sets[..]].concat());
    copy_folder(&space.path("learned"), &space.path("noise"));
    let file = space.path("noise/adapter_model.safetensors");
    let mut tensors = Weights::open_file(&file).unwrap().all();
    tensors.iter_mut().for_each(|(name, t)| *t = noise(&t.size(), name) * 0.3);
    save_tensors(&file, &tensors);
    space
}

/// Of an adapter that has learnt something and one of noise, the weights of the first stay and those of the other go to about
/// zero. The result depends on neither the number of threads nor where the settings are written, but on the seed.
#[test]
fn the_weights_of_noise_go_to_zero() {
    let space = learned_and_noise();
    let run = |out: &str, threads: &str, arguments: &[&str]| {
        let mut command = space.command(&["merge", "--as", "adapter", "--json", "--out", out]);
        let output = command.args(arguments).env("OMP_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        output
    };
    let inputs = [MODEL, "learned", "noise", "--sweep", "datasets/chat.jsonl"];
    let arguments = [&inputs[..], &["--sweep-by", "layer", "--seed", "3"]].concat();
    let done = run("a", "1", &arguments);
    let told: Value = serde_json::from_str(&stdout(&done)).unwrap();
    let sweep = &told["sweep"];
    let weights: Vec<Vec<f64>> = serde_json::from_value(sweep["weights"].clone()).unwrap();
    let mean = |list: &[f64]| list.iter().map(|w| w.abs()).sum::<f64>() / list.len() as f64;
    assert!(mean(&weights[1]) < 0.15 && mean(&weights[0]) > 0.5, "{sweep}");
    assert_eq!(sweep["groups"], serde_json::json!(["0", "1", "2"]));
    let loss = |value: &Value| value.as_f64().unwrap();
    let start = loss(&sweep["steps"][0]["kept_loss"]);
    assert!(loss(&sweep["loss"]) < start && loss(&sweep["loss"]) < loss(&sweep["base_loss"]), "{sweep}");
    assert_eq!((&sweep["by"], &sweep["rows"], &sweep["kept_rows"]), (&"layer".into(), &45.into(), &15.into()));
    let means: Vec<f64> = (0..2).map(|i| loss(&told["export"]["merge"]["adapters"][i]["weight"])).collect();
    let plain_mean = |list: &[f64]| list.iter().sum::<f64>() / list.len() as f64;
    for i in 0..2 {
        assert_number("mean weight", means[i], plain_mean(&weights[i]), 1e-9);
    }
    let said = stderr(&done);
    assert!(said.contains("weights by layer trained on 45 rows; the loss of 15 rows kept back"), "{said}");
    assert!(said.contains("step 0  rows kept back") && said.contains("step 10  loss"), "{said}");
    let page = std::fs::read_to_string(space.path("a/merge.html")).unwrap();
    for part in
        ["over the steps that trained weights by layer", "rows kept back", "over layers", "3 weights of each adapter"]
    {
        assert!(page.contains(part), "{part}");
    }

    run("b", "2", &arguments);
    let yaml = format!(
        "base: {MODEL}\nadapters: [learned, noise]\nsweep: datasets/chat.jsonl\nsweep_by: layer\nseed: 3\nas: adapter\n"
    );
    std::fs::write(space.path("merge.yaml"), yaml).unwrap();
    let output = space.ft(&["merge", "merge.yaml", "--out", "c", "--json"]);
    let again: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(again["sweep"]["weights"], sweep["weights"]);
    let bytes = |out: &str| space.weights(out);
    assert!(bytes("a") == bytes("b"), "the weights depend on the number of threads");
    assert!(bytes("a") == bytes("c"), "a file is not read as arguments are");
    let other =
        [&inputs[..], &["--sweep-by", "module", "--sweep-steps", "5", "--sweep-rows", "16", "--seed", "4"]].concat();
    let told: Value = serde_json::from_str(&stdout(&run("d", "1", &other))).unwrap();
    assert_eq!((&told["sweep"]["rows"], &told["sweep"]["kept_rows"]), (&12.into(), &4.into()));
    assert_eq!(told["sweep"]["groups"].as_array().unwrap().len(), 21);
    assert!(bytes("a") != bytes("d"));
    let page = std::fs::read_to_string(space.path("d/merge.html")).unwrap();
    assert!(page.contains("Weights of noise") && page.contains("layer 2, mlp.down_proj"), "no map of modules");
}

#[test]
fn settings_of_a_search_that_contradict_each_other_are_refused() {
    let space = Workspace::new();
    for name in ["one", "two"] {
        copy_folder(&fixture("merging").join(name), &space.path(name));
    }
    let rows = "datasets/icd10/valid.jsonl";
    let refused =
        |more: &[&str]| space.refused(&[&["merge", MODEL, "one", "two", "--out", "x", "--sweep", rows], more].concat());
    let e = refused(&["--sweep-by", "layer", "--method", "ties"]);
    assert!(e.contains("--sweep-by: weights by layer are trained for `linear`") && e.contains("`ties, density"), "{e}");
    let e = refused(&["--sweep-by", "module", "--rank", "4"]);
    assert!(e.contains("the merge is `linear, rank 4`"), "{e}");
    let e = refused(&["--sweep-steps", "4"]);
    assert!(e.contains("--sweep-steps: a search by adapter tries weights on a grid"), "{e}");
    let e = refused(&["--seed", "4"]);
    assert!(e.contains("--seed: nothing in `linear` is random"), "{e}");
    let yaml = "base: b\nadapters: [one, two]\nsweep_by: layers\nsweep_steps: 3\n";
    std::fs::write(space.path("bad.yaml"), yaml).unwrap();
    let e = space.refused(&["merge", "bad.yaml", "--out", "x"]);
    assert!(e.contains("bad.yaml:3:11: unknown choice `layers` for `sweep_by`"), "{e}");
    assert!(e.contains("`sweep_steps` without `sweep`"), "{e}");
    std::fs::write(space.path("bad.yaml"), format!("{}method: ties\nsweep: rows\n", yaml.replace("layers", "layer")))
        .unwrap();
    let e = space.refused(&["merge", "bad.yaml", "--out", "x"]);
    assert!(e.contains("bad.yaml:3:11: `sweep_by`: weights by layer are trained for `linear`"), "{e}");
    std::fs::write(space.path("good.yaml"), format!("base: {MODEL}\nadapters: [one, two]\nsweep: {rows}\n")).unwrap();
    let e = space.refused(&["merge", "good.yaml", "--out", "x", "--sweep", rows]);
    assert!(e.contains("--sweep cannot be combined with good.yaml"), "{e}");
    let e = space.refused(&["merge", MODEL, "one=0.7", "two", "--out", "x", "--sweep", rows]);
    assert!(e.contains("one=0.7: a weight beside --sweep") && e.contains("name the adapter alone: one"), "{e}");
    let weighted = format!("base: {MODEL}\nadapters:\n- one\n- path: two\n  weight: 0.5\n");
    std::fs::write(space.path("weighted.yaml"), format!("{weighted}sweep: {rows}\n")).unwrap();
    let e = space.refused(&["merge", "weighted.yaml", "--out", "x"]);
    assert!(e.contains("weighted.yaml:5:11: `weight` beside `sweep`"), "{e}");
    std::fs::write(space.path("weighted.yaml"), weighted).unwrap();
    let e = space.refused(&["merge", "weighted.yaml", "--out", "x", "--sweep", rows]);
    assert!(e.contains("its adapter two has the weight 0.5"), "{e}");
    assert!(!space.path("x").exists());
}

#[test]
fn too_few_rows_are_refused() {
    let mut parts = parts(&["merging/one", "merging/two"]);
    let plan = plan();
    let merge = LoadedMerge::open(&fixture("biased-llama"), &parts, &plan, MergeForm::Model).unwrap();
    let training = WeightTraining { by: SweepBy::Layer, steps: 1, seed: 0 };
    let e = training.run(&merge, &mut parts, random_rows(7)).unwrap_err().to_string();
    assert!(e.contains("7 rows are too few to train weights on"), "{e}");
}
