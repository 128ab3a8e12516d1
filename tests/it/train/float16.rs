//! Trains in float16 with a loss scale, on a fake GPU that does not multiply bfloat16 (compute capability 7.5).

use crate::support::fake_cuda::{self, FakeRun};
use crate::support::with_changed_weights;
use crate::support::workspace::Workspace;
use ft::models::Dtype;
use serde_json::Value;
use tch::{Device, Kind};

const TURING: [(&str, &str); 1] = [("FAKE_CUDA_CAPABILITY", "75")];

/// Runs `ft train` on the fake GPU.
fn train(space: &Workspace, recipe: &str, out: &str, settings: &[&str]) -> FakeRun {
    let out = format!("run.out={out}");
    let common =
        ["model.device=cuda", "run.samples=0", "run.eval_every=0", "optim.schedule=constant", "optim.warmup=0"];
    let mut arguments = vec!["train", recipe, "--set", &out];
    arguments.extend(common.iter().chain(settings).flat_map(|set| ["--set", *set]));
    fake_cuda::ft(space, &arguments, &TURING)
}

fn number(line: &Value, key: &str) -> f64 {
    let value = &line[key];
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("{key} in {line}"))
}

/// Losses and gradient norms of a step differ by no more than this from float32's, relative to them. float16 rounds each
/// of the about 30 results of a layer by up to 2^-11; three layers of random roundings are sqrt(90) 2^-11 = 0.5 %.
const APART: f64 = 5e-3;

#[test]
fn adapters_and_whole_models_follow_float32() {
    let space = Workspace::new();
    for recipe in ["lora-medical", "full-medical"] {
        let run = |dtype: &str| {
            let out = format!("runs/{recipe}-{dtype}");
            let (file, set) = (format!("recipes/{recipe}.yaml"), format!("model.dtype={dtype}"));
            let trace = train(&space, &file, &out, &[&set, "run.steps=6", "optim.lr=1e-3"]).succeeded();
            assert!(trace.marks[2..].iter().all(|step| step.waits == 1), "{recipe} {dtype}: {:?}", trace.marks);
            let (steps, validations): (Vec<Value>, Vec<Value>) =
                space.steps(&out).into_iter().partition(|line| line.get("loss").is_some());
            let validation = |line: Option<&Value>| number(line.unwrap(), "eval_loss");
            (steps, validation(validations.first()), validation(validations.last()))
        };
        let ((exact, ..), (half, before, after)) = (run("f32"), run("f16"));
        assert_eq!((exact.len(), half.len()), (6, 6));
        for (exact, half) in exact.iter().zip(&half) {
            assert_eq!((number(half, "loss_scale"), exact.get("loss_scale")), (65536.0, None));
            for key in ["loss", "grad_norm"] {
                let (exact, half) = (number(exact, key), number(half, key));
                println!("{recipe} {key}: {half} in float16, {exact} in float32");
                assert!((half - exact).abs() <= APART * exact, "{recipe} {key}: {half} in float16, {exact} in float32");
            }
        }
        assert!(after < before, "{recipe}: nothing was learnt: {before}, {after}");
        assert_eq!(space.json(&format!("runs/{recipe}-f16/plan.json"))["recipe"]["model"]["dtype"], "f16");
    }
}

/// A loss so steep that its scaled gradients exceed 65,504: the scale is halved until they do not. Nothing is learnt until
/// then, and nothing is alarming about it. A run that is resumed gets the same bits.
#[test]
fn the_scale_is_halved_until_the_gradients_fit() {
    let space = Workspace::new();
    let settings = ["model.dtype=f16", "method.dpo.beta=10", "optim.lr=1e-9", "run.save_every=4", "run.keep=9"];
    let run =
        |out: &str, steps: &str| train(&space, "recipes/dpo-medical.yaml", out, &[&settings[..], &[steps]].concat());
    let whole = run("runs/whole", "run.steps=12");
    println!("{}", whole.stderr());
    assert!(whole.stderr().contains("gradients too large for float16 at a loss scale of 65536"), "{}", whole.stderr());
    whole.succeeded();
    let lines = space.steps("runs/whole");
    let steps: Vec<&Value> = lines.iter().filter(|line| line.get("loss").is_some()).collect();
    let overflowed =
        steps.iter().take_while(|line| number(line, "grad_norm").is_infinite() || number(line, "grad_norm").is_nan());
    let overflowed = overflowed.count();
    assert!((3..8).contains(&overflowed), "{overflowed} steps overflowed");
    for (i, line) in steps.iter().enumerate() {
        assert_eq!(number(line, "loss_scale"), 65536.0 / 2f64.powi(i.min(overflowed) as i32), "{line}");
        assert!(
            number(line, "loss").is_finite() && number(line, "grad_norm").is_finite() == (i >= overflowed),
            "{line}"
        );
    }
    let state = space.json("runs/whole/checkpoints/step-12/state.json");
    assert_eq!((state["skipped"].as_u64(), state["skipped_in_a_row"].as_u64()), (Some(overflowed as u64), Some(0)));
    assert_eq!(space.json("runs/whole/run.json")["origins"].as_array().map_or(0, Vec::len), 0);
    let shown = space.ft(&["runs", "show", "runs/whole", "--json"]);
    let findings = serde_json::from_slice::<Value>(&shown.stdout).unwrap()["findings"].clone();
    assert!(!findings.to_string().contains("not finite"), "{findings}");

    // A run that ended after a step whose overflow changed the scale, and is continued.
    let broken = run("runs/broken", "run.steps=12");
    broken.succeeded();
    for step in [8, 12] {
        std::fs::remove_dir_all(space.path(&format!("runs/broken/checkpoints/step-{step}"))).unwrap();
    }
    let arguments = ["train", "recipes/dpo-medical.yaml", "--resume", "--set", "run.out=runs/broken"];
    let common =
        ["model.device=cuda", "run.samples=0", "run.eval_every=0", "optim.schedule=constant", "optim.warmup=0"];
    let mut arguments = arguments.to_vec();
    arguments.extend(common.iter().chain(&settings).chain(&["run.steps=12"]).flat_map(|set| ["--set", *set]));
    fake_cuda::ft(&space, &arguments, &TURING).succeeded();
    for file in ["trained.safetensors", "optimiser.safetensors"] {
        let read = |run: &str| std::fs::read(space.path(&format!("runs/{run}/checkpoints/step-12/{file}"))).unwrap();
        assert!(read("whole") == read("broken"), "{file} differs after a resume");
    }
}

#[test]
fn the_cpu_refuses_float16() {
    let space = Workspace::new();
    let said =
        space.refused(&["train", "recipes/lora-medical.yaml", "--set", "model.dtype=f16", "--set", "model.device=cpu"]);
    assert!(said.contains("dtype f16 needs a CUDA device"), "{said}");
}

/// The device decides the format of a model that is stored in bfloat16.
#[test]
fn auto_takes_what_the_device_multiplies() {
    let name = "train::float16::auto_takes_what_the_device_multiplies";
    for (capability, expected) in [("75", Dtype::F16), ("70", Dtype::F16), ("61", Dtype::F32), ("80", Dtype::Bf16)] {
        let expected_name = expected.name();
        if fake_cuda::inside(name, &[("FAKE_CUDA_CAPABILITY", capability), ("EXPECTED_DTYPE", expected_name)]) {
            let folder = with_changed_weights("tiny-llama", |weights| {
                weights.values_mut().for_each(|t| *t = t.to_kind(Kind::BFloat16));
            });
            let chosen = Dtype::Auto.choose(Device::Cuda(0), Some(folder.path())).unwrap();
            assert_eq!(chosen.dtype.name(), std::env::var("EXPECTED_DTYPE").unwrap());
            return;
        }
    }
}

/// Commands that run a model take the format, too, and write the text of float32.
#[test]
fn commands_compute_in_float16() {
    let space = Workspace::new();
    let answer = |dtype: &str| {
        let model = ["generate", "--model", "models/medical", "--device", "cuda", "--dtype", dtype];
        let text = ["--prompt", "The heart", "--max-new-tokens", "8", "--greedy"];
        let run = fake_cuda::ft(&space, &[&model[..], &text].concat(), &TURING);
        assert!(run.output.status.success(), "{}", run.stderr());
        (run.stderr().contains("arithmetic in float16"), String::from_utf8(run.output.stdout).unwrap())
    };
    let (half, exact) = (answer("f16"), answer("f32"));
    assert_eq!((half.0, exact.0), (true, false));
    assert!(!half.1.trim().is_empty() && half.1 == exact.1, "{half:?} {exact:?}");
}
