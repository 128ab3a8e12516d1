//! Reads columns of every type as pyarrow, datasets and pandas write them. tests/reference/columns.py writes the files
//! and the expected values.

use crate::support::rows::{says, user};
use crate::support::{command, fixture};
use ft::data::chat::ChatTemplate;
use ft::data::inspect::survey_file;
use ft::data::rows::{Record, RowFormat, RowPurpose, RowReader, SourceSpec, read_rows};
use ft::data::source;
use ft::json;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn column_file(name: &str) -> PathBuf {
    fixture("columns").join(name)
}

fn rows(path: &Path) -> Vec<Record> {
    let files = source::files(path).unwrap();
    let rows = files.iter().flat_map(|f| read_rows(f, RowFormat::Auto, None).unwrap().1);
    rows.map(|row| row.record).collect()
}

fn said(record: &Record) -> Vec<&str> {
    let Record::Messages(talk) = record else { panic!("{record:?}") };
    talk.messages.iter().map(|m| m.content.as_str()).collect()
}

/// Compares two JSON values; numbers are equal if their values are, however they are written.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ if json::long_number(a).is_some() || json::long_number(b).is_some() => {
            json::long_number(a) == json::long_number(b)
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same(v, w)))
        }
        (Value::Number(x), Value::Number(y)) => x == y || (x.is_f64() || y.is_f64()) && x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

#[test]
fn unused_columns_may_have_any_type() {
    for name in ["beside.parquet", "beside.arrow", "beside.ipc"] {
        let path = column_file(name);
        let found = rows(&path);
        assert_eq!(found.iter().map(said).collect::<Vec<_>>(), [["q0", "a0"], ["q1", "a1"]], "{name}");
        let seen = survey_file(&path, &SourceSpec::file(&path, RowFormat::Auto), 1).unwrap();
        assert_eq!((seen.rows, seen.bad, seen.used_columns), (2, 0, vec!["messages".to_string()]), "{name}");
        assert!(seen.unused_columns.len() > 55 && seen.unused_columns.contains(&"decimal256".into()), "{name}");
        // Reading all columns fails with the name of the column that cannot be read.
        let e = source::for_each_chunk(&path, None, |_| Ok(())).unwrap_err();
        assert!(e.message().contains("column `bytes` cannot be read") && e.message().contains("binary"), "{e}");
    }
}

#[test]
fn column_values_equal_those_of_datasets_and_pyarrow() {
    let text = std::fs::read_to_string(column_file("expected.json")).unwrap();
    let expected = json::parse(&text).unwrap();
    for (name, least) in [("inside.parquet", 54), ("inside.ipc", 57)] {
        for (i, record) in rows(&column_file(name)).iter().enumerate() {
            let Record::Messages(talk) = record else { panic!("{record:?}") };
            let found = &talk.messages[0].extra["tool_calls"][0]["function"]["arguments"];
            let mut compared = 0;
            for (column, right) in expected["rows"][i].as_object().unwrap() {
                let ours = found.get(column).unwrap_or(&Value::Null);
                if name == "inside.parquet" && ["string_view", "binary_view", "interval"].contains(&column.as_str()) {
                    continue;
                }
                assert!(
                    same(ours, right),
                    "{name} row {i}, {column}: {} for {}",
                    json::to_text(ours),
                    json::to_text(right)
                );
                compared += 1;
            }
            assert!(compared >= least, "{name}: {compared}");
        }
    }
}

#[test]
fn files_and_folders_of_the_datasets_library_are_read() {
    let right = rows(&column_file("calls.jsonl"));
    let Record::Messages(talk) = &right[0] else { panic!() };
    assert_eq!(talk.messages[1].extra["tool_calls"][0]["function"]["arguments"], json!({ "city": "Paris" }));
    for name in ["calls.parquet", "saved/train", "saved/train/data-00000-of-00001.arrow"] {
        assert_eq!(rows(&column_file(name)), right, "{name}");
    }
    assert_eq!(rows(&column_file("saved/test")), right[1..]);
    let e = source::files(&column_file("saved")).unwrap_err();
    assert!(e.message().contains("train, test"), "{e}");
}

#[test]
fn a_pandas_frame_with_categories_is_read() {
    let path = column_file("pandas.parquet");
    let seen = survey_file(&path, &SourceSpec::file(&path, RowFormat::Auto), 3).unwrap();
    assert_eq!(seen.format, RowFormat::Unpaired);
    assert_eq!((seen.rows, seen.bad), (3, 1), "{:?}", seen.bad_rows);
    assert!(seen.bad_rows[0].contains("pandas.parquet:2") && seen.bad_rows[0].contains("`label` is null"));
    assert_eq!(seen.unused_columns, ["when"]);
}

/// Writes a file into a temporary folder. The folder is deleted when its handle is dropped.
fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[track_caller]
fn refused(name: &str, text: &str, words: &[&str]) {
    let (_folder, path) = file(name, text);
    let e = read_rows(&path, RowFormat::Auto, None).map(|(format, _)| format).unwrap_err();
    for word in words {
        assert!(e.to_string().contains(word), "{name}: no {word:?} in: {e}");
    }
}

#[test]
fn labels_are_read_or_refused_and_never_ignored() {
    let verdicts = |labels: &[&str]| {
        let row = |label: &&str| format!("{{\"prompt\": \"q\", \"completion\": \"a\", \"label\": {label}}}\n");
        let (_folder, path) = file("rows.jsonl", &labels.iter().map(row).collect::<String>());
        let found = rows_wanted(&path);
        found.map(|rows| rows.iter().map(|r| matches!(r, Record::Unpaired(v) if v.good)).collect::<Vec<bool>>())
    };
    let pairs = [
        ["true", "false"],
        ["1", "0"],
        ["1.0", "0.0"],
        ["\"good\"", "\"bad\""],
        ["\"Good\"", "\"BAD \""],
        ["\"True\"", "\"False\""],
        ["\"1.0\"", "\"0.0\""],
        ["\"desirable\"", "\"undesirable\""],
        ["\"chosen\"", "\"rejected\""],
        ["\"thumbs_up\"", "\"thumbs-down\""],
        ["\"yes\"", "\"no\""],
        ["\"👍\"", "\"👎\""],
    ];
    for labels in pairs {
        assert_eq!(verdicts(&labels).unwrap(), [true, false], "{labels:?}");
    }
    for (label, words) in [("null", "`label` is null"), ("\"maybe\"", "\"maybe\""), ("0.7", "0.7"), ("-1", "-1")] {
        let e = verdicts(&[label, "true"]).unwrap_err();
        assert!(e.message().contains(words) && e.to_string().contains("good/bad"), "{label}: {e}");
    }
    // A file of judged answers is not silently used as SFT data.
    for label in ["\"good\"", "null", "1.0", "\"maybe\"", "[1]"] {
        for row in [
            format!("{{\"prompt\": \"q\", \"completion\": \"a\", \"label\": {label}}}"),
            format!("{{\"messages\": [{{\"role\": \"assistant\", \"content\": \"a\"}}], \"kto_tag\": {label}}}"),
        ] {
            refused("rows.jsonl", &row, &["(good or bad)"]);
        }
    }
    let (_folder, path) = file("rows.csv", "prompt,completion,label\nq,a,good\nq,b,bad\n");
    assert_eq!(rows_wanted(&path).unwrap().len(), 2);
}

fn rows_wanted(path: &Path) -> ft::error::Result<Vec<Record>> {
    let reading = RowReader::of(path, &SourceSpec::file(path, RowFormat::Auto), RowPurpose::Verdicts)?;
    let mut all = Vec::new();
    source::for_each_selected_chunk(reading.wanted(), path, None, |chunk| {
        all.extend(reading.rows(chunk, path)?.into_iter().map(|row| row.record));
        Ok(())
    })?;
    Ok(all)
}

#[test]
fn rows_of_several_kinds_may_share_columns() {
    let row = |filled: Value| {
        let mut row = Map::new();
        for key in ["messages", "prompt", "completion", "chosen", "rejected"] {
            row.insert(key.into(), filled.get(key).cloned().unwrap_or_default());
        }
        Value::Object(row).to_string()
    };
    let formats = [
        (json!({ "messages": [{ "role": "user", "content": "q" }] }), RowFormat::Messages),
        (json!({ "prompt": "q", "completion": "a" }), RowFormat::PromptCompletion),
        (json!({ "prompt": "q", "chosen": "a", "rejected": "b" }), RowFormat::Preference),
    ];
    for (filled, format) in formats {
        let (_folder, path) = file("rows.jsonl", &row(filled));
        assert_eq!(survey_file(&path, &SourceSpec::file(&path, RowFormat::Auto), 0).unwrap().format, format);
    }
}

#[test]
fn json_over_several_lines_is_read() {
    let row = json!({ "messages": [{ "role": "user", "content": "q" }, { "role": "assistant", "content": "a}]{[" }] });
    let pretty = serde_json::to_string_pretty(&row).unwrap();
    let sound = [
        ("one.json", format!("{pretty}\n"), vec![1]),
        ("several.jsonl", format!("{pretty}\n{pretty}\n\n{pretty}"), vec![1, 13, 26]),
        ("close.json", format!("\u{feff}{pretty}{pretty}"), vec![1, 12]),
        ("list.json", format!(" [\n{pretty},\n{pretty}\n]"), vec![1, 2]),
        ("lists.jsonl", format!("[{row},\n{row}]\n[{row}]\n[]"), vec![1, 2, 3]),
        ("mixed.json", format!("{pretty}\n[{row}]"), vec![1, 2]),
        ("compact.json", row.to_string(), vec![1]),
    ];
    for (name, text, lines) in sound {
        let (_folder, path) = file(name, &text);
        let (_, found) = read_rows(&path, RowFormat::Auto, None).unwrap();
        assert_eq!(found.iter().map(|r| r.line).collect::<Vec<_>>(), lines, "{name}");
        assert!(found.iter().all(|r| said(&r.record) == ["q", "a}]{["]), "{name}");
        assert_eq!(read_rows(&path, RowFormat::Auto, Some(1)).unwrap().1.len(), 1, "{name}");
    }
}

#[test]
fn errors_name_the_file_and_the_line() {
    let row = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;
    let bad = "{\n  \"prompt\": \"q\",\n  \"completion\": oops\n}";
    refused("pretty.json", &format!("{row}\n").replace("}]}", "}\n]}").replace("q", "\\ud800 q"), &["lone surrogate"]);
    refused("word.json", bad, &["word.json:3:17: bad JSON"]);
    refused("second.json", &format!("[{row},\n{bad}]"), &["second.json:4:17: bad JSON"]);
    refused("comma.json", &format!("[{row},\n{row},\n]"), &["comma.json", "line 3", "a comma", "before the end"]);
    refused("commas.jsonl", &format!("{row},\n{row}\n"), &["commas.jsonl:1:", "a comma after the object"]);
    refused("between.json", "{\n\"text\": \"a\"\n},\n{\n\"text\": \"b\"\n}", &["line 3", "not in a list"]);
    refused("cut.json", &format!("[{row}, {}", &row[..40]), &["ends inside row 2", "line 1"]);
    refused("field.json", &format!("{{\n\"version\": 1,\n\"data\": [{row}]\n}}"), &["`data`", ".[\"data\"][]"]);
    refused(
        "nan.jsonl",
        r#"{"prompt": "q", "completion": "a", "score": NaN}"#,
        &["nan.jsonl:1:45", "NaN is not valid JSON"],
    );
    let surrogate = r#"{"prompt": "the \ud800 middle", "completion": "a"}"#;
    refused(
        "lone.jsonl",
        &format!("{{\"prompt\": \"q\", \"completion\": \"a\"}}\n{surrogate}"),
        &["lone.jsonl:2:", "\\ud800"],
    );
    let missing = r#"{"prompt": "two", "completion": null}"#;
    refused("null.jsonl", missing, &["null.jsonl:1", "`completion` is null"]);
    refused(
        "null.jsonl",
        &format!("{{\"prompt\": \"q\", \"completion\": \"a\"}}\n{missing}"),
        &["null.jsonl:2", "`completion` is null"],
    );
    refused("number.jsonl", r#"{"prompt": 5, "completion": "x"}"#, &["number.jsonl:1", "`prompt` is a number"]);
}

#[test]
fn a_pair_must_end_in_answers() {
    let pair =
        |chosen: Value, rejected: Value| json!({ "prompt": [user("q")], "chosen": chosen, "rejected": rejected });
    for (row, words) in [
        (pair(json!([says("a"), user("more?")]), json!([says("b")])), "`chosen` ends with a user turn"),
        (pair(json!([says("a")]), json!([says("b"), user("more?")])), "`rejected` ends with a user turn"),
        (
            json!({ "prompt": [user("q")], "completion": [says("a"), user("r")], "label": true }),
            "`completion` ends with a user turn",
        ),
    ] {
        let (_folder, path) = file("rows.jsonl", &row.to_string());
        let e = rows_wanted(&path).unwrap_err();
        assert!(e.message().contains(words) && e.message().contains("rows.jsonl:1"), "{e}");
    }
}

fn ft(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let out = command::ft(folder, arguments).output().unwrap();
    (out.status.success(), command::stdout(&out) + &command::stderr(&out))
}

#[test]
fn large_and_precise_numbers_are_written_unchanged() {
    let arguments = r#"{"id":12345678901234567890123,"n":-9223372036854775809,"u":18446744073709551615,"x":0.1234567890123456789,"y":1E400,"z":1.0}"#;
    let row = format!(
        r#"{{"messages":[{{"role":"user","content":"q"}},{{"role":"assistant","content":null,"tool_calls":[{{"type":"function","function":{{"name":"f","arguments":{arguments}}}}}]}}],"id":123456789012345678901234}}"#
    );
    let (folder, path) = file("rows.jsonl", &format!("{row}\n"));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let run = |arguments: &[&str]| {
        let (good, said) = ft(folder.path(), arguments);
        assert!(good, "{said}");
        said
    };
    run(&["data", "convert", "rows.jsonl", "--to", "messages", "--out", "same.jsonl"]);
    assert!(read("same.jsonl").contains(arguments), "{}", read("same.jsonl"));
    run(&["data", "convert", "rows.jsonl", "--to", "prompt-completion", "--out", "pc.jsonl"]);
    assert!(read("pc.jsonl").contains(arguments));
    run(&["data", "split", "rows.jsonl", "--train-out", "t.jsonl", "--valid-out", "v.jsonl"]);
    assert_eq!(read("t.jsonl") + &read("v.jsonl"), format!("{row}\n"));
    run(&["data", "scrub", "rows.jsonl", "--out", "s.jsonl"]);
    assert_eq!(read("s.jsonl"), format!("{row}\n"));
    assert!(run(&["data", "inspect", "rows.jsonl", "--json"]).contains("12345678901234567890123"));
    assert!(!ft(folder.path(), &["data", "scrub", "rows.jsonl", "--out", "s.parquet"]).0);
    // The text that a chat template renders.
    let template = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}|{{ c.function.arguments.id }}{% endfor %}{% endfor %}";
    let template = ChatTemplate::compile("t", template, &Map::new()).unwrap();
    let Record::Messages(talk) = &rows(&path)[0] else { panic!() };
    let spaced = arguments.replace(':', ": ").replace(',', ", ");
    assert_eq!(template.render(talk, 2, false).unwrap(), format!("{spaced}|12345678901234567890123"));
}

#[test]
fn tool_arguments_as_json_text_suit_both_kinds_of_template() {
    let call = |arguments: Value| {
        let call = json!([{ "id": "c", "type": "function", "function": { "name": "f", "arguments": arguments } }]);
        let row = json!({ "messages": [{ "role": "user", "content": "q" }, { "role": "assistant", "content": null, "tool_calls": call }] });
        let (_folder, path) = file("rows.jsonl", &row.to_string());
        let Record::Messages(talk) = rows(&path).remove(0) else { panic!() };
        talk
    };
    let render = |arguments: Value, written: &str| {
        let source = format!("{{% for c in messages[1].tool_calls %}}{written}{{% endfor %}}");
        let template = ChatTemplate::compile("t", &source, &Map::new()).unwrap();
        template.render(&call(arguments), 2, false)
    };
    let (text, object) = (json!("{\"city\":  \"Köln\"}"), json!({ "city": "Köln" }));
    let json_ = r#"{"city": "Köln"}"#;
    for arguments in [text.clone(), object.clone()] {
        assert_eq!(render(arguments.clone(), "{{ c.function.arguments | tojson }}").unwrap(), json_);
        let whole = render(arguments.clone(), "{{ c.function | tojson }}").unwrap();
        assert_eq!(whole, format!(r#"{{"name": "f", "arguments": {json_}}}"#));
        let keys = "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}";
        assert_eq!(render(arguments, keys).unwrap(), "city=Köln");
    }
    // A template that prints the arguments without `tojson` gets the original text.
    assert_eq!(render(text.clone(), "{{ '' ~ c.function.arguments }}").unwrap(), "{\"city\":  \"Köln\"}");
    let either = "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif %}";
    assert_eq!(render(text, either).unwrap(), "{\"city\":  \"Köln\"}");
    assert_eq!(render(json!("no object"), "{{ c.function.arguments | tojson }}").unwrap(), "\"no object\"");
}

#[test]
fn the_old_function_call_format_is_read() {
    let row = json!({
        "messages": [
            { "role": "user", "content": "weather?" },
            { "role": "assistant", "content": null, "function_call": { "name": "weather", "arguments": "{\"city\": \"Paris\"}" } },
            { "role": "function", "name": "weather", "content": "sunny" },
            { "role": "assistant", "content": "sunny", "function_call": null },
        ],
        "functions": [{ "name": "weather", "parameters": {} }],
    });
    let (_folder, path) = file("rows.jsonl", &row.to_string());
    let Record::Messages(talk) = rows(&path).remove(0) else { panic!() };
    let call = json!([{ "type": "function", "function": { "name": "weather", "arguments": "{\"city\": \"Paris\"}" } }]);
    assert_eq!(talk.messages[1].extra["tool_calls"], call);
    assert!(!talk.messages[1].extra.contains_key("function_call"));
    assert_eq!((talk.messages[2].role.as_str(), &talk.messages[2].extra["name"]), ("tool", &json!("weather")));
    assert_eq!(talk.tools, Some(json!([{ "type": "function", "function": { "name": "weather", "parameters": {} } }])));
    // All nested values as JSON text, as in CSV files and in columns of a single type.
    let text = |value: &Value| Value::from(value.to_string());
    let turns: Vec<Value> = row["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            let mut m = m.clone();
            if let Some(call) = m.get_mut("function_call").filter(|c| c.is_object()) {
                *call = text(call);
            }
            text(&m)
        })
        .collect();
    let spelt = json!({ "messages": turns, "functions": [text(&row["functions"][0])] });
    let (_folder, path) = file("rows.jsonl", &spelt.to_string());
    assert_eq!(rows(&path), [Record::Messages(talk)]);
}
