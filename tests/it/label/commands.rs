//! Tests the commands `ft label new`, `import`, `annotator`, `tui` and `judge`.

use crate::support::command::stderr;
use crate::support::labeling::*;
use crate::support::needs::{SCRIPT, needs};
use ft::label::record::annotator::AnnotatorKind;
use ft::label::record::vote::VoteChoice;
use ft::label::store::Store;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn write(folder: &Path, name: &str, rows: &[Value]) -> PathBuf {
    let path = folder.join(name);
    let text: Vec<String> = rows.iter().map(Value::to_string).collect();
    let text = if name.ends_with(".json") { format!("[{}]", text.join(",\n")) } else { text.join("\n") };
    std::fs::write(&path, text).unwrap();
    path
}

/// Runs a command that must succeed and returns its stdout, parsed as JSON.
fn said(arguments: &[&str]) -> Value {
    let output = ft(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// Runs a command that must fail with exit code 1 and all of `said` in stderr.
fn refused(arguments: &[&str], said: &[&str]) {
    let output = ft(arguments).output().unwrap();
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    for part in said {
        assert!(stderr.contains(part), "{arguments:?}: {part} in {stderr}");
    }
}

#[test]
fn a_project_from_prompts_and_answers() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let rows = [
        json!({ "id": "a", "prompt": "Why?", "topic": "x" }),
        json!({ "prompt": [{ "role": "user", "content": "How?" }] }),
        json!({ "prompt": [{ "role": "user", "content": "How?" }] }),
    ];
    let prompts = write(folder.path(), "prompts.jsonl", &rows);
    std::fs::write(at("guide.md"), "Be *kind*.").unwrap();
    let (project, prompts) = (at("p.db"), prompts.to_str().unwrap());
    let options = [
        "--guidelines",
        &at("guide.md"),
        "--criterion",
        "kind:7",
        "--criterion",
        "true",
        "--strength",
        "--overlap",
        "3",
    ];
    let made = said(&[&["label", "new", &project, "--prompts", prompts, "--json"][..], &options].concat());
    assert_eq!((&made["prompts"], &made["duplicates"]), (&json!(2), &json!(1)));
    let store = Store::open(&project).unwrap();
    let settings = store.settings().unwrap();
    assert_eq!((settings.overlap, settings.strength, settings.guidelines.as_str()), (3, true, "Be *kind*."));
    assert_eq!(settings.criteria.iter().map(|c| c.best).collect::<Vec<_>>(), [7, 5]);
    assert_eq!(store.prompts().unwrap()[0].key, "a");
    let answers = [
        json!({ "prompt": "Why?", "response": "So.", "model": "m1" }),
        json!({ "prompt": "Why?", "responses": ["Thus.", "So."], "models": ["m2", "m1"] }),
        json!({ "prompt": "When?", "completion": "Now." }),
    ];
    let answers = write(folder.path(), "answers.jsonl", &answers);
    let import = ["label", "import", &project, answers.to_str().unwrap(), "--source", "me", "--json"];
    let added = said(&import);
    assert_eq!((&added["prompts"], &added["candidates"]), (&json!(1), &json!(3)), "{added}");
    assert_eq!((&said(&import)["prompts"], &said(&import)["candidates"]), (&json!(0), &json!(0)), "again adds nothing");
    let sources: Vec<String> = store.candidates().unwrap().into_iter().map(|c| c.source).collect();
    assert_eq!(sources, ["m1", "m2", "me"]);
    refused(&["label", "new", &project, "--prompts", prompts], &["already", "hint:"]);
    refused(&["label", "import", &at("none.db"), prompts], &["no such project", "ft label new"]);
}

#[test]
fn bad_prompts_make_no_project() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let cases: [(&str, &[Value], &str); 4] = [
        ("twice.jsonl", &[json!({ "id": 1, "prompt": "A" }), json!({ "id": 1, "prompt": "B" })], "twice.jsonl:2"),
        ("empty.jsonl", &[json!({ "prompt": "A" }), json!({ "prompt": " " })], "empty.jsonl:2"),
        ("other.jsonl", &[json!({ "speech": "A" })], "no prompts"),
        ("text.jsonl", &[json!({ "prompt": 5 })], "text.jsonl:1"),
    ];
    for (name, rows, part) in cases {
        let path = write(folder.path(), name, rows);
        refused(&["label", "new", &at("p.db"), "--prompts", path.to_str().unwrap()], &[part]);
    }
    refused(&["label", "new", &at("p.db"), "--prompts", &at("none.jsonl")], &["none.jsonl"]);
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .flatten()
        .filter(|f| f.path().extension().is_none_or(|e| e != "jsonl"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn exports_of_other_tools_are_imported_with_their_votes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let reply = |user: &str, value: &str| json!({ "user_id": user, "value": value, "status": "submitted" });
    let argilla = [json!({
        "external_id": "x1", "instruction": "Why?", "response-1": "A", "response-2": "B",
        "preference": [reply("u1", "response-1"), reply("u2", "tie")],
    })];
    let result = json!([{ "type": "pairwise", "value": { "selected": "right" } }]);
    let studio = [json!({
        "id": 9, "data": { "prompt": "How?", "answer1": "A", "answer2": "B" },
        "annotations": [{ "completed_by": 3, "result": result }],
    })];
    let files = [write(folder.path(), "argilla.jsonl", &argilla), write(folder.path(), "studio.json", &studio)];
    let prompts = write(folder.path(), "prompts.jsonl", &[json!({ "id": "mine", "prompt": "Why?" })]);
    let project = at("p.db");
    said(&["label", "new", &project, "--prompts", prompts.to_str().unwrap(), "--json"]);
    for (file, votes) in files.iter().zip([2, 1]) {
        let import = ["label", "import", &project, file.to_str().unwrap(), "--json"];
        let added = said(&import);
        assert_eq!(
            (&added["pairs"], &added["votes"], &added["candidates"]),
            (&json!(1), &json!(votes), &json!(2)),
            "{added}"
        );
        assert_eq!((&said(&import)["pairs"], &said(&import)["votes"]), (&json!(0), &json!(0)));
    }
    let store = Store::open(&project).unwrap();
    assert_eq!(store.prompts().unwrap().len(), 2, "a prompt that is known is not added under another id");
    let names: Vec<(String, AnnotatorKind)> =
        store.annotators().unwrap().into_iter().map(|a| (a.name, a.kind)).collect();
    let person = |name: &str| (name.to_string(), AnnotatorKind::Person);
    assert_eq!(names, [person("argilla:u1"), person("argilla:u2"), person("label-studio:3")]);
    let choices: Vec<VoteChoice> = store.votes().unwrap().iter().map(|v| v.choice).collect();
    assert_eq!(choices, [VoteChoice::A, VoteChoice::Tie, VoteChoice::B]);
    let bad = write(folder.path(), "bad.jsonl", &[json!({ "instruction": "Why?", "r": "A", "q": [reply("u", "x")] })]);
    refused(&["label", "import", &project, bad.to_str().unwrap()], &["bad.jsonl:1", "--answer"]);
}

#[test]
fn votes_can_be_given_in_the_terminal() {
    needs!(SCRIPT);
    let project = Project::new(4, 1);
    // `script` gives the program a terminal of its own.
    let line = format!("stty rows 30 cols 100; exec {FT} label tui {} --name ann", project.place);
    let mut child = Command::new("script")
        .args(["-qefc", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut keys = child.stdin.take().unwrap();
    let mut press = |text: &str, what: &str, test: &dyn Fn() -> bool| {
        let began = Instant::now();
        keys.write_all(text.as_bytes()).unwrap();
        keys.flush().unwrap();
        while !test() {
            assert!(began.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(30));
        }
    };
    let store = project.store();
    let count = || store.votes().unwrap().len();
    press("1", "a vote", &|| count() == 1);
    press("fnbecause\u{1b}", "a note is no vote", &|| count() == 1);
    std::thread::sleep(Duration::from_millis(300));
    press("t", "a tie", &|| count() == 2);
    press("u", "undone", &|| count() == 1);
    press("b", "both bad", &|| count() == 2);
    let last = store.votes().unwrap().pop().unwrap();
    assert_eq!((last.choice, last.flagged, last.note.as_deref()), (VoteChoice::BothBad, true, Some("because")));
    // While the terminal program runs, no server can be started for the project.
    refused(&["label", "serve", &project.place, "--address", "127.0.0.1:0"], &["being served already"]);
    press("q", "leave", &|| true);
    assert!(child.wait().unwrap().success());
    refused(&["label", "tui", &project.place], &["needs a terminal"]);
}

/// A judge without pairs has no votes and no habits, which scripts must be able to read.
#[test]
fn a_judge_without_pairs_prints_json() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = write(folder.path(), "prompts.jsonl", &[json!({ "prompt": "Why?" })]);
    let place = folder.path().join("p.db").to_str().unwrap().to_string();
    said(&["label", "new", &place, "--prompts", prompts.to_str().unwrap()]);
    let judged = said(&["label", "judge", &place, "--name", "cat", "--json", "--command", "cat"]);
    assert_eq!((&judged["judged"], &judged["judge"]), (&json!(0), &Value::Null), "{judged}");
    assert!(judged["project"].is_string());
}

/// A judge program works for 17 seconds without output and then fails. Progress is logged at fixed time intervals
/// meanwhile, and no progress line follows the error.
#[test]
fn long_work_logs_progress_and_nothing_after_an_error() {
    let project = Project::new(1, 1);
    let slow = ["--name", "slow", "--command", "sh", "-c", "sleep 17; exit 3"];
    let output = ft(&["label", "judge", &project.place]).args(slow).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    let place =
        |begin: &str| lines.iter().position(|l| l.starts_with(begin)).unwrap_or_else(|| panic!("{begin}: {said}"));
    assert!(place("pairs: 0/1, 1") < place("error:"), "{said}");
    assert_eq!(lines.iter().filter(|l| l.starts_with("pairs:")).count(), 1, "{said}");
    assert!(lines[place("error:") + 1..].iter().all(|l| !l.contains("pairs: ") && !l.starts_with("ft ")), "{said}");
}
