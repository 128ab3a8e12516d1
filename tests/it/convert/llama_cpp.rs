//! Runs exported files in llama.cpp: token ids, logits and greedy tokens are ft's.

use super::gguf_export::Exported;
use crate::support::families::FAMILIES;
use crate::support::needs::{LLAMA_CPP, llama_cpp, needs};
use crate::support::*;
use ft::data::chat::ChatTokenizer;
use ft::gguf::quant::GgmlType;
use ft::nn::Tokens;
use serde_json::{Value, json};
use std::path::Path;
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
fn logits(model: &ft::models::Model, row: &[u32]) -> Tensor {
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

#[test]
fn every_family_computes_the_same_in_llama_cpp() {
    needs!(LLAMA_CPP);
    let rows: Vec<Vec<u32>> = [1u32, 7, 24].map(|n| (0..n).map(|t| (7 * t + 3 * n) % 400).collect()).into();
    let more = |model_type: &str| match model_type {
        // llama.cpp rounds the bounds of YaRN's frequencies, which gpt-oss has unless something else is said.
        "gpt_oss" => json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
        _ => json!({}),
    };
    let made: Vec<(&str, Exported)> =
        FAMILIES.iter().map(|model_type| (*model_type, Exported::of(model_type, more(model_type)))).collect();
    let case = |(_, made): &(&str, Exported)| {
        made.export(GgmlType::F32).unwrap();
        json!({"model": made.file(), "texts": TEXTS, "rows": rows, "prompts": [rows[2]], "new": NEW, "context": 256})
    };
    let cases: Vec<Value> = made.iter().map(case).collect();
    let found = run(&cases, made[0].1.folder.path());
    for ((model_type, made), found) in made.iter().zip(&found) {
        assert!(found.get("error").is_none(), "{model_type}: {found}");
        let tokenizer = ChatTokenizer::load(&made.model(), None).unwrap();
        for (text, ids) in TEXTS.iter().zip(found["ids"].as_array().unwrap()) {
            assert_eq!(json!(tokenizer.encode_plain(text).unwrap()), *ids, "{model_type}: {text:?}");
        }
        let model = frozen(&made.model(), Kind::Float);
        for (row, theirs) in rows.iter().zip(found["logits"].as_array().unwrap()) {
            let theirs: Vec<f64> = theirs.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            let ours = logits(&model, row).get(-1).to_kind(Kind::Double);
            let gap = (Tensor::from_slice(&theirs) - &ours).abs().max() / ours.abs().max();
            let gap = gap.double_value(&[]);
            assert!(gap < tolerance(model_type), "{model_type}, {} tokens: {gap}", row.len());
        }
        // One pass over prompt and answer: the choice after each token must be llama.cpp's.
        let answer: Vec<u32> =
            found["greedy"][0].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(answer.len(), NEW, "{model_type}");
        let chosen = logits(&model, &[rows[2].as_slice(), &answer].concat()).argmax(-1, false);
        let chosen: Vec<i64> = Vec::try_from(chosen.narrow(0, rows[2].len() as i64 - 1, NEW as i64)).unwrap();
        assert_eq!(chosen, answer.iter().map(|id| i64::from(*id)).collect::<Vec<_>>(), "{model_type}");
    }
}
