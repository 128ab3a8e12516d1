//! Whole runs: resumed, continued, with every method, their memory; merging is refused.

use super::*;

#[test]
fn merging_says_how_to_use_the_adapter() {
    for name in ["prompt_tuning", "p_tuning", "prefix_tuning"] {
        let (base, adapter, out) = (fixture("tiny-llama"), saved(name), tempfile::tempdir().unwrap());
        for form in ["model", "adapter"] {
            let merged = out.path().join("merged");
            let run = std::process::Command::new(ft_binary())
                .arg("merge")
                .args([&base, &adapter])
                .args(["--as", form, "--out"])
                .arg(&merged)
                .output()
                .unwrap();
            let said = stderr(&run);
            assert_eq!(run.status.code(), Some(1), "{said}");
            let use_it = format!("ft generate --model {} --adapter {}", base.display(), adapter.display());
            assert!(said.contains("no update of weights") && said.contains(&use_it), "{said}");
            assert!(!merged.exists());
        }
    }
}

const LORA: &str = "recipes/lora-medical.yaml";

macro_rules! resumed {
    ($($name:ident: $sets:expr;)*) => {$(
        #[test]
        fn $name() {
            resumed_equals_straight(&Workspace::new(), LORA, &$sets);
        }
    )*};
}

resumed! {
    a_resumed_run_of_prompt_tuning_equals_a_straight_one: [
        "adapter={prompt_tuning: {virtual_tokens: 6, text: Answer briefly}}", "optim.neftune=5",
    ];
    a_resumed_run_of_p_tuning_equals_a_straight_one: [
        "adapter={p_tuning: {virtual_tokens: 4, encoder_hidden_size: 12}}", "run.replay=all",
    ];
    a_resumed_run_of_prefix_tuning_equals_a_straight_one: [
        "adapter={prefix_tuning: {virtual_tokens: 4, projection: true}}", "run.replay=all",
    ];
}

#[test]
fn a_run_is_continued_by_another_one() {
    let space = Workspace::new();
    for kind in ["prompt_tuning", "prefix_tuning"] {
        let _ = train(&space, LORA, "first", &[&format!("adapter={{{kind}: {{virtual_tokens: 3}}}}")]);
        let report = space.json("first/export_report.json");
        assert_eq!((&report["verdict"], &report["difference"]["max_abs"]), (&json!("passed"), &json!(0.0)), "{report}");
        let before = space.weights("first");
        // No step changes anything at a rate of 0: what is saved is what was continued.
        let again = format!("adapter={{{kind}: {{virtual_tokens: 3, from: first}}}}");
        let _ = train(&space, LORA, "second", &[&again, "optim.lr=0", "optim.weight_decay=0"]);
        assert_eq!(space.weights("second"), before, "{kind}");
        // Of preference methods it is then the reference too: equal models have a loss of log(2).
        let dpo = ["--set", &again, "--set", "run.steps=1", "--set", "run.out=dpo", "--set", "model.dtype=f32"];
        space.ft(&[&["train", "recipes/dpo-medical.yaml", "--overwrite"], &dpo[..]].concat());
        let loss = space.steps("dpo").iter().find_map(|line| line.get("loss")?.as_f64()).unwrap();
        assert!((loss - 2f64.ln()).abs() < 1e-6, "{kind}: {loss}");
        let other = format!("adapter={{{kind}: {{virtual_tokens: 4, from: first}}}}");
        let said = space.refused(&["train", LORA, "--overwrite", "--set", &other]);
        assert!(said.contains("virtual_tokens: 3, not 4"), "{said}");
    }
}

#[test]
fn every_method_trains_virtual_tokens() {
    let space = Workspace::new();
    let steps = ["run.steps=2", "run.samples=1", "run.eval_every=1", "run.save_every=0"];
    let run = |name: &str, recipe: &str, adapter: &str, more: &[&str]| {
        let (out, adapter) = (format!("run.out=runs/{name}"), format!("adapter={adapter}"));
        let mut arguments = vec!["train", recipe, "--overwrite", "--set", &out, "--set", &adapter];
        arguments.extend(steps.iter().chain(more).flat_map(|s| ["--set", s]));
        space.ft(&arguments);
        space.steps(&format!("runs/{name}"))
    };
    for adapter in ["{prompt_tuning: {init: vocabulary}}", "{prefix_tuning: {init: zero}}", "{p_tuning: {}}"] {
        let pairs = run("dpo", "recipes/dpo-medical.yaml", adapter, &["batch.tokens=512", "batch.max_len=256"]);
        // The reference is the base without virtual tokens, from which the model differs before its first step: log(2)
        // would be the loss of equal models.
        let loss = pairs.iter().find_map(|line| line.get("loss")?.as_f64()).unwrap();
        assert!(loss.is_finite() && (loss - 2f64.ln()).abs() > 1e-4, "{adapter}: {loss}");
        let short = ["method.grpo.sampling.max_new_tokens=8", "model.dtype=f32"];
        let sampled = run("grpo", "recipes/grpo-icd10.yaml", adapter, &short);
        // Training computes the probabilities that answers were sampled with.
        let gaps = sampled.iter().filter_map(|line| line.get("sampling/sampling_logp_difference/max")?.as_f64());
        let gaps: Vec<f64> = gaps.collect();
        assert!(!gaps.is_empty() && gaps.iter().all(|gap| *gap < 1e-4), "{adapter}: {gaps:?}");
    }
    space.ft(&["train", "recipes/reward-helpful.yaml", "--set", "run.steps=2"]);
    let judge = "method.ppo.rewards=[{model: {path: adapters/reward-helpful, force: true}}]";
    let ppo = [judge, "method.ppo.sampling.prompts=4", "method.ppo.sampling.max_new_tokens=8"];
    let iterations = run("ppo", "recipes/ppo-helpful.yaml", "{prompt_tuning: {}}", &ppo);
    assert!(iterations.iter().any(|line| line.get("loss").is_some()), "{iterations:?}");
}

#[test]
fn a_reward_model_over_virtual_tokens_learns_is_checked_and_scores() {
    let space = Workspace::new();
    for (kind, adapter) in [
        ("prompt", "{prompt_tuning: {init: vocabulary, virtual_tokens: 4}}"),
        ("p", "{p_tuning: {virtual_tokens: 4}}"),
        ("prefix", "{prefix_tuning: {virtual_tokens: 4}}"),
    ] {
        let (adapter, out) = (format!("adapter={adapter}"), format!("run.out=runs/{kind}"));
        let sets = [&adapter, &out, "run.steps=6", "optim.lr=1e-2", "run.eval_every=0", "optim.schedule=constant"];
        let sets: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
        space.ft(&[&["train", "recipes/reward-helpful.yaml"][..], &sets].concat());
        let run = format!("runs/{kind}");
        assert_eq!(space.json(&format!("{run}/export_report.json"))["verdict"], "passed", "{kind}");
        let config = space.json(&format!("{run}/adapter_config.json"));
        assert_eq!(
            (&config["task_type"], &config["modules_to_save"]),
            (&json!("SEQ_CLS"), &json!(["score"])),
            "{kind}"
        );
        let model = "models/smollm2-135m-instruct";
        let files = ["--input", "datasets/helpful/valid.jsonl", "--out", &format!("{kind}.jsonl")];
        space.ft(&[&["score", "--model", model, "--adapter", &run][..], &files].concat());
        // The probes of reward.json are checked at each load: virtual tokens count for them.
        let tensors = ft::nn::Weights::open_file(&space.path(&format!("{run}/adapter_model.safetensors"))).unwrap();
        let mut changed = tensors.all();
        let tokens = changed.get_mut("prompt_embeddings").unwrap();
        *tokens = &*tokens * 0.0;
        save_tensors(&space.path(&format!("{run}/adapter_model.safetensors")), &changed);
        let said = space.refused(&[&["score", "--model", model, "--adapter", &run][..], &files].concat());
        assert!(said.contains("Head, adapter or base are not the trained ones"), "{kind}: {said}");
    }
}

#[test]
fn memory_is_predicted_with_virtual_tokens_and_lengths_without() {
    let space = Workspace::new();
    let check = |adapter: &str| -> Value {
        let adapter = format!("adapter={adapter}");
        let run = space.ft(&["check", LORA, "--json", "--set", &adapter]);
        serde_json::from_slice(&run.stdout).unwrap()
    };
    let checks: Vec<Value> = [2, 200].map(|n| check(&format!("{{prompt_tuning: {{virtual_tokens: {n}}}}}"))).into();
    let memory: Vec<u64> = checks.iter().map(|c| c["needs"]["activations"].as_u64().unwrap()).collect();
    assert!(memory[1] > memory[0] * 2, "{memory:?}");
    assert_eq!(checks[0]["longest_row"], checks[1]["longest_row"]);
    for key in ["tokens", "supervised_tokens", "lengths", "too_long"] {
        assert_eq!(checks[0]["train"][key], checks[1]["train"][key], "{key}");
    }
    assert_eq!(checks[1]["trained"], json!(200 * 64));
    assert_eq!((&checks[1]["adapted"], &checks[1]["virtual_tokens"]), (&json!([]), &json!(200)));
    let said = space.ft(&["check", LORA, "--set", "adapter={p_tuning: {virtual_tokens: 7}}"]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("adapted: 7 virtual tokens before every sequence"));
    let prefix = check("{prefix_tuning: {virtual_tokens: 200}}");
    assert_eq!(prefix["trained"], json!(200 * 192));
    let mistakes = [
        ("{prompt_tuning: {text: x, init: vocabulary}}", "`adapter.prompt_tuning.init` has no effect"),
        ("{prefix_tuning: {encoder_hidden_size: 4}}", "no effect without `projection`"),
        ("{prefix_tuning: {projection: true, from: x}}", "`adapter.prefix_tuning.from`"),
        ("{prompt_tuning: {virtual_tokens: 0}}", "adapter.prompt_tuning.virtual_tokens"),
        ("{p_tuning: {encoder: lstm}}", "encoder"),
    ];
    for (adapter, expected) in mistakes {
        let said = space.refused(&["check", LORA, "--set", &format!("adapter={adapter}")]);
        assert!(said.contains(expected), "{adapter}: {said}");
    }
}
