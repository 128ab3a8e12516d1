//! Models with layers of experts: terms of the loss for routers against transformers, adapters on experts against PEFT,
//! and what is particular to experts. Logits, gradients, packing, replay and decoding are tested with those of the other
//! families (parity.rs, families.rs), training steps in train/trajectories.rs.

use crate::support::*;
use ft::adapters::merging::{MergedWeights, WeightedAdapter};
use ft::adapters::{LoraSpec, ModulePlan, Targets};
use ft::convert::merge;
use ft::models::{self, Config, LayerReplay, LoadOptions, Metrics, Model, RouterTerms, Storage, expert_number};
use ft::nn::{AdapterPlan, LayerKind, QuantisedParam, Tokens, weights};
use serde_json::{Value, json as value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Kind, Tensor};

const MODELS: [&str; 5] = ["tiny-mixtral", "tiny-qwen2-moe", "tiny-qwen3-moe", "tiny-olmoe", "tiny-gpt-oss"];

/// A fixture of the terms of the loss.
#[derive(serde::Deserialize)]
struct Terms {
    sequences: Vec<Sequence>,
    items: f64,
    coefficients: BTreeMap<String, f64>,
    balance: f64,
    z: f64,
    counts: Vec<f64>,
    grad_norm: BTreeMap<String, f64>,
    grad_stride: i64,
}

fn learn(model: &Model, rows: &[Row], items: f64, replay: LayerReplay) -> BTreeMap<&'static str, f64> {
    let mut metrics = Metrics::default();
    rows.iter().for_each(|row| metrics.merge(model.learn(row, items, replay).unwrap()));
    metrics.means()
}

#[test]
fn terms_for_routers_equal_transformers() {
    for name in MODELS {
        let case: Terms = json(format!("experts/{name}.json"));
        let expected = tensors(format!("experts/{name}.safetensors"));
        assert!(expected.len() >= 2, "{name}");
        let model = whole(&fixture(name), Kind::Float);
        model.set_router_terms(RouterTerms { balance: case.coefficients["balance"], z: case.coefficients["z"] });
        let row = Row::pack(&case.sequences);
        assert_eq!(row.items, case.items);
        for replay in [LayerReplay::None, LayerReplay::All] {
            let means = learn(&model, std::slice::from_ref(&row), row.items, replay);
            assert_number(&format!("{name}: balance"), means["router_balance"], case.balance, 1e-5);
            assert_number(&format!("{name}: z"), means["router_z"], case.z, 1e-5);
            let all: f64 = case.counts.iter().sum();
            for (e, count) in case.counts.iter().enumerate() {
                let share = means[format!("expert_share_{e}").as_str()];
                assert_number(&format!("{name}: share of expert {e}"), share, count / all, 1e-9);
            }
            let grads = take_gradients(&model);
            for (key, norm) in &case.grad_norm {
                let what = format!("{name} {replay:?}: {key}");
                assert_number(&what, grads[key].norm().double_value(&[]), *norm, 1e-4);
                if let Some(theirs) = expected.get(&format!("grad.{key}")) {
                    assert_close(&what, &every(case.grad_stride, &grads[key]), theirs, 1e-4);
                }
            }
        }
    }
}

/// A step of several rows has the mean of their terms, weighted by their items, and the loss's own metric stays without
/// them.
#[test]
fn terms_of_several_rows_are_weighted_by_their_items() {
    let model = whole(&fixture("tiny-mixtral"), Kind::Float);
    let rows: Vec<Row> = [[9, 30], [4, 17]]
        .iter()
        .enumerate()
        .map(|(i, lengths)| Row::pack(&lengths.map(|n| Sequence::random(n, 64, i as u64))))
        .collect();
    let items: f64 = rows.iter().map(|r| r.items).sum();
    let plain = learn(&model, &rows, items, LayerReplay::None);
    let without = take_gradients(&model);
    model.set_router_terms(RouterTerms { balance: 0.3, z: 0.1 });
    let each: Vec<_> =
        rows.iter().map(|row| learn(&model, std::slice::from_ref(row), items, LayerReplay::None)).collect();
    let gradients = take_gradients(&model);
    let both = learn(&model, &rows, items, LayerReplay::None);
    assert_all_close(&take_gradients(&model), &gradients, 1e-6);
    assert_eq!(both["loss"], plain["loss"]);
    for term in ["router_balance", "router_z"] {
        let mean: f64 = rows.iter().zip(&each).map(|(row, means)| means[term] * row.items).sum::<f64>() / items;
        assert_number(term, both[term], mean, 1e-6);
    }
    let router = "model.layers.0.block_sparse_moe.gate.weight";
    assert!(Gap::between(&gradients[router], &without[router]).norm > 1e-3);
    assert!(both["expert_load_max"] > 1.0 && both["expert_load_max"] <= 4.0);
}

/// One token's logits do not depend on the weights of the experts that it does not go to, whose gradients are zero.
#[test]
fn a_token_reads_its_own_experts_only() {
    for name in MODELS {
        let ids = [17u32, 40];
        let used = {
            let model = whole(&fixture(name), Kind::Float);
            let row = Row::pack(&[Sequence { ids: ids.to_vec(), mask: vec![0, 1] }]);
            model.learn(&row, 1.0, LayerReplay::None).unwrap();
            let of_experts = model.params().trainable().filter(|p| expert_number(&p.name).is_some());
            let learns = |p: &&ft::nn::Param| p.tensor.grad().abs().max().double_value(&[]) > 0.0;
            of_experts.filter(learns).map(|p| p.name.clone()).collect::<BTreeSet<_>>()
        };
        let read = |folder: &Path| {
            let model = frozen(folder, Kind::Float);
            let tokens = Tokens::pack(&[&ids[..1]], device());
            let at = Tensor::from_slice(&[0i64]).to_device(device());
            let whole = model.infer(&tokens, |out| out.logits(&at)).unwrap();
            let mut cache = model.cache(1);
            let decoded = model.extend(&tokens, &mut cache, |out| out.logits(&at)).unwrap();
            (whole, decoded)
        };
        let expected = read(&fixture(name));
        let mut broken = 0;
        let folder = with_changed_weights(name, |tensors| {
            for (key, t) in tensors.iter_mut().filter(|(key, _)| expert_number(key).is_some() && !used.contains(*key)) {
                assert!(!key.contains("shared"));
                *t = t.full_like(f64::NAN);
                broken += 1;
            }
            // The files of gpt-oss have the weights of all experts of a layer in one tensor.
            for (key, t) in tensors.iter_mut().filter(|(key, _)| name == "tiny-gpt-oss" && key.contains(".experts.")) {
                let (kind, stack) = key.strip_suffix("_bias").map_or(("weight", key.as_str()), |stack| ("bias", stack));
                for e in 0..t.size()[0] {
                    let parameter = format!("{}.{kind}", stack.replace(".experts.", &format!(".experts.{e}.")));
                    if !used.contains(&parameter) {
                        let _ = t.get(e).fill_(f64::NAN);
                        broken += 1;
                    }
                }
            }
        });
        assert!(broken >= 3 && !used.is_empty(), "{name}: {broken} of {}", used.len());
        let found = read(folder.path());
        assert_same(&format!("{name}: whole"), &found.0, &expected.0);
        assert_same(&format!("{name}: decoded"), &found.1, &expected.1);
    }
}

fn lora(targets: Targets, bias: bool) -> ModulePlan {
    ModulePlan::new(&LoraSpec { rank: 2, alpha: 4.0, targets, bias, ..LoraSpec::default() }).unwrap()
}

#[test]
fn routers_are_adapted_and_quantised_only_by_name() {
    for name in MODELS {
        let routers = |model: &Model, of_adapter: bool| {
            let mine = |p: &&ft::nn::Param| p.layer == LayerKind::Router && p.adapter.is_some() == of_adapter;
            model.params().iter().filter(mine).count()
        };
        let model = adapted(&fixture(name), Kind::Float, &lora(Targets::default(), false));
        assert!(routers(&model, false) > 0 && routers(&model, true) == 0, "{name}");
        let experts = model.params().adapter(0).filter(|p| expert_number(&p.name).is_some()).count();
        assert!(experts > 0);
        let router = if name == "tiny-gpt-oss" { "router" } else { "gate" };
        let model = adapted(&fixture(name), Kind::Float, &lora(Targets::Names(vec![router.into()]), false));
        assert!(routers(&model, true) > 0, "{name}");

        let format = ft::nn::Quantisation::new(ft::nn::QuantisedFormat::Nf4, true);
        let load = LoadOptions {
            device: device(),
            kind: Kind::Float,
            storage: Storage::Quantised(format.into()),
            train_base: None,
            adapters: Vec::new(),
            vocabulary: None,
            heads: models::Heads::Tokens,
        };
        let model = Model::load(&fixture(name), load).unwrap();
        for p in model.params().base() {
            let quantised = matches!(p.quantised, QuantisedParam::Done(_));
            assert_eq!(quantised, p.layer == LayerKind::Linear && p.shape().len() == 2, "{name}: {}", p.name);
        }
    }
}

/// A bias behind B of an expert counts as much as the expert.
#[test]
fn a_bias_on_an_expert_is_weighted_with_it() {
    let base = fixture("tiny-mixtral");
    let model = adapted(&base, Kind::Float, &lora(Targets::Names(vec!["w2".into()]), true));
    fill_adapter(&model, 0.3);
    let ids: Vec<u32> = (3..40).collect();
    let tokens = Tokens::pack(&[&ids], device());
    let at = Tensor::arange(ids.len() as i64, (Kind::Int64, device()));
    let whole = model.infer(&tokens, |out| out.logits(&at)).unwrap();
    let bare = frozen(&base, Kind::Float);
    assert!(Gap::between(&bare.infer(&tokens, |out| out.logits(&at)).unwrap(), &whole).norm > 1e-2);
    // The decoding kernels compute the same by another way: one token at a time.
    let mut cache = model.cache(1);
    let one = Tensor::from_slice(&[0i64]).to_device(device());
    let steps = ids.iter().enumerate().map(|(i, id)| {
        let token = Tokens::pack_after(&[&[*id][..]], &[i as i64], device());
        model.extend(&token, &mut cache, |out| out.logits(&one)).unwrap()
    });
    let steps: Vec<Tensor> = steps.collect();
    assert_close("decoded", &Tensor::cat(&steps, 0), &whole, 1e-5);
    // Gradients of the biases equal a difference quotient.
    let row = Row::pack(&[Sequence::random(30, 64, 3)]);
    model.learn(&row, 1.0, LayerReplay::None).unwrap();
    let grads = take_gradients(&model);
    let name = "model.layers.1.block_sparse_moe.experts.1.w2.lora_B.bias";
    let bias = model.params().adapter(0).find(|p| p.name == name).unwrap();
    let loss = |step: f64| {
        let change = &grads[name] * step;
        tch::no_grad(|| drop(bias.tensor.shallow_clone().g_add_(&change)));
        let value = learn(&model, std::slice::from_ref(&row), 1.0, LayerReplay::None)["loss"];
        take_gradients(&model);
        tch::no_grad(|| drop(bias.tensor.shallow_clone().g_sub_(&change)));
        value * row.items
    };
    let square = grads[name].square().sum(Kind::Double).double_value(&[]);
    let step = 0.02 / square.sqrt();
    assert_number("gradient of a bias", (loss(step) - loss(-step)) / (2.0 * step), square, 1e-2);
}

#[derive(serde::Deserialize)]
struct Fused {
    input: Vec<u32>,
    rows: i64,
    adapters: BTreeMap<String, FusedAdapter>,
}

#[derive(serde::Deserialize)]
struct FusedAdapter {
    model: String,
    changed: Vec<String>,
}

/// Adapters that PEFT wrote over the fused weights of transformers 5 (`target_parameters`) give the same logits and the same
/// merged weights.
#[test]
fn pefts_adapters_of_fused_experts_are_read() {
    let about: Fused = json("experts/expected.json");
    let expected = tensors("experts/expected.safetensors");
    for (name, FusedAdapter { model: base, changed }) in &about.adapters {
        let (base, folder) = (fixture(base), fixture(format!("experts/{name}")));
        let logits = |model: &Model| {
            let tokens = Tokens::pack(&[&about.input], device());
            let at = Tensor::arange(about.input.len() as i64, (Kind::Int64, device()));
            model.infer(&tokens, |out| out.logits(&at)).unwrap()
        };
        let model = models::open(&base, std::slice::from_ref(&folder), device(), Kind::Float).unwrap();
        assert_close(name, &logits(&model), &expected[&format!("logits.{name}")], 1e-4);

        let config = Config::read(&base).unwrap();
        let weights = models::weights(&base, &config).unwrap();
        let part = || [WeightedAdapter::read(&folder, 1.0).unwrap()];
        let merge = MergedWeights::new(&weights, &config.tied_weights(), &part()).unwrap();
        let wanted: BTreeSet<&str> = changed.iter().map(String::as_str).collect();
        assert_eq!(merge.changed().collect::<BTreeSet<_>>(), wanted, "{name}");
        let prefix = format!("merged.{name}/");
        let mut compared = 0;
        for (key, theirs) in expected.iter().filter(|(k, _)| k.starts_with(&prefix)) {
            let ours = merge.tensor(&key[prefix.len()..]).unwrap();
            assert_within(key, &every(about.rows, &ours), theirs, 1e-6);
            compared += 1;
        }
        assert!(compared >= 1, "{name}");
        let temp = tempfile::tempdir().unwrap();
        let out = temp.path().join("merged");
        merge::adapters::merge_into_model(&base, &part(), &out, None, u64::MAX).unwrap();
        let names = |folder: &Path| weights_of(folder).into_keys().collect::<Vec<_>>();
        assert_eq!(names(&out), names(&base), "{name}: a merged model has the layout of its base");
        assert_close(name, &logits(&frozen(&out, Kind::Float)), &expected[&format!("logits.{name}")], 1e-4);
    }
}

fn weights_of(folder: &Path) -> BTreeMap<String, Tensor> {
    ft::nn::Weights::open(folder).unwrap().all()
}

fn refused(name: &str, change: impl FnOnce(&mut Value, &mut BTreeMap<String, Tensor>)) -> String {
    let folder = with_weights(name, name);
    let file = folder.path().join("config.json");
    let mut config: Value = ft::fsutil::read_json(&file).unwrap();
    let mut tensors = weights_of(folder.path());
    change(&mut config, &mut tensors);
    ft::fsutil::write_json(&file, &config).unwrap();
    let list = tensors.iter().map(|(n, t)| (n.as_str(), t));
    weights::save(&folder.path().join("model.safetensors"), list).unwrap();
    let load = LoadOptions {
        device: device(),
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: None,
        adapters: Vec::<(String, &dyn AdapterPlan)>::new(),
        vocabulary: None,
        heads: models::Heads::Tokens,
    };
    let e = Model::load(folder.path(), load).err().expect("refused");
    assert_eq!(e.exit_code(), 1, "{e}");
    assert!(e.to_string().contains("hint:"), "{e}");
    e.to_string()
}

#[test]
fn experts_that_cannot_be_are_refused() {
    let e = refused("tiny-mixtral", |_, tensors| {
        tensors.retain(|name, _| !name.contains("layers.1.") || expert_number(name) != Some(3));
    });
    for layer in ["w1", "w2", "w3"] {
        assert!(e.contains(&format!("model.layers.1.block_sparse_moe.experts.3.{layer}.weight` is missing")), "{e}");
    }
    assert!(!e.contains("experts.2."), "{e}");
    let e = refused("tiny-mixtral", |config, _| config["num_local_experts"] = 3.into());
    assert!(e.contains("block_sparse_moe.gate.weight` has shape [4, 24], expected [3, 24]"), "{e}");
    let e = refused("tiny-mixtral", |config, _| config["num_experts_per_tok"] = 5.into());
    assert!(e.contains("`num_experts_per_tok` is 5, but the model has 4 experts"), "{e}");
    let e = refused("tiny-mixtral", |config, _| config["num_local_experts"] = 0.into());
    assert!(e.contains("`num_local_experts` must be a positive integer"), "{e}");
    let e = refused("tiny-olmoe", |config, _| config["num_experts_per_tok"] = 0.into());
    assert!(e.contains("`num_experts_per_tok` must be a positive integer"), "{e}");
    let e = refused("tiny-qwen3-moe", |config, _| config["scoring_func"] = "sigmoid".into());
    assert!(e.contains("`scoring_func` is \"sigmoid\"") && e.contains("softmax"), "{e}");
    let e = refused("tiny-qwen3-moe", |config, _| config["mlp_only_layers"] = value!("first"));
    assert!(e.contains("mlp_only_layers"), "{e}");
    let e = refused("tiny-olmoe", |config, _| config["clip_qkv"] = 0.into());
    assert!(e.contains("clip_qkv"), "{e}");
}

/// In bfloat16 a few tokens go to another expert, because their hidden states are rounded; the others are as near to float32
/// as in other families.
#[test]
fn a_bf16_run_stays_near_float32_for_most_tokens() {
    for name in MODELS {
        let ids = &Sequence::random(40, 64, 1).ids;
        let logits = |kind| {
            let at = Tensor::arange(ids.len() as i64, (Kind::Int64, device()));
            let model = frozen(&fixture(name), kind);
            model.infer(&Tokens::pack(&[ids], device()), |out| out.logits(&at)).unwrap().to_kind(Kind::Double)
        };
        let (narrow, wide) = (logits(Kind::BFloat16), logits(Kind::Float));
        let norms = |t: &Tensor| t.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Double).sqrt();
        let gap = (norms(&(&narrow - &wide)) / norms(&wide)).median().double_value(&[]);
        assert!((1e-3..0.03).contains(&gap), "{name}: {gap}");
    }
}

/// Layers without experts have an MLP: those of `mlp_only_layers`, and those that `decoder_sparse_step` leaves out.
#[test]
fn only_sparse_layers_have_experts() {
    let sparse = |change: &dyn Fn(&mut Value)| {
        let file = fixture("tiny-qwen3-moe").join("config.json");
        let mut config: Value = ft::fsutil::read_json(&file).unwrap();
        config["num_hidden_layers"] = 4.into();
        change(&mut config);
        Config::parse(&file, &config.to_string()).unwrap().experts.unwrap().sparse
    };
    assert_eq!(sparse(&|_| ()), [true; 4]);
    assert_eq!(sparse(&|c| c["mlp_only_layers"] = value!([0, 2])), [false, true, false, true]);
    assert_eq!(sparse(&|c| c["decoder_sparse_step"] = 3.into()), [false, false, true, false]);
    let model = frozen(&fixture("tiny-qwen2-moe"), Kind::Float);
    let dense = model.params().base().any(|p| p.name == "model.layers.0.mlp.gate_proj.weight");
    assert!(dense && model.params().base().all(|p| !p.name.starts_with("model.layers.0.mlp.experts")));
    let all: u64 = model.params().base().map(|p| p.count()).sum();
    // Two of four experts of one layer, with three matrices of 12 x 24 each, do not compute a token.
    assert_eq!(model.active_parameters(), all - 2 * 3 * 12 * 24);
}
