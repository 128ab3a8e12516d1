//! Training with recorded passes (`run.cuda_graphs`) through the real binary, on the fake CUDA device of tests/fake_cuda: the
//! losses of plain passes, few launches, and refusals of what cannot be recorded.

use super::launches::model_of_depth;
use crate::support::fake_cuda::{self, FakeRun};
use crate::support::families;
use crate::support::resumed::broken_off;
use crate::support::workspace::Workspace;
use serde_json::{Value, json};
use tch::Kind;

/// Returns a workspace with a recipe: steps of 8 rows in one or several packed rows.
fn space() -> Workspace {
    let space = Workspace::new();
    let recipe = "model: {path: models/smollm2-135m-instruct, dtype: bf16, device: cuda}\n\
                  method: {sft: {}}\n\
                  data: {train: {path: datasets/chat.jsonl}}\n\
                  batch: {tokens: 512, max_len: 256, examples: 8}\n\
                  optim: {lr: 1e-3}\n\
                  run: {steps: 16, samples: 0, eval_every: 0, save_every: 0, out: runs/recorded}\n";
    std::fs::write(space.path("recorded.yaml"), recipe).unwrap();
    space
}

const LORA: &str = "adapter={lora: {rank: 8, alpha: 16, targets: all-linear}}";

fn train(space: &Workspace, out: &str, settings: &[&str]) -> FakeRun {
    let out = format!("run.out=runs/{out}");
    let set = settings.iter().copied().chain([out.as_str()]).flat_map(|set| ["--set", set]);
    let arguments: Vec<&str> = ["train", "recorded.yaml", "--overwrite"].into_iter().chain(set).collect();
    fake_cuda::ft(space, &arguments, &[])
}

/// Returns the numbers of each step of a run.
fn steps(space: &Workspace, out: &str, key: &str) -> Vec<f64> {
    space.steps(&format!("runs/{out}")).iter().filter_map(|line| line.get(key).and_then(Value::as_f64)).collect()
}

/// Padding and recording change nothing but the order of sums: losses and accuracies follow those of plain passes.
#[test]
fn recorded_passes_learn_what_plain_ones_do() {
    let space = space();
    for (name, more) in [
        ("lora", &[LORA][..]),
        ("full", &["optim.lr=2e-4"][..]),
        ("half", &[LORA, "model.dtype=f16"][..]),
        ("accumulated", &[LORA, "batch={tokens: 256, max_len: 256, examples: 8}"][..]),
        ("tiles", &[LORA, "run.mlp_tile=100"][..]),
        ("nf4", &[LORA, "model.quantize=nf4"][..]),
        ("fp8", &[LORA, "model.quantize=fp8"][..]),
        ("lion", &[LORA, "optim.kind={lion: {}}", "optim.lr=1e-4"][..]),
    ] {
        let plain = format!("{name}-plain");
        let without = train(&space, &plain, more).succeeded();
        let with = train(&space, name, &[more, &["run.cuda_graphs=true"]].concat()).succeeded();
        let recorded = with.operations.get("cudaGraphLaunch").copied().unwrap_or(0);
        assert!(recorded >= 8, "{name}: only {recorded} of 16 or more passes were recorded");
        assert!(!without.operations.contains_key("cudaGraphLaunch"));
        for key in ["loss", "grad_norm", "accuracy"] {
            let (ours, theirs) = (steps(&space, name, key), steps(&space, &plain, key));
            assert_eq!((ours.len(), theirs.len()), (16, 16), "{name} {key}");
            for (step, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                // bfloat16 rounds to 2^-9; other orders of sums give other roundings, which training amplifies slowly.
                let bound = if key == "accuracy" { 0.02 } else { 0.01 * b.abs().max(0.1) };
                assert!((a - b).abs() <= bound, "{name}: {key} of step {}: {a} recorded, {b} plain", step + 1);
            }
        }
        let last = with.marks.last();
        println!("{name}: {recorded} recorded passes, last step {last:?}, plain {:?}", without.marks.last());
    }
}

/// A step whose rows have a shape that was recorded launches its passes as one each, however many layers there are, and still waits
/// once.
#[test]
fn a_recorded_step_takes_few_launches() {
    let space = space();
    let batch = "batch={tokens: 1024, max_len: 256, examples: 4}";
    let fewest = |depth: usize, graphs: &str| {
        let model = format!("model.path=models/deep-{depth}");
        let run = train(
            &space,
            &format!("depth-{depth}-{graphs}"),
            &[LORA, batch, &model, &format!("run.cuda_graphs={graphs}")],
        );
        let steps = run.succeeded().marks.split_off(2);
        assert!(steps.iter().all(|step| step.waits == 1), "{steps:?}");
        steps.iter().map(|step| step.launches).min().unwrap()
    };
    for depth in [2, 4] {
        model_of_depth(&space, depth);
    }
    let (plain, recorded) = ([2, 4].map(|depth| fewest(depth, "false")), [2, 4].map(|depth| fewest(depth, "true")));
    println!("{plain:?} launches plain, {recorded:?} recorded");
    assert!(recorded[0] == recorded[1] && recorded[0] <= 24, "{recorded:?} launches");
    assert!(plain[1] >= plain[0] + 2 * 25, "{plain:?} launches");
}

/// A resumed run has no recorded passes at first and goes on with the same losses.
#[test]
fn recorded_runs_are_resumed() {
    let space = space();
    let set = [LORA, "run.cuda_graphs=true", "run.steps=9", "run.save_every=3", "run.keep=9", "run.result=last"];
    train(&space, "whole", &set).succeeded();
    broken_off(&space, "runs/whole", "runs/parts", 3);
    let out = "run.out=runs/parts";
    let set = set.into_iter().chain([out]).flat_map(|set| ["--set", set]);
    let arguments: Vec<&str> = ["train", "recorded.yaml", "--resume"].into_iter().chain(set).collect();
    let again = fake_cuda::ft(&space, &arguments, &[]).succeeded();
    assert!(again.operations.contains_key("cudaGraphLaunch"));
    let (whole, parts) = (steps(&space, "whole", "loss"), steps(&space, "parts", "loss"));
    assert_eq!((whole.len(), parts.len()), (9, 9));
    assert_eq!(whole, parts);
    assert_eq!(space.weights("runs/whole"), space.weights("runs/parts"));
    // Steps that are repeated to be compared record nothing at first, either.
    let verify = fake_cuda::ft(&space, &["resume", "runs/whole", "--verify", "5"], &[]);
    let said = String::from_utf8_lossy(&verify.output.stdout).into_owned();
    assert!(said.starts_with("same: steps"), "{said}{}", verify.stderr());
}

/// Answers that are sampled in training are decoded by recorded steps.
#[test]
fn rollouts_use_recorded_steps() {
    let space = space();
    let method = "method={grpo: {rewards: [{length: {max: 6, falloff: 12}}], \
                  sampling: {prompts: 4, max_new_tokens: 16}, answers: 4}}";
    let run = |out: &str, graphs: &str| {
        let out = format!("run.out=runs/{out}");
        let mut arguments = vec!["train", "recipes/grpo-icd10.yaml"];
        let set = ["model.device=cuda", "model.dtype=f32", "run.steps=4", "run.samples=0", "run.eval_every=0", method];
        arguments.extend(set.iter().chain(&[&*out, graphs]).flat_map(|set| ["--set", *set]));
        fake_cuda::ft(&space, &arguments, &[]).succeeded()
    };
    let (plain, recorded) = (run("plain", "run.cuda_graphs=false"), run("recorded", "run.cuda_graphs=true"));
    assert!(recorded.operations.contains_key("cudaGraphLaunch"));
    assert!(recorded.total.launches < plain.total.launches);
    assert_eq!(steps(&space, "plain", "loss"), steps(&space, "recorded", "loss"));
}

#[test]
fn what_cannot_be_recorded_is_refused() {
    let space = space();
    let on = "run.cuda_graphs=true";
    families::write("gpt2", json!({}), Kind::Float, &space.path("models/gpt2"));
    families::write("llama", json!({"head_dim": 264}), Kind::Float, &space.path("models/large-heads"));
    for (set, message) in [
        (&[LORA, "model.dtype=f32"][..], "half precision"),
        (&["adapter={lora: {rank: 8, dropout: 0.1}}"][..], "dropout"),
        (&["adapter={vera: {}}"][..], "only LoRA"),
        (&["adapter={lora: {rank: 8, dora: true}}"][..], "DoRA"),
        (&[LORA, "run.replay=all"][..], "recompute layers"),
        (&["model.path=models/gpt2"][..], "stored transposed"),
        (&[LORA, "model.path=models/large-heads"][..], "heads of at most 256"),
        (&[LORA, "optim.neftune=5"][..], "optim.neftune"),
        (&[LORA, "model.device=cpu"][..], "the CPU launches nothing"),
        (&["model.trained={lisa: {layers: 1, every: 2}}"][..], "in turn"),
        (&[LORA, "method={orpo: {}}", "data.train.path=datasets/preference.jsonl"][..], "`orpo` are not recorded"),
    ] {
        let run = train(&space, "refused", &[set, &[on]].concat());
        assert!(!run.output.status.success(), "{set:?}");
        assert!(
            run.stderr().contains("run.cuda_graphs") && run.stderr().contains(message),
            "{set:?}: {}",
            run.stderr()
        );
    }
    let older = fake_cuda::ft(
        &space,
        &["train", "recorded.yaml", "--set", LORA, "--set", on],
        &[("FAKE_CUDA_CAPABILITY", "75")],
    );
    assert!(older.stderr().contains("run.cuda_graphs"), "{}", older.stderr());
}
