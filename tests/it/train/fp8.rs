//! Trains adapters over weights in FP8 through the real binary on the fake CUDA device: in FP8 where the device has such products, over
//! dequantised weights elsewhere, with losses near those over the base's own weights.

use crate::support::fake_cuda;
use crate::support::workspace::Workspace;
use std::collections::BTreeMap;

/// Trains LoRA on all linear layers in bfloat16, in steps with a high learning rate. Returns the losses of the steps and the launches by operation.
fn train(space: &Workspace, out: &str, quantize: &str, capability: &str) -> (Vec<f64>, BTreeMap<String, i64>) {
    let sets = [
        "model.device=cuda",
        "model.dtype=bf16",
        "run.epochs=8",
        "run.samples=0",
        "run.eval_every=0",
        "run.save_every=0",
        "optim.lr=1e-2",
        "optim.schedule=constant",
        &format!("model.quantize={quantize}"),
        &format!("run.out={out}"),
    ];
    let sets = sets.iter().flat_map(|s| ["--set", s]);
    let arguments: Vec<&str> = ["train", "recipes/lora-medical.yaml"].into_iter().chain(sets).collect();
    let trace = fake_cuda::ft(space, &arguments, &[("FAKE_CUDA_CAPABILITY", capability)]).succeeded();
    assert_eq!(space.json(&format!("{out}/export_report.json"))["verdict"], "passed", "{out}");
    (space.steps(out).iter().filter_map(|line| line["loss"].as_f64()).collect(), trace.operations)
}

/// The largest relative differences of two losses of one step that are allowed, in the first steps, in which the loss falls by a third, and in
/// all. The weights and inputs of every layer are rounded by up to 2^-4; with this learning rate runs that differ slightly drift apart.
const FIRST: (usize, f64) = (9, 0.03);
const ALL: f64 = 0.15;

#[test]
fn losses_in_fp8_are_near_those_in_bfloat16() {
    let space = Workspace::new();
    let (plain, operations) = train(&space, "plain", "", "90");
    let products = |operations: &BTreeMap<String, i64>| operations.get("aten::_scaled_mm").copied().unwrap_or(0);
    assert_eq!(products(&operations), 0);
    let mut curves = Vec::new();
    for (out, capability, in_fp8) in [("hopper", "90", true), ("ada", "89", true), ("ampere", "80", false)] {
        let (losses, operations) = train(&space, out, "fp8", capability);
        assert_eq!(products(&operations) > 0, in_fp8, "{out}: {operations:?}");
        let gaps: Vec<f64> = losses.iter().zip(&plain).map(|(a, b)| (a - b).abs() / b).collect();
        let most = |gaps: &[f64]| gaps.iter().fold(0.0, |most: f64, gap| most.max(*gap));
        println!("{out}: losses differ by at most {:.4} at first, {:.4} later", most(&gaps[..FIRST.0]), most(&gaps));
        assert!(losses.len() == plain.len() && losses.len() == 24 && losses[0] != plain[0], "{out}: {losses:?}");
        assert!(most(&gaps[..FIRST.0]) <= FIRST.1 && most(&gaps) <= ALL, "{out}: {gaps:?}");
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        assert!(mean(&losses[21..]) < 0.9 * mean(&losses[..3]), "{out}: {losses:?}");
        curves.push(losses);
    }
    assert_ne!(curves[0], curves[2], "rounded inputs make a difference");
}
