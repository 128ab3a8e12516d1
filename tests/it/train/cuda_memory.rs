//! Tests memory on the fake CUDA device of tests/fake_cuda, through the real binary: predictions follow the attention
//! kernel that runs, a run that fits is not refused, and memory that runs out is an error with cause and remedy.

use super::memory::write_sparse_model;
use crate::support::fake_cuda::{self, FakeRun};
use crate::support::families;
use crate::support::stored::write_wide;
use crate::support::workspace::Workspace;
use ft::nn::{Weights, weights};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// A workspace with rows of about `words` tokens, and a recipe `run.yaml` that trains on them.
struct LongRows {
    space: Workspace,
}

impl LongRows {
    fn new(words: usize, adapter: &str) -> Self {
        let space = Workspace::new();
        let row = |i: usize| json!({ "prompt": format!("{i}"), "completion": "river ".repeat(words) }).to_string();
        std::fs::write(space.path("rows.jsonl"), (0..16).map(row).collect::<Vec<_>>().join("\n")).unwrap();
        let recipe = format!(
            "model: {{ path: models/medical, device: cuda }}\nmethod: {{ sft: {{}} }}\n{adapter}\n\
             data: {{ train: {{ path: rows.jsonl }} }}\n\
             batch: {{ tokens: 4096, max_len: 4096, examples: 4 }}\n\
             run: {{ steps: 2, samples: 0, save_every: 1, out: out }}\n"
        );
        std::fs::write(space.path("run.yaml"), recipe).unwrap();
        Self { space }
    }

    fn ft(&self, arguments: &[&str], environment: &[(&str, &str)]) -> FakeRun {
        fake_cuda::ft(&self.space, arguments, environment)
    }

    /// Returns the predicted and the measured bytes of a run with these settings.
    fn needs(&self, settings: &[&str], environment: &[(&str, &str)]) -> (f64, f64) {
        let sets: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
        let check = self.ft(&[&["check", "run.yaml", "--json"], &sets[..]].concat(), environment);
        let report: serde_json::Value = serde_json::from_slice(&check.output.stdout).unwrap();
        self.ft(&[&["train", "run.yaml", "--overwrite"], &sets[..]].concat(), environment).succeeded();
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        (number(&report["needs"]["memory"]), number(&self.space.json("out/summary.json")["memory"]))
    }
}

const LORA: &str = "adapter: { lora: { rank: 4, alpha: 8, targets: all-linear } }";

/// Rows of 900 tokens: scores of all heads would take four times the memory of everything else.
#[test]
fn predictions_follow_the_attention_kernel() {
    let rows = LongRows::new(300, LORA);
    for (settings, capability) in [
        (["model.dtype=f32", "run.replay=none"], "90"),
        (["model.dtype=f32", "run.replay=all"], "90"),
        (["model.dtype=bf16", "run.replay=none"], "90"),
        (["model.dtype=bf16", "run.replay=none"], "75"),
    ] {
        let (predicted, measured) = rows.needs(&settings, &[("FAKE_CUDA_CAPABILITY", capability)]);
        println!("{settings:?} on {capability}: {predicted} predicted, {measured} measured");
        assert!((0.9..1.1).contains(&(predicted / measured)), "{settings:?} on {capability}: {predicted}, {measured}");
    }
}

/// A model whose tensors are most of a run's memory, with a vocabulary of 4,096 tokens, and rows of about 230 tokens; the
/// recipe is `run.yaml`.
fn wide_space() -> Workspace {
    let space = Workspace::new();
    write_wide("plain", &space.path("models/wide"));
    let path = space.path("models/wide/config.json");
    let mut config = space.json("models/wide/config.json");
    config["vocab_size"] = 4_096.into();
    std::fs::write(path, config.to_string()).unwrap();
    let weights = space.path("models/wide/model.safetensors");
    let file = Weights::open_file(&weights).unwrap();
    let mut tensors = file.all();
    let table = Tensor::randn([4_096, 256], (Kind::Float, Device::Cpu)) * 0.05;
    tensors.insert("model.embed_tokens.weight".into(), table);
    let replaced = space.path("models/wide/new.safetensors");
    weights::save(&replaced, tensors.iter().map(|(name, t)| (name.as_str(), t))).unwrap();
    std::fs::rename(replaced, weights).unwrap();
    let row = |i: usize| json!({ "prompt": format!("{i}"), "completion": "river ".repeat(75) }).to_string();
    std::fs::write(space.path("rows.jsonl"), (0..48).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let recipe = "model: { path: models/wide, dtype: bf16, device: cuda }\nmethod: { sft: {} }\n\
                  data: { train: { path: rows.jsonl } }\nbatch: { tokens: 4096, max_len: 512, examples: 8 }\n\
                  run: { steps: 2, samples: 0, save_every: 0, out: out }\n";
    std::fs::write(space.path("run.yaml"), recipe).unwrap();
    space
}

/// The memory of recorded passes is kept for them, beside that of plain ones, and the prediction has both.
#[test]
fn recorded_passes_fit_into_what_is_predicted() {
    let space = wide_space();
    for adapter in [LORA_16, "adapter="] {
        let check = |graphs: &str| {
            let set = ["--set", adapter, "--set", graphs];
            let check = fake_cuda::ft(&space, &[&["check", "run.yaml", "--json"][..], &set].concat(), &[]);
            let report: Value = serde_json::from_slice(&check.output.stdout).unwrap();
            report["needs"]["memory"].as_f64().unwrap()
        };
        let [plain, recorded] = ["run.cuda_graphs=false", "run.cuda_graphs=true"].map(check);
        println!("{adapter}: {plain} plain, {recorded} recorded");
        assert!(recorded > 1.15 * plain, "{adapter}: {plain} plain, {recorded} recorded");
        let set = ["--set", adapter, "--set", "run.cuda_graphs=true", "--set", "run.steps=4"];
        let train = [&["train", "run.yaml", "--overwrite"][..], &set].concat();
        // Memory is given to the driver in parts of 2 MiB.
        let memory = format!("{:.0}", recorded + 4e6);
        let trace = fake_cuda::ft(&space, &train, &[("FAKE_CUDA_MEMORY", &memory)]).succeeded();
        assert_eq!(trace.operations.get("cudaGraphLaunch"), Some(&2), "{adapter}");
    }
}

/// Returns the predicted and the measured bytes of the steps of `run.yaml` with these settings, both without the buffers of
/// products, and the buffers' own.
fn predicted_and_measured(space: &Workspace, settings: &[&str], environment: &[(&str, &str)]) -> (f64, f64, f64) {
    let sets: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
    let ft = |arguments: &[&str]| {
        let run = fake_cuda::ft(space, &[arguments, &sets].concat(), environment);
        assert!(run.output.status.success(), "{settings:?}: {}", run.stderr());
        run
    };
    let report: Value = serde_json::from_slice(&ft(&["check", "run.yaml", "--json"]).output.stdout).unwrap();
    ft(&["train", "run.yaml", "--overwrite"]);
    let text = std::fs::read_to_string(space.path("out/metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let measured = lines.filter_map(|line| line["memory"].as_f64()).fold(0.0, f64::max);
    let needs = |name: &str| report["needs"][name].as_f64().unwrap();
    (needs("memory") - needs("buffers"), measured - needs("buffers"), needs("buffers"))
}

const LORA_16: &str = "adapter={lora: {rank: 16, alpha: 32, targets: all-linear}}";

/// With ft's own kernels and with libtorch's operations: the head in place or composed.
#[test]
fn predictions_are_near_for_adapters_and_whole_models() {
    let space = wide_space();
    let mut found = Vec::new();
    for (dtype, kernels, capability, examples, replay) in [
        ("bf16", "own", "90", 2, "none"),
        ("bf16", "own", "90", 8, "all"),
        ("bf16", "own", "90", 8, "{layers: 2}"),
        ("f32", "own", "90", 8, "none"),
        ("f32", "own", "90", 8, "{layers: 2}"),
        ("f32", "libtorch's", "70", 8, "none"),
    ] {
        for (name, adapter) in [("LoRA", Some(LORA_16)), ("full", None)] {
            let sets =
                [format!("model.dtype={dtype}"), format!("batch.examples={examples}"), format!("run.replay={replay}")];
            let sets: Vec<&str> = sets.iter().map(String::as_str).chain(adapter).collect();
            let (predicted, measured, _) =
                predicted_and_measured(&space, &sets, &[("FAKE_CUDA_CAPABILITY", capability)]);
            let line = format!("{name}, {dtype}, {kernels} kernels, {examples} rows, replay {replay}");
            println!("| {line} | {:.1} MB | {:.1} MB | {:.2} |", predicted / 1e6, measured / 1e6, predicted / measured);
            found.push((line, predicted / measured));
        }
    }
    let wrong: Vec<_> = found.iter().filter(|(_, ratio)| !(0.9..1.1).contains(ratio)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Norms of queries and keys, norms behind attention and MLP, and experts.
#[test]
fn predictions_are_near_for_other_families() {
    let space = wide_space();
    for (family, runs) in [
        ("qwen3", &[("bf16", Some(LORA_16)), ("f32", Some(LORA_16))][..]),
        ("gemma3_text", &[("bf16", Some(LORA_16)), ("bf16", None)]),
        ("olmo2", &[("bf16", Some(LORA_16))]),
        ("mixtral", &[("bf16", Some(LORA_16))]),
    ] {
        let sizes = json!({"hidden_size": 256, "intermediate_size": 512, "head_dim": 64});
        families::write(family, sizes, Kind::Float, &space.path("models").join(family));
        let path = format!("model.path=models/{family}");
        for (dtype, adapter) in runs {
            let dtype = format!("model.dtype={dtype}");
            let sets: Vec<&str> = [&*path, &dtype, "run.replay=none"].into_iter().chain(*adapter).collect();
            let (predicted, measured, _) = predicted_and_measured(&space, &sets, &[("FAKE_CUDA_CAPABILITY", "90")]);
            println!("{sets:?}: {:.2}: {predicted} predicted, {measured} measured", predicted / measured);
            assert!((0.85..1.15).contains(&(predicted / measured)), "{sets:?}: {predicted}, {measured}");
        }
    }
}

#[test]
fn predictions_are_near_for_quantised_tables() {
    let space = wide_space();
    for (dtype, examples) in [("bf16", 2), ("bf16", 8), ("f32", 8)] {
        for tables in ["", "int8"] {
            let settings = [
                format!("model.dtype={dtype}"),
                format!("batch.examples={examples}"),
                "model.quantize=nf4".into(),
                format!("model.quantize_embeddings={tables}"),
                LORA_16.into(),
            ];
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            let environment = [("FAKE_CUDA_CAPABILITY", "90")];
            let (predicted, measured, _) = predicted_and_measured(&space, &settings, &environment);
            println!("{settings:?}: {predicted} predicted, {measured} measured");
            assert!((0.9..1.1).contains(&(predicted / measured)), "{settings:?}: {predicted}, {measured}");
        }
    }
}

/// Where products are computed in FP8, and where weights are dequantised; of few and of many rows.
#[test]
fn predictions_are_near_for_weights_in_fp8() {
    let space = wide_space();
    for (dtype, examples, capability) in [("bf16", 2, "90"), ("bf16", 8, "90"), ("bf16", 8, "80"), ("f32", 8, "90")] {
        let settings = [format!("model.dtype={dtype}"), format!("batch.examples={examples}")];
        let settings: Vec<&str> =
            settings.iter().map(String::as_str).chain(["model.quantize=fp8", "run.replay=all", LORA_16]).collect();
        let environment = [("FAKE_CUDA_CAPABILITY", capability)];
        let (predicted, measured, _) = predicted_and_measured(&space, &settings, &environment);
        println!(
            "{settings:?} on {capability}: {:.2}: {predicted} predicted, {measured} measured",
            predicted / measured
        );
        assert!((0.9..1.1).contains(&(predicted / measured)), "{settings:?} on {capability}: {predicted}, {measured}");
    }
}

/// Buffers of products are no tensors of ft, and still take memory: two threads multiply.
#[test]
fn buffers_of_products_are_predicted() {
    let space = wide_space();
    let sets = [LORA_16, "batch.examples=2"];
    for (config, each) in [(":4096:8", 32 << 20), (":16:8", 128 << 10)] {
        let environment = [("CUBLAS_WORKSPACE_CONFIG", config)];
        let (predicted, measured, buffers) = predicted_and_measured(&space, &sets, &environment);
        assert_eq!(buffers, (2 * each) as f64, "{config}");
        assert!((0.9..1.1).contains(&(predicted / measured)), "{config}: {predicted}, {measured}");
    }
}

/// What is free is read before the model lies on the device. The base, and a frozen copy of it, are most of what these
/// runs need.
#[test]
fn a_run_that_fits_is_not_refused() {
    let pairs = ["method={dpo: {}}", "data.train={path: datasets/helpful/train.jsonl}"];
    let common = ["model.dtype=f32", "batch.max_len=256", "batch.tokens=256", "batch.examples=1"];
    for (name, adapter, more) in [("LoRA", LORA, &[][..]), ("full", "", &[]), ("full with a frozen copy", "", &pairs)] {
        let long = LongRows::new(20, adapter);
        write_sparse_model(&long.space.path("models/medical"), 8192, 256);
        let settings: Vec<&str> = more.iter().chain(&common).copied().collect();
        let sets: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
        let (predicted, measured) = long.needs(&settings, &[]);
        println!("{name}: {predicted} predicted, {measured} measured");
        let train = [&["train", "run.yaml", "--overwrite"], &sets[..]].concat();
        let with = |share: f64| {
            let memory = ((predicted * share) as u64).to_string();
            long.ft(&train, &[("FAKE_CUDA_MEMORY", &memory)])
        };
        let run = with(1.12);
        let text = run.stderr();
        assert!(!text.contains("of memory are needed") && text.contains("step 2/2"), "{name}: {text}");
        // The result is then read back as a second model, for which a whole model leaves room, but not a base.
        assert!(run.output.status.success(), "{name}: {text}");
        println!("{name}: {}", text.lines().filter(|line| line.contains("no room")).collect::<String>());
        let refused = with(0.95);
        let text = refused.stderr();
        assert_eq!(refused.output.status.code(), Some(1), "{name}: {text}");
        assert!(text.contains("of memory are needed") && text.contains("--fit"), "{name}: {text}");
        let launches = refused.trace.map_or(0, |trace| trace.total.launches);
        assert_eq!(launches, 0, "{name}: the refused run computed something");
    }
}

/// Expects that a command ended because the GPU's memory was full, in an error that says what helps.
#[track_caller]
fn assert_out_of_memory(run: &FakeRun, what: &str, remedy: &str) -> String {
    let text = run.stderr();
    assert_eq!(run.output.status.code(), Some(1), "{what}: {text}");
    assert!(text.contains("error: the GPU ran out of memory: CUDA out of memory. Tried to allocate"), "{what}: {text}");
    assert!(text.contains(remedy), "{what}: no `{remedy}` in {text}");
    assert!(!text.contains("panicked") && !text.contains("bug in ft"), "{what}: {text}");
    text
}

/// Runs a command, then again with memory that is full from an allocation early in it (while its model is loaded) and
/// late in it (while it computes).
fn runs_out(space: &Workspace, arguments: &[&str], remedy: &str) {
    let run = |environment: &[(&str, &str)]| {
        let _ = std::fs::remove_dir_all(space.path("taught")); // what is there is not computed again
        fake_cuda::ft(space, arguments, environment)
    };
    let allocations = run(&[]).succeeded().total.allocations;
    for share in [0.02, 0.8] {
        let full_at = ((allocations as f64 * share) as i64).max(1).to_string();
        let run = run(&[("FAKE_CUDA_FULL_AT", &full_at)]);
        assert_out_of_memory(&run, &format!("{arguments:?} at {full_at} of {allocations}"), remedy);
    }
}

#[test]
fn training_that_runs_out_of_memory_ends_in_an_error_wherever_it_is() {
    let rows = LongRows::new(60, LORA);
    for (dtype, replay) in [("f32", "none"), ("bf16", "none"), ("bf16", "all")] {
        let sets = ["--set", &format!("model.dtype={dtype}"), "--set", &format!("run.replay={replay}")];
        let train = [&["train", "run.yaml", "--overwrite"], &sets[..]].concat();
        let allocations = rows.ft(&train, &[]).succeeded().total.allocations;
        for percent in [1, 30, 50, 75] {
            let full_at = (allocations * percent / 100).max(1).to_string();
            let run = rows.ft(&train, &[("FAKE_CUDA_FULL_AT", &full_at)]);
            let what = format!("{dtype}, replay {replay}, at {percent} %");
            let text = assert_out_of_memory(&run, &what, "batch.tokens");
            // The second of the two steps is computed after the checkpoint of the first; the result is saved after
            // both.
            let kept = text.contains("the checkpoint of step");
            assert!(kept || percent < 75, "{what}: {text}");
        }
        rows.ft(&["resume", "out"], &[]).succeeded();
        assert_eq!(rows.space.json("out/summary.json")["steps"], 2);
    }
}

#[test]
fn generating_and_judging_that_run_out_of_memory_end_in_an_error() {
    let space = Workspace::new();
    let model = ["--model", "models/medical", "--device", "cuda"];
    let prompt = ["--prompt", "The river", "--max-new-tokens", "8"];
    runs_out(&space, &[&["generate"], &model[..], &prompt].concat(), "--batch-size");
    runs_out(&space, &[&["eval"], &model[..], &["--data", "datasets/icd10/test.jsonl"]].concat(), "--max-new-tokens");
    let teach = ["--set", "method={distill: {teachers: [{path: models/medical}]}}", "--set", "model.device=cuda"];
    runs_out(
        &space,
        &[&["teach", "recipes/full-medical.yaml", "--out", "taught"], &teach[..]].concat(),
        "batch.tokens",
    );
    space.ft(&["train", "recipes/reward-helpful.yaml", "--set", "run.steps=2", "--set", "model.device=cpu"]);
    let judge = ["--model", "models/smollm2-135m-instruct", "--adapter", "adapters/reward-helpful", "--device", "cuda"];
    let pairs = ["--input", "datasets/helpful/valid.jsonl", "--out", "scored.jsonl"];
    runs_out(&space, &[&["score"], &judge[..], &pairs].concat(), "--device cpu");
}

/// A recipe for a small model with random weights and heads of 10 numbers, in `odd.yaml`.
fn odd_heads(space: &Workspace) {
    let shape = "{ model_type: llama, hidden_size: 60, intermediate_size: 96, num_hidden_layers: 2, \
                 num_attention_heads: 6, num_key_value_heads: 3, head_dim: 10 }";
    let recipe = format!(
        "model: {{ path: models/medical, init: random, config: {shape} }}\nmethod: {{ sft: {{}} }}\n\
         data: {{ train: {{ path: datasets/chat.jsonl }} }}\nbatch: {{ tokens: 512, max_len: 256, examples: 8 }}\n\
         run: {{ steps: 2, samples: 0, save_every: 0, out: out }}\n"
    );
    std::fs::write(space.path("odd.yaml"), recipe).unwrap();
}

/// The flash kernel takes neither such heads nor such GPUs; what runs instead gives the loss of the CPU.
#[test]
fn every_head_size_and_gpu_trains() {
    let space = Workspace::new();
    odd_heads(&space);
    let train = |settings: &[&str], capability: &str| {
        let sets = settings.iter().chain(&["run.threads=1"]).flat_map(|set| ["--set", set]);
        let arguments: Vec<&str> = ["train", "odd.yaml", "--overwrite"].into_iter().chain(sets).collect();
        let run = fake_cuda::ft(&space, &arguments, &[("FAKE_CUDA_CAPABILITY", capability)]);
        let text = run.stderr();
        assert!(run.output.status.success(), "{text}");
        let operations = run.trace.map(|trace| trace.operations).unwrap_or_default();
        let norm = |line: &serde_json::Value| Some((line["loss"].as_f64()?, line["grad_norm"].as_f64()?));
        let steps: Vec<(f64, f64)> = space.steps("out").iter().filter_map(norm).collect();
        assert_eq!(steps.len(), 2, "{steps:?}");
        (text, operations.into_keys().filter(|name| name.contains("attention")).collect::<Vec<_>>(), steps[0])
    };
    let gap = |a: (f64, f64), b: (f64, f64)| ((a.0 / b.0 - 1.0).abs()).max((a.1 / b.1 - 1.0).abs());
    let (_, none, expected) = train(&["model.device=cpu", "model.dtype=f32"], "90");
    assert_eq!(none, [""; 0]);
    let [flash, efficient] = ["flash", "efficient"]
        .map(|name| ["backward", "forward"].map(|pass| format!("aten::_{name}_attention_{pass}")).to_vec());
    for (dtype, capability, kernels, bound) in [
        ("f32", "90", &efficient, 1e-5),
        ("f32", "75", &efficient, 1e-5),
        ("bf16", "90", &flash, 0.02),
        ("bf16", "75", &efficient, 0.02),
        ("f16", "90", &flash, 0.005),
        ("f16", "75", &efficient, 0.005),
    ] {
        let (_, used, found) = train(&["model.device=cuda", &format!("model.dtype={dtype}")], capability);
        assert_eq!(&used, kernels, "{dtype} on {capability}");
        assert!(gap(found, expected) < bound, "{dtype} on {capability}: {found:?}, {expected:?}");
    }
    // Left to itself, ft takes a narrow format only where the GPU multiplies it.
    for (capability, said) in [
        ("61", "float32 (this device does not multiply bfloat16)"),
        ("75", "float16 (multiplied by the GPU, which does not multiply bfloat16)"),
        ("80", "bfloat16 (multiplied by the GPU)"),
    ] {
        let (text, ..) = train(&["model.device=cuda"], capability);
        assert!(text.contains(&format!("arithmetic in {said}")), "{text}");
    }
}

/// `ft doctor` multiplies only as much as this slow device can in a moment; `ft selftest` asks for free memory before
/// anything has used the device.
#[test]
fn doctor_and_selftest_run_on_a_device_that_was_not_used_before() {
    let space = Workspace::new();
    let began = std::time::Instant::now();
    let doctor = fake_cuda::ft(&space, &["doctor"], &[("FAKE_CUDA_DEVICES", "1")]);
    assert!(doctor.output.status.success(), "{}", doctor.stderr());
    let text = String::from_utf8_lossy(&doctor.output.stdout).into_owned();
    assert!(text.contains("training on cuda:0") && text.contains("GFLOP/s"), "{text}");
    // A product of 4,096 x 4,096 alone takes longer on one core, in bfloat16 many minutes.
    assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", began.elapsed());
    let selftest = ["selftest", "--model", "models/medical", "--device", "cuda", "--dtype", "bf16"];
    fake_cuda::ft(&space, &selftest, &[]).succeeded();
}
