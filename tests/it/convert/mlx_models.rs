//! Whole models for mlx-lm: config.json, matrices of 4 and 8 bits, their import, and what is refused.

use super::gguf_adapters::lora;
use super::gguf_export::Exported;
use crate::support::families;
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::hf_export::{HfExportSummary, HfFormat};
use ft::convert::mlx::model_export::{MlxFormat, MlxModelOptions, export};
use ft::convert::mlx::model_import::{MlxModelImportOptions, import_model, is_mlx_model};
use ft::error::Result;
use ft::models::Config;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tch::Kind;

const OWN: MlxFormat = MlxFormat::Plain(HfFormat::Own);

fn written(made: &Exported, adapter: Option<&Path>, format: MlxFormat) -> Result<HfExportSummary> {
    let (model, out) = (made.model(), made.folder.path().join("mlx"));
    let adapter = adapter.map(|folder| WeightedAdapter::read(folder, 1.0)).transpose()?;
    export(MlxModelOptions { model: &model, adapter, out: &out, format, shard_bytes: 1 << 30, force: true }, |_, _| {
        Ok(())
    })
}

fn imported(made: &Exported, kind: Kind) -> Result<PathBuf> {
    let (model, out) = (made.folder.path().join("mlx"), made.folder.path().join("imported"));
    import_model(&MlxModelImportOptions { model: &model, out: &out, kind, force: true }).map(|summary| summary.out)
}

#[test]
fn config_has_the_keys_that_mlx_reads() {
    let rope = |rope: Value| json!({ "rope_theta": null, "rope_parameters": rope });
    let llama3 = json!({"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let plain = json!({"rope_type": "default", "rope_theta": 7000.0});
    for (settings, theta, scaling) in [
        (rope(plain), 7000.0, Value::Null),
        (rope(llama3.clone()), 5000.0, json!("llama3")),
        (json!({ "rope_theta": 6000.0 }), 6000.0, Value::Null),
    ] {
        let made = Exported::of("llama", settings);
        let summary = written(&made, None, OWN).unwrap();
        assert_eq!((summary.export, summary.read_back.relative_error["float"]), ("mlx", 0.0));
        let config: Value = ft::fsutil::read_json(&summary.out.join("config.json")).unwrap();
        assert_eq!((&config["rope_theta"], &config["tie_word_embeddings"].is_boolean()), (&json!(theta), &true));
        assert_eq!(config["rope_scaling"]["rope_type"], scaling);
        assert_eq!(config["rope_scaling"]["type"], scaling);
        let [before, after] = [&made.model(), &summary.out].map(|folder| Config::read(folder).unwrap());
        assert_eq!(
            (before.rope_theta, before.rope_scaling),
            (after.rope_theta, after.rope_scaling),
            "for ft nothing changes"
        );
        assert!(!is_mlx_model(&summary.out));
    }
    // What mlx-lm computes otherwise is told.
    let notes = written(&Exported::of("mistral", json!({})), None, OWN).unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("up to 64 tokens"), "{notes:?}");
    let notes = written(&Exported::of("gemma", json!({})), None, OWN).unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("GELU"), "{notes:?}");
}

/// What is imported has the same tensors, of which those in the format differ from the original by its rounding, and no others.
#[test]
fn matrices_of_few_bits_are_imported_as_they_are() {
    for (family, bits, most) in [("llama", 4, 0.2), ("llama", 8, 0.02), ("mixtral", 4, 0.2), ("gemma2", 8, 0.02)] {
        let made = Exported::of(family, json!({}));
        let summary = written(&made, None, MlxFormat::Bits(bits)).unwrap();
        let case = format!("{family} {bits}");
        let error = summary.read_back.relative_error[&format!("{bits}bit")];
        assert!(error > 0.0 && error < most, "{case}: {error}");
        assert!(summary.tensors[&format!("{bits}bit")] > 15, "{case}: {:?}", summary.tensors);
        let answers: Vec<(&str, Option<bool>)> = summary.compatibility.iter().map(|c| (c.consumer, c.reads)).collect();
        assert!(answers.contains(&("MLX", Some(true))) && answers.contains(&("vLLM", Some(false))), "{answers:?}");
        let config: Value = ft::fsutil::read_json(&summary.out.join("config.json")).unwrap();
        assert_eq!(config["quantization"], json!({"group_size": 64, "bits": bits, "mode": "affine"}));
        let files = tensors(summary.out.join("model.safetensors"));
        let name = "model.layers.0.self_attn.k_proj";
        let shapes = ["weight", "scales", "biases"].map(|part| files[&format!("{name}.{part}")].size());
        assert_eq!(shapes[1], shapes[2], "{case}");
        assert_eq!(shapes[0][1] * 32 / bits, shapes[1][1] * 64, "{case}");
        let routers = files.keys().filter(|name| name.contains("gate.scales")).count();
        assert_eq!(routers, 0, "{case}: routers are in full precision");

        let back = imported(&made, Kind::Float).unwrap();
        let [found, original] = [back, made.model()].map(|folder| tensors(folder.join("model.safetensors")));
        assert!(found.keys().eq(original.keys()), "{case}");
        for (name, tensor) in &original {
            let quantised = files.contains_key(&format!("{}.scales", name.trim_end_matches(".weight")));
            assert!(quantised != found[name].equal(tensor), "{case} {name}");
        }
    }
}

#[test]
fn what_mlx_computes_otherwise_is_refused_by_name() {
    let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}});
    for (family, settings, reason) in [
        ("bloom", json!({}), "models are written for llama, mistral"),
        ("llama", yarn, "mlx-lm computes YaRN otherwise"),
        ("mixtral", json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}), "or not at all in a mixtral"),
        ("qwen2", json!({"head_dim": 32}), "mlx-lm takes 64 / 4 for the size of a head"),
        (
            "llama",
            json!({"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}),
            "multiple of 64 numbers",
        ),
    ] {
        let made = Exported::of(family, settings);
        let format = if reason.contains("multiple") { MlxFormat::Bits(4) } else { OWN };
        let error = written(&made, None, format).expect_err(reason);
        assert!(error.to_string().contains(reason) && !error.hints().is_empty(), "{reason}: {error}");
        assert!(!made.folder.path().join("mlx").exists());
    }
}

#[test]
fn damaged_models_of_few_bits_are_refused_by_name() {
    let made = Exported::of("llama", json!({}));
    let out = written(&made, None, MlxFormat::Bits(4)).unwrap().out;
    let (file, path) = (out.join("model.safetensors"), out.join("config.json"));
    let config = std::fs::read_to_string(&path).unwrap();
    for (from, to, reason) in [
        ("\"mode\": \"affine\"", "\"mode\": \"mxfp4\"", "has the mode mxfp4"),
        ("\"bits\": 4", "\"bits\": 3", "has 3 bits in groups of 64"),
        ("\"bits\": 4", "\"bits\": 8", "no matrix of 8 bits in groups of 64"),
        ("\"group_size\": 64", "\"group_size\": 1", "has 4 bits in groups of 1"),
        ("\"group_size\": 64", "\"size\": 64", "has no `group_size` and `bits`"),
        ("\"mode\": \"affine\"", "\"lm_head\": {\"bits\": 8}", "has other settings for lm_head"),
    ] {
        assert!(config.contains(from), "{config}");
        std::fs::write(&path, config.replace(from, to)).unwrap();
        let error = imported(&made, Kind::Float).expect_err(reason);
        assert!(error.to_string().contains(reason) && !error.hints().is_empty(), "{reason}: {error}");
    }
    std::fs::write(&path, &config).unwrap();
    let mut all = tensors(&file);
    all.remove("model.layers.1.mlp.up_proj.biases");
    save_tensors(&file, &all);
    let error = imported(&made, Kind::Float).expect_err("biases");
    assert!(error.to_string().contains("up_proj.biases` is missing"), "{error}");
    assert!(!made.folder.path().join("imported").exists());
}

#[test]
fn the_commands_write_import_and_refuse() {
    let space = Workspace::bare();
    let made = Exported::of("llama", json!({}));
    let dora = lora(&made, json!({}));
    std::fs::rename(dora, space.path("adapter")).unwrap();
    families::write("llama", json!({}), Kind::Float, &space.path("model"));
    let report =
        |line: &[&str]| -> Value { serde_json::from_slice(&space.ft(&[line, &["--json"]].concat()).stdout).unwrap() };
    let found =
        report(&["export", "model", "--adapter", "adapter", "--to", "mlx", "--type", "8BIT", "--out", "out/mlx"]);
    assert_eq!((&found["format"], &found["export"]), (&json!("8bit"), &json!("mlx")), "{found}");
    let found = report(&["import", "out/mlx", "--dtype", "f32", "--out", "out/back"]);
    assert_eq!((&found["bits"], &found["architecture"]), (&json!(8), &json!("llama")), "{found}");
    let ask = ["--prompt", "one two", "--max-new-tokens", "3", "--dtype", "f32"];
    space.ft(&[&["generate", "--model", "out/back"][..], &ask].concat());
    let shown = space.ft(&["export", "model", "--to", "mlx", "--type", "4bit", "--out", "out/four"]);
    let shown = String::from_utf8([shown.stdout, shown.stderr].concat()).unwrap();
    assert!(shown.contains("MLX: yes") && shown.contains("their rows are no multiple of 64 numbers"), "{shown}");
    // With --for the adapter stays one; options of a whole model ask for that.
    let found =
        report(&["export", "model", "--adapter", "adapter", "--for", "mlx", "--type", "4bit", "--out", "out/for"]);
    assert_eq!((&found["for"]["form"], &found["format"]), (&json!("model"), &json!("4bit")), "{found}");
    for (line, reason) in [
        (&["generate", "--model", "out/mlx", "--prompt", "a"][..], "ft import DIR --out OUT"),
        (&["import", "out/mlx", "--out", "out/back"], "exists and is not empty"),
        (&["import", "out/mlx", "--out", "x", "--pre-tokenizer", "gpt-2"], "has its own tokenizer"),
        (&["import", "out/mlx", "--base", "model", "--out", "x"], "is no adapter of mlx-lm"),
        (&["export", "out/mlx", "--to", "gguf", "--out", "x"], "ft import DIR --out OUT"),
        (&["export", "model", "--to", "hf", "--type", "4bit", "--out", "x"], "transformers has no such format"),
        (
            &["export", "model", "--to", "mlx", "--out", "model", "--force"],
            "is in the folder that --force would replace",
        ),
    ] {
        let said = space.refused(line);
        assert!(said.contains(reason), "{line:?}: {said}");
        assert!(!space.path("x").exists(), "{line:?}");
    }
}
