//! Compares adapters with PEFT: reading and rewriting PEFT's files, selection of target modules, merged weights. Also
//! tests that every export is verified before it is published.

use crate::support::command::ft_binary;
use crate::support::root;
use ft::adapters::lora::LoraModules;
use ft::adapters::merging::combine::combine;
use ft::adapters::merging::{MergedWeights, WeightedAdapter};
use ft::adapters::{AdapterSpec, LoraSpec, ModulePlan, Targets, file};
use ft::convert::verify::kind::ExportKind;
use ft::convert::verify::report::{ExportVerdict, REPORT};
use ft::convert::verify::verify;
use ft::convert::{export, merge};
use ft::models::{self, Config, Heads, LoadOptions, Model, Storage, TrainedPart};
use ft::nn::{AdapterPlan, Param, Tokens, Weights};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Device, Kind, Tensor};

fn fixtures() -> PathBuf {
    root().join("tests/fixtures")
}

fn fixture_json(name: &str) -> Value {
    ft::fsutil::read_json(&fixtures().join(name)).unwrap()
}

fn base() -> PathBuf {
    fixtures().join("biased-llama")
}

fn adapter(name: &str) -> PathBuf {
    fixtures().join("adapters").join(name)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn logits(model: &Model, ids: &[u32]) -> Tensor {
    let rows = Tensor::arange(ids.len() as i64, (Kind::Int64, Device::Cpu));
    model.infer(&Tokens::pack(&[ids], Device::Cpu), |out| out.logits(&rows)).unwrap()
}

/// Returns the largest absolute difference divided by the largest expected absolute value.
fn distance(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    (found - expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[])
}

fn bare(folder: &Path, kind: Kind) -> Model {
    Model::load(
        folder,
        LoadOptions {
            device: Device::Cpu,
            kind,
            storage: Storage::Auto,
            train_base: None,
            adapters: Vec::new(),
            vocabulary: None,
            heads: Heads::Tokens,
        },
    )
    .unwrap()
}

fn with_adapter(name: &str) -> Model {
    models::open(&base(), &[adapter(name)], Device::Cpu, Kind::Float).unwrap()
}

/// Returns `{module: [rank, alpha, scale]}` for every low-rank module of adapter 0.
fn modules(model: &Model, spec: &LoraSpec) -> BTreeMap<String, [f64; 3]> {
    let rules = LoraModules::new(spec).unwrap();
    let first = |p: &Param| {
        let module = p.name.strip_suffix(".lora_A.weight").or(p.name.strip_suffix(".lora_embedding_A"))?;
        Some((module.to_string(), p.tensor.shallow_clone()))
    };
    let low = model.params().adapter(0).filter_map(first);
    low.map(|(module, a)| {
        let rank = rules.rank(&module);
        assert_eq!(a.size()[0], rank);
        let numbers = [rank as f64, rules.alpha(&module), rules.scale(&module)];
        (module, numbers)
    })
    .collect()
}

fn expected_modules(value: &Value) -> BTreeMap<String, [f64; 3]> {
    let row = |v: &Value| [0, 1, 2].map(|i| v[i].as_f64().unwrap());
    value.as_object().unwrap().iter().map(|(name, v)| (name.clone(), row(v))).collect()
}

#[test]
fn peft_adapters_give_the_same_logits_or_are_refused() {
    let expected = fixture_json("adapters/expected.json");
    let numbers = Weights::open_file(&fixtures().join("adapters/expected.safetensors")).unwrap();
    let input = ids(&expected["input"]);
    let (mut read, mut refused) = (0, Vec::new());
    for (name, about) in expected["adapters"].as_object().unwrap() {
        match models::open(&base(), &[adapter(name)], Device::Cpu, Kind::Float) {
            Ok(model) => {
                let wanted = numbers.get(&format!("logits.{name}")).unwrap();
                let far = distance(&logits(&model, &input), &wanted);
                assert!(far < 1e-4, "{name}: logits differ by {far}");
                let bare =
                    distance(&model.with_adapter(None, |m| logits(m, &input)), &numbers.get("logits.base").unwrap());
                assert!(bare < 1e-4, "{name}: without the adapter, logits differ by {bare}");
                let spec = file::read(&adapter(name)).unwrap().spec;
                assert_eq!(modules(&model, spec.as_lora().unwrap()), expected_modules(&about["modules"]), "{name}");
                assert_eq!(model.params().adapter(0).count() as u64, about["keys"].as_u64().unwrap(), "{name}");
                read += 1;
            }
            Err(e) => {
                assert!(about.get("honour_or_refuse").is_some(), "{name} was refused: {e}");
                assert!(e.message().contains(&format!("adapters/{name}")) && !e.hints().is_empty(), "{name}: {e}");
                assert_eq!(e.exit_code(), 1, "{name}: {e}");
                refused.push(name.as_str());
            }
        }
    }
    assert_eq!(read, 16);
    assert_eq!(refused, ["bias"]);
}

#[test]
fn peft_adapters_are_rewritten_unchanged() {
    let out = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for item in std::fs::read_dir(fixtures().join("adapters")).unwrap() {
        let folder = item.unwrap().path();
        let Some(read) = folder.is_dir().then(|| file::read(&folder)).and_then(Result::ok) else { continue };
        let again = out.path().join(folder.file_name().unwrap());
        file::write(
            &again,
            &read.spec,
            read.base.as_deref().unwrap(),
            read.tensors.iter().map(|(n, t)| (n.as_str(), t)),
        )
        .unwrap();
        let (before, after) = (
            Weights::open_file(&folder.join(file::TENSORS)).unwrap(),
            Weights::open_file(&again.join(file::TENSORS)).unwrap(),
        );
        assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
        for name in before.names() {
            assert_eq!(before.kind(name), after.kind(name), "{name}");
            assert!(before.get(name).unwrap().equal(&after.get(name).unwrap()), "{name}");
        }
        let (before, after): (Value, Value) = (
            ft::fsutil::read_json(&folder.join(file::CONFIG)).unwrap(),
            ft::fsutil::read_json(&again.join(file::CONFIG)).unwrap(),
        );
        for (key, value) in after.as_object().unwrap() {
            assert_eq!(unordered(&before[key]), unordered(value), "{}: {key}", folder.display());
        }
        // Newer PEFT keys are written only if they are set; the 24 older keys are always written.
        let newer = ["exclude_modules", "lora_bias", "trainable_token_indices"];
        let set = newer.iter().filter(|key| !before[**key].is_null() && before[**key] != false).count();
        assert_eq!(after.as_object().unwrap().len(), 24 + set, "{}", folder.display());
        seen += 1;
    }
    assert_eq!(seen, 16);
}

/// Sorts lists and converts numbers to floats: PEFT writes sets as lists in any order, and whole numbers as `1` or
/// `1.0`.
fn unordered(value: &Value) -> Value {
    match value {
        Value::Array(list) => {
            let mut list: Vec<Value> = list.clone();
            list.sort_by_key(Value::to_string);
            json!(list)
        }
        Value::Object(map) => {
            map.iter().map(|(k, v)| (k.clone(), unordered(v))).collect::<serde_json::Map<_, _>>().into()
        }
        Value::Number(n) => json!(n.as_f64()),
        other => other.clone(),
    }
}

#[test]
fn targets_select_the_same_modules_as_peft() {
    let table = fixture_json("targets.json");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join(file::CONFIG);
    let (mut equal, mut refused, mut looser, mut stricter) = (0, 0, 0, 0);
    for row in table["table"].as_array().unwrap() {
        let mut raw = row["settings"].as_object().unwrap().clone();
        let shown = format!("{} {}", row["model"], row["settings"]);
        raw.insert("peft_type".into(), json!("LORA"));
        raw.entry("r").or_insert(table["defaults"]["r"].clone());
        raw.entry("lora_alpha").or_insert(table["defaults"]["alpha"].clone());
        ft::fsutil::write_json(&config, &raw).unwrap();
        let tied = row["model"] == "tiny-llama";
        let (spec, _) = file::read_config(&config).unwrap();
        let loaded = spec.plan_of_file(&config, &BTreeMap::new()).and_then(|plan| {
            let adapters = vec![("0".to_string(), &*plan)];
            let load = LoadOptions {
                device: Device::Cpu,
                kind: Kind::Float,
                storage: Storage::Auto,
                train_base: None,
                adapters,
                vocabulary: None,
                heads: Heads::Tokens,
            };
            Model::load(&fixtures().join(row["model"].as_str().unwrap()), load)
        });
        match loaded {
            // ft allows all-linear together with a list of layers, PEFT does not. The saved adapter then lists full
            // module names, which PEFT can read.
            Ok(_) if raw["target_modules"] == "all-linear" && raw.contains_key("layers_to_transform") => looser += 1,
            Ok(model) => {
                assert!(row.get("error").is_none(), "{shown}: PEFT refuses: {}", row["error"]);
                assert_eq!(modules(&model, spec.as_lora().unwrap()), expected_modules(&row["modules"]), "{shown}");
                let wholes = model
                    .params()
                    .adapter(0)
                    .filter(|p| !p.name.contains(".lora_") && !p.name.contains(".base_layer."))
                    .filter_map(|p| p.name.strip_suffix(".weight"));
                let wholes: BTreeSet<&str> = wholes.collect();
                let saved: Vec<&str> = row["saved"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
                let inside = |w: &str, s: &str| w == s || w.starts_with(&format!("{s}."));
                assert!(saved.iter().all(|s| wholes.iter().any(|w| inside(w, s))), "{shown}: saved {wholes:?}");
                assert!(wholes.iter().all(|w| saved.iter().any(|s| inside(w, s))), "{shown}: saved {wholes:?}");
                equal += 1;
            }
            Err(e) => {
                assert!(!e.hints().is_empty() && e.exit_code() == 1, "{shown}: {e}");
                assert!(e.message().contains(file::CONFIG), "{shown}: {e}");
                if row.get("error").is_some() {
                    refused += 1;
                } else {
                    // ft is stricter here: training one of two tied modules as a whole would untie head and embedding.
                    let settings = row["settings"].to_string();
                    assert!(tied && ["embed_tokens", "lm_head"].iter().any(|m| settings.contains(m)), "{shown}: {e}");
                    stricter += 1;
                }
            }
        }
    }
    assert_eq!((equal, refused, looser, stricter), (54, 10, 1, 3));
}

#[test]
fn unknown_target_modules_and_layers_are_refused() {
    let plan = |targets: &[&str], layers: Option<Vec<i64>>| {
        let names = targets.iter().map(|t| t.to_string()).collect();
        let spec = LoraSpec { targets: Targets::Names(names), layers, ..LoraSpec::default() };
        let plan = ModulePlan::new(&spec).unwrap();
        let load = LoadOptions {
            device: Device::Cpu,
            kind: Kind::Float,
            storage: Storage::Auto,
            train_base: None,
            adapters: vec![("0".into(), &plan as &dyn AdapterPlan)],
            vocabulary: None,
            heads: Heads::Tokens,
        };
        Model::load(&base(), load).map(|m| m.params().adapter(0).count())
    };
    assert_eq!(plan(&["q_proj"], Some(vec![1])).unwrap(), 2);
    let err = plan(&["q_proj", "no_such_proj"], None).err().unwrap();
    assert!(err.message().contains("`no_such_proj`"), "{err}");
    let err = plan(&["q_proj"], Some(vec![7])).err().unwrap();
    assert!(err.to_string().contains("layers count from 0"), "{err}");
}

#[test]
fn options_that_change_numbers_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join(file::CONFIG);
    let refused = [
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("bias", json!("all")),
        ("target_parameters", json!(["mlp.experts.gate_up_proj_blocks"])), // no stack of experts
        ("target_parameters", json!(["attn.c_proj.weight"])),              // stored transposed
        ("target_parameters", json!(["q_proj.bias"])),
        ("trainable_token_indices", json!({"embed_tokens": [1], "score": [1]})),
        ("velora_config", json!({"a": 1})),
        ("some_option_of_next_year", json!(true)),
        ("task_type", json!("SEQ_CLS")), // the file lacks the classification head
        ("task_type", json!("TOKEN_CLS")),
        ("peft_type", json!("POLY")),
    ];
    for (key, value) in refused {
        let mut raw = json!({"peft_type": "LORA", "target_modules": ["q_proj"]});
        raw[key] = value;
        ft::fsutil::write_json(&config, &raw).unwrap();
        let err = file::read_config(&config).err().unwrap_or_else(|| panic!("{key} was accepted"));
        assert!(err.message().contains(file::CONFIG) && err.message().contains(key), "{err}");
    }
    for (key, value) in [
        ("some_option_of_next_year", json!(false)),
        ("init_lora_weights", json!("eva")),
        ("fan_in_fan_out", json!(true)), // PEFT overrides it by what the layer type needs, and so does ft
        ("peft_version", json!("9.0")),
    ] {
        let mut raw = json!({"peft_type": "LORA", "target_modules": ["q_proj"]});
        raw[key] = value;
        ft::fsutil::write_json(&config, &raw).unwrap();
        file::read_config(&config).unwrap_or_else(|e| panic!("{key}: {e}"));
    }
}

#[test]
fn merged_weights_equal_pefts() {
    let expected = fixture_json("merge/expected.json");
    let numbers = Weights::open_file(&fixtures().join("merge/expected.safetensors")).unwrap();
    let weights = Weights::open(&base()).unwrap();
    let mut compared = 0;
    for (name, about) in expected["merged"].as_object().unwrap() {
        let part = WeightedAdapter::read(&adapter(name), 1.0).unwrap();
        let merge = MergedWeights::new(&weights, &[], std::slice::from_ref(&part)).unwrap();
        let changed: BTreeSet<String> = merge.changed().map(String::from).collect();
        let wanted: BTreeSet<String> =
            about["changed"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_string()).collect();
        assert_eq!(changed, wanted, "{name}");
        for key in numbers.names().filter(|n| n.starts_with(&format!("{name}/"))) {
            let tensor = &key[name.len() + 1..];
            let error = (merge.tensor(tensor).unwrap() - numbers.get(key).unwrap()).abs().max().double_value(&[]);
            assert!(error <= 1e-6, "{key}: {error}");
            compared += 1;
        }
    }
    assert!(compared >= 10, "only {compared} tensors compared");
}

#[test]
fn a_weighted_sum_of_adapters_is_one_adapter() {
    let expected = fixture_json("merge/expected.json");
    let numbers = Weights::open_file(&fixtures().join("merge/expected.safetensors")).unwrap();
    let sum = &expected["sum"];
    let parts: Vec<WeightedAdapter> = (0..2)
        .map(|i| {
            WeightedAdapter::read(&adapter(sum["adapters"][i].as_str().unwrap()), sum["weights"][i].as_f64().unwrap())
                .unwrap()
        })
        .collect();
    let combined = combine(&Weights::open(&base()).unwrap(), &parts).unwrap();
    let mut compared = 0;
    for key in numbers.names().filter(|n| n.starts_with("sum/model")) {
        let (a, b) = (
            &combined.tensors[&format!("{}.lora_A.weight", &key[4..])],
            &combined.tensors[&format!("{}.lora_B.weight", &key[4..])],
        );
        let error = (b.matmul(a) - numbers.get(key).unwrap()).abs().max().double_value(&[]);
        assert!(error <= 1e-6, "{key}: {error}");
        compared += 1;
    }
    assert!(compared >= 2, "only {compared} modules compared");
    for (module, about) in expected["sum_modules"].as_object().unwrap() {
        let ranks: i64 = about["rank_of_parts"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).sum();
        assert_eq!(combined.tensors[&format!("{module}.lora_A.weight")].size()[0], ranks, "{module}");
    }

    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("sum");
    let report = merge::adapters::merge_adapters(&base(), &parts, &folder).unwrap();
    assert_eq!((report.verdict, report.difference.max_abs), (ExportVerdict::Passed, 0.0));
    let model = models::open(&base(), &[folder], Device::Cpu, Kind::Float).unwrap();
    let far = distance(&logits(&model, &ids(&expected["input"])), &numbers.get("sum/logits").unwrap());
    assert!(far < 1e-4, "logits differ by {far}");
}

#[test]
fn a_merged_model_gives_the_logits_of_the_adapted_model() {
    let out = tempfile::tempdir().unwrap();
    let input = [1, 17, 40, 3, 22, 59, 5, 9];
    for name in ["patterns", "rslora", "saved-head", "saved-embedding"] {
        let folder = out.path().join(name);
        let report = merge::adapters::merge_into_model(
            &base(),
            &[WeightedAdapter::read(&adapter(name), 1.0).unwrap()],
            &folder,
            None,
            u64::MAX,
        )
        .unwrap();
        assert!(
            report.difference.relative < 1e-5 && report.adapter_effect.unwrap().relative > 1e-2,
            "{name}: {report:?}"
        );
        let far = distance(&logits(&bare(&folder, Kind::Float), &input), &logits(&with_adapter(name), &input));
        assert!(far < 1e-4, "{name}: {far}");
        for copied in ["config.json", "generation_config.json"] {
            assert_eq!(std::fs::read(base().join(copied)).unwrap(), std::fs::read(folder.join(copied)).unwrap());
        }
    }
    // The result is linear in the adapter's weight, also for modules that are trained as a whole.
    let parts = [
        WeightedAdapter::read(&adapter("saved-head"), 0.5).unwrap(),
        WeightedAdapter::read(&adapter("plain"), -1.5).unwrap(),
    ];
    let folder = out.path().join("two");
    merge::adapters::merge_into_model(&base(), &parts, &folder, None, u64::MAX).unwrap();
    let (before, after) = (Weights::open(&base()).unwrap(), Weights::open(&folder).unwrap());
    let head = &parts[0].file.tensors["lm_head.weight"];
    let wanted = (before.get("lm_head.weight").unwrap() + head) / 2.0;
    assert!(distance(&after.get("lm_head.weight").unwrap(), &wanted) < 1e-6);
    assert!(after.get("model.norm.weight").unwrap().equal(&before.get("model.norm.weight").unwrap()));
}

#[test]
fn merged_shards_and_bf16_keep_the_config_keys_of_the_base() {
    let out = tempfile::tempdir().unwrap();
    let parts = [WeightedAdapter::read(&adapter("all-linear"), 1.0).unwrap()];
    let folder = out.path().join("merged");
    let report = merge::adapters::merge_into_model(&base(), &parts, &folder, Some(Kind::BFloat16), 10_000).unwrap();
    assert!(report.files.len() > 2 && report.computed_in == "bfloat16", "{report:?}");
    assert_eq!(report.files.values().map(|f| f.sha256.len()).max(), Some(64));
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let before = std::fs::read_to_string(base().join("config.json")).unwrap();
    assert_eq!(text, before.replace("\"torch_dtype\": \"float32\"", "\"torch_dtype\": \"bfloat16\""));
    let (weights, source) = (Weights::open(&folder).unwrap(), Weights::open(&base()).unwrap());
    let merge = MergedWeights::new(&source, &[], &parts).unwrap();
    for name in weights.names() {
        assert!(weights.get(name).unwrap().equal(&merge.tensor(name).unwrap().to_kind(Kind::BFloat16)), "{name}");
    }
    // A second merge into the same folder removes the shards of the first.
    merge::adapters::merge_into_model(&base(), &parts, &folder, None, u64::MAX).unwrap();
    let files: BTreeSet<String> =
        std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(
        files.iter().map(String::as_str).collect::<Vec<_>>(),
        ["config.json", "export_report.json", "generation_config.json", "model.safetensors"]
    );
}

/// Loads the model in `folder` with a new adapter whose weights are random, as after some training.
fn trained(folder: &Path, spec: &LoraSpec, scale: f64) -> Model {
    let plan = ModulePlan::new(spec).unwrap();
    let load = LoadOptions {
        device: Device::Cpu,
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: None,
        adapters: vec![("policy".into(), &plan as &dyn AdapterPlan)],
        vocabulary: None,
        heads: Heads::Tokens,
    };
    let model = Model::load(folder, load).unwrap();
    let _no_grad = tch::no_grad_guard();
    for p in model.params().adapter(0) {
        let step = Tensor::arange(p.tensor.numel() as i64, (Kind::Float, Device::Cpu)).sin().view_as(&p.tensor) * scale;
        let _ = p.tensor.shallow_clone().g_add_(&step);
    }
    model
}

#[test]
fn a_trained_adapter_is_saved_in_peft_format() {
    let tiny = fixtures().join("tiny-llama");
    let out = tempfile::tempdir().unwrap();
    let spec = LoraSpec { rank: 24, exclude: Some(Targets::Names(vec!["down_proj".into()])), ..LoraSpec::default() };
    let model = trained(&tiny, &spec, 0.05);
    let folder = out.path().join("adapter");
    let report = export::save_adapter(&model, "policy", &AdapterSpec::Lora(spec), &tiny, &folder).unwrap();
    assert_eq!((report.verdict, report.difference.max_abs, report.tensors), (ExportVerdict::Passed, 0.0, 36));
    assert!(report.adapter_effect.unwrap().max_abs > 0.01);
    let notes: Vec<String> = report.compatibility.iter().map(|c| c.to_string()).collect();
    assert_eq!(
        notes,
        [
            "PEFT: yes",
            "vLLM: yes: with --max-lora-rank 32",
            "TGI: yes: with --lora-adapters NAME=DIR, on up to RANK / 8 GPUs",
            "SGLang: yes: with --lora-paths NAME=DIR",
            "TensorRT-LLM: yes",
            "llama.cpp: yes: after ft export ADAPTER --to gguf",
            "MLX: no: it reads adapters in a format of its own, not PEFT's (ft export ADAPTER --for mlx --out OUT)",
            "ONNX Runtime: no: it reads no adapters (ft export ADAPTER --for onnx-runtime --out OUT)"
        ]
    );
    let config: Value = ft::fsutil::read_json(&folder.join(file::CONFIG)).unwrap();
    assert_eq!(config["target_modules"], json!(["gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]));
    assert!(config.get("exclude_modules").is_none());
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("library_name: peft") && card.contains("tiny-llama"), "{card}");

    // If a short name such as `k_proj` would select more modules than were adapted, full names are written.
    let spec = LoraSpec { targets: Targets::Pattern(r".*\.1\.mlp\.up_proj|.*\.k_proj".into()), ..LoraSpec::default() };
    let report =
        export::save_adapter(&trained(&tiny, &spec, 0.05), "policy", &AdapterSpec::Lora(spec), &tiny, &folder).unwrap();
    assert_eq!(report.tensors, 8);
    let config: Value = ft::fsutil::read_json(&folder.join(file::CONFIG)).unwrap();
    let names = [
        "model.layers.0.self_attn.k_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.k_proj",
        "model.layers.2.self_attn.k_proj",
    ];
    assert_eq!(config["target_modules"], json!(names));
}

/// Multiplies every base weight by 1.01, so that most values are not exactly representable in bfloat16.
fn grow(model: &Model) {
    let _no_grad = tch::no_grad_guard();
    model.params().base().for_each(|p| {
        let _ = p.tensor.shallow_clone().g_mul_scalar_(1.01);
    });
}

#[test]
fn a_trained_base_is_saved_tied_and_rounded_once() {
    let tiny = fixtures().join("tiny-llama");
    let out = tempfile::tempdir().unwrap();
    let load = LoadOptions {
        device: Device::Cpu,
        kind: Kind::BFloat16,
        storage: Storage::Auto,
        train_base: Some(&TrainedPart::All),
        adapters: Vec::new(),
        vocabulary: None,
        heads: Heads::Tokens,
    };
    let model = Model::load(&tiny, load).unwrap();
    grow(&model);
    // The same master weights in a run that computes in float32: saving as bfloat16 then changes the logits, and the
    // threshold allows for this rounding.
    let load = LoadOptions {
        device: Device::Cpu,
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: Some(&TrainedPart::All),
        adapters: Vec::new(),
        vocabulary: None,
        heads: Heads::Tokens,
    };
    let exact = Model::load(&tiny, load).unwrap();
    grow(&exact);
    let report = export::save_model(&exact, &out.path().join("rounded"), Kind::BFloat16).unwrap();
    assert!(report.difference.relative > 1e-4 && report.thresholds.relative > report.difference.relative, "{report:?}");
    for (name, kind) in [("half", Kind::BFloat16), ("whole", Kind::Float)] {
        let folder = out.path().join(name);
        let report = export::save_model(&model, &folder, kind).unwrap();
        assert!(report.tied && report.difference.max_abs == 0.0, "{report:?}");
        let weights = Weights::open(&folder).unwrap();
        assert!(weights.shape("lm_head.weight").is_none());
        let config = Config::read(&folder).unwrap();
        assert_eq!(config.raw["dtype"], if kind == Kind::Float { "float32" } else { "bfloat16" });
        for p in model.params().base() {
            assert!(weights.get(&p.name).unwrap().equal(&p.tensor.to_kind(kind)), "{}", p.name);
        }
    }
}

#[test]
fn a_damaged_save_is_detected_and_not_published() {
    let out = tempfile::tempdir().unwrap();
    let model = with_adapter("plain");
    let spec = file::read(&adapter("plain")).unwrap().spec;
    let folder = out.path().join("adapter");
    export::save_adapter(&model, "0", &spec, &base(), &folder).unwrap();
    let check = |folder: &Path| verify(&model, folder, ExportKind::Adapter { base: &base() }).unwrap();
    assert_eq!(check(&folder).verdict, ExportVerdict::Passed);

    // A wrong alpha in the config: every tensor is equal, but the logits differ.
    let config = folder.join(file::CONFIG);
    let mut raw: Value = ft::fsutil::read_json(&config).unwrap();
    raw["lora_alpha"] = json!(9);
    ft::fsutil::write_json(&config, &raw).unwrap();
    let report = check(&folder);
    assert_eq!(report.verdict, ExportVerdict::Failed);
    assert!(report.problems.iter().any(|p| p.contains("logits")), "{:?}", report.problems);
    assert!(report.problems.iter().all(|p| !p.contains("tensor")), "{:?}", report.problems);
    raw["lora_alpha"] = json!(8);
    ft::fsutil::write_json(&config, &raw).unwrap();

    // One value differs by one bit: the logits do not show it, the comparison of tensors does.
    let tensors = folder.join(file::TENSORS);
    let mut bytes = std::fs::read(&tensors).unwrap();
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    std::fs::write(&tensors, bytes).unwrap();
    let report = check(&folder);
    assert_eq!((report.verdict, report.problems.len()), (ExportVerdict::Failed, 1), "{:?}", report.problems);

    // A NaN in memory exceeds every threshold: nothing is published. The files stay in `fresh.failed` with a report.
    {
        let _no_grad = tch::no_grad_guard();
        let first = model.params().adapter(0).next().unwrap().tensor.shallow_clone();
        let _ = first.view(-1).narrow(0, 0, 1).fill_(f64::NAN);
    }
    let fresh = out.path().join("fresh");
    let err = export::save_adapter(&model, "0", &spec, &base(), &fresh).unwrap_err();
    assert_eq!(err.exit_code(), 1);
    assert!(!fresh.exists(), "{err}");
    let report: Value = ft::fsutil::read_json(&out.path().join("fresh.failed").join(REPORT)).unwrap();
    assert_eq!(report["verdict"], "failed");
}

#[test]
fn adapters_that_do_not_fit_are_refused_before_anything_is_written() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("merged");
    let other_base = fixtures().join("tiny-llama");
    let err = merge::adapters::merge_into_model(
        &other_base,
        &[WeightedAdapter::read(&adapter("plain"), 1.0).unwrap()],
        &folder,
        None,
        u64::MAX,
    )
    .unwrap_err();
    assert!(err.message().contains("adapters/plain") && err.message().contains("q_proj"), "{err}");
    // An output head trained as a whole, on a model that shares this weight with its embedding.
    let tied = out.path().join("head");
    let spec = LoraSpec { rank: 2, modules_to_save: vec!["lm_head".into()], ..LoraSpec::default() };
    let weight = Tensor::ones([512, 64], (Kind::Float, Device::Cpu));
    file::write(&tied, &AdapterSpec::Lora(spec), "tiny", [("lm_head.weight", &weight)].into_iter()).unwrap();
    let err = merge::adapters::merge_into_model(
        &other_base,
        &[WeightedAdapter::read(&tied, 1.0).unwrap()],
        &folder,
        None,
        u64::MAX,
    )
    .unwrap_err();
    assert!(err.message().contains("share"), "{err}");
    assert!(!folder.exists() && std::fs::read_dir(out.path()).unwrap().count() == 1);
}

#[test]
fn the_merge_command_does_not_overwrite_without_force() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("merged");
    let run = |more: &[&str]| {
        let adapter = format!("{}=0.5", adapter("plain").display());
        let mut command = Command::new(ft_binary());
        command.arg("merge").arg(base()).arg(adapter).arg("--out").arg(&folder).args(more);
        let done = command.output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let (code, stdout, stderr) = run(&["--json"]);
    assert_eq!(code, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["verdict"], "passed");
    assert!(stderr.contains("transformers: yes"), "{stderr}");
    let (code, stdout, stderr) = run(&[]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("--force"), "{stderr}");
    std::fs::rename(folder.join("config.json"), folder.join("notes.txt")).unwrap();
    let (code, _, stderr) = run(&["--force"]);
    assert!(code == Some(1) && stderr.contains("replaces only a model or adapter directory"), "{stderr}");
    std::fs::rename(folder.join("notes.txt"), folder.join("config.json")).unwrap();
    let (code, _, stderr) = run(&["--force", "--as", "adapter"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(folder.join(file::CONFIG).exists() && !folder.join("config.json").exists());
}

#[test]
fn the_example_adapter_equals_the_plain_fixture() {
    let base = fixtures().join("biased-llama");
    let ids: Vec<u32> = (1..20).collect();
    let answer = |adapter: &Path| {
        logits(&models::open(&base, &[adapter.to_path_buf()], Device::Cpu, Kind::Float).unwrap(), &ids)
    };
    let (example, plain) = (answer(Path::new("adapters/example")), answer(&fixtures().join("adapters/plain")));
    let gap = (&example - &plain).abs().max().double_value(&[]);
    assert!(gap < 1e-5, "the example's logits differ by {gap}");
    let bare = logits(&models::open(&base, &[], Device::Cpu, Kind::Float).unwrap(), &ids);
    assert!((example - bare).abs().max().double_value(&[]) > 1e-3, "the example does nothing");
}
