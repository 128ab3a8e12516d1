//! `ft eval-import` on a task file of lm-evaluation-harness.

use crate::support::command::{stderr, stdout};
use crate::support::workspace::Workspace;
use serde_json::Value;

const TASK: &str = "task: chapters
dataset_path: somebody/icd10
test_split: test
output_type: generate_until
process_docs: !function utils.clean
doc_to_text: \"Q: {{query}}\\nA:\"
doc_to_target: answer
num_fewshot: 1
fewshot_split: train
fewshot_config: { sampler: first_n }
metric_list: [{ metric: exact_match }, { metric: anls }]
metadata: { version: 1.0 }
";

#[test]
fn a_task_file_becomes_a_suite_with_a_report() {
    let space = Workspace::new();
    let write = |name: &str, text: &str| std::fs::write(space.path(name), text).unwrap();
    write("task.yaml", TASK);
    write("test.jsonl", "{\"question\": \"x\\u001b\", \"answer\": \"I10\"}\n");
    write("train.jsonl", "{\"question\": \"y\", \"answer\": \"J45\"}\n");
    let told = space.refused(&["eval-import", "task.yaml", "--out", "in/suite.yaml", "--data", "test=test.jsonl"]);
    for part in ["task.yaml:5: `process_docs`", "`utils.clean`", "--column", "nothing was written"] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    assert!(!space.path("in").exists());
    let common = ["eval-import", "task.yaml", "--out", "in/suite.yaml", "--column", "query={{ question | upper }}"];
    let told = space.refused(&common);
    assert!(told.contains("--data test=FILE") && told.contains("somebody/icd10"), "{told}");
    let told = space.refused(&[&common[..], &["--data", "test=gone.jsonl"]].concat());
    assert!(told.contains("gone.jsonl"), "{told}");
    let told = space.refused(&[&common[..], &["--data", "test.jsonl"]].concat());
    assert!(told.contains("task.yaml:9: `fewshot_split`") && told.contains("--data train=FILE"), "{told}");

    let whole = [&common[..], &["--data", "test.jsonl", "--data", "train=train.jsonl"]].concat();
    let output = space.ft(&whole);
    let summary = stdout(&output);
    for part in [
        "refused",
        "task.yaml:11",
        "no metric `anls`",
        "approximated",
        "process_docs",
        "expected: I10",
        "  | Q: Y",
        "  | A: J45",
        "⟨U+001B⟩",
    ] {
        assert!(summary.contains(part), "{part}\n{summary}");
    }
    assert!(stderr(&output).contains("next: ft eval in/suite.yaml"));
    let suite = std::fs::read_to_string(space.path("in/suite.yaml")).unwrap();
    for part in [
        "- name: chapters\n",
        "columns: { query: \"{{ question | upper }}\" }",
        "metrics: [exact_match]",
        "chat: false",
    ] {
        assert!(suite.contains(part), "{part}\n{suite}");
    }
    assert!(space.refused(&whole).contains("--force"));
    let json: Value = serde_json::from_str(&stdout(&space.ft(&[&whole[..], &["--force", "--json"]].concat()))).unwrap();
    assert_eq!(json["tasks"], serde_json::json!(["chapters"]));
    assert_eq!(json["first_items"][0]["expected"][0], "I10");
    let notes = json["notes"].as_array().unwrap();
    let of = |key: &str| notes.iter().find(|note| note["key"] == key).unwrap();
    assert_eq!(
        (&of("doc_to_target")["status"], &of("doc_to_target")["place"]),
        (&"mapped".into(), &"task.yaml:7".into())
    );
    assert_eq!(of("metadata")["status"], "unused");
    assert!(
        space.refused(&["eval-import", "task.yaml", "--out", "a.yaml", "--column", "query"]).contains("NAME=TEMPLATE")
    );
    let told = space.refused(&["import", "task.yaml", "--out", "model"]);
    assert!(told.contains("ft eval-import"), "{told}");
}
