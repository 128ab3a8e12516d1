//! A model with quantised weights computes what a model with the dequantised weights computes, bit for bit: losses,
//! gradients, answers. Its memory is that of its codes.

use crate::support::*;
use ft::adapters::{LoraInit, LoraSpec, ModulePlan, Targets, TokenName};
use ft::generate::engine::complete;
use ft::generate::settings::GenerationSettings;
use ft::models::vocabulary::{RowStart, VocabularyRows};
use ft::models::{Heads, LayerReplay, LoadOptions, Model, Storage};
use ft::nn::{
    AdapterPlan, BaseQuantisation, LayerKind, Quantisation, QuantisedFormat, QuantisedParam, TableFormat, Tokens,
    weights,
};
use std::path::Path;
use tch::{Kind, Tensor};

const FAMILIES: [&str; 7] =
    ["tiny-llama", "biased-llama", "tiny-gpt2", "tiny-qwen2", "tiny-qwen3", "tiny-mixtral", "tiny-qwen2-moe"];

/// All formats of linear layers, and one of tables of tokens and output heads beside them.
fn formats() -> [BaseQuantisation; 5] {
    let of = |format| Quantisation::new(format, true).into();
    let all = [QuantisedFormat::Nf4, QuantisedFormat::Fp4, QuantisedFormat::Int8, QuantisedFormat::Fp8];
    let [nf4, fp4, int8, fp8] = all.map(of);
    [nf4, fp4, int8, fp8, with_tables(QuantisedFormat::Nf4)]
}

fn with_tables(format: QuantisedFormat) -> BaseQuantisation {
    BaseQuantisation { linear: Quantisation::new(format, true), embeddings: Some(TableFormat::Int8) }
}

fn load(folder: &Path, kind: Kind, storage: Storage, plan: Option<&ModulePlan>) -> Model {
    let model = try_load(folder, kind, storage, plan).unwrap();
    fill_adapter(&model, 0.1);
    model
}

fn try_load(folder: &Path, kind: Kind, storage: Storage, plan: Option<&ModulePlan>) -> ft::error::Result<Model> {
    try_load_grown(folder, kind, storage, plan, None)
}

fn try_load_grown(
    folder: &Path,
    kind: Kind,
    storage: Storage,
    plan: Option<&ModulePlan>,
    vocabulary: Option<&VocabularyRows>,
) -> ft::error::Result<Model> {
    let adapters = plan.iter().map(|plan| ("a".to_string(), *plan as &dyn AdapterPlan)).collect();
    let load =
        LoadOptions { device: device(), kind, storage, train_base: None, adapters, vocabulary, heads: Heads::Tokens };
    Model::load(folder, load)
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
    for name in FAMILIES.into_iter().chain(["gemma3n/shared"]) {
        // Weights that are stored as (in, out) are multiplied as they are stored, which sums in another order.
        let transposed = name == "tiny-gpt2";
        for format in formats() {
            let storage = Storage::Quantised(format);
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
    let tables = with_tables(QuantisedFormat::Nf4);
    let formats = [tables.linear.into(), tables, Quantisation::new(QuantisedFormat::Fp8, true).into()];
    for (name, format) in FAMILIES.into_iter().flat_map(|name| formats.map(|format| (name, format))) {
        let model = load(&fixture(name), Kind::Float, Storage::Quantised(format), None);
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
            assert!(gap < 2e-5, "{name} {format:?}: token {i}: {gap}");
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
    let model = load(&folder, Kind::Float, Storage::Quantised(format.into()), Some(&plan));
    let linear = |name: &str| name.ends_with("_proj.weight") && !name.ends_with("down_proj.weight");
    let mut bytes = 0;
    for p in model.params().base() {
        assert_eq!(matches!(p.quantised, QuantisedParam::Done(_)), linear(&p.name), "{}", p.name);
        bytes +=
            if linear(&p.name) { p.quantised_bytes(Some(format.into())).unwrap() } else { 4 * p.tensor.numel() as u64 };
    }
    assert_eq!(model.storage_summary(), (Kind::Float, bytes));
    // What is predicted from the files before the model is loaded.
    let sketch = load(&folder, Kind::Float, Storage::File, Some(&plan));
    assert_eq!(sketch.storage_summary_as(Storage::Quantised(format.into()), device()), (Kind::Float, bytes));
    let count = |model: &Model| model.params().base().map(|p| p.count()).sum::<u64>();
    assert_eq!(count(&model), count(&sketch));
}

/// With them are the tables of tokens and the output head, but not the table of positions. What is predicted from the files
/// is what the loaded model takes.
#[test]
fn tables_of_tokens_and_heads_are_quantised_where_asked_for() {
    let format = with_tables(QuantisedFormat::Nf4);
    for (name, expected) in [
        ("tiny-llama", &["model.embed_tokens.weight"][..]),
        ("biased-llama", &["model.embed_tokens.weight", "lm_head.weight"]),
        ("tiny-gpt2", &["transformer.wte.weight"]),
        ("gemma3n/shared", &["model.embed_tokens.weight", "model.embed_tokens_per_layer.weight"]),
    ] {
        let model = load(&fixture(name), Kind::Float, Storage::Quantised(format), None);
        let (mut bytes, mut found) = (0, Vec::new());
        for p in model.params().base() {
            bytes += match &p.quantised {
                QuantisedParam::Done(weight) => weight.bytes(),
                _ => 4 * p.tensor.numel() as u64,
            };
            let QuantisedParam::Done(weight) = &p.quantised else { continue };
            if p.layer != LayerKind::Linear {
                assert_eq!(weight.format().map(|f| f.format), Some(QuantisedFormat::Int8), "{}", p.name);
                found.push(p.name.as_str());
            }
        }
        let ends = |name: &&str| found.iter().any(|found| name.ends_with(found) || found == name);
        assert!(found.len() == expected.len() && expected.iter().all(ends), "{name}: {found:?}");
        assert_eq!(model.storage_summary(), (Kind::Float, bytes), "{name}");
        let sketch = load(&fixture(name), Kind::Float, Storage::Outline, None);
        assert_eq!(sketch.storage_summary_as(Storage::Quantised(format), device()), (Kind::Float, bytes), "{name}");
        let said = model.describe_quantisation().unwrap();
        assert!(
            said.starts_with("linear layers quantised to NF4 with 8-bit scales, embeddings and output head to int8")
        );
    }
}

/// A table that an adapter changes as a whole cannot be quantised; rows that are trained beside it can be.
#[test]
fn adapters_of_quantised_tables_are_refused_by_name() {
    let storage = Storage::Quantised(with_tables(QuantisedFormat::Nf4));
    let names = |names: &[&str]| Targets::Names(names.iter().map(|n| n.to_string()).collect());
    let spec = LoraSpec { rank: 2, ..LoraSpec::default() };
    for (name, table, head) in [("tiny-llama", "embed_tokens", "lm_head"), ("tiny-gpt2", "wte", "lm_head")] {
        for (spec, named) in [
            (LoraSpec { targets: names(&[table]), ..spec.clone() }, table),
            (LoraSpec { targets: names(&[head]), ..spec.clone() }, head),
            (LoraSpec { modules_to_save: vec![table.into()], tie: true, ..spec.clone() }, table),
        ] {
            let plan = ModulePlan::new(&spec).unwrap();
            let said = try_load(&fixture(name), Kind::Float, storage, Some(&plan)).err().unwrap().to_string();
            let parts = [
                "quantize_embeddings",
                named,
                "`, which is to be quantised",
                "hint: leave embedding and output head out of targets",
            ];
            parts.iter().for_each(|part| assert!(said.contains(part), "`{part}` is not in: {said}"));
            // The same is said before a run by what is predicted for it.
            let sketch = load(&fixture(name), Kind::Float, Storage::Outline, Some(&plan));
            assert_eq!(sketch.require_untouched_tables().unwrap_err().to_string(), said);
            load(
                &fixture(name),
                Kind::Float,
                Storage::Quantised(with_tables(QuantisedFormat::Nf4).linear.into()),
                Some(&plan),
            );
        }
        let rows = LoraSpec { token_rows: vec![TokenName::Id(3), TokenName::Id(7)], ..spec.clone() };
        let plan = ModulePlan::new(&rows).unwrap();
        let model = load(&fixture(name), Kind::Float, storage, Some(&plan));
        model.require_untouched_tables().unwrap();
        let folder = dequantised(name, &model);
        let dense = load(folder.path(), Kind::Float, Storage::Copy, Some(&plan));
        let row = Row::pack(&[Sequence::random(30, 12, 5)]);
        let learn = |model: &Model| (model.learn(&row, row.items, LayerReplay::None).unwrap(), take_gradients(model)).1;
        assert_all_close(&learn(&model), &learn(&dense), 1e-4);
    }
    let grown = VocabularyRows::starting(66, [64, 65].map(|id| RowStart { id, mean_of: Vec::new() }).to_vec());
    let load_grown = |storage| try_load_grown(&fixture("tiny-llama"), Kind::Float, storage, None, Some(&grown));
    let said = load_grown(storage).err().unwrap().to_string();
    assert!(said.contains("rows of new tokens") && said.contains("--quantize-embeddings"), "{said}");
    load_grown(Storage::Quantised(with_tables(QuantisedFormat::Nf4).linear.into())).unwrap();
    // The position table is none of them.
    let plan = ModulePlan::new(&LoraSpec { targets: names(&["wpe", "c_attn"]), ..spec }).unwrap();
    load(&fixture("tiny-gpt2"), Kind::Float, storage, Some(&plan));
}

#[test]
fn damaged_tables_are_refused_by_name() {
    let storage = Storage::Quantised(with_tables(QuantisedFormat::Nf4));
    let refused = |change: &dyn Fn(&Tensor) -> Tensor| {
        let folder = with_changed_weights("biased-llama", |t| {
            let changed = change(&t["lm_head.weight"]);
            let _ = t.insert("lm_head.weight".into(), changed);
        });
        try_load(folder.path(), Kind::Float, storage, None).err().unwrap().to_string()
    };
    let said = refused(&|t| {
        let t = t.copy();
        let _ = t.get(5).get(3).fill_(f64::INFINITY);
        t
    });
    assert!(said.contains("lm_head.weight") && said.contains("NaN or infinite"), "{said}");
    let said = refused(&|t| t.narrow(0, 0, 5).copy());
    assert!(said.contains("`lm_head.weight` has shape [5, "), "{said}");
    let said = refused(&|t| t.to_kind(Kind::Int8));
    assert!(said.contains("lm_head.weight` has dtype Int8, expected floating-point numbers"), "{said}");
}

/// LoftQ: B A is the best approximation of rank R of the quantisation's error, so what is left of it has the error's other
/// singular values; the quantised weights are those without an adapter.
#[test]
fn loftq_corrects_the_error_of_the_quantisation() {
    let spec = LoraSpec { rank: 8, alpha: 12.0, init: LoraInit::Loftq, ..LoraSpec::default() };
    let plan = ModulePlan::new(&spec).unwrap();
    for name in ["tiny-llama", "tiny-gpt2"] {
        for format in [QuantisedFormat::Nf4, QuantisedFormat::Fp4, QuantisedFormat::Int8, QuantisedFormat::Fp8] {
            let storage = Storage::Quantised(Quantisation::new(format, true).into());
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
