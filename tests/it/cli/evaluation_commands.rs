//! `ft runs history`, `compare` and `seeds`, `ft data canaries`, and canaries from their making to their exposure.

use crate::support::command::{stderr, stdout};
use crate::support::workspace::Workspace;
use serde_json::{Value, json};

/// Writes results of two models on forty questions, of which the second one has `right` right.
fn write_results(space: &Workspace, folder: &str, date: &str, right: usize) {
    let item = |i: usize| json!({ "line": i + 1, "prompt": format!("question {i}"), "expected": ["yes"], "category": null, "choices": [] });
    let answers = |right: usize| -> Vec<Value> {
        (0..40).map(|i| json!({ "text": "yes", "scores": { "acc": f64::from(u8::from(i < right)) }, "log_likelihoods": [], "finish_reason": null })).collect()
    };
    let subject = |right: usize| json!({ "estimates": { "acc": { "value": right as f64 / 40.0, "interval": [right as f64 / 40.0 - 0.1, right as f64 / 40.0 + 0.1] } }, "answers": answers(right) });
    let results = json!({
        "suite": "suite.yaml",
        "title": "The nightly task",
        "evaluated": date,
        "subjects": [
            { "name": "before", "model": "models/base", "adapter": null },
            { "name": "after", "model": "models/base", "adapter": folder }
        ],
        "tasks": [{
            "name": "arc",
            "kind": "generate",
            "main_metric": "acc",
            "metrics": [{ "name": "acc", "higher_is_better": true, "is_mean": true }],
            "data": "arc.jsonl",
            "items": (0..40).map(item).collect::<Vec<_>>(),
            "results": [subject(20), subject(right)]
        }]
    });
    std::fs::create_dir_all(space.path(folder)).unwrap();
    std::fs::write(space.path(&format!("{folder}/results.json")), results.to_string()).unwrap();
}

#[test]
fn history_finds_drift_and_its_index_can_be_made_again() {
    let space = Workspace::new();
    for (day, right) in [30, 31, 30, 32, 31, 20, 21, 19, 20, 21].into_iter().enumerate() {
        write_results(&space, &format!("nights/run-{day}"), &format!("2026-03-{:02}T08:00:00+00:00", day + 1), right);
    }
    let shown = stdout(&space.ft(&["runs", "history", "nights", "--page", "history.html"]));
    for part in ["arc", "acc", "The nightly task", "worse since 2026-03-06", "run-7", "0.4750"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(std::fs::read_to_string(space.path("history.html")).unwrap().contains("worse since 2026-03-06"));
    let index = std::fs::read_to_string(space.path("nights/evaluations.jsonl")).unwrap();
    assert_eq!(index.lines().count(), 10);
    std::fs::remove_file(space.path("nights/evaluations.jsonl")).unwrap();
    let json: Value =
        serde_json::from_str(&stdout(&space.ft(&["runs", "history", "nights", "--json", "--rebuild"]))).unwrap();
    assert_eq!((json[0]["points"].as_array().unwrap().len(), &json[0]["change"]["after"]), (10, &json!(5)));
    assert_eq!(std::fs::read_to_string(space.path("nights/evaluations.jsonl")).unwrap(), index);
    let base: Value =
        serde_json::from_str(&stdout(&space.ft(&["runs", "history", "nights", "--subject", "before", "--json"])))
            .unwrap();
    assert_eq!(base[0]["points"][9]["estimate"]["value"], 0.5);
    let refused = space.refused(&["runs", "history", "nights", "--metric", "f1"]);
    assert!(refused.contains("tasks: arc; metrics: acc; models: after, before"), "{refused}");
    std::fs::create_dir(space.path("empty")).unwrap();
    assert!(space.refused(&["runs", "history", "empty"]).contains("no results of evaluations"));
    // A file of another program is left out and told.
    std::fs::create_dir(space.path("nights/other")).unwrap();
    std::fs::write(space.path("nights/other/results.json"), "{}").unwrap();
    let told = space.ft(&["runs", "history", "nights"]);
    assert!(stderr(&told).contains("left out") && stdout(&told).contains("run-9"), "{}", stderr(&told));
}

#[test]
fn evaluated_runs_are_compared_and_spread_over_seeds() {
    let space = Workspace::new();
    for (name, right) in [("one", 30), ("two", 32), ("three", 31), ("worse", 10)] {
        write_results(&space, &format!("{name}/evaluation"), "2026-03-01T08:00:00+00:00", right);
    }
    let compared = stdout(&space.ft(&["runs", "compare", "one", "worse", "--out", "compared"]));
    assert!(compared.contains("worse is worse than one on arc"), "{compared}");
    assert!(space.path("compared/report.html").is_file());
    let json: Value =
        serde_json::from_str(&stdout(&space.ft(&["runs", "compare", "one", "two", "worse", "--json"]))).unwrap();
    let names: Vec<&str> = json["subjects"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["one", "two", "worse"], "the tuned model of each run");
    let shown = stdout(&space.ft(&["runs", "seeds", "one", "two", "three"]));
    assert!(shown.contains("0.7750") && shown.contains("0.7500 to 0.8000"), "{shown}");
    let json: Value =
        serde_json::from_str(&stdout(&space.ft(&["runs", "seeds", "one", "two", "three", "--json"]))).unwrap();
    let found = &json["metrics"][0];
    assert_eq!((&found["task"], &found["value"]["count"]), (&json!("arc"), &json!(3)));
    assert!((found["change"]["mean"].as_f64().unwrap() - 0.275).abs() < 1e-12, "{found}");
    assert!(space.refused(&["runs", "seeds", "one"]).contains("one run has no spread"));
    assert!(space.refused(&["runs", "compare", "one", "nowhere"]).contains("no results of an evaluation"));
}

#[test]
fn canaries_are_planted_remembered_and_measured() {
    let space = Workspace::new();
    let rows: String = (0..24)
        .map(|i| format!("{}\n", json!({ "text": format!("Row {i} is about the office and its {} doors.", i % 5) })))
        .collect();
    std::fs::write(space.path("rows.jsonl"), &rows).unwrap();
    let plant = ["data", "canaries", "rows.jsonl", "--out", "train.jsonl", "--list", "canaries.jsonl"];
    space.ft(&[&plant[..], &["--canaries", "2", "--copies", "40,1", "--pattern", "Code {number}: ####"]].concat());
    let lines =
        |name: &str| std::fs::read_to_string(space.path(name)).unwrap().lines().map(str::to_string).collect::<Vec<_>>();
    assert_eq!((lines("train.jsonl").len(), lines("canaries.jsonl").len()), (65, 2));
    let listed: Value = serde_json::from_str(&lines("canaries.jsonl")[0]).unwrap();
    assert_eq!((&listed["copies"], &listed["pattern"]), (&json!(40), &json!("Code 1: ####")));
    assert_eq!(
        lines("train.jsonl").iter().filter(|line| line.contains(listed["answer"].as_str().unwrap())).count(),
        40
    );
    let refused = space.refused(&["data", "canaries", "rows.jsonl", "--out", "x.jsonl", "--list", "x.jsonl"]);
    assert!(refused.contains("the same file"), "{refused}");
    let refused = space.refused(&[&plant[..], &["--pattern", "no secret {number}"]].concat());
    assert!(refused.contains("nothing random"), "{refused}");
    // A model that is trained on them prefers the one that it saw often to others of its form.
    let settings = [
        "model.dtype=f32",
        "data.train.path=train.jsonl",
        "data.valid.path=rows.jsonl",
        "optim.lr=0.01",
        "batch.tokens=256",
        "batch.max_len=128",
        "run.epochs=12",
        "run.eval_every=0",
        "run.save_every=0",
        "run.samples=0",
        "run.out=tuned",
    ];
    let set: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    space.ft(&[&["train", "recipes/full-medical.yaml"], &set[..]].concat());
    std::fs::create_dir_all(space.path("eval")).unwrap();
    let suite = std::fs::read_to_string("eval/canaries.yaml").unwrap();
    let suite = suite.replace("runs/canaries.jsonl", "canaries.jsonl").replace("others: 500", "others: 255");
    std::fs::write(space.path("eval/canaries.yaml"), suite).unwrap();
    let found = |model: &str| {
        space.ft(&["eval", "eval/canaries.yaml", "--model", model, "--out", model.rsplit('/').next().unwrap()]);
        let results = space.json(&format!("{}/results.json", model.rsplit('/').next().unwrap()));
        let exposure =
            |i: usize| results["tasks"][0]["results"][0]["answers"][i]["scores"]["exposure"].as_f64().unwrap();
        [exposure(0), exposure(1)]
    };
    // Eight bits are the most that 255 other texts show; a text that was not learnt has about one and a half.
    let (before, after) = (found("models/smollm2-135m-instruct"), found("tuned"));
    assert!(after[0] > 7.0 && before[0] < 4.0, "{before:?} {after:?}");
}
