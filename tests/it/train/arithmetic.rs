//! Settings of a run that decide how exactly and in which order a GPU computes (`run.deterministic`, `run.tf32`), on the
//! fake CUDA device.

use crate::support::alone;
use crate::support::fake_cuda::{self, FakeRun};
use crate::support::workspace::Workspace;
use ft::native::{self, Arithmetic};
use serde_json::Value;
use tch::{Kind, Tensor};

/// Trains three steps on sampled answers, which needs the running sums of probabilities, on the fake GPU.
fn train(space: &Workspace, out: &str, settings: &[&str], environment: &[(&str, &str)]) -> FakeRun {
    let out = format!("run.out={out}");
    let method = "method={grpo: {rewards: [{length: {max: 6, falloff: 12}}], \
                  sampling: {prompts: 4, max_new_tokens: 8}, answers: 4}}";
    let common = ["model.device=cuda", "run.steps=3", "run.samples=2", "run.eval_every=0", method];
    let mut arguments = vec!["train", "recipes/grpo-icd10.yaml", "--set", &out];
    arguments.extend(common.iter().chain(settings).flat_map(|set| ["--set", *set]));
    fake_cuda::ft(space, &arguments, environment)
}

#[test]
fn a_deterministic_run_samples_the_same_answers_and_is_recorded() {
    let space = Workspace::new();
    for (out, settings) in [("runs/plain", &[][..]), ("runs/fixed", &["run.deterministic=true"])] {
        let run = train(&space, out, settings, &[]);
        assert_eq!(run.stderr().contains("sums have a fixed order"), !settings.is_empty(), "{}", run.stderr());
        run.succeeded();
    }
    let losses = |out: &str| -> Vec<f64> {
        space.steps(out).iter().filter_map(|line| line.get("loss").and_then(Value::as_f64)).collect()
    };
    // Log-probabilities of the sampler differ by the rounding of a sum in float64.
    let (plain, fixed) = (losses("runs/plain"), losses("runs/fixed"));
    assert_eq!((plain.len(), fixed.len()), (3, 3));
    assert!(plain.iter().zip(&fixed).all(|(a, b)| (a - b).abs() < 1e-6), "{plain:?} {fixed:?}");
    for (out, expected) in [("runs/plain", Value::Null), ("runs/fixed", Value::Bool(true))] {
        assert_eq!(space.json(&format!("{out}/plan.json"))["recipe"]["run"]["deterministic"], expected, "{out}");
        assert_eq!(space.json(&format!("{out}/ft.lock"))["deterministic"], expected, "{out}");
    }
}

#[test]
fn a_deterministic_run_refuses_buffers_without_an_order() {
    let space = Workspace::new();
    let run =
        |buffers| train(&space, "runs/fixed", &["run.deterministic=true"], &[("CUBLAS_WORKSPACE_CONFIG", buffers)]);
    let refused = run(":4096:2:16:8");
    assert!(refused.stderr().contains("unset CUBLAS_WORKSPACE_CONFIG"), "{}", refused.stderr());
    assert_eq!(refused.output.status.code(), Some(1));
    run(":16:8").succeeded();
}

#[test]
fn tf32_is_asked_for_and_needs_a_device_that_has_it() {
    let space = Workspace::new();
    let run = |out, capability| train(&space, out, &["run.tf32=true"], &[("FAKE_CUDA_CAPABILITY", capability)]);
    let old = run("runs/old", "75");
    assert!(old.stderr().contains("run.tf32: Cuda(0) does not multiply in TF32"), "{}", old.stderr());
    let new = run("runs/new", "80");
    assert!(new.stderr().contains("float32 products in TF32"), "{}", new.stderr());
    new.succeeded();
    assert_eq!(space.json("runs/new/ft.lock")["tf32"], true);
    let said = space.refused(&[
        "recipe",
        "show",
        "recipes/lora-medical.yaml",
        "--set",
        "run.tf32=true",
        "--set",
        "model.device=cpu",
    ]);
    assert!(said.contains("`run.tf32` needs CUDA"), "{said}");
}

/// The settings reach libtorch: an operation that has no fixed order fails, and the precision of products changes.
#[test]
fn the_settings_are_those_of_libtorch() {
    alone("train::arithmetic::the_settings_are_those_of_libtorch", || {
        let put = || {
            let (index, source) = (Tensor::from_slice(&[1i64, 1]), Tensor::from_slice(&[1f32, 2.0]));
            Tensor::zeros([4], (Kind::Float, tch::Device::Cpu)).f_put_(&index, &source, false).map(drop)
        };
        assert_eq!(native::arithmetic().unwrap(), Arithmetic::default());
        put().unwrap();
        let with = Arithmetic { deterministic: true, tf32: true };
        native::set_arithmetic(with).unwrap();
        assert_eq!(native::arithmetic().unwrap(), with);
        let refused = put().unwrap_err().to_string();
        assert!(refused.contains("deterministic"), "{refused}");
        native::set_arithmetic(Arithmetic::default()).unwrap();
        put().unwrap();
    });
}

/// Blocks of a kernel run in any order, so one that adds to memory by atomic operations has no fixed sum. The one atomic operation
/// counts blocks.
#[test]
fn own_kernels_sum_in_a_fixed_order() {
    const TICKET: &str = "const u32 before = atomicAdd(counter, 1u);";
    let files: Vec<_> = std::fs::read_dir("native/cuda").unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap().replacen(TICKET, "", 1).to_lowercase();
        assert!(!text.contains("atomic"), "{}", file.display());
    }
}
