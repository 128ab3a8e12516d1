//! Trains adapters over checkpoints that are stored quantised (fixtures/stored) through the real binary: they learn, resume
//! exactly, work with every method, and are merged into the full-precision weights.

use crate::support::command::stderr;
use crate::support::resumed::{resumed_equals_straight, train};
use crate::support::stored::{FORMATS, write_stored};
use crate::support::workspace::Workspace;
use serde_json::{Value, json};

const LORA: &str = "recipes/lora-medical.yaml";
const FULL: &str = "models/smollm2-135m-instruct";

/// Makes a workspace with the models of these formats as `models/FORMAT`.
fn with_models(formats: &[&str]) -> Workspace {
    let space = Workspace::new();
    for format in formats {
        write_stored(format, &space.path(&format!("models/{format}")), |_| ());
    }
    space
}

/// Returns the name of a format in reports.
fn described(format: &str) -> &str {
    match format {
        "nf4" => "bitsandbytes NF4 with 8-bit scales",
        "fp4" => "bitsandbytes FP4",
        "int8" => "bitsandbytes int8",
        "gptq" => "GPTQ int4, groups of 32",
        "fp8" => "FP8 (e4m3)",
        _ => "AWQ int4, groups of 32",
    }
}

#[test]
fn an_adapter_over_stored_quantised_weights_learns_and_is_opened_again() {
    let space = with_models(&FORMATS);
    for format in FORMATS {
        let path = format!("models/{format}");
        let sets = ["run.epochs=8", "optim.lr=1e-2", "optim.schedule=constant", &format!("model.path={path}")];
        train(&space, LORA, format, &sets);
        let losses: Vec<f64> = space.steps(format).iter().filter_map(|line| line["loss"].as_f64()).collect();
        let (first, last) = (losses[..3].iter().sum::<f64>(), losses[21..].iter().sum::<f64>());
        assert!(losses.len() == 24 && last < 0.9 * first, "{format}: {losses:?}");
        let report = space.json(&format!("{format}/export_report.json"));
        assert_eq!(report["verdict"], "passed", "{report}");
        assert_eq!(report["quantised_base"], json!({ "stored": described(format) }));
        let ask = |more: &[&str]| {
            let arguments = ["generate", "--model", &path, "--prompt", "one two", "--max-new-tokens", "8"];
            space.ft(&[&arguments[..], more].concat()).stdout
        };
        assert_ne!(ask(&[]), ask(&["--adapter", format]), "{format}: the adapter changes the answer");
    }
}

#[test]
fn resumed_runs_over_stored_quantised_weights_equal_straight_ones() {
    let space = with_models(&["nf4", "gptq"]);
    for (format, more) in [("nf4", "adapter.lora.dropout=0.1"), ("gptq", "run.replay=all")] {
        resumed_equals_straight(&space, LORA, &[&format!("model.path=models/{format}"), more]);
    }
}

#[test]
fn every_method_runs_over_stored_quantised_weights() {
    let space = with_models(&["gptq"]);
    let steps = |name: &str, recipe: &str, sets: &[&str]| {
        let out = format!("run.out=runs/{name}");
        let common = ["model.path=models/gptq", "run.steps=2", "run.samples=0", "run.eval_every=0", &out];
        let sets = common.iter().chain(sets).flat_map(|s| ["--set", s]);
        space.ft(&["train", recipe].into_iter().chain(sets).collect::<Vec<_>>());
        let losses: Vec<f64> =
            space.steps(&format!("runs/{name}")).iter().filter_map(|line| line["loss"].as_f64()).collect();
        assert!(losses.len() == 2 && losses.iter().all(|x| x.is_finite()), "{name}: {losses:?}");
        let report = space.json(&format!("runs/{name}/export_report.json"));
        assert_eq!(report["quantised_base"], json!({ "stored": described("gptq") }), "{name}");
    };
    let lora = "adapter={lora: {rank: 4}}";
    for name in ["lora-medical", "dpo-medical", "orpo-chat", "simpo-chat", "kto-chat", "reward-helpful"] {
        steps(name, &format!("recipes/{name}.yaml"), &[lora]);
    }
    let judge = "method.ppo.rewards=[{model: {path: runs/reward-helpful, force: true}}]";
    let small = ["method.ppo.sampling.prompts=4", "method.ppo.sampling.max_new_tokens=8"];
    steps("ppo", "recipes/ppo-helpful.yaml", &[judge, small[0], small[1]]);
    let rewards = "rewards: [{regex: {pattern: '^[a-m]'}}, {length: {max: 6, falloff: 12}}]";
    for name in ["grpo", "rloo"] {
        let method =
            format!("method={{{name}: {{{rewards}, sampling: {{prompts: 4, max_new_tokens: 8}}, answers: 4}}}}");
        steps(name, "recipes/grpo-icd10.yaml", &[&method]);
    }
    steps("distill", LORA, &["method={distill: {teachers: [{path: models/medical}]}}"]);
    // A quantised model as teacher of a full one.
    let teacher = "method={distill: {teachers: [{path: models/gptq}]}}";
    let sets = [teacher, "run.steps=2", "run.samples=0", "run.eval_every=0", "run.out=runs/taught"];
    space.ft(&["train", LORA].into_iter().chain(sets.iter().flat_map(|s| ["--set", s])).collect::<Vec<_>>());
}

#[test]
fn an_adapter_over_stored_quantised_weights_is_merged_into_the_full_precision_ones() {
    let space = with_models(&["awq"]);
    train(&space, LORA, "run", &["optim.lr=1e-2", "model.path=models/awq"]);
    let said = space.refused(&["merge", "models/awq", "run", "--out", "merged"]);
    assert!(said.contains("stored quantised") && said.contains("full-precision weights"), "{said}");
    let said = space.refused(&["merge", "run", "--out", "merged"]);
    assert!(said.contains("was trained over") && said.contains("full-precision weights"), "{said}");
    let merge = space.ft(&["merge", FULL, "run", "--out", "merged", "--json"]);
    let report: Value = serde_json::from_slice(&merge.stdout).unwrap();
    assert_eq!((&report["verdict"], &report.get("quantised_base")), (&json!("passed"), &None), "{report}");
    let error = &report["quantisation_error"];
    assert_eq!(error["trained_over"], json!({ "stored": described("awq") }));
    let kl = error["difference"]["mean_kl"].as_f64().unwrap();
    assert!(kl > 1e-6 && kl > 100.0 * report["difference"]["mean_kl"].as_f64().unwrap().abs(), "{report}");
    assert!(stderr(&merge).contains("trained over a base in AWQ int4"), "{}", stderr(&merge));
    // Merged as an adapter, it is still one over the quantised base.
    let sum = space.ft(&["merge", FULL, "run=0.5", "--as", "adapter", "--out", "half", "--json"]);
    let report: Value = serde_json::from_slice(&sum.stdout).unwrap();
    assert_eq!(report["quantised_base"], json!({ "stored": described("awq") }), "{report}");
    // What merging changes cannot be measured without the quantised base.
    std::fs::rename(space.path("models/awq"), space.path("models/elsewhere")).unwrap();
    let merge = space.ft(&["merge", FULL, "run", "--out", "again", "--json"]);
    let report: Value = serde_json::from_slice(&merge.stdout).unwrap();
    assert_eq!((&report["verdict"], &report.get("quantisation_error")), (&json!("passed"), &None), "{report}");
    assert!(report["notes"].to_string().contains("was not measured"), "{report}");
}

#[test]
fn what_needs_full_precision_weights_says_so() {
    let space = with_models(&["nf4"]);
    let train = |sets: &[&str]| {
        let sets = ["model.path=models/nf4"].iter().chain(sets).flat_map(|s| ["--set", s]);
        space.refused(&["train", LORA].into_iter().chain(sets).collect::<Vec<_>>())
    };
    for (sets, expected) in [
        (&["adapter=", "optim.lr=1e-5"][..], "they cannot be trained"),
        (&["adapter=", "optim.lr=1e-5", "model.trained={last_layers: 1}"], "they cannot be trained"),
        (&["model.quantize=int8"], "cannot be quantised once more"),
        (&["model.quantize=nf4", "adapter={lora: {init: loftq}}"], "cannot be quantised once more"),
        (&["adapter={lora: {modules_to_save: [q_proj]}}"], "cannot be trained"),
    ] {
        let said = train(sets);
        assert!(said.contains(expected), "{sets:?}: {said}");
    }
    let said = space.refused(&["student", "--from", "models/nf4", "--layers", "1", "--out", "small"]);
    assert!(said.contains("no student can be cut out of them"), "{said}");
    let checks = space.command(&["selftest", "--model", "models/nf4"]).output().unwrap();
    assert!(checks.status.success(), "{}", stderr(&checks));
}
