//! Tests prompt tuning, P-tuning and prefix tuning. Here: PEFT's fixtures (tests/fixtures/virtual_tokens.py) and the models on
//! which they were computed.

mod computing;
mod decoding;
mod peft;
mod runs;

use crate::support::command::{ft_binary, stderr};
use crate::support::resumed::{resumed_equals_straight, train};
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::virtual_tokens::VirtualSettings;
use ft::adapters::{AdapterSpec, PTuningSpec, PrefixTuningSpec, file};
use ft::generate::engine::{BatchLimits, Engine, GenerationRequest, complete};
use ft::generate::session::ChatSession;
use ft::generate::settings::GenerationSettings;
use ft::models::{ExposedLayers, LayerReplay, Loss, Model, open};
use ft::nn::Tokens;
use ft::nn::virtual_tokens::PROMPT_EMBEDDINGS;
use ft::recipe::optim::OptimSection;
use ft::train::optim::Optimiser;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// All fixtures: kinds, families and ways to compute rotary embeddings.
const CASES: [&str; 11] = [
    "prompt_tuning",
    "prompt_tuning-gpt2",
    "prompt_tuning-qwen3",
    "prompt_tuning-dynamic",
    "p_tuning",
    "p_tuning-gpt2",
    "prefix_tuning",
    "prefix_tuning-projection",
    "prefix_tuning-gpt2",
    "prefix_tuning-qwen3",
    "prefix_tuning-dynamic",
];

#[derive(serde::Deserialize)]
struct VirtualRun {
    model: String,
    rows: Vec<Sequence>,
    optimiser: Settings,
    batches: Vec<Vec<Sequence>>,
    batch_of_step: Vec<usize>,
    steps: Vec<Step>,
    float64_difference: Noise,
}

#[derive(serde::Deserialize)]
struct Settings {
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    max_norm: f64,
    weight_decay: f64,
}

#[derive(serde::Deserialize)]
struct Step {
    loss: f64,
    grad_norm: f64,
    items: f64,
}

#[derive(serde::Deserialize)]
struct Noise {
    final_abs: f64,
}

/// The base of a case; a folder of its own if its weights are shared with another one.
enum Base {
    Own(PathBuf),
    Shared(tempfile::TempDir),
}

impl Base {
    fn of(case: &VirtualRun) -> Self {
        match fixture(&case.model).join("model.safetensors").exists() {
            true => Self::Own(fixture(&case.model)),
            false => Self::Shared(with_weights(&case.model, "wide-head-llama")),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Own(path) => path,
            Self::Shared(folder) => folder.path(),
        }
    }
}

fn case(name: &str) -> VirtualRun {
    json(format!("virtual-tokens/{name}/expected.json"))
}

fn saved(name: &str) -> PathBuf {
    fixture(format!("virtual-tokens/{name}/initial"))
}

/// Opens a base with the adapter that PEFT saved before training.
fn opened(name: &str, kind: Kind) -> (VirtualRun, Model) {
    let case = case(name);
    tch::set_num_threads(1);
    let model = open(Base::of(&case).path(), &[saved(name)], device(), kind).unwrap();
    (case, model)
}

/// Returns the logits of all tokens of a packed row: (T, V) float32.
fn logits(model: &Model, rows: &[&[u32]]) -> Tensor {
    let tokens = Tokens::pack(rows, device());
    let all = Tensor::arange(tokens.len() as i64, (Kind::Int64, device()));
    model.infer(&tokens, |out| out.logits(&all)).unwrap()
}

fn ids(case: &VirtualRun) -> Vec<&[u32]> {
    case.rows.iter().map(|row| row.ids.as_slice()).collect()
}

/// Returns the settings that train a case as PEFT did.
fn trained_spec(name: &str) -> AdapterSpec {
    let config: Value = json(format!("virtual-tokens/{name}/initial/adapter_config.json"));
    let virtual_tokens = config["num_virtual_tokens"].as_i64().unwrap();
    let settings = VirtualSettings::new(virtual_tokens);
    let encoder_hidden_size = config["encoder_hidden_size"].as_i64();
    match config["peft_type"].as_str().unwrap() {
        "P_TUNING" => AdapterSpec::PTuning(PTuningSpec { settings, encoder_hidden_size }),
        "PREFIX_TUNING" => AdapterSpec::PrefixTuning(PrefixTuningSpec {
            settings,
            projection: config["prefix_projection"].as_bool().unwrap(),
            encoder_hidden_size,
            ..PrefixTuningSpec::default()
        }),
        _ => serde_json::from_value(json!({ "prompt_tuning": { "virtual_tokens": virtual_tokens } })).unwrap(),
    }
}

/// Builds the model of a case with the parameters that PEFT's training started from.
fn at_start(name: &str, case: &VirtualRun) -> Model {
    let plan = trained_spec(name).plan().unwrap();
    let model = adapted(Base::of(case).path(), Kind::Float, &*plan);
    let start = tensors(format!("virtual-tokens/{name}/start.safetensors"));
    let plain = model.params().adapter(0).any(|p| p.name == PROMPT_EMBEDDINGS);
    assert_eq!(model.params().adapter(0).count(), start.len(), "{name}");
    tch::no_grad(|| {
        for p in model.params().adapter(0) {
            let theirs = if plain { "embedding.weight" } else { p.name.strip_prefix("prompt_encoder.").unwrap() };
            p.tensor.shallow_clone().copy_(&start[theirs]);
        }
    });
    model
}
