//! `ft eval` of several adapters at once.

use crate::support::command::stdout;
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
    let table = stdout(&space.ft(&[&common[..], &named].concat()));
    assert!(table.contains("exact match - base") && table.contains("none"), "{table}");
}
