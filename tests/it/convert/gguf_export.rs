//! Writes models of every family as GGUF files and reads them back: tensors, config.json, token ids, logits.

use crate::support::command::{ft_binary, stderr};
use crate::support::families::{self, FAMILIES};
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::convert::gguf_export::{FORMATS, FileFormat, GgufExportOptions, GgufExportSummary, export};
use ft::convert::gguf_import::{GgufImportOptions, import};
use ft::data::chat::ChatTokenizer;
use ft::data::encode::{Supervise, encode_row};
use ft::data::rows::{RowFormat, read_rows};
use ft::error::Result;
use ft::gguf::file::Gguf;
use ft::gguf::quant::GgmlType;
use ft::gguf::quantise::{quantise, quantise_by_importance};
use ft::models::Config;
use ft::nn::safetensors::Dtype;
use ft::nn::{Tokens, Weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Kind, Tensor};
use tempfile::TempDir;

/// A folder with a model in `model`, and a file next to it.
pub struct Exported {
    /// The folder that both are in.
    pub folder: TempDir,
}

impl Exported {
    /// Makes a random model of a family.
    pub fn of(model_type: &str, more: Value) -> Self {
        let made = Self { folder: tempfile::tempdir().unwrap() };
        families::write(model_type, more, Kind::Float, &made.model());
        made
    }

    /// Returns the folder of the model.
    pub fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    /// Returns the file.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("out.gguf")
    }

    /// Exports the model to the file.
    pub fn export(&self, format: GgmlType) -> Result<GgufExportSummary> {
        self.export_as(FileFormat::of_kind(format), None)
    }

    /// Exports the model to the file, with errors weighted by these rows.
    fn export_as(&self, format: FileFormat, imatrix: Option<&Path>) -> Result<GgufExportSummary> {
        let (model, out, format) = (self.model(), self.file(), Some(format));
        let options = GgufExportOptions {
            model: &model,
            adapter: None,
            out: &out,
            format,
            force: true,
            split: Default::default(),
            imatrix,
            modelfile: false,
        };
        export(&options, |_, _| Ok(()))
    }

    /// Exports and returns the error's text. No file may be left.
    #[track_caller]
    fn refused(&self) -> String {
        let error = self.export(GgmlType::F32).expect_err("refused");
        assert!(!error.hints().is_empty(), "{error}");
        assert!(!self.file().exists());
        error.to_string()
    }

    /// Imports the file and returns the folder.
    pub fn imported(&self) -> PathBuf {
        let out = self.folder.path().join("imported");
        let (file, dtype) = (self.file(), Dtype::F32);
        let options = GgufImportOptions { file: &file, out: &out, dtype, force: true, pre_tokenizer: None };
        import(&options, |_, _| Ok(())).unwrap();
        out
    }
}

/// Returns the parameters of a model by name.
pub fn opened(folder: &Path) -> BTreeMap<String, Tensor> {
    let config = Config::read(folder).unwrap();
    ft::models::weights(folder, &config).unwrap().all().into_iter().collect()
}

/// Returns the logits of some rows.
pub fn logits(model: &Path) -> Tensor {
    let model = frozen(model, Kind::Float);
    let rows: Vec<Vec<u32>> = (1..5).map(|i| (0..11 * i).map(|t| (t * 7 + i) % 400).collect()).collect();
    let tokens = Tokens::pack(&rows, device());
    let all = Tensor::arange(tokens.len() as i64, (Kind::Int64, device()));
    model.infer(&tokens, |out| out.logits(&all).to_device(tch::Device::Cpu)).unwrap()
}

#[test]
fn every_family_comes_back_with_equal_tensors_and_logits() {
    for model_type in FAMILIES {
        let made = Exported::of(model_type, json!({}));
        let summary = made.export(GgmlType::F32).unwrap_or_else(|e| panic!("{model_type}: {e}"));
        assert_eq!(summary.tensors.keys().collect::<Vec<_>>(), ["F32"], "{model_type}");
        let (ours, back) = (opened(&made.model()), opened(&made.imported()));
        let tied = |name: &String| name != "lm_head.weight";
        let names = |map: &BTreeMap<String, Tensor>| map.keys().filter(|n| tied(n)).cloned().collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&back), "{model_type}");
        for (name, tensor) in &ours {
            let found = &back[name];
            // 1 is added to the norms of Gemma, which rounds, and subtracted again.
            let rounded = model_type.starts_with("gemma") && name.contains("norm");
            let gap = (tensor - found).abs().max().double_value(&[]);
            assert!(gap <= if rounded { 1.2e-7 } else { 0.0 }, "{model_type} {name}: {gap}");
        }
        let expected = logits(&made.model());
        assert!(expected.std(true).double_value(&[]) > 0.05, "{model_type}: the logits are all alike");
        for model in [made.file(), made.imported()] {
            assert_close(&format!("{model_type} {}", model.display()), &logits(&model), &expected, 1e-5);
        }
    }
}

#[test]
fn variants_of_families_come_back_too() {
    for (model_type, more) in [
        ("llama", json!({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true, "head_dim": 32})),
        ("llama", json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}})),
        (
            "llama",
            json!({"rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 2.0}}),
        ),
        (
            "llama",
            json!({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}}),
        ),
        (
            "phi3",
            json!({"original_max_position_embeddings": 16, "partial_rotary_factor": 0.75, "rope_scaling": {
            "type": "longrope", "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0], "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]}}),
        ),
        ("phi3", json!({"sliding_window": 16})),
        ("falcon", json!({"new_decoder_architecture": false, "multi_query": true, "num_kv_heads": null})),
        ("falcon", json!({"num_ln_in_parallel_attn": 1})),
        ("stablelm", json!({"use_parallel_residual": true, "use_qkv_bias": false})),
        ("gpt_neox", json!({"use_parallel_residual": false})),
        (
            "olmo3",
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
        ),
        (
            "gemma3_text",
            json!({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}),
        ),
        ("cohere2", json!({"sliding_window_pattern": 2})),
        ("cohere", json!({"num_hidden_layers": 64, "use_qk_norm": true, "hidden_size": 32, "intermediate_size": 32})),
        ("qwen2_moe", json!({"qkv_bias": false, "tie_word_embeddings": true})),
        ("gpt2", json!({"n_inner": 96, "tie_word_embeddings": false})),
        ("mpt", json!({"attn_config": {"clip_qkv": 1.5, "alibi_bias_max": 8}, "tie_word_embeddings": false})),
        ("bloom", json!({"tie_word_embeddings": false, "n_head": 4})),
        ("gpt_oss", json!({"rope_scaling": null, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}})),
        (
            "deepseek_v2",
            json!({"first_k_dense_replace": 0, "n_shared_experts": 1, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.707, "mscale_all_dim": 0.707}}),
        ),
        ("deepseek_v2", json!({"num_hidden_layers": 27, "q_lora_rank": null, "hidden_size": 32})),
    ] {
        let made = Exported::of(model_type, more.clone());
        made.export(GgmlType::F32).unwrap_or_else(|e| panic!("{model_type} {more}: {e}"));
        let expected = logits(&made.model());
        for model in [made.file(), made.imported()] {
            assert_close(&format!("{model_type} {more}"), &logits(&model), &expected, 1e-5);
        }
    }
}

/// Experts in MXFP4 keep their bits: in the file, in a directory made of it, and when the file is a model's base.
#[test]
fn experts_in_mxfp4_are_written_and_read_as_they_are() {
    let made = Exported::of("gpt_oss", json!({}));
    let folder = made.model();
    let mut tensors = opened(&folder);
    tensors.retain(|name, _| !(name.contains(".experts.") && name.ends_with(".weight")));
    let bytes = (Kind::Uint8, tch::Device::Cpu);
    tch::manual_seed(3);
    for layer in 0..4 {
        for (name, outputs, groups) in [("gate_up_proj", 64, 2), ("down_proj", 64, 1)] {
            let stack = format!("model.layers.{layer}.mlp.experts.{name}");
            tensors.insert(format!("{stack}_blocks"), Tensor::randint(256, [4, outputs, groups, 16], bytes));
            tensors.insert(format!("{stack}_scales"), Tensor::randint_low(119, 125, [4, outputs, groups], bytes));
        }
    }
    save_tensors(&folder.join("model.safetensors"), &tensors);
    let mut config: Value = ft::fsutil::read_json(&folder.join("config.json")).unwrap();
    config["quantization_config"] = json!({"quant_method": "mxfp4"});
    ft::fsutil::write_json(&folder.join("config.json"), &config).unwrap();
    let summary = made.export(GgmlType::F32).unwrap();
    assert_eq!((summary.format.as_str(), summary.tensors["MXFP4"]), ("MXFP4", 4 * 3));
    assert_eq!(summary.read_back.relative_error["MXFP4"], 0.0);

    // A block of the file is the exponent and halves of bytes 16 numbers apart.
    let gguf = Gguf::open(&made.file()).unwrap();
    assert_eq!(gguf.unsigned("general.file_type").unwrap(), Some(38));
    let up = gguf.tensors().iter().find(|t| t.name == "blk.1.ffn_up_exps.weight").unwrap();
    let (expert, row, group) = (2, 5, 1);
    let found = &gguf.data(up)[((expert * 32 + row) * 2 + group) * 17..][..17];
    let stored = |ending: &str| {
        let all = &tensors[&format!("model.layers.1.mlp.experts.gate_up_proj{ending}")];
        let of_row = all.get(expert as i64).get(2 * row as i64 + 1).get(group as i64);
        Vec::<u8>::try_from(of_row.view([-1])).unwrap()
    };
    let halves: Vec<u8> = stored("_blocks").iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
    let expected: Vec<u8> = (0..16).map(|i| halves[i] | halves[i + 16] << 4).collect();
    assert_eq!((found[0], &found[1..]), (stored("_scales")[0], &expected[..]));

    let expected = logits(&folder);
    for model in [made.file(), made.imported()] {
        assert_close(&model.display().to_string(), &logits(&model), &expected, 1e-5);
    }
    let model = frozen(&made.file(), Kind::Float);
    assert!(model.describe_quantisation().unwrap().contains("MXFP4"));
}

#[test]
fn a_window_that_the_format_cannot_hold_limits_the_context() {
    let made = Exported::of("mistral", json!({}));
    let summary = made.export(GgmlType::F32).unwrap();
    assert!(summary.notes.iter().any(|note| note.contains("64 tokens instead of 256")), "{:?}", summary.notes);
    assert_eq!(Config::read(&made.imported()).unwrap().max_position_embeddings, Some(64));
}

#[test]
fn every_type_stores_what_the_gguf_package_would() {
    let fixture = Weights::open_file(&fixture("gguf/quantised.safetensors")).unwrap();
    let values: Vec<f32> = Vec::try_from(fixture.get("values").unwrap()).unwrap();
    assert!(values.len() > 2000);
    // The package does not write IQ4_NL.
    for format in FORMATS.iter().filter(|f| f.main.block_elements() <= 32 && f.main != GgmlType::IQ4_NL) {
        let kind = format.main;
        let expected: Vec<u8> = Vec::try_from(fixture.get(&kind.name()).unwrap()).unwrap();
        let found = quantise(kind, &values);
        let block = kind.block_bytes();
        let unequal = found.chunks(block).zip(expected.chunks(block)).position(|(a, b)| a != b);
        assert_eq!((found.len(), unequal), (expected.len(), None), "{}", kind.name());
    }
}

#[test]
fn every_type_has_the_bytes_of_ggmls_quantiser_with_and_without_importance() {
    let file = Weights::open_file(&fixture("gguf/quantisers.safetensors")).unwrap();
    let floats = |name: &str| Vec::<f32>::try_from(file.get(name).unwrap().view([-1])).unwrap();
    let (values, importance) = (floats("values"), floats("importance"));
    let mut compared = 0;
    for name in file.names() {
        let (kind, weighted) = name.strip_suffix(".weighted").map_or((name, false), |kind| (kind, true));
        let Some(kind) = GgmlType::named(kind) else { continue };
        let expected: Vec<u8> = Vec::try_from(file.get(name).unwrap()).unwrap();
        let found = if weighted { quantise_by_importance(kind, &values, &importance) } else { quantise(kind, &values) };
        let block = kind.block_bytes();
        let unequal = found.chunks(block).zip(expected.chunks(block)).filter(|(a, b)| a != b).count();
        assert_eq!((found.len(), unequal), (expected.len(), 0), "{name}: blocks that differ");
        compared += 1;
    }
    assert_eq!(compared, 21);
}

#[test]
fn an_importance_matrix_is_the_mean_square_of_each_layers_inputs() {
    let made = Exported::of("llama", json!({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}));
    let rows = made.folder.path().join("rows.jsonl");
    std::fs::write(
        &rows,
        "{\"text\": \"The patient sleeps. The doctor reads a letter.\"}\n{\"text\": \"Two more.\"}\n",
    )
    .unwrap();
    let (model, out) = (made.model(), made.file());
    let summary = made.export_as(FileFormat::named("q4_0").unwrap(), Some(&rows)).unwrap();
    let gguf = Gguf::open(&out).unwrap();
    assert_eq!(gguf.text("quantize.imatrix.dataset").unwrap(), Some("rows.jsonl"));
    assert_eq!(gguf.unsigned("quantize.imatrix.entries_count").unwrap(), Some(2 * 7));

    // The values of the first layer read what its norm makes of the embedded tokens.
    let source = Weights::open(&model).unwrap();
    let of = |name: &str| source.get(&format!("model.{name}.weight")).unwrap().to_kind(Kind::Float);
    let tokenizer = ChatTokenizer::load(&model, None).unwrap();
    let ids: Vec<i64> = read_rows(&rows, RowFormat::Auto, None)
        .unwrap()
        .1
        .iter()
        .flat_map(|row| encode_row(row, &rows, &tokenizer, Supervise::Assistant).unwrap().examples.remove(0).ids)
        .map(i64::from)
        .collect();
    assert_eq!(summary.calibration_tokens, Some(ids.len()));
    let x = of("embed_tokens").index_select(0, &Tensor::from_slice(&ids));
    let root = (x.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + 1e-5).sqrt();
    let inputs = x / root * of("layers.0.input_layernorm");
    let importance = inputs.square().mean_dim([0i64].as_slice(), false, Kind::Float);
    let importance: Vec<f32> = Vec::try_from(importance).unwrap();
    let values: Vec<f32> = Vec::try_from(of("layers.0.self_attn.v_proj").view([-1])).unwrap();
    let tensor = gguf.tensors().iter().find(|tensor| tensor.name == "blk.0.attn_v.weight").unwrap();
    let found = gguf.data(tensor);
    let equal = |expected: &[u8]| {
        let pairs = found.chunks(18).zip(expected.chunks(18));
        pairs.filter(|(a, b)| a == b).count() as f64 / (found.len() / 18) as f64
    };
    // Sums in another order may change the last bit of a number, and that a choice between two scales.
    assert!(equal(&quantise_by_importance(GgmlType::Q4_0, &values, &importance)) > 0.98);
    assert!(equal(&quantise(GgmlType::Q4_0, &values)) < 0.5);
}

#[test]
fn an_importance_matrix_that_would_change_nothing_is_refused() {
    let made = Exported::of("llama", json!({}));
    let rows = made.folder.path().join("rows.jsonl");
    std::fs::write(&rows, "").unwrap();
    let out = made.file();
    for (format, told) in [("q8_0", "does not regard it"), ("f16", "does not regard it"), ("q4_k_m", "no")] {
        let error = made.export_as(FileFormat::named(format).unwrap(), Some(&rows)).expect_err(format);
        assert!(error.to_string().contains(told) && !error.hints().is_empty(), "{error}");
        assert!(!out.exists());
    }
}

#[test]
fn vectors_norms_and_routers_stay_in_float32() {
    for (model_type, unquantised) in
        [("qwen2_moe", &["ffn_gate_inp", "norm", "bias"][..]), ("gpt2", &["norm", "bias", "position_embd"])]
    {
        for format in FORMATS.iter().filter(|format| format.main.block_elements() <= 32) {
            let kind = format.main;
            let made = Exported::of(model_type, json!({}));
            made.export(kind).unwrap();
            let gguf = Gguf::open(&made.file()).unwrap();
            assert_eq!(gguf.unsigned("general.file_type").unwrap(), Some(format.number.into()));
            for tensor in gguf.tensors() {
                let plain = unquantised.iter().any(|part| tensor.name.contains(part));
                let expected = if plain { GgmlType::F32 } else { kind };
                assert_eq!(tensor.kind, expected, "{model_type} {} {}", kind.name(), tensor.name);
            }
        }
    }
}

#[test]
fn rows_that_fill_no_blocks_are_written_in_float16_and_reported() {
    let made = Exported::of("llama", json!({"intermediate_size": 72}));
    let summary = made.export(GgmlType::Q8_0).unwrap();
    assert_eq!(summary.tensors["F16"], 4, "{:?}", summary.tensors);
    assert!(summary.notes.iter().any(|note| note.contains("4 in F16")), "{:?}", summary.notes);
    assert!(summary.read_back.relative_error["Q8_0"] > 1e-4 && summary.read_back.relative_error["Q8_0"] < 0.01);
}

#[test]
fn mixes_have_six_bits_where_llama_quantize_has_them() {
    let made = Exported::of("llama", json!({"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 8}));
    let out = made.file();
    for (name, main, error) in
        [("q4_k_m", GgmlType::Q4_K, 0.08), ("q5_k_m", GgmlType::Q5_K, 0.04), ("q6_k", GgmlType::Q6_K, 0.02)]
    {
        let summary = made.export_as(FileFormat::named(name).unwrap(), None).unwrap();
        assert!(summary.notes.is_empty(), "{:?}", summary.notes);
        let found = summary.read_back.relative_error[&main.name()];
        assert!(found < error && found > error / 10.0, "{name}: {found}");
        let gguf = Gguf::open(&out).unwrap();
        let of = |name: &str| gguf.tensors().iter().find(|t| t.name == name).unwrap().kind;
        assert_eq!((of("output.weight"), of("blk.0.ffn_down.weight")), (GgmlType::Q6_K, GgmlType::Q6_K), "{name}");
        assert_eq!(
            (of("blk.1.ffn_down.weight"), of("blk.1.attn_v.weight"), of("token_embd.weight")),
            (main, main, main),
            "{name}"
        );
        assert_eq!((of("blk.3.attn_v.weight"), of("blk.3.attn_q.weight")), (GgmlType::Q6_K, main), "{name}");
    }
    for (name, head, down, values, query) in [
        ("q2_k", GgmlType::Q6_K, GgmlType::Q3_K, GgmlType::Q3_K, GgmlType::Q2_K),
        ("q3_k_s", GgmlType::Q6_K, GgmlType::Q3_K, GgmlType::Q3_K, GgmlType::Q3_K),
        ("q3_k_m", GgmlType::Q6_K, GgmlType::Q4_K, GgmlType::Q4_K, GgmlType::Q3_K),
        ("q3_k_l", GgmlType::Q6_K, GgmlType::Q5_K, GgmlType::Q5_K, GgmlType::Q3_K),
        ("q4_k_s", GgmlType::Q6_K, GgmlType::Q4_K, GgmlType::Q4_K, GgmlType::Q4_K),
    ] {
        made.export_as(FileFormat::named(name).unwrap(), None).unwrap();
        let gguf = Gguf::open(&out).unwrap();
        let of = |name: &str| gguf.tensors().iter().find(|t| t.name == name).unwrap().kind;
        let found = ["output.weight", "blk.4.ffn_down.weight", "blk.4.attn_v.weight", "blk.4.attn_q.weight"].map(of);
        assert_eq!(found, [head, down, values, query], "{name}");
    }
    // With 80 layers and fewer heads of keys than of queries, values have five bits.
    let wide = json!({"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 80});
    let made = Exported::of("llama", wide);
    for (name, values) in [("q3_k_m", GgmlType::Q5_K), ("q4_k_m", GgmlType::Q5_K), ("q5_k_m", GgmlType::Q5_K)] {
        made.export_as(FileFormat::named(name).unwrap(), None).unwrap();
        let gguf = Gguf::open(&made.file()).unwrap();
        let of = |name: &str| gguf.tensors().iter().find(|t| t.name == name).unwrap().kind;
        assert_eq!(of("blk.11.attn_v.weight"), values, "{name}");
    }
    // Rows of 64 numbers fill no block of 256.
    let made = Exported::of("llama", json!({}));
    let summary = made.export_as(FileFormat::named("q4_k_m").unwrap(), None).unwrap();
    assert!(summary.notes[0].contains("in Q5_0") && summary.notes[0].contains("in Q8_0"), "{:?}", summary.notes);
}

#[test]
fn what_llama_cpp_computes_in_another_way_is_refused_with_the_reason() {
    for (model_type, more, reason) in [
        ("llama", json!({"hidden_act": "gelu"}), "activation is `gelu`"),
        ("llama", json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}), "dynamic"),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 2.0}}),
            "attention_factor",
        ),
        (
            "qwen2",
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64}}),
            "llama3",
        ),
        ("gemma2", json!({"query_pre_attn_scalar": 20}), "query_pre_attn_scalar"),
        ("gemma2", json!({"attn_logit_softcapping": null}), "attn_logit_softcapping"),
        (
            "gemma3_text",
            json!({"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention",
            "sliding_attention", "sliding_attention", "full_attention"]}),
            "period",
        ),
        ("gemma3n_text", json!({}), "names for `gemma3n_text`"),
        ("gemma", json!({"tie_word_embeddings": false}), "output head"),
        ("smollm3", json!({"no_rope_layers": [1, 0, 1, 1]}), "no_rope_layers"),
        ("cohere", json!({"use_qk_norm": true}), "64 layers"),
        ("falcon", json!({"parallel_attn": false, "new_decoder_architecture": false}), "parallel_attn"),
        ("falcon", json!({"bias": true}), "biases"),
        ("falcon", json!({"alibi": true}), "ALiBi"),
        ("mpt", json!({"attn_config": {"softmax_scale": 0.5}}), "softmax_scale"),
        ("gpt_oss", json!({"swiglu_limit": 5.0}), "swiglu_limit"),
        ("gpt_oss", json!({"attention_bias": false}), "without biases"),
        ("deepseek_v2", json!({"q_lora_rank": null}), "27 layers"),
        (
            "deepseek_v2",
            json!({"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}),
            "groups of experts",
        ),
        (
            "deepseek_v2",
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
            "mscale",
        ),
        ("qwen3", json!({"attention_bias": true}), "biases"),
        ("qwen3_moe", json!({"norm_topk_prob": false}), "norm_topk_prob"),
        ("qwen3_moe", json!({"mlp_only_layers": [1]}), "layer 1 has no experts"),
        ("olmoe", json!({"clip_qkv": 2.0}), "clip_qkv"),
        ("gpt2", json!({"scale_attn_by_inverse_layer_idx": true}), "scores"),
    ] {
        let said = Exported::of(model_type, more.clone()).refused();
        assert!(said.contains(reason), "{model_type} {more}: {said}");
    }
}

#[test]
fn a_tokenizer_that_the_format_does_not_have_is_refused_with_what_was_seen() {
    let change = |change: &dyn Fn(&mut Value)| {
        let made = Exported::of("llama", json!({}));
        let path = made.model().join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut tokenizer);
        std::fs::write(&path, tokenizer.to_string()).unwrap();
        made
    };
    let said = change(&|t| {
        t["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Punctuation", "behavior": "Contiguous"}, {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]})
    })
    .refused();
    assert!(
        said.contains("tokenizer.ggml.pre") && said.contains("Punctuation") && said.contains("Contiguous"),
        "{said}"
    );
    let said = change(&|t| t["normalizer"] = json!({"type": "Lowercase"})).refused();
    assert!(said.contains("Lowercase"), "{said}");
    let said = change(&|t| t["pre_tokenizer"]["add_prefix_space"] = true.into()).refused();
    assert!(said.contains("\"add_prefix_space\":true"), "{said}");
    let said = change(&|t| {
        t["post_processor"] = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}})
    })
    .refused();
    assert!(said.contains("adds other tokens"), "{said}");
}

#[test]
fn a_sentencepiece_vocabulary_keeps_its_ids() {
    let made = Exported { folder: tempfile::tempdir().unwrap() };
    families::write_with("spm-tokenizer", "llama", json!({"vocab_size": 1024}), Kind::BFloat16, &made.model());
    let summary = made.export(GgmlType::BF16).unwrap();
    assert_eq!(summary.tokenizer, ["llama".to_string(), "default".into()]);
    let gguf = Gguf::open(&made.file()).unwrap();
    let types = gguf.integers("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!(types.iter().filter(|kind| **kind == 6).count(), 256);
    assert_eq!(gguf.texts("tokenizer.ggml.tokens").unwrap().unwrap().len(), 1024);
    let scores = gguf.floats("tokenizer.ggml.scores").unwrap().unwrap();
    let lowest = scores.iter().copied().fold(0.0, f32::min);
    assert!(lowest < -1.0, "merges are in the order of their scores: {lowest}");
}

#[test]
fn the_command_names_reports_and_replaces_files() {
    let space = Workspace::bare();
    families::write("qwen2", json!({}), Kind::BFloat16, &space.path("Tiny-Qwen-0.1M-Chat"));
    let output = space.ft(&["export", "Tiny-Qwen-0.1M-Chat", "--to", "gguf", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = report["out"].as_str().unwrap().to_string();
    let weights = Weights::open_file(&space.path("Tiny-Qwen-0.1M-Chat/model.safetensors")).unwrap();
    let numbers: i64 = weights.names().map(|name| weights.shape(name).unwrap().iter().product::<i64>()).sum();
    let thousands = (numbers as f64 / 1000.0).round();
    assert_eq!(name, format!("./Tiny-Qwen-{thousands}K-Chat-v1.0-BF16.gguf"));
    assert_eq!(report["bytes"], std::fs::metadata(space.path(&name)).unwrap().len());
    assert_eq!((&report["format"], &report["tokenizer"][1]), (&json!("BF16"), &json!("gpt-2")));
    assert_eq!(report["read_back"]["relative_error"]["BF16"], 0.0);
    let again = ["export", "Tiny-Qwen-0.1M-Chat", "--to", "gguf", "--type", "q4_0", "--out", &name];
    assert!(space.refused(&again).contains("the file exists"));
    space.ft(&[&again[..], &["--force"]].concat());
    assert_eq!(Gguf::open(&space.path(&name)).unwrap().unsigned("general.file_type").unwrap(), Some(2));
    let said = space.refused(&["export", "Tiny-Qwen-0.1M-Chat", "--to", "gguf", "--out", "x.bin"]);
    assert!(said.contains("ends in .gguf"), "{said}");
    let said = space.refused(&["export", &name, "--to", "gguf", "--out", "y.gguf"]);
    assert!(said.contains("stored quantised"), "{said}");
    // A model that ends too early.
    let weights = space.path("Tiny-Qwen-0.1M-Chat/model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() - 100]).unwrap();
    let said = space.refused(&["export", "Tiny-Qwen-0.1M-Chat", "--to", "gguf", "--out", "z.gguf"]);
    assert!(said.contains("not a whole safetensors file"), "{said}");
    let left = std::fs::read_dir(space.path(".")).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
    let left: Vec<String> = left.filter(|file| file.contains("gguf")).collect();
    assert_eq!(left, [name.trim_start_matches("./")]);
}

/// Simulates a full disk: every write beyond a file size fails (`ulimit -f`).
#[test]
fn a_full_disk_leaves_the_old_file() {
    let made = Exported::of("llama", json!({}));
    std::fs::write(made.file(), "old").unwrap();
    let line = "export model --to gguf --out out.gguf --force";
    let script = format!("trap '' XFSZ; ulimit -f 64; exec {} {line}", ft_binary().display());
    let output = Command::new("bash").args(["-c", &script]).current_dir(made.folder.path()).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large") && said.contains("ulimit -f"), "{said}");
    assert_eq!(std::fs::read_to_string(made.file()).unwrap(), "old");
    let files = std::fs::read_dir(made.folder.path()).unwrap().count();
    assert_eq!(files, 2, "the model and the old file");
}
