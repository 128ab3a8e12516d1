//! Writes the table of docs/models.md, how far each family is from transformers and PEFT:
//! `cargo test --release --test all models::parity_table -- --ignored`
//!
//! The other tests have bounds for all these numbers.

use super::parity;
use crate::convert::gguf_export::{self, Exported};
use crate::support::families::FAMILIES;
use crate::support::*;
use crate::train::trajectories::{in_full, with_lora};
use ft::gguf::quant::GgmlType;
use ft::models::{self, LayerReplay, Model};
use ft::nn::Tokens;
use serde_json::Value;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

const BEGIN: &str = "<!-- parity: made by tests/it/models/parity_table.rs -->\n";
const END: &str = "<!-- end of parity -->\n";
/// Fixtures with settings that llama.cpp does not compute.
const NOT_IN_GGUF: [&str; 3] = ["scaled-gpt2", "deepseek-v2-groups", "dense/falcon-alibi"];
/// Folders of PEFT's adapters over the families.
const ADAPTERS: [&str; 4] = ["families", "dense/adapters", "gemma3n/adapters", "experts"];

/// The adapters of a folder: what they were given, and the model of each.
#[derive(serde::Deserialize)]
struct Adapters {
    input: Vec<u32>,
    adapters: BTreeMap<String, Value>,
}

#[test]
#[ignore = "writes the table of docs/models.md"]
fn table() {
    let mut lines = vec![
        "| fixture | logits | gradients | ten steps, LoRA | ten steps, all weights | decoded | PEFT | GGUF | bfloat16 logits |".to_string(),
        "|---|---|---|---|---|---|---|---|---|".into(),
    ];
    let peft = of_peft();
    let mut gguf = BTreeMap::new();
    for name in parity::models().filter(|name| !name.contains("rope")) {
        let config: Value = ft::fsutil::read_json(&fixture(name).join("config.json")).unwrap();
        let model_type = config["model_type"].as_str().unwrap().to_string();
        let short = name.trim_start_matches("dense/").trim_start_matches("tiny-");
        let steps = |how: &str, compare: fn(&str) -> f64| {
            let own = if short == "llama" { how.to_string() } else { format!("{how}-{short}") };
            let of_folder = short.split_once('/').map(|(folder, name)| format!("{folder}/training/{how}-{name}"));
            let places = [format!("training/{own}"), format!("dense/training/{own}")].into_iter().chain(of_folder);
            let places: Vec<String> = places.collect();
            places.iter().find(|place| fixture(place).is_dir()).map(|place| compare(place))
        };
        let of_gguf = *gguf.entry(model_type.clone()).or_insert_with(|| of_gguf(&model_type));
        let of_gguf = of_gguf.filter(|_| !NOT_IN_GGUF.contains(&name));
        let [logits, gradients, decoded, half] = of_model(name);
        let cells = [
            logits,
            gradients,
            steps("lora", with_lora),
            steps("full", in_full),
            decoded,
            peft.get(name).copied(),
            of_gguf,
            half,
        ];
        let cells = cells.map(|cell| cell.map_or("–".to_string(), |gap| format!("{gap:.0e}")));
        lines.push(format!("| {} | {} |", name.trim_start_matches("dense/"), cells.join(" | ")));
    }
    let file = root().join("docs/models.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    std::fs::write(&file, format!("{before}{BEGIN}{}\n{END}{after}", lines.join("\n"))).unwrap();
}

/// Returns how far a model's logits and gradients are from transformers', the logits of decoding token by token from those of
/// the whole sequence, and logits in bfloat16 from transformers' in float32, all relative.
fn of_model(name: &str) -> [Option<f64>; 4] {
    let (case, expected, model) = parity::open(name);
    let config: Value = ft::fsutil::read_json(&fixture(name).join("config.json")).unwrap();
    let (mut of_logits, mut of_decoding, mut of_half) = (0f64, 0f64, 0f64);
    let folder = with_weights(name, &case.weights);
    let half = frozen(folder.path(), Kind::BFloat16);
    for (i, s) in case.sequences.iter().enumerate() {
        let theirs = &expected[&format!("logits.{i}")];
        let whole = parity::logits(&model, std::slice::from_ref(s));
        of_logits = of_logits.max(Gap::between(&whole, theirs).norm);
        of_half = of_half.max(Gap::between(&parity::logits(&half, std::slice::from_ref(s)), theirs).norm);
        of_decoding = of_decoding.max(Gap::between(&decoded(&model, &s.ids), &whole).norm);
    }
    let (_, gradients) = parity::learn(&model, &[&case.sequences], case.items, LayerReplay::None);
    let of = |key: &String| {
        let ours = every(case.grad_stride, &gradients[key.strip_prefix("grad.").unwrap()]);
        Gap::between(&ours, &expected[key]).norm
    };
    // A bias on every key has no gradient but rounding.
    let keys = expected.keys().filter(|key| key.starts_with("grad.") && !key.ends_with("k_proj.bias"));
    // Where frequencies switch within the sequence, tokens before the switch were rotated otherwise than in the whole of it.
    let switches = config["rope_scaling"]["type"] == "longrope";
    let of_decoding = (!switches).then_some(of_decoding);
    [Some(of_logits), Some(keys.map(of).fold(0f64, f64::max)), of_decoding, Some(of_half)]
}

/// Returns the logits (T, V) of a sequence, token by token from the cache.
fn decoded(model: &Model, ids: &[u32]) -> Tensor {
    let mut cache = model.cache(1);
    let step = |at: usize| {
        let tokens = Tokens::pack_after(&[&ids[at..=at]], &[at as i64], device());
        model.extend(&tokens, &mut cache, |out| out.all_logits()).unwrap()
    };
    let logits: Vec<Tensor> = (0..ids.len()).map(step).collect();
    Tensor::cat(&logits, 0)
}

/// Returns the largest relative difference of logits with PEFT's adapters, by base.
fn of_peft() -> BTreeMap<String, f64> {
    let mut worst = BTreeMap::new();
    for place in ADAPTERS {
        let about: Adapters = json(format!("{place}/expected.json"));
        let expected = tensors(format!("{place}/expected.safetensors"));
        for (name, adapter) in &about.adapters {
            let base = adapter["model"].as_str().unwrap();
            let folder = fixture(format!("{place}/{name}"));
            let model = models::open(&fixture(base), &[folder], device(), Kind::Float).unwrap();
            let tokens = Tokens::pack(&[&about.input], device());
            let rows = Tensor::arange(about.input.len() as i64, (Kind::Int64, device()));
            let found = model.infer(&tokens, |out| out.logits(&rows)).unwrap();
            let gap = Gap::between(&found, &expected[&format!("logits.{name}")]).norm;
            let of_base = worst.entry(base.to_string()).or_insert(0f64);
            *of_base = of_base.max(gap);
        }
    }
    worst
}

/// Returns how far the logits of a model in a GGUF file, and of the directory that is made of the file, are from those of the
/// directory that the file was made of; `None` if the family cannot be written so.
fn of_gguf(model_type: &str) -> Option<f64> {
    if !FAMILIES.contains(&model_type) {
        return None;
    }
    let made = Exported::of(model_type, serde_json::json!({}));
    made.export(GgmlType::F32).unwrap();
    let expected = gguf_export::logits(&made.model());
    let gaps = [made.file(), made.imported()].map(|model| Gap::between(&gguf_export::logits(&model), &expected).norm);
    Some(gaps[0].max(gaps[1]))
}
