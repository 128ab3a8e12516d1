//! Trains over a GGUF file through the real binary: adapters learn, resume exactly and are read again, every method
//! runs, and what cannot be done over quantised weights is refused by name.

use crate::support::command::{stderr, stdout};
use crate::support::gguf::tiny_gguf;
use crate::support::resumed::{broken_off, resumed_equals_straight, train};
use crate::support::workspace::{GGUF, Workspace};
use ft::gguf::quant::GgmlType;
use serde_json::Value;

const RECIPE: &str = "recipes/gguf-lora.yaml";

/// Returns the losses of a run's steps.
fn losses(space: &Workspace, out: &str) -> Vec<f64> {
    space.steps(out).iter().filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn an_adapter_over_a_gguf_file_learns_and_is_read_again() {
    let space = Workspace::new();
    let file = std::fs::read(space.path(GGUF)).unwrap();
    let run = train(&space, RECIPE, "run", &["run.epochs=8", "optim.lr=1e-2", "optim.schedule=constant"]);
    let losses = losses(&space, "run");
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(losses.len() == 24 && mean(&losses[21..]) < 0.9 * mean(&losses[..3]), "{losses:?}");
    assert!(stderr(&run).contains("Q4_1"), "{}", stderr(&run));
    assert_eq!(std::fs::read(space.path(GGUF)).unwrap(), file, "the user's file is not changed");

    let config = space.json("run/adapter_config.json");
    assert!(config["base_model_name_or_path"].as_str().unwrap().ends_with(GGUF), "{config}");
    let report = space.json("run/export_report.json");
    assert_eq!(report["verdict"], "passed", "{report}");
    let peft = report["compatibility"].as_array().unwrap().iter().find(|c| c["consumer"] == "PEFT").unwrap();
    assert_eq!(peft["reads"], false);
    assert!(peft["note"].as_str().unwrap().contains("GGUF file") && peft["note"].as_str().unwrap().contains("tiny"));
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        assert!(space.path("run").join(name).is_file(), "{name} is beside the adapter");
    }
    let generate = |model: &str, more: &[&str]| {
        let ask =
            ["generate", "--model", model, "--chat", "--prompt", "one two", "--max-new-tokens", "8", "--dtype", "f32"];
        stdout(&space.ft(&[&ask[..], more].concat()))
    };
    let (plain, adapted) = (generate(GGUF, &[]), generate(GGUF, &["--adapter", "run"]));
    assert_ne!(plain, adapted);
    // The directory that `ft import` makes is the same model.
    space.ft(&["import", GGUF, "--out", "imported", "--dtype", "f32"]);
    assert_eq!(generate("imported", &["--adapter", "run"]), adapted);
    assert_eq!(generate("imported", &[]), plain);

    let lock = std::fs::read_to_string(space.path("run/ft.lock")).unwrap();
    assert!(lock.contains("SmolLM2-135M-Instruct.Q4_1.gguf"), "{lock}");
}

#[test]
fn resumed_runs_over_a_gguf_file_equal_straight_ones() {
    for set in ["adapter.lora.dropout=0.1", "run.replay=all"] {
        resumed_equals_straight(&Workspace::new(), RECIPE, &[set]);
    }
}

#[test]
fn a_run_is_not_resumed_over_another_file() {
    let space = Workspace::new();
    train(&space, RECIPE, "straight", &[]);
    broken_off(&space, "straight", "broken", 5);
    let mut other = tiny_gguf("llama", GgmlType::Q4_1);
    other.text("general.description", "another file");
    other.write(&space.path(GGUF));
    let said = space.refused(&["resume", "broken"]);
    assert!(said.contains("files changed since the run started") && said.contains("Q4_1.gguf"), "{said}");
}

#[test]
fn every_method_runs_over_a_gguf_file() {
    let space = Workspace::new();
    let steps = |name: &str, recipe: &str, sets: &[&str]| {
        let (out, model) = (format!("run.out=runs/{name}"), format!("model.path={GGUF}"));
        let common = [&model, "run.steps=2", "run.samples=0", "run.eval_every=0", &out];
        let sets = common.iter().chain(sets).flat_map(|s| ["--set", s]);
        space.ft(&["train", recipe].into_iter().chain(sets).collect::<Vec<_>>());
        let losses = losses(&space, &format!("runs/{name}"));
        assert!(losses.len() == 2 && losses.iter().all(|x| x.is_finite()), "{name}: {losses:?}");
        assert_eq!(space.json(&format!("runs/{name}/export_report.json"))["verdict"], "passed", "{name}");
    };
    let lora = "adapter={lora: {rank: 4}}";
    for name in ["lora-medical", "dpo-medical", "orpo-chat", "simpo-chat", "kto-chat", "reward-helpful"] {
        steps(name, &format!("recipes/{name}.yaml"), &[lora]);
    }
    let small = ["method.ppo.sampling.prompts=4", "method.ppo.sampling.max_new_tokens=8"];
    let judge = "method.ppo.rewards=[{model: {path: runs/reward-helpful, force: true}}]";
    steps("ppo", "recipes/ppo-helpful.yaml", &[judge, small[0], small[1]]);
    // A reward adapter with a base of its own, which is a GGUF file, judges another model's answers.
    let own = format!("method.ppo.rewards=[{{model: {{path: runs/reward-helpful, base: {GGUF}, force: true}}}}]");
    let smollm = "model.path=models/smollm2-135m-instruct";
    let more = [&own, "run.steps=1", "run.samples=0", "run.out=runs/judged", smollm, small[0], small[1]];
    let sets = more.iter().flat_map(|s| ["--set", s]);
    space.ft(&["train", "recipes/ppo-helpful.yaml"].into_iter().chain(sets).collect::<Vec<_>>());
    let rewards = "rewards: [{regex: {pattern: '^[a-m]'}}, {length: {max: 6, falloff: 12}}]";
    for name in ["grpo", "rloo"] {
        let method =
            format!("method={{{name}: {{{rewards}, sampling: {{prompts: 4, max_new_tokens: 8}}, answers: 4}}}}");
        steps(name, "recipes/grpo-icd10.yaml", &[&method]);
    }
    steps("distill", RECIPE, &[&format!("method={{distill: {{teachers: [{{path: {GGUF}}}]}}}}")]);
}

#[test]
fn every_kind_of_adapter_trains_over_a_gguf_file() {
    let space = Workspace::new();
    for (name, adapter) in [
        ("dora", "adapter={lora: {rank: 4, dora: true}}"),
        ("pissa", "adapter={lora: {rank: 4, init: pissa}}"),
        ("rows", "adapter={lora: {rank: 4, token_rows: [2]}}"),
        ("ia3", "adapter={ia3: {}}"),
        ("loha", "adapter={loha: {rank: 4}}"),
        ("lokr", "adapter={lokr: {rank: 4}}"),
        ("oft", "adapter={oft: {}}"),
        ("vera", "adapter={vera: {rank: 8}}"),
        ("adalora", "adapter={adalora: {}}"),
        ("prompt", "adapter={prompt_tuning: {virtual_tokens: 4, init: vocabulary}}"),
        ("p_tuning", "adapter={p_tuning: {virtual_tokens: 4}}"),
        ("prefix", "adapter={prefix_tuning: {virtual_tokens: 4}}"),
        ("ln_tuning", "adapter={ln_tuning: {}}"),
    ] {
        let out = format!("run.out=runs/{name}");
        let sets = [adapter, "run.steps=3", "run.samples=0", "run.eval_every=0", &out];
        let sets = sets.iter().flat_map(|s| ["--set", s]);
        space.ft(&["train", RECIPE].into_iter().chain(sets).collect::<Vec<_>>());
        assert_eq!(space.json(&format!("runs/{name}/export_report.json"))["verdict"], "passed", "{name}");
        space.ft(&["generate", "--model", GGUF, "--adapter", &format!("runs/{name}"), "--prompt", "one"]);
    }
}

#[test]
fn the_other_commands_take_a_gguf_file() {
    let space = Workspace::new();
    let rows = "datasets/icd10/test.jsonl";
    let check = space.ft(&["check", RECIPE]);
    assert!(stdout(&check).contains("lengths in tokens"), "{}", stdout(&check));
    let eval = space.ft(&["eval", "--model", GGUF, "--data", rows, "--max-new-tokens", "4", "--json"]);
    let eval: Value = serde_json::from_slice(&eval.stdout).unwrap();
    assert!(eval["perplexity"].as_f64().is_some_and(f64::is_finite), "{eval}");
    let shown = space.ft(&["tokenizer", "show", "--model", GGUF, "one two", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert!(shown["ids"].as_array().unwrap().len() > 1, "{shown}");
    space.ft(&["data", "inspect", rows, "--model", GGUF]);
    space.ft(&["init", GGUF, rows, "--out", "made.yaml"]);
    space.ft(&["check", "made.yaml"]);
    space.ft(&["train", RECIPE, "--fit", "--set", "run.steps=1", "--set", "run.out=fitted"]);
    space.ft(&["runs", "show", "fitted"]);
    let tested = space.ft(&["selftest", "--model", GGUF]);
    assert!(!stdout(&tested).contains("FAIL"), "{}", stdout(&tested));
}

#[test]
fn what_cannot_be_done_over_quantised_weights_is_refused_by_name() {
    let space = Workspace::new();
    let refused = |set: &str| space.refused(&["train", RECIPE, "--set", set, "--set", "run.out=no"]);
    let said = refused("adapter=");
    assert!(said.contains("stored quantised") && said.contains("train an adapter"), "{said}");
    let said = refused("model.quantize=nf4");
    assert!(said.contains("Q4_1") && said.contains("model.quantize"), "{said}");
    assert!(!space.path("no").exists());
    let said = space.refused(&["generate", "--model", GGUF, "--quantize", "nf4", "--prompt", "a"]);
    assert!(said.contains("Q4_1"), "{said}");
    // A file in float16 has nothing quantised: it is quantised when it is loaded, and trained in full.
    tiny_gguf("llama", GgmlType::F16).write(&space.path("half.gguf"));
    let steps = ["model.path=half.gguf", "run.steps=2", "run.samples=0", "run.eval_every=0"];
    for (out, more) in [("nf4", "model.quantize=nf4"), ("full", "adapter=")] {
        let out = format!("run.out={out}");
        let sets = [&steps[..], &[more, &out]].concat();
        let sets = sets.iter().flat_map(|s| ["--set", s]);
        space.ft(&["train", RECIPE].into_iter().chain(sets).collect::<Vec<_>>());
    }
    assert_eq!(space.json("nf4/export_report.json")["quantised_base"]["format"], "nf4");
    assert_eq!(space.json("full/export_report.json")["verdict"], "passed");
    assert_eq!(space.json("full/config.json")["model_type"], "llama");
}

#[test]
fn files_that_are_no_model_are_refused_with_the_way_on() {
    let space = Workspace::new();
    let refused = |model: &str| space.refused(&["generate", "--model", model, "--prompt", "a"]);
    std::fs::write(space.path("notes.gguf"), "no model").unwrap();
    assert!(refused("notes.gguf").contains("not a GGUF file"));
    let whole = std::fs::read(space.path(GGUF)).unwrap();
    std::fs::write(space.path("short.gguf"), &whole[..whole.len() - 4096]).unwrap();
    assert!(refused("short.gguf").contains("damaged or cut short"));
    let changed = |file: &str, change: &dyn Fn(&mut crate::support::gguf::GgufWriter)| {
        let mut writer = tiny_gguf("llama", GgmlType::Q4_1);
        change(&mut writer);
        writer.write(&space.path(file));
    };
    changed("part.gguf", &|w| w.number("split.count", 3));
    assert!(refused("part.gguf").contains("metadata split.no is missing beside split.count"));
    changed("projector.gguf", &|w| w.text("general.type", "mmproj"));
    assert!(refused("projector.gguf").contains("`mmproj`, `model` expected"));
    std::fs::create_dir(space.path("folder")).unwrap();
    std::fs::copy(space.path(GGUF), space.path("folder/model.gguf")).unwrap();
    assert!(refused("folder").contains("name the GGUF file itself: folder/model.gguf"));
    let mut other = std::fs::read(space.path(GGUF)).unwrap();
    let at = other.windows(19).position(|w| w == b"blk.0.attn_q.weight").unwrap() + 19 + 4 + 16;
    other[at..at + 4].copy_from_slice(&23u32.to_le_bytes());
    std::fs::write(space.path("iq4.gguf"), &other).unwrap();
    assert!(refused("iq4.gguf").contains("IQ4_XS is not supported"));
}
