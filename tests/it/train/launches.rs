//! Counts the launches of a layer in training on the fake CUDA device, where our own kernels run, and trains on a
//! device that they are not compiled for.

use crate::support::fake_cuda::{self, FakeRun};
use crate::support::workspace::Workspace;

/// Makes `models/deep-N`: a random model of N layers with the tiny model's tokenizer.
pub fn model_of_depth(space: &Workspace, depth: usize) -> String {
    let config = format!("model_type: llama, intermediate_size: 128, num_hidden_layers: {depth}");
    random_model(space, &format!("deep-{depth}"), &config)
}

/// Makes a random model of width 64 in `models`, with these settings and the tiny model's tokenizer.
fn random_model(space: &Workspace, name: &str, config: &str) -> String {
    let out = format!("models/{name}");
    let config = format!("model.config={{{config}, hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 2}}");
    let tokenizer = "model.tokenizer=models/medical";
    let set = [
        "run.steps=1",
        "run.samples=0",
        "batch.max_len=512",
        "model.device=cpu",
        &config,
        tokenizer,
        &format!("run.out={out}"),
    ];
    let set = set.iter().flat_map(|s| ["--set", s]);
    space.ft(&["train", "recipes/pretrain-tiny.yaml"].into_iter().chain(set).collect::<Vec<_>>());
    out
}

/// Trains an adapter on all linear layers for three steps on the fake device.
fn train(space: &Workspace, model: &str, settings: &[&str], environment: &[(&str, &str)]) -> FakeRun {
    let path = format!("model.path={model}");
    let common = ["model.device=cuda", "run.steps=3", "run.samples=0", "run.eval_every=100", "run.save_every=100"];
    let own = [path.as_str()];
    let set = common.iter().chain(settings).chain(&own).flat_map(|s| ["--set", s]);
    let arguments: Vec<&str> = ["train", "recipes/lora-medical.yaml", "--overwrite"].into_iter().chain(set).collect();
    fake_cuda::ft(space, &arguments, environment)
}

/// The launches of a layer, forward and backward, with a low-rank update on each of its seven linear layers
/// (docs/performance.md has the table).
#[test]
fn a_layer_takes_few_launches() {
    let space = Workspace::new();
    let step = |depth: usize| {
        let trace = train(&space, &model_of_depth(&space, depth), &["model.dtype=bf16"], &[]).succeeded();
        for kernel in [
            "swiglu",
            "swiglu_backward",
            "rotate",
            "rms_norm",
            "rms_norm_backward",
            "head",
            "narrow_all",
            "factor_gradients",
        ] {
            assert!(trace.operations.contains_key(&format!("ft::{kernel}")), "{kernel}: {:?}", trace.operations);
        }
        trace.marks.last().expect("three steps").launches
    };
    let per_layer = (step(4) - step(2)) as f64 / 2.0;
    println!("{per_layer} launches per layer");
    assert!(per_layer <= MOST, "{per_layer} launches per layer");
}

/// The same over weights in FP8, whose products are computed in FP8.
#[test]
fn a_layer_over_weights_in_fp8_takes_few_launches() {
    let space = Workspace::new();
    let step = |depth: usize| {
        let settings = ["model.dtype=bf16", "model.quantize=fp8"];
        let trace = train(&space, &model_of_depth(&space, depth), &settings, &[]).succeeded();
        let products = trace.operations["aten::_scaled_mm"];
        assert!(products > 3 * 2 * 7 * depth as i64, "{products}");
        trace.marks.last().expect("three steps").launches
    };
    let per_layer = (step(4) - step(2)) as f64 / 2.0;
    println!("{per_layer} launches per layer over FP8");
    assert!(per_layer <= MOST_OVER_FP8, "{per_layer} launches per layer");
}

/// Results of norms and activations are kept where memory permits and computed again where it does not, with the same bits. A layer
/// takes at least three launches more then.
#[test]
fn what_is_kept_or_computed_again_gives_the_same_bits() {
    let space = Workspace::new();
    let model = model_of_depth(&space, 4);
    let check = format!("model.path={model}");
    let check = ["check", "recipes/lora-medical.yaml", "--json", "--set", &check, "--set", "model.device=cuda"];
    let check = [&check[..], &["--set", "model.dtype=bf16"]].concat();
    let needs = |memory: &str| -> serde_json::Value {
        let run = fake_cuda::ft(&space, &check, &[("FAKE_CUDA_MEMORY", memory)]);
        let report: serde_json::Value = serde_json::from_slice(&run.output.stdout).unwrap();
        report["needs"].clone()
    };
    let plenty = needs("8589934592");
    let little = (plenty["memory"].as_f64().unwrap() * 1.1).round().to_string();
    let scarce = needs(&little);
    assert!(plenty["keeps_inputs"] == true && scarce["keeps_inputs"] == false, "{plenty} {scarce}");
    assert!(plenty["activations"].as_u64() > scarce["activations"].as_u64(), "{plenty} {scarce}");
    // A size that is given with --fit is the run's memory, however much is free.
    let fit = format!("--fit={little}");
    let limited = fake_cuda::ft(&space, &[&check[..], &[&*fit]].concat(), &[("FAKE_CUDA_MEMORY", "8589934592")]);
    let limited: serde_json::Value = serde_json::from_slice(&limited.output.stdout).unwrap();
    assert!(limited["needs"]["keeps_inputs"] == false && limited["memory_free"].to_string() == little, "{limited}");
    let run = |memory: &str, name: &str| {
        let out = format!("run.out=runs/{name}");
        let trace = train(&space, &model, &["model.dtype=bf16", &out], &[("FAKE_CUDA_MEMORY", memory)]).succeeded();
        let adapter = std::fs::read(space.path(&format!("runs/{name}/adapter_model.safetensors"))).unwrap();
        (trace.marks.last().expect("three steps").launches, adapter)
    };
    let (kept, again) = (run("8589934592", "kept"), run(&little, "again"));
    println!("{} launches with kept inputs, {} with inputs that are computed again", kept.0, again.0);
    assert!(again.0 > kept.0 + 3 * 3);
    assert!(kept.1 == again.1, "the adapters differ");
}

/// What a layer took when this was written.
const MOST: f64 = 25.0;
const MOST_OVER_FP8: f64 = 82.0;

/// Frozen experts are computed by one product for all of them, so neither launches nor waits grow with their number, and the losses are
/// those of one product for each.
#[test]
fn frozen_experts_are_computed_together() {
    let space = Workspace::new();
    let run = |experts: usize, capability: &str| {
        let config = format!(
            "model_type: mixtral, intermediate_size: 32, num_hidden_layers: 2, num_local_experts: {experts}, \
             num_experts_per_tok: 2"
        );
        let name = format!("experts-{experts}");
        let model = match space.path(&format!("models/{name}")).exists() {
            true => format!("models/{name}"),
            false => random_model(&space, &name, &config),
        };
        let out = format!("run.out=runs/{name}-{capability}");
        let lora = "adapter={lora: {rank: 8, alpha: 16, targets: [q_proj, v_proj]}}";
        let settings = ["model.dtype=bf16", lora, &out];
        let trace = train(&space, &model, &settings, &[("FAKE_CUDA_CAPABILITY", capability)]).succeeded();
        let grouped = trace.operations.contains_key("aten::_grouped_mm");
        let steps = space.steps(&format!("runs/{name}-{capability}"));
        let losses: Vec<f64> = steps.iter().filter_map(|step| step.get("loss")?.as_f64()).collect();
        (grouped, trace.marks.last().expect("three steps").clone(), losses)
    };
    let (few, many, single) = (run(4, "90"), run(12, "90"), run(12, "80"));
    println!("{:?}\n{:?}\n{:?}", few.1, many.1, single.1);
    assert_eq!((few.0, many.0, single.0), (true, true, false));
    assert_eq!((few.1.launches, few.1.waits), (many.1.launches, many.1.waits));
    assert_eq!(many.1.waits, 1);
    assert!(single.1.waits > 2 && single.1.launches > 2 * many.1.launches);
    assert!(many.2.len() == 3 && single.2.len() == 3);
    for (a, b) in many.2.iter().zip(&single.2) {
        assert!((a - b).abs() <= 2e-3 * b.abs(), "{:?} {:?}", many.2, single.2);
    }
}

/// On a device that NVRTC does not compile for, libtorch's operations compute the same, and a warning says so once.
#[test]
fn without_kernels_libtorch_computes_the_same() {
    let space = Workspace::new();
    let settings = ["model.dtype=f32"];
    let loss = |name: &str, environment: &[(&str, &str)]| {
        let out = format!("run.out=runs/{name}");
        let run = train(&space, "models/medical", &[settings[0], &out], environment);
        let said = run.stderr().matches("ft's CUDA kernels, which need a device").count();
        let own = run.succeeded().operations.keys().any(|name| name.starts_with("ft::"));
        let losses = space.steps(&format!("runs/{name}")).iter().filter_map(|s| s.get("loss")?.as_f64()).collect();
        (said, own, losses)
    };
    let (own, composed): ((usize, bool, Vec<f64>), _) =
        (loss("own", &[]), loss("old", &[("FAKE_CUDA_CAPABILITY", "70")]));
    assert_eq!((own.0, own.1, composed.0, composed.1), (0, true, 1, false));
    assert!(own.2.len() == 3 && composed.2.len() == 3);
    for (a, b) in own.2.iter().zip(&composed.2) {
        assert!((a - b).abs() <= 1e-4 * b.abs(), "{:?} {:?}", own.2, composed.2);
    }
}
