//! Writes models of every family as Hugging Face directories in every number format, and reads them back.
//!
//! That transformers loads them, and that codes and scales are those of bitsandbytes and transformers, is checked by
//! tests/reference/check_hf_export.py.

use super::gguf_adapters::lora;
use super::gguf_export::{Exported, logits, opened};
use crate::support::command::{ft_binary, stderr};
use crate::support::families::{self, FAMILIES};
use crate::support::files::copied;
use crate::support::stored::{quantised_tensors, write_stored};
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::hf_export::{HfExportOptions, HfExportSummary, HfFormat, export};
use ft::convert::merge::adapters::merge_into_model;
use ft::error::{Error, Result};
use ft::models::{Config, Heads, LoadOptions, Model, Storage};
use ft::nn::{Param, Quantisation, QuantisedFormat, QuantisedParam, QuantisedWeight};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Kind, Tensor};

fn options<'a>(model: &'a Path, out: &'a Path, format: HfFormat) -> HfExportOptions<'a> {
    HfExportOptions { model, adapter: None, out, format, shard_bytes: 1 << 30, reader: None, force: false }
}

fn export_to(made: &Exported, out: &str, format: HfFormat) -> Result<HfExportSummary> {
    let (model, out) = (made.model(), made.folder.path().join(out));
    export(&options(&model, &out, format), |_, _| Ok(()))
}

fn at(made: &Exported, name: &str) -> PathBuf {
    made.folder.path().join(name)
}

fn load(folder: &Path, storage: Storage) -> Model {
    let (kind, adapters, heads) = (Kind::Float, Vec::new(), Heads::Tokens);
    let load = LoadOptions { device: device(), kind, storage, train_base: None, adapters, vocabulary: None, heads };
    Model::load(folder, load).unwrap()
}

/// Returns the quantised matrices of a model by name.
fn quantised(model: &Model) -> BTreeMap<String, QuantisedWeight> {
    let matrix = |p: &Param| match &p.quantised {
        QuantisedParam::Done(weight) => Some((p.name.clone(), weight.clone())),
        _ => None,
    };
    model.params().base().filter_map(matrix).collect()
}

/// Returns the numbers (out, in) of a matrix on the CPU.
fn dense(weight: &QuantisedWeight) -> Tensor {
    weight.dense(Kind::Float).to_device(tch::Device::Cpu)
}

#[test]
fn plain_formats_have_every_tensor_rounded_once() {
    for name in FAMILIES {
        let made = Exported::of(name, json!({}));
        let own = opened(&made.model());
        for (format, kind, dtype) in [
            (HfFormat::Own, Kind::Float, "float"),
            (HfFormat::BFloat16, Kind::BFloat16, "bfloat16"),
            (HfFormat::Float16, Kind::Half, "half"),
        ] {
            let summary = export_to(&made, dtype, format).unwrap_or_else(|e| panic!("{name} {dtype}: {e}"));
            assert_eq!(summary.tensors, BTreeMap::from([(dtype.to_string(), own.len() as u64)]), "{name}");
            let found = opened(&at(&made, dtype));
            assert_eq!(found.keys().collect::<Vec<_>>(), own.keys().collect::<Vec<_>>(), "{name}");
            for (tensor, found) in &found {
                assert_same(&format!("{name} {dtype} {tensor}"), found, &own[tensor].to_kind(kind));
            }
            let error = summary.read_back.relative_error[dtype];
            assert!((error > 1e-5) == (kind != Kind::Float) && error < 4e-3, "{name} {dtype}: {error}");
            let config = Config::read(&at(&made, dtype)).unwrap();
            let written = config.raw.get("dtype").or(config.raw.get("torch_dtype"));
            let expected = if kind == Kind::Half { "float16" } else { dtype };
            assert!(format == HfFormat::Own || written == Some(&json!(expected)), "{name}: {written:?}");
        }
    }
}

/// The matrices and their numbers are those of the same model with `--quantize nf4`; experts keep their dtype.
#[test]
fn nf4_has_the_numbers_of_a_model_that_is_quantised_when_it_is_loaded() {
    let storage = Storage::Quantised(Quantisation::new(QuantisedFormat::Nf4, true).into());
    for name in FAMILIES.into_iter().filter(|name| *name != "falcon") {
        let made = Exported::of(name, json!({}));
        let summary = export_to(&made, "nf4", HfFormat::Nf4).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (stored, loaded) = (load(&at(&made, "nf4"), Storage::Auto), load(&made.model(), storage));
        let (found, mut expected) = (quantised(&stored), quantised(&loaded));
        let all = expected.len();
        expected.retain(|name, _| !name.contains(".experts."));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        assert_eq!(summary.tensors["nf4"], found.len() as u64, "{name}");
        assert_eq!(summary.notes.iter().any(|note| note.contains("experts")), all > found.len(), "{name}");
        for (matrix, weight) in &found {
            assert_eq!(weight.describe(), "bitsandbytes NF4 with 8-bit scales");
            assert_same(&format!("{name} {matrix}"), &dense(weight), &dense(&expected[matrix]));
        }
        let error = summary.read_back.relative_error["nf4"];
        assert!(error > 0.05 && error < 0.15, "{name}: {error}");
        if all == found.len() {
            assert_same(name, &logits(&at(&made, "nf4")), &logits_with(&loaded));
        }
        let section: Value = ft::fsutil::read_json(&at(&made, "nf4").join("config.json")).unwrap();
        let section = &section["quantization_config"];
        assert_eq!(
            (&section["quant_method"], &section["bnb_4bit_quant_type"]),
            (&json!("bitsandbytes"), &json!("nf4"))
        );
        assert_eq!(section["bnb_4bit_compute_dtype"], "float32", "{name}");
        assert!(section["llm_int8_skip_modules"].as_array().unwrap().contains(&json!("lm_head")), "{section}");
    }
}

/// Returns the logits of the rows that [`logits`] has.
fn logits_with(model: &Model) -> Tensor {
    let rows: Vec<Vec<u32>> = (1..5).map(|i| (0..11 * i).map(|t| (t * 7 + i) % 400).collect()).collect();
    let tokens = ft::nn::Tokens::pack(&rows, device());
    let all = Tensor::arange(tokens.len() as i64, (Kind::Int64, device()));
    model.infer(&tokens, |out| out.logits(&all).to_device(tch::Device::Cpu)).unwrap()
}

/// Every number is at most half a step of its block from the model's, and the scale of a block makes its largest number 448.
#[test]
fn fp8_rounds_the_numbers_of_each_block() {
    for name in FAMILIES.into_iter().filter(|name| !["falcon", "gpt2", "bloom", "mpt"].contains(name)) {
        let made = Exported::of(name, json!({}));
        let summary = export_to(&made, "fp8", HfFormat::Fp8).unwrap_or_else(|e| panic!("{name}: {e}"));
        let own = opened(&made.model());
        let files = quantised_tensors(&at(&made, "fp8").join("model.safetensors"));
        let section: Value = ft::fsutil::read_json(&at(&made, "fp8").join("config.json")).unwrap();
        let section = &section["quantization_config"];
        let block = section["weight_block_size"][0].as_i64().unwrap();
        assert!([32, 64].contains(&block), "{name}: {block}");
        let kept: BTreeSet<&str> =
            section["modules_to_not_convert"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let found = quantised(&load(&at(&made, "fp8"), Storage::Auto));
        assert!(found.len() >= 8 && summary.tensors["fp8"] == found.len() as u64, "{name}");
        for (matrix, weight) in &found {
            let (exact, read) = (&own[matrix], dense(weight));
            let scales = &files[&matrix.replace(".weight", ".weight_scale_inv")];
            let (outputs, inputs) = exact.size2().unwrap();
            assert_eq!(scales.size(), [outputs / block, inputs / block], "{name} {matrix}");
            let blocks = |t: &Tensor| t.view([outputs / block, block, inputs / block, block]);
            let largest = blocks(exact).abs().amax([1i64, 3].as_slice(), false);
            assert_close(&format!("{name} {matrix}"), scales, &(largest / 448.0), 1e-6);
            let steps = (blocks(exact).abs() / 16.0).max_other(&(scales.unsqueeze(1).unsqueeze(3) / 1024.0));
            let beyond = ((blocks(&read) - blocks(exact)).abs() - steps * 1.000_01).max().double_value(&[]);
            assert!(beyond <= 0.0, "{name} {matrix}: {beyond}");
            assert!(!kept.contains(matrix.strip_suffix(".weight").unwrap()), "{name} {matrix}");
        }
        let error = summary.read_back.relative_error["fp8"];
        assert!(error > 0.01 && error < 0.04, "{name}: {error}");
        assert!(
            kept.contains("lm_head") && kept.iter().any(|m| m.ends_with(".experts")) == (name == "gpt_oss"),
            "{kept:?}"
        );
    }
}

/// A matrix that blocks do not divide keeps its dtype, in a list that transformers reads.
#[test]
fn blocks_of_fp8_divide_the_matrices() {
    let of = |sizes: Value| {
        let made = Exported::of("llama", sizes);
        let summary = export_to(&made, "fp8", HfFormat::Fp8);
        let section = summary.as_ref().ok().map(|_| {
            let config: Value = ft::fsutil::read_json(&at(&made, "fp8").join("config.json")).unwrap();
            config["quantization_config"].clone()
        });
        (summary, section.unwrap_or_default())
    };
    // Keys and values have 64 rows; vLLM computes queries with them.
    let (summary, section) = of(json!({"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}));
    assert_eq!(section["weight_block_size"], json!([128, 128]));
    let kept: Vec<&str> =
        section["modules_to_not_convert"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(kept.contains(&"model.layers.3.self_attn.k_proj") && kept.contains(&"model.layers.0.self_attn.q_proj"));
    assert_eq!(kept.len(), 1 + 3 * 4, "{kept:?}");
    let notes = summary.unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("12 of 28 matrices keep their dtype"), "{notes:?}");
    let (summary, section) = of(json!({"hidden_size": 192, "intermediate_size": 320, "head_dim": 64}));
    assert_eq!(section["weight_block_size"], json!([64, 64]));
    let notes = summary.unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("blocks are 64 x 64"), "{notes:?}");
    let error = of(json!({"hidden_size": 72, "intermediate_size": 88, "head_dim": 18})).0.expect_err("refused");
    assert!(error.to_string().contains("no matrix of a linear layer can be written in fp8"), "{error}");
    assert!(error.hints().iter().any(|hint| hint.contains("--type nf4")), "{error}");
}

#[test]
fn a_merged_adapter_gives_the_model_that_ft_merge_writes() {
    for name in ["qwen2", "gpt2", "gpt_neox", "gemma2"] {
        let made = Exported::of(name, json!({}));
        let adapter = lora(&made, json!({}));
        let part = || WeightedAdapter::read(&adapter, 1.0).unwrap();
        merge_into_model(&made.model(), &[part()], &at(&made, "merged"), Some(Kind::Float), 1 << 30).unwrap();
        let formats = [HfFormat::Float32, HfFormat::BFloat16, HfFormat::Nf4, HfFormat::Fp8];
        for format in formats.into_iter().filter(|format| name != "gpt2" || *format != HfFormat::Fp8) {
            let [one, two, base] = ["one", "two", "base"].map(|what| at(&made, &format!("{what}-{}", format.name())));
            let (model, merged) = (made.model(), at(&made, "merged"));
            let adapted = HfExportOptions { adapter: Some(part()), ..options(&model, &one, format) };
            export(&adapted, |_, _| Ok(())).unwrap();
            export(&options(&merged, &two, format), |_, _| Ok(())).unwrap();
            export(&options(&model, &base, format), |_, _| Ok(())).unwrap();
            let data = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
            assert!(data(&one) == data(&two) && data(&one) != data(&base), "{name} {}", format.name());
        }
    }
}

#[test]
fn shards_are_those_of_ft_merge() {
    let made = Exported::of("llama", json!({}));
    let (model, out) = (made.model(), at(&made, "sharded"));
    for (format, most) in [(HfFormat::BFloat16, 70_000), (HfFormat::Nf4, 70_000), (HfFormat::Fp8, 70_000)] {
        let many = HfExportOptions { shard_bytes: most, force: true, ..options(&model, &out, format) };
        let summary = export(&many, |_, _| Ok(())).unwrap();
        assert!(summary.files.len() > 2 && !out.join("model.safetensors").exists(), "{:?}", summary.files.keys());
        assert!(summary.files.keys().next().unwrap().starts_with("model-00001-of-0000"));
        let index: Value = ft::fsutil::read_json(&out.join("model.safetensors.index.json")).unwrap();
        assert_eq!(index["metadata"]["total_size"], json!(summary.bytes));
        export_to(&made, format.name(), format).unwrap();
        assert_same(format.name(), &logits(&out), &logits(&at(&made, format.name())));
    }
    let report: Value = ft::fsutil::read_json(&out.join("export_report.json")).unwrap();
    assert_eq!((&report["verdict"], &report["format"]), (&json!("passed"), &json!("fp8")));
}

#[test]
fn a_written_directory_is_a_base_of_adapters_and_answers() {
    let space = Workspace::new();
    let base = "models/smollm2-135m-instruct";
    space.ft(&["export", base, "--to", "hf", "--type", "nf4", "--out", "models/nf4"]);
    let lora = "adapter={lora: {rank: 4}}";
    let line =
        ["train", "recipes/lora-medical.yaml", "--set", "model.path=models/nf4", "--set", "run.steps=2", "--set", lora];
    space.ft(&[&line[..], &["--set", "run.out=runs/over", "--set", "run.samples=0"]].concat());
    let report = space.json("runs/over/export_report.json");
    assert_eq!(report["quantised_base"], json!({ "stored": "bitsandbytes NF4 with 8-bit scales" }));
    let ask = |more: &[&str]| {
        let line = ["generate", "--prompt", "one two", "--max-new-tokens", "8", "--dtype", "f32"];
        String::from_utf8(space.ft(&[&line[..], more].concat()).stdout).unwrap()
    };
    assert_eq!(ask(&["--model", "models/nf4"]), ask(&["--model", base, "--quantize", "nf4"]));
}

#[test]
fn an_interrupted_export_leaves_nothing() {
    let made = Exported::of("llama", json!({}));
    let (model, out) = (made.model(), at(&made, "out"));
    // 38 tensors of the model; of 28 matrices six tensors each.
    for stop in [0, 9, 190, 210] {
        let mut last = 0;
        let error = export(&options(&model, &out, HfFormat::Nf4), |done, total| {
            last = total;
            if done == stop { Err(Error::interrupted("stopped")) } else { Ok(()) }
        });
        assert!(error.expect_err("stopped").to_string().contains("stopped"));
        assert_eq!(last, 2 * 39 + 28 * 5, "{stop}");
        assert_eq!(std::fs::read_dir(made.folder.path()).unwrap().count(), 1, "the model alone");
    }
}

/// Simulates a full disk: every write beyond a file size fails (`ulimit -f`).
#[test]
fn a_full_disk_leaves_nothing() {
    let made = Exported::of("llama", json!({}));
    let line = "export model --to hf --type bf16 --out out";
    let script = format!("trap '' XFSZ; ulimit -f 64; exec {} {line}", ft_binary().display());
    let output = Command::new("bash").args(["-c", &script]).current_dir(made.folder.path()).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large") && said.contains("ulimit -f"), "{said}");
    assert_eq!(std::fs::read_dir(made.folder.path()).unwrap().count(), 1, "the model");
}

#[test]
fn what_transformers_has_no_form_for_is_refused_by_name() {
    for (name, format, reason) in [
        ("falcon", HfFormat::Nf4, "falcon: transformers computes its linear layers by FalconLinear"),
        ("falcon", HfFormat::Fp8, "does not have in fp8"),
        ("gpt2", HfFormat::Fp8, "gpt2: transformers computes its linear layers by Conv1D"),
        ("bloom", HfFormat::Fp8, "no matrix of a linear layer can be written in fp8"),
    ] {
        let made = Exported::of(name, json!({}));
        let error = export_to(&made, "out", format).expect_err(name);
        assert!(error.to_string().contains(reason) && !error.hints().is_empty(), "{error}");
        assert!(!at(&made, "out").exists());
    }
    let refused = |model: &Path| {
        let out = model.join("out");
        let error = export(&options(model, &out, HfFormat::BFloat16), |_, _| Ok(())).expect_err("refused");
        assert!(!error.hints().is_empty() && !out.exists(), "{error}");
        error.to_string()
    };
    let rnn = with_weights("own/rnn", "own/rnn");
    assert!(refused(rnn.path()).contains("only ft computes ft_rnn"));
    let reward = copied(&fixture("reward/qwen3"));
    assert!(refused(reward.path()).contains("this is a reward model"));
    for format in ["nf4", "gptq", "fp8"] {
        let folder = tempfile::tempdir().unwrap();
        write_stored(format, folder.path(), |_| ());
        assert!(
            refused(folder.path()).contains("stored quantised: writing them in another format would round them twice")
        );
    }
}

/// An adapter that corrects quantised weights is an error in a base's own weights, in every format.
#[test]
fn a_correction_of_quantised_weights_is_not_merged() {
    let space = Workspace::bare();
    let made = Exported::of("llama", json!({}));
    std::fs::rename(lora(&made, json!({})), space.path("adapter")).unwrap();
    std::fs::rename(made.model(), space.path("model")).unwrap();
    let report = json!({ "quantised_base": { "format": "nf4", "double": true, "corrected": true } });
    std::fs::write(space.path("adapter/export_report.json"), report.to_string()).unwrap();
    for (to, out) in [("hf", "out"), ("gguf", "out.gguf"), ("onnx", "out")] {
        let said = space.refused(&["export", "model", "--adapter", "adapter", "--to", to, "--out", out]);
        assert!(
            said.contains("the adapter began as a correction of a base in NF4") && said.contains("--quantize nf4"),
            "{said}"
        );
        assert!(!space.path(out).exists());
    }
}

#[test]
fn the_command_reports_refuses_and_replaces() {
    let space = Workspace::bare();
    families::write("qwen2", json!({}), Kind::BFloat16, &space.path("model"));
    let line = ["export", "model", "--to", "hf", "--out", "out/hf/", "--type", "nf4", "--json"];
    let report: Value = serde_json::from_slice(&space.ft(&line).stdout).unwrap();
    assert_eq!((&report["format"], &report["architecture"]), (&json!("nf4"), &json!("qwen2")));
    assert_eq!((&report["verdict"], &report["chat_template"]), (&json!("passed"), &json!(true)));
    assert_eq!(space.json("out/hf/export_report.json")["read_back"], report["read_back"]);
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let [own, copy] = ["model", "out/hf"].map(|folder| std::fs::read(space.path(folder).join(file)).unwrap());
        assert_eq!(own, copy, "{file}");
    }
    assert!(space.refused(&line).contains("the folder exists and is not empty"));
    let shown = space.ft(&["export", "model", "--to", "hf", "--out", "out/hf", "--type", "FP8", "--force"]);
    let (shown, told) = (String::from_utf8(shown.stdout.clone()).unwrap(), stderr(&shown));
    assert!(shown.contains("relative error fp8") && told.contains("transformers: yes"), "{shown}{told}");
    let plain = space.ft(&["export", "model", "--to", "hf", "--out", "own"]);
    assert!(String::from_utf8(plain.stdout).unwrap().contains("exact"));
    let adapter = space.path("adapter");
    std::fs::create_dir(&adapter).unwrap();
    std::fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
    std::fs::create_dir(space.path("other")).unwrap();
    std::fs::write(space.path("other/notes.txt"), "mine").unwrap();
    for (line, reason) in [
        (&["model", "--to", "hf", "--out", "model", "--force"][..], "is in the folder that --force would replace"),
        (&["model", "--to", "hf", "--out", "other", "--force"], "this folder has no config.json"),
        (&["model", "--to", "hf", "--out", "model/config.json"], "is a file"),
        (&["model", "--to", "hf"], "a folder with a name of its own"),
        (&["model", "--to", "hf", "--out", "x", "--type", "q8_0"], "transformers has no such format"),
        (&["model", "--to", "hf", "--out", "x", "--modelfile"], "Ollama reads GGUF files only"),
        (&["model", "--to", "hf", "--out", "x", "--imatrix", "rows"], "Hugging Face directories do not regard it"),
        (&["model", "--to", "hf", "--out", "x", "--base", "model"], "is no adapter"),
        (&["model", "--to", "hf", "--out", "x", "--shard-size", "0"], "--shard-size: 0 is not a size"),
        (&["model", "--to", "gguf", "--out", "x.gguf", "--shard-size", "1"], "only --to hf and --to mlx"),
        (&["model", "--to", "gguf", "--out", "x.gguf", "--type", "nf4"], "GGUF has no such format"),
        (&["model", "--to", "onnx", "--out", "x", "--type", "fp8"], "an ONNX export has no such format"),
        (&["adapter", "--to", "hf", "--out", "x"], "an adapter, which is a Hugging Face directory already"),
        (&["nowhere", "--to", "hf", "--out", "x"], "nowhere/config.json"),
    ] {
        let said = space.refused(&[&["export"][..], line].concat());
        assert!(said.contains(reason), "{line:?}: {said}");
    }
    // Numbers that float16 does not have, and that no format has.
    let file = space.path("model/model.safetensors");
    let mut tensors = tensors(&file);
    const UP: &str = "model.layers.2.mlp.up_proj.weight";
    for (factor, form, reason) in
        [(1e7, "f16", "does not fit into float16"), (f64::NAN, "nf4", "values are not finite")]
    {
        let broken = tensors[UP].shallow_clone() * factor;
        tensors.insert(UP.into(), broken);
        save_tensors(&file, &tensors);
        let said = space.refused(&["export", "model", "--to", "hf", "--out", "x", "--type", form]);
        assert!(said.contains(UP) && said.contains(reason), "{said}");
    }
    tensors.retain(|name, _| !name.contains("layers.3."));
    save_tensors(&file, &tensors);
    let said = space.refused(&["export", "model", "--to", "hf", "--out", "x"]);
    assert!(said.contains("model.layers.3.") && said.contains("is missing"), "{said}");
    assert!(!space.path("x").exists());
}
