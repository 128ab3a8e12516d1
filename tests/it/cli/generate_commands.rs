//! Tests the commands `ft generate` and `ft chat`.

use crate::support::files::jsonl;
use crate::support::needs::{SCRIPT, needs};
use crate::support::rows::turn;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder with a tiny model in `model`.
struct Space(tempfile::TempDir);

impl Space {
    fn new(generation_config: Value) -> Self {
        let space = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(space.path("model")).unwrap();
        for folder in ["tiny-llama", "tiny-tokenizer"] {
            for entry in std::fs::read_dir(format!("tests/fixtures/{folder}")).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), space.path("model").join(entry.file_name())).unwrap();
            }
        }
        std::fs::write(space.path("model/generation_config.json"), generation_config.to_string()).unwrap();
        space
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ft"));
        command.args(["generate", "--model", "model", "--device", "cpu", "--dtype", "f32"]).args(arguments);
        command.current_dir(self.0.path()).stdin(Stdio::null()).env("OMP_NUM_THREADS", "1");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ft generate {}\n{said}", arguments.join(" "));
        output
    }

    fn rows(&self, arguments: &[&str]) -> Vec<Value> {
        let out = self.run(&[arguments, &["--json"]].concat()).stdout;
        String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Returns stderr of a command that must be refused.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "ft generate {}", arguments.join(" "));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn flags_have_the_names_and_effects_of_transformers() {
    let space = Space::new(json!({ "eos_token_id": 2 }));
    let plain = space.run(&["--prompt", "Deep learning is", "--max-length", "30", "--num-return-sequences", "1"]);
    assert!(!plain.stdout.is_empty());
    let prompts = ["--prompt", "Deep learning is", "--prompt", "Hello"];
    let sampled = space.rows(
        &[&prompts[..], &["--do-sample", "--num-return-sequences", "3", "--max-new-tokens", "6", "--logprobs"]]
            .concat(),
    );
    assert_eq!(sampled.len(), 6);
    for (i, row) in sampled.iter().enumerate() {
        assert_eq!((&row["prompt"], &row["sample"]), (&prompts[1 + i / 3 * 2].into(), &(i % 3).into()));
        let probs: Vec<f64> = serde_json::from_value(row["logprobs"]["token_logprobs"].clone()).unwrap();
        let (count, sum) = (&row["completion_tokens"], &row["logprobs"]["cumulative_logprob"]);
        assert_eq!(*count, probs.len());
        assert!((sum.as_f64().unwrap() - probs.iter().sum::<f64>()).abs() < 1e-9 && probs.iter().all(|p| *p < 0.0));
        assert_eq!(row["logprobs"]["tokens"].as_array().unwrap().len(), probs.len());
    }
    let beams =
        ["--num-beams", "3", "--num-return-sequences", "2", "--length-penalty", "-0.5", "--early-stopping", "never"];
    let found = space.rows(&[&prompts[..2], &beams, &["--max-new-tokens", "6"]].concat());
    let score = |i: usize| found[i]["score"].as_f64().unwrap();
    assert!(found.len() == 2 && score(0) >= score(1) && found[0]["text"] != found[1]["text"]);

    // A stop text is cut off, a bad word is never generated, a prefix starts the answer.
    let free = space.rows(&[&prompts[..2], &["--max-new-tokens", "12"]].concat()).remove(0);
    let text = free["text"].as_str().unwrap();
    let letters: Vec<char> = text.chars().collect();
    assert!(letters.len() > 8, "{text}");
    let stop: String = letters[4..6].iter().collect();
    let before = &text[..text.find(&stop).unwrap()];
    let stopped = space.rows(&[&prompts[..2], &["--max-new-tokens", "12", "--stop", &stop]].concat()).remove(0);
    assert_eq!((&stopped["text"], &stopped["finish_reason"]), (&before.into(), &"stop".into()));
    let prefixed = space.rows(&[&prompts[..2], &["--prefix", "Well", "--max-new-tokens", "12"]].concat()).remove(0);
    assert!(prefixed["text"].as_str().unwrap().starts_with("Well"));

    for (arguments, part) in [
        (vec!["--num-return-sequences", "2"], "would all be the same one"),
        (vec!["--length-penalty", "2"], "--num-beams"),
        (vec!["--num-beams", "2", "--temperature", "1"], "does not sample"),
        (vec!["--max-length", "1"], "leaves no room"),
        (vec!["--temperature", "0", "--min-p", "0.1"], "would do nothing"),
        (vec!["--logprobs"], "--json"),
        (vec!["--max-length", "9", "--max-new-tokens", "9"], "cannot be used with"),
    ] {
        let error = space.refused(&[&prompts[..2], &arguments].concat());
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
}

#[test]
fn generation_config_json_is_used_and_reported() {
    let space = Space::new(json!({
        "do_sample": true, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 5, "repetition_penalty": 1.1,
        "num_return_sequences": 2, "guidance_scale": 1.5, "typical_p": 1.0
    }));
    let output = space.run(&["--prompt", "Hello", "--json"]);
    let said = String::from_utf8(output.stderr).unwrap();
    for part in ["do_sample true", "temperature 0.6", "top_p 0.9", "max_new_tokens 5", "repetition_penalty 1.1"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(said.contains("ignored, not supported: guidance_scale\n"), "{said}");
    let rows: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(rows.len() == 2 && rows.iter().all(|r| r["completion_tokens"].as_u64().unwrap() <= 5));
    let greedy = space.run(&["--prompt", "Hello", "--greedy", "--num-return-sequences", "1"]);
    assert!(!String::from_utf8(greedy.stderr).unwrap().contains("temperature"));
    std::fs::write(space.path("model/generation_config.json"), r#"{"top_k": "many", "do_sample": true}"#).unwrap();
    assert!(space.refused(&["--prompt", "Hello"]).contains("`top_k` is \"many\", expected a number"));
}

#[test]
fn a_killed_command_continues_and_gives_the_same_file() {
    let space = Space::new(json!({ "eos_token_id": 2 }));
    let prompts: String = (0..40).map(|i| format!("{{\"prompt\": \"Question {i}\"}}\n")).collect();
    std::fs::write(space.path("in.jsonl"), prompts).unwrap();
    let with = |out: &'static str, more: &[&'static str]| {
        let fixed = ["--input", "in.jsonl", "--max-new-tokens", "40", "--temperature", "1.2", "--output", out];
        [&fixed[..], more].concat()
    };
    // At most seven rows at a time: products of so few rows are bit-identical whatever else is in the batch, so the
    // resumed file can equal the whole one.
    space.run(&with("whole.jsonl", &["--batch-size", "7"]));
    // One row at a time, so that the command takes long enough to be killed halfway.
    let mut slow = space.command(&with("cut.jsonl", &["--batch-size", "1"])).stderr(Stdio::null()).spawn().unwrap();
    let (partial, began) = (space.path("cut.jsonl.partial"), Instant::now());
    while std::fs::read_to_string(&partial).map_or(0, |t| t.lines().count()) < 3 {
        assert!(began.elapsed() < Duration::from_secs(60), "no answer was written within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    slow.kill().unwrap();
    slow.wait().unwrap();
    assert!(partial.exists() && !space.path("cut.jsonl").exists(), "the command was not killed halfway");
    let error = space.refused(&with("cut.jsonl", &["--seed", "9"]));
    assert!(error.contains("was started with other settings: settings was"), "{error}");
    // Another model in the same folder.
    let config = std::fs::read(space.path("model/config.json")).unwrap();
    std::fs::write(space.path("model/config.json"), [&config[..], b"\n"].concat()).unwrap();
    let error = space.refused(&with("cut.jsonl", &["--batch-size", "7"]));
    assert!(error.contains("was started with other settings: model/config.json was"), "{error}");
    std::fs::write(space.path("model/config.json"), config).unwrap();
    let resumed = space.run(&with("cut.jsonl", &["--batch-size", "7"]));
    assert!(String::from_utf8(resumed.stderr).unwrap().contains("of 40 prompts are answered already; continuing"));
    let text = |name: &str| std::fs::read_to_string(space.path(name)).unwrap();
    assert_eq!(text("whole.jsonl").lines().count(), 40);
    assert_eq!(text("whole.jsonl"), text("cut.jsonl"));
    assert!(!partial.exists());
}

/// Rows of training data already end with an answer. Without --drop-answer this is an error; with it, the answer is
/// dropped.
#[test]
fn rows_that_end_with_an_answer_need_drop_answer() {
    let space = Space::new(json!({ "eos_token_id": 2 }));
    let (asked, answered) = (turn("user", "Hello"), turn("assistant", "Good day."));
    let rows = |rows: &[Value]| jsonl(rows);
    std::fs::write(
        space.path("in.jsonl"),
        rows(&[json!({ "messages": [asked, answered] }), json!({ "messages": [asked] })]),
    )
    .unwrap();
    std::fs::write(space.path("none.jsonl"), rows(&[json!({ "messages": [answered] })])).unwrap();
    let common = ["--input", "in.jsonl", "--max-new-tokens", "5", "--greedy"];
    let error = space.refused(&[&common[..], &["--json"]].concat());
    assert!(error.contains("in.jsonl:1") && error.contains("--drop-answer"), "{error}");
    let made = space.rows(&[&common[..], &["--drop-answer"]].concat());
    assert_eq!((made.len(), &made[0]["prompt"]), (2, &json!([asked])));
    assert_eq!(made[0]["text"], made[1]["text"], "the same question got another answer");
    let error = space.refused(&["--input", "none.jsonl", "--json", "--drop-answer"]);
    assert!(error.contains("none.jsonl:1") && error.contains("no message is left"), "{error}");
}

/// On a terminal, control characters and direction overrides that a model writes are shown as text, and the terminal is
/// told to handle right-to-left scripts. A program that reads stdout gets the unchanged text.
#[test]
fn a_terminal_gets_no_hidden_characters() {
    needs!(SCRIPT);
    let space = Space::new(json!({ "eos_token_id": 2 }));
    let terminal = |arguments: &str, keys: &str| {
        let line =
            format!("exec {} {arguments} --model model --device cpu --max-new-tokens 24", env!("CARGO_BIN_EXE_ft"));
        let mut child = Command::new("script")
            .args(["-qefc", &line, "/dev/null"])
            .current_dir(space.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(keys.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let begins = "ab\u{202e}cd\u{1b}[2Jef";
    let shown = terminal(&format!("generate --prompt Hello --prefix '{begins}'"), "");
    assert!(shown.contains("ab⟨U+202E⟩cd⟨U+001B⟩[2Jef"), "{shown:?}");
    let chat = terminal("chat", "Hello\n/quit\n");
    assert!(chat.contains("\u{1b}[?2501h") && chat.trim_end().ends_with("\u{1b}[?2501l"), "{chat:?}");
    let piped = space.run(&["--prompt", "Hello", "--prefix", begins, "--max-new-tokens", "24"]).stdout;
    assert!(String::from_utf8_lossy(&piped).contains(begins));
}

#[test]
fn timings_list_every_pass_and_its_kind() {
    let space = Space::new(json!({}));
    let prompts = ["--prompt", "Deep learning is", "--prompt", "Hello", "--prompt", "One"];
    let length = ["--max-new-tokens", "4", "--batch-size", "2", "--timings", "timings.jsonl"];
    let rows = space.rows(&[&prompts[..], &length].concat());
    let passes: Vec<Value> = std::fs::read_to_string(space.path("timings.jsonl"))
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let sum = |key: &str, of: &dyn Fn(&Value) -> bool| -> u64 {
        passes.iter().filter(|p| of(p)).map(|p| p[key].as_u64().unwrap()).sum()
    };
    let asked: u64 = rows.iter().map(|r| r["prompt_tokens"].as_u64().unwrap()).sum();
    // Two rows, then the third. Each time one pass reads prompts and gives the first token, and three more give the
    // others.
    assert_eq!(passes.len(), 2 * 4);
    assert_eq!(sum("tokens", &|p| p["kind"] == "prompt"), asked);
    assert_eq!(sum("rows", &|p| p["kind"] == "prompt"), 3);
    assert_eq!(sum("rows", &|_| true), 3 * 4);
    assert!(passes.iter().all(|p| p["seconds"].as_f64().unwrap() > 0.0));

    let error = space.refused(&["--prompt", "Hello", "--num-beams", "2", "--timings", "t.jsonl"]);
    assert!(error.contains("--timings cannot be combined with beam search"), "{error}");
}

#[test]
fn templates_and_their_variables_are_given_on_the_command_line() {
    let space = Space::new(json!({ "eos_token_id": 2 }));
    let template = "{% if enable_thinking is false %}{{ raise_exception('told not to think') }}{% endif %}\
                    {% for m in messages %}{{ m.content }}{% endfor %}";
    std::fs::write(space.path("t.jinja"), template).unwrap();
    let ask = ["--prompt", "Hi", "--chat", "--max-new-tokens", "1", "--template", "t.jinja"];
    space.run(&ask);
    let quiet = [&ask[..], &["--chat-template-kwargs", r#"{"enable_thinking": false}"#]].concat();
    assert!(space.refused(&quiet).contains("told not to think"));
    let e = space.refused(&[&ask[..], &["--chat-template-kwargs", "enable_thinking=false"]].concat());
    assert!(e.contains("--chat-template-kwargs") && e.contains("one JSON object"), "{e}");
    let e = space.refused(&["--prompt", "Hi", "--chat", "--template", "rag"]);
    assert!(e.contains("no chat template named `rag`"), "{e}");
    // Rows with a message that the template leaves out are refused by file and line.
    std::fs::write(
        space.path("deaf.jinja"),
        "{% for m in messages %}{{ m.content if m.content is string }}{% endfor %}!",
    )
    .unwrap();
    let row = json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "what?" }] }] });
    std::fs::write(space.path("rows.jsonl"), row.to_string()).unwrap();
    let e = space.refused(&["--input", "rows.jsonl", "--json", "--max-new-tokens", "1", "--template", "deaf.jinja"]);
    assert!(e.contains("rows.jsonl:1") && e.contains("message 1 (user): the chat template leaves it out"), "{e}");
}

/// Each row is answered by the adapter that it names, as in a call with that adapter alone, with its chat template.
#[test]
fn rows_choose_their_adapter() {
    let space = Space::new(json!({ "eos_token_id": 2 }));
    let adapters = [("one", "training/lora"), ("two", "lora-relatives/dora"), ("virtual", "virtual-tokens/p_tuning")];
    for (name, from) in adapters {
        std::fs::create_dir(space.path(name)).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let from = std::path::Path::new("tests/fixtures").join(from).join("initial").join(file);
            std::fs::copy(from, space.path(name).join(file)).unwrap();
        }
    }
    let template = std::fs::read_to_string(space.path("model/chat_template.jinja")).unwrap();
    let own = template.replace("'<|im_start|>' + message['role']", "'<|im_start|>the ' + message['role']");
    assert_ne!(own, template);
    std::fs::write(space.path("two/chat_template.jinja"), own).unwrap();

    let names = [Some("two"), None, Some("one"), Some("virtual"), Some("two"), Some("one"), None];
    let row = |(i, name): (usize, &Option<&str>)| {
        let asked = turn("user", &format!("Question number {i}"));
        match (name, i) {
            (None, 1) => json!({ "messages": [asked] }),
            (name, _) => json!({ "messages": [asked], "adapter": name }),
        }
    };
    std::fs::write(space.path("in.jsonl"), jsonl(&names.iter().enumerate().map(row).collect::<Vec<_>>())).unwrap();
    let input = ["--input", "in.jsonl", "--greedy", "--max-new-tokens", "9"];
    let all = ["--adapter", "one=one", "--adapter", "two=two", "--adapter", "virtual=virtual"];
    let beams = ["--num-beams", "2"];
    for more in [&[][..], &["--batch-size", "2"], &beams] {
        let together = space.rows(&[&input[..], &all, more].concat());
        for name in [None, Some("one"), Some("two"), Some("virtual")] {
            let adapter = name.map_or(vec![], |name| vec!["--adapter", name]);
            let alone = space.rows(&[&input[..], &adapter, more].concat());
            for (i, (a, b)) in alone.iter().zip(&together).enumerate().filter(|(i, _)| names[*i] == name) {
                assert_eq!((&b["adapter"], &a["text"]), (&json!(name), &b["text"]), "row {i}, {more:?}");
                assert_eq!(a["prompt_tokens"], b["prompt_tokens"], "row {i}: another template");
                assert!(a.get("adapter").is_none());
            }
        }
    }
    // The column has no effect if no adapter has a name, and that is said.
    let said = String::from_utf8(space.run(&[&input[..], &["--json"]].concat()).stderr).unwrap();
    assert!(said.contains("in.jsonl: the column `adapter` has no effect"), "{said}");

    let refused = |adapters: &[&str]| {
        let flags: Vec<&str> = adapters.iter().flat_map(|a| ["--adapter", a]).collect();
        space.refused(&[&input[..], &flags, &["--json"]].concat())
    };
    let e = refused(&["one=one", "tow=two", "virtual=virtual"]);
    assert!(e.contains("in.jsonl:1") && e.contains("no adapter is called `two`"), "{e}");
    assert!(e.contains("did you mean `tow`? (--adapter names one, tow, virtual)"), "{e}");
    assert!(refused(&["one", "two=two"]).contains("--adapter one: one of several adapters needs a name"));
    assert!(refused(&["one=one", "one=two"]).contains("two adapters are called `one`"));
    let e = space.refused(&["--prompt", "Hello", "--adapter", "one=one"]);
    assert!(e.contains("needs --input"), "{e}");
    std::fs::write(space.path("two/chat_template.jinja"), template.replace("<|im_end|>", "<|endoftext|>")).unwrap();
    let e = refused(&["one=one", "two=two"]);
    assert!(e.contains("adapter `two`") && e.contains("ends an answer with another token"), "{e}");
    std::fs::write(space.path("wrong.jsonl"), jsonl(&[json!({ "prompt": "a", "adapter": 3 })])).unwrap();
    let e = space.refused(&["--input", "wrong.jsonl", "--json", "--adapter", "one=one"]);
    assert!(e.contains("wrong.jsonl:1") && e.contains("must be the name of an adapter, found 3"), "{e}");
}

/// A partial file is continued only with the same adapters.
#[test]
fn a_partial_file_names_its_adapters() {
    let space = Space::new(json!({ "eos_token_id": 2 }));
    for name in ["one", "two"] {
        std::fs::create_dir(space.path(name)).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(format!("tests/fixtures/training/lora/initial/{file}"), space.path(name).join(file)).unwrap();
        }
    }
    std::fs::write(space.path("in.jsonl"), jsonl(&[json!({ "prompt": "Hello", "adapter": "a" })])).unwrap();
    let fixed = ["--input", "in.jsonl", "--out", "out.jsonl", "--max-new-tokens", "3"];
    space.run(&[&fixed[..], &["--adapter", "a=one"]].concat());
    let text = std::fs::read_to_string(space.path("out.jsonl")).unwrap();
    let row: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(row["adapter"], "a");
    // A command that was cut off after its first line.
    let first = space.run(&["--input", "in.jsonl", "--json", "--max-new-tokens", "3", "--adapter", "a=one"]);
    assert_eq!(String::from_utf8(first.stdout).unwrap(), text);
}
