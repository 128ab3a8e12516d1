//! Trains a few steps with every method through the real binary, on the CPU and on the fake CUDA device of
//! tests/fake_cuda: the losses and gradient norms are the same, up to the rounding of another attention formula.

use crate::support::fake_cuda;
use crate::support::workspace::Workspace;
use serde_json::Value;

const STEPS: usize = 3;

/// Returns (loss, gradient norm) of each step.
fn losses(space: &Workspace, out: &str) -> Vec<(f64, f64)> {
    let number = |line: &Value, key: &str| line.get(key).and_then(Value::as_f64);
    space.steps(out).iter().filter_map(|line| Some((number(line, "loss")?, number(line, "grad_norm")?))).collect()
}

/// Trains on both devices and compares. In float32: in half precision CUDA rounds attention at other places.
fn trains_alike(space: &Workspace, name: &str, recipe: &str, settings: &[&str]) {
    let train = |device: &str| {
        let out = format!("runs/{name}-{device}");
        let mut arguments = vec!["train".to_string(), recipe.to_string()];
        let ours = [format!("model.device={device}"), format!("run.out={out}"), format!("run.steps={STEPS}")];
        let common = ["model.dtype=f32", "run.samples=0", "run.eval_every=0", "run.save_every=0", "run.threads=1"];
        for set in settings.iter().chain(&common).map(ToString::to_string).chain(ours) {
            arguments.extend(["--set".into(), set]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let run = fake_cuda::ft(space, &arguments, &[]);
        let trace = run.succeeded();
        assert_eq!(trace.total.launches > 0, device == "cuda", "{name}: {:?}", trace.total);
        losses(space, &out)
    };
    let (ours, theirs) = (train("cuda"), train("cpu"));
    assert_eq!((ours.len(), theirs.len()), (STEPS, STEPS), "{name}: {ours:?} {theirs:?}");
    for (step, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        // Adam's first updates are as large for a gradient that is only rounding as for any other, so later steps
        // differ more than the first.
        let bound = if step == 0 { FIRST } else { LATER };
        // Losses of policies are sums of terms of a size of about 1 that cancel, so a small sum has the rounding of its
        // terms.
        let gap = |a: f64, b: f64| (a - b).abs() / b.abs().max(0.1);
        let gaps = (gap(ours.0, theirs.0), gap(ours.1, theirs.1));
        println!("{name}: step {}: {ours:?} {theirs:?} {gaps:?}", step + 1);
        assert!(gaps.0 <= bound && gaps.1 <= bound, "{name}: step {}: {ours:?} on CUDA, {theirs:?}", step + 1);
    }
}

/// Relative differences allowed at the first step and at later ones.
const FIRST: f64 = 1e-5;
const LATER: f64 = 1e-4;

#[test]
fn supervised() {
    let space = Workspace::new();
    trains_alike(&space, "lora", "recipes/lora-medical.yaml", &[]);
    trains_alike(&space, "full", "recipes/full-medical.yaml", &[]);
}

#[test]
fn over_quantised_weights() {
    let space = Workspace::new();
    for format in ["nf4", "fp4", "int8", "fp8"] {
        trains_alike(&space, format, "recipes/qlora-medical.yaml", &[&format!("model.quantize={format}")]);
    }
    for tables in ["", "int8"] {
        let set = format!("model.quantize_embeddings={tables}");
        trains_alike(&space, &format!("tables-{tables}"), "recipes/qlora-medical.yaml", &[&set]);
    }
}

#[test]
fn on_pairs() {
    let space = Workspace::new();
    trains_alike(&space, "reward", "recipes/reward-helpful.yaml", &[]);
    for name in ["dpo-medical", "orpo-chat", "simpo-chat", "kto-chat"] {
        trains_alike(&space, name, &format!("recipes/{name}.yaml"), &[]);
    }
}

#[test]
fn with_rewards() {
    let space = Workspace::new();
    space.ft(&["train", "recipes/reward-helpful.yaml", "--set", "run.steps=2", "--set", "model.device=cpu"]);
    let judge = "method.ppo.rewards=[{model: {path: adapters/reward-helpful, force: true}}]";
    let small = ["method.ppo.sampling.prompts=4", "method.ppo.sampling.max_new_tokens=8"];
    trains_alike(&space, "ppo", "recipes/ppo-helpful.yaml", &[judge, small[0], small[1]]);
    let rewards = "rewards: [{regex: {pattern: '^[a-m]'}}, {length: {max: 6, falloff: 12}}]";
    for name in ["grpo", "rloo"] {
        let method = format!("{{{name}: {{{rewards}, sampling: {{prompts: 4, max_new_tokens: 8}}, answers: 4}}}}");
        trains_alike(&space, name, "recipes/grpo-icd10.yaml", &[&format!("method={method}")]);
    }
}

#[test]
fn distillation() {
    let space = Workspace::new();
    let teachers = "teachers: [{path: models/medical}]";
    let cut = ["student", "--from", "models/medical", "--layers", "2", "--out", "models/student"];
    space.ft(&cut);
    for (name, more) in [
        ("kl", ""),
        ("jsd", ", loss: {jsd: {beta: 0.5}}"),
        ("cross-entropy", ", temperature: 2, cross_entropy: {from: 0.2}"),
        ("on-policy", ", on_policy: {share: 0.5, max_new_tokens: 8}"),
    ] {
        let method = format!("method={{distill: {{{teachers}{more}}}}}");
        let model = "model={path: models/student}";
        trains_alike(&space, &format!("distill-{name}"), "recipes/full-medical.yaml", &[model, &method]);
    }
}
