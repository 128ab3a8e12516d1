//! Tests every model family other than llama: PEFT's adapters on it, equivalent ways to compute the same result
//! (packing, replay, KV cache), variants of its files. Comparisons of logits and gradients with transformers are in
//! parity.rs, training steps in trajectories.rs.

use crate::support::*;
use ft::adapters::merging::{MergedWeights, WeightedAdapter};
use ft::adapters::{AdapterSpec, LoraSpec, ModulePlan, Targets, file};
use ft::convert::gguf_import::{GgufImportOptions, import};
use ft::convert::{export, merge};
use ft::models::{self, Config, Heads, LayerReplay, LoadOptions, Metrics, Model, Storage};
use ft::nn::{AdapterPlan, Tokens, Weights, weights};
use serde_json::{Value, json as value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Kind, Tensor};

pub(super) const FAMILIES: [&str; 35] = [
    "tiny-llama",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-gpt2",
    "tiny-mixtral",
    "tiny-qwen2-moe",
    "tiny-qwen3-moe",
    "tiny-olmoe",
    "tiny-gpt-oss",
    "tiny-deepseek-v2",
    "deepseek-v2-groups",
    "dense/gemma",
    "dense/gemma2",
    "dense/gemma3",
    "dense/phi3",
    "dense/olmo2",
    "dense/smollm3",
    "dense/granite",
    "dense/cohere",
    "dense/cohere2",
    "dense/stablelm",
    "dense/stablelm-parallel",
    "dense/gpt-neox",
    "dense/falcon",
    "dense/falcon-new",
    "dense/falcon-alibi",
    "dense/bloom",
    "dense/mpt",
    "gemma3n/shared",
    "gemma3n/plain",
    "own/rnn",
    "own/gru",
    "own/lstm",
    "own/sinusoidal",
    "own/relative",
];

/// Folders of PEFT's directories over the families, with what is expected of them.
const ADAPTERS: [&str; 3] = ["families", "dense/adapters", "gemma3n/adapters"];

fn every_logit(model: &Model, ids: &[u32]) -> Tensor {
    let tokens = Tokens::pack(&[ids], device());
    let rows = Tensor::arange(ids.len() as i64, (Kind::Int64, device()));
    model.infer(&tokens, |out| out.logits(&rows)).unwrap()
}

fn all_linear() -> ModulePlan {
    ModulePlan::new(&LoraSpec { rank: 4, alpha: 8.0, ..LoraSpec::default() }).unwrap()
}

pub(super) fn with_lora(base: &str, kind: Kind) -> Model {
    let model = adapted(&fixture(base), kind, &all_linear());
    fill_adapter(&model, 0.3);
    model
}

#[derive(serde::Deserialize)]
struct Adapters {
    input: Vec<u32>,
    rows: i64,
    adapters: BTreeMap<String, About>,
}

#[derive(serde::Deserialize)]
struct About {
    model: String,
    modules: BTreeMap<String, [f64; 3]>,
    changed: Vec<String>,
}

fn adapters() -> impl Iterator<Item = (&'static str, Adapters)> {
    ADAPTERS.into_iter().map(|place| (place, json(format!("{place}/expected.json"))))
}

/// Returns the names of the adapted modules as the model names them.
fn adapted_modules(model: &Model) -> BTreeSet<String> {
    let module = |p: &ft::nn::Param| {
        let name = &p.name;
        name.strip_suffix(".lora_A.weight").or_else(|| name.strip_suffix(".lora_embedding_A")).map(String::from)
    };
    model.params().adapter(0).filter_map(module).collect()
}

#[test]
fn peft_adapters_give_the_same_logits_on_every_family() {
    for (place, about) in adapters() {
        let expected = tensors(format!("{place}/expected.safetensors"));
        for (name, About { model: base, modules, .. }) in &about.adapters {
            let folder = fixture(format!("{place}/{name}"));
            let model =
                models::open(&fixture(base), &[&folder].map(|f| f.to_path_buf()), device(), Kind::Float).unwrap();
            assert!(adapted_modules(&model).iter().eq(modules.keys()), "{name}");
            let gap =
                assert_close(name, &every_logit(&model, &about.input), &expected[&format!("logits.{name}")], 1e-4);
            println!("{name}: {gap:?}");
        }
    }
}

#[test]
fn peft_adapters_are_rewritten_unchanged_on_every_family() {
    for (place, about) in adapters() {
        for (name, About { model: base, .. }) in &about.adapters {
            let folder = fixture(format!("{place}/{name}"));
            let read = file::read(&folder).unwrap();
            let read = read.spec.as_lora().unwrap();
            assert_eq!(read.fan_in_fan_out, name.starts_with("gpt2"), "{name}");
            let temp = tempfile::tempdir().unwrap();
            let model = models::open(&fixture(base), std::slice::from_ref(&folder), device(), Kind::Float).unwrap();
            let written = temp.path().join("adapter");
            // Written as a training run does, without saying how the base stores its weights (`fan_in_fan_out`).
            let spec = AdapterSpec::Lora(LoraSpec { fan_in_fan_out: false, ..read.clone() });
            let report = export::save_adapter(&model, "0", &spec, &fixture(base), &written).unwrap();
            assert!(report.problems.is_empty(), "{name}: {report:?}");
            let (before, after): (Value, Value) = (
                ft::fsutil::read_json(&folder.join(file::CONFIG)).unwrap(),
                ft::fsutil::read_json(&written.join(file::CONFIG)).unwrap(),
            );
            for key in ["fan_in_fan_out", "r", "lora_alpha", "task_type", "use_rslora"] {
                assert_eq!(before[key], after[key], "{name}: {key}");
            }
            let (before, after) = (
                Weights::open_file(&folder.join(file::TENSORS)).unwrap(),
                Weights::open_file(&written.join(file::TENSORS)).unwrap(),
            );
            assert!(before.names().eq(after.names()), "{name}");
            for key in before.names() {
                let (mut after, before) = (after.get(key).unwrap(), before.get(key).unwrap());
                if key.contains(".base_layer.") {
                    after = after.to_kind(before.kind()); // PEFT wrote it as it had loaded the base
                }
                assert_same(key, &after, &before);
            }
        }
    }
}

#[test]
fn merged_weights_equal_pefts_on_every_family() {
    for (place, about) in adapters() {
        let expected = tensors(format!("{place}/expected.safetensors"));
        for (name, About { model: base, changed, .. }) in &about.adapters {
            let (base, folder) = (fixture(base), fixture(format!("{place}/{name}")));
            let config = Config::read(&base).unwrap();
            let weights = models::weights(&base, &config).unwrap();
            let part = || [WeightedAdapter::read(&folder, 1.0).unwrap()];
            let merge = MergedWeights::new(&weights, &config.tied_weights(), &part()).unwrap();
            // PEFT also changes a head that shares the weight of an adapted embedding; see nn::heads.
            let own = |key: &&str| !(config.tie_word_embeddings && *key == "lm_head.weight");
            let wanted: BTreeSet<&str> = changed.iter().map(String::as_str).filter(own).collect();
            assert_eq!(merge.changed().filter(own).collect::<BTreeSet<_>>(), wanted, "{name}");
            let mut compared = 0;
            let prefix = format!("merged.{name}/");
            for (key, theirs) in expected.iter().filter(|(k, _)| k.starts_with(&prefix)) {
                let ours = merge.tensor(&key[prefix.len()..]).unwrap();
                assert_within(key, &every(about.rows, &ours), theirs, 1e-6);
                compared += 1;
            }
            assert!(compared >= 1, "{name}: {compared} tensors");

            let temp = tempfile::tempdir().unwrap();
            let out = temp.path().join("merged");
            // In float32, so that the comparison is not about the rounding of a base in bfloat16.
            merge::adapters::merge_into_model(&base, &part(), &out, Some(Kind::Float), u64::MAX).unwrap();
            let gap = assert_close(
                name,
                &every_logit(&frozen(&out, Kind::Float), &about.input),
                &expected[&format!("logits.{name}")],
                1e-4,
            );
            println!("{name}: {gap:?}");
            let settings = |folder: &Path| {
                let mut config: Value = ft::fsutil::read_json(&folder.join("config.json")).unwrap();
                config.as_object_mut().unwrap().retain(|key, _| key != "dtype" && key != "tie_word_embeddings");
                config
            };
            assert_eq!(settings(&base), settings(&out), "{name}");
            // The sum of two copies with weight one half is the adapter again.
            let half = || WeightedAdapter::read(&folder, 0.5).unwrap();
            let sum = temp.path().join("sum");
            merge::adapters::merge_adapters(&base, &[half(), half()], &sum).unwrap();
            let again = models::open(&base, &[sum], device(), Kind::Float).unwrap();
            assert_close(name, &every_logit(&again, &about.input), &expected[&format!("logits.{name}")], 1e-4);
        }
    }
}

#[test]
fn a_config_without_targets_selects_the_familys_default_modules() {
    for (place, name) in [
        ("families", "gpt2-default"),
        ("families", "qwen2-default"),
        ("dense/adapters", "gpt-neox-default"),
        ("dense/adapters", "falcon-default"),
        ("dense/adapters", "mpt-default"),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let folder = fixture(format!("{place}/{name}"));
        std::fs::copy(folder.join(file::TENSORS), temp.path().join(file::TENSORS)).unwrap();
        let mut config: Value = ft::fsutil::read_json(&folder.join(file::CONFIG)).unwrap();
        config["target_modules"] = Value::Null;
        ft::fsutil::write_json(&temp.path().join(file::CONFIG), &config).unwrap();
        let about: Adapters = json(format!("{place}/expected.json"));
        let base = fixture(&about.adapters[name].model);
        let model = models::open(&base, &[temp.path().into()], device(), Kind::Float).unwrap();
        assert!(adapted_modules(&model).iter().eq(about.adapters[name].modules.keys()), "{name}");
    }
}

/// Returns the mean loss and the gradients of one step over micro-batches.
pub(super) fn step(model: &Model, batches: &[Vec<Sequence>], replay: LayerReplay) -> (f64, BTreeMap<String, Tensor>) {
    let items = batches.iter().flatten().map(Sequence::items).sum();
    let mut metrics = Metrics::default();
    for b in batches {
        let row = Row::pack(b);
        metrics.merge(model.learn(&row, items, replay).unwrap());
    }
    (metrics.means()["loss"], take_gradients(model))
}

pub(super) fn sequences() -> Vec<Sequence> {
    [23, 5, 40, 2, 11, 37].iter().enumerate().map(|(i, &n)| Sequence::random(n, 64, i as u64)).collect()
}

#[test]
fn packing_equals_single_sequences_and_replay_is_bit_identical() {
    for base in FAMILIES {
        for (what, model) in [("full", whole(&fixture(base), Kind::Float)), ("lora", with_lora(base, Kind::Float))] {
            let what = format!("{base} {what}");
            let all = sequences();
            let (loss, grads) = step(&model, std::slice::from_ref(&all), LayerReplay::None);
            let one_by_one: Vec<Vec<Sequence>> = all.iter().map(|s| vec![s.clone()]).collect();
            let (alone_loss, alone) = step(&model, &one_by_one, LayerReplay::None);
            assert_number(&what, loss, alone_loss, 1e-6);
            println!("{what}: {:?}", assert_all_close(&grads, &alone, 1e-5));
            let (replayed_loss, replayed) = step(&model, std::slice::from_ref(&all), LayerReplay::All);
            assert_eq!(loss, replayed_loss, "{what}");
            for (name, g) in &grads {
                // A bias added to every key shifts all scores of a query by the same amount, and softmax is invariant
                // to that: its gradient is zero.
                assert!(
                    g.norm().double_value(&[]) > 0.0 || name.ends_with("k_proj.bias"),
                    "{what}: {name}: no gradient"
                );
                assert_same(&format!("{what}: {name}"), &replayed[name], g);
            }
        }
    }
}

#[test]
fn a_bf16_run_stays_near_float32_on_every_family() {
    // Those with experts are in experts.rs: a rounded logit may choose another expert.
    for base in FAMILIES.into_iter().take(4) {
        let ids = &Sequence::random(40, 64, 1).ids;
        for lora in [false, true] {
            let open = |kind| if lora { with_lora(base, kind) } else { frozen(&fixture(base), kind) };
            let gap = Gap::between(&every_logit(&open(Kind::BFloat16), ids), &every_logit(&open(Kind::Float), ids));
            // bfloat16 has 8 bits: 1 or 2 % over two or three layers, twice that with the noise of an adapter. Equal numbers
            // would mean that nothing was computed in bfloat16.
            let most = if lora { 0.05 } else { 0.03 };
            assert!((1e-3..most).contains(&gap.norm), "{base}, adapter {lora}: {gap:?}");
        }
    }
}

#[test]
fn decoding_over_a_cache_equals_the_whole_pass_on_every_family() {
    for base in FAMILIES.into_iter().chain(["yarn-rope", "llama3-rope"]) {
        let folder = match base.ends_with("rope") {
            true => with_weights(base, "wide-head-llama"),
            false => with_weights(base, base),
        };
        let model = frozen(folder.path(), Kind::Float);
        let rows = [Sequence::random(21, 64, 3), Sequence::random(9, 64, 4)];
        let mut cache = model.cache(2);
        let mut got: [Vec<Tensor>; 2] = Default::default();
        // First prompts of unequal length, then several tokens at once, then single tokens.
        let mut at = [6, 3];
        let mut take = |model: &Model, from: [usize; 2], to: [usize; 2]| {
            let parts: Vec<&[u32]> = (0..2).map(|i| &rows[i].ids[from[i]..to[i]]).collect();
            let tokens = Tokens::pack_after(&parts, &from.map(|n| n as i64), device());
            let all = Tensor::arange(tokens.len() as i64, (Kind::Int64, device()));
            let logits = model.extend(&tokens, &mut cache, |out| out.logits(&all)).unwrap();
            let first = (to[0] - from[0]) as i64;
            got[0].push(logits.narrow(0, 0, first));
            got[1].push(logits.narrow(0, first, (to[1] - from[1]) as i64));
        };
        take(&model, [0, 0], at);
        take(&model, at, [15, 4]);
        at = [15, 4];
        while at[1] < 9 {
            let next = at.map(|n| n + 1);
            take(&model, at, next);
            at = next;
        }
        for (i, parts) in got.iter().enumerate() {
            let ids = &rows[i].ids[..at[i]];
            let gap = assert_close(base, &Tensor::cat(parts, 0), &every_logit(&model, ids), 1e-5);
            println!("{base}, sequence {i}: {gap:?}");
        }
    }
}

/// Writes a model directory like GPT-2's original checkpoints: names without `transformer.`, causal masks among the
/// tensors, a config with few keys.
fn original_gpt2() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors: Vec<(String, Tensor)> = Weights::open(&fixture("tiny-gpt2"))
        .unwrap()
        .all()
        .into_iter()
        .map(|(name, t)| (name.strip_prefix("transformer.").unwrap().to_string(), t))
        .collect();
    for i in 0..2 {
        let mask = Tensor::ones([1, 1, 64, 64], (Kind::Float, tch::Device::Cpu)).tril(0);
        tensors.push((format!("h.{i}.attn.bias"), mask));
        tensors.push((format!("h.{i}.attn.masked_bias"), Tensor::from(-1e4f32)));
    }
    weights::save(&folder.path().join("model.safetensors"), tensors.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
    let config = value!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 1,
        "embd_pdrop": 0.1, "eos_token_id": 2, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5,
        "model_type": "gpt2", "n_ctx": 64, "n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 64,
        "resid_pdrop": 0.1, "summary_type": "cls_index", "vocab_size": 64
    });
    ft::fsutil::write_json(&folder.path().join("config.json"), &config).unwrap();
    folder
}

#[test]
fn an_original_gpt2_checkpoint_loads_trains_and_merges() {
    let original = original_gpt2();
    let ids = Sequence::random(40, 64, 1).ids;
    let modern = frozen(&fixture("tiny-gpt2"), Kind::Float);
    assert_same("logits", &every_logit(&frozen(original.path(), Kind::Float), &ids), &every_logit(&modern, &ids));

    let temp = tempfile::tempdir().unwrap();
    let adapter = fixture("families/gpt2-all");
    let merge = |base: &Path, name: &str| {
        let out = temp.path().join(name);
        merge::adapters::merge_into_model(base, &[WeightedAdapter::read(&adapter, 1.0).unwrap()], &out, None, u64::MAX)
            .unwrap();
        Weights::open(&out).unwrap().all()
    };
    // Exported models use today's names and contain no masks.
    let (a, b) = (merge(original.path(), "original"), merge(&fixture("tiny-gpt2"), "modern"));
    assert!(a.keys().eq(b.keys()) && a.keys().all(|k| k.starts_with("transformer.")));
    a.iter().for_each(|(name, t)| assert_same(name, t, &b[name]));
    let saved = temp.path().join("saved");
    export::save_model(&whole(original.path(), Kind::Float), &saved, Kind::Float).unwrap();
    assert!(Weights::open(&saved).unwrap().names().eq(b.keys().map(String::as_str)));
    assert_same("saved", &every_logit(&frozen(&saved, Kind::Float), &ids), &every_logit(&modern, &ids));
}

#[test]
fn settings_of_gpt2_that_would_change_its_numbers_are_refused() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let folder = with_weights("tiny-gpt2", "tiny-gpt2");
        let file = folder.path().join("config.json");
        let mut config: Value = ft::fsutil::read_json(&file).unwrap();
        change(&mut config);
        ft::fsutil::write_json(&file, &config).unwrap();
        let load = LoadOptions {
            device: device(),
            kind: Kind::Float,
            storage: Storage::Auto,
            train_base: None,
            adapters: Vec::new(),
            vocabulary: None,
            heads: Heads::Tokens,
        };
        let e = Model::load(folder.path(), load).err().expect("refused");
        assert_eq!(e.exit_code(), 1);
        assert!(e.to_string().contains("config.json"), "{e}");
        e.to_string()
    };
    assert!(refused(&|c| c["activation_function"] = "relu".into()).contains("`relu`"));
    assert!(refused(&|c| c["add_cross_attention"] = true.into()).contains("add_cross_attention"));
    assert!(refused(&|c| c["n_head"] = 5.into()).contains("n_head"));
    // Keys of other families, which transformers does not read here, change nothing.
    let folder = with_weights("tiny-gpt2", "tiny-gpt2");
    let file = folder.path().join("config.json");
    let mut config: Value = ft::fsutil::read_json(&file).unwrap();
    config["num_key_value_heads"] = 1.into();
    config["head_dim"] = 4.into();
    config["sliding_window"] = 3.into();
    ft::fsutil::write_json(&file, &config).unwrap();
    let ids = Sequence::random(40, 64, 1).ids;
    let plain = every_logit(&frozen(&fixture("tiny-gpt2"), Kind::Float), &ids);
    assert_same("stray keys", &every_logit(&frozen(folder.path(), Kind::Float), &ids), &plain);
    assert!(refused(&|c| c["n_embd"] = Value::Null).contains("`n_embd`"));
    assert!(refused(&|c| c["model_type"] = "gpt9".into()).contains("qwen3"));
    // A text longer than the table of position embeddings is refused.
    let model = frozen(&fixture("tiny-gpt2"), Kind::Float);
    assert_eq!(model.context_limit(), Some(64));
    let e = model.infer(&Tokens::pack(&[vec![3u32; 65]], device()), |_| ()).unwrap_err();
    assert!(e.message().contains("positions for 64"), "{e}");
}

#[test]
fn qwens_sliding_window_applies_only_to_its_layers() {
    let window = |change: Value| {
        let file = fixture("tiny-qwen2").join("config.json");
        let mut config: Value = ft::fsutil::read_json(&file).unwrap();
        config.as_object_mut().unwrap().remove("layer_types");
        change.as_object().unwrap().iter().for_each(|(k, v)| config[k] = v.clone());
        Config::parse(&file, &config.to_string()).unwrap().windows
    };
    let on = |first: i64| value!({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": first});
    assert_eq!(window(value!({"sliding_window": 16})), [None, None]);
    assert_eq!((window(on(2)), window(on(1))), (vec![None, None], vec![None, Some(16)]));
    let mut mixed = on(0);
    mixed["layer_types"] = value!(["full_attention", "full_attention"]);
    assert_eq!(window(mixed), [None, None]);
}

#[test]
fn an_imported_gguf_model_loads_and_generates() {
    for name in ["llama", "llama3", "llama-spm", "qwen2", "qwen3", "gpt2"] {
        let temp = tempfile::tempdir().unwrap();
        let out = temp.path().join("model");
        let source = fixture(format!("gguf/{name}.gguf"));
        let options = GgufImportOptions {
            file: &source,
            out: &out,
            dtype: ft::nn::safetensors::Dtype::F32,
            force: false,
            pre_tokenizer: None,
        };
        import(&options, |_, _| Ok(())).unwrap();
        let about: Value = json(format!("gguf/{name}.json"));
        let ids: Vec<u32> = serde_json::from_value(about["ids"].clone()).unwrap_or_default();
        let wanted: Vec<f32> = serde_json::from_value(about["logits"].clone()).unwrap();
        let model = frozen(&out, Kind::Float);
        let ours = every_logit(&model, &ids).get(ids.len() as i64 - 1);
        let gap = assert_close(name, &ours, &Tensor::from_slice(&wanted).to_device(device()), 1e-4);
        println!("{name}: {gap:?}");
    }
}

#[test]
fn a_recipe_may_target_gpt2s_modules() {
    let spec = LoraSpec {
        targets: Targets::Names(vec!["c_attn".into(), "mlp.c_proj".into()]),
        modules_to_save: vec!["ln_f".into()],
        ..LoraSpec::default()
    };
    let plan = ModulePlan::new(&spec).unwrap();
    let load = LoadOptions {
        device: device(),
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: None,
        adapters: vec![("a".into(), &plan as &dyn AdapterPlan)],
        vocabulary: None,
        heads: Heads::Tokens,
    };
    let model = Model::load(&fixture("tiny-gpt2"), load).unwrap();
    let names: Vec<&str> = model.params().adapter(0).map(|p| p.name.as_str()).collect();
    assert_eq!(names.len(), 2 * 4 + 2);
    assert!(names.contains(&"transformer.ln_f.weight") && names.contains(&"transformer.ln_f.bias"), "{names:?}");
    let refused = ModulePlan::new(&LoraSpec { modules_to_save: vec!["wte".into()], ..LoraSpec::default() }).unwrap();
    let load = LoadOptions {
        device: device(),
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: None,
        adapters: vec![("a".into(), &refused as &dyn AdapterPlan)],
        vocabulary: None,
        heads: Heads::Tokens,
    };
    assert!(Model::load(&fixture("tiny-gpt2"), load).err().unwrap().message().contains("wte"));
}
