//! Tasks of every kind on small local rows, against lm-evaluation-harness with transformers (tests/fixtures/suites).

use super::models::Subject;
use crate::support::json;
use ft::eval::results::{SuiteResults, TaskResults};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The tasks of the fixture in the words of ft.
const SUITE: &str = r#"
tasks:
- name: plain
  data: tests/fixtures/suites/rows.jsonl
  prompt: "Question: {{ question }}\nAnswer:"
  chat: false
  choice:
    choices: "{{ choices }}"
    answer: "{{ label }}"
    metrics: [acc, acc_norm, acc_bytes, brier_score, acc_mutual_info]
- name: shots
  data: tests/fixtures/suites/rows.jsonl
  prompt: "Question: {{ question }}\nAnswer:"
  chat: false
  system: "Answer briefly.\n\n"
  few_shot: { rows: 3, data: tests/fixtures/suites/train.jsonl }
  choice: { choices: "{{ choices }}", answer: "{{ label }}", metrics: [acc, acc_norm, acc_bytes, brier_score] }
- name: drawn
  data: tests/fixtures/suites/rows.jsonl
  prompt: "Question: {{ question }}\nAnswer:"
  chat: false
  few_shot: { rows: 2, data: tests/fixtures/suites/train.jsonl, seed: 1234, draw: lm_eval }
  choice: { choices: "{{ choices }}", answer: "{{ label }}", metrics: acc }
- name: drawn_within
  data: tests/fixtures/suites/rows.jsonl
  prompt: "Question: {{ question }}\nAnswer:"
  chat: false
  few_shot: { rows: 1, seed: 1234, draw: lm_eval }
  choice: { choices: "{{ choices }}", answer: "{{ label }}", metrics: acc }
- name: filled
  data: tests/fixtures/suites/rows.jsonl
  chat: false
  choice:
    choices: ["{{ blank[:blank.index('_')] }}office", "{{ blank[:blank.index('_')] }}room of the doctor"]
    continuation: "{{ blank[blank.index('_') + 1:].strip() }}"
    answer: "{{ label % 2 }}"
    metrics: acc
- name: cloze
  data: tests/fixtures/suites/rows.jsonl
  prompt: "{{ question }} It is"
  answer: "{{ answer }}"
  chat: false
  cloze:
- name: texts
  data: tests/fixtures/suites/rows.jsonl
  perplexity: { per: [word, byte] }
- name: written
  data: tests/fixtures/suites/rows.jsonl
  prompt: "Q: {{ question }}\nA:"
  answer: "{{ answer }}"
  chat: false
  few_shot: { rows: 2, data: tests/fixtures/suites/train.jsonl }
  generate:
    stop: ["\n", zz]
    max_new_tokens: 12
    extract: [{ regex: '([A-Za-z]{2,})', pick: -1 }, lowercase]
    normalise: [case, punctuation]
- name: chat
  data: tests/fixtures/suites/rows.jsonl
  prompt: "Question: {{ question }}\nAnswer:"
  chat: true
  system: Be brief.
  few_shot: { rows: 2, data: tests/fixtures/suites/train.jsonl, as: turns }
  choice: { choices: "{{ choices }}", answer: "{{ label }}", metrics: [acc, acc_norm, acc_bytes, brier_score] }
- name: chat_text
  data: tests/fixtures/suites/rows.jsonl
  prompt: "Q: {{ question }}\nA:"
  answer: "{{ answer }}"
  chat: true
  few_shot: { rows: 2, data: tests/fixtures/suites/train.jsonl, as: text }
  generate: { stop: ["\n", zz], max_new_tokens: 12, normalise: [] }
"#;

#[derive(Deserialize)]
struct Expected {
    values: BTreeMap<String, f64>,
    rows: Vec<ExpectedRow>,
}

#[derive(Deserialize)]
struct ExpectedRow {
    scores: BTreeMap<String, f64>,
    prompt: Option<String>,
    #[serde(default)]
    log_likelihoods: Vec<f64>,
    log_likelihood: Option<f64>,
    written: Option<String>,
    text: Option<String>,
}

#[test]
fn tasks_have_the_numbers_of_lm_evaluation_harness_to_the_last_row() {
    let results = Subject::tiny_llama().run(SUITE).unwrap();
    let expected: BTreeMap<String, Value> = json("suites/expected.json");
    assert_eq!(results.tasks.len(), expected.len() - 1, "every task of the fixture is run");
    for task in &results.tasks {
        compare(task, serde_json::from_value(expected[&task.name].clone()).unwrap());
    }
    varied(&results);
}

fn compare(task: &TaskResults, expected: Expected) {
    let (name, found) = (&task.name, &task.results[0]);
    assert_eq!(task.items.len(), expected.rows.len(), "{name}");
    for (i, ((item, answer), row)) in task.items.iter().zip(&found.answers).zip(&expected.rows).enumerate() {
        if let Some(prompt) = row.prompt.as_ref().filter(|_| name != "filled") {
            assert_eq!(&item.prompt, prompt, "{name}, row {i}");
        }
        if let Some(written) = &row.written {
            assert_eq!(&answer.written, &[written.clone()], "{name}, row {i}");
            assert_eq!(answer.text.as_str(), row.text.as_deref().unwrap(), "{name}, row {i}");
        }
        // With mutual information the likelihoods without a prompt follow.
        for (found, expected) in answer.log_likelihoods.iter().zip(&row.log_likelihoods) {
            assert!((found - expected).abs() < 1e-4, "{name}, row {i}: {found}, expected {expected}");
        }
        let of_text = row.log_likelihood.or((name == "cloze").then(|| row.log_likelihoods[0]));
        if let Some(expected) = of_text {
            let found = answer.scores["log_likelihood"];
            assert!((found - expected).abs() < 2e-6 * expected.abs().max(50.0), "{name}, row {i}: {found}, {expected}");
        }
        for (metric, expected) in row.scores.iter().filter(|(metric, _)| *metric != "perplexity") {
            assert_eq!(answer.scores[metric], *expected, "{name}, row {i}: {metric}");
        }
    }
    for (metric, expected) in &expected.values {
        let value = found.estimates[metric].value;
        assert!(
            (value - expected).abs() < 1e-5 * expected.abs().max(1.0),
            "{name}: {metric} {value}, expected {expected}"
        );
    }
}

/// A comparison of nothing but zeros would say little.
fn varied(results: &SuiteResults) {
    for (task, metric) in
        [("plain", "acc"), ("plain", "acc_mutual_info"), ("filled", "acc"), ("written", "exact_match")]
    {
        let task = results.tasks.iter().find(|t| t.name == task).unwrap();
        let value = task.results[0].estimates[metric].value;
        assert!(value > 0.0 && value < 1.0, "{}: {metric} {value}", task.name);
    }
}
