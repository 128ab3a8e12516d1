//! Trains adapters over quantised weights through the real binary: they learn, resume exactly, work with every method,
//! and are merged into the base's own weights.

use crate::support::command::stderr;
use crate::support::resumed::{broken_off, resumed_equals_straight, train};
use crate::support::workspace::Workspace;
use serde_json::{Value, json};

const QLORA: &str = "recipes/qlora-medical.yaml";

/// Returns the losses of a run's steps.
fn losses(space: &Workspace, out: &str) -> Vec<f64> {
    space.steps(out).iter().filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn an_adapter_over_quantised_weights_learns() {
    let space = Workspace::new();
    for format in ["nf4", "fp4", "int8"] {
        let set = format!("model.quantize={format}");
        let run = train(&space, QLORA, format, &[&set, "run.epochs=8", "optim.lr=1e-2", "optim.schedule=constant"]);
        let losses = losses(&space, format);
        assert!(
            losses.len() == 24 && losses[21..].iter().sum::<f64>() < 0.9 * losses[..3].iter().sum::<f64>(),
            "{losses:?}"
        );
        assert!(stderr(&run).contains("linear layers quantised to"), "{}", stderr(&run));
        let four_bits = format != "int8";
        let model = &space.json(&format!("{format}/plan.json"))["recipe"]["model"];
        assert_eq!(model["quantize"], format);
        assert_eq!(model["double_quantize"], if four_bits { json!(true) } else { Value::Null });
        let report = space.json(&format!("{format}/export_report.json"));
        assert_eq!(report["verdict"], "passed", "{report}");
        assert_eq!(report["quantised_base"], json!({ "format": format, "double": four_bits }));
    }
}

#[test]
fn resumed_runs_over_quantised_weights_equal_straight_ones() {
    for (format, more) in [("nf4", "adapter.lora.dropout=0.1"), ("int8", "run.replay=all")] {
        resumed_equals_straight(&Workspace::new(), QLORA, &[&format!("model.quantize={format}"), more]);
    }
}

#[test]
fn a_run_is_not_resumed_over_other_weights() {
    let space = Workspace::new();
    train(&space, QLORA, "straight", &[]);
    broken_off(&space, "straight", "broken", 5);
    let resume = |set: &str| {
        let steps = crate::support::resumed::STEPS.iter().flat_map(|s| ["--set", s]);
        let arguments = ["train", QLORA, "--resume", "--set", "run.out=broken", "--set", set].into_iter().chain(steps);
        space.refused(&arguments.collect::<Vec<_>>())
    };
    for (set, expected) in [
        ("model.quantize=fp4", "model.quantize: was \"nf4\", is \"fp4\""),
        ("model.quantize=", "model.quantize: was \"nf4\", is not set"),
        ("model.double_quantize=false", "model.double_quantize: was true, is false"),
    ] {
        let said = resume(set);
        assert!(said.contains(expected), "{set}: {said}");
    }
}

#[test]
fn every_method_runs_over_quantised_weights() {
    let space = Workspace::new();
    let steps = |name: &str, recipe: &str, sets: &[&str]| {
        let out = format!("run.out=runs/{name}");
        let common = ["model.quantize=nf4", "run.steps=2", "run.samples=0", "run.eval_every=0", &out];
        let sets = common.iter().chain(sets).flat_map(|s| ["--set", s]);
        let run = space.ft(&["train", recipe].into_iter().chain(sets).collect::<Vec<_>>());
        assert!(stderr(&run).contains("quantised to NF4"), "{name}: {}", stderr(&run));
        let losses = losses(&space, &format!("runs/{name}"));
        assert!(losses.len() == 2 && losses.iter().all(|x| x.is_finite()), "{name}: {losses:?}");
        assert_eq!(space.json(&format!("runs/{name}/export_report.json"))["verdict"], "passed", "{name}");
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
    steps("distill", QLORA, &["method={distill: {teachers: [{path: models/medical}]}}"]);
}

#[test]
fn an_adapter_over_quantised_weights_is_merged_into_the_bases_own() {
    let space = Workspace::new();
    train(&space, QLORA, "run", &["optim.lr=1e-2"]);
    let base = "models/smollm2-135m-instruct";
    let merge = space.ft(&["merge", base, "run", "--out", "merged", "--json"]);
    let report: Value = serde_json::from_slice(&merge.stdout).unwrap();
    assert_eq!((&report["verdict"], &report.get("quantised_base")), (&json!("passed"), &None), "{report}");
    let error = &report["quantisation_error"];
    assert_eq!(error["trained_over"], json!({ "format": "nf4", "double": true }));
    let kl = error["difference"]["mean_kl"].as_f64().unwrap();
    assert!(kl > 1e-6 && kl > 100.0 * report["difference"]["mean_kl"].as_f64().unwrap().abs(), "{report}");
    assert!(stderr(&merge).contains("merged into the base's own weights"), "{}", stderr(&merge));
    // Without a base, it is the one that the adapter names.
    let named = space.ft(&["merge", "run", "--out", "again", "--json"]);
    assert!(stderr(&named).contains("smollm2-135m-instruct, which run names"), "{}", stderr(&named));
    assert_eq!(space.weights("merged"), space.weights("again"));
    let half = space.ft(&["merge", "run=0.5", "--out", "half-model", "--json"]);
    assert!(stderr(&half).contains("which run names") && space.weights("half-model") != space.weights("merged"));
    // Merged as an adapter, it is still one over the quantised base.
    let sum = space.ft(&["merge", base, "run=0.5", "--as", "adapter", "--out", "half", "--json"]);
    let report: Value = serde_json::from_slice(&sum.stdout).unwrap();
    assert_eq!(report["quantised_base"]["format"], "nf4", "{report}");
    assert!(report.get("quantisation_error").is_none());
    // A merge of adapters over bases that were quantised in two ways is refused.
    train(&space, QLORA, "other", &["model.quantize=int8"]);
    let said = space.refused(&["merge", base, "run", "other", "--out", "both"]);
    assert!(said.contains("NF4 with 8-bit scales") && said.contains("int8"), "{said}");
}

/// The result is a plain LoRA that corrects the quantised weights, so it is not merged into the weights that they were
/// quantised from. An adapter that continues it does the same.
#[test]
fn loftq_is_trained_over_quantised_weights_and_stays_over_them() {
    let space = Workspace::new();
    let base = "models/smollm2-135m-instruct";
    train(&space, QLORA, "plain", &[]);
    train(&space, QLORA, "loftq", &["adapter.lora.init=loftq"]);
    let first = |out: &str| losses(&space, out)[0];
    assert!((first("plain") - first("loftq")).abs() > 1e-4, "{} {}", first("plain"), first("loftq"));
    let corrected = json!({ "format": "nf4", "double": true, "corrected": true });
    let report = space.json("loftq/export_report.json");
    assert_eq!(report["quantised_base"], corrected);
    let readers = report["compatibility"].as_array().unwrap();
    for (program, part) in [
        ("PEFT", "NF4 with 8-bit scales only"),
        ("vLLM", "--quantization bitsandbytes"),
        ("TGI", "\"reads\":null"),
        ("llama.cpp", "\"reads\":false"),
    ] {
        let told = readers.iter().find(|reader| reader["consumer"] == program).unwrap();
        assert!(told.to_string().contains(part) && told["command"].is_null(), "{told}");
    }
    let shown = String::from_utf8(space.ft(&["adapter", "info", "loftq"]).stdout).unwrap();
    assert!(
        shown.contains("--quantization bitsandbytes") && shown.contains("GGUF files have other formats"),
        "{shown}"
    );
    let config = space.json("loftq/adapter_config.json");
    assert_eq!((&config["init_lora_weights"], &config["r"]), (&json!(true), &json!(16)), "{config}");
    train(&space, QLORA, "more", &["adapter.lora.from=loftq"]);
    assert_eq!(space.json("more/export_report.json")["quantised_base"], corrected);
    for folder in ["loftq", "more"] {
        for form in ["model", "adapter"] {
            let said = space.refused(&["merge", base, folder, "--as", form, "--out", "merged"]);
            assert!(
                said.contains("began as a correction of a base in NF4") && said.contains("--quantize nf4"),
                "{said}"
            );
        }
    }
    for (sets, expected) in [
        (["model.quantize=", "adapter.lora.init=loftq"], "`model.quantize` is not set"),
        (["adapter.lora.from=loftq", "adapter.lora.init=loftq"], "contradicts `from`"),
        (["adapter.lora.alpha=0", "adapter.lora.init=loftq"], "divides by the scale"),
    ] {
        let said = space.refused(&["recipe", "show", QLORA, "--set", sets[0], "--set", sets[1]]);
        assert!(said.contains(expected), "{sets:?}: {said}");
    }
}

#[test]
fn answers_of_a_quantised_model_and_what_it_says() {
    let space = Workspace::new();
    let model = "models/smollm2-135m-instruct";
    let ask = |more: &[&str]| {
        let arguments =
            [&["generate", "--model", model, "--prompt", "one two", "--max-new-tokens", "8"], more].concat();
        let output = space.ft(&arguments);
        (String::from_utf8(output.stdout.clone()).unwrap(), stderr(&output))
    };
    let (plain, said) = ask(&[]);
    assert!(!said.contains("quantised"), "{said}");
    let answers = ["nf4", "fp4", "int8"].map(|format| {
        let (answer, said) = ask(&["--quantize", format]);
        assert!(said.contains("linear layers quantised to"), "{said}");
        answer
    });
    assert!(answers.iter().any(|answer| *answer != plain), "{answers:?}");
}

#[test]
fn settings_that_cannot_be_combined_with_quantised_weights_are_mistakes() {
    let space = Workspace::new();
    let refused = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|s| ["--set", s]);
        space.refused(&["recipe", "show", QLORA].into_iter().chain(sets).collect::<Vec<_>>())
    };
    for (sets, expected) in [
        (&["adapter="][..], "`model.quantize` needs an `adapter`"),
        (&["model.storage=copy"], "`model.storage` has no effect with `model.quantize`"),
        (&["model.quantize=int8", "model.double_quantize=true"], "`model.double_quantize` has no effect with"),
        (&["model.quantize=", "model.double_quantize=true"], "`model.double_quantize` has no effect without"),
        (&["model.quantize=nf5"], "nf4"),
    ] {
        let said = refused(sets);
        assert!(said.contains(expected), "{sets:?}: {said}");
    }
}
