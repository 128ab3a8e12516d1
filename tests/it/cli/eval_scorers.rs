//! `ft eval` with judges that are models, and where programs cannot be isolated.

use crate::support::command::{processes_of, python, stderr, stdout};
use crate::support::needs::{LIMITS, NAMESPACES, needs};
use crate::support::resumed::train;
use crate::support::workspace::Workspace;
use serde_json::Value;
use std::process::Command;

const MODEL: &str = "models/smollm2-135m-instruct";

fn rows(space: &Workspace) {
    let row = |i: usize| format!("{{\"q\": \"Question {i} of the office?\", \"a\": \"Ask someone else about it.\"}}\n");
    std::fs::write(space.path("rows.jsonl"), (0..6).map(row).collect::<String>()).unwrap();
}

#[test]
fn reward_models_and_language_models_compare_an_adapter_with_its_base() {
    let space = Workspace::new();
    rows(&space);
    train(&space, "recipes/lora-medical.yaml", "tuned", &["optim.lr=3e-2", "run.steps=8"]);
    train(&space, "recipes/reward-helpful.yaml", "scorer", &["run.steps=3", "run.epochs=null"]);
    let task = |name: &str, generate: &str| {
        format!(
            "- name: {name}\n  data: rows.jsonl\n  prompt: \"{{{{ q }}}}\"\n  answer: \"{{{{ a }}}}\"\n  \
             generate: {{ max_new_tokens: 12, {generate} }}\n"
        )
    };
    let by_reward =
        "metrics: [reward, win_rate], reward: { model: scorer, base: models/icd10-start }, compare: { by: reward }";
    let by_model = format!("metrics: [win_rate], compare: {{ judge: {MODEL}, reasoning: 4 }}");
    let text = format!("tasks:\n{}{}", task("scored", by_reward), task("judged", &by_model));
    std::fs::write(space.path("suite.yaml"), &text).unwrap();
    let common = ["eval", "suite.yaml", "--model", MODEL, "--dtype", "f32", "--out", "results"];
    let asked = [&common[..], &["--adapter", "tuned=tuned", "--json"]].concat();
    let found: Value = serde_json::from_str(&stdout(&space.ft(&asked))).unwrap();
    let results = space.json("results/results.json");
    let answers =
        |task: usize, subject: usize| results["tasks"][task]["results"][subject]["answers"].as_array().unwrap();
    let differ = (0..6).filter(|i| answers(0, 0)[*i]["text"] != answers(0, 1)[*i]["text"]).count();
    assert!(differ > 0, "the adapter changed no answer");
    for i in 0..6 {
        let [base, tuned] = [0, 1].map(|subject| answers(0, subject)[i]["scores"]["reward"].as_f64().unwrap());
        let won = answers(0, 1)[i]["scores"]["win_rate"].as_f64().unwrap();
        let expected = if tuned > base { 1.0 } else { f64::from(u8::from(tuned == base)) / 2.0 };
        assert_eq!(won, expected, "row {i}: {tuned} and {base}");
        assert_eq!(answers(0, 0)[i]["scores"]["win_rate"], 0.5);
    }
    let estimate = |task: usize, subject: usize, name: &str| &found["tasks"][task]["estimates"][subject][name];
    assert_eq!(estimate(0, 0, "win_rate")["value"], 0.5);
    assert!(estimate(0, 1, "win_rate_length_controlled")["value"].is_f64());
    let judged = &answers(1, 1)[..];
    assert!(judged.iter().all(|answer| answer["scores"]["inconsistent"].is_f64()), "{judged:?}");
    assert!(estimate(1, 1, "ties")["value"].as_f64().unwrap() <= 1.0);
    let cache = || std::fs::read_to_string(space.path("results/cache.jsonl")).unwrap();
    let known = cache();
    let again: Value = serde_json::from_str(&stdout(&space.ft(&asked))).unwrap();
    assert_eq!((cache(), &again["tasks"]), (known, &found["tasks"]), "verdicts and rewards are kept");
    let alone = space.refused(&common);
    assert!(alone.contains("task `scored`: `win_rate` compares answers with those of a baseline"), "{alone}");
    // A run's result is compared with the model as it was before.
    let settings = ["run.evaluate=suite.yaml", "run.steps=8", "optim.lr=3e-2", "model.dtype=f32"];
    train(&space, "recipes/lora-medical.yaml", "run", &settings);
    let of_run = space.json("run/evaluation/results.json");
    assert_eq!([0, 1].map(|i| of_run["subjects"][i]["name"].as_str().unwrap()), ["before", "after"]);
    for task in [0, 1] {
        let of = |subject: usize, i: usize| &of_run["tasks"][task]["results"][subject]["answers"][i];
        assert_eq!(of_run["tasks"][task]["results"][0]["estimates"]["win_rate"]["value"], 0.5);
        for i in 0..6 {
            assert_eq!(of(0, i)["scores"]["win_rate"], 0.5);
            let won = of(1, i)["scores"]["win_rate"].as_f64().unwrap();
            if of(0, i)["text"] == of(1, i)["text"] {
                assert_eq!(won, 0.5, "equal answers tie");
            } else if task == 0 {
                let reward = |subject| of(subject, i)["scores"]["reward"].as_f64().unwrap();
                let expected =
                    if reward(1) > reward(0) { 1.0 } else { f64::from(u8::from(reward(1) == reward(0))) / 2.0 };
                assert_eq!(won, expected, "row {i}");
            }
        }
    }
    assert!((0..6).any(|i| {
        let text = |subject: usize| &of_run["tasks"][0]["results"][subject]["answers"][i]["text"];
        text(0) != text(1)
    }));
    let random = ["train", "recipes/gru-tiny.yaml", "--set", "run.evaluate=suite.yaml", "--set", "run.out=x"];
    let refused = space.refused(&random);
    assert!(refused.contains("begins with random weights") && !space.path("x").exists(), "{refused}");
    std::fs::write(space.path("suite.yaml"), text.replace("judge: models/", "judge: nowhere/")).unwrap();
    let nowhere = space.refused(&asked);
    assert!(nowhere.contains("nowhere/smollm2-135m-instruct: no model's directory"), "{nowhere}");
}

/// Programs end with ft, also if it is killed.
#[test]
fn nothing_is_left_of_a_program_when_ft_is_killed() {
    needs!(NAMESPACES);
    let space = Workspace::new();
    rows(&space);
    let file = format!("ft_killed_{}.py", std::process::id());
    let code =
        format!("code: {{ program: \"import os, time\\nos.fork()\\ntime.sleep(300)\", file: {file}, seconds: 300 }}");
    let suite = format!(
        "tasks:\n- name: t\n  data: rows.jsonl\n  limit: 1\n  prompt: \"{{{{ q }}}}\"\n  generate: {{ max_new_tokens: 2, {code} }}\n"
    );
    std::fs::write(space.path("suite.yaml"), suite).unwrap();
    let mut child = space.command(&["eval", "suite.yaml", "--model", MODEL]).spawn().unwrap();
    let wait_until = |what: &str, holds: &dyn Fn() -> bool| {
        for _ in 0..600 {
            if holds() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{what}");
    };
    wait_until("the program and its copy run", &|| processes_of(&file) >= 2);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("they are gone", &|| processes_of(&file) == 0);
}

/// In a namespace that allows no further ones, programs cannot be isolated: ft says so, unless it is told to do without.
#[test]
fn programs_are_not_run_without_isolation_unless_the_suite_says_so() {
    needs!(NAMESPACES, LIMITS);
    let space = Workspace::new();
    rows(&space);
    let suite = |more: &str| {
        let task = "- name: t\n  data: rows.jsonl\n  prompt: \"{{ q }}\"\n";
        let code = format!(
            "  generate: {{ max_new_tokens: 2, code: {{ program: \"pass # {{{{ q }}}}\", command: [{}, \"{{file}}\"]{more} }} }}\n",
            python()
        );
        std::fs::write(space.path("suite.yaml"), format!("tasks:\n{task}{code}")).unwrap();
    };
    let forbidden = || {
        let asked = space.command(&["eval", "suite.yaml", "--model", MODEL, "--json"]);
        let words: Vec<String> = std::iter::once(asked.get_program())
            .chain(asked.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        let script = format!("echo 0 > /proc/sys/user/max_user_namespaces && exec {}", words.join(" "));
        let mut command = Command::new("unshare");
        command.args(["-Ur", "sh", "-c", &script]).current_dir(space.path("."));
        command.envs(asked.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.output().unwrap()
    };
    suite("");
    let refused = forbidden();
    assert!(!refused.status.success());
    let told = stderr(&refused);
    for part in [
        "task `t`: programs cannot be isolated on this machine: new namespaces: ",
        "limits_only",
        "max_user_namespaces",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    suite(", sandbox: limits_only");
    let allowed = forbidden();
    assert!(allowed.status.success(), "{}", stderr(&allowed));
    let found: Value = serde_json::from_str(&String::from_utf8_lossy(&allowed.stdout)).unwrap();
    assert_eq!(found["tasks"][0]["estimates"][0]["pass@1"]["value"], 1.0);
    suite("");
    let table = stdout(&space.ft(&["eval", "suite.yaml", "--model", MODEL]));
    assert!(table.contains("pass@1") && table.contains("1.0000"), "{table}");
}
