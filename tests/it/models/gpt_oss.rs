//! What is particular to gpt-oss: experts that its files have in stacks, adapters of these, MXFP4. Logits, gradients, training
//! steps, decoding and merging are tested with those of the other families.

use crate::support::files::copied;
use crate::support::*;
use ft::adapters::{AdapterSpec, LoraSpec, ModulePlan, Targets, file};
use ft::convert::export;
use ft::generate::engine::complete;
use ft::generate::settings::GenerationSettings;
use ft::models::{self, Heads, LoadOptions, Model, Storage};
use ft::nn::{AdapterPlan, QuantisedParam, Tokens, Weights};
use serde_json::{Value, json as value};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const BASE: &str = "tiny-gpt-oss";

fn try_load(folder: &Path, storage: Storage, plan: Option<&ModulePlan>) -> ft::error::Result<Model> {
    let adapters = plan.iter().map(|plan| ("a".to_string(), *plan as &dyn AdapterPlan)).collect();
    let device = if storage == Storage::Outline { Device::Cpu } else { device() };
    let (kind, heads) = (Kind::Float, Heads::Tokens);
    Model::load(folder, LoadOptions { device, kind, storage, train_base: None, adapters, vocabulary: None, heads })
}

fn logits(model: &Model, rows: &[&[u32]]) -> Tensor {
    let tokens = Tokens::pack(rows, device());
    let at = Tensor::arange(tokens.len() as i64, (Kind::Int64, device()));
    model.infer(&tokens, |out| out.logits(&at)).unwrap()
}

fn files_of(folder: &Path) -> BTreeMap<String, Tensor> {
    Weights::open(folder).unwrap().all()
}

/// A model that was trained in full is written with the tensors of its files, bit for bit if nothing changed.
#[test]
fn a_model_is_written_as_its_files_are() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("model");
    export::save_model(&whole(&fixture(BASE), Kind::Float), &out, Kind::Float).unwrap();
    let (ours, theirs) = (files_of(&out), files_of(&fixture(BASE)));
    assert!(ours.keys().eq(theirs.keys()), "{:?}", ours.keys());
    assert!(ours.contains_key("model.layers.1.mlp.experts.gate_up_proj_bias"));
    for (name, t) in &theirs {
        assert_same(name, &ours[name], t);
    }
}

/// An adapter that PEFT wrote is written again with the same tensors and the settings that select them, and one of ft's own for
/// all linear layers is read back.
#[test]
fn adapters_of_all_experts_are_written_as_pefts() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["both", "down", "ranks"] {
        let folder = fixture(format!("experts/gpt-oss-{name}"));
        let model = models::open(&fixture(BASE), std::slice::from_ref(&folder), device(), Kind::Float).unwrap();
        let spec = AdapterSpec::Lora(file::read(&folder).unwrap().spec.as_lora().unwrap().clone());
        let written = temp.path().join(name);
        let report = export::save_adapter(&model, "0", &spec, &fixture(BASE), &written).unwrap();
        assert!(report.problems.is_empty(), "{name}: {report:?}");
        let peft = report.compatibility.iter().find(|c| c.consumer == "PEFT").unwrap();
        assert!(peft.reads == Some(true), "{name}: {peft}");
        let [before, after] = [&folder, &written].map(|f| Weights::open_file(&f.join(file::TENSORS)).unwrap());
        assert!(before.names().eq(after.names()), "{name}: {:?}", after.names().collect::<Vec<_>>());
        for key in before.names() {
            assert_same(key, &after.get(key).unwrap(), &before.get(key).unwrap());
        }
        let config: Value = ft::fsutil::read_json(&written.join(file::CONFIG)).unwrap();
        let stacks: Vec<String> = serde_json::from_value(config["target_parameters"].clone()).unwrap();
        assert_eq!(stacks.len(), if name == "down" { 2 } else { 4 }, "{name}: {stacks:?}");
        assert!(stacks.contains(&"model.layers.1.mlp.experts.down_proj".to_string()), "{name}: {stacks:?}");
        let modules: Vec<String> = serde_json::from_value(config["target_modules"].clone()).unwrap();
        assert!(modules.iter().all(|m| m.ends_with("q_proj") || m.ends_with("v_proj")), "{name}: {modules:?}");
        assert_eq!(modules.is_empty(), name == "down", "{name}");
    }
}

#[test]
fn an_adapter_of_some_experts_is_no_adapter_of_stacks() {
    let (temp, count) = (tempfile::tempdir().unwrap(), std::cell::Cell::new(0));
    let save = |targets: &[&str]| {
        let targets = Targets::Names(targets.iter().map(|t| t.to_string()).collect());
        let spec = LoraSpec { rank: 2, alpha: 4.0, targets, ..LoraSpec::default() };
        let model = adapted(&fixture(BASE), Kind::Float, &ModulePlan::new(&spec).unwrap());
        fill_adapter(&model, 0.3);
        let out = temp.path().join(format!("adapter-{}", count.get()));
        count.set(count.get() + 1);
        let name = model.active_adapter().unwrap().to_string();
        let report = export::save_adapter(&model, &name, &AdapterSpec::Lora(spec), &fixture(BASE), &out).unwrap();
        assert!(report.problems.is_empty(), "{report:?}");
        let again = models::open(&fixture(BASE), std::slice::from_ref(&out), device(), Kind::Float).unwrap();
        let ids: Vec<u32> = (3..30).collect();
        assert_same("read back", &logits(&again, &[&ids]), &logits(&model, &[&ids]));
        let note = report.compatibility.iter().find(|c| c.consumer == "PEFT").unwrap().to_string();
        (note, file::read(&out).unwrap().tensors.len())
    };
    let (note, count) = save(&["experts.2.down_proj"]);
    assert!(note.contains("of all experts of a layer, not of some"), "{note}");
    assert_eq!(count, 2 * 2);
    let (note, count) = save(&["gate_up_proj", "o_proj"]);
    assert!(note.starts_with("PEFT: yes"), "{note}");
    assert_eq!(count, 2 * 2 * (4 + 1));
}

#[test]
fn stacks_and_sinks_of_other_sizes_are_refused() {
    let refused = |change: &dyn Fn(&mut Value, &mut BTreeMap<String, Tensor>)| {
        let folder = copied(&fixture(BASE));
        let file = folder.path().join("config.json");
        let (mut config, mut tensors) = (ft::fsutil::read_json::<Value>(&file).unwrap(), files_of(folder.path()));
        change(&mut config, &mut tensors);
        ft::fsutil::write_json(&file, &config).unwrap();
        save_tensors(&folder.path().join("model.safetensors"), &tensors);
        let e = try_load(folder.path(), Storage::Auto, None).err().expect("refused");
        assert!(e.exit_code() == 1 && e.to_string().contains("hint:"), "{e}");
        e.to_string()
    };
    let part = |t: &Tensor, n: i64| t.narrow(0, 0, n).copy();
    let (sinks, stack) = ("model.layers.1.self_attn.sinks", "model.layers.0.mlp.experts.down_proj");
    let e = refused(&|_, tensors| drop(tensors.insert(sinks.into(), part(&tensors[sinks], 3))));
    assert!(e.contains(&format!("`{sinks}` has shape [3], expected [4]")), "{e}");
    let e = refused(&|_, tensors| drop(tensors.remove(sinks)));
    assert!(e.contains(&format!("`{sinks}` is missing")), "{e}");
    let e = refused(&|_, tensors| drop(tensors.insert(stack.into(), part(&tensors[stack], 3))));
    assert!(e.contains(&format!("`{stack}` has shape [3, 9, 20]")) && e.contains("the first of 4"), "{e}");
    let e = refused(&|_, tensors| drop(tensors.remove(stack)));
    assert!(e.contains("model.layers.0.mlp.experts.0.down_proj.weight` is missing"), "{e}");
    let e = refused(&|config, _| config["num_local_experts"] = 5.into());
    assert!(e.contains("the first of 5"), "{e}");
    let e = refused(&|config, _| config["swiglu_limit"] = value!(-7.0));
    assert!(e.contains("`swiglu_limit` must be a number above 0"), "{e}");
}

/// A model in MXFP4 computes what transformers computes with the dequantised weights, whole and token by token, and an adapter
/// trains over it.
#[test]
fn experts_in_mxfp4_are_read_and_stay_quantised() {
    let folder = fixture("stored/mxfp4");
    let expected = tensors("stored/mxfp4/expected.safetensors");
    let model = try_load(&folder, Storage::Auto, None).unwrap();
    let first: [u32; 13] = [3, 17, 25, 8, 9, 40, 51, 2, 62, 31, 5, 5, 18];
    assert_close("logits", &logits(&model, &[&first, &[7]]), &expected["logits"], 1e-5);
    let name = "model.layers.1.mlp.experts.2.gate_up_proj.weight";
    let p = model.params().base().find(|p| p.name == name).unwrap();
    let QuantisedParam::Done(weight) = &p.quantised else { panic!("{name} is not quantised") };
    assert_same(name, &weight.dense(Kind::Float), &expected["gate_up_proj"]);
    // Two layers of three experts: 128 x 32 and 32 x 64 numbers of 4 bits, and a byte for each 32.
    let numbers = 2 * 3 * (128 * 32 + 32 * 64);
    assert_eq!(model.quantised_summary(), (numbers, numbers / 2 + numbers / 32));
    assert!(model.describe_quantisation().unwrap().contains("MXFP4"));
    let outline = try_load(&folder, Storage::Outline, None).unwrap();
    assert_eq!(outline.quantised_summary(), model.quantised_summary());

    let settings = GenerationSettings { log_probs: true, ..GenerationSettings::greedy(12, &[]) };
    let answer = complete(&model, &[first.to_vec()], &settings, &mut |_, _| ()).unwrap().remove(0);
    let all = [&first[..], &answer.tokens].concat();
    let whole = logits(&model, &[&all]).log_softmax(-1, Kind::Float);
    for (i, (token, found)) in answer.tokens.iter().zip(&answer.log_probs).enumerate() {
        let at = [(first.len() + i - 1) as i64, i64::from(*token)];
        let gap = (whole.double_value(&at) - f64::from(*found)).abs();
        assert!(gap < 2e-5, "token {i}: {gap}");
    }

    let plan = ModulePlan::new(&LoraSpec { rank: 2, alpha: 4.0, ..LoraSpec::default() }).unwrap();
    let trained = try_load(&folder, Storage::Auto, Some(&plan)).unwrap();
    fill_adapter(&trained, 0.2);
    let row = Row::pack(&[Sequence::random(20, 64, 1), Sequence::random(7, 64, 2)]);
    trained.learn(&row, row.items, models::LayerReplay::None).unwrap();
    let gradients = take_gradients(&trained);
    let of_expert = "model.layers.0.mlp.experts.1.gate_up_proj.lora_A.weight";
    assert!(gradients[of_expert].norm().double_value(&[]) > 0.0);
}

#[test]
fn damaged_mxfp4_is_refused_by_name() {
    let stack = "model.layers.1.mlp.experts.down_proj";
    let (blocks, scales) = (format!("{stack}_blocks"), format!("{stack}_scales"));
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let folder = copied(&fixture("stored/mxfp4"));
        let mut tensors = files_of(folder.path());
        change(&mut tensors);
        save_tensors(&folder.path().join("model.safetensors"), &tensors);
        let e = try_load(folder.path(), Storage::Auto, None).err().expect("refused");
        assert!(e.exit_code() == 1 && e.to_string().contains("hint:"), "{e}");
        e.to_string()
    };
    let e = refused(&|tensors| drop(tensors.insert(scales.clone(), tensors[&scales].narrow(2, 0, 1).copy())));
    assert!(e.contains(&format!("`{scales}` has shape [3, 32, 1], expected [3, 32, 2]")), "{e}");
    let e = refused(&|tensors| drop(tensors.insert(blocks.clone(), tensors[&blocks].narrow(3, 0, 8).copy())));
    assert!(e.contains(&format!("`{blocks}` has shape [3, 32, 2, 8], expected [3, 32, 2, 16]")), "{e}");
    let e = refused(&|tensors| drop(tensors.remove(&scales)));
    assert!(e.contains(&format!("`{scales}` is missing")), "{e}");
    let e = refused(&|tensors| drop(tensors.remove(&blocks)));
    assert!(e.contains(&format!("`{scales}` is a part of a quantised weight")), "{e}");
    let e = refused(&|tensors| drop(tensors.insert(scales.clone(), tensors[&scales].to_kind(Kind::Float))));
    assert!(e.contains(&format!("`{scales}` has dtype Float")), "{e}");
    let e = refused(&|tensors| {
        let _ = tensors[&scales].get(1).get(5).narrow(0, 1, 1).fill_(255);
    });
    assert!(e.contains("experts.1.down_proj.weight") && e.contains("group 1 in row 5"), "{e}");
    let e = refused(&|tensors| {
        for name in [&blocks, &scales] {
            let part = tensors[name].narrow(0, 0, 2).copy();
            tensors.insert(name.clone(), part);
        }
    });
    assert!(e.contains("experts.2.down_proj.weight` is missing"), "{e}");
}
