//! Runs the real binary: every command of README.md, every shipped recipe, resume and signals.
//!
//! The model is a tiny random one, so a run takes a second. These tests check that commands work together, not that a
//! model becomes good.

use crate::support::command::{stderr, stdout};
use crate::support::workspace::Workspace;
use serde_json::Value;
use std::process::{Command, Stdio};

/// Returns the commands in the `sh` blocks of README.md, without comments.
fn readme_commands() -> Vec<String> {
    let text = std::fs::read_to_string("README.md").unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap());
    let command = |line: &str| line.split("   #").next().unwrap().trim().to_string();
    blocks.flat_map(|b| b.lines().map(command).collect::<Vec<_>>()).filter(|l| !l.is_empty()).collect()
}

/// Returns the words that a command must print according to README.
fn promised(words: &[String]) -> &'static [&'static str] {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[1..] {
        ["doctor", ..] => &["training on cpu", "memory", "disk"],
        ["init", ..] => &["first.yaml", "ft check"],
        ["check", ..] => &["as the model sees it", "lengths in tokens"],
        ["train", ..] => &["step 1/", "trained ("],
        ["eval", suite, ..] if suite.ends_with(".yaml") => &["token_perplexity", "verdict", "report.html"],
        ["eval", ..] => &["exact match", "perplexity"],
        ["generate", .., "--json"] => &["\"text\":", "\"finish_reason\":"],
        ["generate" | "chat", ..] => &["arithmetic in float32"],
        ["runs", "show", ..] => &["finished", "validation loss", "learning rate"],
        ["runs", "list", ..] => &["best eval", "adapters/second"],
        ["export", ..] => &["read back", "second.gguf"],
        ["merge", ..] => &["logits differ by", "top-1 agreement 100.0 %"],
        ["recipe", "list", ..] => &["recipes/lora-medical.yaml", "expect: "],
        ["recipe", "explain", ..] => &["Peak learning rate", "default:"],
        ["score", ..] => &["accuracy", "calibration error"],
        ["label", "new", ..] => &["50 prompts"],
        ["label", "annotator", ..] => &["#token="],
        ["import", ..] => &["architecture   llama", "written"],
        ["data", "inspect", ..] => &["messages (detected from the columns)", "rows     60"],
        _ => panic!("README has `{}`; what does it promise?", words.join(" ")),
    }
}

#[test]
fn every_command_in_readme_runs() {
    let space = Workspace::new();
    let (mut made, mut run) = (0, 0);
    for command in readme_commands() {
        let words = split(&command);
        match words[0].as_str() {
            "make" => {
                let dry = Command::new("make").arg("-n").args(&words[1..]).stdin(Stdio::null()).output().unwrap();
                assert!(dry.status.success(), "{command}: {}", String::from_utf8_lossy(&dry.stderr));
                made += 1;
            }
            "ft" => {
                let out = space.ft(&words[1..].iter().map(String::as_str).collect::<Vec<_>>());
                let written = stdout(&out) + &stderr(&out);
                for promise in promised(&words) {
                    assert!(written.contains(promise), "{command}: `{promise}` is not in:\n{written}");
                }
                if words[1] == "train" {
                    let out = words.iter().find_map(|w| w.strip_prefix("run.out=")).map(String::from);
                    let recipe = std::path::Path::new(&words[2]).file_stem().unwrap().to_str().unwrap();
                    // `ft init` writes to runs/, shipped recipes to adapters/.
                    let folder = if words[2].starts_with("recipes/") { "adapters" } else { "runs" };
                    let out = out.unwrap_or_else(|| format!("{folder}/{recipe}"));
                    assert_eq!(space.json(&format!("{out}/export_report.json"))["verdict"], "passed", "{command}");
                    assert!(space.json(&format!("{out}/summary.json"))["steps"].as_u64().unwrap() > 0, "{command}");
                }
                run += 1;
            }
            other => panic!("README runs `{other}`, which this test does not know yet"),
        }
    }
    assert!(made >= 2 && run >= 10, "README has {made} make and {run} ft commands; is it still being read?");
}

/// Splits a command line at spaces outside double quotes.
fn split(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate();
    parts
        .flat_map(|(i, part)| match i % 2 {
            1 => vec![part.to_string()],
            _ => part.split_whitespace().map(String::from).collect(),
        })
        .collect()
}

#[test]
fn every_shipped_recipe_trains() {
    let space = Workspace::new();
    let recipes: Vec<String> =
        std::fs::read_dir("recipes").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let recipes: Vec<&String> = recipes.iter().filter(|name| name.ends_with(".yaml")).collect();
    assert!(recipes.len() >= 3, "found {recipes:?}");
    // Other recipes use this reward model. After two steps it fails the quality check, so they load it with `force`.
    space.ft(&["train", "recipes/reward-helpful.yaml", "--set", "run.steps=2"]);
    for name in recipes {
        let (recipe, out) = (format!("recipes/{name}"), format!("run.out=runs/{name}"));
        let mut train = vec!["train", &recipe, "--set", "run.steps=2", "--set", &out];
        if name.starts_with("ppo-") {
            let judge = "method.ppo.rewards=[{model: {path: adapters/reward-helpful, force: true}}]";
            train.extend(["--set", judge, "--set", "method.ppo.sampling.prompts=4"]);
        }
        if name.starts_with("distill-") {
            train.extend(["--set", "model.cut.layers=2"]);
        }
        space.ft(&train);
        let report = space.json(&format!("runs/{name}/export_report.json"));
        assert_eq!(report["verdict"], "passed", "{name}: {report}");
        assert_eq!(
            space.steps(&format!("runs/{name}")).iter().filter(|l| l.get("loss").is_some()).count(),
            2,
            "{name}"
        );
    }
}

#[test]
fn a_signal_saves_a_checkpoint_and_the_run_resumes() {
    let space = Workspace::new();
    let recipe = [
        "train",
        "recipes/lora-medical.yaml",
        "--set",
        "run.epochs=400",
        "--set",
        "run.eval_every=0",
        "--set",
        "run.samples=0",
    ];
    let mut child = space.command(&recipe).stderr(Stdio::piped()).spawn().unwrap();
    let metrics = space.path("adapters/lora-medical/metrics.jsonl");
    let began = std::time::Instant::now();
    while std::fs::read_to_string(&metrics).map_or(0, |t| t.lines().count()) < 3 {
        assert!(began.elapsed().as_secs() < 120, "no step in two minutes");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let killed = Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap();
    assert!(killed.success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let saved = std::fs::read_dir(space.path("adapters/lora-medical/checkpoints")).unwrap().count();
    assert!(saved >= 1);
    // Without --overwrite or resume, the earlier run is not changed.
    let refused = space.command(&recipe).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--resume"));
}

#[test]
fn a_changed_recipe_is_not_resumed() {
    let space = Workspace::new();
    space.ft(&["train", "recipes/lora-medical.yaml", "--set", "run.steps=2"]);
    let resumed = ["train", "recipes/lora-medical.yaml", "--set", "run.steps=2", "--set", "optim.lr=1e-3", "--resume"];
    let refused = space.command(&resumed).output().unwrap();
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("optim.lr") && said.contains("0.001"), "{said}");
}

#[test]
fn check_fails_if_validation_rows_are_also_training_rows() {
    let space = Workspace::new();
    let ok = space.ft(&["check", "recipes/lora-medical.yaml", "--json"]);
    let found: Value = serde_json::from_slice(&ok.stdout).unwrap();
    assert_eq!(found["steps"], 3);
    assert_eq!(found["problems"], serde_json::json!([]));
    assert!(found["trained"].as_u64().unwrap() > 0 && found["needs"]["memory"].as_u64().unwrap() > 0);
    let same = ["check", "recipes/lora-medical.yaml", "--set", "data.valid.path=datasets/icd10/train.jsonl"];
    let failed = space.command(&same).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("also training rows"));
}

#[test]
fn eval_generate_and_chat_write_results_to_stdout() {
    let space = Workspace::new();
    let model = "models/smollm2-135m-instruct";
    let eval = space.ft(&[
        "eval",
        "--model",
        model,
        "--data",
        "datasets/icd10/test.jsonl",
        "--json",
        "--out",
        "answers.jsonl",
    ]);
    let numbers: Value = serde_json::from_slice(&eval.stdout).unwrap();
    assert_eq!(numbers["rows"], 4);
    assert!(numbers["perplexity"].as_f64().unwrap() > 1.0 && numbers["exact_match"].is_number(), "{numbers}");
    assert_eq!(std::fs::read_to_string(space.path("answers.jsonl")).unwrap().lines().count(), 4);
    let prompts = ["--prompt", "Hello", "--chat", "--max-new-tokens", "5", "--seed", "3", "--temperature", "0.8"];
    let generate = || space.ft(&[&["generate", "--model", model, "--json"], &prompts[..]].concat()).stdout;
    let answer: Value = serde_json::from_slice(&generate()).unwrap();
    assert_eq!(answer["prompt"], "Hello");
    assert!(answer["text"].is_string(), "{answer}");
    assert_eq!(generate(), generate(), "one seed, one answer");
    let usage = space.command(&["generate"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(1), "a usage error is the user's input");
    let suite = std::fs::read_to_string("eval/chat.jsonl").unwrap();
    std::fs::write(space.path("suite.jsonl"), suite).unwrap();
    space.ft(&["eval", "--model", model, "--data", "suite.jsonl"]);
}

#[test]
fn two_evaluations_are_compared_if_they_are_of_the_same_rows() {
    let space = Workspace::new();
    let result = |model: &str, adapter: Option<&str>, rows: usize, exact: Option<f64>, loss: f64| {
        serde_json::json!({
            "model": model, "adapter": adapter, "data": "test.jsonl", "rows": rows, "asked": rows,
            "exact_match": exact, "exact_match_ci": null, "exact_match_ignoring_case": exact, "stopped": 1.0,
            "loss": loss, "perplexity": loss.exp(), "tokens": 9, "max_new_tokens": 16, "rows_per_s": 1.0,
        })
    };
    let write = |name: &str, value: Value| std::fs::write(space.path(name), value.to_string()).unwrap();
    write("base.json", result("base", None, 105, Some(0.25), 2.0));
    write("tuned.json", result("base", Some("adapters/a"), 105, Some(0.75), 1.5));
    write("text.json", result("base", None, 105, None, 1.0));
    write("other.json", result("base", None, 50, Some(0.5), 1.0));
    let shown = String::from_utf8(space.ft(&["compare", "base.json", "tuned.json"]).stdout).unwrap();
    let line = |name: &str| shown.lines().find(|l| l.starts_with(name)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert!(shown.starts_with("105 rows of test.jsonl\n") && shown.contains("adapters/a"), "{shown}");
    assert_eq!(line("exact match")[2..], ["0.2500", "0.7500", "+0.5000"]);
    assert_eq!(line("loss")[1..], ["2.0000", "1.5000", "-0.5000"]);
    let json: Value =
        serde_json::from_slice(&space.ft(&["compare", "base.json", "text.json", "--json"]).stdout).unwrap();
    assert_eq!((&json["differences"]["loss"], &json["differences"]["exact_match"]), (&(-1.0).into(), &Value::Null));
    let refused = |other: &str| {
        let output = space.command(&["compare", "base.json", other]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused("other.json");
    assert!(said.contains("105 rows of test.jsonl") && said.contains("50 rows of test.jsonl"), "{said}");
    std::fs::write(space.path("no.json"), "{}").unwrap();
    assert!(refused("no.json").contains("ft eval --model"), "another kind of file");
}

#[test]
fn early_stopping_keeps_the_best_weights() {
    let space = Workspace::new();
    // With a learning rate of zero nothing changes, so the first validation stays the best.
    let sets =
        ["run.epochs=9", "run.eval_every=1", "run.patience=2", "optim.lr=0", "run.save_every=0", "run.samples=0"];
    let sets: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
    let run = space.ft(&[&["train", "recipes/lora-medical.yaml", "--json"], &sets[..]].concat());
    let summary: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(
        (&summary["steps"], &summary["best_step"], &summary["stopped_early"]),
        (&3.into(), &1.into(), &true.into())
    );
    let kept = |step: u64| space.path(&format!("adapters/lora-medical/checkpoints/step-{step}")).exists();
    assert!(kept(1) && kept(3), "the best and the last checkpoint are kept");
}

#[test]
fn an_exploding_loss_stops_with_a_hint_and_without_a_result() {
    let space = Workspace::new();
    let run = [
        "train",
        "recipes/full-medical.yaml",
        "--set",
        "optim.lr=1",
        "--set",
        "optim.max_norm=0",
        "--set",
        "run.epochs=40",
        "--set",
        "optim.warmup=0",
        "--set",
        "model.dtype=f32",
        "--set",
        "run.samples=0",
        "--set",
        "optim.betas=[0,0]",
        "--set",
        "optim.weight_decay=300",
    ];
    let failed = space.command(&run).output().unwrap();
    let said = stderr(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("optim.lr"), "{said}");
    assert!(!space.path("adapters/full-medical/model.safetensors").exists());
}

/// The recipe that `ft init` writes for each kind of rows passes the check and trains.
#[test]
fn init_writes_a_recipe_that_trains_and_replaces_nothing() {
    let space = Workspace::new();
    let model = "models/smollm2-135m-instruct";
    let refused = |arguments: &[&str]| {
        let output = space.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let labelled =
        |i: usize| format!("{{\"prompt\": \"Say {i}\", \"completion\": \" {i}\", \"label\": {}}}\n", i % 2 == 0);
    std::fs::write(space.path("labelled.jsonl"), (0..8).map(labelled).collect::<String>()).unwrap();
    for (rows, method) in [
        ("datasets/chat.jsonl", "sft"),
        ("datasets/text.jsonl", "sft"),
        ("datasets/preference.jsonl", "dpo"),
        ("labelled.jsonl", "kto"),
    ] {
        let recipe = format!("mine/{method}.yaml");
        let _ = std::fs::remove_file(space.path(&recipe));
        let wrote = space.ft(&["init", model, rows, "--out", &recipe, "--json"]).stdout;
        let found: Value = serde_json::from_slice(&wrote).unwrap();
        assert_eq!((&found["method"], &found["recipe"]), (&method.into(), &recipe.as_str().into()), "{found}");
        assert!(["full", "adapter"].iter().all(|way| found["memory"][way].as_u64() > Some(0)), "{found}");
        let check = space.ft(&["check", &recipe, "--json"]).stdout;
        let check: Value = serde_json::from_slice(&check).unwrap();
        assert_eq!((&check["steps"], &check["problems"]), (&found["steps"], &serde_json::json!([])), "{check}");
        space.ft(&["train", &recipe, "--set", "run.steps=2", "--overwrite"]);
        assert_eq!(space.json(&format!("runs/{method}/export_report.json"))["verdict"], "passed");
        // Of rows longer than the model's 256 positions, the recipe says what happens to them.
        let text = std::fs::read_to_string(space.path(&recipe)).unwrap();
        assert_eq!(text.contains("on_overflow: drop"), found["tokens"]["max"].as_u64() > Some(256), "{text}");
    }
    let text = std::fs::read_to_string(space.path("mine/sft.yaml")).unwrap();
    let again = refused(&["init", model, "datasets/chat.jsonl", "--out", "mine/sft.yaml"]);
    assert!(again.contains("mine/sft.yaml: exists already"), "{again}");
    assert_eq!(std::fs::read_to_string(space.path("mine/sft.yaml")).unwrap(), text);
    // With validation rows, and without --out and --json.
    let valid = ["init", model, "datasets/chat.jsonl", "--valid", "datasets/instruction.jsonl"];
    let said = String::from_utf8(space.ft(&valid).stderr).unwrap();
    assert!(said.contains("next: ft check recipe.yaml, then ft train recipe.yaml"), "{said}");
    assert!(std::fs::read_to_string(space.path("recipe.yaml")).unwrap().contains("eval_every: "));
    let prompts = refused(&["init", model, "datasets/prompts.jsonl", "--out", "no.yaml"]);
    assert!(prompts.contains("need a teacher or a reward") && !space.path("no.yaml").exists(), "{prompts}");
    let mixed = refused(&["init", model, "datasets/*.jsonl", "--out", "no.yaml"]);
    assert!(mixed.contains("one method cannot train on both"), "{mixed}");
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    let space = Workspace::new();
    let help = String::from_utf8(space.ft(&["--help"]).stdout).unwrap();
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands: Vec<&str> =
        commands.lines().filter_map(|l| l.strip_prefix("  ")?.split(' ').next()).filter(|c| !c.is_empty()).collect();
    assert!(commands.len() > 20, "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let text = String::from_utf8(space.ft(&["completions", shell]).stdout).unwrap();
        commands.iter().for_each(|c| assert!(text.contains(c), "{shell}: {c}"));
    }
    space.ft(&["man", "pages"]);
    for command in commands.iter().filter(|c| **c != "help") {
        let page = std::fs::read_to_string(space.path(&format!("pages/ft-{command}.1"))).unwrap();
        assert!(page.starts_with(".ie") && page.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(space.path("pages/ft-data-inspect.1").exists() && space.path("pages/ft.1").exists());
}
