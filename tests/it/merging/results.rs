//! Properties of merged adapters and models, over adapters of unlike ranks, targets and kinds.

use crate::support::*;
use ft::adapters::merging::plan::{MergeForm, MergePlan, MergeSettings, NamedMethod};
use ft::adapters::merging::{MergedWeights, WeightedAdapter};
use ft::adapters::{AdapterSpec, file};
use ft::convert::export;
use ft::convert::merge::adapters::PreparedMerge;
use ft::convert::verify::report::ExportVerdict;
use ft::nn::Weights;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

fn parts(list: &[(&str, f64)]) -> Vec<WeightedAdapter> {
    list.iter().map(|(name, w)| WeightedAdapter::read(&fixture(format!("merging/{name}")), *w).unwrap()).collect()
}

fn plan(settings: Value, parts: usize) -> MergePlan {
    let number = |key: &str| settings.get(key).and_then(Value::as_f64);
    let settings = MergeSettings {
        method: NamedMethod::get(settings["method"].as_str().unwrap()).unwrap(),
        densities: number("density").into_iter().collect(),
        rank: settings.get("rank").and_then(Value::as_i64),
        energy: number("energy"),
        knots: settings.get("knots").is_some(),
        seed: settings.get("seed").and_then(Value::as_u64),
        ..MergeSettings::default()
    };
    settings.plan(parts).unwrap()
}

fn model_of(base: &Path, parts: &[WeightedAdapter], plan: MergePlan, out: &Path) -> BTreeMap<String, Tensor> {
    let merge = PreparedMerge::new(base, parts, plan, MergeForm::Model).unwrap();
    let report = merge.write_model(out, None, u64::MAX).unwrap();
    assert_eq!(report.verdict, ExportVerdict::Passed);
    Weights::open(out).unwrap().all()
}

fn distance(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> f64 {
    assert!(a.keys().eq(b.keys()));
    a.iter().map(|(name, t)| (t - &b[name]).abs().max().double_value(&[])).fold(0.0, f64::max)
}

/// An adapter that keeps all energy has the effect of the merged model, for every method and for adapters of unlike ranks and
/// targets.
#[test]
fn the_adapter_of_a_merge_has_the_effect_of_the_model() {
    let (base, parts) = (fixture("biased-llama"), parts(&[("one", 1.0), ("three", -0.5), ("two", 0.7)]));
    for settings in [
        json!({ "method": "linear" }),
        json!({ "method": "svd", "energy": 1.0 }),
        json!({ "method": "ties", "density": 0.5, "energy": 1.0 }),
        json!({ "method": "dare_ties", "seed": 3, "energy": 1.0 }),
        json!({ "method": "dare_linear", "energy": 1.0 }),
        json!({ "method": "magnitude_prune", "energy": 1.0 }),
        json!({ "method": "ties", "knots": true }),
        json!({ "method": "dare_linear", "knots": true }),
    ] {
        let out = tempfile::tempdir().unwrap();
        let as_model = model_of(&base, &parts, plan(settings.clone(), 3), &out.path().join("model"));
        let adapter = out.path().join("adapter");
        let merge = PreparedMerge::new(&base, &parts, plan(settings.clone(), 3), MergeForm::Adapter).unwrap();
        let report = merge.write_adapter(&adapter).unwrap();
        assert_eq!(report.verdict, ExportVerdict::Passed, "{settings}");
        assert!(report.adapter_effect.unwrap().max_abs > 1e-2, "{settings}");
        let again = [WeightedAdapter::read(&adapter, 1.0).unwrap()];
        let as_adapter = model_of(&base, &again, MergePlan::default(), &out.path().join("again"));
        let far = distance(&as_model, &as_adapter);
        assert!(far < 2e-5, "{settings}: {far}");
        let plain = Weights::open(&base).unwrap().all();
        assert!(distance(&as_model, &plain) > 1e-2, "{settings}");
    }
}

/// In common directions the sum stays the same, and the products have the ranks of all adapters together.
#[test]
fn common_directions_do_not_change_a_sum() {
    let (base, parts) = (fixture("biased-llama"), parts(&[("one", 1.0), ("two", -0.5)]));
    let weights = Weights::open(&base).unwrap();
    let sum = MergedWeights::new(&weights, &[], &parts).unwrap();
    let settings = json!({ "method": "magnitude_prune", "density": 1.0, "knots": true });
    let aligned = MergedWeights::planned(&weights, &[], &parts, plan(settings, 2)).unwrap();
    for name in sum.changed() {
        let far = (sum.tensor(name).unwrap() - aligned.tensor(name).unwrap()).abs().max().double_value(&[]);
        assert!(far < 1e-5, "{name}: {far}");
        let deltas = aligned.deltas(name).unwrap();
        assert_eq!(aligned.merged(name, &deltas).unwrap().rank(), Some(8), "{name}");
    }
}

/// DARE in many repetitions gives the sum on average, and one seed always the same.
#[test]
fn dare_gives_the_sum_on_average() {
    let (base, parts) = (fixture("biased-llama"), parts(&[("one", 1.0), ("two", 0.5)]));
    let weights = Weights::open(&base).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let drawn = |seed: u64| {
        let settings = json!({ "method": "dare_linear", "density": 0.5, "seed": seed });
        let merge = MergedWeights::planned(&weights, &[], &parts, plan(settings, 2)).unwrap();
        merge.merged(name, &merge.deltas(name).unwrap()).unwrap().dense()
    };
    assert_same("one seed", &drawn(5), &drawn(5));
    let mean = Tensor::stack(&(0..400).map(drawn).collect::<Vec<_>>(), 0).mean_dim(0, false, Kind::Float);
    let merge = MergedWeights::new(&weights, &[], &parts).unwrap();
    let sum = merge.merged(name, &merge.deltas(name).unwrap()).unwrap().dense();
    let far = (&mean - &sum).norm().double_value(&[]) / sum.norm().double_value(&[]);
    // With density 0.5 a draw is off by about the norm of the sum; the mean of 400 by a twentieth of that.
    assert!(far < 0.1, "{far}");
    assert!((drawn(1) - &sum).norm().double_value(&[]) > 0.3 * sum.norm().double_value(&[]));
}

/// Saves an adapter of a recipe's section with changed parameters.
fn saved(spec: Value, base: &Path, folder: &Path) -> PathBuf {
    let spec: AdapterSpec = serde_json::from_value(spec).unwrap();
    let plan = spec.plan_from(None).unwrap();
    let model = adapted(base, Kind::Float, &*plan);
    {
        let _no_grad = tch::no_grad_guard();
        for p in model.params().adapter(0).filter(|p| p.trainable()) {
            let noise = noise(&p.tensor.size(), &p.name);
            p.tensor.shallow_clone().copy_(&(&p.tensor + noise * 0.2));
        }
    }
    let name = model.active_adapter().unwrap().to_string();
    export::save_adapter(&model, &name, &spec, base, folder).unwrap();
    folder.to_path_buf()
}

/// Adapters of unlike kinds become one LoRA, through what each changes.
#[test]
fn adapters_of_unlike_kinds_become_one_lora() {
    let out = tempfile::tempdir().unwrap();
    for base in ["tiny-llama", "tiny-gpt2"] {
        let base = fixture(base);
        let kinds = [
            json!({ "lora": { "rank": 3 } }),
            json!({ "lora": { "rank": 2, "dora": true } }),
            json!({ "oft": { "block": 8 } }),
            json!({ "loha": { "rank": 2 } }),
            json!({ "ia3": { "targets": "all-linear", "feedforward": [] } }),
        ];
        let folders: Vec<PathBuf> = kinds
            .into_iter()
            .enumerate()
            .map(|(i, kind)| {
                saved(kind, &base, &out.path().join(format!("{}{i}", base.file_name().unwrap().display())))
            })
            .collect();
        let parts: Vec<WeightedAdapter> =
            folders.iter().map(|folder| WeightedAdapter::read(folder, 0.5)).collect::<Result<_, _>>().unwrap();
        let without_bias = &parts[..4];
        for settings in [json!({ "method": "svd", "energy": 1.0 }), json!({ "method": "ties", "energy": 1.0 })] {
            let model = out.path().join("model");
            let as_model = model_of(&base, without_bias, plan(settings.clone(), 4), &model);
            let adapter = out.path().join("adapter");
            let merge = PreparedMerge::new(&base, without_bias, plan(settings.clone(), 4), MergeForm::Adapter).unwrap();
            merge.write_adapter(&adapter).unwrap();
            let again = [WeightedAdapter::read(&adapter, 1.0).unwrap()];
            assert!(again[0].file.spec.as_lora().is_some_and(|lora| !lora.dora));
            let far = distance(&as_model, &model_of(&base, &again, MergePlan::default(), &out.path().join("again")));
            assert!(far < 1e-4, "{settings}: {far}");
        }
        // The sum of changes that are no products needs a rank.
        let exact = PreparedMerge::new(&base, without_bias, MergePlan::default(), MergeForm::Adapter).unwrap();
        let error = exact.write_adapter(&out.path().join("exact")).unwrap_err();
        assert!(error.to_string().contains("--rank"), "{error}");
        if base.ends_with("tiny-gpt2") {
            let all =
                PreparedMerge::new(&base, &parts, plan(json!({ "method": "ties", "rank": 4 }), 5), MergeForm::Adapter);
            let error = all.err().expect("IA3 changes biases as well");
            assert!(error.message().contains("its bias is changed as well"), "{error}");
        }
    }
}

#[test]
fn what_cannot_be_merged_is_refused_by_name() {
    let out = tempfile::tempdir().unwrap();
    let base = fixture("biased-llama");
    let refused = |list: &[(&str, f64)], settings: Value| {
        let parts = parts(list);
        let count = parts.len();
        PreparedMerge::new(&base, &parts, plan(settings, count), MergeForm::Adapter).err().unwrap().to_string()
    };
    let unlike = refused(&[("one", 1.0), ("three", 1.0)], json!({ "method": "peft_linear" }));
    assert!(unlike.contains("ranks 4, 2") && unlike.contains("q_proj"), "{unlike}");

    // A change that is not finite, which trimming would hide.
    let damaged = out.path().join("damaged");
    std::fs::create_dir(&damaged).unwrap();
    std::fs::copy(fixture("merging/one").join(file::CONFIG), damaged.join(file::CONFIG)).unwrap();
    let mut tensors = tensors(fixture("merging/one").join(file::TENSORS));
    let name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    tensors.insert(name.into(), tensors[name].full_like(f64::NAN));
    save_tensors(&damaged.join(file::TENSORS), &tensors);
    let parts = [WeightedAdapter::read(&damaged, 1.0).unwrap()];
    for settings in [json!({ "method": "ties" }), json!({ "method": "linear" })] {
        let error = PreparedMerge::new(&base, &parts, plan(settings, 1), MergeForm::Model).err().unwrap();
        assert!(error.message().contains("layers.1.self_attn.v_proj.weight` has NaN"), "{error}");
    }

    // Another base: of another size, and with other names.
    let refused_by = |base: &str| {
        let parts = [WeightedAdapter::read(&fixture("merging/one"), 1.0).unwrap()];
        PreparedMerge::new(&fixture(base), &parts, MergePlan::default(), MergeForm::Model).err().unwrap().to_string()
    };
    let size = refused_by("tiny-llama");
    assert!(size.contains("a model of another size") && size.contains("down_proj"), "{size}");
    let names = refused_by("tiny-gpt2");
    assert!(names.contains("no such tensor; its nearest names: `transformer.h."), "{names}");
}

/// The report's numbers are those of the changes: norms, cosines and what a rank keeps.
#[test]
fn the_report_says_how_far_the_adapters_agree() {
    let base = fixture("biased-llama");
    let same = parts(&[("one", 1.0), ("one", -1.0)]);
    let report = PreparedMerge::new(&base, &same, MergePlan::default(), MergeForm::Adapter).unwrap().report;
    assert_eq!(report.layers.len(), 3);
    assert_eq!(report.total.sign_conflicts, Some(1.0));
    assert!((report.total.cosines[0].unwrap() + 1.0).abs() < 1e-6);
    assert!(report.total.merged_norm < 1e-5 * report.total.norms[0]);

    let two = parts(&[("one", 1.0), ("two", 1.0)]);
    let report = PreparedMerge::new(&base, &two, plan(json!({ "method": "svd", "rank": 2 }), 2), MergeForm::Model);
    let report = report.unwrap().report;
    assert!(report.weights.iter().all(|w| w.rank == Some(2) && w.energy_kept < 0.99));
    let weights = Weights::open(&base).unwrap();
    let merge = MergedWeights::new(&weights, &[], &two).unwrap();
    for w in &report.weights {
        let deltas = merge.deltas(&w.name).unwrap();
        let sum = merge.merged(&w.name, &deltas).unwrap().dense();
        let values: Vec<f64> = Vec::try_from(sum.svd(true, false).1.to_kind(Kind::Double)).unwrap();
        let squares: Vec<f64> = values.iter().map(|v| v * v).collect();
        let kept = squares[..2].iter().sum::<f64>() / squares.iter().sum::<f64>();
        assert!((w.energy_kept - kept).abs() < 1e-5, "{}: {} {kept}", w.name, w.energy_kept);
        assert!((w.comparison.norms[0] - deltas[0].delta.dense().norm().double_value(&[])).abs() < 1e-5);
    }
}
