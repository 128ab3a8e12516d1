//! Task files of lm-evaluation-harness, imported, against what it finds itself (tests/fixtures/lm-eval-tasks).

use super::models::Subject;
use crate::support::json;
use ft::eval::lm_eval::{ImportNote, ImportedSuite, NoteStatus, SplitFile, TaskImport, import};
use ft::eval::results::TaskResults;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FOLDER: &str = "tests/fixtures/lm-eval-tasks";

#[derive(Deserialize)]
struct Expected {
    tasks: BTreeMap<String, ExpectedTask>,
}

/// By the name of a list of filters.
#[derive(Deserialize)]
struct ExpectedTask {
    values: BTreeMap<String, BTreeMap<String, f64>>,
    rows: BTreeMap<String, Vec<ExpectedRow>>,
}

#[derive(Deserialize)]
struct ExpectedRow {
    scores: BTreeMap<String, f64>,
    prompt: String,
    prompts: Option<Vec<String>>,
    #[serde(default)]
    log_likelihoods: Vec<f64>,
    log_likelihood: Option<f64>,
    written: Option<String>,
    text: Option<String>,
}

fn task(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn imported(settings: TaskImport) -> ft::error::Result<ImportedSuite> {
    import(&settings, Path::new("suite.yaml"))
}

/// Imports one task file with what its Python functions would compute.
fn with_columns(name: &str) -> ImportedSuite {
    let column = |name: &str, text: &str| (name.to_string(), text.to_string());
    let columns = match name {
        "endings" => vec![
            column("query", "{{ title.strip() ~ ': ' ~ start.capitalize() }}"),
            column("gold", "{{ answer | int - 1 }}"),
        ],
        _ => Vec::new(),
    };
    imported(TaskImport { files: vec![task(&format!("{name}.yaml"))], columns, ..TaskImport::default() })
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn imported_tasks_have_the_numbers_of_lm_evaluation_harness_to_the_last_row() {
    let expected: Expected = json("lm-eval-tasks/expected.json");
    assert!(expected.tasks.len() > 10);
    let subject = Subject::tiny_llama();
    for (name, expected) in &expected.tasks {
        let suite = with_columns(name);
        let results = subject.run(&suite.text).unwrap_or_else(|error| panic!("{name}: {error}\n{}", suite.text));
        assert_eq!(results.tasks.len(), expected.rows.len(), "{name}: a task for each list of filters");
        for found in &results.tasks {
            let pipeline = match results.tasks.len() {
                1 => expected.rows.keys().next().unwrap().as_str(),
                _ => found.name.strip_prefix(&format!("{name}-")).unwrap(),
            };
            compare(found, &expected.rows[pipeline], &expected.values[pipeline]);
        }
    }
}

fn compare(task: &TaskResults, rows: &[ExpectedRow], values: &BTreeMap<String, f64>) {
    let (name, found) = (&task.name, &task.results[0]);
    assert_eq!(task.items.len(), rows.len(), "{name}");
    for (i, ((item, answer), row)) in task.items.iter().zip(&found.answers).zip(rows).enumerate() {
        match &row.prompts {
            // Prompts, if the choices are such; the last ones are those without a prompt.
            Some(prompts) => assert_eq!(item.prompt.split("\n---\n").next().unwrap(), prompts[0], "{name}, row {i}"),
            None => assert_eq!(item.prompt, row.prompt, "{name}, row {i}"),
        }
        if let Some(written) = &row.written {
            assert_eq!(&answer.written, &[written.clone()], "{name}, row {i}");
            assert_eq!(answer.text.as_str(), row.text.as_deref().unwrap(), "{name}, row {i}");
        }
        for (found, expected) in answer.log_likelihoods.iter().zip(&row.log_likelihoods) {
            assert!((found - expected).abs() < 1e-4, "{name}, row {i}: {found}, expected {expected}");
        }
        let of_text = row.log_likelihood.or((task.kind == "cloze").then(|| row.log_likelihoods[0]));
        if let Some(expected) = of_text {
            let found = answer.scores["log_likelihood"];
            assert!((found - expected).abs() < 2e-6 * expected.abs().max(50.0), "{name}, row {i}: {found}, {expected}");
        }
        for (metric, expected) in row.scores.iter().filter(|(metric, _)| *metric != "perplexity") {
            assert_eq!(answer.scores[metric], *expected, "{name}, row {i}: {metric}");
        }
    }
    assert!(!values.is_empty(), "{name}");
    for (metric, expected) in values {
        let value = found.estimates[metric].value;
        assert!(
            (value - expected).abs() < 1e-5 * expected.abs().max(1.0),
            "{name}: {metric} {value}, expected {expected}"
        );
    }
}

fn notes<'a>(suite: &'a ImportedSuite, key: &str) -> Vec<&'a ImportNote> {
    suite.notes.iter().filter(|note| note.key == key).collect()
}

#[test]
fn every_key_is_told_with_its_line_also_of_an_included_file() {
    let suite = with_columns("letters");
    let [choices] = notes(&suite, "doc_to_choice")[..] else { panic!("one note") };
    assert_eq!(
        (choices.status, choices.place.as_str()),
        (NoteStatus::Mapped, "tests/fixtures/lm-eval-tasks/_letters_template_yaml:12")
    );
    let [shots] = notes(&suite, "num_fewshot")[..] else { panic!("one note") };
    assert_eq!(shots.place, "tests/fixtures/lm-eval-tasks/letters.yaml:5");
    assert_eq!(notes(&suite, "tag")[0].status, NoteStatus::Unused);
    let text = "few_shot: { rows: 2, data: tests/fixtures/lm-eval-tasks/train.jsonl }";
    assert!(suite.text.contains(text), "{}", suite.text);
    let suite = with_columns("endings");
    assert_eq!(notes(&suite, "process_docs")[0].status, NoteStatus::Approximated);
}

#[test]
fn what_needs_python_is_refused_by_the_name_of_the_function() {
    let refused = |settings: TaskImport| imported(settings).unwrap_err().to_string();
    let told = refused(TaskImport { files: vec![task("endings.yaml")], ..TaskImport::default() });
    for part in ["endings.yaml:8: `process_docs`", "`functions.process_docs`", "--column"] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    let set =
        |key: &str| TaskImport { files: vec![task("labelled.yaml")], sets: vec![key.into()], ..TaskImport::default() };
    for (key, parts) in [
        ("doc_to_text=!function utils.ask", ["--set doc_to_text: `doc_to_text`", "`utils.ask`", "--set 'doc_to_text="]),
        ("process_results=!function utils.score", ["--set process_results", "`utils.score`", "--set process_results="]),
        ("metric_list=[{metric: !function utils.f1}]", ["`utils.f1`", "none of its metrics is left", "metric_list"]),
        ("metric_list=[{metric: bleu}]", ["no metric `bleu`", "acc_norm", "metric_list"]),
        ("output_type=multiple", ["no such kind `multiple`", "--set output_type", "nothing was written"]),
        ("doc_to_target={{ lable }}", ["'lable' is undefined", "--column", "doc_to_target"]),
        ("doc_to_choice={{ question }}", ["no list for the first row", "Where is", "doc_to_choice"]),
        ("custom_dataset=!function utils.rows", ["custom_dataset", "made by Python", "--data"]),
        ("test_split=", ["--set test_split: `test_split`", "names what is asked", "validation_split"]),
        ("dataset_kwargs=", ["`test_split`", "--data test=FILE", "json"]),
    ] {
        let told = refused(set(key));
        for part in parts {
            assert!(told.contains(part), "{key}: {part}\n{told}");
        }
    }
    let told = refused(TaskImport { shots: Some(2), ..set("dataset_kwargs.data_files.train=") });
    assert!(told.contains("--data train=FILE") && told.contains("--few-shot 0"), "{told}");
    let written =
        |key: &str| TaskImport { files: vec![task("numbers.yaml")], sets: vec![key.into()], ..TaskImport::default() };
    let told = refused(written("filter_list=[{name: a, filter: [{function: custom, filter_fn: !function utils.f}]}]"));
    assert!(
        told.contains("`a`: the Python function `utils.f`") && told.contains("none of its lists is left"),
        "{told}"
    );
    let told = refused(written("filter_list=[{name: a, filter: [{function: regex, regex_pattern: '('}]}]"));
    assert!(told.contains("`a`: ") && told.contains("Parsing error"), "{told}");
    // The column `choices` of these rows is no list.
    let told = refused(written("filter_list=[{name: a, filter: [{function: multi_choice_regex}]}]"));
    assert!(
        told.contains("reads the column `choices`, a list") && told.contains("--column 'choices={{ … }}'"),
        "{told}"
    );
    let told = refused(written("filter_list=[{name: a, filter: [{function: regex_pos, fallback: [none]}]}]"));
    assert!(told.contains("`regex_pos` with another `fallback`"), "{told}");
    let data = |split: Option<&str>| SplitFile { split: split.map(str::to_string), path: "rows.jsonl".into() };
    let told = refused(TaskImport { data: vec![data(Some("tset"))], ..set("repeats=1") });
    assert!(
        told.contains("--data tset=rows.jsonl: no task has a split `tset`") && told.contains("test, train"),
        "{told}"
    );
    let told = refused(TaskImport { data: vec![data(None), data(None)], ..set("repeats=1") });
    assert!(told.contains("twice"), "{told}");
    assert!(refused(set("num_fewshot")).contains("expected KEY=VALUE"));
    assert!(refused(set("num_fewshot=[")).contains("--set num_fewshot=["));
}

#[test]
fn a_part_that_is_not_there_is_left_out_and_told() {
    let set = |name: &str, key: &str| {
        let settings = TaskImport { files: vec![task(name)], sets: vec![key.into()], ..TaskImport::default() };
        imported(settings).unwrap()
    };
    let suite = set("labelled.yaml", "metric_list=[{metric: acc}, {metric: likelihood}]");
    assert!(suite.text.contains("metrics: [acc]"), "{}", suite.text);
    let told: Vec<&str> = notes(&suite, "metric_list").iter().map(|note| note.note.as_str()).collect();
    assert!(told[1].contains("no metric `likelihood`"), "{told:?}");
    let suite = set("numbers.yaml", "generation_kwargs.num_beams=4");
    assert!(notes(&suite, "generation_kwargs").iter().any(|note| note.note.contains("num_beams")));
    let suite = set("numbers.yaml", "filter_list=[{name: a, filter: [{function: regex_pos}, {function: take_first}]}]");
    assert!(suite.text.contains("extract: [tags]"), "{}", suite.text);
    let told = notes(&suite, "filter_list");
    assert!(told.iter().any(|n| n.status == NoteStatus::Approximated && n.note.contains("one text with spaces")));
    let suite = set("numbers.yaml", "mode=fast");
    assert_eq!(notes(&suite, "mode")[0].status, NoteStatus::Refused);
    // Votes among sampled answers.
    let vote = "filter_list=[{name: vote, filter: [{function: take_first_k, k: 3}, {function: majority_vote}]}, {name: first, filter: [{function: take_first}]}]";
    let settings = TaskImport {
        files: vec![task("numbers.yaml")],
        sets: vec![
            "repeats=8".into(),
            "generation_kwargs={do_sample: true, temperature: 0.2, until: x}".into(),
            vote.into(),
        ],
        ..TaskImport::default()
    };
    let suite = imported(settings).unwrap();
    for part in [
        "samples: { answers: 3, temperature: 0.2, vote: true }",
        "samples: { answers: 1, temperature: 0.2, vote: false }",
        "stop: [x]",
    ] {
        assert!(suite.text.contains(part), "{part}\n{}", suite.text);
    }
}

#[test]
fn a_group_is_its_tasks_and_one_that_needs_python_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let rows = folder.path().join("one_test.jsonl");
    std::fs::write(&rows, "{\"q\": \"a\", \"n\": \"1\"}\n").unwrap();
    std::fs::copy(&rows, folder.path().join("two_test.jsonl")).unwrap();
    write("_group.yaml", "group: all\ntask: [one, odd, python]\naggregate_metric_list: [{metric: acc}]\n");
    write(
        "_base",
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: [\"1\", \"2\"]\ndoc_to_target: n\n",
    );
    write("one.yaml", "include: _base\ntask: one\ndataset_name: one\n");
    write("two.yaml", "include: _base\ntask: two\ntag: [odd]\ndataset_name: two\n");
    write("python.yaml", "include: _base\ntask: python\ndataset_name: one\ndoc_to_text: !function u.f\n");
    let data = SplitFile {
        split: Some("test".into()),
        path: format!("{}/{{dataset_name}}_{{split}}.jsonl", folder.path().display()),
    };
    let settings = |file: &str| TaskImport {
        files: vec![folder.path().join(file)],
        data: vec![data.clone()],
        ..TaskImport::default()
    };
    let suite = imported(settings("_group.yaml")).unwrap();
    assert_eq!((suite.tasks, suite.left_out), (vec!["one".to_string(), "two".into()], vec!["python".to_string()]));
    // A column of text is looked for among the choices, also if it is a number.
    assert!(suite.text.contains(r#"answer: "{{ [\"1\",\"2\"].index(n) }}""#), "{}", suite.text);
    write("_empty.yaml", "group: none\ntask: [three]\n");
    let told = imported(settings("_empty.yaml")).unwrap_err().to_string();
    assert!(told.contains("_empty.yaml:2: no file in ") && told.contains("`three`"), "{told}");
    write("loop.yaml", "include: loop.yaml\ntask: a\n");
    assert!(imported(settings("loop.yaml")).unwrap_err().to_string().contains("include each other"));
    write("lost.yaml", "task: a\ninclude: gone_yaml\n");
    let told = imported(settings("lost.yaml")).unwrap_err().to_string();
    assert!(told.contains("lost.yaml:2: there is no file ") && told.contains("gone_yaml"), "{told}");
    write("bad.yaml", "task: [a\n");
    assert!(imported(settings("bad.yaml")).unwrap_err().to_string().contains("bad.yaml:"));
    write("tags.yaml", "task: !new a\n");
    assert!(imported(settings("tags.yaml")).unwrap_err().to_string().contains("the YAML tag `!new`"));
    write("list.yaml", "- a\n");
    assert!(imported(settings("list.yaml")).unwrap_err().to_string().contains("no task file"));
}
