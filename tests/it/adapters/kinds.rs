//! Properties of every kind of adapter, over one list of recipes: merged = adapted, decoded = full, packed = one by one,
//! bfloat16 near float32, continued = saved, resumed = uninterrupted, damaged files refused.

use crate::support::resumed::resumed_equals_straight;
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::merging::WeightedAdapter;
use ft::adapters::{AdapterSpec, file};
use ft::convert::verify::report::ExportVerdict;
use ft::convert::{export, merge};
use ft::models::{self, LayerReplay, Model};
use ft::nn::{Tokens, Weights};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// A recipe's adapter section and the models that it is tried on.
fn kinds() -> Vec<(Value, &'static [&'static str])> {
    let all: &[&str] = &["tiny-llama", "biased-llama", "tiny-gpt2", "tiny-qwen3", "tiny-mixtral"];
    let tokens = |first: i64| (first..60).step_by(3).collect::<Vec<_>>(); // enough for every sequence here
    // One has a head of its own, of the other it is the embedding.
    let heads: &[&str] = &["tiny-llama", "biased-llama"];
    let biased: &[&str] = &["biased-llama", "tiny-gpt2", "tiny-qwen2"];
    vec![
        (json!({ "ia3": {} }), all),
        (json!({ "ia3": { "targets": "all-linear", "feedforward": [] } }), all),
        (json!({ "ln_tuning": {} }), all),
        (json!({ "bitfit": {} }), biased),
        (json!({ "vera": { "rank": 8 } }), all),
        (json!({ "vera": { "rank": 5, "save_projection": false, "projection_seed": 11 } }), all),
        (json!({ "loha": { "rank": 2, "alpha": 4 } }), all),
        (json!({ "loha": { "rank": 6, "alpha_pattern": { "mlp.*": 3 } } }), all),
        (json!({ "lokr": { "rank": 2 } }), all),
        (json!({ "lokr": { "rank": 1, "decompose_both": true, "factor": 4 } }), all),
        (json!({ "oft": { "block": 8 } }), all),
        (json!({ "oft": { "block": 5, "neumann_terms": null, "block_share": true } }), all),
        (json!({ "adalora": { "rank": 4, "target_rank": 2 } }), all),
        (json!({ "ia3": { "targets": ["k_proj", "lm_head"] } }), heads),
        (json!({ "vera": { "rank": 6, "targets": ["v_proj", "lm_head"], "save_projection": false } }), heads),
        (json!({ "loha": { "rank": 2, "alpha": 4, "targets": ["q_proj", "lm_head"] } }), heads),
        (json!({ "lokr": { "rank": 2, "targets": ["lm_head"] } }), heads),
        (json!({ "oft": { "block": 8, "targets": ["lm_head", "up_proj"] } }), heads),
        (json!({ "oft": { "block": 8, "targets": ["embed_tokens"] } }), heads),
        (json!({ "oft": { "block": 5, "targets": ["wte", "wpe", "lm_head"], "neumann_terms": null } }), &["tiny-gpt2"]),
        (json!({ "adalora": { "rank": 4, "target_rank": 2, "targets": ["q_proj", "lm_head"] } }), heads),
        (json!({ "trainable_tokens": { "tokens": tokens(1), "head": true } }), all),
        (json!({ "trainable_tokens": { "tokens": tokens(2) } }), &["biased-llama", "tiny-gpt2"]),
    ]
}

/// Runs a test for every recipe and model.
fn every(test: impl Fn(&str, &AdapterSpec, &Path)) {
    let mut ran = 0;
    for (recipe, models) in kinds() {
        let spec: AdapterSpec = serde_json::from_value(recipe.clone()).unwrap();
        for model in models {
            test(&format!("{recipe} on {model}"), &spec, &fixture(model));
            ran += 1;
        }
    }
    assert!(ran >= 40, "only {ran} cases");
}

/// Loads a model with a new adapter and changes every trained parameter, as training would.
fn trained(spec: &AdapterSpec, base: &Path, kind: Kind) -> Model {
    let plan = spec.plan().unwrap();
    let model = adapted(base, kind, &*plan);
    let _no_grad = tch::no_grad_guard();
    for p in model.params().adapter(0).filter(|p| p.trainable()) {
        let drawn = noise(&p.tensor.size(), &p.name).to_device(p.tensor.device()) * 0.2;
        // Random initial values come from a generator that tests on other threads share, and may bring logits that are nearly equal.
        let random = p.tensor.std(false).double_value(&[]) > 0.0;
        p.tensor.shallow_clone().copy_(&if random { drawn } else { &p.tensor + drawn });
    }
    model
}

/// Gives an adapter the parameters of another one.
fn copy_adapter(from: &Model, to: &Model) {
    let _no_grad = tch::no_grad_guard();
    for (from, to) in from.params().adapter(0).zip(to.params().adapter(0)) {
        assert_eq!(from.name, to.name);
        to.tensor.shallow_clone().copy_(&from.tensor);
    }
}

/// Saves the adapter of a model; the export is verified.
fn saved(model: &Model, spec: &AdapterSpec, base: &Path, folder: &Path) -> PathBuf {
    let report = export::save_adapter(model, "a", spec, base, folder).unwrap();
    assert_eq!(report.verdict, ExportVerdict::Passed, "{:?}", report.problems);
    assert!(report.adapter_effect.unwrap().relative > 1e-3, "the adapter does nothing");
    folder.to_path_buf()
}

fn sequence(length: usize, seed: u64) -> Sequence {
    Sequence::random(length, 60, seed)
}

fn logits(model: &Model, sequences: &[Sequence]) -> Tensor {
    let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
    let tokens = Tokens::pack(&ids, device());
    let rows = Tensor::arange(tokens.len() as i64, (Kind::Int64, device()));
    model.infer(&tokens, |out| out.logits(&rows)).unwrap().to_kind(Kind::Float)
}

#[test]
fn a_new_adapter_changes_nothing() {
    every(|what, spec, base| {
        let plan = spec.plan().unwrap();
        let model = adapted(base, Kind::Float, &*plan);
        let row = [sequence(17, 1)];
        assert_close(what, &logits(&model, &row), &model.with_adapter(None, |m| logits(m, &row)), 1e-6);
    });
}

#[test]
fn merged_equals_adapted_and_the_file_is_read_back() {
    every(|what, spec, base| {
        let out = tempfile::tempdir().unwrap();
        let model = trained(spec, base, Kind::Float);
        let folder = saved(&model, spec, base, &out.path().join("adapter"));
        let row = [sequence(21, 2)];
        let opened = models::open(base, std::slice::from_ref(&folder), device(), Kind::Float).unwrap();
        assert_same(what, &logits(&opened, &row), &logits(&model, &row));
        let part = WeightedAdapter::read(&folder, 1.0).unwrap();
        let merged_folder = out.path().join("merged");
        let report = merge::adapters::merge_into_model(base, &[part], &merged_folder, None, u64::MAX).unwrap();
        assert!(report.difference.relative < 1e-5, "{what}: {:?}", report.difference);
        assert_close(what, &logits(&frozen(&merged_folder, Kind::Float), &row), &logits(&model, &row), 2e-5);
        // The result is linear in the adapter's weight where the update is.
        let half = WeightedAdapter::read(&folder, 0.5).unwrap();
        merge::adapters::merge_into_model(base, &[half], &out.path().join("half"), None, u64::MAX).unwrap();
        let read = |f: &Path| Weights::open(f).unwrap().all();
        let (before, after, between) = (read(base), read(&merged_folder), read(&out.path().join("half")));
        // A head that shares the embedding's weight gets one of its own if it changes.
        let table = |name: &&String| name.ends_with("embed_tokens.weight") || name.ends_with("wte.weight");
        let embedding = &before[before.keys().find(table).expect("an embedding")];
        let first = |name: &str| before.get(name).unwrap_or(embedding);
        for (name, t) in &between {
            assert_within(what, t, &((first(name) + &after[name]) / 2.0), 2e-6);
        }
    });
}

#[test]
fn decoded_equals_the_full_forward_and_rows_do_not_depend_on_each_other() {
    every(|what, spec, base| {
        let model = trained(spec, base, Kind::Float);
        let mut sequences: Vec<Sequence> = [7, 12, 4].iter().map(|n| sequence(*n, *n as u64)).collect();
        let decode = |sequences: &[Sequence]| {
            let mut cache = model.cache(sequences.len());
            let starts: Vec<&[u32]> = sequences.iter().map(|s| &s.ids[..s.ids.len() - 1]).collect();
            let last: Vec<&[u32]> = sequences.iter().map(|s| &s.ids[s.ids.len() - 1..]).collect();
            model.extend(&Tokens::pack(&starts, device()), &mut cache, |_| ()).unwrap();
            let run = Tokens::pack_after(&last, &cache.lengths, device());
            model.extend(&run, &mut cache, |out| out.logits(&run.segments.last_rows())).unwrap()
        };
        let full = |s: &Sequence| logits(&model, std::slice::from_ref(s)).narrow(0, s.ids.len() as i64 - 1, 1);
        let together = decode(&sequences);
        for (i, s) in sequences.iter().enumerate() {
            assert_close(what, &together.narrow(0, i as i64, 1), &full(s), 1e-4);
        }
        // One token each, so that attention computes the same whatever is beside it.
        let first: Vec<&[u32]> = sequences.iter().map(|s| &s.ids[..1]).collect();
        let decode_first = |first: &[&[u32]]| {
            let run = Tokens::pack(first, device());
            model.extend(&run, &mut model.cache(first.len()), |out| out.logits(&run.segments.last_rows())).unwrap()
        };
        let together = decode_first(&first);
        for (i, token) in first.iter().enumerate().filter(|_| device() == tch::Device::Cpu) {
            assert_same(what, &together.narrow(0, i as i64, 1), &decode_first(&[token]));
        }
        // Numbers kept for decoding follow the parameters.
        {
            let _no_grad = tch::no_grad_guard();
            model.params().adapter(0).filter(|p| p.trainable()).for_each(|p| {
                let _ = p.tensor.shallow_clone().g_mul_scalar_(0.5);
            });
        }
        sequences.truncate(1);
        assert_close(what, &decode(&sequences), &full(&sequences[0]), 1e-4);
    });
}

/// Loss and gradients of one step, in one packed row or one row for each sequence.
fn step(model: &Model, rows: &[Vec<Sequence>], replay: LayerReplay) -> std::collections::BTreeMap<String, Tensor> {
    let items = rows.iter().flatten().map(Sequence::items).sum();
    rows.iter().for_each(|r| drop(model.learn(&Row::pack(r), items, replay).unwrap()));
    take_gradients(model)
}

#[test]
fn every_parameter_learns_the_same_packed_alone_and_replayed() {
    every(|what, spec, base| {
        let model = trained(spec, base, Kind::Float);
        let all: Vec<Sequence> = [9, 5, 14].iter().map(|n| sequence(*n, *n as u64)).collect();
        let packed = step(&model, std::slice::from_ref(&all), LayerReplay::None);
        assert_eq!(packed.len(), model.params().trainable().count(), "{what}");
        for (name, g) in &packed {
            assert!(g.norm().double_value(&[]) > 0.0, "{what}: {name} has no gradient");
        }
        let alone: Vec<Vec<Sequence>> = all.iter().map(|s| vec![s.clone()]).collect();
        let small = |g: &Tensor| g.abs().max().double_value(&[]) < 1e-6; // a bias of every key does not change a softmax
        let alone = step(&model, &alone, LayerReplay::None);
        for (name, g) in packed.iter().filter(|(_, g)| !small(g)) {
            assert_close(&format!("{what}: {name}"), &alone[name], g, 2e-4);
        }
        for (name, g) in step(&model, std::slice::from_ref(&all), LayerReplay::All) {
            assert_same(&format!("{what}: {name}, replayed"), &g, &packed[&name]);
        }
    });
}

/// The adapters of a tile of rows compute what those of all rows do, and their gradients add up.
#[test]
fn every_parameter_learns_the_same_with_mlps_in_tiles() {
    every(|what, spec, base| {
        let model = trained(spec, base, Kind::Float);
        let rows = [vec![sequence(23, 1), sequence(9, 2), sequence(14, 3)]];
        let whole = step(&model, &rows, LayerReplay::None);
        model.set_mlp_tile(Some(10));
        let tiled = step(&model, &rows, LayerReplay::None);
        assert_all_close(&tiled, &whole, 2e-5);
        let replayed = step(&model, &rows, LayerReplay::All);
        tiled.iter().for_each(|(name, g)| assert_same(&format!("{what}: {name}"), &replayed[name], g));
    });
}

#[test]
fn bfloat16_is_near_float32() {
    // Other tests would draw from the generator that adapters begin with, and few of all values are ill-conditioned.
    alone("adapters::kinds::bfloat16_is_near_float32", || {
        tch::manual_seed(3);
        every(bfloat16_is_near);
    });
}

fn bfloat16_is_near(what: &str, spec: &AdapterSpec, base: &Path) {
    if base.ends_with("tiny-mixtral") {
        return; // a rounded logit may choose another expert
    }
    let row = [sequence(19, 5)];
    let wide = trained(spec, base, Kind::Float);
    let narrow = trained(spec, base, Kind::BFloat16);
    copy_adapter(&wide, &narrow);
    assert!(narrow.params().trainable().all(|p| p.tensor.kind() == Kind::Float), "{what}: masters are float32");
    let gap = Gap::between(&logits(&narrow, &row), &logits(&wide, &row));
    assert!(gap.norm < 0.05 && gap.norm > 1e-5, "{what}: {gap:?}");
    let learn = |m: &Model| step(m, &[vec![row[0].clone()]], LayerReplay::None);
    let (wide, narrow) = (learn(&wide), learn(&narrow));
    let norm = |g: &std::collections::BTreeMap<String, Tensor>| {
        g.values().map(|t| t.norm().double_value(&[]).powi(2)).sum::<f64>().sqrt()
    };
    let off = (norm(&narrow) / norm(&wide) - 1.0).abs();
    assert!(off < 0.1, "{what}: the gradient's norm is {off} off");
}

#[test]
fn training_continues_from_a_saved_adapter() {
    every(|what, spec, base| {
        let out = tempfile::tempdir().unwrap();
        let model = trained(spec, base, Kind::Float);
        let folder = saved(&model, spec, base, &out.path().join("adapter"));
        let mut recipe = serde_json::to_value(spec).unwrap();
        let (_, section) = recipe.as_object_mut().unwrap().iter_mut().next().unwrap();
        section["from"] = json!(folder);
        let again: AdapterSpec = serde_json::from_value(recipe.clone()).unwrap();
        let plan = again.plan().unwrap();
        let continued = adapted(base, Kind::Float, &*plan);
        again.initialise(&mut continued.params().adapter(0)).unwrap();
        let row = [sequence(13, 4)];
        assert_same(what, &logits(&continued, &row), &logits(&model, &row));
    });
}

#[test]
fn damaged_files_are_refused_with_the_name_of_the_tensor() {
    every(|what, spec, base| {
        let out = tempfile::tempdir().unwrap();
        let folder = saved(&trained(spec, base, Kind::Float), spec, base, &out.path().join("adapter"));
        let path = folder.join(file::TENSORS);
        let good = Weights::open_file(&path).unwrap().all();
        let copied: std::collections::BTreeMap<String, Tensor> =
            good.iter().map(|(n, t)| (n.clone(), t.copy())).collect();
        let first = copied.keys().next().unwrap().clone();
        let refused = |change: &dyn Fn(&mut std::collections::BTreeMap<String, Tensor>), named: &str| {
            let mut tensors = copied.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
            change(&mut tensors);
            save_tensors(&path, &tensors);
            let named = named.trim_start_matches("base_model.model.");
            let error = models::open(base, std::slice::from_ref(&folder), device(), Kind::Float).err();
            let error = error.unwrap_or_else(|| panic!("{what}: a damaged {named} was accepted"));
            assert!(error.message().contains(named) && error.exit_code() == 1, "{what}: {error}");
            assert!(!error.hints().is_empty(), "{what}: {error}");
            // Merging reads the same file without a model.
            let part = WeightedAdapter::read(&folder, 1.0).unwrap();
            let merge = merge::adapters::merge_into_model(base, &[part], &out.path().join("merged"), None, u64::MAX);
            let error = merge.err().unwrap_or_else(|| panic!("{what}: a damaged {named} was merged"));
            let module = named.rsplit_once('.').map_or(named, |(module, _)| module);
            assert!(error.message().contains(module.split(".oft_").next().unwrap()), "{what}: {error}");
        };
        let unknown = format!("{}.nonsense", first.rsplit_once('.').unwrap().0);
        refused(&|t| drop(t.insert(unknown.clone(), Tensor::from_slice(&[1f32]))), &unknown);
        // The last tensor of a module, because a module without any would be one that is not adapted.
        let of_module = |name: &String| name.contains(".layers.0.") || name.contains(".h.0.");
        let last = copied.keys().rfind(|name| of_module(name)).or(copied.keys().next_back()).unwrap().clone();
        let wrong = Tensor::zeros([3, 7, 2], (Kind::Float, tch::Device::Cpu));
        refused(&|t| drop(t.insert(last.clone(), wrong.shallow_clone())), &last);
        let one_of_several = spec.tensor_names().len() > 1 && !["ln_tuning", "oft"].contains(&spec.name());
        if one_of_several {
            refused(&|t| drop(t.remove(&last)), &last);
        }
    });
}

#[test]
fn runs_of_every_kind_can_be_resumed_and_are_exported() {
    let runs = [
        "adapter={ia3: {}}",
        "adapter={ln_tuning: {}}",
        "adapter={vera: {rank: 16, dropout: 0.1}}",
        "adapter={loha: {rank: 4}}",
        "adapter={lokr: {rank: 2}}",
        "adapter={oft: {block: 8}}",
        "adapter={trainable_tokens: {tokens: [5, '<|im_end|>']}}",
        "adapter={adalora: {rank: 4, target_rank: 2, initial_steps: 2, final_steps: 2, every: 2, dropout: 0.1}}",
    ];
    let mut last = None;
    for adapter in runs {
        let space = Workspace::new();
        resumed_equals_straight(&space, "recipes/lora-medical.yaml", &[adapter, "run.result=last"]);
        assert_eq!(space.json("straight/export_report.json")["verdict"], "passed", "{adapter}");
        last = Some(space);
    }
    let space = last.unwrap();
    // The last one is AdaLoRA: half of the parts are left, and the term of the loss is recorded.
    let tensors = Weights::open_file(&space.path("straight/adapter_model.safetensors")).unwrap();
    let ranks = tensors.names().filter(|n| n.ends_with("lora_E")).map(|n| tensors.shape(n).unwrap()[0]);
    let ranks: Vec<i64> = ranks.collect();
    assert_eq!((ranks.iter().sum::<i64>(), ranks.len()), (42, 21), "{ranks:?}");
    assert!(ranks.iter().any(|r| *r != ranks[0]), "every module has the same rank: {ranks:?}");
    let steps = space.steps("straight");
    let first = steps.iter().find(|line| line["step"] == 1).unwrap();
    assert!(first["orthogonality"].as_f64().is_some_and(|x| x > 0.0), "{first}");
}

#[test]
fn settings_that_cannot_be_followed_are_refused() {
    let refused = |recipe: Value, base: &str, part: &str| {
        let spec: AdapterSpec = serde_json::from_value(recipe.clone()).unwrap();
        let loaded = spec.plan().and_then(|plan| Model::load(&fixture(base), models_options(&*plan)));
        let error = loaded.err().unwrap_or_else(|| panic!("{recipe} was accepted"));
        let shown = error.to_string();
        assert!(shown.contains(part) && !error.hints().is_empty(), "{recipe}: {shown}");
    };
    refused(json!({ "bitfit": {} }), "tiny-llama", "adapter.bitfit: the model has no biases");
    refused(json!({ "bitfit": { "targets": ["q_proj"] } }), "tiny-llama", "has no bias to train");
    refused(json!({ "ia3": { "targets": ["embed_tokens"] } }), "tiny-llama", "IA3 adapts linear layers only");
    refused(json!({ "ln_tuning": { "targets": ["q_proj"] } }), "tiny-llama", "trains norms only");
    refused(json!({ "vera": { "targets": ["embed_tokens"] } }), "biased-llama", "VeRA adapts linear layers only");
    refused(json!({ "bitfit": { "targets": ["lm_head"] } }), "biased-llama", "has no bias to train");
    refused(json!({ "lokr": { "targets": ["no_such"] } }), "tiny-llama", "`no_such`");
    refused(json!({ "loha": { "rank_pattern": { "(": 3 } } }), "tiny-llama", "adapter.loha.rank_pattern");
    refused(json!({ "ia3": { "feedforward": "(" } }), "tiny-llama", "adapter.ia3.feedforward");
    refused(json!({ "adalora": { "rank": 4, "target_rank": 5 } }), "tiny-llama", "target_rank 5 is above rank 4");
    refused(json!({ "adalora": { "betas": [0.9, 1.0] } }), "tiny-llama", "adapter.adalora.betas");
}

fn models_options(plan: &dyn ft::nn::AdapterPlan) -> ft::models::LoadOptions<'_> {
    ft::models::LoadOptions {
        device: device(),
        kind: Kind::Float,
        storage: ft::models::Storage::Auto,
        train_base: None,
        adapters: vec![("a".to_string(), plan)],
        vocabulary: None,
        heads: ft::models::Heads::Tokens,
    }
}
