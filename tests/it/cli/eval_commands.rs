//! `ft eval` of several adapters at once.

use crate::support::command::{stderr, stdout};
use crate::support::resumed::train;
use crate::support::workspace::Workspace;
use serde_json::{Value, json};

#[test]
fn several_adapters_are_evaluated_as_each_is_alone() {
    let space = Workspace::new();
    for (out, seed) in [("one", "run.seed=1"), ("two", "run.seed=2")] {
        train(&space, "recipes/lora-medical.yaml", out, &[seed, "optim.lr=3e-3"]);
    }
    let rows = "datasets/icd10/train.jsonl";
    let common = ["eval", "--model", "models/smollm2-135m-instruct", "--dtype", "f32", "--data", rows];
    let read = |more: &[&str]| -> Value {
        serde_json::from_str(&stdout(&space.ft(&[&common[..], more, &["--json"]].concat()))).unwrap()
    };
    let named = ["--adapter", "a=one", "--adapter", "b=two"];
    let together = read(&[&named[..], &["--out", "answers.jsonl"]].concat());
    let results = together["results"].as_array().unwrap();
    let answers = std::fs::read_to_string(space.path("answers.jsonl")).unwrap();
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: Value| answers.iter().filter(|a| a["adapter"] == name).collect::<Vec<_>>();
    for (i, (name, folder)) in
        [(json!(null), None), (json!("a"), Some("one")), (json!("b"), Some("two"))].iter().enumerate()
    {
        let adapter = folder.map_or(vec![], |folder| vec!["--adapter", folder]);
        let alone = read(&[&adapter[..], &["--out", "alone.jsonl"]].concat());
        assert_eq!((&results[i]["name"], &results[i]["adapter"]), (name, &json!(folder)));
        for key in ["exact_match", "stopped", "tokens", "rows", "max_new_tokens"] {
            assert_eq!(results[i][key], alone[key], "{name}: {key}");
        }
        let [ours, theirs] = [&results[i], &alone].map(|r| r["loss"].as_f64().unwrap());
        assert!((ours - theirs).abs() < 1e-5 * theirs, "{name}: {ours}, {theirs}");
        let text = std::fs::read_to_string(space.path("alone.jsonl")).unwrap();
        for (line, answer) in text.lines().zip(of(name.clone())) {
            let alone: Value = serde_json::from_str(line).unwrap();
            assert_eq!((&alone["text"], &alone["prompt"]), (&answer["text"], &answer["prompt"]), "{name}");
            assert!(alone.get("adapter").is_none());
        }
    }
    // Differences are means over rows, and their intervals hold them.
    assert!(results[0].get("difference").is_none());
    for (i, name) in [(1, "a"), (2, "b")] {
        let rows = |of: &[&Value]| of.iter().map(|a| a["loss"].as_f64().unwrap()).sum::<f64>() / of.len() as f64;
        let wanted = rows(&of(json!(name))) - rows(&of(json!(null)));
        let found = &results[i]["difference"]["loss"];
        let [mean, low, high] =
            [&found["mean"], &found["interval"][0], &found["interval"][1]].map(|v| v.as_f64().unwrap());
        assert!((mean - wanted).abs() < 1e-9 && low <= mean && mean <= high && low < high, "{name}: {found}");
    }
    // Neither adapter is tested against the other; Holm's correction at most doubles both.
    for i in [1, 2] {
        let test = &results[i]["difference"]["test"];
        let [p, corrected] = ["p", "p_corrected"].map(|key| test[key].as_f64().unwrap());
        assert!(p <= corrected && corrected <= 1.0, "{test}");
        let gained = test["only_this"].as_f64().unwrap() - test["only_base"].as_f64().unwrap();
        let mean = results[i]["difference"]["exact_match"]["mean"].as_f64().unwrap();
        assert!((gained / results[i]["asked"].as_f64().unwrap() - mean).abs() < 1e-12, "{test}");
    }
    let table = stdout(&space.ft(&[&common[..], &named].concat()));
    assert!(table.contains("exact match - base") && table.contains("none"), "{table}");
}

#[test]
fn further_metrics_are_printed_with_intervals_and_unknown_ones_refused() {
    let space = Workspace::new();
    let common = ["eval", "--model", "models/smollm2-135m-instruct", "--data", "datasets/icd10/test.jsonl"];
    let text = stdout(&space.ft(&[&common[..], &["--metrics", "f1,rougeL,chrf++,macro_f1", "--json"]].concat()));
    let found: Value = serde_json::from_str(&text).unwrap();
    for name in ["f1", "rougeL", "chrf++", "macro_f1"] {
        let value = found["metrics"][name]["value"].as_f64().unwrap_or_else(|| panic!("{name}: {found}"));
        let interval = &found["metrics"][name]["interval"];
        assert!(interval[0].as_f64().unwrap() <= value && value <= interval[1].as_f64().unwrap(), "{name}: {found}");
    }
    assert_eq!(found["metrics"].as_object().unwrap().len(), 4);
    let table = stdout(&space.ft(&[&common[..], &["--metrics", "bleu"]].concat()));
    assert!(table.contains("bleu"), "{table}");
    let message = space.refused(&[&common[..], &["--metrics", "rouge3"]].concat());
    assert!(message.contains("rouge3") && message.contains("rougeLsum"), "{message}");
}

#[test]
fn a_suite_is_asked_of_the_base_and_adapters_and_goes_on_where_it_stopped() {
    let space = Workspace::new();
    train(&space, "recipes/lora-medical.yaml", "one", &["optim.lr=3e-3"]);
    std::fs::create_dir_all(space.path("eval")).unwrap();
    for file in ["chat.yaml", "chat.jsonl"] {
        std::fs::copy(format!("eval/{file}"), space.path(&format!("eval/{file}"))).unwrap();
    }
    let common = ["eval", "eval/chat.yaml", "--model", "models/smollm2-135m-instruct", "--dtype", "f32"];
    let more = ["--adapter", "tuned=one", "--out", "results"];
    let table = stdout(&space.ft(&[&common[..], &more].concat()));
    for part in ["task", "base", "tuned", "preferred", "token_perplexity", "brier_score", "(95 % "] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let results = space.json("results/results.json");
    assert_eq!(results["subjects"][1]["adapter"], "one");
    let answered = std::fs::read_to_string(space.path("results/answers/answers.jsonl")).unwrap();
    assert_eq!(answered.lines().count(), 50);
    let cache = || std::fs::read_to_string(space.path("results/cache.jsonl")).unwrap();
    let known = cache();
    let again: Value = serde_json::from_str(&stdout(&space.ft(&[&common[..], &more, &["--json"]].concat()))).unwrap();
    assert_eq!(cache(), known, "everything was known");
    let mut later = space.json("results/results.json");
    later["evaluated"] = results["evaluated"].clone();
    assert_eq!(later, results);
    for (task, written) in again["tasks"].as_array().unwrap().iter().zip(results["tasks"].as_array().unwrap()) {
        assert_eq!(task["items"], written["items"].as_array().unwrap().len());
        assert_eq!(task["estimates"][1], written["results"][1]["estimates"]);
        // An adapter that was trained differs from its base, and the base alone is the base.
        assert_ne!(written["results"][0]["answers"], written["results"][1]["answers"], "{}", task["name"]);
    }
    let alone: Value = serde_json::from_str(&stdout(&space.ft(&[&common[..], &["--json"]].concat()))).unwrap();
    let perplexity = |value: &Value| value["tasks"][2]["estimates"][0]["token_perplexity"]["value"].as_f64().unwrap();
    assert!((perplexity(&alone) / perplexity(&again) - 1.0).abs() < 1e-5);
    let refused = space.refused(&["eval", "eval/chat.yaml", "--model", "models/medical", "--rows", "3"]);
    assert!(refused.contains("cannot be used with"), "{refused}");
    assert!(std::fs::read_to_string(space.path("results/report.html")).unwrap().contains("</html>"));
    assert!(space.path("results/report.md").is_file());

    // Gates: placed mistakes, a baseline that is missing, one that holds and one that does not.
    let suite = std::fs::read_to_string(space.path("eval/chat.yaml")).unwrap();
    let gated =
        |gate: &str| std::fs::write(space.path("eval/gated.yaml"), format!("{suite}gates: [\"{gate}\"]\n")).unwrap();
    let ask = |more: &[&str]| {
        let arguments = [&["eval", "eval/gated.yaml"], &common[2..], &["--out", "results"], more].concat();
        space.command(&arguments).output().unwrap()
    };
    let adapter = &more[..2];
    gated("english.token_perplexity <= 1e9");
    assert!(ask(adapter).status.success(), "{}", stderr(&ask(adapter)));
    gated("english.token_perplexity <= 0.001 * baseline");
    let failed = ask(adapter);
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr(&failed).contains("1 of 1 gates does not hold"), "{}", stderr(&failed));
    assert!(stderr(&ask(&[])).contains("needs a baseline"), "{}", stderr(&ask(&[])));
    gated("englsh.token_perplexity <= 1");
    assert!(stderr(&ask(adapter)).contains("did you mean `english`?"), "{}", stderr(&ask(adapter)));
    gated("english.token_perplexity = 1");
    assert!(stderr(&ask(adapter)).contains("eval/gated.yaml:"), "{}", stderr(&ask(adapter)));
}

#[test]
fn a_run_is_evaluated_before_and_after() {
    let space = Workspace::new();
    std::fs::create_dir_all(space.path("eval")).unwrap();
    for file in ["chat.yaml", "chat.jsonl"] {
        std::fs::copy(format!("eval/{file}"), space.path(&format!("eval/{file}"))).unwrap();
    }
    let settings = ["run.evaluate=eval/chat.yaml", "run.steps=3", "optim.lr=3e-3", "model.dtype=f32"];
    train(&space, "recipes/lora-medical.yaml", "adapted", &settings);
    train(&space, "recipes/full-medical.yaml", "whole", &settings);
    for (run, adapter) in [("adapted", true), ("whole", false)] {
        let results = space.json(&format!("{run}/evaluation/results.json"));
        let names: Vec<&str> =
            results["subjects"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["before", "after"]);
        assert_eq!(results["subjects"][1]["adapter"].is_string(), adapter, "{run}");
        let value = |subject: usize| &results["tasks"][2]["results"][subject]["estimates"]["token_perplexity"]["value"];
        assert_ne!(value(0), value(1), "{run}: the training changed the model");
        assert_eq!(results["tasks"][2]["results"].as_array().unwrap().len(), 2);
        let shown = stdout(&space.ft(&["runs", "show", run]));
        assert!(shown.contains("token_perplexity") && shown.contains("before"), "{shown}");
        let json: Value = serde_json::from_str(&stdout(&space.ft(&["runs", "show", run, "--json"]))).unwrap();
        assert_eq!(&json["evaluation"]["tasks"][2]["estimates"][1]["token_perplexity"]["value"], value(1));
    }
    // Both runs began with the same model.
    let before = |run: &str| space.json(&format!("{run}/evaluation/results.json"))["tasks"][1]["results"][0].clone();
    assert_eq!(before("adapted"), before("whole"));
    let refused = space.refused(&[
        "train",
        "recipes/lora-medical.yaml",
        "--set",
        "run.evaluate=nowhere.yaml",
        "--set",
        "run.out=x",
    ]);
    assert!(refused.contains("nowhere.yaml"), "{refused}");
    assert!(!space.path("x").exists(), "nothing was trained");
}
