//! Compares whole training steps with torch's AdamW on transformers and PEFT models (tests/fixtures/README.md).

use crate::support::*;
use ft::adapters::{TrainingPart, file};
use ft::models::{LayerReplay, Model};
use ft::recipe::optim::OptimSection;
use ft::train::optim::Optimiser;
use std::collections::BTreeMap;
use tch::Kind;

/// A fixture of training steps.
#[derive(serde::Deserialize)]
pub struct Case {
    model: String,
    optimiser: Recipe,
    batches: Vec<Vec<Sequence>>,
    batch_of_step: Vec<usize>,
    pub steps: Vec<Step>,
    #[serde(default)]
    final_stride: i64,
    #[serde(default)]
    final_norm: BTreeMap<String, f64>,
    float64_difference: Noise,
}

#[derive(serde::Deserialize)]
struct Recipe {
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    max_norm: f64,
    weight_decay: f64,
    decayed: String,
}

/// What the reference has before an update.
#[derive(serde::Deserialize)]
pub struct Step {
    loss: f64,
    grad_norm: f64,
    items: f64,
}

impl Case {
    /// Returns the tolerance for final tensors.
    pub fn allowed(&self) -> f64 {
        self.float64_difference.allowed()
    }
}

/// The difference between the reference in float32 and in float64.
#[derive(serde::Deserialize)]
struct Noise {
    final_abs: f64,
}

impl Noise {
    /// Returns the tolerance for final tensors. Adam takes a full step even for a tiny gradient whose sign is
    /// uncertain, so the tolerance cannot be tighter than the reference's own rounding error.
    fn allowed(&self) -> f64 {
        (10.0 * self.final_abs).max(2e-5)
    }
}

/// Takes the steps, each batch in micro-batches of two sequences, and compares loss and gradient norm before every
/// update. `part` is what the adapter's kind does in training.
pub fn train(name: &str, case: &Case, model: &Model, part: &mut Option<Box<dyn TrainingPart>>, replay: LayerReplay) {
    let Recipe { lr, betas, eps, max_norm, weight_decay, ref decayed } = case.optimiser;
    let decay_norms = decayed == "every trained tensor";
    let betas = [betas.0, betas.1];
    let settings = OptimSection { lr: Some(lr), betas, eps, weight_decay, decay_norms, ..OptimSection::default() };
    let mut optimiser = Optimiser::new(model.params(), &settings, 0).unwrap();
    let (mut loss_gap, mut norm_gap) = (0f64, 0f64);
    for (i, (batch, expected)) in case.batch_of_step.iter().zip(&case.steps).enumerate() {
        let rows: Vec<Row> = case.batches[*batch].chunks(2).map(Row::pack).collect();
        let items: f64 = rows.iter().map(|r| r.items).sum();
        assert_eq!(items, expected.items);
        let mut metrics = ft::models::Metrics::default();
        for row in &rows {
            metrics.merge(model.learn(row, items, replay).unwrap());
        }
        let term = part.as_ref().and_then(|part| part.penalty());
        if let Some((_, term)) = &term {
            term.backward();
        }
        let (loss, norm) = (metrics.means()["loss"], optimiser.clip(max_norm).unwrap().double_value(&[]));
        let loss = loss + term.map_or(0.0, |(_, term)| term.double_value(&[]));
        assert_number(&format!("{name}, step {i}: loss"), loss, expected.loss, 1e-4);
        assert_number(&format!("{name}, step {i}: gradient norm"), norm, expected.grad_norm, 1e-4);
        loss_gap = loss_gap.max((loss - expected.loss).abs());
        norm_gap = norm_gap.max((norm / expected.grad_norm - 1.0).abs());
        optimiser.step(lr).unwrap();
        if let Some(part) = part {
            part.after_update(i as u64 + 1);
        }
        optimiser.zero_gradients();
    }
    println!("{name} {replay:?}: loss {loss_gap:e} apart, gradient norm {norm_gap:e} relative");
}

/// Compares the steps of a LoRA, with and without replay. Returns how far the trained tensors are apart, absolutely.
pub fn with_lora(name: &str) -> f64 {
    let mut gap = 0f64;
    let case: Case = json(format!("{name}/expected.json"));
    let folder = fixture(format!("{name}/initial"));
    for replay in [LayerReplay::None, LayerReplay::All] {
        let initial = file::read(&folder).unwrap();
        let plan = initial.spec.plan().unwrap();
        let model = adapted(&fixture(&case.model), Kind::Float, &*plan);
        file::load_into(model.params().adapter(0), &initial.tensors, &folder).unwrap();
        train(name, &case, &model, &mut None, replay);
        let mut expected = tensors(format!("{name}/final/{}", file::TENSORS));
        expected.retain(|key, _| !key.ends_with(".base_layer.weight")); // saved, not trained
        // A head that is adapted as one with the embedding has the same tensors.
        if initial.spec.ties_head() {
            let head = expected.remove("base_model.model.lm_head.weight").unwrap();
            assert_same("the head", &head, &expected["base_model.model.model.embed_tokens.weight"]);
        }
        let ours: BTreeMap<String, _> = model
            .params()
            .trainable()
            .map(|p| (format!("base_model.model.{}", p.name), p.tensor.shallow_clone()))
            .collect();
        assert!(ours.keys().eq(expected.keys()), "{:?} and {:?}", ours.keys(), expected.keys());
        let mut worst = Gap::default();
        for (key, t) in &ours {
            worst.widen(assert_within(key, t, &expected[key], case.float64_difference.allowed()));
        }
        println!("{name} {replay:?}: final tensors {worst:?}");
        gap = gap.max(worst.absolute);
    }
    gap
}

/// Compares steps on all weights; the same as [`with_lora`].
pub fn in_full(name: &str) -> f64 {
    let mut gap = 0f64;
    let case: Case = json(format!("{name}/expected.json"));
    let expected = tensors(format!("{name}/final.safetensors"));
    for replay in [LayerReplay::None, LayerReplay::All] {
        let model = whole(&fixture(&case.model), Kind::Float);
        train(name, &case, &model, &mut None, replay);
        let mut worst = Gap::default();
        assert_eq!(model.params().trainable().count(), expected.len());
        for p in model.params().trainable() {
            let ours = every(case.final_stride, &p.tensor);
            worst.widen(assert_within(&p.name, &ours, &expected[&p.name], case.float64_difference.allowed()));
            assert_number(
                &format!("norm of {}", p.name),
                p.tensor.norm().double_value(&[]),
                case.final_norm[&p.name],
                1e-4,
            );
        }
        println!("{name} {replay:?}: final tensors {worst:?}");
        gap = gap.max(worst.absolute);
    }
    gap
}

#[test]
fn ten_steps_of_lora_equal_peft() {
    with_lora("training/lora");
}

#[test]
fn rank_and_alpha_patterns_train_as_in_peft() {
    with_lora("training/lora-patterns");
}

#[test]
fn rslora_trains_as_in_peft() {
    with_lora("training/lora-rslora");
}

#[test]
fn a_head_in_modules_to_save_trains_as_in_peft() {
    with_lora("training/lora-head");
}

#[test]
fn gpt2_trains_as_in_peft_and_transformers() {
    with_lora("training/lora-gpt2");
    in_full("training/full-gpt2");
}

#[test]
fn qwen3_trains_as_in_peft() {
    with_lora("training/lora-qwen3");
}

/// Windows, capped scores and logits, fused projections, parallel layers.
#[test]
fn dense_families_train_as_in_peft_and_transformers() {
    for name in ["gemma2", "phi3", "cohere2", "bloom"] {
        with_lora(&format!("dense/training/lora-{name}"));
    }
    for name in ["gemma3", "gpt-neox", "falcon-alibi"] {
        in_full(&format!("dense/training/full-{name}"));
    }
}

/// Several streams, shared keys and values, sparse gates.
#[test]
fn gemma3n_trains_as_in_peft_and_transformers() {
    with_lora("gemma3n/training/lora-shared");
    in_full("gemma3n/training/full-shared");
}

#[test]
fn models_with_experts_train_as_in_peft_and_transformers() {
    for name in ["mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "gpt-oss", "deepseek-v2"] {
        with_lora(&format!("training/lora-{name}"));
        in_full(&format!("training/full-{name}"));
    }
}

#[test]
fn ten_steps_on_every_weight_equal_transformers_with_a_tied_head() {
    in_full("training/full");
}

#[test]
fn steps_on_every_weight_equal_transformers_with_biases() {
    in_full("training/full-biased");
}

#[test]
fn learning_rates_equal_transformers_step_by_step() {
    use ft::recipe::optim::{OptimSection, Schedule};
    #[derive(serde::Deserialize)]
    struct Expected {
        warmup_steps: u64,
        steps: u64,
        factor: BTreeMap<String, Vec<f64>>,
    }
    let expected: Expected = json("schedules.json");
    for (name, schedule, floor, from) in [
        ("constant", Schedule::Constant, 0.0, 0),
        ("linear", Schedule::Linear, 0.0, 0),
        ("linear_floor_0.1", Schedule::Linear, 0.1, 0),
        ("cosine", Schedule::Cosine, 0.0, 0),
        ("cosine_floor_0.1", Schedule::Cosine, 0.1, 0),
        ("wsd_linear_decay_6", Schedule::Wsd, 0.0, 0),
        // In transformers, the warm-up of this schedule starts at the minimum rate; ours starts at zero like that of
        // all other schedules. So only the steps after the warm-up are compared.
        ("wsd_linear_decay_6_floor_0.1", Schedule::Wsd, 0.1, expected.warmup_steps),
    ] {
        let warmup = expected.warmup_steps as f64;
        let decay = 6.0 / expected.steps as f64;
        let optim = OptimSection { schedule, floor, warmup, decay, ..OptimSection::default() };
        let ours = ft::train::schedule::LearningRate::new(&optim, 1.0, expected.steps);
        for step in from..expected.steps {
            let (a, b) = (ours.at(step), expected.factor[name][step as usize]);
            assert!((a - b).abs() < 1e-12, "{name}, step {step}: {a}, transformers has {b}");
        }
    }
}

#[test]
fn dora_trains_as_in_peft() {
    for name in ["dora", "dora-biased", "dora-gpt2", "dora-embedding"] {
        with_lora(&format!("lora-relatives/{name}"));
    }
}

#[test]
fn a_bias_behind_b_trains_as_in_peft() {
    with_lora("lora-relatives/lora-bias");
}

#[test]
fn token_rows_train_as_in_peft() {
    with_lora("lora-relatives/token-rows");
    with_lora("lora-relatives/token-rows-tied");
    with_lora("lora-relatives/token-rows-head");
}

#[test]
fn an_embedding_and_head_saved_as_one_train_as_in_peft() {
    with_lora("lora-relatives/tied-saved");
}
