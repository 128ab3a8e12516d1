//! Tests exact resumption through the real binary. A run that is interrupted and resumed ends with the same bits as an
//! uninterrupted ("straight") one, for every optimiser and its options; replays report what differs; damaged
//! checkpoints are never used.

use crate::support::command::{ft_binary, stderr};
use crate::support::resumed::*;
use crate::support::workspace::Workspace;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const LORA: &str = "recipes/lora-medical.yaml";
const DPO: &str = "recipes/dpo-medical.yaml";
const FULL: &str = "recipes/full-medical.yaml";

macro_rules! resumed_equals_straight {
    ($($name:ident: $recipe:expr, $sets:expr;)*) => {$(
        #[test]
        fn $name() {
            resumed_equals_straight(&Workspace::new(), $recipe, &$sets);
        }
    )*};
}

resumed_equals_straight! {
    adamw_lora_with_dropout: LORA, ["adapter.lora.dropout=0.1"];
    dora_with_dropout: LORA, ["adapter.lora.dora=true", "adapter.lora.dropout=0.1"];
    pissa: LORA, ["adapter.lora.init=pissa", "adapter.lora.dropout=0.1"];
    frozen_a_and_token_rows: LORA, ["adapter.lora.freeze_a=true", "adapter.lora.token_rows=[5, 9, 300]"];
    lora_plus: LORA, ["adapter.lora.b_lr_ratio=16", "adapter.lora.init=orthogonal"];
    adamw_full: FULL, ["model.dtype=bf16"];
    adamw8_full: FULL, ["optim.kind={adamw8: {}}", "batch.tokens=300", "batch.max_len=300"];
    adamw8_full_with_stochastic_rounding: FULL, ["optim.kind={adamw8: {block: 2048}}", "optim.master=stochastic_rounding"];
    adafactor_full: FULL, ["optim.kind={adafactor: {momentum: 0.9, scale_parameter: true}}"];
    lion_lora_with_average_and_noise: LORA,
        ["optim.kind={lion: {}}", "optim.ema=0.9", "optim.neftune=5", "adapter.lora.dropout=0.1"];
    lion_full_with_stochastic_rounding_and_average: FULL,
        ["optim.kind={lion: {}}", "optim.ema=0.9", "optim.neftune=5", "optim.master=stochastic_rounding"];
    muon_full: FULL, ["optim.kind={muon: {}}", "optim.weight_decay=0.1"];
    muon_lora_replayed_with_groups: LORA, ["optim.kind={muon: {}}", "run.replay=all", "optim.neftune=5",
        "adapter.lora.dropout=0.1", "optim.groups=[{match: lora_B, lr: 1e-3, weight_decay: 0.1}]"];
    schedule_free_lora: LORA, ["optim.kind=schedule_free", "optim.schedule=constant", "adapter.lora.dropout=0.1"];
    schedule_free_full_with_stochastic_rounding: FULL,
        ["optim.kind=schedule_free", "optim.schedule=constant", "optim.master=stochastic_rounding"];
    dpo_lora_with_dropout: DPO, ["run.steps=", "adapter.lora.dropout=0.1", "batch.tokens=512", "batch.max_len=256"];
    dpo_full_against_cached_log_probabilities: DPO,
        ["run.steps=", "adapter=", "method.dpo.reference=cached", "data.cache=cache", "optim.lr=1e-5"];
    kto_full_against_cached_log_probabilities: DPO, ["run.steps=", "adapter=", "method={kto: {reference: cached}}",
        "batch.examples=16", "data.cache=cache", "optim.lr=1e-5"];
    kto_lora_with_dropout: DPO, ["run.steps=", "method={kto: {}}", "batch.examples=16", "adapter.lora.dropout=0.1"];
    sgd_lora: LORA, ["optim.kind={sgd: {}}", "optim.lr=0.1"];
}

#[test]
fn a_run_keeps_the_date_that_its_template_was_given() {
    let space = Workspace::new();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ strftime_now('%d %B %Y') }} {{ m.content }}<|im_end|>\n\
                    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ strftime_now('%d %B %Y') }} {% endif %}";
    std::fs::write(space.path("dated.jinja"), template).unwrap();
    // The two zones are 26 hours apart: their dates are never the same.
    let run = |zone: &str, arguments: &[&str]| {
        let output = space.command(arguments).env("TZ", zone).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    };
    let train = |zone: &str, out: &str, how: &str| {
        let out = format!("run.out={out}");
        let mut arguments = vec!["train", LORA, how, "--set", &out, "--set", "data.template=dated.jinja"];
        arguments.extend(STEPS.iter().flat_map(|s| ["--set", s]));
        run(zone, &arguments);
    };
    let read = |file: &str| -> Value { serde_json::from_slice(&std::fs::read(space.path(file)).unwrap()).unwrap() };
    train("AAA12", "straight", "--overwrite");
    broken_off(&space, "straight", "broken", 5);
    train("BBB-14", "broken", "--resume");
    assert_same_end(&space, "straight", "broken", "on another day");
    let plans = ["straight", "broken"].map(|out| read(&format!("{out}/plan.json"))["recipe"]["data"]["date"].clone());
    assert!(plans[0].as_str().is_some_and(|d| d.len() == 10) && plans[0] == plans[1], "{plans:?}");
    let replay = run("BBB-14", &["replay", "straight", "--json"]);
    let replay: Value = serde_json::from_slice(&replay.stdout).unwrap();
    assert_eq!((&replay["equal"], &replay["drift"]), (&Value::Bool(true), &serde_json::json!([])), "{replay}");
    // A run that starts on the other day is trained on other tokens, and its lock file records their hash.
    train("BBB-14", "later", "--overwrite");
    let tokens = |out: &str| read(&format!("{out}/ft.lock"))["train"]["tokens_sha256"].as_str().unwrap().to_string();
    assert_eq!(tokens("straight"), tokens("broken"));
    assert_ne!(tokens("straight"), tokens("later"));
}

#[test]
fn the_result_of_an_averaged_run_is_the_average() {
    let space = Workspace::new();
    let kinds: [(&str, &[&str]); 3] = [
        ("ema", &["optim.ema=0.9"]),
        ("free", &["optim.kind=schedule_free", "optim.schedule=constant"]),
        ("plain", &[]),
    ];
    for (name, sets) in kinds {
        train(&space, LORA, name, &[sets, &["run.result=last"]].concat());
    }
    let trained =
        |out: &str| ft::nn::Weights::open_file(&checkpoint(&space, out, 9).join("trained.safetensors")).unwrap();
    let name = "model.layers.1.mlp.down_proj.lora_B.weight";
    for (out, averaged) in [("ema", true), ("free", true), ("plain", false)] {
        let result = ft::nn::Weights::open_file(&space.path(out).join("adapter_model.safetensors")).unwrap();
        let result = result.get(&format!("base_model.model.{name}")).unwrap();
        let learning = trained(out).get(&format!("0/{name}")).unwrap();
        assert_eq!(result.equal(&learning), !averaged, "{out}");
        if out == "ema" {
            let state = ft::nn::Weights::open_file(&checkpoint(&space, out, 9).join("optimiser.safetensors")).unwrap();
            assert!(result.equal(&state.get(&format!("{name}.average")).unwrap()));
        }
    }
}

#[test]
fn a_replay_names_the_first_step_and_the_first_tensor_that_differ() {
    let space = Workspace::new();
    train(&space, LORA, "run", &["run.save_every=3", "adapter.lora.dropout=0.1"]);
    // Without a number of steps, `--verify` replays from the last checkpoint but one. The validations at steps 4 and 8
    // saved checkpoints, too.
    let verdict = String::from_utf8(space.ft(&["resume", "run", "--verify"]).stdout).unwrap();
    assert!(verdict.starts_with("same: steps 9 to 9 from the checkpoint of step 8"), "{verdict}");
    let before = std::fs::read_dir(space.path("run")).unwrap().count();
    // Verify all nine steps, from the start, which needs no checkpoint.
    space.ft(&["resume", "run", "--verify", "9"]);
    assert_eq!(std::fs::read_dir(space.path("run")).unwrap().count(), before, "a replay must leave nothing behind");
    // Change a number in metrics.jsonl.
    let metrics = space.path("run/metrics.jsonl");
    let text = std::fs::read_to_string(&metrics).unwrap();
    let line = text.lines().find(|l| l.starts_with("{\"step\":7,")).unwrap();
    let loss = serde_json::from_str::<Value>(line).unwrap()["loss"].to_string();
    std::fs::write(&metrics, text.replace(&loss, "1.25")).unwrap();
    let said = space.refused(&["resume", "run", "--verify", "3"]);
    assert!(said.contains("differs at step 7: metrics.jsonl: `loss` was 1.25, is "), "{said}");
    std::fs::write(&metrics, text).unwrap();
    // Change a tensor of the last checkpoint, and its manifest accordingly.
    let folder = checkpoint(&space, "run", 9);
    let (file, manifest) = (folder.join("trained.safetensors"), folder.join("manifest.json"));
    let mut bytes = std::fs::read(&file).unwrap();
    let before = ft::fsutil::sha256(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let fitting = std::fs::read_to_string(&manifest).unwrap().replace(&before, &ft::fsutil::sha256(&file).unwrap());
    std::fs::write(&manifest, fitting).unwrap();
    let json = space.command(&["resume", "run", "--verify", "3", "--json"]).output().unwrap();
    let verdict: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&verdict["same"], &verdict["step"]), (&Value::Bool(false), &9.into()), "{verdict}");
    let difference = verdict["difference"].as_str().unwrap();
    assert!(difference.starts_with("trained.safetensors: `0/model.layers."), "{difference}");
    assert_eq!(json.status.code(), Some(1));
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_previous_one_is_used() {
    let space = Workspace::new();
    train(&space, LORA, "straight", &["adapter.lora.dropout=0.1"]);
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let damage: [Damage; 4] = [
        ("flipped", &|folder| {
            let file = folder.join("optimiser.safetensors");
            let mut bytes = std::fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            std::fs::write(&file, bytes).unwrap();
        }),
        ("cut", &|folder| {
            let file = std::fs::File::options().write(true).open(folder.join("trained.safetensors")).unwrap();
            file.set_len(100).unwrap();
        }),
        ("gone", &|folder| std::fs::remove_file(folder.join("generator.safetensors")).unwrap()),
        ("unsigned", &|folder| std::fs::remove_file(folder.join("manifest.json")).unwrap()),
    ];
    for (name, damage) in damage {
        broken_off(&space, "straight", name, 6);
        damage(&checkpoint(&space, name, 6));
        let output = space.ft(&["resume", name]);
        let said = stderr(&output);
        assert!(
            said.contains("the checkpoint of step 6 is damaged") && said.contains("resuming after step 5"),
            "{said}"
        );
        assert!(space.path(&format!("{name}/checkpoints/damaged-step-6")).exists());
        assert_same_end(&space, "straight", name, name);
    }
    broken_off(&space, "straight", "none", 2);
    for step in [1, 2] {
        std::fs::write(checkpoint(&space, "none", step).join("state.json"), "{").unwrap();
    }
    assert!(space.refused(&["resume", "none"]).contains("all 2 checkpoints are damaged"));
    assert!(checkpoint(&space, "none", 2).exists(), "a checkpoint was moved although none is usable");
}

#[test]
fn a_run_without_checkpoints_starts_again_and_partial_ones_are_removed() {
    let space = Workspace::new();
    train(&space, LORA, "straight", &[]);
    broken_off(&space, "straight", "broken", 1);
    std::fs::remove_dir_all(checkpoint(&space, "broken", 1)).unwrap();
    let half = space.path("broken/checkpoints/.step-2.tmp-1");
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(half.join("trained.safetensors"), "half").unwrap();
    let said = String::from_utf8_lossy(&space.ft(&["resume", "broken"]).stderr).into_owned();
    assert!(said.contains("ended before its first checkpoint"), "{said}");
    assert!(!half.exists());
    assert_same_end(&space, "straight", "broken", "anew");
    // A result without checkpoints is not overwritten by a new training.
    std::fs::remove_dir_all(space.path("broken/checkpoints")).unwrap();
    assert!(space.refused(&["resume", "broken"]).contains("no checkpoint to resume from"));
    assert!(space.refused(&["resume", "nowhere"]).contains("plan.json is missing"));
}

#[test]
fn changed_data_is_refused_with_the_difference() {
    let space = Workspace::new();
    train(&space, LORA, "run", &[]);
    let rows = space.path("datasets/icd10/train.jsonl");
    let text = std::fs::read_to_string(&rows).unwrap();
    let first = text.lines().next().unwrap();
    std::fs::write(&rows, format!("{text}\n{first}\n")).unwrap();
    for arguments in [&["resume", "run"][..], &["resume", "run", "--verify"]] {
        let said = space.refused(arguments);
        assert!(
            said.contains("data.train: was ") && said.contains("(24 rows, ") && said.contains("(25 rows, "),
            "{said}"
        );
    }
    // The same rows in another file are the same data.
    std::fs::write(space.path("moved.jsonl"), text).unwrap();
    broken_off(&space, "run", "broken", 5);
    let out = "run.out=broken";
    let mut arguments = vec!["train", LORA, "--resume", "--set", out, "--set", "data.train.path=moved.jsonl"];
    arguments.extend(STEPS.iter().flat_map(|s| ["--set", s]));
    space.ft(&arguments);
    assert_same_end(&space, "run", "broken", "moved data");
}

#[test]
fn settings_that_cannot_change_the_result_may_change_when_a_run_is_resumed() {
    let space = Workspace::new();
    train(&space, LORA, "run", &["run.threads=1"]);
    let sets = [
        "run.out=broken",
        "run.threads=2",
        "run.keep=9",
        "run.samples=1",
        "run.eval_at_start=false",
        "model.device=cpu",
        "model.storage=file",
        "data.cache=tokens",
    ];
    let resume = |more: &[&'static str]| {
        let mut arguments = vec!["train", LORA, "--resume"];
        arguments.extend(STEPS.iter().chain(&sets).chain(more).flat_map(|s| ["--set", s]));
        arguments
    };
    broken_off(&space, "run", "broken", 5);
    let said = space.refused(&resume(&["run.seed=8"]));
    assert!(said.contains("run.seed: was ") && !said.contains("threads") && !said.contains("cache"), "{said}");
    let said = String::from_utf8_lossy(&space.ft(&resume(&[])).stderr).into_owned();
    assert!(said.contains("threads: was 1, is 2"), "a difference of the machine is reported: {said}");
    assert_eq!(space.steps("broken").len(), space.steps("run").len());
}

#[test]
fn a_folder_takes_one_run_at_a_time() {
    let space = Workspace::new();
    train(&space, LORA, "run", &[]);
    let before = space.weights("run");
    let other = std::fs::File::open(space.path("run")).unwrap();
    other.lock().unwrap();
    for more in ["--overwrite", "--resume"] {
        let said = space.refused(&["train", LORA, more, "--set", "run.out=run"]);
        assert!(said.contains("another ft process is working in this folder"), "{said}");
    }
    assert_eq!(space.weights("run"), before);
    drop(other);
    train(&space, LORA, "run", &[]);
}

#[test]
fn a_folder_that_contains_a_run_is_refused_before_data_is_read() {
    let space = Workspace::new();
    train(&space, LORA, "run", &[]);
    let said = space.refused(&["train", LORA, "--set", "run.out=run", "--set", "data.train.path=nowhere.jsonl"]);
    assert!(said.contains("holds a run that is at step 9"), "{said}");
}

#[test]
fn a_half_moved_result_is_refused_until_the_run_is_resumed() {
    let space = Workspace::new();
    train(&space, LORA, "run", &[]);
    let whole = space.weights("run");
    let (run, moving) = (space.path("run"), space.path("run/result.moving"));
    // As if killed after the old weights were moved away and before the new ones were put in place.
    std::fs::create_dir(&moving).unwrap();
    for name in ["adapter_model.safetensors", "export_report.json"] {
        std::fs::rename(run.join(name), moving.join(name)).unwrap();
    }
    let said = space.refused(&["merge", "models/smollm2-135m-instruct", "run", "--out", "merged"]);
    assert!(said.contains("ft was stopped while it moved a result here") && said.contains("ft resume"), "{said}");
    space.ft(&["resume", "run"]);
    assert!(!moving.exists());
    assert_eq!(space.weights("run"), whole);
}

/// Simulates a full disk: every write beyond a file size fails (`ulimit -f`).
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_good_checkpoint() {
    let space = Workspace::new();
    train(&space, LORA, "run", &[]);
    broken_off(&space, "run", "full", 5);
    let script = format!("trap '' XFSZ; ulimit -f 64; exec {} resume full", ft_binary().display());
    let output = Command::new("bash").args(["-c", &script]).current_dir(space.path(".")).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("saving the checkpoint of step 6"), "{said}");
    let names = std::fs::read_dir(space.path("full/checkpoints")).unwrap();
    let names: Vec<String> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.contains(&"step-5".into()) && !names.iter().any(|n| n.contains("step-6")), "{names:?}");
    space.ft(&["resume", "full"]);
    assert_same_end(&space, "run", "full", "after a full disk");
}
