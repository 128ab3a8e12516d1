//! Tests output heads and embeddings: files in which they differ although config.json ties them, and low-rank updates
//! of them in PEFT's format.

use crate::support::*;
use ft::adapters::merging::WeightedAdapter;
use ft::adapters::{AdapterSpec, LoraSpec, ModulePlan, Targets, file};
use ft::convert::verify::report::ExportVerdict;
use ft::convert::{export, merge};
use ft::models::{Config, LayerReplay, Model};
use ft::nn::{AdapterPlan, AdapterSite, Dense, LayerKind, ParamRole, Tokens, Weight, Weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const TIED: [(&str, &str); 3] = [
    ("tiny-llama", "model.embed_tokens.weight"),
    ("tiny-qwen2", "model.embed_tokens.weight"),
    ("tiny-gpt2", "transformer.wte.weight"),
];
const HEAD: &str = "lm_head.weight";

/// Returns the same random numbers for every tensor of this shape, whatever other tests draw from libtorch's generator.
fn noise_like(tensor: &Tensor) -> Tensor {
    noise(&tensor.size(), "heads") * 0.5
}

fn config(folder: &Path) -> Value {
    ft::fsutil::read_json(&folder.join("config.json")).unwrap()
}

/// Sets `tie_word_embeddings` in the folder's config.json.
fn tying(folder: &Path, tie: bool) {
    let mut config = config(folder);
    config["tie_word_embeddings"] = json!(tie);
    ft::fsutil::write_json(&folder.join("config.json"), &config).unwrap();
}

fn answers(model: &Model) -> Tensor {
    let ids: Vec<u32> = (1..24).collect();
    let rows = Tensor::arange(ids.len() as i64, (Kind::Int64, device()));
    model.infer(&Tokens::pack(&[&ids], device()), |out| out.logits(&rows)).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    Weights::open(folder).unwrap().names().map(String::from).collect()
}

/// As in transformers 5, both weights are used, and saved models have `tie_word_embeddings: false`.
#[test]
fn a_head_that_differs_from_its_tied_embedding_is_used_and_kept() {
    for (name, embedding) in TIED {
        let parted = with_changed_weights(name, |t| {
            let head = &t[embedding] + noise_like(&t[embedding]);
            t.insert(HEAD.into(), head);
        });
        let untied = with_changed_weights(name, |t| {
            let head = &t[embedding] + noise_like(&t[embedding]);
            t.insert(HEAD.into(), head);
        });
        tying(untied.path(), false);
        let (model, expected) = (frozen(parted.path(), Kind::Float), frozen(untied.path(), Kind::Float));
        assert_same(name, &answers(&model), &answers(&expected));
        let tied = frozen(&fixture(name), Kind::Float);
        assert!(
            (answers(&model) - answers(&tied)).abs().max().double_value(&[]) > 0.1,
            "{name}: the separate head is not used"
        );
        assert!(!Config::read(parted.path()).unwrap().tie_word_embeddings);

        // If every weight is trained, each of the two has its own gradient, and both are saved.
        let model = whole(parted.path(), Kind::Float);
        let row = Row::pack(&[Sequence::random(20, 60, 1)]);
        model.learn(&row, row.items, LayerReplay::All).unwrap();
        let gradients: Vec<Tensor> =
            model.params().iter().filter(|p| p.name == HEAD || p.name == embedding).map(|p| p.tensor.grad()).collect();
        assert!(gradients.len() == 2 && !gradients[0].equal(&gradients[1]), "{name}");
        let out = tempfile::tempdir().unwrap();
        let saved = out.path().join("full");
        let report = export::save_model(&model, &saved, Kind::Float).unwrap();
        assert_eq!((report.verdict, report.tied), (ExportVerdict::Passed, false), "{name}: {:?}", report.problems);

        // The same after merging an adapter.
        let adapter = out.path().join("adapter");
        let spec = LoraSpec { rank: 2, ..LoraSpec::default() };
        let model = adapted(parted.path(), Kind::Float, &ModulePlan::new(&spec).unwrap());
        fill_adapter(&model, 0.05);
        export::save_adapter(&model, "a", &AdapterSpec::Lora(spec), parted.path(), &adapter).unwrap();
        let merged = out.path().join("merged");
        let parts = [WeightedAdapter::read(&adapter, 1.0).unwrap()];
        let report = merge::adapters::merge_into_model(parted.path(), &parts, &merged, None, u64::MAX).unwrap();
        assert_eq!((report.verdict, report.tied), (ExportVerdict::Passed, false), "{name}: {:?}", report.problems);

        for folder in [&saved, &merged] {
            assert_eq!(config(folder)["tie_word_embeddings"], json!(false), "{name}");
            assert!(names(folder).iter().any(|n| n == HEAD), "{name}");
            let mut rest = config(folder);
            let mut before = config(parted.path());
            for config in [&mut rest, &mut before] {
                for key in ["tie_word_embeddings", "dtype", "torch_dtype"] {
                    config.as_object_mut().unwrap().remove(key);
                }
            }
            assert_eq!(rest, before, "{name}: another key of config.json changed");
        }
    }
}

#[test]
fn an_equal_head_stays_tied_and_a_head_alone_is_used_as_embedding() {
    for (name, embedding) in TIED {
        let expected = answers(&frozen(&fixture(name), Kind::Float));
        let copied = with_changed_weights(name, |t| drop(t.insert(HEAD.into(), t[embedding].shallow_clone())));
        // `alone`: the shared weight is stored under the head's name only. `wide`: the copy is stored in float64.
        let alone = with_changed_weights(name, |t| {
            let key = t.keys().find(|k| embedding.ends_with(k.as_str())).unwrap().clone();
            let shared = t.remove(&key).unwrap();
            t.insert(HEAD.into(), shared);
        });
        let wide = with_changed_weights(name, |t| drop(t.insert(HEAD.into(), t[embedding].to_kind(Kind::Double))));
        for folder in [&copied, &alone, &wide] {
            assert!(Config::read(folder.path()).unwrap().tie_word_embeddings, "{name}");
            assert_same(name, &answers(&frozen(folder.path(), Kind::Float)), &expected);
        }
        let out = tempfile::tempdir().unwrap();
        let report =
            export::save_model(&whole(copied.path(), Kind::Float), &out.path().join("m"), Kind::Float).unwrap();
        assert!(report.tied && report.verdict == ExportVerdict::Passed, "{name}: {:?}", report.problems);
        assert!(!names(&out.path().join("m")).iter().any(|n| n == HEAD));
    }
}

fn adapter(name: &str) -> PathBuf {
    fixture("adapters").join(name)
}

fn open(base: &Path, adapter: &Path) -> Model {
    ft::models::open(base, &[adapter.to_path_buf()], device(), Kind::Float).unwrap()
}

/// Returns names and number formats of an adapter's tensors, and its target modules.
fn layout(folder: &Path) -> (Vec<(String, Option<Kind>)>, Vec<String>) {
    let file = Weights::open_file(&folder.join(file::TENSORS)).unwrap();
    let names = file.names().map(|n| (n.to_string(), file.kind(n))).collect();
    let Targets::Names(mut targets) = file::read(folder).unwrap().spec.as_lora().unwrap().targets.clone() else {
        panic!("a list of names")
    };
    targets.sort();
    (names, targets)
}

/// An adapted head or embedding in PEFT's layout is written again in the same layout, by `merge --as adapter` and by a
/// run that continues to train it.
#[test]
fn low_rank_updates_of_heads_and_embeddings_are_saved_as_peft_saves_them() {
    let base = fixture("biased-llama");
    let out = tempfile::tempdir().unwrap();
    for name in ["head", "embedding"] {
        let expected = answers(&open(&base, &adapter(name)));
        let one = out.path().join(format!("{name}-one"));
        let report =
            merge::adapters::merge_adapters(&base, &[WeightedAdapter::read(&adapter(name), 1.0).unwrap()], &one)
                .unwrap();
        assert_eq!(report.verdict, ExportVerdict::Passed, "{name}: {:?}", report.problems);
        assert_eq!(layout(&one), layout(&adapter(name)), "{name}");
        assert_close(name, &answers(&open(&base, &one)), &expected, 1e-5);

        let read = file::read(&adapter(name)).unwrap().spec;
        let spec = LoraSpec { from: Some(adapter(name)), ..read.as_lora().unwrap().clone() };
        let spec = AdapterSpec::Lora(spec);
        let plan = spec.plan().unwrap();
        let model = adapted(&base, Kind::Float, &*plan);
        spec.initialise(&mut model.params().adapter(0)).unwrap();
        assert_within(name, &answers(&model), &expected, 1e-6);
        let frozen: Vec<&str> = model.params().adapter(0).filter(|p| !p.trainable()).map(|p| p.name.as_str()).collect();
        assert!(frozen.len() == 1 && frozen[0].ends_with(".base_layer.weight"), "{frozen:?}");
        let again = out.path().join(format!("{name}-again"));
        let report = export::save_adapter(&model, "a", &spec, &base, &again).unwrap();
        assert_eq!(report.verdict, ExportVerdict::Passed, "{name}: {:?}", report.problems);
        assert_eq!(layout(&again), layout(&adapter(name)), "{name}");

        let whole = out.path().join(format!("{name}-merged"));
        let report = merge::adapters::merge_into_model(
            &base,
            &[WeightedAdapter::read(&adapter(name), 1.0).unwrap()],
            &whole,
            None,
            u64::MAX,
        )
        .unwrap();
        assert_eq!(report.verdict, ExportVerdict::Passed, "{name}: {:?}", report.problems);
        assert_close(name, &answers(&frozen_of(&whole)), &expected, 1e-5);
    }
}

fn frozen_of(folder: &Path) -> Model {
    frozen(folder, Kind::Float)
}

/// PEFT copies the `base_layer` of an adapter's file into the model when it loads the adapter. If it differs from the
/// base model's weight, the adapter's is used.
#[test]
fn an_adapters_own_base_layer_replaces_that_of_the_base() {
    let base = fixture("biased-llama");
    for (name, weight) in [("head", HEAD), ("embedding", "model.embed_tokens.weight")] {
        let folder = tempfile::tempdir().unwrap();
        let read = file::read(&adapter(name)).unwrap();
        let module = weight.strip_suffix(".weight").unwrap();
        let mut tensors = read.tensors;
        let key = format!("{module}.base_layer.weight");
        let own = &tensors[&key] + noise_like(&tensors[&key]);
        tensors.insert(key.clone(), own.shallow_clone());
        file::write(folder.path(), &read.spec, "base", tensors.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
        // The expected result: the same weight stored in the base model, and an adapter without `base_layer`.
        let other = with_changed_weights("biased-llama", |t| drop(t.insert(weight.into(), own.shallow_clone())));
        let plain = tempfile::tempdir().unwrap();
        tensors.remove(&key);
        file::write(plain.path(), &read.spec, "base", tensors.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
        let expected = answers(&open(other.path(), plain.path()));
        let model = open(&base, folder.path());
        assert_within(name, &answers(&model), &expected, 1e-6);
        assert_same(name, &model.with_adapter(None, answers), &answers(&frozen_of(&base)));

        let out = tempfile::tempdir().unwrap();
        let part = || [WeightedAdapter::read(folder.path(), 1.0).unwrap()];
        merge::adapters::merge_into_model(&base, &part(), &out.path().join("m"), None, u64::MAX).unwrap();
        assert_close(name, &answers(&frozen_of(&out.path().join("m"))), &expected, 1e-5);
        merge::adapters::merge_adapters(&base, &part(), &out.path().join("a")).unwrap();
        assert_close(name, &answers(&open(&base, &out.path().join("a"))), &expected, 1e-5);
        let two =
            [WeightedAdapter::read(folder.path(), 1.0).unwrap(), WeightedAdapter::read(&adapter(name), 1.0).unwrap()];
        let e = merge::adapters::merge_adapters(&base, &two, &out.path().join("b")).unwrap_err();
        assert!(e.message().contains(module) && !e.hints().is_empty(), "{e}");
    }
}

/// LoRA on token embeddings and on GPT-2's position embeddings gets gradients, is saved and can be merged.
#[test]
fn low_rank_updates_of_embeddings_are_trained_and_merged() {
    for (base, targets) in [("biased-llama", vec!["embed_tokens", "lm_head"]), ("tiny-gpt2", vec!["wpe", "c_attn"])] {
        let base = fixture(base);
        let names = targets.iter().map(|t| t.to_string()).collect();
        let spec = LoraSpec { rank: 3, targets: Targets::Names(names), ..LoraSpec::default() };
        tch::manual_seed(5);
        let model = adapted(&base, Kind::Float, &ModulePlan::new(&spec).unwrap());
        // A new adapter does not change the logits.
        assert_same("begin", &answers(&model), &answers(&frozen_of(&base)));
        fill_adapter(&model, 0.1);
        let row = Row::pack(&[Sequence::random(20, 60, 1)]);
        let mut gradients = Vec::new();
        for replay in [LayerReplay::None, LayerReplay::All] {
            model.learn(&row, row.items, replay).unwrap();
            let of = |p: &ft::nn::Param| (p.name.clone(), p.tensor.grad().copy());
            gradients.push(model.params().trainable().map(of).collect::<BTreeMap<_, _>>());
            model.params().trainable().for_each(|p| drop(p.tensor.grad().zero_()));
        }
        assert_all_close(&gradients[1], &gradients[0], 1e-5);
        let table = gradients[0].iter().find(|(n, _)| n.ends_with("lora_embedding_B")).unwrap();
        assert!(table.1.abs().max().double_value(&[]) > 1e-6, "{}", table.0);
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("a");
        let report = export::save_adapter(&model, "a", &AdapterSpec::Lora(spec), &base, &folder).unwrap();
        assert_eq!(report.verdict, ExportVerdict::Passed, "{:?}", report.problems);
        let beneath: Vec<String> =
            layout(&folder).0.into_iter().map(|(n, _)| n).filter(|n| n.contains("base_layer")).collect();
        let expected: &[&str] = match targets[0] {
            "embed_tokens" => &["lm_head", "model.embed_tokens"],
            _ => &[],
        };
        let expected: Vec<String> =
            expected.iter().map(|m| format!("base_model.model.{m}.base_layer.weight")).collect();
        assert_eq!(beneath, expected, "as PEFT saves it");
        let merged = out.path().join("m");
        let report = merge::adapters::merge_into_model(
            &base,
            &[WeightedAdapter::read(&folder, 1.0).unwrap()],
            &merged,
            None,
            u64::MAX,
        )
        .unwrap();
        assert_eq!(report.verdict, ExportVerdict::Passed, "{:?}", report.problems);
    }
}

/// If embedding and head share a weight, a low-rank update of one does not change the other, as in PEFT. After a merge
/// each has its own weight.
#[test]
fn a_low_rank_update_of_a_shared_weight_changes_one_module_only() {
    for (name, embedding) in TIED {
        let base = fixture(name);
        let modules = [embedding.strip_suffix(".weight").unwrap(), "lm_head"];
        let ends = modules.map(|m| m.rsplit('.').next().unwrap().to_string());
        let both = ends.to_vec();
        for targets in [vec![ends[0].clone()], vec![ends[1].clone()], both] {
            let spec = LoraSpec { rank: 3, targets: Targets::Names(targets.clone()), ..LoraSpec::default() };
            let model = adapted(&base, Kind::Float, &ModulePlan::new(&spec).unwrap());
            fill_adapter(&model, 0.1);
            // The expected result: an untied base model to whose weights the update was added by hand.
            let untied = with_changed_weights(name, |t| {
                let shared = t[embedding].to_kind(Kind::Float);
                t.insert(HEAD.into(), shared.copy());
                let update = |module: &str| {
                    let of = |end: &str| {
                        let name = format!("{module}.{end}");
                        model.params().adapter(0).find(|p| p.name == name).map(|p| p.tensor.detach())
                    };
                    let scale = spec.alpha / spec.rank as f64;
                    let head = of("lora_A.weight").zip(of("lora_B.weight")).map(|(a, b)| b.matmul(&a) * scale);
                    let table = of("lora_embedding_A").zip(of("lora_embedding_B"));
                    head.or(table.map(|(a, b)| b.matmul(&a).tr() * scale))
                };
                for (module, weight) in modules.iter().zip([embedding, HEAD]) {
                    if let Some(update) = update(module) {
                        let _ = t.insert(weight.into(), (&shared + update.to_device(Device::Cpu)).contiguous());
                    }
                }
            });
            tying(untied.path(), false);
            let expected = answers(&frozen_of(untied.path()));
            let what = format!("{name} {targets:?}");
            assert_close(&what, &answers(&model), &expected, 1e-5);
            assert!((&expected - answers(&frozen_of(&base))).abs().max().double_value(&[]) > 1e-3, "{what}");

            let out = tempfile::tempdir().unwrap();
            let saved = out.path().join("a");
            let report = export::save_adapter(&model, "a", &AdapterSpec::Lora(spec.clone()), &base, &saved).unwrap();
            assert_eq!(report.verdict, ExportVerdict::Passed, "{what}: {:?}", report.problems);
            assert_close(&what, &answers(&open(&base, &saved)), &expected, 1e-5);
            let merged = out.path().join("m");
            let part = || [WeightedAdapter::read(&saved, 1.0).unwrap()];
            let report = merge::adapters::merge_into_model(&base, &part(), &merged, None, u64::MAX).unwrap();
            assert_eq!(report.verdict, ExportVerdict::Passed, "{what}: {:?}", report.problems);
            assert_eq!(config(&merged)["tie_word_embeddings"], json!(false), "{what}");
            assert!(names(&merged).contains(&HEAD.to_string()), "{what}");
            assert_close(&what, &answers(&frozen_of(&merged)), &expected, 1e-5);
            let one = out.path().join("one");
            merge::adapters::merge_adapters(&base, &part(), &one).unwrap();
            assert_close(&what, &answers(&open(&base, &one)), &expected, 1e-5);
        }
    }
}

/// A dropout mask of zeros and 1 / 0.9 must not be rounded to bfloat16: every update would be 0.16 % too small.
///
/// libtorch's generator is shared by all tests of this process, so the masks differ from run to run and the bound must
/// hold for any of them. Each draw has a seed of its own: another test may set one seed again and again, and draws after it would share a
/// mask. Inputs and factors are positive: an output then adds up 256 terms of similar size, whose masks
/// change it by sqrt(0.1 / 0.9 / 256) = 2 %, and the mean over 512 rows and 200 draws by 0.006 % (standard deviation).
#[test]
fn dropout_in_bfloat16_keeps_the_mean_of_an_update() {
    let (inputs, outputs, rows) = (256, 64, 512);
    let options = (Kind::Float, device());
    let spec = LoraSpec { rank: 8, alpha: 8.0, dropout: 0.1, ..LoraSpec::default() };
    let weight = Weight::from(Tensor::zeros([outputs, inputs], options).to_kind(Kind::BFloat16));
    let site = AdapterSite {
        name: "model.layers.0.self_attn.q_proj",
        layer: LayerKind::Linear,
        weight: &weight,
        unquantised: None,
        bias: None,
        tied: false,
    };
    let add = &mut |_: &str, t: Tensor, _: ParamRole| (Tensor::rand(t.size(), options) + 0.5).set_requires_grad(true);
    let adapter = ModulePlan::new(&spec).unwrap().attach(&site, add).unwrap().unwrap();
    let x = (Tensor::rand([rows, inputs], options) + 0.5).to_kind(Kind::BFloat16);
    let base = Dense { weight: weight.shallow_clone(), bias: None };
    let _no_grad = tch::no_grad_guard();
    let expected = adapter.forward(&x, &base, false).to_kind(Kind::Double);
    let mut share = 0.0;
    let draws = 200;
    for draw in 0..draws {
        tch::manual_seed(1_000_003 * i64::from(draw) + 17);
        let y = adapter.forward(&x, &base, true).to_kind(Kind::Double);
        share += ((&y * &expected).sum(Kind::Double) / (&expected * &expected).sum(Kind::Double)).double_value(&[]);
    }
    let share = share / f64::from(draws);
    assert!((share - 1.0).abs() < 6e-4, "updates are {share} of what they should be");
}
