//! Adapters in the format of mlx-lm: written, read back as PEFT's, and what is refused.

use super::gguf_adapters::lora;
use super::gguf_export::Exported;
use crate::support::families;
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::mlx::adapter_export::{MlxAdapterOptions, MlxAdapterSummary, export_adapter};
use ft::convert::mlx::adapter_import::{MlxImportOptions, import_adapter};
use ft::error::Result;
use ft::models;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Writes an adapter of a model as mlx-lm's, in the folder `mlx` beside it.
fn export(made: &Exported, adapter: &Path) -> Result<MlxAdapterSummary> {
    let (base, out) = (made.model(), made.folder.path().join("mlx"));
    export_adapter(&MlxAdapterOptions { base: &base, out: &out, force: false }, &WeightedAdapter::read(adapter, 1.0)?)
}

fn import(made: &Exported, from: &Path) -> Result<PathBuf> {
    let (base, out) = (made.model(), made.folder.path().join("imported"));
    import_adapter(&MlxImportOptions { adapter: from, base: &base, out: &out, force: false }).map(|summary| summary.out)
}

/// Writes a DoRA over the linear layers of a model.
fn dora(made: &Exported) -> PathBuf {
    let folder = lora(made, json!({ "use_dora": true }));
    let file = folder.join("adapter_model.safetensors");
    let mut all = tensors(&file);
    let magnitudes: BTreeMap<String, Tensor> = all
        .iter()
        .filter_map(|(name, b)| {
            let name = name.strip_suffix("lora_B.weight")?;
            Some((format!("{name}lora_magnitude_vector"), noise(&[b.size()[0]], name) * 0.2 + 1.5))
        })
        .collect();
    all.extend(magnitudes);
    save_tensors(&file, &all);
    folder
}

fn logits(made: &Exported, adapter: &Path) -> Tensor {
    let model = models::open(&made.model(), &[adapter.to_path_buf()], device(), Kind::Float).unwrap();
    let row: Vec<u32> = (0..40).map(|t| (t * 7 + 3) % 400).collect();
    let tokens = ft::nn::Tokens::pack(&[&row], device());
    let all = Tensor::arange(tokens.len() as i64, (Kind::Int64, device()));
    model.infer(&tokens, |out| out.logits(&all).to_device(Device::Cpu)).unwrap()
}

const Q: &str = "model.layers.1.self_attn.q_proj";

#[test]
fn factors_are_turned_filled_up_and_rescaled() {
    let made = Exported::of("qwen2", json!({}));
    // q_proj, and after it in the order of names up_proj, differ from the first of all modules.
    let adapter =
        lora(&made, json!({ "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 12}, "lora_dropout": 0.1 }));
    let summary = export(&made, &adapter).unwrap();
    assert_eq!((summary.rank, summary.scale, summary.weights), (4, 2.0, 28));
    assert_eq!((summary.padded, summary.rescaled), (4, 8), "q_proj has alpha / 2, up_proj 12 / 4");
    let folder = made.folder.path().join("mlx");
    let config: Value = ft::fsutil::read_json(&folder.join("adapter_config.json")).unwrap();
    let keys =
        ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj"];
    let mut keys: Vec<&str> = keys.into();
    keys.push("self_attn.v_proj");
    assert_eq!(
        config,
        json!({"fine_tune_type": "lora", "num_layers": 4,
            "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.1, "keys": keys}})
    );
    let (own, found) =
        (tensors(adapter.join("adapter_model.safetensors")), tensors(folder.join("adapters.safetensors")));
    assert_eq!(found.len(), 2 * 28);
    for (module, scale) in [(Q, 4.0), ("model.layers.3.mlp.up_proj", 3.0), ("model.layers.0.mlp.down_proj", 2.0)] {
        let (a, b) = (&found[&format!("{module}.lora_a")], &found[&format!("{module}.lora_b")]);
        assert_eq!((a.size()[1], b.size()[0]), (4, 4), "{module}");
        let part = |name: &str| &own[&format!("base_model.model.{module}.{name}.weight")];
        let expected = part("lora_B").matmul(part("lora_A")) * scale;
        assert_close(module, &(a.matmul(b).tr() * 2.0), &expected, 1e-6);
    }
}

#[test]
fn an_imported_adapter_computes_what_the_exported_one_did() {
    for (name, more) in [("llama", json!({})), ("gemma2", json!({ "use_rslora": true })), ("phi3", json!({}))] {
        for kind in ["lora", "dora"] {
            let made = Exported::of(name, json!({}));
            let adapter = if kind == "dora" { dora(&made) } else { lora(&made, more.clone()) };
            let summary = export(&made, &adapter).unwrap();
            assert_eq!(summary.fine_tune_type, kind);
            let imported = import(&made, &made.folder.path().join("mlx")).unwrap();
            let case = format!("{name} {kind}");
            assert_close(&case, &logits(&made, &imported), &logits(&made, &adapter), 1e-5);
            let config: Value = ft::fsutil::read_json(&imported.join("adapter_config.json")).unwrap();
            assert_eq!((&config["use_dora"], &config["r"]), (&json!(kind == "dora"), &json!(4)), "{case}");
        }
    }
}

#[test]
fn what_the_format_cannot_hold_is_refused_by_name() {
    let refused = |name: &str, more: Value, change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let made = Exported::of(name, json!({}));
        let adapter = lora(&made, more);
        let file = adapter.join("adapter_model.safetensors");
        let mut all = tensors(&file);
        change(&mut all);
        save_tensors(&file, &all);
        let error = export(&made, &adapter).expect_err(name);
        assert!(!error.hints().is_empty() && !made.folder.path().join("mlx").exists(), "{error}");
        error.to_string()
    };
    let none = |_: &mut BTreeMap<String, Tensor>| ();
    let whole = |all: &mut BTreeMap<String, Tensor>| {
        all.insert("base_model.model.lm_head.weight".into(), noise(&[512, 64], "head"));
    };
    let wide = |all: &mut BTreeMap<String, Tensor>| {
        all.insert(format!("base_model.model.{Q}.lora_B.weight"), noise(&[65, 4], "wide"));
    };
    let broken = |all: &mut BTreeMap<String, Tensor>| {
        all.insert(
            format!("base_model.model.{Q}.lora_B.weight"),
            Tensor::full([64, 4], f64::NAN, (Kind::Float, Device::Cpu)),
        );
    };
    for (said, reason) in [
        (refused("bloom", json!({}), &none), "its adapters are written for llama, mistral"),
        (refused("mixtral", json!({}), &none), "mlx-lm has the experts of a layer in one tensor"),
        (refused("llama", json!({"modules_to_save": ["lm_head"]}), &whole), "it has lm_head.weight"),
        (refused("llama", json!({}), &wide), "was the adapter trained on another base?"),
        (refused("llama", json!({}), &broken), "is not finite"),
    ] {
        assert!(said.contains(reason), "{reason}\n{said}");
    }
}

#[test]
fn damaged_adapters_of_mlx_are_refused_by_name() {
    let made = Exported::of("llama", json!({}));
    export(&made, &lora(&made, json!({}))).unwrap();
    let from = made.folder.path().join("mlx");
    let (file, path) = (from.join("adapters.safetensors"), from.join("adapter_config.json"));
    let (good, config) = (tensors(&file), std::fs::read_to_string(&path).unwrap());
    let said = || {
        let error = import(&made, &from).expect_err("refused");
        assert!(!error.hints().is_empty() && !made.folder.path().join("imported").exists(), "{error}");
        error.to_string()
    };
    let with = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut all = good.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        change(&mut all);
        save_tensors(&file, &all);
        let said = said();
        save_tensors(&file, &good);
        said
    };
    let (a, b) = (format!("{Q}.lora_a"), format!("{Q}.lora_b"));
    for (said, reason) in [
        (with(&|all| drop(all.remove(&a))), "q_proj.lora_a` is missing"),
        (
            with(&|all| drop(all.insert(b.clone(), noise(&[3, 64], "b")))),
            "q_proj.lora_b` has shape [3, 64], expected [4, 64]",
        ),
        (with(&|all| drop(all.insert("model.norm.weight".into(), noise(&[64], "n")))), "is no factor of a LoRA"),
        (with(&|all| drop(all.insert(format!("{Q}.m"), noise(&[64], "m")))), "fine_tune_type is not dora"),
        (
            with(&|all| {
                all.insert("model.layers.9.mlp.up_proj.lora_a".into(), noise(&[64, 4], "a"));
                all.insert("model.layers.9.mlp.up_proj.lora_b".into(), noise(&[4, 96], "b"));
            }),
            "it adapts `model.layers.9.mlp.up_proj`, which",
        ),
    ] {
        assert!(said.contains(reason), "{reason}\n{said}");
    }
    for (from, to, reason) in [
        ("\"lora\"", "\"full\"", "`fine_tune_type` is full"),
        ("\"lora\"", "\"other\"", "`fine_tune_type` other is not read"),
        ("\"rank\": 4", "\"rank\": 0", "has a rank below 1"),
        ("\"rank\": 4", "\"ranks\": 4", "missing field `rank`"),
    ] {
        assert!(config.contains(from), "{config}");
        std::fs::write(&path, config.replace(from, to)).unwrap();
        let said = said();
        assert!(said.contains(reason), "{reason}\n{said}");
    }
}

#[test]
fn the_commands_report_refuse_and_replace() {
    let space = Workspace::bare();
    let made = Exported::of("llama", json!({}));
    std::fs::rename(lora(&made, json!({})), space.path("adapter")).unwrap();
    families::write("llama", json!({}), Kind::Float, &space.path("model"));
    let line = ["export", "adapter", "--base", "model", "--to", "mlx", "--out", "mlx"];
    let report: Value = serde_json::from_slice(&space.ft(&[&line[..], &["--json"]].concat()).stdout).unwrap();
    assert_eq!((&report["fine_tune_type"], &report["weights"]), (&json!("lora"), &json!(28)));
    assert!(space.refused(&line).contains("the folder exists and is not empty"));
    let shown = space.ft(&[&line[..], &["--force"]].concat()).stdout;
    assert!(String::from_utf8(shown).unwrap().contains("lora, rank 4, scale 2"));
    let line = ["import", "mlx", "--base", "model", "--out", "again"];
    let report: Value = serde_json::from_slice(&space.ft(&[&line[..], &["--json"]].concat()).stdout).unwrap();
    assert_eq!((&report["kind"], &report["alpha"]), (&json!("LoRA"), &json!(8.0)));
    space.ft(&["generate", "--model", "model", "--adapter", "again", "--prompt", "one", "--max-new-tokens", "2"]);
    for (line, reason) in [
        (&["import", "mlx", "--out", "x"][..], "an adapter of mlx-lm, whose model is not named"),
        (&["import", "mlx", "--base", "model", "--out", "again"], "exists and is not empty"),
        (&["import", "mlx", "--base", "model", "--out", "mlx", "--force"], "this folder has adapters.safetensors"),
        (&["import", "mlx", "--base", "model", "--out", "x", "--dtype", "f16"], "--dtype: mlx is an adapter"),
        (&["import", "model", "--base", "model", "--out", "x"], "is no adapter of mlx-lm"),
        (&["export", "model", "--to", "mlx", "--type", "q8_0", "--out", "x"], "a model for mlx-lm has no such format"),
        (
            &["export", "adapter", "--base", "model", "--to", "mlx", "--out", "x", "--type", "f32"],
            "--type: an adapter of mlx-lm",
        ),
        (
            &["export", "adapter", "--base", "model", "--to", "mlx", "--out", "model", "--force"],
            "has no adapters.safetensors",
        ),
        (
            &["export", "adapter", "--base", "model", "--to", "mlx", "--out", "x", "--modelfile"],
            "Ollama reads GGUF files only",
        ),
    ] {
        let said = space.refused(line);
        assert!(said.contains(reason), "{line:?}: {said}");
        assert!(!space.path("x").exists());
    }
}
