//! Runs exported files in llama.cpp: token ids, logits and greedy tokens are ft's.

use super::gguf_adapters::lora;
use super::gguf_export::Exported;
use super::gguf_split::split;
use crate::support::families::FAMILIES;
use crate::support::needs::{LLAMA_CPP, llama_cpp, needs};
use crate::support::*;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::gguf_export::adapter::export_adapter;
use ft::convert::gguf_export::{FORMATS, GgufExportOptions};
use ft::data::chat::ChatTokenizer;
use ft::gguf::file::Gguf;
use ft::gguf::quant::GgmlType;
use ft::gguf::split::SplitLimits;
use ft::models::Model;
use ft::nn::Tokens;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Device, Kind, Tensor};

/// Greedy tokens that are compared.
const NEW: usize = 8;
const TEXTS: [&str; 5] = [
    "The patient's temperature was 39.5, and the pulse 110.",
    "  two spaces\tand a tab\n\nand lines",
    "Größe, naïve café — 12345 67",
    "for i in range(10):\n    print(i)",
    "don't they're WE'VE",
];

/// Returns how far logits may be from llama.cpp's, as a share of the largest: it computes GELU from a table in float16, and multiplies queries by the
/// matrix of latent keys instead of making keys.
fn tolerance(model_type: &str) -> f64 {
    match model_type {
        "gpt2" | "bloom" | "mpt" | "gpt_neox" | "falcon" | "gemma" | "gemma2" | "gemma3_text" => 2e-3,
        "deepseek_v2" => 1e-4,
        _ => 1e-5,
    }
}

/// Returns the logits (T, V) of a row.
fn logits(model: &Model, row: &[u32]) -> Tensor {
    let at = Tensor::from_slice(&(0..row.len() as i64).collect::<Vec<_>>());
    model.infer(&Tokens::pack(&[row], Device::Cpu), |out| out.logits(&at)).unwrap()
}

fn run(cases: &[Value], folder: &Path) -> Vec<Value> {
    let (settings, out) = (folder.join("settings.json"), folder.join("out.jsonl"));
    let text = json!({"modules": llama_cpp(), "out": out, "cases": cases});
    std::fs::write(&settings, text.to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/llama_cpp.mjs");
    let done = Command::new("node").arg(script).arg(&settings).output().unwrap();
    let found = std::fs::read_to_string(&out).unwrap_or_default();
    let found: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found.len(), cases.len(), "llama.cpp stopped: {}", String::from_utf8_lossy(&done.stderr));
    found
}

/// Compares what llama.cpp computed with a model of ft: logits after rows, as a share of the largest, and the greedy tokens after the last of the
/// rows.
#[track_caller]
fn assert_equal(title: &str, model: &Model, rows: &[Vec<u32>], found: &Value, tolerance: f64) {
    assert!(found.get("error").is_none(), "{title}: {found}");
    for (row, theirs) in rows.iter().zip(found["logits"].as_array().unwrap()) {
        let gap = distance(model, row, theirs);
        assert!(gap < tolerance, "{title}, {} tokens: {gap}", row.len());
    }
    // One pass over prompt and answer: the choice after each token must be llama.cpp's.
    let answer: Vec<u32> =
        found["greedy"][0].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    assert_eq!(answer.len(), NEW, "{title}");
    let prompt = rows.last().unwrap();
    let chosen = logits(model, &[prompt.as_slice(), &answer].concat()).argmax(-1, false);
    let chosen: Vec<i64> = Vec::try_from(chosen.narrow(0, prompt.len() as i64 - 1, NEW as i64)).unwrap();
    assert_eq!(chosen, answer.iter().map(|id| i64::from(*id)).collect::<Vec<_>>(), "{title}");
}

/// Returns how far ft's logits after a row are from others, as a share of the largest.
fn distance(model: &Model, row: &[u32], theirs: &Value) -> f64 {
    let theirs: Vec<f64> = theirs.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    let ours = logits(model, row).get(-1).to_kind(Kind::Double);
    ((Tensor::from_slice(&theirs) - &ours).abs().max() / ours.abs().max()).double_value(&[])
}

fn rows() -> Vec<Vec<u32>> {
    [1u32, 7, 24].map(|n| (0..n).map(|t| (7 * t + 3 * n) % 400).collect()).into()
}

fn case(file: &Path, lora: Option<&Path>, texts: &[&str]) -> Value {
    let rows = rows();
    json!({"model": file, "lora": lora, "texts": texts, "rows": rows, "prompts": [rows[2]], "new": NEW, "context": 256})
}

#[test]
fn every_family_computes_the_same_in_llama_cpp() {
    needs!(LLAMA_CPP);
    let more = |model_type: &str| match model_type {
        // llama.cpp rounds the bounds of YaRN's frequencies, which gpt-oss has unless something else is said.
        "gpt_oss" => json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
        _ => json!({}),
    };
    let made: Vec<(&str, Exported)> =
        FAMILIES.iter().map(|model_type| (*model_type, Exported::of(model_type, more(model_type)))).collect();
    let cases = made.iter().map(|(_, made)| {
        made.export(GgmlType::F32).unwrap();
        case(&made.file(), None, &TEXTS)
    });
    let found = run(&cases.collect::<Vec<_>>(), made[0].1.folder.path());
    for ((model_type, made), found) in made.iter().zip(&found) {
        assert_equal(model_type, &frozen(&made.model(), Kind::Float), &rows(), found, tolerance(model_type));
        let tokenizer = ChatTokenizer::load(&made.model(), None).unwrap();
        for (text, ids) in TEXTS.iter().zip(found["ids"].as_array().unwrap()) {
            assert_eq!(json!(tokenizer.encode_plain(text).unwrap()), *ids, "{model_type}: {text:?}");
        }
    }
}

/// The first part stands for the model. With a limit on sizes the first part has no tensor.
#[test]
fn a_model_in_several_files_computes_the_same_in_llama_cpp() {
    needs!(LLAMA_CPP);
    let limits =
        [(SplitLimits { tensors: Some(5), bytes: None }, 5), (SplitLimits { bytes: Some(134_000), tensors: None }, 0)];
    let made: Vec<(Exported, PathBuf)> = limits
        .iter()
        .map(|(limits, of_first)| {
            let made = Exported::of("llama", json!({}));
            let files = split(&made, GgmlType::F32, *limits).unwrap().files;
            let first = Gguf::from_bytes(&files[0], std::fs::read(&files[0]).unwrap()).unwrap();
            assert_eq!(first.tensors().len(), *of_first);
            assert!(files.len() > 3);
            (made, files[0].clone())
        })
        .collect();
    let cases: Vec<Value> = made.iter().map(|(_, first)| case(first, None, &TEXTS)).collect();
    let found = run(&cases, made[0].0.folder.path());
    for ((made, _), found) in made.iter().zip(&found) {
        assert_equal("parts", &frozen(&made.model(), Kind::Float), &rows(), found, 1e-5);
    }
}

/// llama.cpp adds the adapter's products to those of the base's weights, as ft does.
#[test]
fn a_lora_as_a_gguf_adapter_computes_the_same_in_llama_cpp() {
    needs!(LLAMA_CPP);
    let kinds = [
        ("llama", json!({})),
        ("llama", json!({"use_rslora": true})),
        ("llama", json!({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 3}})),
        ("qwen2", json!({"use_rslora": true, "rank_pattern": {"down_proj": 8}})),
        ("gpt_neox", json!({})),
        ("gpt2", json!({"fan_in_fan_out": true})),
    ];
    let made: Vec<(Exported, PathBuf)> = kinds
        .iter()
        .map(|(model_type, more)| {
            let made = Exported::of(model_type, json!({}));
            made.export(GgmlType::F32).unwrap();
            let adapter = lora(&made, more.clone());
            let (model, out, format) = (made.model(), made.folder.path().join("lora.gguf"), Some(FORMATS[0]));
            let options = GgufExportOptions {
                model: &model,
                adapter: None,
                out: &out,
                format,
                split: SplitLimits::default(),
                imatrix: None,
                force: false,
                modelfile: false,
            };
            export_adapter(&options, &WeightedAdapter::read(&adapter, 1.0).unwrap()).unwrap();
            (made, adapter)
        })
        .collect();
    let of = |(made, _): &(Exported, PathBuf)| {
        [None, Some(made.folder.path().join("lora.gguf"))].map(|lora| case(&made.file(), lora.as_deref(), &[]))
    };
    let found = run(&made.iter().flat_map(of).collect::<Vec<_>>(), made[0].0.folder.path());
    for (((made, adapter), (model_type, more)), found) in made.iter().zip(&kinds).zip(found.chunks(2)) {
        let title = format!("{model_type} {more}");
        let model =
            ft::models::open::open(&made.model(), std::slice::from_ref(adapter), Device::Cpu, Kind::Float).unwrap();
        assert_equal(&title, &model, &rows(), &found[1], tolerance(model_type).max(1e-4));
        // Without the adapter, llama.cpp computes something else: it was not left out.
        assert!(distance(&model, &rows()[2], &found[0]["logits"][2]) > 0.05, "{title}");
    }
}
