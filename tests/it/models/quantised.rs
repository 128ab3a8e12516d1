//! A model with quantised weights computes what a model with the dequantised weights computes, bit for bit: losses,
//! gradients, answers. Its memory is that of its codes.

use crate::support::*;
use ft::adapters::{LoraInit, LoraSpec, ModulePlan};
use ft::generate::engine::complete;
use ft::generate::settings::GenerationSettings;
use ft::models::{Heads, LayerReplay, LoadOptions, Model, Storage};
use ft::nn::{AdapterPlan, Quantisation, QuantisedFormat, QuantisedParam, Tokens, weights};
use std::path::Path;
use tch::{Kind, Tensor};

const FAMILIES: [&str; 7] =
    ["tiny-llama", "biased-llama", "tiny-gpt2", "tiny-qwen2", "tiny-qwen3", "tiny-mixtral", "tiny-qwen2-moe"];

fn load(folder: &Path, kind: Kind, storage: Storage, plan: Option<&ModulePlan>) -> Model {
    let adapters = plan.iter().map(|plan| ("a".to_string(), *plan as &dyn AdapterPlan)).collect();
    let load = LoadOptions {
        device: device(),
        kind,
        storage,
        train_base: None,
        adapters,
        vocabulary: None,
        heads: Heads::Tokens,
    };
    let model = Model::load(folder, load).unwrap();
    fill_adapter(&model, 0.1);
    model
}

/// Writes a model directory with the dequantised weights of a quantised model.
fn dequantised(name: &str, model: &Model) -> tempfile::TempDir {
    let folder = with_weights(name, name);
    let mut tensors = tensors(format!("{name}/model.safetensors"));
    let mut changed = 0;
    for p in model.params().base() {
        let QuantisedParam::Done(weight) = &p.quantised else { continue };
        let dense = weight.dense(Kind::Float).to_device(tch::Device::Cpu);
        let dense = if p.transposed { dense.tr().contiguous() } else { dense };
        let ending = tensors.keys().find(|key| p.name == **key || p.name.ends_with(&format!(".{key}"))).cloned();
        assert!(tensors.insert(ending.unwrap_or(p.name.clone()), dense).is_some(), "{}", p.name);
        changed += 1;
    }
    assert!(changed > 0);
    weights::save(&folder.path().join("model.safetensors"), tensors.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
    folder
}

#[test]
fn quantised_weights_compute_what_their_numbers_compute() {
    let spec = LoraSpec { rank: 4, alpha: 8.0, ..LoraSpec::default() };
    let prompts: Vec<Vec<u32>> = (1..6).map(|i| (0..7 * i).map(|t| (t * 5 + i) % 60).collect()).collect();
    for name in FAMILIES {
        // Weights that are stored as (in, out) are multiplied as they are stored, which sums in another order.
        let transposed = name == "tiny-gpt2";
        for format in [QuantisedFormat::Nf4, QuantisedFormat::Fp4, QuantisedFormat::Int8] {
            let storage = Storage::Quantised(Quantisation::new(format, true));
            for kind in [Kind::Float, Kind::BFloat16].into_iter().take(2 - usize::from(transposed)) {
                let plan = ModulePlan::new(&spec).unwrap();
                let quantised = load(&fixture(name), kind, storage, Some(&plan));
                let folder = dequantised(name, &quantised);
                let dense = load(folder.path(), kind, Storage::Copy, Some(&plan));
                let case = format!("{name} {format:?} {kind:?}");
                for replay in [LayerReplay::None, LayerReplay::All] {
                    let row = Row::pack(&(1..5).map(|n| Sequence::random(9 * n, 60, n as u64)).collect::<Vec<_>>());
                    let step = |model: &Model| {
                        let metrics = model.learn(&row, row.items, replay).unwrap();
                        (metrics.means()["loss"], take_gradients(model))
                    };
                    let ((a, ours), (b, theirs)) = (step(&quantised), step(&dense));
                    assert!(if transposed { (a - b).abs() < 1e-5 } else { a == b }, "{case}: loss {a} {b}");
                    for (parameter, gradient) in &ours {
                        let (case, expected) = (format!("{case}: {parameter}"), &theirs[parameter]);
                        match transposed {
                            true => drop(assert_close(&case, gradient, expected, 1e-4)),
                            false => assert_same(&case, gradient, expected),
                        }
                    }
                }
                let settings = GenerationSettings { log_probs: true, ..GenerationSettings::greedy(12, &[]) };
                let answer = |model: &Model| complete(model, &prompts, &settings, &mut |_, _| ()).unwrap();
                for (a, b) in answer(&quantised).iter().zip(&answer(&dense)) {
                    assert_eq!(a.tokens, b.tokens, "{case}: answers");
                    let same = |(a, b): (&f32, &f32)| if transposed { (a - b).abs() < 1e-5 } else { a == b };
                    assert!(a.log_probs.iter().zip(&b.log_probs).all(same), "{case}: {a:?} {b:?}");
                }
            }
        }
    }
}

#[test]
fn decoding_over_quantised_weights_equals_the_full_forward() {
    let storage = Storage::Quantised(Quantisation::new(QuantisedFormat::Nf4, true));
    for name in FAMILIES {
        let model = load(&fixture(name), Kind::Float, storage, None);
        let prompt: Vec<u32> = (0..11).map(|t| (t * 7 + 3) % 60).collect();
        let settings = GenerationSettings { log_probs: true, ..GenerationSettings::greedy(12, &[]) };
        let answer = complete(&model, std::slice::from_ref(&prompt), &settings, &mut |_, _| ()).unwrap().remove(0);
        let all = [&prompt[..], &answer.tokens].concat();
        let tokens = Tokens::pack(&[&all], device());
        let places = Tensor::arange(all.len() as i64, (Kind::Int64, device()));
        let expected = model.infer(&tokens, |out| out.logits(&places).log_softmax(-1, Kind::Float)).unwrap();
        for (i, (token, found)) in answer.tokens.iter().zip(&answer.log_probs).enumerate() {
            let at = [(prompt.len() + i - 1) as i64, i64::from(*token)];
            let gap = (expected.double_value(&at) - f64::from(*found)).abs();
            assert!(gap < 2e-5, "{name}: token {i}: {gap}");
        }
    }
}

/// Embeddings, norms, biases and heads keep their format, and so does a linear layer that an adapter trains in full.
#[test]
fn only_frozen_linear_layers_are_quantised() {
    let spec = LoraSpec { rank: 2, modules_to_save: vec!["down_proj".into()], ..LoraSpec::default() };
    let plan = ModulePlan::new(&spec).unwrap();
    let format = Quantisation::new(QuantisedFormat::Nf4, true);
    let folder = fixture("biased-llama");
    let model = load(&folder, Kind::Float, Storage::Quantised(format), Some(&plan));
    let linear = |name: &str| name.ends_with("_proj.weight") && !name.ends_with("down_proj.weight");
    let mut bytes = 0;
    for p in model.params().base() {
        assert_eq!(matches!(p.quantised, QuantisedParam::Done(_)), linear(&p.name), "{}", p.name);
        bytes += if linear(&p.name) { p.quantised_bytes(Some(format)).unwrap() } else { 4 * p.tensor.numel() as u64 };
    }
    assert_eq!(model.storage_summary(), (Kind::Float, bytes));
    // What is predicted from the files before the model is loaded.
    let sketch = load(&folder, Kind::Float, Storage::File, Some(&plan));
    assert_eq!(sketch.storage_summary_as(Storage::Quantised(format), device()), (Kind::Float, bytes));
    let count = |model: &Model| model.params().base().map(|p| p.count()).sum::<u64>();
    assert_eq!(count(&model), count(&sketch));
}

/// LoftQ: B A is the best approximation of rank R of the quantisation's error, so what is left of it has the error's other
/// singular values; the quantised weights are those without an adapter.
#[test]
fn loftq_corrects_the_error_of_the_quantisation() {
    let spec = LoraSpec { rank: 8, alpha: 12.0, init: LoraInit::Loftq, ..LoraSpec::default() };
    let plan = ModulePlan::new(&spec).unwrap();
    for name in ["tiny-llama", "tiny-gpt2"] {
        for format in [QuantisedFormat::Nf4, QuantisedFormat::Fp4, QuantisedFormat::Int8] {
            let storage = Storage::Quantised(Quantisation::new(format, true));
            let load = |plan: Option<&ModulePlan>, storage| {
                let adapters = plan.iter().map(|plan| ("a".to_string(), *plan as &dyn AdapterPlan)).collect();
                let (device, kind, heads) = (device(), Kind::Float, Heads::Tokens);
                let load = LoadOptions { device, kind, storage, train_base: None, adapters, vocabulary: None, heads };
                Model::load(&fixture(name), load)
            };
            let (corrected, quantised) = (load(Some(&plan), storage).unwrap(), load(None, storage).unwrap());
            let own = load(None, Storage::Copy).unwrap();
            let mut adapted = 0;
            for p in corrected.params().base() {
                let QuantisedParam::Done(weight) = &p.quantised else { continue };
                let same = |model: &Model| model.params().base().find(|q| q.name == p.name).unwrap().tensor.copy();
                assert!(same(&quantised).equal(&p.tensor), "{name} {}: the quantised weight is unchanged", p.name);
                let factor = |f: &str| {
                    let name = p.name.replace(".weight", &format!(".lora_{f}.weight"));
                    corrected.params().adapter(0).find(|q| q.name == name).unwrap().tensor.detach()
                };
                let full = if p.transposed { same(&own).tr() } else { same(&own) };
                let error = full - weight.dense(Kind::Float);
                let left = &error - factor("B").matmul(&factor("A")) * 1.5;
                let values = |t: &Tensor| t.svd(true, false).1.to_device(tch::Device::Cpu);
                let count = values(&error).size()[0] - 8;
                let (left, others) = (values(&left).narrow(0, 0, count), values(&error).narrow(0, 8, count));
                assert_close(&format!("{name} {format:?} {}", p.name), &left, &others, 1e-4);
                adapted += 1;
            }
            assert!(adapted > 7, "{name}: {adapted}");
            let refused = load(Some(&plan), Storage::Copy).err().unwrap().to_string();
            assert!(refused.contains("`init: loftq` corrects the error of a quantisation"), "{refused}");
        }
    }
}
