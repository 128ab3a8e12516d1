//! Tests weights and configs that are damaged or contradict each other: each gives one clear error that names the file,
//! the tensor or the key.

use crate::support::*;
use ft::error::Error;
use ft::models::{Heads, LayerReplay, LoadOptions, Model, Storage, TrainedPart};
use ft::nn::weights;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const Q: &str = "model.layers.1.self_attn.q_proj.weight";

type Tensors = BTreeMap<String, Tensor>;

fn try_load(folder: &Path) -> Result<Model, Error> {
    let model = Model::load(
        folder,
        LoadOptions {
            device: Device::Cpu,
            kind: Kind::Float,
            storage: Storage::Auto,
            train_base: Some(&TrainedPart::All),
            adapters: Vec::new(),
            vocabulary: None,
            heads: Heads::Tokens,
        },
    );
    if let Err(e) = &model {
        assert_eq!(e.exit_code(), 1, "the input's fault, not ours: {e}");
    }
    model
}

/// Loads the folder, expects an error that contains all of `parts`, and returns its text.
#[track_caller]
fn refused(folder: &Path, parts: &[&str]) -> String {
    let text = try_load(folder).err().expect("refused").to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert!(text.len() < 4000, "one readable error: {text}");
    text
}

/// Copies a model directory and applies `change` to its config.
fn configured(change: impl FnOnce(&mut Map<String, Value>)) -> tempfile::TempDir {
    let folder = with_weights("biased-llama", "biased-llama");
    let file = folder.path().join("config.json");
    let mut config: Map<String, Value> = ft::fsutil::read_json(&file).unwrap();
    change(&mut config);
    ft::fsutil::write_json(&file, &config).unwrap();
    folder
}

#[test]
fn one_error_names_all_missing_extra_and_misshapen_tensors() {
    assert!(try_load(with_changed_weights("biased-llama", |_| ()).path()).is_ok());
    let folder = with_changed_weights("biased-llama", |t| {
        t.remove(Q);
        t.insert("model.norm.weight".into(), Tensor::zeros([25], (Kind::Float, Device::Cpu)));
        t.insert("lm_head.weight".into(), Tensor::zeros([64, 24], (Kind::Int8, Device::Cpu)));
    });
    let missing = format!("`{Q}` is missing, expected shape [24, 24]");
    let misshapen = "`model.norm.weight` has shape [25], expected [24]";
    refused(folder.path(), &[&missing, misshapen, "`lm_head.weight` has dtype Int8", "hint:"]);

    let folder = with_changed_weights("biased-llama", |t| {
        t.insert("model.layers.3.self_attn.q_proj.weight".into(), Tensor::zeros([2], (Kind::Float, Device::Cpu)));
    });
    refused(folder.path(), &["1 tensors", "`model.layers.3.self_attn.q_proj.weight`", "hint:"]);

    // A wrong config gives many missing tensors: only the first few are listed.
    let folder = with_changed_weights("biased-llama", |t| t.retain(|n, _| !n.contains("layers")));
    refused(folder.path(), &["more"]);
}

#[test]
fn old_buffers_and_the_copy_of_a_tied_head_are_ignored() {
    let folder = with_changed_weights("biased-llama", |t| {
        t.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), Tensor::zeros([4], (Kind::Float, Device::Cpu)));
    });
    assert!(try_load(folder.path()).is_ok());
    let folder = with_weights("tiny-llama", "tiny-llama");
    let mut all = tensors("tiny-llama/model.safetensors");
    all.insert("lm_head.weight".into(), all["model.embed_tokens.weight"].shallow_clone());
    save_tensors(&folder.path().join("model.safetensors"), &all);
    assert!(try_load(folder.path()).is_ok());
}

#[test]
fn incomplete_or_invalid_safetensors_files_are_refused() {
    let folder = with_weights("biased-llama", "biased-llama");
    let file = folder.path().join("model.safetensors");
    let good = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(good[..8].try_into().unwrap());
    let with_header = |length: u64, rest: &[u8]| [&length.to_le_bytes()[..], rest].concat();
    let renamed = |from: &str, to: &str| {
        let text = std::str::from_utf8(&good[8..8 + header as usize]).unwrap().replacen(from, to, 1);
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &good[8 + header as usize..]].concat()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("shorter than its length field", good[..5].to_vec()),
        ("cut inside the header", good[..100].to_vec()),
        ("cut inside the last tensor", good[..good.len() - 1].to_vec()),
        ("cut after the header", good[..8 + header as usize].to_vec()),
        ("bytes behind the last tensor", [&good[..], &[0u8; 16]].concat()),
        ("a header longer than the file", with_header(good.len() as u64 * 2, &good[8..])),
        ("a header beyond any size", with_header(u64::MAX, &good[8..])),
        ("a header one byte short", with_header(header - 1, &good[8..])),
        ("no JSON", with_header(16, &[b'x'; 64])),
        ("an unknown dtype", renamed("\"F32\"", "\"F33\"")),
        ("a shape larger than its bytes", renamed("[64,24]", "[64,25]")),
        ("a shape beyond any number", renamed("[64,24]", "[18446744073709551615,18446744073709551615]")),
        ("offsets beyond the file", renamed("\"data_offsets\":[0,", "\"data_offsets\":[9999999,")),
        ("a web page", b"<!DOCTYPE html><html><body>404 not found</body></html>".to_vec()),
    ];
    for (what, bytes) in cases {
        std::fs::write(&file, bytes).unwrap();
        println!(
            "{what}: {}",
            refused(folder.path(), &[file.to_str().unwrap(), "not a whole safetensors file", "hint:"])
        );
    }
    std::fs::write(&file, &good).unwrap();
    assert!(try_load(folder.path()).is_ok());
}

#[test]
fn an_unsupported_dtype_is_named() {
    let folder = with_weights("biased-llama", "biased-llama");
    let file = folder.path().join("model.safetensors");
    let header = r#"{"model.norm.weight":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#;
    std::fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()).unwrap();
    refused(folder.path(), &["model.safetensors", "`model.norm.weight`", "F8_E4M3"]);
}

/// Writes biased-llama as two shards with an index.
fn sharded() -> tempfile::TempDir {
    let folder = with_weights("biased-llama", "biased-llama");
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let (first, second): (Tensors, Tensors) =
        tensors("biased-llama/model.safetensors").into_iter().partition(|(n, _)| n.contains("mlp"));
    let mut map = Map::new();
    for (file, part) in [("one.safetensors", &first), ("two.safetensors", &second)] {
        save_tensors(&folder.path().join(file), part);
        map.extend(part.keys().map(|n| (n.clone(), json!(file))));
    }
    index(folder.path(), map.into());
    folder
}

fn index(folder: &Path, map: Value) {
    ft::fsutil::write_json(&folder.join("model.safetensors.index.json"), &json!({ "weight_map": map })).unwrap();
}

fn index_of(folder: &Path) -> Map<String, Value> {
    let raw: Value = ft::fsutil::read_json(&folder.join("model.safetensors.index.json")).unwrap();
    raw["weight_map"].as_object().unwrap().clone()
}

#[test]
fn incomplete_shards_are_refused_by_name() {
    let folder = sharded();
    assert!(try_load(folder.path()).is_ok());

    std::fs::rename(folder.path().join("two.safetensors"), folder.path().join("elsewhere")).unwrap();
    refused(folder.path(), &["model.safetensors.index.json", "two.safetensors", "hint: the download is incomplete"]);
    std::fs::rename(folder.path().join("elsewhere"), folder.path().join("two.safetensors")).unwrap();

    let good = index_of(folder.path());
    let with = |name: &str, file: &str| {
        let mut map = good.clone();
        map.insert(name.into(), json!(file));
        index(folder.path(), map.into());
    };
    with("model.ghost.weight", "one.safetensors");
    refused(folder.path(), &["model.safetensors.index.json", "`model.ghost.weight` is not in one.safetensors"]);
    for outside in ["../one.safetensors", "/one.safetensors", "..", "deep/one.safetensors", ""] {
        with(Q, outside);
        refused(folder.path(), &["model.safetensors.index.json", &format!("`{outside}` leaves the folder")]);
    }
    index(folder.path(), json!({ "a": 3 }));
    refused(folder.path(), &["model.safetensors.index.json:"]);
    index(folder.path(), json!({}));
    refused(folder.path(), &["is missing", "more"]);

    // A duplicate tensor is refused: nothing says which of the two is right.
    index(folder.path(), good.into());
    let mut two = tensors_at(&folder.path().join("two.safetensors"));
    two.insert("model.layers.0.mlp.up_proj.weight".into(), Tensor::zeros([36, 24], (Kind::Float, Device::Cpu)));
    save_tensors(&folder.path().join("two.safetensors"), &two);
    refused(folder.path(), &["two.safetensors", "`model.layers.0.mlp.up_proj.weight` is in two shards"]);
}

fn tensors_at(path: &Path) -> Tensors {
    weights::Weights::open_file(path).unwrap().all().into_iter().map(|(n, t)| (n, t.copy())).collect()
}

#[test]
fn a_pickle_is_never_opened() {
    let folder = with_weights("biased-llama", "biased-llama");
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    refused(folder.path(), &[folder.path().to_str().unwrap(), "no model.safetensors", "hint:"]);
    std::fs::write(folder.path().join("pytorch_model.bin"), b"\x80\x02}q\x00.").unwrap();
    refused(folder.path(), &["pytorch_model.bin is a pickle", "convert it to safetensors"]);
}

#[test]
fn unsupported_configs_are_refused_by_key() {
    let set = |key: &str, value: Value| {
        let key = key.to_string();
        configured(move |c| {
            c.insert(key, value);
        })
    };
    refused(set("model_type", json!("gpt_bigcode")).path(), &["config.json", "`gpt_bigcode`", "supported: llama"]);
    for key in
        ["model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
    {
        let folder = configured(|c| {
            c.remove(key).unwrap();
        });
        refused(folder.path(), &["config.json", &format!("`{key}`"), "missing", "hint:"]);
    }
    refused(set("hidden_size", json!("24")).path(), &["`hidden_size` must be a positive integer", "found \"24\""]);
    refused(set("num_hidden_layers", json!(-1)).path(), &["`num_hidden_layers`", "found -1"]);
    refused(set("num_key_value_heads", json!(2)).path(), &["`num_attention_heads` 3", "`num_key_value_heads` 2"]);
    refused(set("head_dim", json!(7)).path(), &["head size of 7", "even"]);
    refused(set("hidden_act", json!("relu")).path(), &["hidden_act `relu`", "supported: silu"]);
    refused(
        set("rope_scaling", json!({"rope_type": "ntk", "factor": 2.0})).path(),
        &["config.json", "`ntk`", "supported:"],
    );
    let long = |short: Value| json!({"rope_type": "longrope", "factor": 2.0, "long_factor": [1.0, 1.0, 1.0, 1.0], "short_factor": short});
    for short in [json!([1.0, 1.0, 1.0]), json!([1.0, 0.0, 1.0, 1.0]), json!([1.0, "NaN", 1.0, 1.0]), json!(null)] {
        refused(set("rope_scaling", long(short)).path(), &["`short_factor` must be a list of 4 numbers above 0"]);
    }
    refused(set("rope_scaling", json!({"rope_type": "linear"})).path(), &["`factor` must be a number"]);
    refused(set("partial_rotary_factor", json!(0.4)).path(), &["`partial_rotary_factor` is 0.4", "even"]);
    refused(set("partial_rotary_factor", json!(1.5)).path(), &["`partial_rotary_factor` is 1.5"]);
    // Sizes that contradict the weights, up to some that would not fit into any memory.
    refused(set("intermediate_size", json!(40)).path(), &["up_proj.weight` has shape [36, 24], expected [40, 24]"]);
    refused(set("hidden_size", json!(16_000_002)).path(), &["the weights do not fit config.json"]);
    refused(set("hidden_size", json!(3_000_000_000_000i64)).path(), &["`hidden_size`", "at most 16777216"]);
    refused(set("num_hidden_layers", json!(1_000_000)).path(), &["`num_hidden_layers`", "at most 10000"]);
    refused(set("num_hidden_layers", json!(2)).path(), &["layers.2.", "does not have"]);

    let folder = with_weights("biased-llama", "biased-llama");
    std::fs::write(folder.path().join("config.json"), "{\"model_type\": \"llama\",\n").unwrap();
    refused(folder.path(), &["config.json:2:"]);
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    refused(folder.path(), &["config.json", "No such file"]);
    refused(Path::new("/no/such/model"), &["/no/such/model/config.json"]);
}

/// Settings of attention that make no sense, or that ft does not compute.
#[test]
fn damaged_settings_of_windows_and_rotary_tables_are_refused() {
    let set = |key: &'static str, value: Value| {
        let folder = with_weights("dense/gemma3", "dense/gemma3");
        let file = folder.path().join("config.json");
        let mut config: serde_json::Map<String, Value> = ft::fsutil::read_json(&file).unwrap();
        config.insert(key.into(), value);
        ft::fsutil::write_json(&file, &config).unwrap();
        folder
    };
    refused(set("sliding_window", json!(0)).path(), &["`sliding_window` must be a whole number from 1 on", "found 0"]);
    refused(set("sliding_window", json!(null)).path(), &["`sliding_window` must be a number of tokens", "layer 0"]);
    let kinds = json!(["sliding_attention", "chunked_attention", "full_attention"]);
    refused(
        set("layer_types", kinds).path(),
        &["\"chunked_attention\" in layer 1", "supported: full_attention", "nearest", "`gemma3_text`"],
    );
    refused(set("layer_types", json!(["full_attention"])).path(), &["`layer_types`", "each of the 3 layers"]);
    refused(set("attn_logit_softcapping", json!(-1.0)).path(), &["`attn_logit_softcapping` must be a number above 0"]);
    let ropes = json!({"full_attention": {"rope_theta": -5.0}, "sliding_attention": {"rope_theta": 50.0}});
    refused(set("rope_parameters", ropes).path(), &["`rope_parameters.full_attention.rope_theta`", "found -5.0"]);
    refused(set("use_bidirectional_attention", json!(true)).path(), &["`use_bidirectional_attention`"]);
    refused(set("model_type", json!("gemma4_text")).path(), &["`gemma4_text`", "nearest is `gemma"]);
    // Python writes NaN, which is no JSON.
    let folder = set("query_pre_attn_scalar", json!(20));
    let file = folder.path().join("config.json");
    let text = std::fs::read_to_string(&file).unwrap().replace("5000.0", "NaN");
    std::fs::write(&file, text).unwrap();
    refused(folder.path(), &["config.json:"]);
}

/// A model without some of its experts, or with numbers of them that make no sense.
#[test]
fn missing_experts_are_refused_by_name() {
    let with = |key: &str, value: Value| {
        let folder = with_weights("tiny-mixtral", "tiny-mixtral");
        let file = folder.path().join("config.json");
        let mut config: Map<String, Value> = ft::fsutil::read_json(&file).unwrap();
        config.insert(key.into(), value);
        ft::fsutil::write_json(&file, &config).unwrap();
        folder
    };
    refused(with("num_local_experts", json!(6)).path(), &["experts.4.w1.weight` is missing", "expected [6, 24]"]);
    refused(with("num_local_experts", json!(3)).path(), &["gate.weight` has shape [4, 24], expected [3, 24]"]);
    refused(with("num_experts_per_tok", json!(5)).path(), &["`num_experts_per_tok` is 5", "has 4 experts"]);
    refused(with("num_experts_per_tok", json!(0)).path(), &["`num_experts_per_tok`", "found 0"]);
    refused(
        with("num_local_experts", json!(null)).path(),
        &["`num_local_experts` must be a number of experts", "found null"],
    );
}

/// Keys of other families change nothing where transformers does not read them.
#[test]
fn keys_of_other_families_change_nothing() {
    let dense = json!({"num_key_value_heads": 3, "head_dim": 5, "sliding_window": 4, "rope_scaling": {"type": "linear", "factor": 2.0}, "layer_types": ["x"]});
    let shared = json!({"shared_expert_intermediate_size": 24});
    let routed = json!({"shared_expert_intermediate_size": 24, "decoder_sparse_step": 2, "mlp_only_layers": [0]});
    for (name, stray) in [
        ("tiny-gpt2", &dense),
        ("dense/bloom", &dense),
        ("dense/mpt", &dense),
        ("tiny-qwen3-moe", &shared),
        ("tiny-mixtral", &routed),
        ("tiny-olmoe", &routed),
        ("tiny-gpt-oss", &routed),
    ] {
        let folder = with_weights(name, name);
        let logits = || {
            let model = try_load(folder.path()).unwrap();
            let tokens = ft::nn::Tokens::pack(&[(3..20).collect::<Vec<u32>>()], Device::Cpu);
            let rows = Tensor::arange(17, (Kind::Int64, Device::Cpu));
            model.infer(&tokens, |out| out.logits(&rows)).unwrap()
        };
        let expected = logits();
        let file = folder.path().join("config.json");
        let mut config: Map<String, Value> = ft::fsutil::read_json(&file).unwrap();
        config.extend(stray.as_object().unwrap().clone());
        ft::fsutil::write_json(&file, &config).unwrap();
        assert!(logits().equal(&expected), "{name}");
    }
}

#[test]
fn biases_by_distance_that_cannot_be_are_refused() {
    let changed = |changes: Value| {
        let folder = with_weights("own/relative", "own/relative");
        let file = folder.path().join("config.json");
        let mut config: Map<String, Value> = ft::fsutil::read_json(&file).unwrap();
        config.extend(changes.as_object().unwrap().clone());
        ft::fsutil::write_json(&file, &config).unwrap();
        folder
    };
    assert!(try_load(changed(json!({})).path()).is_ok());
    let count = "`relative_attention_num_buckets`";
    refused(changed(json!({"relative_attention_num_buckets": 1})).path(), &[count, "from 2", "found 1"]);
    refused(changed(json!({"relative_attention_num_buckets": "8"})).path(), &[count, "found \"8\""]);
    let longest = "`relative_attention_max_distance`";
    refused(changed(json!({"relative_attention_max_distance": 4})).path(), &[longest, "from 5", "half the number"]);
    refused(
        changed(json!({"relative_attention_num_buckets": 16})).path(),
        &["`model.relative_attention_bias.weight` has shape [8, 4], expected [16, 4]"],
    );
    refused(changed(json!({"positions": "bucketed"})).path(), &["\"bucketed\"", "relative"]);
}

/// The config of a model of text and images names its language model.
#[test]
fn a_model_of_text_and_images_is_refused_with_its_language_model() {
    let folder = with_weights("dense/gemma3", "dense/gemma3");
    let file = folder.path().join("config.json");
    let text: Value = ft::fsutil::read_json(&file).unwrap();
    ft::fsutil::write_json(&file, &json!({"model_type": "gemma3", "text_config": text})).unwrap();
    refused(folder.path(), &["`gemma3` is not supported", "`gemma3_text`, which is supported"]);
    let text = json!({"model_type": "gemma3n_text"});
    ft::fsutil::write_json(&file, &json!({"model_type": "gemma3n", "text_config": text})).unwrap();
    refused(folder.path(), &["`gemma3n` is not supported", "`gemma3n_text`, which is supported"]);
}

#[test]
fn nan_weights_load_and_give_a_nan_loss() {
    let folder = with_changed_weights("biased-llama", |t| {
        let w = t[Q].copy();
        let _ = w.get(3).fill_(f64::NAN);
        t.insert(Q.into(), w);
    });
    let model = try_load(folder.path()).unwrap();
    let row = Row::pack(&[Sequence::random(20, 64, 1)]);
    for replay in [LayerReplay::None, LayerReplay::All] {
        let loss = model.learn(&row, row.items, replay).unwrap().means()["loss"];
        assert!(loss.is_nan(), "the loss hides the NaN: {loss}");
        let mut optimiser = ft::train::optim::Optimiser::new(model.params(), &Default::default(), 0).unwrap();
        let norm = optimiser.clip(1.0).unwrap().double_value(&[]);
        assert!(norm.is_nan(), "the gradient norm hides the NaN: {norm}");
    }
}
