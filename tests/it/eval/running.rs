//! Suites as they are run: rows of all formats, bad rows, answers that are known already, orders of choices, samples.

use super::models::Subject;
use ft::eval::results::{SuiteResults, TaskResults};
use ft::eval::suite::cache::AnswerCache;
use std::path::Path;

fn write(folder: &Path, name: &str, text: &str) -> String {
    std::fs::write(folder.join(name), text).unwrap();
    folder.join(name).display().to_string()
}

/// Returns the results without the names of files.
fn numbers(mut results: SuiteResults) -> SuiteResults {
    results.tasks.iter_mut().for_each(|task| task.data.clear());
    results
}

const ROWS: &str = "{\"q\": \"Is it open?\", \"a\": \"yes\", \"b\": \"no\", \"l\": \"1\"}\n\
                    {\"q\": \"Is it closed on Monday?\", \"a\": \"never\", \"b\": \"no\", \"l\": \"0\"}\n";

fn choice(data: &str) -> String {
    format!(
        "tasks:\n- name: c\n  data: {data}\n  prompt: \"{{{{ q }}}}\"\n  category: \"{{{{ b }}}}\"\n  \
         choice: {{ choices: [\"{{{{ a }}}}\", \"{{{{ b }}}}\"], answer: \"{{{{ l }}}}\", metrics: [acc, acc_norm, ece] }}\n"
    )
}

#[test]
fn rows_of_all_formats_have_the_same_results() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let jsonl = subject.run(&choice(&write(folder.path(), "rows.jsonl", ROWS))).unwrap();
    let task: &TaskResults = &jsonl.tasks[0];
    assert_eq!((task.kind.as_str(), task.main_metric.as_str(), task.items.len()), ("choice", "acc", 2));
    assert_eq!(task.items[0].expected, ["no"]);
    assert_eq!(task.items[1].choices, ["never", "no"]);
    assert_eq!(task.items[1].category.as_deref(), Some("no"));
    assert!(!task.metrics.iter().find(|m| m.name == "ece").unwrap().is_mean);
    for (name, text) in [
        ("rows.csv", "q,a,b,l\nIs it open?,yes,no,1\nIs it closed on Monday?,never,no,0\n"),
        ("rows.tsv", "q\ta\tb\tl\nIs it open?\tyes\tno\t1\nIs it closed on Monday?\tnever\tno\t0\n"),
    ] {
        let mut found = numbers(subject.run(&choice(&write(folder.path(), name, text))).unwrap());
        for (item, expected) in found.tasks[0].items.iter_mut().zip(&task.items) {
            item.line = expected.line;
        }
        assert_eq!(found, numbers(jsonl.clone()), "{name}");
    }
}

#[test]
fn results_are_read_as_they_were_written() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let results = subject.run(&choice(&write(folder.path(), "rows.jsonl", ROWS))).unwrap();
    ft::eval::suite::write_results(folder.path(), &results).unwrap();
    let read: SuiteResults = ft::fsutil::read_json(&folder.path().join("results.json")).unwrap();
    assert_eq!(read, results);
    let lines = std::fs::read_to_string(folder.path().join("answers/c.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(lines.lines().nth(1).unwrap()).unwrap();
    assert_eq!(line["answers"]["tiny"]["text"], results.tasks[0].results[0].answers[1].text);
}

#[test]
fn known_answers_are_not_computed_again() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let rows = write(folder.path(), "rows.jsonl", ROWS);
    let suite = choice(&rows)
        + &format!(
            "- name: g\n  data: {rows}\n  prompt: \"{{{{ q }}}}\"\n  answer: \"{{{{ a }}}}\"\n  \
             generate: {{ metrics: [exact_match, f1, bleu], max_new_tokens: 5 }}\n\
             - name: t\n  data: {rows}\n  perplexity: {{ text: \"{{{{ q }}}}\" }}\n"
        );
    let path = folder.path().join("cache.jsonl");
    let first = subject.run_with(&suite, &mut AnswerCache::open(&path).unwrap()).unwrap();
    let lines = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
    // Two questions of two choices, two answers, two texts of one window.
    assert_eq!(lines(&path), 2 * 2 + 2 + 2);
    assert_eq!(subject.run_with(&suite, &mut AnswerCache::open(&path).unwrap()).unwrap(), first);
    assert_eq!(lines(&path), 8);
    // Interrupted after some answers: the others are computed, and all is as it was.
    let text = std::fs::read_to_string(&path).unwrap();
    let part: String = text.lines().take(5).map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, part + "{\"key\": \"half").unwrap();
    assert_eq!(subject.run_with(&suite, &mut AnswerCache::open(&path).unwrap()).unwrap(), first);
    assert_eq!(lines(&path), 8);
}

#[test]
fn an_order_of_choices_that_matters_is_told() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let row = |i: usize| {
        format!(
            "{{\"q\": \"Question {i} of the office\", \"o\": [\"yes\", \"no {i}\", \"perhaps\"], \"l\": {}}}\n",
            i % 3
        )
    };
    let rows = write(folder.path(), "rows.jsonl", &(0..12).map(row).collect::<String>());
    let suite = format!(
        "tasks:\n- name: o\n  data: {rows}\n  prompt: |-\n    {{{{ q }}}}{{% for c in shown %}}\n    {{{{ 'ABC'[loop.index0] }}}}. {{{{ c }}}}{{% endfor %}}\n    Answer:\n  \
         choice: {{ choices: \"{{{{ o }}}}\", answer: \"{{{{ l }}}}\", by: letter, shuffle: 5, metrics: [acc, acc_norm] }}\n"
    );
    let results = subject.run(&suite).unwrap();
    let task = &results.tasks[0];
    assert!(task.items[0].prompt.contains("A. yes\nB. no 0\nC. perhaps\nAnswer:"), "{}", task.items[0].prompt);
    let answers = &task.results[0].answers;
    let share = |name: &str| answers.iter().map(|a| a.scores[name]).sum::<f64>() / answers.len() as f64;
    for name in ["acc", "acc_norm", "acc_shuffled", "order_sensitivity"] {
        assert!((task.results[0].estimates[name].value - share(name)).abs() < 1e-12, "{name}");
    }
    // A random model goes by the letter, not by what it stands for.
    assert!(share("order_sensitivity") > 0.3, "{}", share("order_sensitivity"));
    assert_eq!(share("acc"), share("acc_norm"), "all letters have one character");
}

#[test]
fn samples_repeat_under_a_seed_and_may_vote() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let rows = write(folder.path(), "rows.jsonl", ROWS);
    let run = |samples: &str| {
        let suite = format!(
            "tasks:\n- name: g\n  data: {rows}\n  prompt: \"{{{{ q }}}}\"\n  answer: [\"{{{{ a }}}}\"]\n  generate: {{ max_new_tokens: 4, samples: {samples} }}\n"
        );
        let suite = suite.replace("[\"{{ a }}\"]", "\"{{ [a, b] }}\"");
        subject.run(&suite).unwrap().tasks.remove(0)
    };
    let task = run("{ answers: 5, temperature: 0.8, seed: 1 }");
    assert_eq!(task.items[0].expected, ["yes", "no"]);
    let answer = &task.results[0].answers[0];
    assert_eq!(answer.written.len(), 5);
    assert!(answer.written.iter().any(|text| *text != answer.written[0]), "{:?}", answer.written);
    assert!(answer.written.contains(&answer.text));
    assert_eq!(run("{ answers: 5, temperature: 0.8, seed: 1 }"), task);
    assert_ne!(run("{ answers: 5, temperature: 0.8, seed: 2 }").results, task.results);
    let means = run("{ answers: 5, temperature: 0.8, seed: 1, vote: false }");
    assert_eq!(means.results[0].answers[0].written, answer.written);
}

#[test]
fn conversations_are_asked_as_in_training() {
    let subject = Subject::tiny_llama();
    let suite = "tasks:\n- { name: chat, data: eval/chat.jsonl, limit: 3, generate: { metrics: [exact_match, f1] } }\n";
    let task = subject.run(suite).unwrap().tasks.remove(0);
    let rows = ft::eval::rows::EvalRow::read(Path::new("eval/chat.jsonl"), Some(3), &subject.tokenizer).unwrap();
    let (_, expected) = ft::eval::run::evaluate(&subject.model, &subject.tokenizer, &rows, None).unwrap();
    let texts = |of: Vec<&str>| of.iter().map(|text| text.to_string()).collect::<Vec<_>>();
    assert_eq!(
        texts(task.results[0].answers.iter().map(|a| a.text.as_str()).collect()),
        texts(expected.iter().map(|a| a.text.as_str()).collect())
    );
    assert_eq!(task.items[0].expected, [expected[0].expected.clone()]);
}

#[test]
fn strides_give_tokens_more_context() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let text = "The office is open on Monday and closed on Sunday.\n".repeat(30);
    let data = write(folder.path(), "text.txt", &text);
    let run = |settings: &str| {
        let suite = format!("tasks:\n- {{ name: t, data: {data}, perplexity: {{ {settings} }} }}\n");
        subject.run(&suite).unwrap().tasks.remove(0)
    };
    let (whole, strided) = (run("window: 64"), run("window: 64, stride: 16"));
    let of = |task: &TaskResults, name: &str| task.results[0].answers[0].scores[name];
    assert_eq!(of(&whole, "tokens"), of(&strided, "tokens"));
    assert_eq!(of(&whole, "bytes"), text.len() as f64);
    assert_ne!(of(&whole, "log_likelihood"), of(&strided, "log_likelihood"));
    let tokens = subject.tokenizer.encode(&text).unwrap().len() as f64;
    assert_eq!(of(&whole, "tokens"), tokens);
    let per_token = (-of(&whole, "log_likelihood") / tokens).exp();
    assert!((whole.results[0].estimates["token_perplexity"].value - per_token).abs() < 1e-9);
    let told = subject
        .run(&format!("tasks:\n- {{ name: t, data: {data}, perplexity: {{ window: 999 }} }}\n"))
        .unwrap_err()
        .to_string();
    assert!(told.contains("a window of 999 tokens, the model sees 256"), "{told}");
}

#[test]
fn bad_rows_are_told_before_anything_is_computed() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let told = |suite: &str| subject.run(suite).unwrap_err().to_string();
    let rows = write(folder.path(), "rows.jsonl", ROWS);
    let asked = |data: &str, more: &str| format!("tasks:\n- {{ name: x, data: {data}, {more} }}\n");
    let missing = told(&asked(&rows, "prompt: \"{{ question }}\", answer: \"{{ a }}\", generate: {}"));
    assert!(
        missing.contains("task `x`: ") && missing.contains("rows.jsonl:1: the template `{{ question }}`"),
        "{missing}"
    );
    assert!(missing.contains("the row has the columns `q`, `a`, `b`, `l`"), "{missing}");
    let empty = write(folder.path(), "empty.jsonl", "\n");
    assert!(told(&asked(&empty, "perplexity: {}")).contains("the file has no rows"));
    assert!(told(&asked("nowhere.jsonl", "perplexity: {}")).contains("nowhere.jsonl"));
    let failing = told(&asked(&rows, "prompt: \"{{ q + 1 }}\", answer: \"{{ a }}\", generate: {}"));
    assert!(failing.contains("rows.jsonl:1: the template `{{ q + 1 }}`"), "{failing}");
    let few = told(&asked(&rows, "prompt: \"{{ q }}\", answer: \"{{ a }}\", few_shot: { rows: 2 }, generate: {}"));
    assert!(few.contains("2 examples are wanted, the file has 1 rows for them"), "{few}");
    let long = told(&asked(&rows, "prompt: \"{{ q }}\", answer: \"{{ a }}\", generate: { max_new_tokens: 256 }"));
    assert!(long.contains("leave no room for a prompt, the model sees 256"), "{long}");
    let blank = write(folder.path(), "blank.jsonl", "{\"text\": \"\"}\n");
    assert!(told(&asked(&blank, "perplexity: {}")).contains("blank.jsonl:1: the text is empty"));
    let nothing = write(folder.path(), "n.jsonl", "{\"q\": \"x\", \"a\": []}\n");
    let none = told(&asked(&nothing, "prompt: \"{{ q }}\", answer: \"{{ a }}\", generate: {}"));
    assert!(none.contains("n.jsonl:1: the list of answers is empty"), "{none}");
}

#[test]
fn rows_of_one_question_are_right_together_and_texts_are_compared_by_words() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let words = ["card", "letter", "clinic", "sleep", "water", "heart", "doctor", "phone"];
    let row = |(i, word): (usize, &&str)| {
        serde_json::json!({"n": i / 2, "w": word, "l": i % 2, "t": [format!("the {word}"), format!("{word} of glass")]})
            .to_string()
            + "\n"
    };
    let rows: String = words.iter().enumerate().map(row).collect();
    let suite = format!(
        "tasks:\n- name: q\n  data: {}\n  prompt: \"Is it a {{{{ w }}}}?\"\n  choice:\n    choices: [\"no {{{{ w }}}}\", \"yes\"]\n    \
         answer: \"{{{{ l }}}}\"\n    question: \"{{{{ n }}}}\"\n    texts: \"{{{{ t }}}}\"\n    metrics: [question_em, text_f1, text_em, acc]\n",
        write(folder.path(), "rows.jsonl", &rows)
    );
    let task = subject.run(&suite).unwrap().tasks.remove(0);
    let answers = &task.results[0].answers;
    let value = |name: &str| task.results[0].estimates[name].value;
    let right: Vec<bool> = answers.iter().map(|answer| answer.scores["acc"] == 1.0).collect();
    let questions = right.chunks(2).filter(|both| both.iter().all(|right| *right)).count();
    assert_eq!(value("question_em"), questions as f64 / 4.0);
    assert!(!task.metrics[0].is_mean && task.main_metric == "question_em" && !task.order_shown);
    for (i, answer) in answers.iter().enumerate() {
        // Articles do not count: one word of one, against one of three.
        let f1 = if right[i] { 1.0 } else { 0.5 };
        assert_eq!(
            (answer.scores["text_f1"], answer.scores["text_em"]),
            (f1, f64::from(u8::from(right[i]))),
            "row {i}"
        );
    }
    assert_eq!((value("text_em"), value("text_f1")), (value("acc"), 0.5 + value("acc") / 2.0));
    let told = subject.run(&suite.replace("{{ t }}", "{{ w }}")).unwrap_err().to_string();
    assert!(told.contains("rows.jsonl:1: `texts` has 1 texts"), "{told}");
}

#[test]
fn letters_are_found_among_the_choices_of_each_row() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    let rows = "{\"q\": \"Where?\", \"c\": [\"a card\", \"LETTER\"], \"l\": \"(B)\"}\n{\"q\": \"Who?\", \"c\": [\"letter\", \"none\"], \"l\": \"(B)\"}\n";
    let suite = |letters: &str| {
        format!(
            "tasks:\n- name: t\n  data: {}\n  prompt: \"{{{{ q }}}}\"\n  answer: \"{{{{ l }}}}\"\n  generate:\n    max_new_tokens: 2\n    \
             extract: [{{ regex: '(?!)', otherwise: It is the letter. }}, {{ letter_of: \"{letters}\", regex: '(\\([A-Z]\\))', normalise: [case] }}]\n",
            write(folder.path(), "rows.jsonl", rows)
        )
    };
    let task = subject.run(&suite("{{ c }}")).unwrap().tasks.remove(0);
    let texts: Vec<&str> = task.results[0].answers.iter().map(|answer| answer.text.as_str()).collect();
    assert_eq!((texts, task.results[0].estimates["exact_match"].value), (vec!["(B)", "(A)"], 0.5));
    let told = |letters: &str| subject.run(&suite(letters)).unwrap_err().to_string();
    assert!(told("{{ q }}").contains("rows.jsonl:1: `letter_of` is no list"), "{}", told("{{ q }}"));
    assert!(told("{{ range(30) | list }}").contains("`letter_of` has 30 choices, there are 26 letters"));
}

/// The suite of SQuAD 2.0, whose metrics are those of the authors' script.
#[test]
fn a_question_without_an_answer_is_answered_by_unanswerable_or_nothing() {
    let (subject, folder) = (Subject::tiny_llama(), tempfile::tempdir().unwrap());
    std::fs::create_dir(folder.path().join("squad")).unwrap();
    let qa = |answers: &[&str]| {
        let answers: Vec<_> = answers.iter().map(|text| serde_json::json!({"text": text, "answer_start": 0})).collect();
        serde_json::json!({"question": "When?", "id": "1", "is_impossible": answers.is_empty(), "answers": answers})
    };
    let document = serde_json::json!({"data": [{"title": "A_b", "paragraphs": [{"context": "At nine.", "qas": [qa(&["nine", "at nine"]), qa(&[]), qa(&[])]}]}]});
    write(folder.path(), "squad/dev-v2.0.json", &document.to_string());
    let text = std::fs::read_to_string("eval/squad2.yaml").unwrap();
    let text = text
        .replace("eval/data/", &format!("{}/", folder.path().display()))
        .replace("max_new_tokens: 32", "max_new_tokens: 2");
    let run = |answer: &str| {
        // What the model wrote is replaced by a text of the test's own.
        let own = format!("extract: [{{ regex: '(?!)', otherwise: \"{answer}\" }}, {{ regex: '(?is)");
        subject.run(&text.replace("extract: [{ regex: '(?is)", &own)).unwrap().tasks.remove(0)
    };
    for (answer, text, values) in [
        ("Unanswerable.", "", [2.0 / 3.0, 2.0 / 3.0, 0.0, 0.0, 1.0, 1.0]),
        ("", "", [2.0 / 3.0, 2.0 / 3.0, 0.0, 0.0, 1.0, 1.0]),
        ("Nine!", "Nine!", [1.0 / 3.0, 1.0 / 3.0, 1.0, 1.0, 0.0, 0.0]),
        ("at ten", "at ten", [1.0 / 6.0, 0.0, 0.5, 0.0, 0.0, 0.0]),
    ] {
        let task = run(answer);
        assert!(task.results[0].answers.iter().all(|found| found.text == text), "{answer}");
        for (info, expected) in task.metrics.iter().zip(values) {
            let found = task.results[0].estimates[&info.name].value;
            assert!((found - expected).abs() < 1e-12, "{answer}: {} {found}, expected {expected}", info.name);
        }
        let categories: Vec<_> = task.items.iter().map(|item| item.category.as_deref().unwrap()).collect();
        assert_eq!(categories, ["answer", "no answer", "no answer"]);
    }
}
