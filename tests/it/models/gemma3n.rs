//! What is particular to Gemma 3n: bounds of coefficients in training, caches of shared keys and values, settings that cannot be.
//! Logits, gradients, training steps and adapters are tested with those of the other families.

use super::parity;
use crate::support::*;
use ft::adapters::targets::shortest_target_names;
use ft::adapters::{AdapterSpec, PrefixTuningSpec, PromptTuningSpec};
use ft::convert::student::{KeptLayers, StudentCut, cut_student};
use ft::models::vocabulary::{RowStart, VocabularyRows};
use ft::models::{Config, Heads, LayerReplay, LoadOptions, Model, Storage};
use ft::nn::{AdapterPlan, LayerKind, Tokens};
use serde_json::{Value, json as value};
use std::collections::BTreeSet;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const SHARED: &str = "gemma3n/shared";

fn try_load(folder: &Path, plan: Option<&dyn AdapterPlan>, rows: Option<&VocabularyRows>) -> ft::error::Result<Model> {
    let adapters = plan.iter().map(|plan| ("a".to_string(), *plan)).collect();
    let (device, kind, storage, heads) = (device(), Kind::Float, Storage::Auto, Heads::Tokens);
    Model::load(folder, LoadOptions { device, kind, storage, train_base: None, adapters, vocabulary: rows, heads })
}

/// Returns a folder with the weights of a fixture and a config with these changes.
fn changed(changes: Value) -> tempfile::TempDir {
    let folder = with_weights(SHARED, SHARED);
    let file = folder.path().join("config.json");
    let mut config: Value = ft::fsutil::read_json(&file).unwrap();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    ft::fsutil::write_json(&file, &config).unwrap();
    folder
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    let sliding = value!(["full_attention", "full_attention", "full_attention", "full_attention", "sliding_attention"]);
    for (changes, parts) in [
        (value!({"activation_sparsity_pattern": [0.5, 0.0]}), ["each of the 5 layers", "[0.5,0.0]"]),
        (value!({"activation_sparsity_pattern": [0.5, 0.0, 1.0, 0.0, 0.0]}), ["from 0 to below 1", "1.0"]),
        (value!({"activation_sparsity_pattern": 0.5}), ["`activation_sparsity_pattern`", "found 0.5"]),
        (value!({"num_kv_shared_layers": 5}), ["`num_kv_shared_layers`", "fewer than all 5"]),
        (value!({"num_kv_shared_layers": -1}), ["`num_kv_shared_layers`", "found -1"]),
        (value!({ "layer_types": sliding }), ["layer 4", "same kind of attention"]),
        (value!({"intermediate_size": [36, 20]}), ["`intermediate_size`", "each of the 5 layers"]),
        (value!({"intermediate_size": [36, 20, 28, 36, 0]}), ["`intermediate_size`", "[36,20,28,36,0]"]),
        (value!({"altup_active_idx": 3}), ["`altup_active_idx`", "from 0 to 2"]),
        (value!({"altup_num_inputs": 0}), ["`altup_num_inputs`", "found 0"]),
        (value!({"altup_coef_clip": 0}), ["`altup_coef_clip`", "or null"]),
        (value!({"laurel_rank": null}), ["`laurel_rank`", "found null"]),
        (value!({"head_dim": 9}), ["a head size of 9", "even"]),
        (value!({"vocab_size_per_layer_input": 60}), ["embed_tokens_per_layer.weight` has shape [64, 40]", "[60, 40]"]),
    ] {
        let e = try_load(changed(changes).path(), None, None).err().expect("refused");
        let text = e.to_string();
        assert!(e.exit_code() == 1 && text.contains("hint:"), "{text}");
        parts.iter().for_each(|part| assert!(text.contains(part), "`{part}` is not in: {text}"));
    }
}

/// Lists are those of this family: elsewhere a list is no size, and shared layers mean nothing.
#[test]
fn its_keys_mean_nothing_elsewhere() {
    let file = fixture("dense/gemma3").join("config.json");
    let mut config: Value = ft::fsutil::read_json(&file).unwrap();
    config["num_kv_shared_layers"] = 2.into();
    config["altup_num_inputs"] = 4.into();
    let read = Config::parse(&file, &config.to_string()).unwrap();
    assert_eq!((read.key_value_layers, read.hidden_size), (vec![0, 1, 2], 24));
    config["intermediate_size"] = value!([36, 36, 36]);
    let e = Config::parse(&file, &config.to_string()).unwrap_err().to_string();
    assert!(e.contains("`intermediate_size` must be a positive integer"), "{e}");
}

#[test]
fn a_token_without_a_row_in_the_second_table_is_refused() {
    let folder = with_changed_weights(SHARED, |all| {
        let name = "model.embed_tokens_per_layer.weight";
        let rows = all[name].narrow(0, 0, 60).copy();
        all.insert(name.into(), rows);
    });
    let config = changed(value!({"vocab_size_per_layer_input": 60}));
    std::fs::copy(config.path().join("config.json"), folder.path().join("config.json")).unwrap();
    let model = try_load(folder.path(), None, None).unwrap();
    let run = |ids: &[u32]| model.infer(&Tokens::pack(&[ids], device()), |out| out.all_logits());
    let e = run(&[3, 60]).unwrap_err().to_string();
    assert!(e.contains("token id 60") && e.contains("vectors for 60 tokens") && e.contains("hint:"), "{e}");
    let whole = frozen(&fixture(SHARED), Kind::Float);
    let expected = whole.infer(&Tokens::pack(&[&[3u32, 59]], device()), |out| out.all_logits()).unwrap();
    assert_same("known tokens", &run(&[3, 59]).unwrap(), &expected);
}

/// The first checkpoints have keys and values of every layer.
#[test]
fn tensors_that_no_layer_reads_may_be_there() {
    let folder = with_changed_weights(SHARED, |all| {
        for part in ["k_proj", "v_proj", "k_norm"] {
            let of_first = all[&format!("model.layers.0.self_attn.{part}.weight")].shallow_clone();
            all.insert(format!("model.layers.3.self_attn.{part}.weight"), of_first);
        }
    });
    let model = try_load(folder.path(), None, None).unwrap();
    assert!(!model.params().base().any(|p| p.name.contains("layers.3.self_attn.k_proj")));
}

#[test]
fn what_its_layers_do_not_allow_is_refused() {
    for spec in
        [AdapterSpec::PrefixTuning(PrefixTuningSpec::default()), AdapterSpec::PromptTuning(PromptTuningSpec::default())]
    {
        let plan = spec.plan().unwrap();
        let e = try_load(&fixture(SHARED), Some(&*plan), None).err().expect("refused").to_string();
        assert!(e.contains("virtual tokens") && e.contains("hint: use lora"), "{e}");
    }
    let rows = VocabularyRows::starting(66, [64, 65].map(|id| RowStart { id, mean_of: Vec::new() }).to_vec());
    let e = try_load(&fixture(SHARED), None, Some(&rows)).err().expect("refused").to_string();
    assert!(e.contains("new tokens") && e.contains("embed_tokens_per_layer"), "{e}");
    let temp = tempfile::tempdir().unwrap();
    let cut = StudentCut { layers: KeptLayers::Even(3), mlp: None, heads: None };
    let e = cut_student(&fixture(SHARED), &cut, &[], &temp.path().join("out"), false, Device::Cpu)
        .err()
        .expect("refused")
        .to_string();
    assert!(e.contains("a student cut from it") && e.contains("gemma3n_text"), "{e}");
}

/// The bound of coefficients holds in training only; gradients reach weights of predictions beyond it, and no others.
#[test]
fn coefficients_are_limited_in_training_as_in_transformers() {
    #[derive(serde::Deserialize)]
    struct Expected {
        altup_coef_clip: f64,
        sequences: Vec<Sequence>,
        loss: f64,
        items: f64,
    }
    let expected: Expected = json("gemma3n/clip.json");
    let folder = changed(value!({"altup_coef_clip": expected.altup_coef_clip}));
    let model = whole(folder.path(), Kind::Float);
    for replay in [LayerReplay::None, LayerReplay::All, LayerReplay::First(4)] {
        let (loss, gradients) = parity::learn(&model, &[&expected.sequences], expected.items, replay);
        assert_number("loss", loss, expected.loss, 1e-5);
        for (name, theirs) in tensors("gemma3n/clip.safetensors") {
            println!("{name}: {:?}", assert_close(&name, &gradients[&name], &theirs, 1e-4));
        }
    }
    let ids = &expected.sequences[0].ids;
    let logits = |model: &Model| model.infer(&Tokens::pack(&[ids], device()), |out| out.all_logits()).unwrap();
    assert_same("evaluation", &logits(&model), &logits(&whole(&fixture(SHARED), Kind::Float)));
}

/// The last layers read keys and values of earlier ones from tables with windows, which drop tokens as they are written.
#[test]
fn a_cache_has_shared_keys_once_and_longer_sequences_than_windows() {
    let model = frozen(&fixture(SHARED), Kind::Float);
    assert_eq!(model.config().key_value_layers, [0, 1, 2, 1, 2]);
    assert_eq!(*model.cache_layout().windows, [Some(8), None, Some(8)]);
    let rows = [Sequence::random(60, 64, 7), Sequence::random(57, 64, 8)];
    let alone = |ids: &[u32]| model.infer(&Tokens::pack(&[ids], device()), |out| out.all_logits()).unwrap();
    let mut cache = model.cache(2);
    let mut got: [Vec<Tensor>; 2] = Default::default();
    let mut at = [0, 0];
    for parts in [[6, 3], [3, 1], [1, 1], [1, 1], [20, 9], [1, 1], [9, 20], [1, 1], [1, 1], [17, 19]] {
        let to = [at[0] + parts[0], at[1] + parts[1]];
        let ids: Vec<&[u32]> = (0..2).map(|i| &rows[i].ids[at[i]..to[i]]).collect();
        let tokens = Tokens::pack_after(&ids, &at.map(|n| n as i64), device());
        let logits = model.extend(&tokens, &mut cache, |out| out.all_logits()).unwrap();
        got[0].push(logits.narrow(0, 0, parts[0] as i64));
        got[1].push(logits.narrow(0, parts[0] as i64, parts[1] as i64));
        at = to;
    }
    assert_eq!(at, [60, 57]);
    for (i, parts) in got.iter().enumerate() {
        let gap = assert_close("decoded", &Tensor::cat(parts, 0), &alone(&rows[i].ids), 1e-5);
        println!("sequence {i}: {gap:?}");
    }
}

/// PEFT matches endings of names: a number alone would also match a layer.
#[test]
fn modules_in_a_list_are_named_with_the_list() {
    let model = frozen(&fixture(SHARED), Kind::Float);
    let linear = |p: &&ft::nn::Param| p.layer == LayerKind::Linear && p.name.ends_with(".weight");
    let names: Vec<String> = model.params().base().filter(linear).map(|p| p.name.replace(".weight", "")).collect();
    let adapted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let found = shortest_target_names(&adapted, adapted.iter().copied());
    for name in ["altup_projections.0", "altup_unembed_projections.1", "q_proj", "linear_left"] {
        assert!(found.iter().any(|n| n == name), "{name}: {found:?}");
    }
    assert!(!found.iter().any(|n| n.parse::<u64>().is_ok()), "{found:?}");
}
