//! `ft merge` with methods: files and arguments, threads, dry runs, mistakes, warnings, the page.

use crate::support::command::{ft, stderr, stdout, succeed};
use crate::support::workspace::Workspace;
use crate::support::*;
use serde_json::{Value, json};
use std::path::Path;

/// A folder with links to a base and two adapters, so that arguments are short.
fn project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, to) in
        [("base", "biased-llama"), ("one", "merging/one"), ("two", "merging/two"), ("other", "tiny-llama")]
    {
        std::os::unix::fs::symlink(fixture(to), folder.path().join(name)).unwrap();
    }
    folder
}

fn bytes(folder: &Path, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(file)).unwrap()
}

#[test]
fn files_and_arguments_and_any_number_of_threads_give_the_same_bytes() {
    let project = project();
    let run = |out: &str, threads: &str, arguments: &[&str]| {
        let mut command = ft(project.path(), &["merge"]);
        succeed(command.args(arguments).args(["--out", out, "--json"]).env("OMP_NUM_THREADS", threads))
    };
    let arguments = ["base", "one=0.7", "two=-0.4", "--method", "dare_ties", "--density", "0.4,0.6", "--seed", "3"];
    let adapter = [&arguments[..], &["--rank", "3", "--as", "adapter"]].concat();
    let told = run("a", "1", &adapter);
    run("b", "2", &adapter);
    std::fs::write(
        project.path().join("merge.yaml"),
        "base: base\nmethod: dare_ties\nadapters:\n- {path: one, weight: 0.7, density: 0.4}\n- {path: two, weight: -0.4, \
         density: 0.6}\nseed: 3\nrank: 3\nas: adapter\n",
    )
    .unwrap();
    run("c", "2", &["merge.yaml"]);
    let tensors = "adapter_model.safetensors";
    let first = bytes(&project.path().join("a"), tensors);
    assert_eq!(first, bytes(&project.path().join("b"), tensors));
    assert_eq!(first, bytes(&project.path().join("c"), tensors));
    let report: Value = serde_json::from_str(&stdout(&told)).unwrap();
    assert_eq!(report["verdict"], "passed");
    assert_eq!(report["merge"]["method"], "dare_ties, density 0.4 0.6, seed 3, rank 3");
    assert_eq!(report["merge"]["layers"].as_array().unwrap().len(), 3);
    assert_eq!(report["merge"]["adapters"][1]["density"], 0.6);
    assert!(report["merge"]["total"]["energy_kept"].as_f64().unwrap() < 1.0);
    let seen = stderr(&told);
    assert!(seen.contains("sign conflicts") && seen.contains("energy kept"), "{seen}");
    // Another seed is another adapter.
    let other: Vec<&str> = adapter.iter().map(|a| if *a == "3" { "4" } else { a }).collect();
    run("d", "1", &other);
    assert_ne!(first, bytes(&project.path().join("d"), tensors));

    for (out, threads) in [("e", "1"), ("f", "2")] {
        run(out, threads, &arguments);
    }
    let model = |out: &str| bytes(&project.path().join(out), "model.safetensors");
    assert_eq!(model("e"), model("f"));
    let knots = ["base", "one", "two", "--method", "ties", "--knots"];
    run("g", "1", &knots);
    run("h", "2", &knots);
    assert_eq!(model("g"), model("h"));
}

#[test]
fn a_dry_run_writes_its_page_alone() {
    let project = project();
    let arguments = ["merge", "base", "one", "two", "--method", "ties", "--dry-run", "--page", "page.html", "--json"];
    let done = succeed(&mut ft(project.path(), &arguments));
    let report: Value = serde_json::from_str(&stdout(&done)).unwrap();
    assert_eq!(report["method"], "ties, density 0.2");
    let page = std::fs::read_to_string(project.path().join("page.html")).unwrap();
    assert!(page.contains("Sign conflicts") && page.contains("over layers") && !page.contains("://"));
    assert_eq!(std::fs::read_dir(project.path()).unwrap().count(), 5);
}

#[test]
fn the_page_is_written_beside_the_model_and_escapes_names() {
    let project = project();
    std::os::unix::fs::symlink(fixture("merging/one"), project.path().join("<b>&one")).unwrap();
    succeed(&mut ft(project.path(), &["merge", "base", "<b>&one", "two", "--out", "out"]));
    let page = std::fs::read_to_string(project.path().join("out/merge.html")).unwrap();
    assert!(page.contains("&lt;b&gt;&amp;one") && !page.contains("<b>&one"), "a name was not escaped");
}

#[test]
fn mistakes_in_settings_are_told_together_and_before_anything_is_read() {
    let project = project();
    let refused = |arguments: &[&str]| {
        let output = ft(project.path(), &[&["merge"], arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        stderr(&output)
    };
    let told = refused(&["base", "one", "two", "--method", "cat", "--density", "0.5", "--seed", "1", "--out", "x"]);
    assert!(told.contains("--density: `cat` sets no entries to zero") && told.contains("--seed:"), "{told}");
    let told = refused(&["base", "one", "two"]);
    assert!(told.contains("no folder to write") && told.contains("--dry-run"), "{told}");
    std::fs::write(project.path().join("bad.yaml"), "bse: base\nadapters: [one]\nmethod: tyes\n").unwrap();
    let told = refused(&["bad.yaml", "--out", "x"]);
    for part in ["bad.yaml:1:1: unknown key `bse`", "`base` is missing", "bad.yaml:3:9", "did you mean `ties`?"] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    let told = refused(&["bad.yaml", "--rank", "3", "--out", "x"]);
    assert!(told.contains("--rank cannot be combined with bad.yaml"), "{told}");
    assert!(!project.path().join("x").exists());
}

#[test]
fn a_base_with_another_config_is_warned_about() {
    let project = project();
    let copy = project.path().join("biased-llama");
    std::fs::create_dir(&copy).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("biased-llama").join(file), copy.join(file)).unwrap();
    }
    let text = std::fs::read_to_string(copy.join("config.json")).unwrap();
    let changed = text.replace("\"rms_norm_eps\": ", "\"rms_norm_eps\": 1");
    assert_ne!(text, changed);
    std::fs::write(copy.join("config.json"), changed).unwrap();
    // The adapters name their base relative to the root of the repository.
    let out = project.path().join("out");
    let arguments = ["merge", copy.to_str().unwrap(), "tests/fixtures/merging/one", "--out", out.to_str().unwrap()];
    let told = stderr(&succeed(&mut ft(&root(), &arguments)));
    assert!(told.contains("whose config.json differs (rms_norm_eps)"), "{told}");
}

/// The search finds weights with the loss of the merge that is then written, no worse than any of the grid, whose first point
/// is the base.
#[test]
fn weights_are_searched_by_held_out_loss() {
    let space = Workspace::new();
    for (out, rows) in [("one", "chat"), ("two", "instruction")] {
        let (path, out) = (format!("data.train.path=datasets/{rows}.jsonl"), format!("run.out={out}"));
        let sets = ["--set", "run.epochs=1", "--set", "optim.lr=3e-3", "--set", &path, "--set", &out];
        space.ft(&[&["train", "recipes/lora-chat.yaml"], &sets[..]].concat());
    }
    let (model, rows) = ("models/smollm2-135m-instruct", "datasets/icd10/test.jsonl");
    let merge = ["merge", model, "one", "two", "--sweep", rows, "--as", "adapter", "--out", "best", "--json"];
    let told: Value = serde_json::from_str(&stdout(&space.ft(&merge))).unwrap();
    let sweep = &told["sweep"];
    let trials = sweep["trials"].as_array().unwrap();
    let loss = |value: &Value| value.as_f64().unwrap();
    let (best, base) = (loss(&sweep["best"]["loss"]), loss(&sweep["base_loss"]));
    assert_number("no adapter", loss(&trials[0]["loss"]), base, 1e-6);
    assert!(trials.iter().all(|t| loss(&t["loss"]) >= best) && trials.len() > 25 && best < base, "{sweep}");
    let found = &told["export"]["merge"]["adapters"];
    assert_eq!(json!([found[0]["weight"], found[1]["weight"]]), sweep["best"]["weights"]);
    let eval = ["eval", "--model", model, "--adapter", "best", "--data", rows, "--max-new-tokens", "1", "--json"];
    let measured: Value = serde_json::from_str(&stdout(&space.ft(&eval))).unwrap();
    assert_number("loss", loss(&measured["loss"]), best, 1e-5);
    let page = std::fs::read_to_string(space.path("best/merge.html")).unwrap();
    assert!(page.contains("Search for weights") && page.contains("the base alone"));
    let refused = space.refused(&[&merge[..6], &["--energy", "0.9", "--dry-run"]].concat());
    assert!(refused.contains("--energy cannot be combined with --sweep"), "{refused}");
}

/// Adapters of unlike ranks and kinds are merged into a relative of their base: a model of the same shape with other weights.
/// That is warned about, and the relative's weights change by what the base's would.
#[test]
fn adapters_of_two_ranks_and_two_kinds_are_merged_into_a_relative() {
    let project = project();
    let relative = with_changed_weights("biased-llama", |tensors| {
        let _no_grad = tch::no_grad_guard();
        tensors.iter_mut().for_each(|(name, t)| *t = &*t + noise(&t.size(), name) * 0.05);
    });
    std::os::unix::fs::symlink(fixture("kinds/loha"), project.path().join("loha")).unwrap();
    let merge = |base: &str, out: &str| {
        let arguments = ["merge", base, "one=0.6", "three=0.5", "loha=0.4", "--dtype", "f32", "--out", out];
        stderr(&succeed(&mut ft(project.path(), &arguments)))
    };
    std::os::unix::fs::symlink(fixture("merging/three"), project.path().join("three")).unwrap();
    let ranks =
        |name: &str| ft::fsutil::read_json::<Value>(&project.path().join(name).join("adapter_config.json")).unwrap();
    assert_ne!(ranks("one")["r"], ranks("three")["r"]);
    assert_eq!(ranks("loha")["peft_type"], "LOHA");
    merge("base", "of-base");
    let told = merge(relative.path().to_str().unwrap(), "of-relative");
    for name in ["one", "three", "loha"] {
        assert!(
            told.contains(&format!("{name}: was trained on `tests/fixtures/biased-llama`; merging into")),
            "{told}"
        );
    }
    let read = |folder: &Path| ft::nn::Weights::open(folder).unwrap().all();
    let [base, of_base] = [read(&fixture("biased-llama")), read(&project.path().join("of-base"))];
    let [other, of_other] = [read(relative.path()), read(&project.path().join("of-relative"))];
    let mut changed = 0;
    for (name, after) in &of_base {
        let (wanted, found) = (after - &base[name], &of_other[name] - &other[name]);
        assert_within(name, &found, &wanted, 1e-6);
        changed += i32::from(wanted.abs().max().double_value(&[]) > 1e-3);
    }
    assert!(changed > 10, "{changed}");
}
