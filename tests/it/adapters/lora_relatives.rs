//! Tests LoRA's relatives (DoRA, other initial values, a bias behind B, frozen A, token rows): against PEFT's files, and
//! by properties that hold for each of them.

use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::merge::{MergedWeights, WeightedAdapter};
use ft::adapters::{AdapterKind, AdapterSpec, LoraInit, LoraSpec, Targets, TokenName, file};
use ft::convert::verify::report::ExportVerdict;
use ft::convert::{export, merged};
use ft::models::{LayerReplay, Model, open};
use ft::nn::{Tokens, Weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const INPUT: [u32; 8] = [1, 17, 40, 3, 22, 59, 5, 9];

/// The fixtures of lora_relatives.py and their bases.
const PEFTS: [(&str, &str); 9] = [
    ("dora", "tiny-llama"),
    ("dora-biased", "biased-llama"),
    ("dora-gpt2", "tiny-gpt2"),
    ("dora-embedding", "biased-llama"),
    ("lora-bias", "biased-llama"),
    ("token-rows", "biased-llama"),
    ("token-rows-tied", "tiny-llama"),
    ("token-rows-head", "biased-llama"),
    ("tied-saved", "tiny-qwen2"),
];

fn logits(model: &Model, ids: &[u32]) -> Tensor {
    let rows = Tensor::arange(ids.len() as i64, (Kind::Int64, device()));
    model.infer(&Tokens::pack(&[ids], device()), |out| out.logits(&rows)).unwrap()
}

fn names(list: &[&str]) -> Targets {
    Targets::Names(list.iter().map(|name| name.to_string()).collect())
}

fn tokens(ids: &[i64]) -> Vec<TokenName> {
    ids.iter().map(|id| TokenName::Id(*id)).collect()
}

/// A setting of LoRA with the base to try it on.
struct Relative {
    name: &'static str,
    base: &'static str,
    spec: LoraSpec,
}

/// The relatives that every property below holds for.
fn relatives() -> Vec<Relative> {
    let plain = || LoraSpec { rank: 4, alpha: 6.0, ..LoraSpec::default() };
    let of = |name, base, spec| Relative { name, base, spec };
    let few = || names(&["q_proj", "v_proj", "down_proj"]);
    vec![
        of("dora", "tiny-llama", LoraSpec { dora: true, ..plain() }),
        of(
            "dora, biases and a head",
            "biased-llama",
            LoraSpec {
                dora: true,
                rslora: true,
                targets: names(&["k_proj", "up_proj", "o_proj", "lm_head"]),
                ..plain()
            },
        ),
        of("dora, gpt2", "tiny-gpt2", LoraSpec { dora: true, ..plain() }),
        of("dora, embedding", "biased-llama", LoraSpec { dora: true, targets: names(&["embed_tokens"]), ..plain() }),
        of("pissa", "tiny-llama", LoraSpec { init: LoraInit::Pissa, ..plain() }),
        of("pissa, gpt2", "tiny-gpt2", LoraSpec { init: LoraInit::Pissa, rslora: true, ..plain() }),
        of("fast pissa", "biased-llama", LoraSpec { init: LoraInit::PissaFast, targets: few(), ..plain() }),
        of("olora", "biased-llama", LoraSpec { init: LoraInit::Olora, rslora: true, ..plain() }),
        of("pissa with dora", "tiny-qwen3", LoraSpec { init: LoraInit::Pissa, dora: true, ..plain() }),
        of("orthogonal", "tiny-qwen2", LoraSpec { init: LoraInit::Orthogonal, ..plain() }),
        of("a bias behind B", "biased-llama", LoraSpec { bias: true, targets: few(), ..plain() }),
        of("a bias behind B, gpt2", "tiny-gpt2", LoraSpec { bias: true, ..plain() }),
        of("frozen A", "tiny-llama", LoraSpec { freeze_a: true, ..plain() }),
        of("token rows", "biased-llama", LoraSpec { token_rows: tokens(&[59, 5, 9]), targets: few(), ..plain() }),
        of("token rows, tied", "tiny-llama", LoraSpec { token_rows: tokens(&[22, 3]), dora: true, ..plain() }),
        of(
            "token rows of both",
            "biased-llama",
            LoraSpec { token_rows: tokens(&[59, 9]), head_rows: tokens(&[9, 5]), targets: few(), ..plain() },
        ),
        of(
            "tied, adapted",
            "tiny-qwen2",
            LoraSpec { tie: true, dropout: 0.0, targets: names(&["q_proj", "embed_tokens"]), ..plain() },
        ),
        of(
            "tied, saved",
            "tiny-llama",
            LoraSpec { tie: true, modules_to_save: vec!["lm_head".into()], targets: few(), ..plain() },
        ),
        of("token rows, gpt2", "tiny-gpt2", LoraSpec { token_rows: tokens(&[22, 3]), ..plain() }),
    ]
}

/// Loads the base with a new adapter.
fn fresh(relative: &Relative, kind: Kind) -> Model {
    tch::manual_seed(11);
    let plan = AdapterSpec::Lora(relative.spec.clone()).plan().unwrap();
    adapted(&fixture(relative.base), kind, &*plan)
}

/// Changes every trained tensor, as after some training.
fn disturb(model: &Model) {
    let _no_grad = tch::no_grad_guard();
    for p in model.params().trainable() {
        let noise = noise(&p.tensor.size(), &p.name).to_device(p.tensor.device());
        let size = if p.name.ends_with("lora_magnitude_vector") { &p.tensor * 0.1 } else { p.tensor.ones_like() * 0.1 };
        let _ = p.tensor.shallow_clone().g_add_(&(noise * size));
    }
}

fn trained(relative: &Relative, kind: Kind) -> Model {
    let model = fresh(relative, kind);
    disturb(&model);
    model
}

#[test]
fn pefts_files_give_its_logits_and_merged_weights() {
    for (name, base) in PEFTS {
        let folder = fixture(format!("lora-relatives/{name}/initial"));
        let values = tensors(format!("lora-relatives/{name}/values.safetensors"));
        let model = open(&fixture(base), &[folder.clone()], device(), Kind::Float).unwrap();
        let found = logits(&model, &INPUT);
        assert_close(name, &found, &values["logits"], 1e-5);
        let effect = (&found - model.with_adapter(None, |m| logits(m, &INPUT))).abs().max().double_value(&[]);
        assert!(effect > 0.05, "{name}: the adapter changes logits by {effect} only");
        let weights = ft::models::weights(&fixture(base), model.config()).unwrap();
        let part = WeightedAdapter::read(&folder, 1.0).unwrap();
        let merge = MergedWeights::new(&weights, &[], std::slice::from_ref(&part)).unwrap();
        let expected: Vec<(&str, &Tensor)> =
            values.iter().filter_map(|(key, t)| Some((key.strip_prefix("merged/")?, t))).collect();
        assert!(!expected.is_empty(), "{name}: nothing to compare");
        for (key, t) in expected {
            // A tied head is listed by its own name too.
            let stored = if weights.shape(key).is_some() { key } else { "model.embed_tokens.weight" };
            assert_within(&format!("{name}: {key}"), &every(4, &merge.tensor(stored).unwrap()), t, 2e-6);
        }
    }
}

#[test]
fn pefts_files_are_rewritten_unchanged() {
    for (name, _) in PEFTS {
        let folder = fixture(format!("lora-relatives/{name}/initial"));
        let read = file::read(&folder).unwrap();
        let again = tempfile::tempdir().unwrap();
        let named = read.tensors.iter().map(|(name, t)| (name.as_str(), t));
        file::write(again.path(), &read.spec, read.base.as_deref().unwrap(), named).unwrap();
        let of = |folder: &Path| Weights::open_file(&folder.join(file::TENSORS)).unwrap().all();
        let (before, after) = (of(&folder), of(again.path()));
        assert!(before.keys().eq(after.keys()), "{name}");
        before.iter().for_each(|(key, t)| assert_same(&format!("{name}: {key}"), &after[key], t));
        let config = |folder: &Path| ft::fsutil::read_json::<Value>(&folder.join(file::CONFIG)).unwrap();
        let (before, after) = (config(&folder), config(again.path()));
        for key in
            ["use_dora", "lora_bias", "trainable_token_indices", "use_rslora", "init_lora_weights", "fan_in_fan_out"]
        {
            let off = |v: &Value| if v.is_null() { json!(false) } else { v.clone() };
            assert_eq!(off(&before[key]), off(&after[key]), "{name}: {key}");
        }
    }
}

/// A new adapter leaves the output as it is: bit for bit where its update is an exact zero.
#[test]
fn a_new_adapter_changes_nothing() {
    for relative in relatives() {
        let model = fresh(&relative, Kind::Float);
        let (with, without) = (logits(&model, &INPUT), model.with_adapter(None, |m| logits(m, &INPUT)));
        assert_close(relative.name, &with, &without, 2e-6);
        assert!(model.params().trainable().next().is_some());
    }
}

/// The published file gives the output of the trained model, and so do the merged weights, where they exist.
#[test]
fn saved_and_merged_equal_adapted() {
    for relative in relatives() {
        let Relative { name, base, spec } = &relative;
        let (base, out) = (fixture(base), tempfile::tempdir().unwrap());
        let model = trained(&relative, Kind::Float);
        let expected = logits(&model, &INPUT);
        let folder = out.path().join("adapter");
        let report = export::save_adapter(&model, "a", &AdapterSpec::Lora(spec.clone()), &base, &folder).unwrap();
        assert_eq!(report.verdict, ExportVerdict::Passed, "{name}: {:?}", report.problems);
        assert!(report.adapter_effect.unwrap().max_abs > 0.01, "{name}: the adapter has no effect");
        let read = open(&base, &[folder.clone()], device(), Kind::Float).unwrap();
        assert_close(&format!("{name}: read back"), &logits(&read, &INPUT), &expected, 1e-5);
        let part = WeightedAdapter::read(&folder, 1.0).unwrap();
        let merged_folder = out.path().join("merged");
        merged::merge_into_model(&base, &[part], &merged_folder, None, u64::MAX).unwrap();
        let merged = frozen(&merged_folder, Kind::Float);
        assert_close(&format!("{name}: merged"), &logits(&merged, &INPUT), &expected, 1e-5);
    }
}

/// Takes the place of a LoRA of twice the rank in any program.
#[test]
fn initial_values_from_the_base_are_published_as_plain_lora() {
    for relative in relatives().into_iter().filter(|r| r.spec.init.takes_from_base()) {
        let Relative { name, base, spec } = &relative;
        let model = trained(&relative, Kind::Float);
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("adapter");
        export::save_adapter(&model, "a", &AdapterSpec::Lora(spec.clone()), &fixture(base), &folder).unwrap();
        let config: Value = ft::fsutil::read_json(&folder.join(file::CONFIG)).unwrap();
        let alpha = spec.alpha * if spec.rslora { 2f64.sqrt() } else { 2.0 };
        assert_eq!((&config["r"], &config["init_lora_weights"]), (&json!(8), &json!(true)), "{name}");
        assert!((config["lora_alpha"].as_f64().unwrap() - alpha).abs() < 1e-9, "{name}");
        let tensors = file::read(&folder).unwrap().tensors;
        assert!(!tensors.is_empty() && tensors.keys().all(|key| !key.contains("start")), "{name}");
    }
}

/// B A is the principal part of the weight: what is left has the other singular values.
#[test]
fn pissa_takes_the_largest_singular_values_and_olora_the_first_rows() {
    let of = |init: LoraInit| {
        let spec = LoraSpec { rank: 4, alpha: 6.0, init, targets: names(&["v_proj"]), ..LoraSpec::default() };
        let model = fresh(&Relative { name: "", base: "tiny-llama", spec }, Kind::Float);
        let get = |name: &str| model.params().iter().find(|p| p.name.ends_with(name)).unwrap().tensor.detach();
        let layer = "layers.1.self_attn.v_proj";
        let [a, b] = ["lora_A", "lora_B"].map(|f| get(&format!("{layer}.{f}.weight")));
        (get(&format!("{layer}.weight")), a, b)
    };
    for init in [LoraInit::Pissa, LoraInit::PissaFast] {
        let (weight, a, b) = of(init);
        let values = |t: &Tensor| t.svd(true, false).1;
        let rest = &weight - b.matmul(&a) * 1.5;
        let count = values(&weight).size()[0] - 4;
        // The fast decomposition is approximate.
        let allowed = if init == LoraInit::Pissa { 1e-5 } else { 1e-3 };
        let (left, wanted) = (values(&rest).narrow(0, 0, count), values(&weight).narrow(0, 4, count));
        assert_close(&format!("{init:?}"), &left, &wanted, allowed);
        // Both factors have the same share of each value.
        let norms = |t: &Tensor, dim: i64| t.norm_scalaropt_dim(2.0, [dim].as_slice(), false);
        assert_close(&format!("{init:?}: norms"), &norms(&a, 1), &norms(&b, 0), allowed);
    }
    let (weight, a, b) = of(LoraInit::Olora);
    let (q, r) = Tensor::linalg_qr(&weight, "reduced");
    assert_close("R", &a, &r.narrow(0, 0, 4), 1e-6);
    assert_close("Q", &b, &q.narrow(1, 0, 4), 1e-6);
}

/// Decoding with a cache gives the logits of full passes, whatever else is in the batch, also after the parameters have
/// changed.
#[test]
fn decoded_equals_full() {
    for relative in relatives() {
        let model = trained(&relative, Kind::Float);
        let last = |sequences: &[Vec<u32>]| {
            let tokens = Tokens::pack(sequences, device());
            model.infer(&tokens, |out| out.logits(&tokens.segments.last_rows())).unwrap()
        };
        let decode = |sequences: &[Vec<u32>]| {
            let heads: Vec<&[u32]> = sequences.iter().map(|s| &s[..s.len() - 3]).collect();
            let (mut cache, mut run) = (model.cache(sequences.len()), Tokens::pack(&heads, device()));
            let mut found = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
            for back in (1..=3).rev() {
                let next: Vec<&[u32]> = sequences.iter().map(|s| &s[s.len() - back..][..1]).collect();
                run = Tokens::pack_after(&next, &cache.lengths, device());
                found = model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap();
            }
            found
        };
        let sequences: Vec<Vec<u32>> =
            [7, 12].iter().map(|n| (0..*n).map(|t| (t * 7 + n) % 60 + 1).collect()).collect();
        for round in 0..2 {
            let (found, expected) = tch::no_grad(|| (decode(&sequences), last(&sequences)));
            assert_close(&format!("{}, round {round}", relative.name), &found, &expected, 2e-5);
            let alone = |rows: &Tensor| rows.narrow(0, 1, 1).equal(&tch::no_grad(|| decode(&sequences[1..])));
            // Not every base's decoding has the same bits for a row alone: gpt2's has not, and neither has a GPU's.
            let of_base = model.with_adapter(None, |_| alone(&tch::no_grad(|| decode(&sequences))));
            assert!(alone(&found) || !of_base, "{}: a row depends on the others", relative.name);
            assert!(of_base || relative.base == "tiny-gpt2" || device().is_cuda(), "{}: the base", relative.name);
            disturb(&model);
        }
    }
}

/// Recomputed layers and packed rows give the gradients of plain ones; the gradient that the base's rows would get from a
/// norm is left out on purpose, so that finite differences cannot be compared.
#[test]
fn replayed_and_split_batches_give_the_same_gradients() {
    for relative in relatives() {
        let model = trained(&relative, Kind::Float);
        let sequences: Vec<Sequence> = [9, 4, 13].iter().map(|n| Sequence::random(*n, 60, 3)).collect();
        let items: f64 = sequences.iter().map(Sequence::items).sum();
        let learn = |rows: Vec<Row>, replay: LayerReplay| {
            rows.iter().for_each(|row| drop(model.learn(row, items, replay).unwrap()));
            take_gradients(&model)
        };
        let whole = learn(vec![Row::pack(&sequences)], LayerReplay::None);
        let replayed = learn(vec![Row::pack(&sequences)], LayerReplay::All);
        let single = learn(sequences.iter().map(|s| Row::pack(std::slice::from_ref(s))).collect(), LayerReplay::None);
        let size = |t: &Tensor| t.abs().max().double_value(&[]);
        for (key, g) in &whole {
            let what = format!("{}: {key}", relative.name);
            assert!(size(g) > 0.0, "{what}: no gradient");
            assert!(g.equal(&replayed[key]), "{what}: replayed");
            // The gradient of a bias on every key is rounding alone.
            if !key.ends_with("k_proj.lora_B.bias") {
                assert_close(&what, &single[key], g, 2e-4);
            }
        }
    }
}

/// A bf16 run is near the float32 run, and not equal to it.
#[test]
fn bf16_stays_near_float32() {
    for relative in relatives() {
        let model = trained(&relative, Kind::Float);
        let half = fresh(&relative, Kind::BFloat16);
        let values: BTreeMap<&str, &Tensor> = model.params().state().map(|p| (p.name.as_str(), &p.tensor)).collect();
        for p in half.params().state() {
            assert_eq!(p.tensor.kind(), Kind::Float, "{}: masters are float32", p.name);
            tch::no_grad(|| p.tensor.shallow_clone().copy_(values[p.name.as_str()]));
        }
        let (wide, narrow) = (logits(&model, &INPUT), logits(&half, &INPUT).to_kind(Kind::Float));
        let gap = Gap::between(&narrow, &wide);
        // bfloat16 rounds every product by up to 2^-9; the layers amplify it.
        assert!(gap.norm > 1e-4 && gap.norm < 0.05, "{}: {gap:?}", relative.name);
    }
}

/// Computes DoRA by its formula, dropout included.
#[test]
fn dropout_reaches_dora_as_in_peft() {
    alone("adapters::lora_relatives::dropout_reaches_dora_as_in_peft", || {
        use ft::nn::{AdapterSite, Dense, LayerKind, ParamRole};
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (weight, bias, x) = (random(&[5, 7]), random(&[5]), random(&[40, 7]).set_requires_grad(true));
        let spec = LoraSpec { rank: 2, alpha: 3.0, dropout: 0.4, dora: true, ..LoraSpec::default() };
        let plan = AdapterSpec::Lora(spec).plan().unwrap();
        let (held, mut leaves) = (weight.shallow_clone().into(), BTreeMap::new());
        let site =
            AdapterSite { name: "up_proj", layer: LayerKind::Linear, weight: &held, bias: Some(&bias), tied: false };
        let add = &mut |name: &str, t: Tensor, _: ParamRole| {
            let t = (&t + noise(&t.size(), name) * 0.3).detach().set_requires_grad(true);
            leaves.insert(name.to_string(), t.shallow_clone());
            t
        };
        let adapter = plan.attach(&site, add).unwrap().unwrap();
        let base = Dense { weight: weight.shallow_clone().into(), bias: Some(bias.shallow_clone()) };
        let [a, b, m] =
            ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"].map(|name| leaves[name].shallow_clone());
        let learn = |y: Tensor| {
            (&y * (&y + 1.0)).sum(Kind::Float).backward();
            let take = |t: &Tensor| {
                let g = t.grad().copy();
                t.shallow_clone().zero_grad();
                g
            };
            [y.detach(), take(&x), take(&a), take(&b), take(&m)]
        };
        tch::manual_seed(3);
        let found = learn(adapter.forward(&x, &base, true));
        tch::manual_seed(3);
        let dropped = &x * Tensor::empty_like(&x).bernoulli_float_(0.6) / 0.6;
        let norm = tch::no_grad(|| (&weight + b.matmul(&a) * 1.5).norm_scalaropt_dim(2.0, [1i64].as_slice(), false));
        let (scale, low) = (&m / norm, dropped.matmul(&a.tr()).matmul(&b.tr()) * 1.5);
        let change = (&scale - 1.0) * dropped.matmul(&weight.tr()) + &scale * low;
        let expected = learn(x.linear(&weight, Some(&bias)) + change);
        for (what, (found, expected)) in ["y", "x", "A", "B", "m"].iter().zip(found.iter().zip(&expected)) {
            assert_close(what, found, expected, 1e-5);
        }
        assert!(adapter.joint_form(true).is_none() && adapter.joint_form(false).is_some());
    });
}

/// With a frozen A only B has a gradient, optimiser state and a place among the trained tensors; the file has both.
#[test]
fn a_frozen_a_is_saved_and_not_trained() {
    let spec = LoraSpec { freeze_a: true, ..LoraSpec::default() };
    let model = fresh(&Relative { name: "", base: "tiny-llama", spec: spec.clone() }, Kind::Float);
    assert!(model.params().trainable().count() > 0 && model.params().trainable().all(|p| p.name.contains("lora_B")));
    assert_eq!(model.params().adapter(0).count(), 2 * model.params().trainable().count());
    // The gradient of B is that beside a trained A.
    let both =
        fresh(&Relative { name: "", base: "tiny-llama", spec: LoraSpec { freeze_a: false, ..spec } }, Kind::Float);
    let values: BTreeMap<&str, &Tensor> = model.params().adapter(0).map(|p| (p.name.as_str(), &p.tensor)).collect();
    both.params().adapter(0).for_each(|p| tch::no_grad(|| p.tensor.shallow_clone().copy_(values[p.name.as_str()])));
    let row = Row::pack(&[Sequence::random(20, 500, 1)]);
    let gradients = [&model, &both].map(|m| {
        m.learn(&row, row.items, LayerReplay::None).unwrap();
        take_gradients(m)
    });
    for (name, g) in &gradients[0] {
        assert_same(name, g, &gradients[1][name]);
    }
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let (base, source) = (fixture("tiny-llama"), fixture("lora-relatives/dora/initial"));
    let out = tempfile::tempdir().unwrap();
    let read = file::read(&source).unwrap();
    let dora = "model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    let write = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), spec: &AdapterSpec| -> PathBuf {
        let mut tensors: BTreeMap<String, Tensor> =
            read.tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        change(&mut tensors);
        file::write(out.path(), spec, "base", tensors.iter().map(|(name, t)| (name.as_str(), t))).unwrap();
        out.path().to_path_buf()
    };
    let as_lora = |change: fn(&mut LoraSpec)| {
        let mut spec = read.spec.as_lora().unwrap().clone();
        change(&mut spec);
        AdapterSpec::Lora(spec)
    };
    let cases: [(&dyn Fn(&mut BTreeMap<String, Tensor>), AdapterSpec, &str); 5] = [
        (&|t| drop(t.remove(dora)), read.spec.clone(), dora),
        (&|t| drop(t.insert(dora.into(), Tensor::ones([3], (Kind::Float, Device::Cpu)))), read.spec.clone(), "q_proj"),
        (&|_| (), as_lora(|spec| spec.dora = false), "lora_magnitude_vector"),
        (&|_| (), as_lora(|spec| spec.rank = 5), "_proj"),
        (
            &|t| drop(t.insert("model.embed_tokens.token_adapter.trainable_tokens_delta".into(), t[dora].ones_like())),
            read.spec.clone(),
            "trainable_tokens_delta",
        ),
    ];
    for (change, spec, named) in cases {
        let folder = write(change, &spec);
        let opened = open(&base, &[folder.clone()], Device::Cpu, Kind::Float).err().unwrap();
        let weights = Weights::open(&base).unwrap();
        let part = WeightedAdapter::read(&folder, 1.0).unwrap();
        let merging = MergedWeights::new(&weights, &[], std::slice::from_ref(&part)).err().unwrap();
        for e in [opened, merging] {
            assert!(e.message().contains(named) && !e.hints().is_empty() && e.exit_code() == 1, "{named}: {e}");
        }
    }
}

#[test]
fn settings_that_layers_cannot_have_are_refused() {
    let refused = |base: &str, spec: LoraSpec| {
        let plan = AdapterSpec::Lora(spec).plan().unwrap();
        let load = ft::models::LoadOptions {
            device: Device::Cpu,
            kind: Kind::Float,
            storage: ft::models::Storage::Auto,
            train_base: None,
            adapters: vec![("a".into(), &*plan)],
            vocabulary: None,
            heads: ft::models::Heads::Tokens,
        };
        Model::load(&fixture(base), load).err().expect("it was accepted")
    };
    let plain = || LoraSpec { rank: 4, ..LoraSpec::default() };
    let cases = [
        ("tiny-llama", LoraSpec { token_rows: tokens(&[512]), ..plain() }, "512"),
        ("tiny-llama", LoraSpec { token_rows: tokens(&[-1]), ..plain() }, "-1"),
        ("tiny-llama", LoraSpec { token_rows: tokens(&[4, 7, 4]), ..plain() }, "token 4 is trained twice"),
        (
            "tiny-llama",
            LoraSpec { token_rows: tokens(&[4]), targets: names(&["embed_tokens"]), ..plain() },
            "embed_tokens",
        ),
        ("tiny-llama", LoraSpec { token_rows: tokens(&[4]), targets: names(&["lm_head"]), ..plain() }, "lm_head"),
        (
            "biased-llama",
            LoraSpec { token_rows: tokens(&[4]), modules_to_save: vec!["embed_tokens".into()], ..plain() },
            "token_rows",
        ),
        (
            "biased-llama",
            LoraSpec { head_rows: tokens(&[4]), modules_to_save: vec!["lm_head".into()], ..plain() },
            "output head is trained in full",
        ),
        ("tiny-llama", LoraSpec { head_rows: tokens(&[4]), ..plain() }, "share one weight"),
        ("biased-llama", LoraSpec { tie: true, ..plain() }, "weights of their own"),
        ("tiny-llama", LoraSpec { tie: true, ..plain() }, "neither embedding nor output head"),
        (
            "tiny-llama",
            LoraSpec { tie: true, dora: true, targets: names(&["embed_tokens"]), ..plain() },
            "cannot be tied",
        ),
        ("tiny-llama", LoraSpec { init: LoraInit::Pissa, rank: 40, ..plain() }, "rank 40"),
        ("tiny-llama", LoraSpec { init: LoraInit::Orthogonal, rank: 3, ..plain() }, "even rank"),
        ("tiny-llama", LoraSpec { bias: true, targets: names(&["embed_tokens"]), ..plain() }, "`bias`"),
        ("tiny-llama", LoraSpec { dora: true, targets: names(&["norm"]), ..plain() }, "norm"),
    ];
    for (base, spec, named) in cases {
        let e = refused(base, spec);
        assert!(e.message().contains(named) && !e.hints().is_empty() && e.exit_code() == 1, "{named}: {e}");
    }
}

/// A bias behind B has no place in a model whose layers have none: merging says so, and the adapter works unmerged.
#[test]
fn a_bias_behind_b_is_merged_only_where_the_layer_has_a_bias() {
    let spec = LoraSpec { rank: 2, bias: true, targets: names(&["q_proj"]), ..LoraSpec::default() };
    let relative = Relative { name: "", base: "tiny-llama", spec };
    let model = trained(&relative, Kind::Float);
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("adapter");
    let report = export::save_adapter(&model, "a", &AdapterSpec::Lora(relative.spec), &fixture("tiny-llama"), &folder);
    assert_eq!(report.unwrap().verdict, ExportVerdict::Passed);
    let part = WeightedAdapter::read(&folder, 1.0).unwrap();
    let e =
        merged::merge_into_model(&fixture("tiny-llama"), &[part], &out.path().join("m"), None, u64::MAX).unwrap_err();
    assert!(e.message().contains("q_proj.bias") && e.to_string().contains("without merging"), "{e}");
}

/// The directions of EVA are orthonormal, depend on the rows, and are the same when the run is repeated.
#[test]
fn eva_starts_with_directions_of_the_runs_own_rows() {
    let space = Workspace::new();
    let run = |out: &str, data: &str| {
        let (out, data) = (format!("run.out={out}"), format!("data.train.path={data}"));
        let sets = [
            &out,
            &data,
            "adapter.lora={init: eva, rank: 6, freeze_a: true, targets: [q_proj, down_proj]}",
            "run.steps=1",
        ];
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        space.ft(&["train", "recipes/lora-medical.yaml"].into_iter().chain(sets).collect::<Vec<_>>());
    };
    let get = |out: &str| {
        let file = Weights::open_file(&space.path(out).join(file::TENSORS)).unwrap();
        file.get("base_model.model.model.layers.1.mlp.down_proj.lora_A.weight").unwrap()
    };
    run("one", "datasets/icd10/train.jsonl");
    run("two", "datasets/icd10/train.jsonl");
    run("other", "datasets/icd10/taught.jsonl");
    let a = get("one");
    assert_close("A Aᵀ", &a.matmul(&a.tr()), &Tensor::eye(6, (Kind::Float, Device::Cpu)), 1e-4);
    assert_same("repeated", &get("two"), &a);
    assert!(Gap::between(&get("other"), &a).norm > 1e-2);
}

#[test]
fn a_kind_describes_its_relatives() {
    let dora = LoraSpec { dora: true, ..LoraSpec::default() };
    assert_eq!((dora.describe().as_str(), dora.title()), ("dora r16", "DoRA"));
    assert!(dora.activations().scaled_outputs && !LoraSpec::default().activations().scaled_outputs);
    assert!(!dora.is_gradient_exact() && LoraSpec::default().is_gradient_exact());
    let pissa = LoraSpec { init: LoraInit::Pissa, ..LoraSpec::default() };
    assert_eq!(pissa.activations().rank, 32);
}
