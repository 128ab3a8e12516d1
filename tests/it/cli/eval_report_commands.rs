//! `ft eval-report` on results that are made by hand.

use crate::support::command::{stderr, stdout};
use crate::support::workspace::Workspace;
use serde_json::{Value, json};

/// Names of models, and for each the number of 40 questions that it answers right and its loss.
type Models<'a> = &'a [(&'a str, usize, f64)];

/// Returns results of a task whose answers are written and of a task of texts.
fn results(models: Models) -> Value {
    let subject = |(name, ..): &(&str, usize, f64)| json!({ "name": name, "model": "models/tiny", "adapter": null });
    let answers = |(_, right, _): &(&str, usize, f64)| -> Value {
        let score = |i: usize| if i < *right { 1.0 } else { 0.0 };
        let answer = |i: usize| {
            json!({
                "text": if i < *right { "J45" } else { "I10" },
                "scores": { "exact_match": score(i) },
                "log_likelihoods": [],
                "finish_reason": "stop"
            })
        };
        json!({
            "estimates": { "exact_match": { "value": *right as f64 / 40.0, "interval": [0.0, 1.0] } },
            "answers": (0..40).map(answer).collect::<Vec<_>>()
        })
    };
    let losses = |(_, _, loss): &(&str, usize, f64)| -> Value {
        let answer = |i: usize| {
            let loss = loss + (i % 5) as f64 / 100.0;
            json!({ "text": "", "scores": { "loss": loss }, "log_likelihoods": [], "finish_reason": null })
        };
        json!({
            "estimates": { "loss": { "value": loss + 0.02, "interval": [loss + 0.01, loss + 0.03] } },
            "answers": (0..40).map(answer).collect::<Vec<_>>()
        })
    };
    let item = |i: usize, expected: Vec<&str>| {
        json!({
            "line": i + 1,
            "prompt": format!("case {i}: shortness of breath and a cough at night, which code applies to this case?"),
            "expected": expected,
            "category": if i % 2 == 0 { "lung" } else { "heart" },
            "choices": []
        })
    };
    let metric = |name: &str, higher: bool| json!({ "name": name, "higher_is_better": higher, "is_mean": true });
    json!({
        "suite": "eval/medical.yaml",
        "title": "The medical task",
        "subjects": models.iter().map(subject).collect::<Vec<_>>(),
        "tasks": [
            {
                "name": "icd10", "kind": "generate", "main_metric": "exact_match",
                "metrics": [metric("exact_match", true)], "data": "rows.jsonl",
                "items": (0..40).map(|i| item(i, vec![["J45", "J44"][i % 2]])).collect::<Vec<_>>(),
                "results": models.iter().map(answers).collect::<Vec<_>>()
            },
            {
                "name": "wiki", "kind": "perplexity", "main_metric": "loss",
                "metrics": [metric("loss", false)], "data": "wiki.txt",
                "items": (0..40).map(|i| item(i, vec![])).collect::<Vec<_>>(),
                "results": models.iter().map(losses).collect::<Vec<_>>()
            }
        ]
    })
}

fn write(space: &Workspace, folder: &str, results: &Value) {
    std::fs::create_dir_all(space.path(folder)).unwrap();
    std::fs::write(space.path(folder).join("results.json"), results.to_string()).unwrap();
}

#[test]
fn results_become_a_page_markdown_and_a_summary() {
    let space = Workspace::bare();
    write(&space, "out", &results(&[("base", 10, 1.4), ("tuned", 30, 1.45)]));
    let gate = ["--gate", "icd10.exact_match >= baseline - 0.02", "--gate", "wiki.loss <= 1.5"];
    let summary = stdout(&space.ft(&[&["eval-report", "out"][..], &gate].concat()));
    let verdict = "tuned is better than base on 1 of 2 tasks (icd10), and worse on 1 (wiki).";
    for text in [verdict, "+50.0 points", "holds", "always “J44”"] {
        assert!(summary.contains(text), "{text} is not in:\n{summary}");
    }
    let page = std::fs::read_to_string(space.path("out/report.html")).unwrap();
    assert!(page.contains("The medical task") && page.contains(verdict) && page.contains("By category"));
    let markdown = std::fs::read_to_string(space.path("out/report.md")).unwrap();
    assert!(markdown.contains("| icd10 | 40 | exact match | tuned | 75.0 %"), "{markdown}");

    let found: Value =
        serde_json::from_str(&stdout(&space.ft(&["eval-report", "out/results.json", "--out", "other", "--json"])))
            .unwrap();
    assert_eq!(found["verdicts"][0], verdict);
    let tuned = &found["comparison"]["tasks"][0]["subjects"][0];
    assert_eq!((&tuned["verdict"], &tuned["difference"]), (&json!("better"), &json!(0.5)));
    assert!(space.path("other/report.html").exists() && space.path("other/report.md").exists());
}

#[test]
fn a_gate_that_does_not_hold_fails_after_the_report_is_written() {
    let space = Workspace::bare();
    write(&space, "out", &results(&[("base", 20, 1.4), ("tuned", 19, 1.4)]));
    let message = space.refused(&["eval-report", "out", "--gate", "icd10.exact_match >= baseline"]);
    assert!(message.contains("1 of 1 gates does not hold: `icd10.exact_match >= baseline` for tuned"), "{message}");
    assert!(std::fs::read_to_string(space.path("out/report.html")).unwrap().contains("does not hold, not certain"));
    // The interval reaches beyond the margin: the gate holds, but not with certainty.
    let loose = ["eval-report", "out", "--gate", "icd10.exact_match >= baseline - 0.03"];
    assert!(stdout(&space.ft(&loose)).contains("holds, not certain"));
    let message = space.refused(&[&loose[..], &["--certain"]].concat());
    assert!(message.contains("1 of 1 gates does not hold with certainty"), "{message}");
    let message = space.refused(&["eval-report", "out", "--gate", "icd10.exact_match >= baseline - 2%"]);
    assert!(message.contains("column 33: `2%`") && message.contains("hint: write 0.02"), "{message}");
}

#[test]
fn evaluations_of_several_folders_are_joined_if_they_asked_the_same() {
    let space = Workspace::bare();
    write(&space, "one", &results(&[("base", 10, 1.4)]));
    write(&space, "two", &results(&[("tuned", 30, 1.4)]));
    let output = space.ft(&["eval-report", "one", "two"]);
    assert!(stdout(&output).contains("tuned is better than base on 1 of 2 tasks"), "{}", stdout(&output));
    assert!(stderr(&output).contains("one/report.html"), "{}", stderr(&output));
    let mut other = results(&[("other", 30, 1.4)]);
    other["tasks"][0]["items"][6]["expected"] = json!(["J46"]);
    write(&space, "three", &other);
    let message = space.refused(&["eval-report", "one", "three"]);
    assert!(message.contains("task icd10: item 7 (line 7): other expected answers"), "{message}");
    let message = space.refused(&["eval-report", "four"]);
    assert!(message.contains("four"), "{message}");
}

#[test]
fn training_rows_add_ngram_models_and_overlap() {
    let space = Workspace::bare();
    write(&space, "out", &results(&[("base", 10, 1.4), ("tuned", 30, 1.45)]));
    let row = |i: usize| {
        let prompt = format!("case {i}: shortness of breath and a cough at night, which code applies to this case?");
        json!({ "prompt": prompt, "completion": "J45" }).to_string()
    };
    std::fs::write(space.path("train.jsonl"), (0..10).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let summary = stdout(&space.ft(&["eval-report", "out", "--train", "train.jsonl"]));
    // The sentence is in ten rows, but in all items, so that only the numbers of the cases make runs that count.
    for text in
        ["a bigram model of the training rows", "a trigram model", "icd10: 10 of 40 items share 13 words in a row"]
    {
        assert!(summary.contains(text), "{text} is not in:\n{summary}");
    }
    let page = std::fs::read_to_string(space.path("out/report.html")).unwrap();
    assert!(page.contains("Overlap with training rows") && page.contains("without overlapping items"));
}
