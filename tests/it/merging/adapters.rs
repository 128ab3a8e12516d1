//! `ft adapter info`, `diff`, `resize` and `extract`.

use crate::support::command::{ft_here, stderr, stdout};
use crate::support::*;
use ft::adapters::file;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::adapter::diff::diff;
use ft::convert::adapter::extract::{OtherChanges, extract};
use ft::convert::adapter::info::info;
use ft::convert::adapter::resize::resize;
use ft::convert::merge;
use ft::merging::Truncation;
use ft::nn::Weights;
use serde_json::Value;
use std::path::Path;
use tch::Kind;

fn adapter(name: &str) -> std::path::PathBuf {
    fixture(format!("merging/{name}"))
}

#[test]
fn an_adapter_is_described_without_a_model() {
    let found = info(&adapter("two"), None).unwrap();
    assert_eq!((found.kind.as_str(), found.weights.len(), found.layers.len()), ("LoRA", 9, 3));
    let merge = Weights::open(&fixture("biased-llama")).unwrap();
    let parts = [WeightedAdapter::read(&adapter("two"), 1.0).unwrap()];
    let merge = ft::adapters::merging::MergedWeights::new(&merge, &[], &parts).unwrap();
    for w in &found.weights {
        let dense = merge.deltas(&w.name).unwrap()[0].delta.dense();
        assert_number(&w.name, w.norm.unwrap(), dense.norm().double_value(&[]), 1e-5);
        assert!(w.rank == Some(4) && (1.0..=4.0).contains(&w.effective_rank.unwrap()));
    }
    let reads: Vec<(&str, Option<bool>)> = found.compatibility.iter().map(|c| (c.consumer, c.reads)).collect();
    let (yes, no) = (Some(true), Some(false));
    let servers = [("PEFT", yes), ("vLLM", yes), ("TGI", no), ("SGLang", no), ("TensorRT-LLM", None)];
    let others = [("llama.cpp", yes), ("MLX", no), ("ONNX Runtime", no)];
    assert_eq!(reads, [&servers[..], &others].concat());
    assert!(found.compatibility[3].note.contains("rsLoRA"));

    // The changes of DoRA depend on the base.
    let dora = fixture("lora-relatives/dora/initial");
    let alone = info(&dora, None).unwrap();
    let over = info(&dora, Some(&fixture("tiny-llama"))).unwrap();
    assert!(alone.weights.iter().all(|w| w.norm.is_none()) && over.weights.iter().all(|w| w.norm.is_some()));

    // Every kind is described, and virtual tokens change no weight.
    let mut kinds = 0;
    for folder in std::fs::read_dir(fixture("kinds")).unwrap().map(|entry| entry.unwrap().path()) {
        let found = info(&folder, None).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        assert!(!found.weights.is_empty() && found.parameters > 0, "{}", folder.display());
        kinds += 1;
    }
    assert!(kinds >= 17);
    let lokr = info(&fixture("kinds/lokr"), None).unwrap();
    assert!(lokr.weights.iter().all(|w| w.norm.is_some_and(|norm| norm > 0.0) && w.rank.is_none()));
    let prompt = info(&fixture("virtual-tokens/prompt_tuning/initial"), None).unwrap();
    assert!(prompt.weights.is_empty() && prompt.parameters > 0);

    let output = ft_here(&["adapter", "info", "tests/fixtures/merging/two", "--json"]);
    let told: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(told["parameters"], found.parameters);
    let text = stdout(&ft_here(&["adapter", "info", "tests/fixtures/merging/three"]));
    assert!(text.contains("ranks       2") && text.contains("effective rank") && text.contains("PEFT: yes"), "{text}");
}

#[test]
fn adapters_are_compared_by_what_they_change() {
    let same = diff(&adapter("one"), &adapter("one"), None).unwrap();
    assert!(same.equal && same.total.unwrap().distance < 1e-6);
    let two = diff(&adapter("one"), &adapter("two"), None).unwrap();
    assert!(!two.equal && two.settings.contains_key("use_rslora") && two.different_tensors.len() == 18);
    assert!(two.total.unwrap().cosine.unwrap().abs() < 0.5);
    // The same change with other factors.
    let out = tempfile::tempdir().unwrap();
    let resized = out.path().join("resized");
    resize(&adapter("two"), Truncation::Energy(1.0), &resized).unwrap();
    let again = diff(&adapter("two"), &resized, None).unwrap();
    assert!(!again.equal && again.total.unwrap().distance < 1e-5, "{again:?}");
    let text = stdout(&ft_here(&["adapter", "diff", "tests/fixtures/merging/one", "tests/fixtures/merging/three"]));
    assert!(text.contains("are in the second only") && text.contains("cosine"), "{text}");
}

#[test]
fn an_adapter_is_resized() {
    let out = tempfile::tempdir().unwrap();
    let small = out.path().join("small");
    let report = resize(&adapter("one"), Truncation::Rank(1), &small).unwrap();
    assert!(report.modules.iter().all(|m| m.rank == [4, 1] && m.energy_kept < 1.0));
    assert_eq!(report.parameters[0], 4 * report.parameters[1]);
    // The energy that is lost is the square of the distance.
    let far = diff(&adapter("one"), &small, None).unwrap().total.unwrap().distance;
    assert_number("energy", 1.0 - report.energy_kept, far * far, 1e-3);
    // The report is written into the folder, as for other results.
    let written: serde_json::Value = ft::fsutil::read_json(&small.join("export_report.json")).unwrap();
    assert_eq!(written, serde_json::to_value(&report).unwrap());
    assert_eq!((&written["verdict"], &written["export"]), (&"passed".into(), &"adapter".into()));
    assert_eq!(written["files"]["adapter_model.safetensors"]["sha256"].as_str().unwrap().len(), 64);
    // Ranks by energy differ from module to module, and are written as exceptions.
    let some = out.path().join("some");
    let report = resize(&adapter("one"), Truncation::Energy(0.8), &some).unwrap();
    let ranks: std::collections::BTreeSet<i64> = report.modules.iter().map(|m| m.rank[1]).collect();
    assert!(ranks.len() > 1 && report.energy_kept >= 0.8, "{ranks:?}");
    // What else the file contains is kept.
    let whole = out.path().join("whole");
    resize(&fixture("adapters/saved-head"), Truncation::Rank(2), &whole).unwrap();
    let (old, new) = (file::read(&fixture("adapters/saved-head")).unwrap(), file::read(&whole).unwrap());
    assert_same("lm_head", &old.tensors["lm_head.weight"], &new.tensors["lm_head.weight"]);
    let error = resize(&fixture("adapters/dora"), Truncation::Rank(2), &out.path().join("dora")).err().unwrap();
    assert!(error.to_string().contains("DoRA") && error.to_string().contains("ft merge"), "{error}");
    let folder = some.to_str().unwrap();
    let again = ft_here(&["adapter", "resize", "tests/fixtures/merging/one", "--rank", "2", "--out", folder]);
    assert!(again.status.code() == Some(1) && stderr(&again).contains("already exists"));
}

/// Merges the adapter `name` into its base, and changes further tensors.
fn tuned(base: &str, name: &str, folder: &Path, change: &[&str]) -> std::path::PathBuf {
    let out = folder.join(format!("{base}-tuned{}", change.len()));
    let parts = [WeightedAdapter::read(&adapter(name), 1.0).unwrap()];
    merge::adapters::merge_into_model(&fixture(base), &parts, &out, Some(Kind::Float), u64::MAX).unwrap();
    if !change.is_empty() {
        let file = out.join("model.safetensors");
        let mut all: std::collections::BTreeMap<_, _> =
            Weights::open(&out).unwrap().all().iter().map(|(n, t)| (n.clone(), t.copy())).collect();
        change.iter().for_each(|name| drop(all.insert(name.to_string(), &all[*name] + 0.25)));
        save_tensors(&file, &all);
    }
    out
}

#[test]
fn a_lora_is_extracted_from_two_models() {
    let out = tempfile::tempdir().unwrap();
    for (base, name, rank) in [("biased-llama", "one", 4), ("tiny-gpt2", "gpt2-one", 3)] {
        let tuned = tuned(base, name, out.path(), &[]);
        let made = out.path().join(format!("{name}-extracted"));
        let report = extract(&fixture(base), &tuned, Truncation::Rank(rank), OtherChanges::Refuse, &made).unwrap();
        assert!(report.energy_kept > 1.0 - 1e-6 && report.saved_in_full.is_empty());
        let far = diff(&adapter(name), &made, None).unwrap().total.unwrap().distance;
        assert!(far < 1e-4, "{name}: {far}");
        assert!(report.from_tuned.relative < 1e-4 && report.base_from_tuned.relative > 1e-2);
    }
    let tuned_head = tuned("biased-llama", "one", out.path(), &["model.norm.weight", "lm_head.weight"]);
    let base = fixture("biased-llama");
    let refused = |tuned: &Path, others| {
        extract(&base, tuned, Truncation::Rank(4), others, &out.path().join("refused")).err().unwrap().to_string()
    };
    let error = refused(&tuned_head, OtherChanges::Refuse);
    assert!(error.contains("2 tensors") && error.contains("`lm_head.weight`, `model.norm.weight`"), "{error}");
    let whole = out.path().join("whole");
    let report = extract(&base, &tuned_head, Truncation::Rank(4), OtherChanges::Save, &whole).unwrap();
    assert_eq!(report.saved_in_full, ["lm_head.weight", "model.norm.weight"]);
    assert!(report.from_tuned.relative < 1e-4, "{:?}", report.from_tuned);
    assert!(refused(&base, OtherChanges::Save).contains("equal weights"));
    let other = refused(&fixture("tiny-llama"), OtherChanges::Save);
    assert!(other.contains("has shape"), "{other}");

    // Embedding and output head share a weight, which no adapter may separate.
    let tied = with_changed_weights("tiny-llama", |t| {
        let name = "model.embed_tokens.weight";
        drop(t.insert(name.into(), &t[name] + 0.5));
    });
    let error =
        extract(&fixture("tiny-llama"), tied.path(), Truncation::Rank(2), OtherChanges::Save, &out.path().join("t"));
    assert!(error.err().unwrap().message().contains("share"));

    // A smaller rank loses what the report says.
    let text = out.path().join("small");
    let arguments =
        ["adapter", "extract", "tests/fixtures/biased-llama", tuned_head.to_str().unwrap(), "--energy", "0.5"];
    let output = ft_here(&[&arguments[..], &["--out", text.to_str().unwrap(), "--json"]].concat());
    let told: Value = serde_json::from_str(&stdout(&output)).unwrap_or_else(|e| panic!("{e}: {}", stderr(&output)));
    assert!((0.5..1.0).contains(&told["energy_kept"].as_f64().unwrap()), "{told}");
}
