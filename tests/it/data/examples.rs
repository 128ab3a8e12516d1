//! Tests how files of rows become tokenised examples: formats, chat templates, the mask of trained tokens, hostile
//! files.

use crate::support::files::jsonl;
use crate::support::fixture;
use crate::support::rows::{talk, tiny_tokenizer, with_template};
use ft::data::chat::ChatTokenizer;
use ft::data::dataset::{Dataset, EncodeOptions, Overflow};
use ft::data::encode::{Example, Supervise};
use ft::data::rows::{Record, RowFormat, read_rows};
use ft::data::{dataset, inspect};
use ft::error::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets").join(name)
}

fn options() -> EncodeOptions {
    EncodeOptions {
        supervise: Supervise::Assistant,
        max_len: 4096,
        on_overflow: Overflow::Error,
        overflow_tolerance: 0.0,
    }
}

/// A temporary folder for files, deleted when dropped.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn all(dataset: &Dataset) -> Vec<Example> {
    dataset.to_vec().unwrap()
}

fn load_rows(rows: &[Value], tokenizer: &ChatTokenizer, options: &EncodeOptions) -> Result<Dataset> {
    let scratch = Scratch::new();
    let text: String = jsonl(rows);
    dataset::load(&scratch.file("rows.jsonl", text), RowFormat::Auto, None, tokenizer, options)
}

/// Returns the text of each example with the tokens that are trained on between « and ».
fn masks(rows: &[Value], tokenizer: &ChatTokenizer, supervise: Supervise) -> Result<Vec<String>> {
    let dataset = load_rows(rows, tokenizer, &EncodeOptions { supervise, ..options() })?;
    all(&dataset).iter().map(|e| inspect::preview(e, tokenizer, false)).collect()
}

#[test]
fn token_ids_equal_transformers() {
    let tokenizer = tiny_tokenizer();
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(fixture("rows/ids.json")).unwrap()).unwrap();
    let last = EncodeOptions { supervise: Supervise::Last, ..options() };
    let chat = dataset::load(&own("chat.jsonl"), RowFormat::Auto, None, &tokenizer, &last).unwrap();
    assert_eq!(chat.len(), expected["chat"].as_array().unwrap().len());
    for (example, row) in all(&chat).iter().zip(expected["chat"].as_array().unwrap()) {
        assert_eq!(json!(example.ids), row[0]);
        let first = example.supervised.iter().position(|s| *s).unwrap();
        assert_eq!(json!(first), row[1], "line {}", example.line);
    }
    for pair in expected["pairs"].as_array().unwrap() {
        let dataset =
            load_rows(&[json!({ "prompt": pair["prompt"], "completion": pair["completion"] })], &tokenizer, &options())
                .unwrap();
        let example = &all(&dataset)[0];
        let prompt: Vec<u32> = serde_json::from_value(pair["prompt_ids"].clone()).unwrap();
        let joint: Vec<u32> = serde_json::from_value(pair["joint_ids"].clone()).unwrap();
        let text = format!("{}{}", pair["prompt"].as_str().unwrap(), pair["completion"].as_str().unwrap());
        // An example always starts with the ids of the prompt alone, which generation will see. If the ids of the
        // joined text start with them too, the joined ids are used.
        assert!(example.ids.starts_with(&prompt), "{text:?}");
        assert_eq!(dataset.summary.split_boundaries, usize::from(!joint.starts_with(&prompt)), "{text:?}");
        if joint.starts_with(&prompt) {
            assert_eq!(example.ids, joint, "{text:?}");
        }
        assert_eq!(tokenizer.decode(&example.ids, true).unwrap(), text);
        let learnt = example.supervised.iter().filter(|s| **s).count();
        assert_eq!(learnt, example.ids.len() - prompt.len().max(1), "{text:?}");
        assert_eq!(example.ids.last().copied(), tokenizer.eos());
    }
}

#[test]
fn answers_are_trained_on_including_their_end_token() {
    let rows = [talk(&[("system", "S"), ("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2 ")])];
    let frame = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n";
    let middle = "\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n";
    let tokenizer = tiny_tokenizer();
    assert_eq!(
        masks(&rows, &tokenizer, Supervise::Assistant).unwrap(),
        [format!("{frame}«1<|im_end|>»{middle}«2 <|im_end|>»\n")]
    );
    assert_eq!(
        masks(&rows, &tokenizer, Supervise::Last).unwrap(),
        [format!("{frame}1<|im_end|>{middle}«2 <|im_end|>»\n")]
    );
    let all = masks(&rows, &tokenizer, Supervise::All).unwrap();
    assert_eq!(all, [format!("<|im_start|>«{}1<|im_end|>{middle}2 <|im_end|>\n»", &frame[12..])]);
    assert_eq!(tokenizer.stop_ids(), [2]);
    assert_eq!(tokenizer.turn_end(), Some(2));
}

#[test]
fn a_weight_of_zero_excludes_a_turn() {
    let row = json!({ "messages": [
        { "role": "user", "content": "a" }, { "role": "assistant", "content": "b", "weight": 0 },
        { "role": "user", "content": "c" }, { "role": "assistant", "content": "d", "weight": 1 },
    ] });
    let text = masks(&[row], &tiny_tokenizer(), Supervise::Assistant).unwrap().remove(0);
    assert!(text.contains("\nb<|im_end|>\n") && text.contains("«d<|im_end|>»"), "{text}");
}

#[test]
fn templates_that_drop_earlier_thinking_give_one_example_per_turn() {
    let tokenizer = with_template("thinking.jinja").unwrap();
    let rows = [talk(&[
        ("user", "a"),
        ("assistant", "<think>\nx\n</think>\n\n1"),
        ("user", "b"),
        ("assistant", "<think>\ny\n</think>\n\n2"),
    ])];
    let found = masks(&rows, &tokenizer, Supervise::Assistant).unwrap();
    let first = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n";
    let second = "<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(
        found,
        [
            format!("{first}«<think>\nx\n</think>\n\n1<|im_end|>»\n"),
            format!("{first}1{second}«<think>\ny\n</think>\n\n2<|im_end|>»\n")
        ]
    );
}

#[test]
fn tool_calls_are_trained_on_and_tool_results_are_not() {
    let tokenizer = with_template("thinking.jinja").unwrap();
    let (format, rows) = read_rows(&fixture("rows/messages.jsonl"), RowFormat::Auto, None).unwrap();
    assert_eq!(format, RowFormat::Messages);
    assert_eq!(rows.len(), 3);
    let dataset = dataset::load(&fixture("rows/messages.jsonl"), format, None, &tokenizer, &options()).unwrap();
    let texts: Vec<String> = all(&dataset).iter().map(|e| inspect::preview(e, &tokenizer, false).unwrap()).collect();
    let whole = texts.join("\n====\n");
    assert!(whole.contains("«<think>\n\n</think>\n\n<tool_call>\n{\"name\": \"find_room\", \"arguments\": {\"day\": \"Mon\"}}\n</tool_call><|im_end|>»"), "{whole}");
    assert!(whole.contains("<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nRoom 3.<|im_end|>»"), "{whole}");
}

#[test]
fn text_after_the_stop_token_is_not_trained_on() {
    let row = [talk(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")])];
    // Every turn ends with the stop token. The template appends an end of text after the last one, which generation
    // never reaches, so it is not trained on.
    let scratch = Scratch::new();
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}";
    let path = scratch.file("t.jinja", source);
    let tokenizer = ChatTokenizer::load(&fixture("tiny-tokenizer"), Some(&path)).unwrap();
    let found = masks(&row, &tokenizer, Supervise::Assistant).unwrap();
    assert_eq!(found.len(), 1);
    assert!(
        found[0].contains("\n«b<|im_end|>»\n") && found[0].ends_with("\n«d<|im_end|>»\n<|endoftext|>"),
        "{found:?}"
    );
    // In this template <|end|> is not a token, and the template ends the text with the stop token. Each assistant turn
    // therefore becomes an example of its own.
    let found = masks(&row, &with_template("closing.jinja").unwrap(), Supervise::Assistant).unwrap();
    assert_eq!(found.len(), 2);
    assert!(found[0].ends_with("«b<|end|>\n<|im_end|>»") && found[1].ends_with("«d<|end|>\n<|im_end|>»"), "{found:?}");
}

#[test]
fn templates_that_drop_messages_or_never_stop_are_refused() {
    let scratch = Scratch::new();
    let load =
        |source: &str| ChatTokenizer::load(&fixture("tiny-tokenizer"), Some(&scratch.file("t.jinja", source))).unwrap();
    let row = [talk(&[("user", "a"), ("assistant", "b")])];
    // A template without any end of turn.
    let endless = load(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
    );
    let e = masks(&row, &endless, Supervise::Assistant).unwrap_err();
    assert!(e.message().contains("never learn to stop"), "{e}");
    // A template that ignores the system message.
    let deaf = load(
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    );
    let e = masks(&[talk(&[("system", "Important"), ("user", "a"), ("assistant", "b")])], &deaf, Supervise::Assistant)
        .unwrap_err();
    assert!(e.message().contains("message 1 (system): the chat template leaves it out"), "{e}");
    // Templates that ignore tool calls or their results.
    let called =
        json!({ "role": "assistant", "content": "", "tool_calls": [{ "function": { "name": "f", "arguments": {} } }] });
    let e = masks(
        &[json!({ "messages": [{ "role": "user", "content": "a" }, called] })],
        &tiny_tokenizer(),
        Supervise::Assistant,
    )
    .unwrap_err();
    assert!(e.message().contains("message 2 (assistant): the chat template leaves out what it says"), "{e}");
    let row = [talk(&[("user", "a"), ("tool", "lost"), ("assistant", "b")])];
    let e = masks(&row, &with_template("closing.jinja").unwrap(), Supervise::Assistant).unwrap_err();
    assert!(e.message().contains("message 2 (tool): the chat template leaves it out"), "{e}");
    // Role names of the ShareGPT format.
    let e = masks(&[talk(&[("human", "a"), ("gpt", "b")])], &tiny_tokenizer(), Supervise::Assistant).unwrap_err();
    assert!(e.message().contains("knows no role \"human\"") && e.hints()[0].contains("sharegpt"), "{e}");
}

#[test]
fn a_token_across_prompt_and_answer_is_split() {
    let scratch = Scratch::new();
    let spaced = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let tokenizer = ChatTokenizer::load(&fixture("tiny-tokenizer"), Some(&scratch.file("t.jinja", spaced))).unwrap();
    let row = talk(&[("user", "a"), ("assistant", "the answer")]);
    let dataset = load_rows(&[row], &tokenizer, &options()).unwrap();
    assert_eq!(dataset.summary.split_boundaries, 1);
    let example = &all(&dataset)[0];
    let prompt = tokenizer.encode("user: a<|im_end|>\nassistant: ").unwrap();
    assert!(example.ids.starts_with(&prompt), "the example does not start with the ids of the prompt alone");
    assert_eq!(
        inspect::preview(example, &tokenizer, false).unwrap(),
        "user: a<|im_end|>\nassistant: «the answer<|im_end|>»\n"
    );
    assert!(dataset.summary.warnings().iter().any(|w| w.contains("encoded apart")));
}

#[test]
fn every_file_format_gives_the_same_rows() {
    let tokenizer = with_template("thinking.jinja").unwrap();
    let load =
        |name: &str| dataset::load(&fixture("rows").join(name), RowFormat::Auto, None, &tokenizer, &options()).unwrap();
    let lines = load("messages.jsonl");
    for name in ["messages.json", "messages.parquet", "messages.arrow", "messages_stream.arrow"] {
        let other = load(name);
        assert_eq!(all(&other), all(&lines), "{name}");
        assert_eq!(other.summary.unused_columns, ["id"], "{name}");
        assert_eq!(other.summary.rows, 3);
    }
    let first =
        dataset::load(&fixture("rows/messages.parquet"), RowFormat::Auto, Some(1), &tokenizer, &options()).unwrap();
    assert_eq!(all(&first), all(&lines)[..1]);
    assert_eq!(first.summary.rows, 1);
    let (format, rows) = read_rows(&fixture("rows/alpaca.csv"), RowFormat::Auto, None).unwrap();
    assert_eq!(format, RowFormat::Alpaca);
    let Record::Alpaca(first) = &rows[0].record else { panic!("{rows:?}") };
    assert_eq!((first.input.as_deref(), first.output.as_str()), (Some("3, 4"), "007"));
    let Record::Alpaca(second) = &rows[1].record else { panic!("{rows:?}") };
    assert_eq!((second.instruction.as_str(), second.input.as_deref()), ("Say \"hi\",\nplease", None));
}

#[test]
fn every_row_format_gives_the_same_conversation() {
    let tokenizer = tiny_tokenizer();
    let expected =
        masks(&[talk(&[("system", "S"), ("user", "q"), ("assistant", "a")])], &tokenizer, Supervise::Assistant)
            .unwrap();
    let same = [
        json!({ "conversations": [{ "from": "system", "value": "S" }, { "from": "human", "value": "q" }, { "from": "gpt", "value": "a" }] }),
        json!({ "system": "S", "conversations": [{ "from": "human", "value": "q" }, { "from": "gpt", "value": "a" }] }),
        json!({ "system": "S", "instruction": "q", "input": "", "output": "a" }),
        json!({ "prompt": [{ "role": "system", "content": "S" }, { "role": "user", "content": "q" }], "completion": [{ "role": "assistant", "content": "a" }] }),
        json!({ "messages": "[{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]" }),
    ];
    for row in same {
        assert_eq!(masks(std::slice::from_ref(&row), &tokenizer, Supervise::Assistant).unwrap(), expected, "{row}");
    }
    let plain = masks(&[json!({ "text": "plain" })], &tokenizer, Supervise::Assistant).unwrap().remove(0);
    assert!(plain.ends_with("<|im_end|>»") && plain.replace(['«', '»'], "") == "plain<|im_end|>", "{plain}");
    let call = json!({ "conversations": [
        { "from": "human", "value": "room?" }, { "from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"n\": 1}}" },
        { "from": "observation", "value": "3" }, { "from": "gpt", "value": "Room 3" },
    ] });
    let texts = masks(&[call], &with_template("thinking.jinja").unwrap(), Supervise::Assistant).unwrap().join("\n");
    assert!(
        texts.contains("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 1}}\n</tool_call><|im_end|>»"),
        "{texts}"
    );
    assert!(texts.contains("<tool_response>\n3\n</tool_response>"), "{texts}");
}

#[test]
fn a_prompt_of_messages_is_never_trained_on() {
    let row = json!({ "prompt": [{ "role": "user", "content": "q" }, { "role": "assistant", "content": "old" }, { "role": "user", "content": "r" }],
                      "completion": [{ "role": "assistant", "content": "new" }] });
    let text = masks(&[row], &tiny_tokenizer(), Supervise::Assistant).unwrap().remove(0);
    assert_eq!(text.matches('«').count(), 1);
    assert!(text.ends_with("«new<|im_end|>»\n"), "{text}");
}

#[test]
fn shipped_data_sets_load() {
    let tokenizer = tiny_tokenizer();
    for (name, format, rows) in [
        ("chat.jsonl", RowFormat::Messages, 60),
        ("instruction.jsonl", RowFormat::Alpaca, 50),
        ("text.jsonl", RowFormat::Text, 50),
    ] {
        let dataset = dataset::load(&own(name), RowFormat::Auto, None, &tokenizer, &options()).unwrap();
        assert_eq!((dataset.summary.format, dataset.summary.rows, dataset.len()), (format, rows, rows), "{name}");
        assert_eq!(dataset.summary.tokens, all(&dataset).iter().map(|e| e.ids.len()).sum::<usize>());
        assert_eq!(inspect::find_duplicates(&dataset).groups, 0, "{name}");
        assert!(all(&dataset).iter().all(|e| !e.supervised[0] && e.target_count() > 0));
    }
    for (name, says) in [("preference.jsonl", "preference pairs"), ("prompts.jsonl", "prompts without answers")] {
        let e = read_rows(&own(name), RowFormat::Auto, None).unwrap_err();
        assert!(e.message().contains(says), "{e}");
    }
}

#[test]
fn too_long_rows_follow_the_policy() {
    let tokenizer = tiny_tokenizer();
    let rows: Vec<Value> = (0..10)
        .map(|i| talk(&[("user", "q"), ("assistant", &"word ".repeat(if i == 4 { 60 } else { 1 + i }))]))
        .collect();
    let with = |on_overflow, overflow_tolerance| {
        load_rows(&rows, &tokenizer, &EncodeOptions { max_len: 60, on_overflow, overflow_tolerance, ..options() })
    };
    let e = with(Overflow::Error, 0.05).unwrap_err();
    assert!(e.message().contains("1 of 10 examples (10.0 %) are longer than batch.max_len 60: lines 5 ("), "{e}");
    assert!(e.to_string().contains("set batch.max_len to") && e.to_string().contains("data.on_overflow"), "{e}");
    for policy in [Overflow::Drop, Overflow::Error] {
        let kept = with(policy, 0.2).unwrap();
        assert_eq!((kept.len(), kept.summary.dropped, kept.summary.too_long), (9, 1, 1));
        assert!(all(&kept).iter().all(|e| e.line != 5) && kept.summary.warnings()[0].contains("left out"));
    }
    let cut = with(Overflow::Truncate, 0.0).unwrap();
    assert_eq!((cut.len(), cut.summary.truncated, all(&cut)[4].ids.len()), (10, 1, 60));
    let split = with(Overflow::Split, 0.0).unwrap();
    let whole = load_rows(&rows, &tokenizer, &options()).unwrap();
    let pieces: Vec<u32> = all(&split).iter().filter(|e| e.line == 5).flat_map(|e| e.ids.clone()).collect();
    assert_eq!(pieces, all(&whole)[4].ids);
    assert_eq!(split.summary.split, 1);
    assert!(all(&split).iter().all(|e| e.ids.len() <= 60 && !e.supervised[0]));
}

#[test]
fn hostile_files_end_in_one_clear_error() {
    let scratch = Scratch::new();
    let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let second = |line: &str| format!("{good}\n{line}\n{good}\n").into_bytes();
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("cut.jsonl", second(r#"{"messages": [{"role": "user""#), &["cut.jsonl:2:", "bad JSON"]),
        ("comma.jsonl", second(r#"{"messages": [],}"#), &["comma.jsonl:2:17: bad JSON"]),
        ("list.jsonl", second(r#"["a"]"#), &["list.jsonl:2: expected a JSON object, found `[\"a\"]`"]),
        ("key.jsonl", second(r#"{"text": "a"}"#), &["key.jsonl:2: key `messages` is missing; found `text`"]),
        (
            "content.jsonl",
            second(r#"{"messages": [{"role": "user"}]}"#),
            &["content.jsonl:2: key `messages[0].content` is missing"],
        ),
        (
            "number.jsonl",
            second(r#"{"messages": [{"role": "user", "content": 3}]}"#),
            &["number.jsonl:2: key `messages[0].content` is a number, expected text"],
        ),
        (
            "string.jsonl",
            second(r#"{"messages": "hello"}"#),
            &["string.jsonl:2: key `messages` is text, expected a list"],
        ),
        ("none.jsonl", second(r#"{"messages": []}"#), &["none.jsonl:2: key `messages` has no message"]),
        (
            "asked.jsonl",
            second(r#"{"messages": [{"role": "user", "content": "a"}]}"#),
            &["asked.jsonl:2: no assistant turn"],
        ),
        (
            "mute.jsonl",
            second(r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}"#),
            &["mute.jsonl:2: key `messages[1].content` is empty"],
        ),
        (
            "surrogate.jsonl",
            second(r#"{"messages": [{"role": "user", "content": "\ud800"}]}"#),
            &["surrogate.jsonl:2:", "surrogate"],
        ),
        (
            "latin.jsonl",
            [good.as_bytes(), b"\n{\"text\": \"caf\xe9\"}\n"].concat(),
            &["latin.jsonl:2: not UTF-8 (byte 14"],
        ),
        ("empty.jsonl", vec![], &["empty.jsonl: the file has no rows"]),
        ("blank.jsonl", b"\n \n\n".to_vec(), &["blank.jsonl: the file has no rows"]),
        (
            "array.json",
            format!("[{good}, 3]").into_bytes(),
            &["array.json:2: expected a JSON object as row, found `3`"],
        ),
        ("cut.json", format!("[{good}, {good}").into_bytes(), &["cut.json: bad JSON", "row 3"]),
        ("fake.parquet", b"PAR1 not really".to_vec(), &["fake.parquet"]),
        ("fake.arrow", b"ARROW1".to_vec(), &["fake.arrow"]),
        ("latin.csv", b"prompt,completion\ncaf\xe9,b\n".to_vec(), &["latin.csv"]),
        ("ragged.csv", b"prompt,completion\na,b,c\n".to_vec(), &["ragged.csv"]),
        ("empty.csv", vec![], &["empty.csv"]),
        ("rows.txt", b"hello".to_vec(), &["rows.txt: unknown kind of file"]),
        ("rows.jsonl.gz", b"hello".to_vec(), &["compressed files are not supported"]),
        ("unknown.jsonl", b"{\"a\": 1, \"b\": 2}\n".to_vec(), &["found columns `a`, `b`", "no known row format"]),
    ];
    let tokenizer = tiny_tokenizer();
    for (name, bytes, says) in cases {
        let path = scratch.file(name, bytes);
        let e: Error = match dataset::load(&path, RowFormat::Auto, None, &tokenizer, &options()) {
            Ok(dataset) => panic!("{name} was read: {:?}", dataset.summary),
            Err(e) => e,
        };
        assert_eq!(e.exit_code(), 1, "{name}: {e}");
        for words in says {
            assert!(e.message().contains(words), "{name}: expected {words:?} in {:?}", e.message());
        }
    }
    let e = dataset::load(&scratch.0.path().join("absent.jsonl"), RowFormat::Auto, None, &tokenizer, &options())
        .unwrap_err();
    assert!(e.message().contains("absent.jsonl"), "{e}");
}

#[test]
fn unusual_but_valid_files_are_read() {
    let scratch = Scratch::new();
    let tokenizer = tiny_tokenizer();
    let row = r#"{"messages": [{"role": "user", "content": "ä\ud83d\ude42"}, {"role": "assistant", "content": "b"}]}"#;
    let text = format!("\u{feff}{row}\r\n\r\n{row}\r\n{row}");
    let dataset =
        dataset::load(&scratch.file("odd.jsonl", text), RowFormat::Auto, None, &tokenizer, &options()).unwrap();
    assert_eq!((dataset.summary.rows, dataset.summary.blank_lines), (3, 1));
    assert_eq!(all(&dataset).iter().map(|e| e.line).collect::<Vec<_>>(), [1, 3, 4]);
    let same = inspect::find_duplicates(&dataset);
    let lines: Vec<&str> = same.first[0].iter().map(|place| place.rsplit(':').next().unwrap()).collect();
    assert_eq!((same.groups, same.superfluous, lines), (1, 2, vec!["1", "3", "4"]));
    assert!(inspect::preview(&all(&dataset)[0], &tokenizer, false).unwrap().contains("ä🙂"));
    let array = format!("\u{feff} [{row},\n{row}]\n");
    assert_eq!(
        dataset::load(&scratch.file("odd.json", array), RowFormat::Auto, None, &tokenizer, &options())
            .unwrap()
            .summary
            .rows,
        2
    );
    // Keys that first appear after 300 rows, later than a reader that infers a schema would look.
    let mut text = format!("{row}\n").repeat(300);
    text += r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}], "late": true}"#;
    let (_, rows) = read_rows(&scratch.file("late.jsonl", text), RowFormat::Auto, None).unwrap();
    let Record::Messages(talk) = &rows[300].record else { panic!() };
    assert_eq!(talk.messages[1].extra["tool_calls"][0]["function"]["name"], "f");
    // A line of 10 MB.
    let long = json!({ "text": "all work and no play ".repeat(500_000) }).to_string();
    let (_, rows) = read_rows(&scratch.file("long.jsonl", long), RowFormat::Auto, None).unwrap();
    assert!(matches!(&rows[0].record, Record::Text(text) if text.len() == 10_500_000));
}

#[test]
fn a_duplicate_bos_token_is_an_error() {
    let scratch = Scratch::new();
    let dir = scratch.0.path().join("model");
    std::fs::create_dir(&dir).unwrap();
    for name in ["tokenizer.json", "generation_config.json"] {
        std::fs::copy(fixture("tiny-tokenizer").join(name), dir.join(name)).unwrap();
    }
    let config = json!({ "bos_token": { "content": "<|endoftext|>" }, "eos_token": "<|im_end|>", "chat_template": [
        { "name": "tools", "template": "{% nonsense" },
        { "name": "default", "template": "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}" } ] });
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = ChatTokenizer::load(&dir, None).unwrap();
    assert_eq!(tokenizer.bos(), Some(0));
    let e = masks(&[talk(&[("user", "<|endoftext|>a"), ("assistant", "b")])], &tokenizer, Supervise::Assistant)
        .unwrap_err();
    assert!(e.message().contains("rows.jsonl:1: begins with <|endoftext|> twice"), "{e}");
    assert!(masks(&[talk(&[("user", "a"), ("assistant", "b")])], &tokenizer, Supervise::Assistant).is_ok());
}

#[test]
fn streamed_decoding_gives_the_whole_text() {
    let tokenizer = tiny_tokenizer();
    let text = "Grüße 🙂, 体温 36.6 °C.\n  ok";
    let mut stream = tokenizer.stream();
    let mut pieces = Vec::new();
    for id in tokenizer.encode(text).unwrap() {
        pieces.extend(stream.push(id).unwrap());
    }
    assert_eq!(pieces.concat(), text);
    assert!(pieces.len() > 10 && pieces.iter().all(|p| !p.contains('\u{fffd}')), "{pieces:?}");
    assert_eq!(tokenizer.vocab_size(), 400);
}
