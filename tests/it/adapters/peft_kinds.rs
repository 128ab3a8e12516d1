//! Compares the kinds of adapters beside LoRA with PEFT (tests/fixtures/adapter_kinds.py): logits, files, training steps.

use crate::support::*;
use crate::train::trajectories::{Case, train};
use ft::adapters::file;
use ft::models::{self, LayerReplay, Model};
use ft::nn::{Tokens, Weights};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Returns the names of the fixtures.
fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(fixture("kinds")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 16, "{names:?}");
    names
}

#[derive(serde::Deserialize)]
struct Input {
    model: String,
    input: Vec<u32>,
}

fn logits(model: &Model, ids: &[u32]) -> Tensor {
    let rows = Tensor::arange(ids.len() as i64, (Kind::Int64, device()));
    model.infer(&Tokens::pack(&[ids], device()), |out| out.logits(&rows)).unwrap()
}

#[test]
fn peft_adapters_give_the_same_logits() {
    for name in cases() {
        let folder = fixture(format!("kinds/{name}"));
        let case: Input = json(format!("kinds/{name}/expected.json"));
        let model = models::open(&fixture(case.model), std::slice::from_ref(&folder), device(), Kind::Float).unwrap();
        let expected = tensors(format!("kinds/{name}/expected.safetensors"));
        let gap = assert_close(&name, &logits(&model, &case.input), &expected["logits"], 1e-5);
        let bare = model.with_adapter(None, |m| logits(m, &case.input));
        assert!(Gap::between(&bare, &expected["logits"]).norm > 1e-3, "{name}: the adapter does nothing");
        println!("{name}: {gap:?}");
    }
}

#[test]
fn peft_adapters_are_rewritten_unchanged() {
    let out = tempfile::tempdir().unwrap();
    for name in cases() {
        let (folder, again) = (fixture(format!("kinds/{name}")), out.path().join(&name));
        let read = file::read(&folder).unwrap();
        let tensors = read.tensors.iter().map(|(n, t)| (n.as_str(), t));
        file::write(&again, &read.spec, read.base.as_deref().unwrap(), tensors).unwrap();
        let open = |f: &Path| Weights::open_file(&f.join(file::TENSORS)).unwrap().all();
        let (mut before, after) = (open(&folder), open(&again));
        // PEFT also writes the rows of a head that shares the embedding's weight, which are the embedding's.
        if name == "tokens-tied" {
            let copy = before.remove("base_model.model.lm_head.trainable_tokens_delta").unwrap();
            assert_same(&name, &copy, &before["base_model.model.model.embed_tokens.trainable_tokens_delta"]);
        }
        assert!(before.keys().eq(after.keys()), "{name}: {:?}", after.keys());
        before.iter().for_each(|(key, t)| assert_same(&format!("{name}: {key}"), &after[key], t));
        let config = |f: &Path| ft::fsutil::read_json::<Value>(&f.join(file::CONFIG)).unwrap();
        let (before, after) = (config(&folder), config(&again));
        for (key, value) in after.as_object().unwrap().iter().filter(|(key, _)| *key != "peft_version") {
            let (then, now) = (number_or(&before[key]), number_or(value));
            // PEFT ignores these two of AdaLoRA when it loads a trained adapter.
            let ignored = name.starts_with("adalora") && ["total_step", "rank_pattern"].contains(&key.as_str());
            assert!(then == now || ignored, "{name}: {key} was {then}, is {now}");
        }
    }
}

/// Whole numbers may be written as `1` or `1.0`.
fn number_or(value: &Value) -> Value {
    value.as_f64().map_or(value.clone(), |n| n.into())
}

#[test]
fn training_steps_equal_pefts() {
    for name in cases() {
        let folder = fixture(format!("kinds/{name}"));
        let (case, input): (Case, Input) =
            (json(format!("kinds/{name}/expected.json")), json(format!("kinds/{name}/expected.json")));
        for replay in [LayerReplay::None, LayerReplay::All] {
            let initial = file::read(&folder).unwrap();
            let plan = initial.spec.plan_of_file(&folder.join(file::CONFIG), &initial.tensors).unwrap();
            let model = adapted(&fixture(&input.model), Kind::Float, &*plan);
            file::load_into(model.params().adapter(0), &initial.tensors, &folder).unwrap();
            let mut part = initial.spec.training(&mut model.params().adapter(0), case.steps.len() as u64).unwrap();
            train(&name, &case, &model, &mut part, replay);
            let expected = tensors(format!("kinds/{name}/expected.safetensors"));
            let mut finals: BTreeMap<&str, &Tensor> =
                expected.iter().filter_map(|(n, t)| Some((n.strip_prefix("final.")?, t))).collect();
            let mut worst = Gap::default();
            for p in model.params().trainable() {
                let theirs = finals.remove(p.name.as_str()).unwrap_or_else(|| panic!("{name}: PEFT has no {}", p.name));
                let ours = p.tensor.detach().to_device(Device::Cpu);
                worst.widen(assert_within(&format!("{name}: {}", p.name), &ours, theirs, case.allowed()));
            }
            assert!(finals.is_empty(), "{name}: not trained: {finals:?}");
            println!("{name} {replay:?}: final tensors {worst:?}");
        }
    }
}

#[test]
fn options_that_change_numbers_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file::CONFIG);
    let config = |name: &str, key: &str, value: Value| {
        let mut raw: Value = ft::fsutil::read_json(&fixture(format!("kinds/{name}")).join(file::CONFIG)).unwrap();
        raw[key] = value;
        ft::fsutil::write_json(&path, &raw).unwrap();
        file::read_config(&path)
    };
    for name in cases() {
        let error = config(&name, "some_option_of_next_year", true.into()).err().expect(&name);
        assert!(error.message().contains("some_option_of_next_year") && !error.hints().is_empty(), "{name}: {error}");
    }
    for (name, key, value) in [
        ("oft", "coft", true.into()),
        ("oft", "bias", "all".into()),
        ("oft", "oft_block_size", 0.into()),
        ("oft", "num_cayley_neumann_terms", 1.into()),
        ("oft", "peft_version", "0.17.1".into()),
        ("vera", "bias", "vera_only".into()),
        ("vera", "r", 0.into()),
        ("vera", "vera_dropout", 1.5.into()),
        ("loha", "rank_pattern", serde_json::json!({ "q_proj": 0 })),
        ("lokr", "decompose_factor", 0.into()),
        ("ia3", "task_type", "TOKEN_CLS".into()),
        ("ia3", "task_type", "SEQ_CLS".into()),
        ("ia3", "peft_type", "POLY".into()),
    ] {
        let error = config(name, key, value).err().unwrap_or_else(|| panic!("{name}: {key} was accepted"));
        assert!(error.message().contains(key) && !error.hints().is_empty(), "{name}: {error}");
    }
}
