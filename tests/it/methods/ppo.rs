//! Tests PPO (proximal policy optimisation): its numbers against TRL's own code and against the formulas written out by
//! hand (tests/reference/make_ppo.py), and whole runs on tiny models.

use crate::methods::bandit;
use crate::support::command::{ft_binary, stderr};
use crate::support::files::copy_folder;
use crate::support::workspace::Workspace;
use crate::support::{self, Gap, Row, Sequence, adapted, assert_close, assert_number, device, fixture};
use ft::adapters::{LoraSpec, ModulePlan, Targets};
use ft::data::batch::{BatchPlan, Loader};
use ft::error::Result;
use ft::methods::contract::{Method, TrainingStep};
use ft::methods::parts::TRAINED_ADAPTER;
use ft::methods::ppo::advantages::{explained_variance, gae, token_rewards, whiten};
use ft::methods::ppo::kl::KlEstimator;
use ft::methods::ppo::loss::{PpoLossWeights, RolloutTensors};
use ft::methods::ppo::method::Ppo;
use ft::methods::ppo::spec::PpoSpec;
use ft::methods::ppo::value::VALUE;
use ft::methods::reference::ReferenceModel;
use ft::methods::rollout::prompts::PromptData;
use ft::methods::rollout::spec::SamplingSpec;
use ft::models::{Heads, LayerReplay, LoadOptions, Loss, Model, Storage, TrainedPart};
use ft::nn::{AdapterPlan, Tokens};
use ft::recipe::optim::{OptimKind, OptimSection};
use ft::rewards::RewardSources;
use ft::rewards::source::{RewardInput, RewardSource};
use ft::train::optim::Optimiser;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::{Kind, Tensor};

/// The answers of an iteration: a list of numbers for each, one per token.
type Answers = Vec<Vec<f64>>;

#[derive(Deserialize)]
struct Cases {
    scores: Vec<f64>,
    log_probs: Answers,
    reference: Answers,
    values: Answers,
    new_log_probs: Answers,
    new_values: Answers,
    cases: BTreeMap<String, PpoStep>,
}

#[derive(Deserialize)]
struct PpoStep {
    estimator: KlEstimator,
    kl_coef: f64,
    #[serde(default)]
    kl_in: String,
    whiten_rewards: bool,
    gamma: f64,
    lambda: f64,
    clip: f64,
    clip_value: f64,
    value_coef: f64,
    #[serde(default)]
    entropy_coef: f64,
    rewards: Answers,
    returns: Answers,
    advantages: Answers,
    loss: f64,
    explained_variance: Option<f64>,
    entropies: Option<Vec<f64>>,
    gradient_log_probs: Value,
    gradient_values: Value,
    /// The metrics by name.
    #[serde(flatten)]
    metrics: BTreeMap<String, Value>,
}

fn flat(answers: &Answers) -> Vec<f64> {
    answers.concat()
}

/// Returns the numbers of a nested list, in order.
fn all(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(all).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

#[track_caller]
fn assert_all(name: &str, ours: &[f64], theirs: &[f64], allowed: f64) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let far = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far <= allowed, "{name}: {far:e} apart, allowed {allowed:e}");
}

/// Compares rewards, advantages, returns, losses, metrics and gradients of every case of a fixture.
fn check(file: &str) {
    let f: Cases = support::json(format!("ppo/{file}"));
    for (name, case) in &f.cases {
        let name = |what: &str| format!("{file} {name}: {what}");
        let divergence: Answers = f
            .log_probs
            .iter()
            .zip(&f.reference)
            .map(|(p, r)| p.iter().zip(r).map(|(p, r)| case.estimator.estimate(p - r)).collect())
            .collect();
        let in_loss = case.kl_in == "loss";
        let weight = if in_loss { 0.0 } else { case.kl_coef };
        let mut given: Answers = divergence
            .iter()
            .zip(&f.scores)
            .map(|(d, score)| token_rewards(&d.iter().map(|k| weight * k).collect::<Vec<_>>(), *score))
            .collect();
        if case.whiten_rewards {
            whiten(&mut given, false);
        }
        assert_all(&name("rewards"), &flat(&given), &flat(&case.rewards), 1e-12);
        let mut advantages: Answers =
            given.iter().zip(&f.values).map(|(r, v)| gae(r, v, case.gamma, case.lambda)).collect();
        let returns: Answers =
            advantages.iter().zip(&f.values).map(|(a, v)| a.iter().zip(v).map(|(a, v)| a + v).collect()).collect();
        assert_all(&name("returns"), &flat(&returns), &flat(&case.returns), 1e-12);
        if let Some(theirs) = case.explained_variance {
            let ours = explained_variance(&flat(&f.values), &flat(&returns)).unwrap();
            assert_number(&name("explained variance"), ours, theirs, 1e-12);
        }
        whiten(&mut advantages, true);
        assert_all(&name("advantages"), &flat(&advantages), &flat(&case.advantages), 1e-12);

        let tensor = |x: &Answers| Tensor::from_slice(&flat(x)).to_device(device());
        let before = RolloutTensors {
            log_probs: tensor(&f.log_probs),
            advantages: tensor(&advantages),
            values: tensor(&f.values),
            returns: tensor(&returns),
            reference: in_loss.then(|| tensor(&f.reference)),
        };
        let weights = PpoLossWeights {
            clip: case.clip,
            clip_value: case.clip_value,
            value: case.value_coef,
            entropy: case.entropy_coef,
            kl: in_loss.then_some((case.estimator, case.kl_coef)),
        };
        let (new, predicted) =
            (tensor(&f.new_log_probs).set_requires_grad(true), tensor(&f.new_values).set_requires_grad(true));
        let entropy = case.entropies.as_ref().map(|e| Tensor::from_slice(e).to_device(device()));
        let Loss { sum, mut metrics } = weights.policy(&new, entropy.as_ref(), &before);
        let value = weights.value(&predicted, &before);
        metrics.merge(value.metrics);
        let n = flat(&f.log_probs).len() as f64;
        let sum = (sum + value.sum) / n;
        sum.backward();
        // The scalar loss is float32; everything else here is float64.
        assert_number(&name("loss"), sum.double_value(&[]), case.loss, 1e-6);
        let means = metrics.means();
        assert_number(&name("logged loss"), means["loss"], case.loss, 1e-6);
        let known = ["policy/", "loss/", "val/"];
        let mut checked = 0;
        for (key, theirs) in case.metrics.iter().filter(|(k, _)| known.iter().any(|p| k.starts_with(p))) {
            assert_number(&name(key), means[key.as_str()], theirs.as_f64().unwrap(), 1e-6);
            checked += 1;
        }
        assert!(checked >= 6, "{checked} metrics");
        let gradient = |t: &Tensor| Vec::<f64>::try_from(t.grad().to_kind(Kind::Double)).unwrap();
        assert_all(&name("gradient of log-probs"), &gradient(&new), &all(&case.gradient_log_probs), 1e-8);
        assert_all(&name("gradient of values"), &gradient(&predicted), &all(&case.gradient_values), 1e-8);
        // The KL that a run logs for an iteration.
        let mean = |answers: &Answers| answers.iter().flatten().sum::<f64>() / answers.len() as f64;
        assert_number(&name("kl"), mean(&divergence), case.metrics["objective/kl"].as_f64().unwrap(), 1e-12);
    }
}

/// Decoding caches casts of an adapter's tensors. An optimiser step must invalidate that cache; otherwise rollouts are
/// sampled from an earlier policy.
#[test]
fn decoding_sees_every_update_of_an_adapter() {
    let plan = ModulePlan::new(&LoraSpec::default()).unwrap();
    let kinds =
        [r#""adamw""#, r#"{"adamw8":{}}"#, r#"{"adafactor":{}}"#, r#"{"lion":{}}"#, r#"{"muon":{}}"#, r#"{"sgd":{}}"#];
    for kind in kinds {
        let model = adapted(&fixture("tiny-llama"), Kind::Float, &plan);
        let kind: OptimKind = serde_json::from_str(kind).unwrap();
        let mut optimiser =
            Optimiser::new(model.params(), &OptimSection { kind, ..OptimSection::default() }, 0).unwrap();
        let row = Row::pack(&[Sequence::random(12, 512, 1)]);
        let whole = || model.infer(&row.tokens, |out| out.logits(&row.tokens.segments.last_rows())).unwrap();
        let decoded = || {
            let mut cache = model.cache(1);
            let ids: Vec<u32> = Sequence::random(12, 512, 1).ids;
            let mut last = None;
            for part in [&ids[..11], &ids[11..]] {
                let tokens = Tokens::pack_after(&[part], &cache.lengths, device());
                last = Some(model.extend(&tokens, &mut cache, |out| out.logits(&tokens.segments.last_rows())).unwrap());
            }
            last.unwrap()
        };
        let before = decoded();
        for _ in 0..2 {
            model.learn(&row, row.items, LayerReplay::None).unwrap();
            optimiser.step(0.05).unwrap();
            optimiser.zero_gradients();
            assert_close("decoded", &decoded(), &whole(), 1e-4);
        }
        assert!(Gap::between(&decoded(), &before).norm > 1e-3, "the steps did not change the logits");
    }
}

#[test]
fn numbers_equal_trl_if_no_answer_is_padded() {
    check("full.json");
}

#[test]
fn numbers_of_answers_of_different_lengths_equal_the_masked_formulas() {
    check("ragged.json");
}

// ------------------------------------------------------------------------------------------------------- whole runs

/// Where the value function is stored, and which weights are trained.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// LoRA; the value function is a head on the policy's hidden states.
    Head,
    /// LoRA; the value function has an adapter of its own.
    Adapter,
    /// Every weight is trained; the reference is a frozen copy.
    Whole,
}

fn load(shape: Shape) -> Model {
    tch::set_num_threads(1);
    let policy = ModulePlan::new(&LoraSpec { rank: 8, ..LoraSpec::default() }).unwrap();
    let save = LoraSpec { modules_to_save: vec!["score".into()], ..LoraSpec::default() };
    let value = ModulePlan::new(&match shape {
        Shape::Head => LoraSpec { targets: Targets::Names(Vec::new()), ..save },
        _ => save,
    });
    let value = value.unwrap();
    let adapters: Vec<(String, &dyn AdapterPlan)> = vec![(TRAINED_ADAPTER.into(), &policy), (VALUE.into(), &value)];
    let whole = matches!(shape, Shape::Whole);
    Model::load(
        &fixture("tiny-llama"),
        LoadOptions {
            device: device(),
            kind: Kind::Float,
            storage: Storage::Auto,
            train_base: whole.then_some(&TrainedPart::All),
            adapters: if whole { Vec::new() } else { adapters },
            vocabulary: None,
            heads: Heads::Both,
        },
    )
    .unwrap()
}

fn method(
    shape: Shape,
    settings: Value,
    rewards: RewardSources,
    sampling: SamplingSpec,
    seed: u64,
    model: &Model,
) -> Ppo {
    let mut spec: PpoSpec = serde_json::from_value(json!({ "rewards": [] })).unwrap();
    let mut written = serde_json::to_value(&spec).unwrap();
    written.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    written["value"] = if matches!(shape, Shape::Adapter) { json!({ "adapter": {} }) } else { json!({ "head": {} }) };
    spec = serde_json::from_value(written).unwrap();
    spec.sampling = sampling.clone();
    let train = bandit::prompts();
    let batch = BatchPlan { tokens: sampling.prompts, accumulate: None, examples: Some(sampling.prompts) };
    let loader = Loader::new(vec![1; train.len()], train.mix.clone(), batch, true, seed).unwrap();
    let prompted = PromptData { train, valid: None, tokenizer: bandit::tokenizer(), loader, budget: 256, seed };
    Ppo::new(spec, bandit::rollout(rewards, sampling, seed), None, ReferenceModel::of(model).unwrap(), prompted)
}

/// Takes `steps` optimiser steps; returns the means of the rollout of each iteration.
fn learn(method: &mut Ppo, model: &Model, optim: &mut Optimiser, steps: usize, lr: f64) -> Vec<BTreeMap<String, f64>> {
    let mut told = Vec::new();
    for _ in 0..steps {
        let TrainingStep { items, micro_batches, means, .. } = method.next_step(model).unwrap();
        for b in micro_batches.map(Result::unwrap) {
            let pass = |m: &Model| m.learn(&*b, items, LayerReplay::None).map(drop);
            match b.adapter() {
                Some(name) => model.with_adapter(Some(name), pass),
                None => pass(model),
            }
            .unwrap();
        }
        let _ = optim.clip(1.0).unwrap();
        optim.step(lr).unwrap();
        optim.zero_gradients();
        if !means.is_empty() {
            told.push(means.into_iter().collect());
        }
    }
    told
}

fn optimiser(model: &Model) -> Optimiser {
    Optimiser::new(model.params(), &OptimSection::default(), 7).unwrap()
}

/// A reward on a bandit whose 512 arms form eight classes: an arm of the prompt's class earns 1, any other arm 0.
struct Classes;

const CLASSES: u32 = 8;

fn best(line: usize) -> u32 {
    3 * line as u32 % CLASSES
}

impl RewardSource for Classes {
    fn score(&mut self, _: &Model, answers: &[RewardInput]) -> Result<Vec<f64>> {
        let arm = |a: &RewardInput| a.ids[a.prompt.ids.len()];
        Ok(answers.iter().map(|a| f64::from(u8::from(arm(a) % CLASSES == best(a.prompt.line)))).collect())
    }
}

/// Returns the expected reward of the policy, computed exactly over all arms.
fn expected(model: &Model) -> f64 {
    let rows = &bandit::prompts().rows;
    let one = |row: &ft::data::dataset::PromptRow| {
        let tokens = Tokens::pack(&[&row.ids], model.device());
        let p = model.infer(&tokens, |out| out.logits(&tokens.segments.last_rows()).softmax(-1, Kind::Double)).unwrap();
        let p = Vec::<f64>::try_from(p.view([-1])).unwrap();
        (0..bandit::ARMS).filter(|arm| arm % CLASSES == best(row.line)).map(|arm| p[arm as usize]).sum::<f64>()
    };
    rows.iter().map(one).sum::<f64>() / rows.len() as f64
}

/// Trains a policy on the bandit. Returns its expected reward before and after training; the best possible is 1.
fn earned(shape: Shape, seed: u64) -> [f64; 2] {
    let model = load(shape);
    let settings = json!({ "answers": 16, "kl": { "coef": 0.0 }, "epochs": 2, "entropy_coef": 0.03 });
    let rewards = RewardSources::from_sources(vec![("classes".into(), 1.0, Box::new(Classes))]);
    let mut ppo = method(shape, settings, rewards, bandit::sampling(), seed, &model);
    let before = expected(&model);
    let (mut optim, lr) = (optimiser(&model), if matches!(shape, Shape::Whole) { 1e-3 } else { 3e-3 });
    for left in (1..=20).rev() {
        learn(&mut ppo, &model, &mut optim, 10, lr * f64::from(left) / 20.0);
    }
    [before, expected(&model)]
}

fn earns_the_most(cases: Vec<(Shape, u64)>) {
    let found: Vec<_> = cases.into_par_iter().map(|(shape, seed)| (shape, seed, earned(shape, seed))).collect();
    let mut least = f64::INFINITY;
    for (shape, seed, [before, after]) in &found {
        println!("{shape:?}, seed {seed}: {before:.3} -> {after:.4} of 1");
        assert!(*before < 0.6, "the untrained policy already earns {before}");
        least = least.min(*after);
    }
    assert!(least >= 0.95, "at least 0.95 of the best reward, found {least}");
}

#[test]
fn ppo_finds_the_best_arms() {
    earns_the_most(vec![(Shape::Head, 0), (Shape::Head, 1), (Shape::Adapter, 2), (Shape::Whole, 3), (Shape::Whole, 4)]);
}

#[test]
#[ignore = "twenty seeds each; `cargo test --release -- --ignored ppo_finds --nocapture`"]
fn ppo_finds_the_best_arms_from_twenty_seeds() {
    let shapes = [Shape::Head, Shape::Adapter, Shape::Whole];
    earns_the_most(shapes.into_iter().flat_map(|shape| (0..20).map(move |seed| (shape, seed))).collect());
}

/// A reward that depends only on the prompt, not on the answer.
struct Worth;

impl RewardSource for Worth {
    fn score(&mut self, _: &Model, answers: &[RewardInput]) -> Result<Vec<f64>> {
        Ok(answers.iter().map(|a| a.prompt.line as f64 - 2.0).collect())
    }
}

#[test]
fn the_value_function_learns_to_predict_the_reward_of_a_prompt() {
    for shape in [Shape::Head, Shape::Adapter, Shape::Whole] {
        let model = load(shape);
        let rewards = RewardSources::from_sources(vec![("worth".into(), 1.0, Box::new(Worth))]);
        let sampling = SamplingSpec { prompts: 3, max_new_tokens: 4, ..Default::default() };
        let settings = json!({ "answers": 4, "value_coef": 1.0, "clip_value": 0.0 });
        let mut ppo = method(shape, settings, rewards, sampling, 5, &model);
        let told = learn(&mut ppo, &model, &mut optimiser(&model), 60, 5e-3);
        let explained: Vec<f64> = told.iter().map(|m| m["value/explained_variance"]).collect();
        println!("{shape:?}: {explained:.3?}");
        let last = &explained[explained.len() - 5..];
        assert_eq!(explained[0], 0.0, "a value head of zeros must explain nothing");
        assert!(last.iter().sum::<f64>() / 5.0 > 0.5, "{shape:?}: {explained:?}");
    }
}

/// At the first step, sampling and training compute the same log-probabilities, the policy equals the reference, and
/// every ratio is 1.
#[test]
fn at_the_first_step_policy_sampler_and_reference_agree() {
    for (shape, temperature) in [(Shape::Head, 0.7), (Shape::Adapter, 1.0), (Shape::Whole, 1.3)] {
        let model = load(shape);
        let sampling = SamplingSpec { prompts: 3, max_new_tokens: 9, temperature, ..Default::default() };
        let mut ppo = method(shape, json!({ "answers": 5 }), bandit::arms(), sampling, 5, &model);
        let TrainingStep { items, micro_batches, means, .. } = ppo.next_step(&model).unwrap();
        let micro: Vec<_> = micro_batches.map(Result::unwrap).collect();
        let means: BTreeMap<String, f64> = means.into_iter().collect();
        assert!(means["sampling/sampling_logp_difference/max"] < 1e-4, "{means:?}");
        // The reference still equals the policy, so no KL penalty is subtracted from the rewards.
        assert!(means["objective/kl"].abs() < 1e-4, "{means:?}");
        assert!((means["objective/rlhf_reward"] - means["reward"]).abs() < 1e-5, "{means:?}");
        assert_eq!(micro.iter().map(|b| b.items()).sum::<f64>(), means["completions/mean_length"] * 15.0);
        assert_eq!(micro.iter().map(|b| b.items()).sum::<f64>(), items);
        let mut metrics = ft::models::Metrics::default();
        for b in &micro {
            let pass = |m: &Model| m.infer(b.tokens(), |out| b.loss(out)).unwrap().metrics;
            metrics.merge(match b.adapter() {
                Some(name) => model.with_adapter(Some(name), pass),
                None => pass(&model),
            });
        }
        let found = metrics.means();
        assert!((found["val/ratio"] - 1.0).abs() < 1e-5 && found["val/ratio_var"] < 1e-9, "{found:?}");
        assert!(found["policy/clipfrac_avg"] == 0.0 && found["loss/policy_avg"].abs() < 1e-5, "{found:?}");
        assert!(found["policy/entropy_avg"] > 0.0);
    }
}

/// A method restored from a checkpoint gives the numbers of the uninterrupted one, wherever in an iteration the
/// checkpoint was taken; and a new method repeats the numbers of the first one.
#[test]
fn restoring_inside_an_iteration_is_reproducible() {
    let settings = json!({
        "answers": 3, "epochs": 2, "mini_batches": 2,
        "kl": { "coef": 0.1, "target": 1.0, "horizon": 20.0, "place": "loss", "estimator": "k2" },
    });
    let (model, seed) = (load(Shape::Adapter), 11);
    let sampling = SamplingSpec { prompts: 2, max_new_tokens: 6, ..Default::default() };
    let new = || method(Shape::Adapter, settings.clone(), bandit::arms(), sampling.clone(), seed, &model);
    let numbers = |ppo: &mut Ppo| {
        let TrainingStep { micro_batches, means, epoch, .. } = ppo.next_step(&model).unwrap();
        let pass = |b: &dyn ft::models::learning::MicroBatch| {
            let loss = |m: &Model| m.infer(b.tokens(), |out| b.loss(out)).unwrap().sum.double_value(&[]);
            b.adapter().map_or_else(|| loss(&model), |name| model.with_adapter(Some(name), loss))
        };
        (micro_batches.map(|b| pass(&*b.unwrap())).collect::<Vec<f64>>(), means, epoch)
    };
    let all: Vec<_> = {
        let mut uninterrupted = new();
        (0..14).map(|_| numbers(&mut uninterrupted)).collect()
    };
    let mut straight = new();
    for done in 0..9 {
        let mut resumed = new();
        resumed.rewind(straight.cursor()).unwrap();
        resumed.restore(straight.state()).unwrap();
        assert_eq!(resumed.state().len(), straight.state().len());
        let mut ahead = new();
        ahead.rewind(straight.cursor()).unwrap();
        ahead.restore(straight.state()).unwrap();
        for more in 0..5 {
            let found = numbers(&mut resumed);
            assert_eq!(found, numbers(&mut ahead), "{more} steps after {done}");
            assert_eq!(found, all[done + more], "restored after {done} steps: not as without interruption");
        }
        let expected = numbers(&mut straight);
        assert_eq!(expected, all[done], "step {done}");
        let mut again = new();
        again.rewind(ahead.cursor()).unwrap();
        assert!(again.restore(BTreeMap::new()).unwrap_err().to_string().contains("standing"));
        let mut one = new();
        (0..done).for_each(|_| drop(numbers(&mut one)));
        assert_eq!(numbers(&mut one), expected, "step {done}");
    }
}

// ------------------------------------------------------------------------------------------------ through the command

const RECIPE: &str = r#"
model:   { path: models/smollm2-135m-instruct, dtype: f32, device: cpu }
method:
  ppo:
    rewards:
      - { length: { min: 2, max: 6, falloff: 8 }, weight: 1 }
      - { regex: { pattern: "[aeiou]" }, weight: 0.5, name: vowel }
    sampling: { prompts: 6, max_new_tokens: 8, missing_eos_penalty: 0.1, eval_temperature: 1 }
    epochs: 2
    mini_batches: 2
    kl: { target: 2, horizon: 100 }
adapter: { lora: { rank: 4, alpha: 8 } }
data:
  train: { path: datasets/icd10/train.jsonl }
  valid: { path: datasets/icd10/valid.jsonl }
batch:   { tokens: 1024, max_len: 512 }
optim:   { lr: 2e-3, schedule: constant }
run:     { steps: 9, eval_every: 4, save_every: 1, keep: 20, samples: 0, seed: 3, out: runs/ppo }
"#;

fn space() -> Workspace {
    let space = Workspace::new();
    std::fs::write(space.path("ppo.yaml"), RECIPE).unwrap();
    space
}

/// A run that is interrupted after step 6, in the middle of the second iteration, and resumed ends with the same bits
/// as an uninterrupted run.
#[test]
fn a_run_interrupted_inside_an_iteration_resumes_bit_for_bit() {
    let cases: [&[&str]; 2] = [
        &["method.ppo.value={adapter: {rank: 2}}", "method.ppo.entropy_coef=0.01"],
        &["adapter=null", "optim.lr=1e-4", "method.ppo.kl={place: loss, estimator: k2}", "model.dtype=bf16"],
    ];
    let space = space();
    for (i, sets) in cases.iter().enumerate() {
        let (straight, broken) = (format!("straight-{i}"), format!("broken-{i}"));
        let out = format!("run.out={straight}");
        let sets: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
        space.ft(&[&["train", "ppo.yaml", "--set", &out][..], &sets].concat());
        copy_folder(&space.path(&straight), &space.path(&broken));
        for later in 7..=9 {
            std::fs::remove_dir_all(space.path(&format!("{broken}/checkpoints/step-{later}"))).unwrap();
        }
        for name in ["adapter_model.safetensors", "model.safetensors", "summary.json", "held_out.json"] {
            let _ = std::fs::remove_file(space.path(&broken).join(name));
        }
        space.ft(&["resume", &broken]);
        assert!(space.weights(&straight) == space.weights(&broken), "{sets:?}: the result differs");
        assert_eq!(space.steps(&straight), space.steps(&broken), "{sets:?}: the metrics differ");
        for file in ["trained", "optimiser", "generator", "method"] {
            let read =
                |out: &str| std::fs::read(space.path(&format!("{out}/checkpoints/step-9/{file}.safetensors"))).unwrap();
            assert!(read(&straight) == read(&broken), "{sets:?}: {file} of the last checkpoint differs");
        }
        assert_eq!(space.json(&format!("{straight}/held_out.json")), space.json(&format!("{broken}/held_out.json")));
        let verdict = space.ft(&["resume", &straight, "--verify", "3", "--json"]);
        let verdict: Value = serde_json::from_slice(&verdict.stdout).unwrap();
        assert_eq!(verdict["same"], true, "{verdict}");
        // The written result is the policy without its value function.
        let names = |out: &str| {
            let file = ["adapter_model.safetensors", "model.safetensors"].map(|n| space.path(out).join(n));
            ft::nn::Weights::open_file(file.iter().find(|f| f.exists()).unwrap())
                .unwrap()
                .all()
                .into_keys()
                .collect::<Vec<_>>()
        };
        assert!(names(&straight).iter().all(|n| !n.contains("score")), "{:?}", names(&straight));
    }
}

#[test]
fn a_run_that_exceeds_its_kl_limit_stops_and_keeps_the_best_step() {
    let space = space();
    let out = space.ft(&[
        "train",
        "ppo.yaml",
        "--set",
        "optim.lr=0.03",
        "--set",
        "method.ppo.alarms.kl=0.05",
        "--set",
        "method.ppo.kl.target=null",
    ]);
    let said = stderr(&out);
    assert!(said.contains("the limit is 0.05") && said.contains("next: "), "{said}");
    let summary = space.json("runs/ppo/summary.json");
    assert_eq!(summary["stopped_early"], true, "{summary}");
    let steps = space.steps("runs/ppo");
    let validations: Vec<&Value> = steps.iter().filter(|l| l.get("eval_objective/rlhf_reward").is_some()).collect();
    let net = |l: &&Value| l["eval_objective/rlhf_reward"].as_f64().unwrap();
    let best = validations[1..].iter().max_by(|a, b| net(a).total_cmp(&net(b))).unwrap();
    assert_eq!(summary["best_step"], best["step"], "{summary}");
    let held_out = space.json("runs/ppo/held_out.json");
    assert_eq!((held_out["prompts"].as_u64(), held_out["samples"].as_array().map(Vec::len)), (Some(4), Some(4)));
    let rate = held_out["win_rate"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&rate) && said.contains("win rate"), "{said}");
}

/// A reward model is refused if its report card is below the limits. With `force` it is used; if it has the policy's
/// base, both share one copy of that base.
#[test]
fn a_reward_model_is_refused_by_its_report_card_unless_forced() {
    let space = space();
    let rows = std::fs::read_to_string("datasets/preference.jsonl").unwrap();
    std::fs::write(space.path("pairs.jsonl"), rows).unwrap();
    let reward = r#"
model:   { path: models/smollm2-135m-instruct, dtype: f32, device: cpu }
method:  { reward: {} }
adapter: { lora: { rank: 4, alpha: 8 } }
data:
  train: { path: pairs.jsonl }
  valid: { path: pairs.jsonl }
batch:   { tokens: 1024, max_len: 512, examples: 8 }
optim:   { lr: 1e-3 }
run:     { steps: 2, samples: 0, out: adapters/judge }
"#;
    std::fs::write(space.path("reward.yaml"), reward).unwrap();
    space.ft(&["train", "reward.yaml"]);
    let rewards = "method.ppo.rewards=[{model: {path: adapters/judge}}]";
    let train = ["train", "ppo.yaml", "--set", "run.steps=4", "--set", rewards];
    let refused = space.command(&train).output().unwrap();
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("not fit to train a policy with") && said.contains("of the pairs") && said.contains("force"),
        "{said}"
    );
    assert!(!space.path("runs/ppo").exists(), "refused before anything is written");

    let forced = "method.ppo.rewards=[{model: {path: adapters/judge, force: true}}]";
    let beside = space.ft(&["train", "ppo.yaml", "--set", "run.steps=4", "--set", forced]);
    assert!(!String::from_utf8_lossy(&beside.stderr).contains("base of its own"));
    // The same reward model, loaded with a base of its own, gives the same scores.
    let own = "method.ppo.rewards=[{model: {path: adapters/judge, base: models/smollm2-135m-instruct, force: true}}]";
    let alone = space.ft(&["train", "ppo.yaml", "--set", "run.steps=4", "--set", own, "--set", "run.out=runs/own"]);
    assert!(String::from_utf8_lossy(&alone.stderr).contains("base of its own"));
    let scores = |out: &str| -> Vec<f64> {
        space.steps(out).iter().filter_map(|l| l.get("rewards/model/mean")?.as_f64()).collect()
    };
    assert_eq!(scores("runs/ppo").len(), 1);
    for (a, b) in scores("runs/ppo").iter().zip(scores("runs/own")) {
        assert!((a - b).abs() < 1e-5, "{a} on the base of the policy, {b} on a base of its own");
    }
    // A head other than the trained one is detected before the first answer is scored.
    let file = space.path("adapters/judge/adapter_model.safetensors");
    let mut tensors = ft::nn::Weights::open_file(&file).unwrap().all();
    for (name, t) in &mut tensors {
        if name.contains("score") {
            *t = t.ones_like();
        }
    }
    let tensors: Vec<(PathBuf, Tensor)> = tensors.into_iter().map(|(n, t)| (PathBuf::from(n), t.copy())).collect();
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.to_str().unwrap(), t)).collect();
    ft::nn::weights::save(&file, named).unwrap();
    let broken =
        space.command(&["train", "ppo.yaml", "--set", "run.steps=4", "--set", forced, "--overwrite"]).output().unwrap();
    let said = stderr(&broken);
    assert!(broken.status.code() == Some(1) && said.contains("reward.json"), "{said}");
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let space = space();
    for (set, says) in [
        ("method.ppo.mini_batches=7", "would leave some empty"),
        ("method.ppo.kl={coef: 0, target: 1}", "0 stays 0"),
        ("method.ppo.rewards=[]", "rewards"),
        ("method.ppo.sampling.max_new_tokens=600", "leave"),
        ("adapter.lora.dropout=0.1", "dropout"),
        ("method.ppo.rewards=[{exact: {column: nowhere}}]", "nowhere"),
        ("method.ppo.rewards=[{model: {path: adapters/none, force: true}}]", "neither a reward model"),
    ] {
        let refused = space.command(&["train", "ppo.yaml", "--set", set]).output().unwrap();
        let said = stderr(&refused);
        assert!(refused.status.code() == Some(1) && said.contains(says) && said.contains("hint"), "{set}: {said}");
    }
    let whole = ["train", "ppo.yaml", "--set", "adapter=null", "--set", "method.ppo.value={adapter: {}}"];
    let refused = space.command(&whole).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("an adapter needs a base that is frozen"));
}

/// Runs the whole RLHF chain on a tiny model. A second run skips every stage: the content of its files decides, not
/// their modification times.
#[test]
fn the_rlhf_demo_skips_stages_whose_input_is_unchanged() {
    let space = Workspace::new();
    let pairs = std::fs::read_to_string("datasets/preference.jsonl").unwrap();
    // The real script makes its pairs from diagnoses, which are not in the repository: a stand-in writes other pairs.
    let make = format!(
        "import pathlib, sys\nout = pathlib.Path(sys.argv[3])\nout.mkdir(parents=True, exist_ok=True)\nfor name in ('train', 'valid'):\n    (out / f'{{name}}.jsonl').write_text({pairs:?})\n"
    );
    std::fs::write(space.path("datasets/prepare_helpful.py"), make).unwrap();
    let run = || {
        let force = r#"--set method.ppo.rewards=[{"model":{"path":"adapters/reward-helpful","force":true}}]"#;
        let few = "--set run.steps=2 --set run.samples=0 --set model.device=cpu";
        let out = std::process::Command::new("bash")
            .arg(std::env::current_dir().unwrap().join("setup/rlhf.sh"))
            .current_dir(space.path(""))
            .env("FT", ft_binary())
            .env("MORE_SFT", few)
            .env("MORE_REWARD", few)
            .env("MORE_PPO", format!("{few} --set method.ppo.sampling.prompts=4 {force}"))
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let first = run();
    assert!(first.contains("correct on") && first.contains("win rate") && first.contains("better, "), "{first}");
    let finished = || std::fs::metadata(space.path("adapters/ppo-helpful/summary.json")).unwrap().modified().unwrap();
    let then = finished();
    // Write a file again with the same bytes: only its modification time changes.
    let rows = space.path("datasets/icd10/train.jsonl");
    let text = std::fs::read(&rows).unwrap();
    std::fs::write(&rows, text).unwrap();
    let second = run();
    assert_eq!(second.matches(": unchanged").count(), 5, "{second}");
    assert_eq!(finished(), then);
    // Other validation rows: the stages that read them run again, and so do the stages that depend on those.
    std::fs::copy(space.path("datasets/icd10/test.jsonl"), space.path("datasets/icd10/valid.jsonl")).unwrap();
    let third = run();
    assert!(third.contains("sft: train") && third.contains("ppo: train"), "{third}");
}
