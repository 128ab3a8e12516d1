//! Trains adapters over quantised weights through the real binary: they learn, resume exactly, work with every method,
//! and are merged into the base's own weights.

use crate::support::command::stderr;
use crate::support::resumed::{broken_off, resumed_equals_straight, train};
use crate::support::workspace::Workspace;
use serde_json::{Value, json};

/// With the embedding and the output head in int8, or in their own format.
const TABLES: &str = "model.quantize_embeddings=int8";
const NO_TABLES: &str = "model.quantize_embeddings=";
const QLORA: &str = "recipes/qlora-medical.yaml";

/// Returns the losses of a run's steps.
fn losses(space: &Workspace, out: &str) -> Vec<f64> {
    space.steps(out).iter().filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn an_adapter_over_quantised_weights_learns() {
    let space = Workspace::new();
    for format in ["nf4", "fp4", "int8", "fp8"] {
        let set = format!("model.quantize={format}");
        let learn = ["run.epochs=8", "optim.lr=1e-2", "optim.schedule=constant"];
        let run = train(&space, QLORA, format, &[&[&set, NO_TABLES][..], &learn].concat());
        let losses = losses(&space, format);
        assert!(
            losses.len() == 24 && losses[21..].iter().sum::<f64>() < 0.9 * losses[..3].iter().sum::<f64>(),
            "{losses:?}"
        );
        assert!(stderr(&run).contains("linear layers quantised to"), "{}", stderr(&run));
        let four_bits = ["nf4", "fp4"].contains(&format);
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
    for (format, more) in
        [("nf4", "adapter.lora.dropout=0.1"), ("int8", "run.replay=all"), ("fp8", "adapter.lora.dropout=0.1")]
    {
        resumed_equals_straight(&Workspace::new(), QLORA, &[&format!("model.quantize={format}"), NO_TABLES, more]);
    }
}

/// The base of the recipe takes less than with the embedding in its own format; the run says so, records it and is read back.
#[test]
fn an_adapter_over_quantised_embeddings_learns() {
    let space = Workspace::new();
    let learn = ["run.epochs=8", "optim.lr=1e-2", "optim.schedule=constant"];
    let run = train(&space, QLORA, "tables", &[&[TABLES][..], &learn].concat());
    let losses = losses(&space, "tables");
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(losses.len() == 24 && mean(&losses[21..]) < 0.9 * mean(&losses[..3]), "{losses:?}");
    assert!(stderr(&run).contains("with 8-bit scales, embeddings and output head to int8: "), "{}", stderr(&run));
    assert_eq!(space.json("tables/plan.json")["recipe"]["model"]["quantize_embeddings"], "int8");
    let report = space.json("tables/export_report.json");
    assert_eq!(report["verdict"], "passed", "{report}");
    assert_eq!(report["quantised_base"], json!({ "format": "nf4", "double": true, "embeddings": "int8" }));
}

#[test]
fn resumed_runs_over_quantised_embeddings_equal_straight_ones() {
    for more in ["adapter.lora.dropout=0.1", "adapter.lora.token_rows=[2]"] {
        resumed_equals_straight(&Workspace::new(), QLORA, &[TABLES, more]);
    }
}

#[test]
fn a_run_is_not_resumed_over_other_weights() {
    let space = Workspace::new();
    train(&space, QLORA, "straight", &[TABLES]);
    broken_off(&space, "straight", "broken", 5);
    let resume = |sets: &[&str]| {
        let sets = sets.iter().chain(&crate::support::resumed::STEPS).flat_map(|s| ["--set", s]);
        let arguments = ["train", QLORA, "--resume", "--set", "run.out=broken"].into_iter().chain(sets);
        space.refused(&arguments.collect::<Vec<_>>())
    };
    for (sets, expected) in [
        (&["model.quantize=fp4", TABLES][..], "model.quantize: was \"nf4\", is \"fp4\""),
        (&["model.quantize=", NO_TABLES], "model.quantize: was \"nf4\", is not set"),
        (&["model.double_quantize=false", TABLES], "model.double_quantize: was true, is false"),
        (&[NO_TABLES], "model.quantize_embeddings: was \"int8\", is not set"),
    ] {
        let said = resume(sets);
        assert!(said.contains(expected), "{sets:?}: {said}");
    }
}

#[test]
fn every_method_runs_over_quantised_weights() {
    let space = Workspace::new();
    let steps = |name: &str, recipe: &str, sets: &[&str]| {
        let out = format!("run.out=runs/{name}");
        let common = ["model.quantize=nf4", TABLES, "run.steps=2", "run.samples=0", "run.eval_every=0", &out];
        let sets = common.iter().chain(sets).flat_map(|s| ["--set", s]);
        let run = space.ft(&["train", recipe].into_iter().chain(sets).collect::<Vec<_>>());
        for part in ["quantised to NF4", "embeddings and output head to int8"] {
            assert!(stderr(&run).contains(part), "{name}: {}", stderr(&run));
        }
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
    train(&space, QLORA, "run", &["optim.lr=1e-2", NO_TABLES]);
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
    // The same with the embedding in int8; the two were trained over different bases.
    train(&space, QLORA, "tables", &["optim.lr=1e-2", TABLES]);
    let merge = space.ft(&["merge", base, "tables", "--out", "merged-tables", "--json"]);
    let report: Value = serde_json::from_slice(&merge.stdout).unwrap();
    assert_eq!(report["quantisation_error"]["trained_over"]["embeddings"], "int8", "{report}");
    let said = space.refused(&["merge", base, "run", "tables", "--out", "both"]);
    assert!(said.contains("NF4 with 8-bit scales, embeddings and output head in int8"), "{said}");
    // A merge of adapters over bases that were quantised in two ways is refused.
    train(&space, QLORA, "other", &["model.quantize=int8", NO_TABLES]);
    let said = space.refused(&["merge", base, "run", "other", "--out", "both"]);
    assert!(said.contains("NF4 with 8-bit scales") && said.contains("int8"), "{said}");
    train(&space, QLORA, "fp8", &["model.quantize=fp8", "optim.lr=1e-2", NO_TABLES]);
    let merge = space.ft(&["merge", base, "fp8", "--out", "merged-fp8", "--json"]);
    let report: Value = serde_json::from_slice(&merge.stdout).unwrap();
    assert_eq!(report["quantisation_error"]["trained_over"], json!({ "format": "fp8", "double": false }), "{report}");
    let said = space.refused(&["merge", base, "other", "fp8", "--out", "both"]);
    assert!(said.contains("int8") && said.contains("FP8"), "{said}");
}

/// The result is a plain LoRA that corrects the quantised weights, so it is not merged into the weights that they were
/// quantised from. An adapter that continues it does the same.
#[test]
fn loftq_is_trained_over_quantised_weights_and_stays_over_them() {
    let space = Workspace::new();
    let base = "models/smollm2-135m-instruct";
    train(&space, QLORA, "plain", &[TABLES]);
    train(&space, QLORA, "loftq", &["adapter.lora.init=loftq", TABLES]);
    let first = |out: &str| losses(&space, out)[0];
    assert!((first("plain") - first("loftq")).abs() > 1e-4, "{} {}", first("plain"), first("loftq"));
    let corrected = json!({ "format": "nf4", "double": true, "embeddings": "int8", "corrected": true });
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
    // No other program is known to have the same numbers in FP8.
    train(&space, QLORA, "fp8", &["model.quantize=fp8", "adapter.lora.init=loftq", NO_TABLES]);
    let report = space.json("fp8/export_report.json");
    assert_eq!(report["quantised_base"], json!({ "format": "fp8", "double": false, "corrected": true }));
    let readers = report["compatibility"].as_array().unwrap();
    for (program, part) in [("PEFT", "\"reads\":null"), ("vLLM", "\"reads\":null"), ("llama.cpp", "\"reads\":false")] {
        let told = readers.iter().find(|reader| reader["consumer"] == program).unwrap();
        assert!(told.to_string().contains(part) && told.to_string().contains("quantised to FP8 only"), "{told}");
    }
    train(&space, QLORA, "more", &["adapter.lora.from=loftq", TABLES]);
    assert_eq!(space.json("more/export_report.json")["quantised_base"], corrected);
    for folder in ["loftq", "more"] {
        for form in ["model", "adapter"] {
            let said = space.refused(&["merge", base, folder, "--as", form, "--out", "merged"]);
            assert!(
                said.contains("began as a correction of a base in NF4")
                    && said.contains("--quantize nf4 --quantize-embeddings int8 --adapter"),
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
    let answers = ["nf4", "fp4", "int8", "fp8"].map(|format| {
        let (answer, said) = ask(&["--quantize", format]);
        assert!(said.contains("linear layers quantised to"), "{said}");
        answer
    });
    assert!(answers.iter().any(|answer| *answer != plain), "{answers:?}");
    let tables = ["--quantize", "nf4", "--quantize-embeddings", "int8"];
    let (_, said) = ask(&tables);
    assert!(said.contains("embeddings and output head to int8"), "{said}");
    let eval = ["eval", "--model", model, "--data", "datasets/icd10/test.jsonl", "--max-new-tokens", "2", "--json"];
    let perplexity = |more: &[&str]| {
        let output = space.ft(&[&eval[..], more].concat());
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["perplexity"].as_f64().unwrap()
    };
    let (four_bits, all) = (perplexity(&tables[..2]), perplexity(&tables));
    assert!(four_bits != all && (four_bits / all - 1.0).abs() < 0.05, "{four_bits} {all}");
    let refused = |more: &[&str]| {
        let ask = ["generate", "--model", model, "--prompt", "one"];
        stderr(&space.command(&[&ask[..], more].concat()).output().unwrap())
    };
    assert!(refused(&tables[2..]).contains("--quantize <FORMAT>"), "{}", refused(&tables[2..]));
    assert!(refused(&["--quantize", "nf4", "--quantize-embeddings", "nf4"]).contains("possible values: int8"));
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
        (&["model.quantize=fp8", "model.double_quantize=true"], "`quantize: fp8`: it has one scale per matrix"),
        (
            &["model.quantize=", NO_TABLES, "model.double_quantize=true"],
            "`model.double_quantize` has no effect without",
        ),
        (&["model.quantize=nf5"], "nf4"),
        (&["model.quantize=", TABLES], "`model.quantize_embeddings` has no effect without `model.quantize`"),
        (&["model.quantize_embeddings=nf4"], "int8"),
        (&[TABLES, "model.new_tokens={text: [NSCLC]}"], "quantises the tables that `model.new_tokens` adds rows to"),
    ] {
        let said = refused(sets);
        assert!(said.contains(expected), "{sets:?}: {said}");
    }
    // Modules are known once the model is looked at: `ft check` says it before a run begins.
    for (set, table) in [
        ("adapter={lora: {targets: [q_proj, embed_tokens]}}", "`model.embed_tokens`"),
        ("adapter={lora: {targets: [q_proj, lm_head]}}", "`lm_head`"),
        ("adapter={lora: {modules_to_save: [embed_tokens], tie: true}}", "`model.embed_tokens`"),
        ("adapter={ia3: {targets: [down_proj, lm_head]}}", "`lm_head`"),
        ("adapter={loha: {targets: [q_proj, lm_head]}}", "`lm_head`"),
        ("adapter={oft: {block: 4, targets: [embed_tokens]}}", "`model.embed_tokens`"),
    ] {
        for command in ["check", "train"] {
            let said = space.refused(&[command, QLORA, "--set", TABLES, "--set", set, "--set", "run.out=no"]);
            let expected = format!("adapts or trains {table}");
            assert!(said.contains("quantize_embeddings") && said.contains(&expected), "{command} {set}: {said}");
        }
    }
    assert!(!space.path("no").exists());
}
