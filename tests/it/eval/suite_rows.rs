//! Which rows of a file a task asks, and what columns they have.

use ft::error::Result;
use ft::eval::results::ItemInfo;
use ft::eval::suite::preview;
use ft::recipe::suite_file::parse;
use std::path::Path;

/// Returns what a task asks of a file with this content.
fn asked(file: &str, content: &str, task: &str) -> Result<Vec<ItemInfo>> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), file, content);
    asked_in(folder.path(), file, task)
}

fn write(folder: &Path, file: &str, content: &str) {
    let path = folder.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn asked_in(folder: &Path, file: &str, task: &str) -> Result<Vec<ItemInfo>> {
    let data = folder.join(file);
    let text = format!("tasks:\n- name: a\n  data: {}\n{task}", data.display())
        .replace("FOLDER", &folder.display().to_string());
    preview(&parse("suite.yaml", &text)?.tasks[0], 9)
}

fn prompts(items: Result<Vec<ItemInfo>>) -> Vec<String> {
    items.unwrap().into_iter().map(|item| item.prompt).collect()
}

#[test]
fn rows_are_the_items_of_lists_within_lists() {
    let squad = r#"{"version": 1, "data": [
      {"title": "t1", "paragraphs": [{"text": "p1", "qas": [{"id": 1, "text": "q1"}, {"id": 2, "text": "q2"}]}, {"text": "p2", "qas": []}]},
      {"title": "t2", "paragraphs": [{"text": "p3", "qas": [{"id": 3, "text": "q3"}]}]}]}"#;
    let task = "  rows: data.paragraphs.qas\n  prompt: \"{{ title }} {{ paragraphs.text }} {{ text }} {{ version }}\"\n  \
                answer: \"{{ id }}\"\n  generate:\n";
    let found = asked("a.json", squad, task);
    assert_eq!(found.as_ref().unwrap().iter().map(|item| item.line).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(prompts(found), ["t1 p1 q1 1", "t1 p1 q2 1", "t2 p3 q3 1"]);
    // Each line of a file of lines has its own.
    let lines = "{\"p\": \"a\", \"qas\": [{\"q\": 1}, {\"q\": 2}]}\n{\"p\": \"b\", \"qas\": [{\"q\": 3}]}\n";
    let task = "  rows: qas\n  prompt: \"{{ p }}{{ q }}\"\n  answer: b\n  generate:\n";
    assert_eq!(prompts(asked("a.jsonl", lines, task)), ["a1", "a2", "b3"]);
    let map = r#"{"x": {"q": "one"}, "y": {"q": "two"}}"#;
    let task = "  rows: \"*\"\n  prompt: \"{{ key }} {{ q }}\"\n  answer: b\n  generate:\n";
    assert_eq!(prompts(asked("a.json", map, task)), ["x one", "y two"]);
    let list = "[{\"q\": 1},\n {\"q\": 2}]";
    assert_eq!(prompts(asked("a.json", list, "  prompt: \"{{ q }}\"\n  answer: b\n  generate:\n")), ["1", "2"]);
}

#[test]
fn lists_that_are_not_there_are_told() {
    let told = |content: &str, rows: &str| {
        let task = format!("  rows: \"{rows}\"\n  prompt: \"{{{{ q }}}}\"\n  answer: b\n  generate:\n");
        asked("a.json", content, &task).unwrap_err().to_string()
    };
    let found = told(r#"{"data": [{"qas": []}], "n": 1}"#, "dta");
    assert!(found.contains("a.json:1: `rows`: there is no list `dta`") && found.contains("`data`, `n`"), "{found}");
    assert!(told(r#"{"data": 7}"#, "data").contains("`data` is no list of rows, found 7"));
    assert!(told(r#"{"data": [7]}"#, "data").contains("an item of `data` has no columns, found 7"));
    assert!(told(r#"{"data": []}"#, "data").contains("no row is asked"));
    assert!(told("[1]", "data").contains("item 1 is no row"));
    assert!(told("{\"data\": [\n", "data").contains("a.json"), "neither a document nor lines");
}

const ROWS: &str = "{\"s\": \"x\", \"n\": 1}\n{\"s\": \"y\", \"n\": 2}\n{\"s\": \"x\", \"n\": 3}\n{\"s\": \"y\", \"n\": 4}\n{\"s\": \"x\", \"n\": 5}\n";

#[test]
fn rows_are_chosen_and_columns_computed() {
    let task = "  where: \"{{ s == 'x' }}\"\n  limit: 2\n  columns: { twice: \"{{ n * 2 }}\", more: \"{{ twice + 1 }}\" }\n  \
                prompt: \"{{ s }} {{ more }}\"\n  answer: \"{{ twice }}\"\n  generate:\n";
    let found = asked("a.jsonl", ROWS, task).unwrap();
    assert_eq!(found.iter().map(|item| item.line).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(found.iter().map(|item| item.prompt.as_str()).collect::<Vec<_>>(), ["x 3", "x 7"]);
    let told = |key: &str| {
        asked("a.jsonl", ROWS, &format!("  {key}\n  prompt: a\n  answer: b\n  generate:\n")).unwrap_err().to_string()
    };
    let found = told("where: \"{{ s }}\"");
    assert!(
        found.contains("a.jsonl:1: `where`: expected true or false, found") && found.contains("comparison"),
        "{found}"
    );
    assert!(told("where: \"{{ n > 9 }}\"").contains("no row is asked"));
    assert!(told("columns: { a: \"{{ m }}\" }").contains("a.jsonl:1: the template `{{ m }}`: 'm' is undefined"));
}

#[test]
fn some_rows_are_drawn_by_a_seed() {
    let lines = |limit: &str| {
        let task = format!("  limit: {limit}\n  prompt: \"{{{{ s }}}}\"\n  answer: \"{{{{ n }}}}\"\n  generate:\n");
        asked("a.jsonl", ROWS, &task).unwrap().iter().map(|item| item.line).collect::<Vec<_>>()
    };
    assert_eq!(lines("2"), [1, 2], "the first ones");
    let [two, three] = ["{ rows: 2, seed: 1 }", "{ rows: 3, seed: 1 }"].map(lines);
    assert!(two.len() == 2 && three.len() == 3 && three.is_sorted(), "{two:?} {three:?}");
    assert!(two.iter().all(|line| three.contains(line)), "{two:?} are not among {three:?}");
    assert_eq!(lines("{ rows: 9, seed: 1 }"), [1, 2, 3, 4, 5]);
    let draws: std::collections::BTreeSet<_> =
        (0..20).map(|seed| lines(&format!("{{ rows: 2, seed: {seed} }}"))).collect();
    assert!(draws.len() > 3, "other seeds draw other rows: {draws:?}");
}

#[test]
fn examples_are_of_the_same_group_or_given() {
    let task = |shots: &str| {
        format!(
            "  columns: {{ q: \"{{{{ s ~ n }}}}\" }}\n  prompt: \"{{{{ q }}}}\"\n  answer: \"{{{{ n }}}}\"\n  few_shot: {{ {shots}, separator: \", \" }}\n  generate:\n"
        )
    };
    let found = prompts(asked("a.jsonl", ROWS, &task("rows: 1, group: \"{{ s }}\"")));
    assert_eq!(found, ["x3 3, x1", "y4 4, y2", "x1 1, x3", "y2 2, y4", "x1 1, x5"]);
    let told = asked("a.jsonl", ROWS, &task("rows: 2, group: \"{{ s }}\"")).unwrap_err().to_string();
    assert!(told.contains("a.jsonl:2: 2 examples of the group `y` are wanted") && told.contains("has 1"), "{told}");
    // A column that an example has is not computed.
    let found = prompts(asked("a.jsonl", ROWS, &task("examples: [{ q: given, n: 7 }, { s: z, n: 8 }]")));
    assert_eq!(found[0], "given 7, z8 8, x1");
    let told = asked("a.jsonl", ROWS, &task("examples: [{ n: 7 }]")).unwrap_err().to_string();
    assert!(told.contains("few_shot.examples:1: the template `{{ s ~ n }}`: 's' is undefined"), "{told}");
}

#[test]
fn rows_of_several_files_know_theirs() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "in/a.json", "{\"examples\": [{\"q\": 1}, {\"q\": 2}]}");
    write(folder.path(), "in/b.json", "{\"examples\": [{\"q\": 3}]}");
    let task = "  rows: examples\n  prompt: \"{{ file.split('/')[-1] }} {{ q }}\"\n  answer: b\n  generate:\n";
    assert_eq!(prompts(asked_in(folder.path(), "in/*.json", task)), ["a.json 1", "a.json 2", "b.json 3"]);
    let told = asked_in(folder.path(), "in/a.json", task).unwrap_err().to_string();
    assert!(told.contains("'file' is undefined"), "{told}");
}
