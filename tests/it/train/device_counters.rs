//! Counts what a training step of each method costs on a GPU: waits, launches and transfers of the real binary on the
//! fake CUDA device of tests/fake_cuda. docs/performance.md has the table; the test that is ignored prints it.

use crate::support::fake_cuda::{self, Counts, Trace};
use crate::support::workspace::Workspace;
use std::path::Path;

/// Layers of the tiny model.
const LAYERS: i64 = 3;

/// A method with its settings, and what a step on one packed row may cost.
struct CountedMethod {
    name: &'static str,
    method: &'static str,
    /// Trains an adapter on all linear layers; else every weight.
    lora: bool,
    rows: &'static str,
    more: &'static [&'static str],
    /// Passes of the step through the layers: forward and backward 1, a forward alone 0.4.
    passes: f64,
    /// Launches outside of the layers: embedding, head, loss, metrics, optimiser.
    rest: i64,
}

/// Launches of one layer forward and backward, with an adapter on its seven linear layers, in ft's own kernels and products
/// of several layers at once. `train::launches` holds a layer to this number, and docs/performance.md says what they are.
const LAYER: i64 = 27;

const SAMPLING: &str =
    "{prompts: 4, max_new_tokens: 6}, answers: 4, mini_batches: 2, rewards: [{length: {max: 5, falloff: 5}}]";

const CHAT: &str = "datasets/chat.jsonl";
const PAIRS: &str = "datasets/preference.jsonl";

const fn case(name: &'static str, method: &'static str, rows: &'static str, passes: f64, rest: i64) -> CountedMethod {
    CountedMethod { name, method, lora: true, rows, more: &[], passes, rest }
}

fn cases() -> Vec<CountedMethod> {
    vec![
        // A trained weight is cast and gets a gradient of its own.
        CountedMethod { lora: false, ..case("sft, full", "{sft: {}}", CHAT, 2.0, 75) },
        case("sft", "{sft: {}}", CHAT, 1.0, 75),
        CountedMethod { more: &["optim.neftune=5"], ..case("sft, NEFTune", "{sft: {}}", CHAT, 1.0, 80) },
        CountedMethod { more: &["optim.ema=0.9"], ..case("sft, averages", "{sft: {}}", CHAT, 1.0, 140) },
        // Every layer has a mask of its own, so layers of one input are not one product.
        CountedMethod { more: &["adapter.lora.dropout=0.1"], ..case("sft, dropout", "{sft: {}}", CHAT, 3.0, 90) },
        CountedMethod { more: &["run.replay=all"], ..case("sft, replay", "{sft: {}}", CHAT, 1.5, 80) },
        // Each of 4 or 5 packed rows runs through the layers and the head; their gradients are added by one operation.
        CountedMethod {
            more: &["batch={tokens: 256, max_len: 256, examples: 8}"],
            ..case("sft, micro-batches", "{sft: {}}", CHAT, 5.0, 260)
        },
        case("reward", "{reward: {}}", PAIRS, 1.0, 90),
        case("dpo", "{dpo: {}}", PAIRS, 1.4, 130),
        CountedMethod { lora: false, ..case("dpo, full", "{dpo: {}}", PAIRS, 2.5, 130) },
        CountedMethod { more: &["method.dpo.reference=cached"], ..case("dpo, cached", "{dpo: {}}", PAIRS, 1.0, 130) },
        case("orpo", "{orpo: {}}", PAIRS, 1.0, 140),
        case("simpo", "{simpo: {}}", PAIRS, 1.0, 120),
        case("kto", "{kto: {}}", PAIRS, 2.2, 150),
        case("distill", "{distill: {teachers: [{path: models/medical}]}}", CHAT, 1.4, 150),
    ]
}

/// Trains `steps` steps and returns what the process did on the device.
fn train(space: &Workspace, case: &CountedMethod, steps: usize, more: &[&str]) -> Trace {
    let out = format!("run.out=runs/{}", case.name.replace([',', ' '], "-"));
    let adapter = "adapter={lora: {rank: 8, alpha: 16, targets: all-linear}}";
    let steps = format!("run.steps={steps}");
    let (method, rows) = (format!("method={}", case.method), format!("data.train.path={}", case.rows));
    let mut arguments = vec!["train", "counted.yaml", "--overwrite", "--set", &out, "--set", &method, "--set", &rows];
    arguments.extend(["--set", &steps]);
    if case.lora {
        arguments.extend(["--set", adapter]);
    }
    arguments.extend(case.more.iter().chain(more).flat_map(|set| ["--set", set]));
    fake_cuda::ft(space, &arguments, &[("FAKE_CUDA_STACKS", "1")]).succeeded()
}

/// Returns a workspace with the recipe that all cases change. Steps of four examples fit into one packed row.
fn space() -> Workspace {
    let space = Workspace::new();
    let recipe = "model: {path: models/smollm2-135m-instruct, dtype: bf16, device: cuda}\n\
                  method: {sft: {}}\n\
                  data: {train: {path: datasets/chat.jsonl}}\n\
                  batch: {tokens: 1024, max_len: 256, examples: 4}\n\
                  optim: {lr: 5e-4}\n\
                  run: {steps: 8, samples: 0, out: runs/counted}\n";
    std::fs::write(space.path("counted.yaml"), recipe).unwrap();
    space
}

/// Returns the counts of the steps after the second: at the first, copies of the parameters are made one by one, and the
/// wait of a step falls into the next.
fn steady(trace: &Trace) -> &[Counts] {
    &trace.marks[2..]
}

/// Every step waits once, for the numbers of the step before; nothing else waits, whatever the method.
#[test]
fn a_step_waits_once_and_launches_what_its_layers_need() {
    let space = space();
    for case in cases() {
        let trace = train(&space, &case, 5, &[]);
        assert_eq!(steady(&trace).len(), 3, "{}", case.name);
        let most = (case.passes * (LAYERS * LAYER) as f64) as i64 + case.rest;
        for counts in steady(&trace) {
            println!("{}: {counts:?}, at most {most} launches", case.name);
            assert_eq!(counts.waits, 1, "{}: {counts:?}\n{:#?}", case.name, trace.stacks);
            assert!(counts.launches <= most, "{}: {counts:?}, expected at most {most} launches", case.name);
            assert!(counts.downloads == 1 && counts.download_bytes <= 30 * 8, "{}: {counts:?}", case.name);
        }
    }
}

/// Optimisation steps on sampled answers wait once, too. Every second step samples first, which is not counted here.
#[test]
fn a_step_on_sampled_answers_waits_once() {
    let space = space();
    for name in ["grpo", "rloo", "ppo"] {
        let more = if name == "ppo" { ", epochs: 1" } else { "" };
        let method = format!("{{{name}: {{sampling: {SAMPLING}{more}}}}}");
        let method: &'static str = Box::leak(method.into_boxed_str());
        let case = case(name, method, CHAT, 1.0, 200);
        let trace = train(&space, &case, 6, &["batch={tokens: 1024, max_len: 256}"]);
        let between: Vec<&Counts> = trace.marks[1..].iter().step_by(2).collect();
        assert_eq!(between.len(), 3, "{name}");
        for counts in between {
            println!("{name}: {counts:?}");
            assert_eq!(counts.waits, 1, "{name}: {counts:?}\n{:#?}", trace.stacks);
            assert!(counts.launches <= LAYERS * LAYER + case.rest, "{name}: {counts:?}");
        }
    }
}

/// The doctor, which looks at the weights every tenth step, gets them together with the step's numbers.
#[test]
fn the_doctor_does_not_wait() {
    let space = space();
    let trace = train(&space, &case("doctor", "{sft: {}}", CHAT, 1.0, 75), 13, &[]);
    let waits: Vec<i64> = steady(&trace).iter().map(|counts| counts.waits).collect();
    assert_eq!(waits, [1; 11], "{:#?}", trace.stacks);
    assert!(steady(&trace).iter().any(|counts| counts.download_bytes > 30 * 8), "the weights were never read");
}

/// Every update rule is told by a number on the device to change nothing, so none waits for the numbers of its own step.
#[test]
fn every_update_rule_waits_once_for_the_step_before() {
    let space = space();
    // The norm of the gradients is computed once in each step.
    let mark = [("FAKE_CUDA_MARK", "aten::_foreach_norm"), ("FAKE_CUDA_STACKS", "1")];
    for kind in ["adamw", "{adamw8: {}}", "{lion: {}}", "{sgd: {}}", "{adafactor: {}}", "{muon: {}}", "schedule_free"] {
        let kind = format!("optim.kind={kind}");
        let arguments = ["train", "counted.yaml", "--overwrite", "--set", &kind, "--set", "run.steps=5"];
        let trace = fake_cuda::ft(&space, &arguments, &mark).succeeded();
        let waits: Vec<i64> = steady(&trace).iter().map(|counts| counts.waits).collect();
        println!("{kind}: {} launches", steady(&trace)[1].launches);
        assert_eq!(waits, [1; 3], "{kind}: {:#?}", trace.stacks);
        assert!(trace.stacks.keys().any(|s| s.contains("ft::train::step::settle")), "{kind}: {:#?}", trace.stacks);
        let early = trace.stacks.keys().find(|s| s.contains("ft::train::step::update"));
        assert_eq!(early, None, "{kind} reads the numbers of a step before it updates");
    }
}

/// AdamW with moments in 8 bits updates all parameters together: its launches do not grow with their number.
#[test]
fn eight_bit_moments_take_few_launches() {
    let space = space();
    let mark = [("FAKE_CUDA_MARK", "aten::_foreach_norm")];
    let lora = "adapter={lora: {rank: 64, alpha: 128, targets: all-linear}}"; // 4,096 numbers or more in each factor
    let launches = |kind: &str| {
        let kind = format!("optim.kind={kind}");
        let arguments = ["train", "counted.yaml", "--overwrite", "--set", lora, "--set", &kind, "--set", "run.steps=5"];
        let trace = fake_cuda::ft(&space, &arguments, &mark).succeeded();
        assert!(steady(&trace).iter().all(|counts| counts.waits == 1), "{kind}");
        steady(&trace)[1].launches
    };
    let (exact, narrow) = (launches("adamw"), launches("{adamw8: {}}"));
    println!("AdamW {exact}, AdamW8 {narrow}");
    // 42 parameters; bound: joins and splits of gradient, moments and scales, two quantisations, the update.
    assert!(narrow - exact <= 60, "AdamW {exact}, AdamW8 {narrow}");
}

/// Reads the tensors of a run's last checkpoint, as bytes.
fn checkpoint(space: &Workspace, out: &str, step: usize, file: &str) -> Vec<u8> {
    std::fs::read(space.path(&format!("{out}/checkpoints/step-{step}/{file}"))).unwrap()
}

/// A step that is not finite changes nothing on the device, although the host learns of it only when the next step has
/// been computed: weights, moments and the count of steps are those of the step before.
#[test]
fn a_step_that_is_not_finite_moves_nothing() {
    let space = space();
    let run = |out: &str, steps: usize, device: &str| {
        let out_setting = format!("run.out={out}");
        let (steps, device) = (format!("run.steps={steps}"), format!("model.device={device}"));
        // The first step is finite; with what it makes of the adapter, the second overflows.
        let ill = ["optim={lr: 1, schedule: constant, warmup: 0, non_finite: skip, max_norm: 0}", "model.dtype=f32"];
        let mut arguments = vec!["train", "counted.yaml", "--set", &out_setting, "--set", &steps];
        arguments.extend(["--set", ill[0], "--set", ill[1], "--set", &device]);
        arguments.extend(["--set", "adapter={lora: {rank: 8, alpha: 1e20, targets: all-linear}}"]);
        fake_cuda::ft(&space, &arguments, &[])
    };
    for device in ["cuda", "cpu"] {
        let (one, many) = (format!("runs/one-{device}"), format!("runs/many-{device}"));
        let (first, last) = (run(&one, 1, device), run(&many, 6, device));
        println!("{}\n{}", first.stderr(), last.stderr());
        for file in ["trained.safetensors", "optimiser.safetensors"] {
            let (then, now) = (checkpoint(&space, &one, 1, file), checkpoint(&space, &many, 6, file));
            assert!(then == now, "{device}: {file} changed");
        }
        let state = space.json(&format!("{many}/checkpoints/step-6/state.json"));
        assert_eq!((state["skipped"].as_u64(), state["skipped_in_a_row"].as_u64()), (Some(5), Some(5)), "{device}");
        let lines = space.steps(&many);
        assert_eq!(lines.len(), 6, "{device}");
        assert!(lines[0]["loss"].is_number() && lines[1..].iter().all(|line| line["loss"].is_string()), "{lines:?}");
        let facts = space.json(&format!("{many}/run.json"));
        let origins = facts["origins"].as_array().unwrap();
        assert_eq!(origins.len(), 5, "{device}: {facts}");
        assert!(origins.iter().all(|origin| origin["stage"] == "forward"), "{device}: {origins:?}");
    }
    let origins = |device: &str| space.json(&format!("runs/many-{device}/run.json"))["origins"].clone();
    assert_eq!(origins("cuda"), origins("cpu"), "the first tensor that is not finite is found on both devices");
}

/// A policy that equals its reference has the reference's log-probabilities bit for bit, so that no pair counts as won
/// at the first step: the reference is the base without its adapter, or a frozen copy of the base.
#[test]
fn policy_and_reference_begin_equal() {
    let space = space();
    // Log-probabilities of a cache were computed in rows that were packed in another way, which changes last bits.
    for case in cases().iter().filter(|case| ["dpo", "dpo, full"].contains(&case.name)) {
        for dtype in ["model.dtype=bf16", "model.dtype=f32"] {
            train(&space, case, 1, &[dtype]);
            let first = space.steps(&format!("runs/{}", case.name.replace([',', ' '], "-"))).remove(0);
            for metric in ["rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"] {
                assert_eq!(first[metric].as_f64(), Some(0.0), "{} {dtype}: {metric}", case.name);
            }
        }
    }
}

/// Prints the table of docs/performance.md.
#[test]
#[ignore = "prints a table; run it with --nocapture"]
fn table() {
    let space = space();
    println!("| method | launches | waits | up | down | allocations |\n|---|---|---|---|---|---|");
    for case in cases() {
        let trace = train(&space, &case, 8, &[]);
        let mean = |of: fn(&Counts) -> i64| {
            let steps = steady(&trace);
            steps.iter().map(of).sum::<i64>() / steps.len() as i64
        };
        let [launches, waits] = [mean(|c| c.launches), mean(|c| c.waits)];
        let (up, down) =
            ((mean(|c| c.uploads), mean(|c| c.upload_bytes)), (mean(|c| c.downloads), mean(|c| c.download_bytes)));
        let allocations = mean(|c| c.allocations);
        let name = case.name;
        println!("| {name} | {launches} | {waits} | {} ({}) | {} ({}) | {allocations} |", up.0, up.1, down.0, down.1);
    }
    assert!(Path::new("docs/performance.md").exists());
}
