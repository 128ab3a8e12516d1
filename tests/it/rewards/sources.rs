//! Tests the sources of rewards: the number that each rule gives, and one clear error for every way in which a source
//! can fail.

use crate::support::files::jsonl;
use crate::support::rows::tiny_tokenizer;
use crate::support::{self, fixture};
use ft::data::dataset::{Overflow, PromptLimits, PromptRow, PromptSet};
use ft::data::rows::{RowFormat, SourceList, SourceSpec};
use ft::error::Result;
use ft::models::Model;
use ft::rewards::RewardSources;
use ft::rewards::source::RewardInput;
use ft::rewards::spec::RewardSourceSpec;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use tch::Kind;

fn model() -> Model {
    support::frozen(&fixture("tiny-llama"), Kind::Float)
}

fn row(columns: Value) -> PromptRow {
    let Value::Object(columns) = columns else { panic!("columns are an object") };
    PromptRow {
        ids: vec![5, 6],
        text: "What?".into(),
        columns,
        format: RowFormat::Auto,
        path: Arc::new("p.jsonl".into()),
        line: 7,
    }
}

fn specs(list: Value) -> Vec<RewardSourceSpec> {
    serde_json::from_value(list).unwrap()
}

/// Returns the rewards of answers to one data row: for each answer, one number per source.
fn rewards(list: Value, columns: Value, answers: &[&str]) -> Result<Vec<Vec<f64>>> {
    let mut rewards = RewardSources::open(&specs(list), "method.grpo.rewards")?;
    let row = row(columns);
    let scored: Vec<RewardInput> = answers
        .iter()
        .map(|a| RewardInput { prompt: &row, answer: a, ids: &[5, 6, 7, 8, 2], tokens: a.split_whitespace().count() })
        .collect();
    rewards.score(&model(), &scored)
}

/// Returns the rewards of a single source, one per answer.
fn one(spec: Value, columns: Value, answers: &[&str]) -> Result<Vec<f64>> {
    Ok(rewards(json!([spec]), columns, answers)?.into_iter().map(|r| r[0]).collect())
}

#[track_caller]
fn fails(found: Result<impl std::fmt::Debug>, parts: &[&str]) {
    let error = found.unwrap_err();
    assert_eq!(error.exit_code(), 1, "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "no {part:?} in: {error}");
    }
}

#[test]
fn each_rule_gives_its_documented_reward() {
    let exact = |spec: Value, answers: &[&str]| one(json!({ "exact": spec }), json!({ "answer": "Blue sky" }), answers);
    assert_eq!(exact(json!({}), &["Blue sky", " Blue sky\n", "blue sky", "Blue"]).unwrap(), [1.0, 1.0, 0.0, 0.0]);
    assert_eq!(exact(json!({ "ignore_case": true }), &["blue SKY"]).unwrap(), [1.0]);
    let after = json!({ "after": "####" });
    assert_eq!(exact(after, &["so #### no #### Blue sky", "Blue sky", "#### x"]).unwrap(), [1.0, 0.0, 0.0]);
    let any = one(json!({ "exact": { "column": "right" } }), json!({ "right": [4, "four"] }), &["4", "four", "5"]);
    assert_eq!(any.unwrap(), [1.0, 1.0, 0.0]);

    let overlap = one(json!({ "overlap": {} }), json!({ "answer": "Blue sky" }), &["The sky!", "blue, SKY", "red"]);
    assert_eq!(overlap.unwrap(), [0.5, 1.0, 0.0]);

    let regex = |spec: Value, answers: &[&str]| one(json!({ "regex": spec }), json!({ "n": 42 }), answers);
    assert_eq!(regex(json!({ "pattern": "^a+$" }), &["aaa", "ab"]).unwrap(), [1.0, 0.0]);
    let captured = json!({ "pattern": "answer is (\\d+)", "column": "n" });
    assert_eq!(regex(captured, &["the answer is 42.", "the answer is 41", "42"]).unwrap(), [1.0, 0.0, 0.0]);

    let tokens = one(json!({ "length": { "max": 2, "falloff": 2 } }), json!({}), &["a b", "a b c", "a b c d"]);
    assert_eq!(tokens.unwrap(), [1.0, 0.5, 0.0]);
    let characters = json!({ "length": { "unit": "characters", "min": 3 } });
    assert_eq!(one(characters, json!({}), &["äöü", "ab"]).unwrap(), [1.0, 0.0]);
}

#[test]
fn answers_are_validated_against_a_json_schema() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("schema.json");
    let schema = json!({ "type": "object", "required": ["n"], "properties": { "n": { "type": "integer" } } });
    std::fs::write(&path, schema.to_string()).unwrap();
    let spec = json!({ "json_schema": { "path": path, "parsed": 0.25 } });
    let answers = ["{\"n\": 3}", " {\"n\": \"3\"} ", "[1]", "{\"n\": 3", "hm"];
    assert_eq!(one(spec.clone(), json!({}), &answers).unwrap(), [1.0, 0.25, 0.25, 0.0, 0.0]);

    std::fs::write(&path, "{\"type\": 12}").unwrap();
    fails(one(spec.clone(), json!({}), &["{}"]), &["schema.json: not a valid JSON Schema"]);
    std::fs::write(&path, "{\"type\": ").unwrap();
    fails(one(spec.clone(), json!({}), &["{}"]), &["schema.json:1:"]);
    std::fs::write(&path, "{\"$ref\": \"http://example.org/s.json\"}").unwrap();
    fails(one(spec, json!({}), &["{}"]), &["not a valid JSON Schema"]);
    fails(one(json!({ "json_schema": { "path": "none.json" } }), json!({}), &["{}"]), &["none.json"]);
}

#[test]
fn several_rewards_are_summed_by_weight() {
    let list = json!([{ "exact": {}, "weight": 2 }, { "length": { "max": 1 }, "weight": -0.5, "name": "short" }]);
    let found = rewards(list.clone(), json!({ "answer": "a" }), &["a", "a b"]).unwrap();
    assert_eq!(found, [[1.0, 1.0], [0.0, 0.0]]);
    let rewards = RewardSources::open(&specs(list), "k").unwrap();
    assert_eq!(rewards.names().collect::<Vec<_>>(), ["exact", "short"]);
    assert_eq!((rewards.weighted_sum(&[1.0, 1.0]), rewards.weighted_sum(&[0.0, 1.0])), (1.5, -0.5));
}

#[test]
fn a_source_may_abstain() {
    let script = |text: &str| json!({ "command": { "run": ["sh", "-c", text], "timeout": 5 } });
    let list = json!([script("cat >/dev/null; echo 1; echo null; echo None"), { "length": { "max": 1 }, "weight": 2 }]);
    let found = rewards(list.clone(), json!({}), &["a", "b", "c"]).unwrap();
    assert_eq!((found[0][0], found[1][0].is_nan(), found[2][0].is_nan()), (1.0, true, true));
    let judges = RewardSources::open(&specs(list), "k").unwrap();
    let totals: Vec<f64> = found.iter().map(|row| judges.weighted_sum(row)).collect();
    assert_eq!(totals, [3.0, 2.0, 2.0], "a source that abstains must add nothing");
    let (url, asked) = server(vec![reply("200 OK", "{\"rewards\": [null, 0.5]}")]);
    let found = one(json!({ "http": { "url": url, "timeout": 10 } }), json!({}), &["a", "b"]).unwrap();
    assert_eq!((found[0].is_nan(), found[1]), (true, 0.5));
    asked.join().unwrap();
}

#[test]
fn mistakes_in_the_list_are_named() {
    let open = |list: Value| RewardSources::open(&specs(list), "method.grpo.rewards").map(drop);
    fails(open(json!([])), &["method.grpo.rewards: no reward"]);
    fails(open(json!([{ "exact": {} }, {}])), &["rewards[1]: a reward has one kind, found none", "known: exact"]);
    fails(open(json!([{ "exact": {}, "overlap": {} }])), &["found exact and overlap"]);
    fails(open(json!([{ "exact": {} }, { "exact": { "column": "b" } }])), &["`exact` already", "`name`"]);
    fails(open(json!([{ "exact": {}, "weight": 0 }])), &["every weight is 0"]);
    fails(open(json!([{ "exact": {}, "name": "a/b" }])), &["rewards[0]", "a/b"]);
    fails(open(json!([{ "regex": { "pattern": "(" } }])), &["rewards[0]", "not a regular expression"]);
    fails(open(json!([{ "length": {} }])), &["neither min nor max"]);
    fails(open(json!([{ "command": { "run": [] } }])), &["no program"]);
    fails(open(json!([{ "http": { "url": "https://x" } }])), &["plain HTTP"]);
}

#[test]
fn a_missing_column_is_found_with_its_row() {
    for list in [json!([{ "exact": { "column": "gold" } }]), json!([{ "regex": { "pattern": "x", "column": "gold" } }])]
    {
        fails(rewards(list, json!({ "prompt": "x" }), &["x"]), &["p.jsonl:7", "no column `gold`", "`prompt`"]);
    }
    fails(one(json!({ "exact": {} }), json!({ "answer": { "a": 1 } }), &["a"]), &["p.jsonl:7", "neither text"]);
    fails(one(json!({ "exact": {} }), json!({ "answer": [] }), &["a"]), &["an empty list"]);
}

fn script(text: &str) -> Value {
    json!({ "command": { "run": ["sh", "-c", text], "timeout": 5 } })
}

#[test]
fn a_command_reads_json_lines_and_writes_numbers() {
    // The script writes one number per line: 1.5 if the JSON object has this completion and this column, else -2.
    let text = r#"while read -r line; do case "$line" in *'"completion":"good"'*'"gold":"g"'*) echo 1.5;; *) echo -2;; esac; done"#;
    assert_eq!(one(script(text), json!({ "gold": "g" }), &["good", "bad"]).unwrap(), [1.5, -2.0]);
    // More input than the buffer of a pipe can take.
    let long = "x".repeat(10_000);
    let answers = vec![long.as_str(); 200];
    assert_eq!(one(script("while read -r l; do echo 1; done"), json!({}), &answers).unwrap(), vec![1.0; 200]);
}

#[test]
fn a_command_that_fails_says_why() {
    let fail = |text: &str, parts: &[&str]| fails(one(script(text), json!({}), &["a", "b"]), parts);
    fail("cat >/dev/null; echo it broke >&2; exit 3", &["reward `command`", "exit status: 3", "it broke"]);
    fail("exit 1", &["exit status: 1", "nothing to stderr"]);
    fail("kill -9 $$", &["signal: 9"]);
    fail("cat >/dev/null; echo 1", &["1 lines for 2 lines of input"]);
    fail("cat >/dev/null; echo 1; echo 2; echo 3", &["3 lines for 2 lines of input"]);
    fail("cat >/dev/null; echo 1; echo good", &["line 2", "\"good\"", "p.jsonl:7"]);
    fail("cat >/dev/null; echo 1; echo nan", &["NaN", "p.jsonl:7", "finite"]);
    fail("cat >/dev/null; echo inf; echo 1", &["inf", "finite"]);
    fail("yes", &["more than"]);
    let slow = json!({ "command": { "run": ["sleep", "30"], "timeout": 0.2 } });
    fails(one(slow, json!({}), &["a"]), &["did not end within 0.2 s", "timeout"]);
    let none = json!({ "command": { "run": ["/no/such/judge"] } });
    fails(one(none, json!({}), &["a"]), &["starting `/no/such/judge`"]);
}

/// A program that prints too much may ignore that its output is closed. It is ended at once, not at the timeout, and its
/// process is gone.
#[test]
fn a_command_that_prints_too_much_is_ended_at_once() {
    let space = tempfile::tempdir().unwrap();
    let file = space.path().join("pid");
    let text = format!(
        "trap '' PIPE; echo $$ >{}; yes 2>/dev/null | head -c 99999 2>/dev/null; exec sleep 30",
        file.display()
    );
    let command = json!({ "command": { "run": ["sh", "-c", text], "timeout": 20 } });
    let began = std::time::Instant::now();
    fails(one(command, json!({}), &["a", "b"]), &["more than"]);
    assert!(began.elapsed().as_secs() < 15, "{:?}", began.elapsed());
    let process = std::path::Path::new("/proc").join(std::fs::read_to_string(&file).unwrap().trim());
    assert!(!process.exists(), "{} still exists", process.display());
}

/// Starts a server that answers each connection with the next of `replies`. Returns its URL and a thread that ends with
/// the list of requests.
fn server(replies: Vec<String>) -> (String, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/score", listener.local_addr().unwrap());
    let serve = move || {
        let answer = |reply: &String| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let n = stream.read(&mut buffer).unwrap();
                asked.extend_from_slice(&buffer[..n]);
                let text = String::from_utf8_lossy(&asked).into_owned();
                let length = text
                    .to_lowercase()
                    .split("content-length: ")
                    .nth(1)
                    .and_then(|t| t.split("\r\n").next().map(|n| n.parse::<usize>().unwrap()));
                let body = text.split_once("\r\n\r\n").map(|(_, body)| body.len());
                if n == 0 || length.is_some_and(|length| body.is_some_and(|body| body >= length)) {
                    break;
                }
            }
            stream.write_all(reply.as_bytes()).unwrap();
            String::from_utf8_lossy(&asked).into_owned()
        };
        replies.iter().map(answer).collect()
    };
    (url, thread::spawn(serve))
}

fn reply(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn a_request_is_repeated_after_a_temporary_failure() {
    let replies = vec![reply("503 Busy", "later"), reply("200 OK", "{\"rewards\": [1, -0.5]}")];
    let (url, asked) = server(replies);
    let spec = json!({ "http": { "url": url, "timeout": 10, "retries": 1 } });
    assert_eq!(one(spec, json!({ "gold": "g" }), &["a", "b"]).unwrap(), [1.0, -0.5]);
    let asked = asked.join().unwrap();
    assert_eq!(asked.len(), 2);
    let body: Value = serde_json::from_str(asked[1].split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["query"], json!(["What?a", "What?b"]));
    assert_eq!((&body["prompts"][0], &body["completions"][1]), (&json!("What?"), &json!("b")));
    assert_eq!(body["columns"][0]["gold"], "g");
}

#[test]
fn a_server_that_fails_is_named() {
    let ask = |replies: Vec<String>, parts: &[&str]| {
        let count = replies.len() as u32;
        let (url, asked) = server(replies);
        let spec = json!({ "http": { "url": url, "timeout": 10, "retries": count - 1 } });
        fails(one(spec, json!({}), &["a", "b"]), parts);
        asked.join().unwrap();
    };
    ask(vec![reply("404 No", "nothing here")], &["/score", "404", "nothing here"]);
    ask(vec![reply("500 Bad", "x"), reply("500 Bad", "y")], &["(2 requests)", "500", "y"]);
    ask(vec![reply("200 OK", "hello")], &["not JSON"]);
    ask(vec![reply("200 OK", "{\"scores\": [1]}")], &["no list `rewards`"]);
    ask(vec![reply("200 OK", "{\"rewards\": [1]}")], &["1 rewards for 2 answers"]);
    ask(vec![reply("200 OK", "{\"rewards\": [1, \"good\"]}")], &["good", "p.jsonl:7"]);
    ask(vec![reply("302 Found\r\nlocation: http://127.0.0.1:1/", "")], &["302"]);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let spec = json!({ "http": { "url": format!("http://{closed}/"), "retries": 0 } });
    fails(one(spec, json!({}), &["a"]), &["is the server running"]);
}

fn prompts(lines: &[Value], room: PromptLimits) -> Result<PromptSet> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("rows.jsonl");
    std::fs::write(&path, jsonl(lines)).unwrap();
    PromptSet::open(&SourceList(vec![SourceSpec::file(path, RowFormat::Auto)]), &tiny_tokenizer(), room)
}

const ROOM: PromptLimits = PromptLimits { longest: 100, on_overflow: Overflow::Error, tolerance: 0.0 };

#[test]
fn prompts_keep_the_columns_of_their_rows() {
    let user = json!({ "role": "user", "content": "hello" });
    let talk = json!([user, { "role": "assistant", "content": "good day" }]);
    let found = prompts(&[json!({ "messages": talk, "level": 3 })], ROOM).unwrap();
    let row = &found.rows[0];
    assert_eq!((&row.columns["answer"], &row.columns["level"], row.line), (&json!("good day"), &json!(3), 1));
    assert_eq!(row.text, "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(tiny_tokenizer().decode(&row.ids, false).unwrap(), row.text);
    // A conversation without an answer is the prompt as a whole; the row's own column `answer` is kept.
    let asked = prompts(&[json!({ "messages": [user], "answer": "x" })], ROOM).unwrap();
    assert_eq!((&asked.rows[0].ids, &asked.rows[0].columns["answer"]), (&row.ids, &json!("x")));
    let task = prompts(&[json!({ "instruction": "hello", "output": "good" })], ROOM).unwrap();
    assert_eq!((&task.rows[0].ids, &task.rows[0].columns["answer"]), (&row.ids, &json!("good")));
    // Preference pairs have prompts, too.
    let pair = prompts(&[json!({ "prompt": "abc", "chosen": "d", "rejected": "e" })], ROOM).unwrap();
    assert_eq!(pair.rows[0].text, "abc");
    fails(prompts(&[json!({ "prompt": "a" }), json!({ "prompt": 3 })], ROOM), &["rows.jsonl:2", "prompt"]);
}

#[test]
fn a_prompt_is_never_truncated() {
    let lines = [json!({ "prompt": "a b c d e f g h i j k l m n o p" }), json!({ "prompt": "ab" })];
    let with = |on_overflow, tolerance| prompts(&lines, PromptLimits { longest: 8, on_overflow, tolerance });
    fails(with(Overflow::Error, 0.1), &["1 of 2 prompts (50.0 %)", "rows.jsonl:1", "batch.max_len", "drop"]);
    fails(with(Overflow::Truncate, 0.1), &["never cut"]);
    for kept in [with(Overflow::Drop, 0.0).unwrap(), with(Overflow::Error, 0.5).unwrap()] {
        assert_eq!((kept.len(), kept.rows[0].line, kept.summary.dropped), (1, 2, 1));
    }
}
