//! The suites in eval/ on made-up rows in the layout in which each data set is published (tests/fixtures/published.json).

use crate::support::snapshot::assert_snapshot;
use crate::support::{json, root};
use ft::eval::suite::preview;
use ft::recipe::suite_file::parse;
use serde_json::{Map, Value};
use std::fmt::Write;
use std::path::Path;

/// Files of a repository have many rows, and examples are taken from them.
const ROWS: usize = 6;

/// Writes the rows of a file as JSON lines or TSV, and a document as it is.
fn write_rows(path: &Path, content: &Value) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text = match content {
        Value::Array(rows) if path.extension().is_some_and(|e| e == "tsv") => {
            let line = |row: &Value, cell: fn((&String, &Value)) -> String| {
                row.as_object().unwrap().iter().map(cell).collect::<Vec<_>>().join("\t") + "\n"
            };
            let lines =
                rows.iter().cycle().take(ROWS).map(|row| line(row, |(_, value)| value.as_str().unwrap().into()));
            line(&rows[0], |(key, _)| key.clone()) + &lines.collect::<String>()
        }
        Value::Array(rows) => rows.iter().cycle().take(ROWS).map(|row| format!("{row}\n")).collect(),
        document => serde_json::to_string_pretty(document).unwrap(),
    };
    std::fs::write(path, text).unwrap();
}

#[test]
fn every_suite_reads_its_files_as_they_are_published() {
    let published: Map<String, Value> = json("published.json");
    let folder = tempfile::tempdir().unwrap();
    // Parquet has the same columns; how it is read is tested with the readers.
    let local = |name: &str| folder.path().join(name.replace(".parquet", ".jsonl"));
    published.iter().for_each(|(name, content)| write_rows(&local(name), content));
    let mut suites: Vec<_> =
        std::fs::read_dir(root().join("eval")).unwrap().map(|entry| entry.unwrap().path()).collect();
    suites.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    suites.sort();
    let (mut shown, mut used) = (String::new(), String::new());
    for path in suites {
        let text = std::fs::read_to_string(&path).unwrap();
        if !text.contains("eval/data/") {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let own = text.replace("eval/data/", &format!("{}/", folder.path().display())).replace(".parquet", ".jsonl");
        let suite = parse(&name, &own).unwrap_or_else(|error| panic!("{error}"));
        for task in &suite.tasks {
            let items = preview(task, 2).unwrap_or_else(|error| panic!("{name}, {}: {error}", task.name));
            let item = &items[0];
            write!(shown, "== {name}, {}", task.name).unwrap();
            if let Some(category) = &item.category {
                write!(shown, ", category {category}").unwrap();
            }
            writeln!(shown, "\n{}\n-- choices {:?}\n-- expected {:?}\n", item.prompt, item.choices, item.expected)
                .unwrap();
        }
        used += &text;
    }
    for name in published.keys() {
        let pattern = name.rsplit_once('/').map(|(folder, _)| format!("{folder}/*.json")).unwrap();
        assert!(used.contains(name) || used.contains(&pattern), "no suite reads {name}");
    }
    assert_snapshot("ready-suites", &shown);
}
