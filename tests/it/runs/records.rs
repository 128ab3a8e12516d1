//! Tests the records of a run through the real binary: TensorBoard events, report page, state, doctor, lock file and
//! replay.
//!
//! Each problem that the doctor detects is really caused, on the tiny model; a healthy run has no finding.

use crate::support::command::stderr;
use crate::support::needs::{BROWSER, needs};
use crate::support::webdriver::Driver;
use crate::support::workspace::Workspace;
use crate::support::{fixture, frozen, whole};
use ft::models::{Model, non_finite::NonFiniteStage};
use ft::runs::folder::{RunFolder, RunStatus};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tch::Kind;

/// A folder with the tiny model, a few rows and a recipe.
pub struct Space(Workspace);

impl std::ops::Deref for Space {
    type Target = Workspace;
    fn deref(&self) -> &Workspace {
        &self.0
    }
}

const RECIPE: &str = "# a tiny run
model:   { path: model, dtype: f32 }
method:
  sft:   {}
adapter:
  lora:  { rank: 8, alpha: 16, targets: all-linear }
data:
  train: { path: train.jsonl }
  valid: { path: valid.jsonl }
batch:   { tokens: 512, max_len: 256, examples: 4 }
optim:   { lr: 3e-3 }
run:     { epochs: 5, eval_every: 10, threads: 1, out: run }
";

impl Space {
    pub fn new() -> Self {
        let space = Self(Workspace::bare());
        std::fs::create_dir(space.path("model")).unwrap();
        for (folder, names) in [
            ("tiny-tokenizer", &["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"][..]),
            ("tiny-llama", &["config.json", "generation_config.json", "model.safetensors"]),
        ] {
            for name in names {
                std::fs::copy(fixture(folder).join(name), space.path("model").join(name)).unwrap();
            }
        }
        let rows = std::fs::read_to_string("datasets/chat.jsonl").unwrap();
        let rows: Vec<&str> = rows.lines().collect();
        std::fs::write(space.path("train.jsonl"), rows[..24].join("\n")).unwrap();
        std::fs::write(space.path("valid.jsonl"), rows[24..28].join("\n")).unwrap();
        std::fs::write(space.path("recipe.yaml"), RECIPE).unwrap();
        space
    }

    /// Trains with these `--set` settings; the run may fail.
    pub fn train(&self, out: &str, sets: &[&str]) -> Output {
        let out = format!("run.out={out}");
        let sets = sets.iter().copied().chain([out.as_str()]).flat_map(|s| ["--set", s]);
        self.command(&["train", "recipe.yaml"].into_iter().chain(sets).collect::<Vec<_>>()).output().unwrap()
    }

    fn show(&self, run: &str) -> Value {
        serde_json::from_slice(&self.ft(&["runs", "show", run, "--json"]).stdout).unwrap()
    }

    /// Returns the doctor's findings by id.
    fn findings(&self, run: &str) -> BTreeMap<String, Value> {
        let show = self.show(run);
        let found = show["findings"].as_array().unwrap();
        found.iter().map(|f| (f["id"].as_str().unwrap().to_string(), f.clone())).collect()
    }

    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

fn ids(findings: &BTreeMap<String, Value>) -> Vec<&str> {
    findings.keys().map(String::as_str).collect()
}

/// Parses a protobuf message into its fields: (field number, wire type, bytes of the value).
fn fields(mut data: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    fn number(data: &mut &[u8]) -> u64 {
        let (mut n, mut shift) = (0, 0);
        loop {
            let byte = data[0];
            *data = &data[1..];
            n |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return n;
            }
        }
    }
    let mut all = Vec::new();
    while !data.is_empty() {
        let key = number(&mut data);
        let length = match key & 7 {
            0 => {
                let n = number(&mut data);
                all.push((key >> 3, 0, n.to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            2 => number(&mut data) as usize,
            other => panic!("wire type {other}"),
        };
        all.push((key >> 3, key & 7, data[..length].to_vec()));
        data = &data[length..];
    }
    all
}

/// What TensorBoard would show of a folder. It reads the files in the order of their names, and a restart removes the
/// steps after it.
#[derive(Default)]
struct Board {
    files: usize,
    scalars: BTreeMap<String, Vec<(u64, f32)>>,
    texts: BTreeMap<String, String>,
}

fn board(folder: &Path) -> Board {
    let mut board = Board::default();
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for file in files {
        board.files += 1;
        let bytes = std::fs::read(&file).unwrap();
        let mut rest = bytes.as_slice();
        let masked = |b: &[u8]| crc32c::crc32c(b).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
        let mut first = true;
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]), "{}: checksum of a length", file.display());
            let data = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked(data), "{}: checksum of data", file.display());
            rest = &rest[16 + length..];
            let event = fields(data);
            let get = |n: u64| event.iter().find(|f| f.0 == n).map(|f| f.2.clone());
            let step = u64::from_le_bytes(get(2).unwrap().try_into().unwrap());
            assert!(
                f64::from_le_bytes(get(1).unwrap().try_into().unwrap()) > 1.6e9,
                "the wall time is no Unix time in seconds"
            );
            if std::mem::take(&mut first) {
                assert_eq!(get(3).unwrap(), b"brain.Event:2");
            }
            if let Some(session) = get(7) {
                assert_eq!(fields(&session)[0].2[0], 1, "SessionLog.START");
                board.scalars.values_mut().for_each(|v| v.retain(|(s, _)| *s < step));
            }
            for value in get(5).map_or(Vec::new(), |s| fields(&s)) {
                let value = fields(&value.2);
                let part = |n: u64| value.iter().find(|f| f.0 == n).map(|f| f.2.clone());
                let tag = String::from_utf8(part(1).unwrap()).unwrap();
                match part(2) {
                    Some(v) => {
                        let v = f32::from_le_bytes(v.try_into().unwrap());
                        board.scalars.entry(tag).or_default().push((step, v));
                    }
                    None => {
                        let text = fields(&part(8).unwrap()).into_iter().find(|f| f.0 == 8).unwrap().2;
                        board.texts.insert(tag, String::from_utf8(text).unwrap());
                    }
                }
            }
        }
    }
    board
}

/// Returns the only folder below `runs` in the folder of a run.
fn events(space: &Space, run: &str) -> PathBuf {
    let all: Vec<PathBuf> =
        std::fs::read_dir(space.path(run).join("runs")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

#[test]
fn every_record_of_a_run_agrees_with_its_metrics() {
    let space = Space::new();
    let output = space.train("run", &["run.samples=2"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = RunFolder::open(&space.path("run")).unwrap();
    let h = &run.history;
    assert_eq!((h.steps.len(), run.state), (30, RunStatus::Finished));
    assert_eq!(h.validations.iter().map(|v| v.step).collect::<Vec<_>>(), [0, 10, 20, 30]);

    let board = board(&events(&space, "run"));
    let expected: Vec<(u64, f32)> = h.steps.iter().map(|p| (p.step, p.loss as f32)).collect();
    assert_eq!(board.scalars["train/loss"], expected);
    let expected: Vec<(u64, f32)> = h.validations.iter().map(|v| (v.step, v.loss() as f32)).collect();
    assert_eq!(board.scalars["eval/loss"], expected);
    for tag in
        ["train/learning_rate", "train/grad_norm", "train/epoch", "train/mean_token_accuracy", "train/num_tokens"]
    {
        assert_eq!(board.scalars[tag].len(), 30, "{tag}");
    }
    assert!(board.texts["args/text_summary"].contains("rank: 8"), "{:?}", board.texts);
    assert!(board.texts["model_config/text_summary"].contains("hidden_size"));

    let state: Value = serde_json::from_str(&space.text("run/trainer_state.json")).unwrap();
    assert_eq!((state["global_step"].clone(), state["max_steps"].clone()), (json!(30), json!(30)));
    assert_eq!(state["num_train_epochs"], 5);
    let history = state["log_history"].as_array().unwrap();
    assert_eq!(history.iter().filter(|o| o.get("loss").is_some()).count(), 30);
    assert_eq!(history.iter().filter(|o| o.get("eval_loss").is_some()).count(), 4);
    assert!(history.windows(2).all(|w| w[0]["step"].as_u64() <= w[1]["step"].as_u64()));

    let steps: BTreeSet<u64> = run.samples.iter().map(|s| s.step).collect();
    assert_eq!(steps, BTreeSet::from([0, 10, 20, 30]));
    assert!(run.samples.iter().all(|s| s.expected.is_some()));

    let listed: Value = serde_json::from_slice(&space.ft(&["runs", "list", "--json"]).stdout).unwrap();
    let listed = &listed[0];
    assert_eq!(
        (&listed["state"], &listed["steps"], &listed["adapter"]),
        (&json!("finished"), &json!(30), &json!("lora r8"))
    );
    assert_eq!(listed["best_value"].as_f64(), h.best().map(|b| b.loss()));
    let shown = String::from_utf8(space.ft(&["runs", "show", "run"]).stdout).unwrap();
    assert!(shown.contains("30 of 30") && shown.contains('█') && shown.contains("before: "), "{shown}");
    assert_eq!(ids(&space.findings("run")), [] as [&str; 0], "a healthy run");
    assert!(!stderr(&output).contains("try: "), "{}", stderr(&output));
}

/// Texts and names from a model may be hostile: none of them becomes markup, and the page loads nothing from elsewhere.
#[test]
fn the_report_is_one_file_and_texts_of_a_model_stay_text() {
    let space = Space::new();
    assert!(space.train("run", &["run.steps=3", "run.samples=1"]).status.success());
    // As transformers' Trainer: the epochs that three of the six steps of an epoch begin, not run.epochs.
    let state: Value = serde_json::from_str(&space.text("run/trainer_state.json")).unwrap();
    assert_eq!(state["num_train_epochs"], 1);
    let nasty = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u{0}\"'";
    let line = json!({"step": 3, "prompt": nasty, "text": format!("{nasty} $x^2$"), "expected": nasty});
    std::fs::write(space.path("run/samples.jsonl"), format!("{line}\n")).unwrap();
    std::fs::write(space.path("run/eval.json"), json!({ nasty: nasty, "exact_match": 0.5 }).to_string()).unwrap();
    space.ft(&["runs", "report", "run"]);
    let page = space.text("run/report.html");
    assert!(page.contains("onerror=alert(2)&gt;") && page.contains("exact_match"));
    assert_eq!(page.matches("<script").count(), 1, "scripts other than ours");
    assert!(!page.contains("<img") && page.contains("default-src 'none'"));
    assert!(page.contains("<bdi title=\"$x^2$\"><math") && page.contains("<msup>"), "formulas are shown");
    let count = |what: &str| page.matches(what).count();
    assert_eq!(count("http"), count("http-equiv"), "the page refers to another place");
    assert!(page.contains("<path class=\"train") && page.contains("longest allowed"), "curves and lengths");
    let elsewhere = space.path("page.html");
    space.ft(&["runs", "report", "run", "--out", elsewhere.to_str().unwrap()]);
    assert!(elsewhere.exists());
}

/// The report of a run in a browser: prompts are shown turn by turn, each text has the writing direction of its script,
/// and characters that would reverse the text are shown as codes.
#[test]
fn the_report_shows_turns_and_every_script_in_a_browser() {
    needs!(BROWSER);
    let space = Space::new();
    assert!(space.train("run", &["run.steps=3", "run.samples=2"]).status.success());
    // The samples that the run itself wrote: questions of datasets/chat.jsonl as turns.
    let run = RunFolder::open(&space.path("run")).unwrap();
    for sample in &run.samples {
        let turns = sample.turns.as_ref().expect("the tiny template separates turns");
        assert!(turns.iter().all(|t| !t.text.contains("<|")), "{turns:?}");
        assert_eq!(turns.last().unwrap().role, "user");
        assert!(sample.prompt.contains(turns.last().unwrap().text.lines().last().unwrap()), "{sample:?}");
    }
    let (urdu, english) = ("پاکستان کا دارالحکومت کون سا ہے؟", "What is it called?");
    let turn = |role: &str, text: &str| json!({ "role": role, "text": text });
    let turns =
        [turn("system", "آپ مددگار ہیں۔"), turn("user", urdu), turn("assistant", "Islamabad."), turn("user", english)];
    let line = |step: u64, text: &str| json!({ "step": step, "prompt": "system آپ user", "turns": turns, "text": text, "expected": "invoice\u{202e}fdp.exe is safe." });
    let lines = [line(0, "…"), line(3, "اسلام آباد۔\nIn English: Islamabad, $33.7^\\circ$ N.")];
    std::fs::write(space.path("run/samples.jsonl"), lines.map(|l| format!("{l}\n")).concat()).unwrap();
    space.ft(&["runs", "report", "run"]);
    let shown = String::from_utf8(space.ft(&["runs", "show", "run"]).stdout).unwrap();
    assert!(shown.contains(english) && !shown.contains('\u{202e}'), "{shown}");
    let driver = Driver::start();
    let browser = driver.open(1200, 1400);
    browser.go(&format!("file://{}", space.path("run/report.html").display()));
    browser.value("document.querySelector('.sample').scrollIntoView()");
    browser.picture("report");
    let of = |what: &str| browser.value(&format!("[...document.querySelectorAll('{what}')].map((e) => e.innerText)"));
    assert_eq!(of(".sample .turn h4"), json!(["Instruction", "Question", "Earlier answer", "Question"]));
    assert_eq!(of(".sample .turn .text")[3], english);
    let direction = browser
        .value("[...document.querySelectorAll('.sample .turn .text')].map((e) => getComputedStyle(e).direction)");
    assert_eq!(direction, json!(["rtl", "rtl", "ltr", "ltr"]));
    assert_eq!(of(".answer.expected .text"), json!(["invoiceU+202Efdp.exe is safe."]));
    assert_eq!(browser.value("document.querySelectorAll('.answer.after math > msup').length"), 1);
    assert_eq!(browser.value("document.documentElement.scrollWidth <= innerWidth"), true);
    browser.dark(true);
    browser.picture("report-dark");
    assert_eq!(browser.log(), "", "nothing was blocked, nothing failed");
}

#[test]
fn the_state_of_a_run_is_known_and_a_resumed_run_has_each_step_once() {
    let space = Space::new();
    let sets = ["run.epochs=60", "run.eval_every=0", "run.samples=0", "run.save_every=5", "run.eval_at_start=false"];
    let arguments = |more: &[&'static str]| {
        let sets = sets.iter().flat_map(|s| ["--set", *s]);
        ["train", "recipe.yaml"].into_iter().chain(sets).chain(more.iter().copied()).collect::<Vec<&str>>()
    };
    let begin = |more: &[&'static str], until: usize| {
        let child = space.command(&arguments(more)).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        let lines = || std::fs::read_to_string(space.path("run/metrics.jsonl")).map_or(0, |t| t.lines().count());
        while lines() < until {
            assert!(began.elapsed() < Duration::from_secs(120), "no step in two minutes");
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    };
    let signal = |name: &str, child: &mut std::process::Child| {
        assert!(Command::new("sh").args(["-c", &format!("kill {name} {}", child.id())]).status().unwrap().success());
        child.wait().unwrap();
    };
    let state = || RunFolder::open(&space.path("run")).unwrap().state;
    let mut child = begin(&[], 7);
    assert_eq!(state(), RunStatus::Running);
    signal("-KILL", &mut child);
    assert_eq!(state(), RunStatus::Crashed);
    let saved = |n: u64| space.path(&format!("run/checkpoints/step-{n}")).exists();
    assert!(saved(5), "the checkpoint of step 5 is missing");
    let reached = RunFolder::open(&space.path("run")).unwrap().history.last_step() as usize;
    let mut child = begin(&["--resume"], reached + 3);
    signal("-TERM", &mut child);
    assert_eq!(state(), RunStatus::Interrupted);
    space.ft(&arguments(&["--resume"]));
    let run = RunFolder::open(&space.path("run")).unwrap();
    assert_eq!((run.state, run.history.steps.len(), run.resumed_steps().len()), (RunStatus::Finished, 360, 2));
    let board = board(&events(&space, "run"));
    assert_eq!(board.files, 3);
    let steps: Vec<u64> = board.scalars["train/loss"].iter().map(|(s, _)| *s).collect();
    assert_eq!(steps, (1..=360).collect::<Vec<_>>());
    assert_eq!(
        space.text("run/report.html").matches("class=\"resumed\"").count(),
        2 * 6,
        "marks in each of six charts"
    );
}

#[test]
fn a_replay_gives_the_same_bits_and_drift_is_explained() {
    let space = Space::new();
    let dropout = ["run.steps=6", "run.samples=0", "run.eval_every=3", "adapter.lora.dropout=0.1"];
    assert!(space.train("run", &dropout).status.success());
    let again = space.ft(&["replay", "run", "--json"]);
    let done: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&done["equal"], &done["drift"]), (&json!(true), &json!([])));
    let file = "adapter_model.safetensors";
    assert_eq!(
        std::fs::read(space.path("run").join(file)).unwrap(),
        std::fs::read(space.path("run-replay").join(file)).unwrap()
    );
    assert!(stderr(&again).contains("bit for bit"));

    // First a tokenizer file with the same meaning in other bytes, then other rows.
    let config = space.text("model/tokenizer_config.json");
    std::fs::write(space.path("model/tokenizer_config.json"), format!("{config}\n")).unwrap();
    let refused = space.command(&["replay", "run", "--out", "second"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let text = stderr(&refused);
    assert!(text.contains("tokenizer: tokenizer_config.json: was ") && text.contains("can change"), "{text}");
    assert!(text.contains("--accept-drift") && !space.path("second").exists(), "{text}");
    let accepted = space.ft(&["replay", "run", "--out", "second", "--accept-drift", "--json"]);
    let done: Value = serde_json::from_slice(&accepted.stdout).unwrap();
    assert_eq!((&done["equal"], done["drift"].as_array().unwrap().len()), (&json!(true), 1));

    let rows = space.text("train.jsonl");
    std::fs::write(space.path("train.jsonl"), rows.lines().skip(1).collect::<Vec<_>>().join("\n")).unwrap();
    let done = space.ft(&["replay", "run", "--out", "third", "--accept-drift", "--json"]);
    let done: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(done["equal"], json!(false), "other rows must give another result");
    assert!(done["drift"].as_array().unwrap().iter().any(|d| d["item"] == "training rows"), "{done}");
}

#[test]
fn a_diff_names_what_differs_and_nothing_else() {
    let space = Space::new();
    let sets = ["run.steps=3", "run.samples=0"];
    assert!(space.train("a", &sets).status.success());
    assert!(space.train("b", &[&sets[..], &["optim.lr=1e-4"]].concat()).status.success());
    let found: Value = serde_json::from_slice(&space.ft(&["runs", "diff", "a", "b", "--json"]).stdout).unwrap();
    let items = |group: &str| -> Vec<&str> {
        let of = found.as_array().unwrap().iter().filter(|d| d["group"] == group);
        of.map(|d| d["item"].as_str().unwrap()).collect()
    };
    assert_eq!(items("settings"), ["optim.lr"]);
    assert_eq!(items("contents"), [] as [&str; 0]);
    assert_eq!(items("computed by"), [] as [&str; 0]);
    assert!(items("results").contains(&"result: adapter_model.safetensors"), "{found}");
    let text = String::from_utf8(space.ft(&["runs", "diff", "a", "b"]).stdout).unwrap();
    assert!(text.contains("optim.lr") && text.contains("0.0001"), "{text}");

    // Files that the method reads, and the tokens that rows became, are contents too.
    let path = space.path("b/ft.lock");
    let mut lock: Value = serde_json::from_str(&space.text("b/ft.lock")).unwrap();
    lock["method"]["method.dpo.reference: model.safetensors"] = json!({ "sha256": "ab", "bytes": 1 });
    lock["train"]["tokens_sha256"] = json!("cd");
    std::fs::write(path, lock.to_string()).unwrap();
    let found: Value = serde_json::from_slice(&space.ft(&["runs", "diff", "a", "b", "--json"]).stdout).unwrap();
    let contents: Vec<&Value> = found.as_array().unwrap().iter().filter(|d| d["group"] == "contents").collect();
    let items: Vec<&str> = contents.iter().map(|d| d["item"].as_str().unwrap()).collect();
    assert_eq!(items, ["training tokens", "method: method.dpo.reference: model.safetensors"]);
    assert_eq!((&contents[1]["a"], &contents[1]["b"]), (&json!("-"), &json!("ab")));
}

/// Trains with settings that cause a problem, and expects the finding `id` during the run, afterwards and on the page.
/// Returns the finding.
#[track_caller]
fn ill(space: &Space, out: &str, sets: &[&str], id: &str) -> Value {
    let output = space.train(out, &[&["run.samples=0", "run.eval_every="], sets].concat());
    let findings = space.findings(out);
    assert!(findings.contains_key(id), "{id} expected, found {:?}\n{}", ids(&findings), stderr(&output));
    assert!(stderr(&output).contains(&format!("[{id}]")), "not reported during the run: {}", stderr(&output));
    let page = std::fs::read_to_string(space.path(out).join("report.html")).unwrap();
    assert!(page.contains(&format!("<code>{id}</code>")));
    let finding = findings[id].clone();
    assert!(!finding["evidence"].as_array().unwrap().is_empty());
    assert!(finding["next"][0].as_str().is_some_and(|c| c.starts_with("ft ")), "{finding}");
    finding
}

#[test]
fn a_loss_that_does_not_fall_has_its_cause_named() {
    let space = Space::new();
    let flat = ill(&space, "slow", &["optim.lr=1e-8", "run.steps=40"], "flat-loss");
    assert!(flat["cause"].as_str().unwrap().contains("too low"), "{flat}");
    assert!(flat["next"][0].as_str().unwrap().contains("optim.lr=1e-7"), "{flat}");
    let still = ill(&space, "still", &["optim.lr=0", "run.steps=12"], "no-update");
    assert!(still["cause"].as_str().unwrap().contains("zero"), "{still}");
    ill(&space, "deaf", &["adapter.lora.alpha=0", "run.steps=12"], "no-gradient");
    for run in ["slow", "still", "deaf"] {
        assert_eq!(space.findings(run).len(), 1, "{run}: one cause, one finding: {:?}", ids(&space.findings(run)));
    }
}

#[test]
fn a_too_high_learning_rate_is_distinguished_from_memorisation() {
    let space = Space::new();
    let heart = ["adapter=", "optim.lr=1e-2", "run.epochs=20", "run.eval_every=10", "run.result=last"];
    let heart = ill(&space, "heart", &heart, "memorisation");
    assert!(heart["next"][0].as_str().unwrap().contains("run.patience=2"), "{heart}");
    assert!(!space.findings("heart").contains_key("learning-rate-too-high"));
    // Starts from the model that memorised its rows, and loses what it memorised.
    let wild = ["adapter=", "model.path=heart", "data.valid.path=train.jsonl", "run.steps=30"];
    let steps = ["optim.lr=0.5", "optim.warmup=0", "optim.schedule=constant"];
    ill(&space, "wild", &[&wild[..], &steps].concat(), "learning-rate-too-high");
    assert!(space.findings("wild").contains_key("worse-than-start"), "{:?}", ids(&space.findings("wild")));
}

#[test]
fn a_loss_of_zero_and_too_few_supervised_tokens_are_reported() {
    let space = Space::new();
    let first = space.text("train.jsonl").lines().next().unwrap().to_string();
    std::fs::write(space.path("one.jsonl"), first).unwrap();
    let no_valid = ["data.valid=", "run.eval_every="];
    let one = ["adapter=", "data.train.path=one.jsonl", "batch.examples=1", "optim.lr=1e-2"];
    let one = [&no_valid[..], &one].concat();
    let known = space.train("known", &[&one[..], &["run.steps=60", "run.samples=0"]].concat());
    assert!(known.status.success(), "{}", stderr(&known));
    ill(&space, "zero", &[&one[..], &["model.path=known", "optim.lr=1e-6", "run.steps=12"]].concat(), "loss-zero");
    let long = (0..4).map(|i| {
        let question = format!("{i} {}", "one two three four ".repeat(40));
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "a"}]}).to_string()
    });
    std::fs::write(space.path("long.jsonl"), long.collect::<Vec<_>>().join("\n")).unwrap();
    let long = ["data.train.path=long.jsonl", "batch.max_len=4096", "batch.tokens=4096", "run.steps=10"];
    ill(&space, "long", &[&no_valid[..], &long].concat(), "few-supervised-tokens");
}

#[test]
fn a_step_that_is_not_finite_names_its_origin() {
    let space = Space::new();
    let wild = [
        "adapter=",
        "optim.lr=1",
        "optim.max_norm=0",
        "optim.warmup=0",
        "optim.betas=[0,0]",
        "optim.weight_decay=300",
        "run.epochs=40",
    ];
    let found = ill(&space, "run", &wild, "non-finite");
    let evidence = found["evidence"].to_string();
    assert!(evidence.contains("begins at"), "{evidence}");
    let run = RunFolder::open(&space.path("run")).unwrap();
    assert_eq!(run.state, RunStatus::Failed);
    let facts = run.facts.as_ref().unwrap();
    assert!(!facts.origins.is_empty() && facts.origins[0].stage != "unknown", "{:?}", facts.origins);
    assert!(space.text("run/report.html").contains("class=\"skipped\""));
}

/// The origin of NaN and infinite numbers is found by name in frozen weights, in trained weights and in the forward
/// pass.
#[test]
fn origins_of_numbers_that_are_not_finite_are_named() {
    let row = || crate::support::Row::pack(&[crate::support::Sequence::random(12, 500, 3)]);
    let origin = |model: &Model| {
        let row = row();
        model.find_non_finite(&row, row.items).unwrap()
    };
    let folder = fixture("tiny-llama");
    let set = |model: &Model, name: &str, value: f64| {
        let _no_grad = tch::no_grad_guard();
        let p = model.params().iter().find(|p| p.name == name).unwrap();
        let _ = p.tensor.shallow_clone().view([-1]).get(0).fill_(value);
    };
    let healthy = whole(&folder, Kind::Float);
    assert_eq!(origin(&healthy), None);

    let base = frozen(&folder, Kind::Float);
    set(&base, "model.layers.1.mlp.up_proj.weight", f64::NAN);
    let found = origin(&base).unwrap();
    assert_eq!((found.stage, found.nan, found.infinite), (NonFiniteStage::FrozenWeights, 1, 0));
    assert!(found.to_string().contains("`model.layers.1.mlp.up_proj.weight`"), "{found}");

    let trained = whole(&folder, Kind::Float);
    set(&trained, "model.norm.weight", f64::INFINITY);
    let found = origin(&trained).unwrap();
    assert_eq!((found.stage, found.infinite), (NonFiniteStage::TrainedWeights, 1));

    // Finite weights whose product overflows.
    let wide = whole(&folder, Kind::Float);
    for name in ["model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"] {
        let _no_grad = tch::no_grad_guard();
        let p = wide.params().iter().find(|p| p.name == name).unwrap();
        let _ = p.tensor.shallow_clone().fill_(3e38);
    }
    let found = origin(&wide).unwrap();
    assert_eq!(found.stage, NonFiniteStage::Forward, "{found}");
    assert!(found.place == "output of layer 1" && found.input.is_some(), "{found}");
}

#[test]
fn a_policy_that_does_not_leave_its_reference_is_reported() {
    let space = Space::new();
    let pairs = std::fs::read_to_string("datasets/preference.jsonl").unwrap();
    std::fs::write(space.path("pairs.jsonl"), pairs.lines().take(8).collect::<Vec<_>>().join("\n")).unwrap();
    let dpo = [
        "method={dpo: {}}",
        "data.train.path=pairs.jsonl",
        "data.valid=",
        "run.eval_every=",
        "batch.examples=2",
        "batch.max_len=256",
    ];
    let still = ill(&space, "still", &[&dpo[..], &["optim.lr=1e-9", "run.steps=52"]].concat(), "no-movement");
    assert!(still["cause"].as_str().unwrap().contains("learning rate"), "{still}");
    assert!(still["next"][0].as_str().unwrap().contains("optim.lr=1e-8"), "{still}");
    assert_eq!(space.findings("still").len(), 1, "{:?}", ids(&space.findings("still")));
    // The training loop reports it at step 50, as soon as the doctor is certain.
    let output = space.train("again", &[&dpo[..], &["optim.lr=1e-9", "run.steps=51", "run.samples=0"]].concat());
    assert!(
        stderr(&output).contains("step 50: after 50 steps the policy still equals its reference"),
        "{}",
        stderr(&output)
    );
    // A run that learns has no such finding.
    let learns = space.train("learns", &[&dpo[..], &["optim.lr=1e-3", "run.steps=52", "run.samples=0"]].concat());
    assert!(learns.status.success() && !stderr(&learns).contains("no-movement"), "{}", stderr(&learns));
}
