//! Metrics beside comparison with expected texts. A random model writes nothing of use, so most tests replace what it wrote: a filter that
//! finds nothing gives a text of the test's own.

use super::models::Subject;
use crate::support::needs::{NAMESPACES, needs};
use ft::eval::results::TaskResults;
use ft::eval::suite::cache::AnswerCache;
use ft::recipe::suite_file::parse;
use serde_json::{Value, json};
use std::path::Path;

fn write(folder: &Path, name: &str, rows: &[Value]) -> String {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(folder.join(name), text).unwrap();
    folder.join(name).display().to_string()
}

/// A suite of one task whose answers are all `answer`.
fn suite(data: &str, answer: &str, more: &str, generate: &str) -> String {
    let answer = serde_json::to_string(answer).unwrap();
    format!(
        "tasks:\n- name: t\n  data: {data}\n  prompt: \"{{{{ q }}}}\"\n{more}  generate:\n    max_new_tokens: 3\n    \
         extract: [{{ regex: '(?!)', otherwise: {answer} }}]\n{generate}"
    )
}

fn first(subject: &Subject, suite: &str) -> TaskResults {
    subject.run(suite).unwrap_or_else(|e| panic!("{e}\n{suite}")).tasks.remove(0)
}

fn value(task: &TaskResults, name: &str) -> f64 {
    task.results[0].estimates.get(name).unwrap_or_else(|| panic!("{name}: {:?}", task.results[0].estimates)).value
}

#[test]
fn instructions_are_counted_by_prompt_and_by_instruction() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let row =
        |names: Value, arguments: Value| json!({"q": "Write.", "instruction_id_list": names, "kwargs": arguments});
    let words = |n: usize| json!({"num_words": n, "relation": "at least", "keywords": null});
    let rows = [
        row(json!(["punctuation:no_comma"]), json!([{}])),
        row(
            json!(["punctuation:no_comma", "length_constraints:number_words", "startend:quotation"]),
            json!([{}, words(3), {}]),
        ),
        row(json!(["length_constraints:number_words", "detectable_format:title"]), json!([words(4), {}])),
        row(json!(["language:response_language"]), json!([{"language": "sw"}])),
    ];
    let data = write(folder.path(), "rows.jsonl", &rows);
    // Without its first line the answer has no comma.
    let task = first(
        &subject,
        &suite(&data, "Well, of course:\nThe house stands near the old river", "", "    metrics: [instructions]\n"),
    );
    assert_eq!(task.main_metric, "prompt_level_strict_acc");
    assert!(task.items[0].expected.is_empty());
    let names: Vec<&str> = task.metrics.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(
        names,
        ["prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc"]
    );
    let found = names.map_values(&task);
    // Of 7 instructions, strictly: the words twice, the language; loosely also twice no comma.
    for (found, expected) in found.iter().zip([0.25, 3.0 / 7.0, 0.5, 5.0 / 7.0]) {
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }
    let scores = &task.results[0].answers[1].scores;
    assert!((scores["inst_level_loose_acc"] - 2.0 / 3.0).abs() < 1e-12, "{scores:?}");
    let interval = task.results[0].estimates["inst_level_loose_acc"].interval.unwrap();
    assert!(interval[0] < 5.0 / 7.0 && 5.0 / 7.0 < interval[1]);
}

trait MapValues {
    fn map_values(&self, task: &TaskResults) -> Vec<f64>;
}

impl MapValues for Vec<&str> {
    fn map_values(&self, task: &TaskResults) -> Vec<f64> {
        self.iter().map(|name| value(task, name)).collect()
    }
}

#[test]
fn json_is_read_fitted_and_compared() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let of_row = |kind: &str, answer: Value| json!({"q": "Dose?", "schema": {"type": "object", "properties": {"mg": {"type": kind}}}, "a": answer});
    let rows = [of_row("number", json!({"mg": 5.0})), of_row("string", json!({"mg": "5"}))];
    let data = write(folder.path(), "rows.jsonl", &rows);
    let schema = folder.path().join("schema.json");
    std::fs::write(&schema, "{\"required\": [\"mg\"]}").unwrap();
    let run = |answer: &str, generate: &str| {
        first(&subject, &suite(&data, answer, "  answer: \"{{ a | tojson }}\"\n", generate))
    };
    let by_row = run("```json\n{\"mg\": 5}\n```", "    metrics: [json, json_equal]\n    schema: \"{{ schema }}\"\n");
    assert_eq!(by_row.main_metric, "json_schema");
    assert_eq!(vec!["json", "json_schema", "json_equal"].map_values(&by_row), [1.0, 0.5, 0.5]);
    let by_file = run("{}", &format!("    metrics: [json]\n    schema: {}\n", schema.display()));
    assert_eq!(vec!["json", "json_schema"].map_values(&by_file), [1.0, 0.0]);
    let none = run("{\"mg\": ", "    metrics: [json]\n");
    assert_eq!((value(&none, "json"), none.metrics.len()), (0.0, 1));
    // Bad rows and schemas are told before anything is asked.
    let told = |row: Value, generate: &str| {
        let data = write(folder.path(), "bad.jsonl", &[rows[0].clone(), row]);
        subject.run(&suite(&data, "{}", "  answer: \"{{ a }}\"\n", generate)).unwrap_err().to_string()
    };
    let broken =
        told(json!({"q": "?", "schema": {"type": 3}, "a": "1"}), "    metrics: [json]\n    schema: \"{{ schema }}\"\n");
    assert!(broken.contains("expected text"), "the answer of the first row is a map: {broken}");
    let fine = |row: Value, generate: &str| {
        let data = write(folder.path(), "bad.jsonl", &[row]);
        subject.run(&suite(&data, "{}", "  answer: \"{{ a }}\"\n", generate)).unwrap_err().to_string()
    };
    let broken =
        fine(json!({"q": "?", "schema": {"type": 3}, "a": "1"}), "    metrics: [json]\n    schema: \"{{ schema }}\"\n");
    assert!(broken.contains("bad.jsonl:1: `schema`: not a valid JSON Schema"), "{broken}");
    let words = fine(json!({"q": "?", "schema": "{", "a": "1"}), "    metrics: [json]\n    schema: \"{{ schema }}\"\n");
    assert!(words.contains("bad.jsonl:1: the schema is no JSON"), "{words}");
    let unequal = fine(json!({"q": "?", "a": "five"}), "    metrics: [json_equal]\n");
    assert!(unequal.contains("bad.jsonl:1: the metric `json_equal` compares JSON"), "{unequal}");
}

#[test]
fn tool_calls_are_compared_with_those_of_the_answer() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let call = |name: &str, mg: i64| json!([{"name": name, "arguments": {"mg": mg}}]);
    let rows = [("dose", 5), ("dose", 6), ("stop", 5)].map(|(name, mg)| json!({"q": "?", "calls": call(name, mg)}));
    let data = write(folder.path(), "rows.jsonl", &rows);
    let answer = "<tool_call>{\"name\": \"dose\", \"arguments\": {\"mg\": 5}}</tool_call>";
    let generate = "    metrics: [tool_calls]\n";
    let task = first(&subject, &suite(&data, answer, "  answer: \"{{ calls | tojson }}\"\n", generate));
    let found = vec!["tool_calls", "tool_names", "tool_calls_f1"].map_values(&task);
    assert!((found[0] - 1.0 / 3.0).abs() < 1e-12 && (found[1] - 2.0 / 3.0).abs() < 1e-12, "{found:?}");
    assert!((found[2] - 1.0 / 3.0).abs() < 1e-12, "{found:?}");
    let bad = write(folder.path(), "bad.jsonl", &[json!({"q": "?", "calls": "{\"name\": 3}"})]);
    let told = subject.run(&suite(&bad, answer, "  answer: \"{{ calls }}\"\n", generate)).unwrap_err().to_string();
    assert!(told.contains("bad.jsonl:1: the metric `tool_calls` cannot read the expected calls"), "{told}");
}

#[test]
fn programs_pass_or_fail_their_tests() {
    needs!(NAMESPACES);
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let rows = [("3", "n + 1"), ("4", "n + 1"), ("3", "n")].map(|(result, solution)| {
        json!({"q": "def f(n):\n    return ", "entry_point": "f", "solution": solution,
               "test": format!("def check(candidate):\n    assert candidate(2) == {result}, 'not {result}'")})
    });
    let data = write(folder.path(), "rows.jsonl", &rows);
    let code = "    code:\n      program: \"{{ q }}{{ completion }}\\n{{ test }}\\ncheck({{ entry_point }})\\n\"\n";
    let run = |answer: &str, more: &str| subject.run(&suite(&data, answer, "", &format!("{more}{code}")));
    let task = run("n + 1", "").unwrap().tasks.remove(0);
    assert_eq!((task.main_metric.as_str(), task.metrics[0].is_mean), ("pass@1", true));
    assert!((value(&task, "pass@1") - 2.0 / 3.0).abs() < 1e-12);
    let notes: Vec<&str> = task.results[0].answers.iter().map(|a| a.notes[0].as_str()).collect();
    assert_eq!(notes, ["passed", "AssertionError: not 4", "passed"]);
    // A program that ends before its tests.
    assert_eq!(
        value(&run("exit()\n", "").unwrap().tasks[0], "pass@1"),
        1.0,
        "nothing says that the tests were reached"
    );
    let asks = code.replace(")\\n\"", ")\\nprint('{{ passed }}')\"");
    let early = first(&subject, &suite(&data, "exit()\n", "", &asks));
    assert_eq!(
        (value(&early, "pass@1"), early.results[0].answers[0].notes[0].as_str()),
        (0.0, "ended before its tests")
    );
    assert!((value(&first(&subject, &suite(&data, "n + 1", "", &asks)), "pass@1") - 2.0 / 3.0).abs() < 1e-12);
    // All four samples are the same program here; it is kept in the cache, so it runs once.
    let path = folder.path().join("cache.jsonl");
    let sampled = suite(
        &data,
        "n + 1",
        "",
        &format!(
            "    metrics: [pass@1, pass@3]\n    samples: {{ answers: 4, temperature: 0.8, vote: false }}\n{code}      reference: \"{{{{ solution }}}}\"\n"
        ),
    );
    let found = subject.run_with(&sampled, &mut AnswerCache::open(&path).unwrap()).unwrap();
    assert!((value(&found.tasks[0], "pass@3") - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(found.tasks[0].results[0].answers[1].notes.len(), 4);
    // Three prompts, and three programs: the answers to the first and the last row are the same one, two references are
    // answers, and the third is another.
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 3 + 3);
    assert_eq!(subject.run_with(&sampled, &mut AnswerCache::open(&path).unwrap()).unwrap(), found);
    // Mistakes of rows, of interpreters and of references.
    let told = |code: &str| {
        let suite = suite(&data, "n", "", &format!("    code: {code}\n"));
        subject.run(&suite).unwrap_err().to_string()
    };
    let missing = told("{ program: \"{{ completion }}{{ tests }}\" }");
    assert!(missing.contains("task `t`: ") && missing.contains("rows.jsonl:1: the template"), "{missing}");
    assert!(missing.contains("'tests' is undefined"), "{missing}");
    let nowhere = told("{ program: \"{{ completion }}\", command: [nowhere3, \"{file}\"] }");
    assert!(nowhere.contains("there is no program `nowhere3`"), "{nowhere}");
    let wrong = told("{ program: \"{{ completion }}\", reference: \"{{ solution }} +\" }");
    assert!(wrong.contains("no reference solution passes its tests; row 1: SyntaxError"), "{wrong}");
}

#[test]
fn programs_that_attack_fail_and_the_evaluation_goes_on() {
    needs!(NAMESPACES);
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let attacks = [
        "while True: os.fork()",
        "x = [bytearray(1 << 20) for _ in range(1 << 20)]",
        "socket.socket()",
        "open('x', 'wb').write(bytes(1 << 28))",
        "[print('x' * 1000) for _ in range(1 << 20)]",
        "time.sleep(60)",
        "pass",
    ];
    let rows = attacks.map(|text| json!({"q": "?", "text": text}));
    let data = write(folder.path(), "rows.jsonl", &rows);
    let code = "    code: { program: \"import os, socket, time\\n{{ text }}\\n{{ completion }}\", seconds: 10, memory_mb: 256 }\n";
    let task = first(&subject, &suite(&data, "", "", code));
    let passed: Vec<f64> = task.results[0].answers.iter().map(|a| a.scores["pass@1"]).collect();
    assert_eq!(passed, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], "{:?}", task.results[0].answers);
    let note = |i: usize| task.results[0].answers[i].notes[0].as_str();
    let stopped =
        ["Resource temporarily unavailable", "did not end in time", "printed too much", "used too much memory"];
    assert!(stopped.iter().any(|how| note(0).contains(how)), "{}", note(0));
    // Beside other programs, the time may end before the memory does.
    assert!(["MemoryError", "did not end in time"].contains(&note(1)), "{}", note(1));
    assert_eq!([note(4), note(5)], ["printed too much", "did not end in time"]);
    assert!(note(2).contains("PermissionError"), "{}", note(2));
}

#[test]
fn support_and_disagreement_are_shares() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let contexts = ["The house of Anna Berg has 12 rooms.", "The garden of Otto Lind has 3 trees."];
    let data = write(folder.path(), "rows.jsonl", &contexts.map(|text| json!({"q": "Whose?", "text": text})));
    let generate = "    metrics: [support, disagreement, exact_match]\n    context: \"{{ text }}\"\n    samples: { answers: 3, temperature: 1.0 }\n";
    let answer = "It is the house of Anna with 12 rooms.";
    let task = first(&subject, &suite(&data, answer, "  answer: \"{{ q }}\"\n", generate));
    let found = vec!["support_numbers", "support_names", "disagreement", "answer_entropy"].map_values(&task);
    assert_eq!(found, [0.5, 0.5, 0.0, 0.0], "equal answers do not disagree");
    let words: Vec<f64> = task.results[0].answers.iter().map(|a| a.scores["support_words"]).collect();
    // Of 7 runs of three words, the house of, house of anna and, in no other order, nothing else.
    assert!((words[0] - 2.0 / 7.0).abs() < 1e-12 && words[1] == 0.0, "{words:?}");
    assert!(!task.metrics.iter().find(|m| m.name == "disagreement").unwrap().higher_is_better);
    // What the model samples itself does disagree.
    let own = format!(
        "tasks:\n- name: t\n  data: {data}\n  prompt: \"{{{{ q }}}}\"\n  generate: {{ metrics: [disagreement], max_new_tokens: 6, samples: {{ answers: 4, temperature: 1.0 }} }}\n"
    );
    let own = first(&subject, &own);
    assert!(value(&own, "disagreement") > 0.2 && value(&own, "answer_entropy") > 0.5, "{:?}", own.results[0].estimates);
}

/// Writes a judge as a program, which prints `verdict` for each row, and returns its command.
fn judge(folder: &Path, verdict: &str) -> String {
    let path = folder.join("judge.py");
    let text = format!("import json, sys\nfor line in sys.stdin:\n    row = json.loads(line)\n    print({verdict})\n");
    std::fs::write(&path, text).unwrap();
    format!("[python3, {}]", path.display())
}

#[test]
fn answers_are_compared_in_both_orders() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let rows = ["no", "a long answer of many words", "fine so far", "medium"].map(|a| json!({"q": "How?", "a": a}));
    let data = write(folder.path(), "rows.jsonl", &rows);
    let run = |command: &str| {
        let generate = format!("    metrics: [win_rate]\n    compare: {{ command: {command}, against: answer }}\n");
        subject.run(&suite(&data, "fine so far", "  answer: \"{{ a }}\"\n  system: Be kind.\n", &generate))
    };
    let longer = judge(folder.path(), "'a' if len(row['a']) > len(row['b']) else 'b'");
    let task = run(&longer).unwrap().tasks.remove(0);
    assert_eq!(task.main_metric, "win_rate");
    // Won twice, lost once, and equal once.
    let won: Vec<f64> = task.results[0].answers.iter().map(|a| a.scores["win_rate"]).collect();
    assert_eq!(won, [1.0, 0.0, 0.5, 1.0]);
    assert_eq!(vec!["win_rate", "ties", "inconsistent"].map_values(&task), [0.625, 0.25, 0.0]);
    let controlled = value(&task, "win_rate_length_controlled");
    assert!((0.0..1.0).contains(&controlled) && controlled != 0.625, "{controlled}");
    // The difficulty of prompts is a further term of the rate at equal length, and of nothing else.
    let difficult = |column: &str| {
        let compare = format!("{{ command: {longer}, against: answer, difficulty: \"{{{{ {column} }}}}\" }}");
        let generate = format!("    metrics: [win_rate]\n    compare: {compare}\n");
        subject.run(&suite(&data, "fine so far", "  answer: \"{{ a }}\"\n  system: Be kind.\n", &generate))
    };
    let found = difficult("a | length").unwrap().tasks.remove(0);
    assert_eq!(value(&found, "win_rate"), 0.625);
    assert!((value(&found, "win_rate_length_controlled") - controlled).abs() > 1e-3);
    let same = difficult("0").unwrap().tasks.remove(0);
    assert_eq!(value(&same, "win_rate_length_controlled"), controlled);
    let told = difficult("a").unwrap_err().to_string();
    assert!(told.contains("rows.jsonl:1: `difficulty` is no number: `no`"), "{told}");
    // Who always prefers the first contradicts itself on each pair of different answers.
    let firsts = run(&judge(folder.path(), "'a'")).unwrap().tasks.remove(0);
    assert_eq!(vec!["win_rate", "ties", "inconsistent"].map_values(&firsts), [0.5, 1.0, 0.75]);
    // The judge sees the system prompt and the question.
    let sees = judge(
        folder.path(),
        "'a' if row['prompt'] == [{'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': 'How?'}] else 'x'",
    );
    assert_eq!(value(&run(&sees).unwrap().tasks[0], "inconsistent"), 0.75);
    let confused = run(&judge(folder.path(), "'perhaps'")).unwrap_err().to_string();
    assert!(confused.contains("prompt of row 1") && confused.contains("a, b, tie"), "{confused}");
    let alone = format!("    metrics: [win_rate]\n    compare: {{ command: {longer} }}\n");
    let told = subject.run(&suite(&data, "x", "", &alone)).unwrap_err().to_string();
    assert!(told.contains("one model is evaluated") && told.contains("--adapter NAME=DIR"), "{told}");
}

#[test]
fn rewards_of_a_program_are_means_and_decide_comparisons() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let rows = ["no", "a long answer of many words", "fine so far"].map(|a| json!({"q": "How?", "a": a}));
    let data = write(folder.path(), "rows.jsonl", &rows);
    let command = judge(folder.path(), "len(row['completion']) / 10 if row['columns']['q'] == 'How?' else 'x'");
    let generate = format!(
        "    metrics: [reward, win_rate]\n    reward: {{ command: {command} }}\n    compare: {{ by: reward, against: answer, margin: 0.5 }}\n"
    );
    let task = first(&subject, &suite(&data, "fine so far", "  answer: \"{{ a }}\"\n", &generate));
    assert!((value(&task, "reward") - 1.1).abs() < 1e-12);
    let won: Vec<f64> = task.results[0].answers.iter().map(|a| a.scores["win_rate"]).collect();
    assert_eq!(won, [1.0, 0.0, 0.5]);
    assert!(!task.metrics.iter().any(|m| m.name == "inconsistent"), "a score has no order");
    let abstains = judge(folder.path(), "'null'");
    let generate = format!("    metrics: [reward]\n    reward: {{ command: {abstains} }}\n");
    let told = subject.run(&suite(&data, "x", "", &generate)).unwrap_err().to_string();
    assert!(told.contains("no reward was given to an answer to") && told.contains("rows.jsonl:1"), "{told}");
    let nowhere =
        subject.run(&suite(&data, "x", "", "    metrics: [reward]\n    reward: nowhere\n")).unwrap_err().to_string();
    assert!(nowhere.contains("nowhere: neither a reward model's directory nor an adapter"), "{nowhere}");
}

#[test]
fn mistakes_in_settings_of_scorers_have_places() {
    let task = |generate: &str| {
        let text = format!("tasks:\n- name: t\n  data: x.jsonl\n  prompt: \"{{{{ q }}}}\"\n  generate: {generate}\n");
        parse("s.yaml", &text).unwrap_err().to_string()
    };
    for (generate, parts) in [
        (
            "{ metrics: [support] }",
            vec!["s.yaml:5:24: `support` without `context`", "e.g. `context: \"{{ context }}\"`"],
        ),
        ("{ metrics: [json], context: \"{{ c }}\" }", vec!["`context` without the metric `support`"]),
        ("{ metrics: [pass@1] }", vec!["`pass@1` without `code`"]),
        ("{ metrics: [pass@0] }", vec!["unknown choice `pass@0`"]),
        ("{ metrics: [instruction] }", vec!["did you mean `instructions`?"]),
        (
            "{ metrics: [pass@5], code: { program: \"{{ completion }}\" } }",
            vec!["`pass@5` of 1 answer to each prompt", "answers: 5"],
        ),
        ("{ metrics: [disagreement] }", vec!["`disagreement` of one answer"]),
        ("{ metrics: [win_rate], compare: { by: reward } }", vec!["`by: reward` without `reward`"]),
        (
            "{ metrics: [win_rate], compare: { judge: a, command: [b] } }",
            vec!["`compare` has one of `judge`, `command` and `by: reward`"],
        ),
        ("{ metrics: [win_rate], compare: { judge: a, margin: 1 } }", vec!["`margin` beside `judge`"]),
        ("{ metrics: [win_rate], compare: { judge: a, difficulty: \"{{ d\" } }", vec!["`difficulty`: "]),
        (
            "{ metrics: [win_rate], compare: { judge: a, against: nobody } }",
            vec!["unknown choice `nobody` for `against`"],
        ),
        (
            "{ metrics: [reward], reward: { model: a, url: b } }",
            vec!["`reward` has one of `model`, `command` and `url`"],
        ),
        ("{ metrics: [reward], reward: { url: \"https://x\" } }", vec!["`url`: expected http://…, found https://x"]),
        ("{ metrics: [reward], reward: { command: cat } }", vec!["`command`: expected a list"]),
        ("{ code: { command: [python3] } }", vec!["`program` is missing", "`command` lacks `{file}`"]),
        (
            "{ code: { program: \"{{ x\", sandbox: none, seconds: 0, file: a/b, memory_mb: 0, speed: 1 } }",
            vec![
                "`program`: ",
                "unknown choice `none` for `sandbox`",
                "limits_only",
                "`seconds`: expected a time",
                "is no name of a file",
                "`memory_mb`: expected 1 or more",
                "unknown key `speed`",
            ],
        ),
        ("{ metrics: [exact_match] }", vec!["`answer` is missing"]),
        ("{ metrics: [tool_calls] }", vec!["`answer` is missing"]),
        ("{ metrics: [json], schema: \"{{ x\" }", vec!["`schema`: "]),
    ] {
        let told = task(generate);
        for part in parts {
            assert!(told.contains(part), "{generate}: {part}\n\n{told}");
        }
    }
    let text = "tasks:\n- { name: t, data: x.jsonl, generate: { metrics: [instructions] } }\n";
    assert!(parse("s.yaml", text).unwrap_err().to_string().contains("the metric `instructions` needs `prompt`"));
    let fine = "tasks:\n- { name: t, data: x.jsonl, prompt: \"{{ q }}\", main: pass@2, generate: { metrics: [pass@1, pass@2], \
                samples: { answers: 2 }, code: { program: \"{{ completion }}\", sandbox: limits_only, seconds: 0.5 } } }\n";
    assert_eq!(parse("s.yaml", fine).unwrap().tasks[0].main.as_deref(), Some("pass@2"));
}

/// The ready suites whose metrics are tested here are read, and ask rows in the layout as published.
#[test]
fn ready_suites_ask_rows_as_published() {
    needs!(NAMESPACES);
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let read = |name: &str| std::fs::read_to_string(crate::support::root().join("eval").join(name)).unwrap();
    let short = |text: String| {
        let text = text.replace("data/", &format!("{}/", folder.path().display()));
        ["1280", "1024", "512"]
            .iter()
            .fold(text, |text, n| text.replace(&format!("max_new_tokens: {n}"), "max_new_tokens: 3"))
    };
    let place = |name: &str| std::fs::create_dir_all(folder.path().join(name)).unwrap();
    ["ifeval", "humaneval", "mbpp"].iter().for_each(|name| place(name));
    let ifeval = json!({"key": 1, "prompt": "Write a poem without commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": null}]});
    write(folder.path(), "ifeval/input_data.jsonl", &[ifeval]);
    let task = first(&subject, &short(read("ifeval.yaml")));
    assert_eq!((task.items.len(), task.main_metric.as_str()), (1, "prompt_level_strict_acc"));
    let humaneval = json!({"task_id": "HumanEval/0", "prompt": "def one():\n    \"\"\"One.\"\"\"\n", "entry_point": "one",
        "canonical_solution": "    return 1\n", "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate() == 1\n"});
    write(folder.path(), "humaneval/HumanEval.jsonl", &[humaneval]);
    let task = first(&subject, &short(read("humaneval.yaml")));
    assert!(task.items[0].prompt.ends_with("\"\"\"One.\"\"\"\n") && task.results[0].answers[0].notes.len() == 1);
    let task = first(&subject, &short(read("humaneval-chat.yaml")));
    assert!(
        task.items[0].prompt.contains("```python\ndef one():\n    \"\"\"One.\"\"\"\n\n```"),
        "{}",
        task.items[0].prompt
    );
    let mbpp = |id: usize| {
        json!({"task_id": id, "text": format!("Write a function that returns {id}."), "code": format!("def f():\r\n  return {id}"),
        "test_list": [format!("assert f() == {id}"), "assert f() > 0", "assert f() != 0.5"], "test_setup_code": "", "challenge_test_list": []})
    };
    write(folder.path(), "mbpp/examples.jsonl", &[mbpp(2), mbpp(3), mbpp(4)]);
    write(folder.path(), "mbpp/test.jsonl", &[mbpp(11)]);
    // The prompt has more tokens than the tiny model sees; its beginning is left out, which the text does not show.
    let task = first(&subject, &short(read("mbpp.yaml")));
    let begin = "You are an expert Python programmer, and here is your task: Write a function that returns 2. Your code should pass these tests:\n\n\
                 assert f() == 2\nassert f() > 0\nassert f() != 0.5\n[BEGIN]\ndef f():\r\n  return 2\n[DONE]\n\nYou are";
    assert!(task.items[0].prompt.starts_with(begin), "{}", task.items[0].prompt);
    assert!(task.items[0].prompt.ends_with("assert f() != 0.5\n[BEGIN]\n"), "{}", task.items[0].prompt);
}
