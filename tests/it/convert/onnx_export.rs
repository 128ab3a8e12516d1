//! Writes models of every family as ONNX, reads the graph back, and runs it in ONNX Runtime.

use super::gguf_adapters::lora;
use super::gguf_export::{Exported, opened};
use crate::support::command::{ft_binary, stderr, succeed};
use crate::support::families::{self, FAMILIES};
use crate::support::needs::{ONNX_RUNTIME, needs, onnx_runtime};
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::merge::adapters::merge_into_model;
use ft::convert::onnx_export::{OnnxExportOptions, OnnxExportSummary, Precision, export};
use ft::error::{Error, Result};
use ft::nn::Tokens;
use ft::onnx::{Dimension, ElementType, Graph, InitializerData, decode};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Kind, Tensor};

/// Tokens that ONNX Runtime computes one after another, with the keys and values of those before.
const CACHED: usize = 16;

fn export_to(made: &Exported, out: &str, precision: Precision) -> Result<OnnxExportSummary> {
    let (model, out) = (made.model(), made.folder.path().join(out));
    let options = OnnxExportOptions { model: &model, adapter: None, out: &out, precision, force: false };
    export(&options, |_, _| Ok(()))
}

fn graph(folder: &Path) -> Graph {
    decode(&std::fs::read(folder.join("model.onnx")).unwrap()).expect("a model")
}

/// Returns the numbers of a weight of the graph.
fn weight(folder: &Path, graph: &Graph, name: &str) -> Vec<u8> {
    let found = graph.initializers.iter().find(|i| i.value.name() == name).unwrap_or_else(|| panic!("{name}"));
    let InitializerData::Beside { file, offset, length } = &found.data else { panic!("{name} is inside") };
    assert!(offset % 4096 == 0, "{name} begins at {offset}");
    std::fs::read(folder.join(file)).unwrap()[*offset as usize..][..*length as usize].to_vec()
}

/// Families that have a converter.
fn converted() -> impl Iterator<Item = &'static str> {
    FAMILIES.into_iter().filter(|name| !["gpt_oss", "deepseek_v2"].contains(name))
}

/// Variants of the families: windows that texts outgrow, every kind of rotary scaling, both kinds of heads, and so on.
fn variants() -> Vec<(&'static str, Value)> {
    let scaled = |scaling: Value| json!({"rope_scaling": scaling});
    let long = |original: i64| {
        json!({"original_max_position_embeddings": original, "rope_scaling": {"type": "longrope",
            "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]}})
    };
    vec![
        ("llama", json!({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true, "head_dim": 32})),
        ("llama", json!({"hidden_act": "gelu", "num_key_value_heads": 1})),
        ("llama", json!({"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 4})),
        ("llama", scaled(json!({"rope_type": "linear", "factor": 2.0}))),
        ("llama", scaled(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}))),
        (
            "llama",
            scaled(json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64})),
        ),
        ("mistral", json!({"sliding_window": 5})),
        ("qwen2", json!({"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 2})),
        ("phi3", json!({"sliding_window": 9})),
        ("phi3", long(128)),
        ("gemma2", json!({"tie_word_embeddings": false})),
        (
            "gemma3_text",
            json!({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}),
        ),
        ("cohere", json!({"use_qk_norm": true, "tie_word_embeddings": false})),
        ("stablelm", json!({"use_parallel_residual": true, "use_qkv_bias": false})),
        ("gpt_neox", json!({"use_parallel_residual": false})),
        ("falcon", json!({"new_decoder_architecture": false, "multi_query": true, "num_kv_heads": null})),
        ("falcon", json!({"new_decoder_architecture": false, "parallel_attn": false, "bias": true, "alibi": true})),
        ("falcon", json!({"num_ln_in_parallel_attn": 1})),
        ("gpt2", json!({"tie_word_embeddings": false, "scale_attn_by_inverse_layer_idx": true})),
        ("mpt", json!({"attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.3}, "tie_word_embeddings": false})),
        ("mixtral", json!({"num_local_experts": 9, "num_experts_per_tok": 3, "sliding_window": 6})),
        ("qwen2_moe", json!({"norm_topk_prob": true, "decoder_sparse_step": 2, "mlp_only_layers": [3]})),
        ("qwen3_moe", json!({"norm_topk_prob": false, "num_experts_per_tok": 1, "mlp_only_layers": [1]})),
        ("olmoe", json!({"clip_qkv": 0.5, "norm_topk_prob": true, "num_experts_per_tok": 4})),
        ("ft_decoder", json!({"positions": "sinusoidal"})),
        ("ft_decoder", json!({"positions": "alibi"})),
        ("ft_decoder", json!({"positions": "none"})),
        ("ft_decoder", json!({"positions": "rotary"})),
    ]
}

/// Rows of a batch, of unequal lengths.
fn rows() -> Vec<Vec<u32>> {
    [18usize, 33, 25].iter().map(|n| (0..*n as u32).map(|t| (t * 7 + *n as u32) % 400).collect()).collect()
}

/// Returns ft's logits after every token of every row: (T, V).
fn own_logits(model: &Path) -> Tensor {
    let model = frozen(model, Kind::Float);
    let tokens = Tokens::pack(&rows(), device());
    let all = Tensor::arange(tokens.len() as i64, (Kind::Int64, device()));
    model.infer(&tokens, |out| out.logits(&all).to_device(tch::Device::Cpu)).unwrap()
}

/// Returns the logits that ONNX Runtime computes of each folder: (T, V) each.
fn logits_elsewhere(folders: &[PathBuf]) -> Vec<Tensor> {
    let work = tempfile::tempdir().unwrap();
    let out = |i: usize| work.path().join(i.to_string());
    let case =
        |(i, folder): (usize, &PathBuf)| json!({"folder": folder, "rows": rows(), "cached": CACHED, "out": out(i)});
    let cases: Vec<Value> = folders.iter().enumerate().map(case).collect();
    let file = work.path().join("cases.json");
    std::fs::write(&file, json!({"cases": cases}).to_string()).unwrap();
    let mut python = Command::new("python3");
    succeed(python.arg(root().join("tests/reference/onnx_run.py")).arg(&file).env("PYTHONPATH", onnx_runtime()));
    let tokens = rows().iter().map(Vec::len).sum::<usize>() as i64;
    let read = |i: usize| {
        let numbers: Vec<f32> =
            std::fs::read(out(i)).unwrap().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Tensor::from_slice(&numbers).view([tokens, -1])
    };
    (0..folders.len()).map(read).collect()
}

#[test]
fn every_family_gives_the_same_logits_in_onnx_runtime() {
    needs!(ONNX_RUNTIME);
    let plain = converted().map(|name| (name, json!({})));
    let cases: Vec<(&str, Value)> = plain.chain(variants()).collect();
    let made: Vec<Exported> = cases.iter().map(|(name, more)| Exported::of(name, more.clone())).collect();
    for (made, (name, more)) in made.iter().zip(&cases) {
        let summary = export_to(made, "onnx", Precision::Float32).unwrap_or_else(|e| panic!("{name} {more}: {e}"));
        assert_eq!(summary.tensors.keys().collect::<Vec<_>>(), [&"float32"], "{name} {more}");
    }
    let folders: Vec<PathBuf> = made.iter().map(|made| made.folder.path().join("onnx")).collect();
    for ((found, made), (name, more)) in logits_elsewhere(&folders).iter().zip(&made).zip(&cases) {
        let expected = own_logits(&made.model());
        assert!(expected.std(true).double_value(&[]) > 0.05, "{name} {more}: the logits are all alike");
        assert_close(&format!("{name} {more}"), found, &expected, 1e-4);
    }
}

#[test]
fn narrow_formats_give_nearly_the_same_logits() {
    needs!(ONNX_RUNTIME);
    let cases = [
        ("llama", json!({"tie_word_embeddings": true})),
        ("gemma2", json!({})),
        ("gpt2", json!({})),
        ("bloom", json!({})),
        ("qwen2_moe", json!({})),
    ];
    let formats = [(Precision::Float16, "float16", 5e-3), (Precision::Int8, "uint8", 0.2)];
    let made: Vec<Exported> = cases.iter().map(|(name, more)| Exported::of(name, more.clone())).collect();
    let mut folders = Vec::new();
    for made in &made {
        for (precision, kind, _) in formats {
            let summary = export_to(made, kind, precision).unwrap();
            let error = summary.read_back.relative_error[kind];
            assert!(error > 1e-5 && error < if kind == "uint8" { 0.01 } else { 1e-3 }, "{kind}: {error}");
            folders.push(made.folder.path().join(kind));
        }
    }
    let found = logits_elsewhere(&folders);
    for (i, (made, (name, _))) in made.iter().zip(&cases).enumerate() {
        let expected = own_logits(&made.model());
        for (found, (_, kind, limit)) in found[2 * i..].iter().zip(formats) {
            let gap = (found - &expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[]);
            assert!(gap < limit && gap > 1e-6, "{name} {kind}: {gap}");
        }
    }
}

/// Frequencies that depend on the length of each sequence: those of the length that it has in the end, for all of its tokens.
#[test]
fn frequencies_follow_the_length_of_each_sequence() {
    needs!(ONNX_RUNTIME);
    let dynamic = json!({"max_position_embeddings": 20, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}});
    let long = json!({"original_max_position_embeddings": 20, "rope_scaling": {"type": "longrope",
        "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]}});
    for (name, more) in [("llama", dynamic), ("phi3", long)] {
        let made = Exported::of(name, more);
        let summary = export_to(&made, "onnx", Precision::Float32).unwrap();
        assert_eq!(summary.notes.iter().any(|note| note.contains("outgrows 20 tokens")), name == "phi3");
        let script = "import json, sys; import numpy as np; from onnx_run import logits; \
            rows = json.loads(sys.argv[2]); np.concatenate(logits(sys.argv[1], rows, 0)).astype('<f4').tofile(sys.argv[3])";
        let out = made.folder.path().join("logits");
        let mut python = Command::new("python3");
        let path = format!("{}:{}", onnx_runtime().display(), root().join("tests/reference").display());
        python.args(["-c", script]).arg(made.folder.path().join("onnx")).arg(json!(rows()).to_string()).arg(&out);
        succeed(python.env("PYTHONPATH", path));
        let numbers: Vec<f32> =
            std::fs::read(out).unwrap().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let expected = own_logits(&made.model());
        assert_close(name, &Tensor::from_slice(&numbers).view_as(&expected), &expected, 1e-4);
    }
}

#[test]
fn a_graph_has_the_names_and_shapes_that_runtimes_know() {
    let made = Exported::of("qwen2", json!({}));
    export_to(&made, "onnx", Precision::Float16).unwrap();
    let graph = graph(&made.folder.path().join("onnx"));
    assert_eq!(graph.problem(), None);
    let described = |ports: &[ft::onnx::TensorPort]| -> Vec<String> {
        let length = |d: &Dimension| match d {
            Dimension::Fixed(n) => n.to_string(),
            Dimension::Named(name) => name.clone(),
        };
        let one = |port: &ft::onnx::TensorPort| {
            let shape: Vec<String> = port.shape.iter().map(length).collect();
            format!("{} {} {}", port.value, port.kind.name(), shape.join(" "))
        };
        ports.iter().map(one).collect()
    };
    let inputs = described(&graph.inputs);
    assert_eq!(inputs[0], "input_ids int64 batch_size sequence_length");
    assert_eq!(inputs[1], "attention_mask int64 batch_size total_sequence_length");
    assert_eq!(inputs[2], "position_ids int64 batch_size sequence_length");
    assert_eq!(inputs[3], "past_key_values.0.key float16 batch_size 2 past_sequence_length 16");
    assert_eq!(inputs.len(), 3 + 2 * 4);
    let outputs = described(&graph.outputs);
    assert!(outputs.contains(&"logits float32 batch_size sequence_length 512".into()), "{outputs:?}");
    assert!(outputs.contains(&"present.3.value float16 batch_size 2 total_sequence_length 16".into()), "{outputs:?}");
    assert_eq!(outputs.len(), 1 + 2 * 4);
    // A model that does not know positions does not ask for them.
    let made = Exported::of("bloom", json!({}));
    export_to(&made, "onnx", Precision::Float32).unwrap();
    let bloom = self::graph(&made.folder.path().join("onnx"));
    assert!(!bloom.inputs.iter().any(|port| port.value.name() == "position_ids"));
}

#[test]
fn weights_are_the_model_s() {
    let made = Exported::of("gemma", json!({"tie_word_embeddings": true}));
    let summary = export_to(&made, "onnx", Precision::Float32).unwrap();
    let (folder, tensors) = (made.folder.path().join("onnx"), opened(&made.model()));
    assert_eq!(summary.read_back.tensors, tensors.len() as u64, "head and embedding are one");
    let graph = graph(&folder);
    for (name, tensor) in &tensors {
        let found: Vec<f32> =
            weight(&folder, &graph, name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let expected = if name.contains("norm") { tensor + 1.0 } else { tensor.shallow_clone() };
        assert!(Tensor::from_slice(&found).equal(&expected.view([-1])), "{name}");
    }
    let files = std::fs::metadata(folder.join("model.onnx")).unwrap().len()
        + std::fs::metadata(folder.join("model.onnx.data")).unwrap().len();
    assert_eq!(summary.bytes, files);

    // In eight bits, embedding and head share their codes, too.
    let summary = export_to(&made, "int8", Precision::Int8).unwrap();
    assert_eq!(summary.tensors["uint8"], 1 + 4 * 7);
    let folder = made.folder.path().join("int8");
    let graph = self::graph(&folder);
    let name = "model.layers.1.mlp.down_proj.weight";
    let codes = weight(&folder, &graph, &format!("{name}_quantized"));
    let steps = weight(&folder, &graph, &format!("{name}_scale"));
    let (outputs, inputs) = tensors[name].size2().unwrap();
    let codes = Tensor::from_slice(&codes).to_kind(Kind::Float).view([inputs, outputs]) - 128.0;
    let steps: Vec<f32> = steps.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let steps = Tensor::from_slice(&steps);
    let gap = ((codes * &steps).tr() - &tensors[name]).abs() / steps.unsqueeze(1);
    assert!(gap.max().double_value(&[]) < 0.501, "more than half a step");
    assert!(graph.operators.iter().any(|operator| operator.operator == "MatMulInteger"));
    assert!(graph.initializers.iter().all(|i| i.kind != ElementType::Float16));
}

#[test]
fn a_merged_adapter_gives_the_model_that_ft_merge_writes() {
    for name in ["qwen2", "gpt2", "gpt_neox", "qwen3_moe"] {
        let made = Exported::of(name, json!({}));
        let adapter = lora(&made, json!({}));
        let part = || WeightedAdapter::read(&adapter, 1.0).unwrap();
        let at = |name: &str| made.folder.path().join(name);
        merge_into_model(&made.model(), &[part()], &at("merged"), None, 1 << 30).unwrap();
        for (model, adapter, out) in [(made.model(), Some(part()), "one"), (at("merged"), None, "two")] {
            let (out, precision, force) = (at(out), Precision::Int8, false);
            export(&OnnxExportOptions { model: &model, adapter, out: &out, precision, force }, |_, _| Ok(())).unwrap();
        }
        export_to(&made, "base", Precision::Int8).unwrap();
        let data = |folder: &str| std::fs::read(at(folder).join("model.onnx.data")).unwrap();
        assert!(data("one") == data("two") && data("one") != data("base"), "{name}");
        assert_eq!(graph(&at("one")), graph(&at("two")), "{name}");
    }
}

/// Routers are in float32 whatever matrices are, and an adapter is merged into experts too.
#[test]
fn routers_stay_in_float32() {
    let made = Exported::of("qwen2_moe", json!({}));
    for (precision, kind) in [(Precision::Float16, ElementType::Float16), (Precision::Int8, ElementType::Uint8)] {
        let name = format!("{kind:?}");
        export_to(&made, &name, precision).unwrap();
        let graph = graph(&made.folder.path().join(name));
        let of = |name: &str| graph.initializers.iter().find(|i| i.value.name().starts_with(name)).unwrap().kind;
        assert_eq!(of("model.layers.1.mlp.gate.weight"), ElementType::Float);
        assert_eq!(of("model.layers.1.mlp.shared_expert_gate.weight"), ElementType::Float);
        assert_eq!(of("model.layers.1.mlp.experts.3.down_proj.weight"), kind);
    }
}

#[test]
fn what_has_no_converter_is_refused_by_name() {
    for (name, reason) in [
        ("gpt_oss", "gpt_oss: experts with bounded gates, and attention with sinks, have no converter to ONNX"),
        ("deepseek_v2", "deepseek_v2: attention that makes keys and values of one vector"),
    ] {
        let made = Exported::of(name, json!({}));
        let error = export_to(&made, "onnx", Precision::Float32).expect_err(name);
        assert!(error.to_string().contains(reason) && !error.hints().is_empty(), "{error}");
        assert!(!made.folder.path().join("onnx").exists());
    }
    for (name, reason) in [
        ("own/rnn", "ft_rnn: recurrent layers have no converter to ONNX"),
        ("gemma3n/shared", "gemma3n_text: its layers have no converter to ONNX"),
    ] {
        let folder = with_weights(name, name);
        let (model, out) = (folder.path(), folder.path().join("onnx"));
        let precision = Precision::Float32;
        let options = OnnxExportOptions { model, adapter: None, out: &out, precision, force: false };
        let error = export(&options, |_, _| Ok(())).expect_err(name).to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn settings_of_genai_name_what_the_graph_has() {
    let made = Exported::of("llama", json!({}));
    let generation = json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 5]});
    std::fs::write(made.model().join("generation_config.json"), generation.to_string()).unwrap();
    export_to(&made, "onnx", Precision::Int8).unwrap();
    let folder = made.folder.path().join("onnx");
    let settings: Value = ft::fsutil::read_json(&folder.join("genai_config.json")).unwrap();
    let model = &settings["model"];
    assert_eq!(model["decoder"]["inputs"]["position_ids"], "position_ids");
    assert_eq!(model["decoder"]["inputs"]["past_value_names"], "past_key_values.%d.value");
    assert_eq!((&model["decoder"]["head_size"], &model["decoder"]["num_key_value_heads"]), (&json!(16), &json!(2)));
    assert_eq!((&model["context_length"], &model["vocab_size"]), (&json!(256), &json!(512)));
    let stops: Vec<u64> = serde_json::from_value(model["eos_token_id"].clone()).unwrap();
    assert!(stops.contains(&2) && stops.contains(&5), "{stops:?}");
    assert_eq!((&settings["search"]["temperature"], &settings["search"]["top_p"]), (&json!(0.6), &json!(0.9)));
    for file in ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"] {
        let (own, copy) = (std::fs::read(made.model().join(file)), std::fs::read(folder.join(file)));
        assert_eq!(own.unwrap(), copy.unwrap(), "{file}");
    }
}

#[test]
fn an_interrupted_export_leaves_nothing() {
    let made = Exported::of("llama", json!({}));
    let (model, out) = (made.model(), made.folder.path().join("onnx"));
    let precision = Precision::Float32;
    for stop in [0, 7, 60] {
        let options = OnnxExportOptions { model: &model, adapter: None, out: &out, precision, force: false };
        let mut totals = Vec::new();
        let error = export(&options, |done, total| {
            totals.push(total);
            if done == stop { Err(Error::interrupted("stopped")) } else { Ok(()) }
        });
        assert!(error.expect_err("stopped").to_string().contains("stopped"));
        assert_eq!(totals, vec![2 * 39; stop as usize + 1]);
        assert_eq!(std::fs::read_dir(made.folder.path()).unwrap().count(), 1, "the model alone");
    }
}

#[test]
fn the_command_reports_refuses_and_replaces() {
    let space = Workspace::bare();
    families::write("qwen2", json!({}), Kind::BFloat16, &space.path("model"));
    let line = ["export", "model", "--to", "onnx", "--out", "out/onnx/", "--json"];
    let report: Value = serde_json::from_slice(&space.ft(&line).stdout).unwrap();
    assert_eq!((&report["format"], &report["architecture"]), (&json!("f32"), &json!("qwen2")));
    assert_eq!((&report["opset"], &report["chat_template"]), (&json!(17), &json!(true)));
    assert!(space.refused(&line).contains("the folder exists and is not empty"));
    let shown = space.ft(&["export", "model", "--to", "onnx", "--out", "out/onnx", "--type", "INT8", "--force"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("relative error uint8") && shown.contains("opset 17"), "{shown}");
    for (line, reason) in [
        (&["model", "--to", "onnx", "--out", "model", "--force"][..], "this folder has model.safetensors"),
        (&["model", "--to", "onnx", "--out", "model/config.json"], "is a file"),
        (&["model", "--to", "onnx"], "a folder with a name of its own"),
        (&["model", "--to", "onnx", "--out", "x", "--type", "q8_0"], "an ONNX export has no such format"),
        (&["model", "--to", "onnx", "--out", "x", "--modelfile"], "Ollama reads GGUF files only"),
        (&["model", "--to", "onnx", "--out", "x", "--base", "model"], "is no adapter"),
        (&["model", "--to", "gguf", "--out", "x.gguf", "--type", "int8"], "GGUF has no such format"),
        (&["nowhere", "--to", "onnx", "--out", "x"], "nowhere/config.json"),
    ] {
        let said = space.refused(&[&["export"][..], line].concat());
        assert!(said.contains(reason), "{line:?}: {said}");
    }
    // A number that float16 does not have.
    let file = space.path("model/model.safetensors");
    let mut tensors = tensors(&file);
    let broken = tensors["model.layers.2.mlp.up_proj.weight"].shallow_clone() * 1e7;
    tensors.insert("model.layers.2.mlp.up_proj.weight".into(), broken);
    save_tensors(&file, &tensors);
    let said = space.refused(&["export", "model", "--to", "onnx", "--out", "x", "--type", "f16"]);
    assert!(said.contains("model.layers.2.mlp.up_proj.weight") && said.contains("does not fit into float16"), "{said}");
    // A tensor that is no part of the model.
    tensors.insert("model.layers.9.mlp.up_proj.weight".into(), Tensor::from(1.0));
    save_tensors(&file, &tensors);
    let said = space.refused(&["export", "model", "--to", "onnx", "--out", "x"]);
    assert!(said.contains("model.layers.9.mlp.up_proj.weight is no part of a qwen2 model"), "{said}");
    tensors.retain(|name, _| !name.contains("layers.3.") && !name.contains("layers.9."));
    save_tensors(&file, &tensors);
    let said = space.refused(&["export", "model", "--to", "onnx", "--out", "x"]);
    assert!(said.contains("model.layers.3.") && said.contains("is missing"), "{said}");
    assert!(!space.path("x").exists());
}

/// Simulates a full disk: every write beyond a file size fails (`ulimit -f`).
#[test]
fn a_full_disk_leaves_nothing() {
    let made = Exported::of("llama", json!({}));
    let script =
        format!("trap '' XFSZ; ulimit -f 64; exec {} export model --to onnx --out onnx", ft_binary().display());
    let output = Command::new("bash").args(["-c", &script]).current_dir(made.folder.path()).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large") && said.contains("ulimit -f"), "{said}");
    assert_eq!(std::fs::read_dir(made.folder.path()).unwrap().count(), 1, "the model");
}
