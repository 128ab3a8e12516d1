//! Tests the preference losses: values and gradients against TRL's own functions (tests/fixtures/preference-losses),
//! whole runs against TRL's trainers, and properties that need no reference.

use crate::support::command::stderr;
use crate::support::files::jsonl;
use crate::support::*;
use ft::adapters::{LoraSpec, ModulePlan, file};
use ft::data::batch::BatchPlan;
use ft::data::cache::{CacheChoice, TokenCache};
use ft::data::chat::ChatTokenizer;
use ft::data::dataset::Overflow;
use ft::data::rows::{SourceList, SourceSpec};
use ft::methods::contract::Method;
use ft::methods::pairs::PairStatistics;
use ft::methods::reference::ReferenceChoice;
use ft::methods::rows::DataContext;
use ft::methods::{MethodSpec, dpo, kto, orpo, simpo};
use ft::models::{LayerReplay, Model, Output};
use ft::recipe::optim::OptimSection;
use ft::train::optim::Optimiser;
use serde_json::Value;
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Kind, Tensor};

const FOLDER: &str = "preference-losses";

/// Fixed log-probabilities, and the losses and gradients that TRL computes from them. All are read as float64.
struct Fixed(BTreeMap<String, Tensor>);

impl Fixed {
    fn open() -> Self {
        Self(tensors(format!("{FOLDER}/losses.safetensors")))
    }

    fn get(&self, name: &str) -> Tensor {
        self.0[name].to_kind(Kind::Double)
    }

    fn sides(&self, chosen: &str, rejected: &str) -> PairStatistics {
        PairStatistics { chosen: self.get(chosen), rejected: self.get(rejected) }
    }

    fn lengths(&self) -> PairStatistics {
        self.sides("chosen_tokens", "rejected_tokens")
    }

    /// Returns each answer's log-probability as a leaf tensor with gradient: summed over its tokens, or their mean if
    /// `means`.
    fn leaves(&self, means: bool) -> PairStatistics {
        let sums = self.sides("chosen", "rejected");
        let leaf = |t: &Tensor| t.detach().set_requires_grad(true);
        if means { sums.zip_with(&self.lengths(), |s, n| s / n).map(leaf) } else { sums.map(leaf) }
    }

    /// Compares losses and gradients with TRL's; returns the largest difference.
    fn compare(&self, name: &str, leaves: &PairStatistics, losses: &Tensor, tolerance: f64) -> Gap {
        losses.sum(Kind::Double).backward();
        let mut worst = Gap::default();
        let loss = self.get(&format!("{name}/loss"));
        let ours = if loss.numel() == 1 { losses.mean(Kind::Double).view([1]) } else { losses.shallow_clone() };
        worst.widen(assert_close(&format!("{name}: loss"), &ours, &loss, tolerance));
        for (side, leaf) in [("chosen", &leaves.chosen), ("rejected", &leaves.rejected)] {
            let expected = self.get(&format!("{name}/grad.{side}"));
            worst.widen(assert_close(&format!("{name}: gradient of {side}"), &leaf.grad(), &expected, tolerance));
        }
        worst
    }
}

#[derive(serde::Deserialize)]
struct PreferenceLoss {
    beta: f64,
    #[serde(default)]
    smoothing: f64,
    #[serde(default)]
    gamma: f64,
    #[serde(default)]
    desirable_weight: f64,
    #[serde(default)]
    undesirable_weight: f64,
    #[serde(default)]
    kl: f64,
}

fn case(name: &str) -> PreferenceLoss {
    let all: BTreeMap<String, serde_json::Value> = json(format!("{FOLDER}/losses.json"));
    serde_json::from_value(all[name].clone()).unwrap()
}

#[test]
fn dpo_losses_and_gradients_equal_trl() {
    use dpo::spec::{DpoLoss, DpoSpec};
    let fixed = Fixed::open();
    let reference = fixed.sides("reference_chosen", "reference_rejected");
    for (name, loss) in [
        ("sigmoid", DpoLoss::Sigmoid),
        ("sigmoid-beta", DpoLoss::Sigmoid),
        ("sigmoid-smoothed", DpoLoss::Sigmoid),
        ("sigmoid-norm", DpoLoss::SigmoidNorm),
        ("ipo", DpoLoss::Ipo),
        ("hinge", DpoLoss::Hinge),
        ("robust", DpoLoss::Robust),
        ("exo", DpoLoss::Exo),
    ] {
        let case = case(name);
        let spec = DpoSpec { beta: case.beta, loss, label_smoothing: Some(case.smoothing), ..DpoSpec::default() };
        let policy = fixed.leaves(false);
        let losses = dpo::loss::losses(&spec, &policy, &reference, &fixed.lengths());
        println!("{name}: {:?}", fixed.compare(name, &policy, &losses, 1e-6));
    }
}

#[test]
fn simpo_and_orpo_losses_and_gradients_equal_trl() {
    let fixed = Fixed::open();
    for name in ["simpo", "simpo-smoothed"] {
        let case = case(name);
        let (beta, gamma, label_smoothing) = (case.beta, case.gamma, case.smoothing);
        let spec = simpo::spec::SimpoSpec { beta, gamma, label_smoothing, nll: 0.0 };
        let means = fixed.leaves(true);
        println!("{name}: {:?}", fixed.compare(name, &means, &simpo::loss::losses(&spec, &means), 1e-6));
    }
    let means = fixed.leaves(true);
    let losses = -orpo::loss::log_odds(&means).log_sigmoid() * case("orpo-odds").beta;
    println!("orpo: {:?}", fixed.compare("orpo-odds", &means, &losses, 1e-5));
}

#[test]
fn kto_losses_and_gradients_equal_trl() {
    use kto::spec::{KtoLoss, KtoSpec};
    let fixed = Fixed::open();
    for (name, loss) in [("kto", KtoLoss::Kto), ("kto-weighted", KtoLoss::Kto), ("kto-apo", KtoLoss::ApoZero)] {
        let case = case(name);
        let (desirable_weight, undesirable_weight) = (case.desirable_weight, case.undesirable_weight);
        let spec = KtoSpec { beta: case.beta, loss, desirable_weight, undesirable_weight, ..Default::default() };
        let policy = fixed.leaves(false);
        let n = policy.chosen.size()[0];
        let good =
            Tensor::cat(&[Tensor::ones([n], (Kind::Double, policy.chosen.device())), policy.chosen.zeros_like()], 0);
        let ratios = Tensor::cat(&[&policy.chosen, &policy.rejected], 0) - fixed.get("kto/reference");
        let losses = kto::loss::losses(&spec, &ratios, &good, &Tensor::from(case.kl));
        println!("{name}: {:?}", fixed.compare(name, &policy, &losses, 1e-6));
    }
}

// ------------------------------------------------------------------------------------------------------ whole runs

/// A run of one of TRL's trainers: its data rows, its settings, and what it logged at each step.
#[derive(serde::Deserialize)]
struct Expected {
    model: String,
    rows: Vec<Value>,
    settings: Settings,
    steps: Vec<BTreeMap<String, f64>>,
    /// The largest difference between TRL's final tensors in float32 and in float64.
    float64_difference: f64,
}

#[derive(serde::Deserialize)]
struct Settings {
    batch: usize,
    beta: f64,
    learning_rate: f64,
    max_grad_norm: f64,
    weight_decay: f64,
}

/// A file of data rows, with the tokenizer and the cache for reading it.
struct Files {
    folder: tempfile::TempDir,
    sources: SourceList,
    tokenizer: Rc<ChatTokenizer>,
    cache: TokenCache,
}

impl Files {
    fn new(rows: &[Value]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, jsonl(rows)).unwrap();
        let tokenizer = Rc::new(ChatTokenizer::load(&fixture("tiny-tokenizer"), None).unwrap());
        Self {
            sources: SourceList(vec![SourceSpec::file(path, Default::default())]),
            folder,
            tokenizer,
            cache: TokenCache::off(),
        }
    }

    /// Returns a data context with `examples` examples per step, in packed rows of `tokens` tokens.
    fn ground(&self, examples: usize, tokens: usize) -> DataContext<'_> {
        DataContext {
            tokenizer: self.tokenizer.clone(),
            model: self.folder.path(),
            train: &self.sources,
            valid: Some(&self.sources),
            max_len: 128,
            on_overflow: Overflow::Error,
            overflow_tolerance: 0.0,
            cache: &self.cache,
            batch: BatchPlan { tokens, accumulate: None, examples: Some(examples) },
            shuffle: false,
            seed: 0,
            adapter: None,
        }
    }

    fn method(&self, spec: &MethodSpec, model: &Model, examples: usize, tokens: usize) -> Box<dyn Method> {
        spec.rows(&self.ground(examples, tokens)).unwrap().method(model).unwrap()
    }
}

/// Asserts that two numbers agree within `tolerance`: relative if `theirs` exceeds 1, absolute otherwise, because many
/// of these numbers are differences near zero.
#[track_caller]
fn near(name: &str, ours: f64, theirs: f64, tolerance: f64) {
    let gap = (ours - theirs).abs() / theirs.abs().max(1.0);
    assert!(gap <= tolerance, "{name}: {ours} and {theirs}, {gap:e} apart, allowed {tolerance:e}");
}

/// Adds the gradients of one step to the model; returns its mean metrics and its number of micro-batches.
fn learn(model: &Model, method: &mut dyn Method, replay: LayerReplay) -> (BTreeMap<&'static str, f64>, usize) {
    let step = method.next_step(model).unwrap();
    let (items, mut count) = (step.items, 0);
    let mut metrics = ft::models::Metrics::default();
    for b in step.micro_batches.map(Result::unwrap) {
        count += 1;
        metrics.merge(model.learn(&*b, items, replay).unwrap());
    }
    (metrics.means(), count)
}

/// Takes the steps of a run and compares each with what TRL logged.
fn train(name: &str, expected: &Expected, model: &Model, spec: &MethodSpec, replay: LayerReplay) {
    let Settings { batch, learning_rate, max_grad_norm, weight_decay, .. } = expected.settings;
    let settings = OptimSection { lr: Some(learning_rate), weight_decay, ..OptimSection::default() };
    let mut optimiser = Optimiser::new(model.params(), &settings, 0).unwrap();
    let files = Files::new(&expected.rows);
    let mut method = files.method(spec, model, batch, 256);
    let (mut gap, mut parts) = (0f64, 0);
    for (i, step) in expected.steps.iter().enumerate() {
        let (means, micro) = learn(model, &mut *method, replay);
        parts = parts.max(micro);
        for (key, theirs) in step.iter().filter(|(key, _)| *key != "grad_norm") {
            near(&format!("{name}, step {i}: {key}"), means[key.as_str()], *theirs, 1e-4);
            gap = gap.max((means[key.as_str()] - theirs).abs());
        }
        let norm = optimiser.clip(max_grad_norm).unwrap().double_value(&[]);
        near(&format!("{name}, step {i}: gradient norm"), norm, step["grad_norm"], 1e-4);
        optimiser.step(learning_rate).unwrap();
        optimiser.zero_gradients();
    }
    assert!(parts > 1, "a step should be more than one packed row, or accumulation goes untested");
    println!("{name} {replay:?}: numbers of all steps within {gap:e}, {parts} rows a step");
}

/// Returns the tolerance for final tensors. Adam takes a full step even for a tiny gradient whose sign is uncertain, so
/// the tolerance cannot be tighter than the reference's own rounding error.
fn allowed(expected: &Expected) -> f64 {
    (10.0 * expected.float64_difference).max(1e-5)
}

fn with_lora(name: &str, spec: impl Fn(f64) -> MethodSpec) {
    let expected: Expected = json(format!("{FOLDER}/{name}/expected.json"));
    let folder = fixture(format!("{FOLDER}/{name}/initial"));
    for replay in [LayerReplay::None, LayerReplay::All] {
        let initial = file::read(&folder).unwrap();
        let plan = initial.spec.plan().unwrap();
        let model = adapted(&fixture(&expected.model), Kind::Float, &*plan);
        file::load_into(model.params().adapter(0), &initial.tensors, &folder).unwrap();
        train(name, &expected, &model, &spec(expected.settings.beta), replay);
        let theirs = tensors(format!("{FOLDER}/{name}/final/{}", file::TENSORS));
        let mut worst = Gap::default();
        assert_eq!(model.params().trainable().count(), theirs.len());
        for p in model.params().trainable() {
            let key = format!("base_model.model.{}", p.name);
            worst.widen(assert_within(&p.name, &p.tensor, &theirs[&key], allowed(&expected)));
        }
        println!("{name} {replay:?}: final tensors {worst:?}");
    }
}

#[test]
fn ten_steps_of_dpo_on_lora_equal_trl() {
    with_lora("dpo-lora", |beta| MethodSpec::Dpo(dpo::DpoSpec { beta, ..Default::default() }));
}

#[test]
fn ten_steps_of_kto_on_lora_equal_trl() {
    with_lora("kto-lora", |beta| MethodSpec::Kto(kto::KtoSpec { beta, ..Default::default() }));
}

#[test]
fn ten_steps_of_dpo_on_every_weight_equal_trl() {
    let expected: Expected = json(format!("{FOLDER}/dpo-full/expected.json"));
    let theirs = tensors(format!("{FOLDER}/dpo-full/final.safetensors"));
    let model = whole(&fixture(&expected.model), Kind::Float);
    let spec = MethodSpec::Dpo(dpo::DpoSpec { beta: expected.settings.beta, ..Default::default() });
    train("dpo-full", &expected, &model, &spec, LayerReplay::None);
    let mut worst = Gap::default();
    for p in model.params().trainable() {
        worst.widen(assert_within(&p.name, &every(8, &p.tensor), &theirs[&p.name], allowed(&expected)));
    }
    println!("dpo-full: final tensors {worst:?}");
}

// ------------------------------------------------------------------------------- properties that need no reference

fn preference_rows(n: usize) -> Vec<Value> {
    let text = std::fs::read_to_string("datasets/preference.jsonl").unwrap();
    text.lines().take(n).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn methods() -> Vec<(&'static str, MethodSpec)> {
    vec![
        ("dpo", MethodSpec::Dpo(dpo::DpoSpec { nll: 0.3, ..Default::default() })),
        ("ipo", MethodSpec::Dpo(dpo::DpoSpec { loss: dpo::DpoLoss::Ipo, ..Default::default() })),
        ("kto", MethodSpec::Kto(kto::KtoSpec { undesirable_weight: 0.7, ..Default::default() })),
        ("orpo", MethodSpec::Orpo(orpo::OrpoSpec::default())),
        ("orpo with prompts", MethodSpec::Orpo(orpo::OrpoSpec { learn_prompt: true, ..Default::default() })),
        ("simpo", MethodSpec::Simpo(simpo::SimpoSpec { nll: 0.3, ..Default::default() })),
    ]
}

/// Returns the tiny model with an adapter that changes its output.
fn model() -> Model {
    let plan = ModulePlan::new(&LoraSpec { rank: 4, ..LoraSpec::default() }).unwrap();
    let model = adapted(&fixture("tiny-llama"), Kind::Float, &plan);
    fill_adapter(&model, 0.1);
    model
}

#[test]
fn packed_equals_one_by_one() {
    let files = Files::new(&preference_rows(6));
    for (name, spec) in methods() {
        let model = model();
        let outcome = |tokens: usize, examples: usize| {
            let mut method = files.method(&spec, &model, examples, tokens);
            let (means, rows) = learn(&model, &mut *method, LayerReplay::None);
            (means, rows, take_gradients(&model), method.validate(&model).unwrap().unwrap())
        };
        let examples = if matches!(spec, MethodSpec::Kto(_)) { 12 } else { 6 };
        let (means, rows, gradients, valid) = outcome(4096, examples);
        let (apart, many, others, valid_apart) = outcome(256, examples);
        assert!(rows == 1 && many >= 3, "{name}: {rows} and {many} rows");
        for (key, value) in &means {
            near(&format!("{name}: {key}"), apart[key], *value, 1e-5);
        }
        for (key, value) in &valid {
            near(&format!("{name}: validation {key}"), valid_apart[key], *value, 1e-5);
            // No weight has changed, and validation reads the same rows.
            near(&format!("{name}: validation and training {key}"), means[key.as_str()], *value, 1e-5);
        }
        for (key, gradient) in &gradients {
            assert_close(&format!("{name}: gradient of {key}"), &others[key], gradient, 1e-4);
        }
    }
}

#[test]
fn no_gradient_comes_from_predicting_a_prompt() {
    let files = Files::new(&preference_rows(3));
    for (name, spec) in methods() {
        let model = model();
        let mut method = files.method(&spec, &model, 3, 2048);
        let mut step = method.next_step(&model).unwrap();
        let rows = spec.rows(&files.ground(3, 2048)).unwrap().preview(3).unwrap();
        // 1 for every position whose next token is trained on, else 0. The packed row has the examples in the order of
        // `shown`.
        let answers: Vec<f32> = rows
            .iter()
            .flat_map(|e| (0..e.ids.len()).map(|t| f32::from(u8::from(e.supervised.get(t + 1) == Some(&true)))))
            .collect();
        let answers = Tensor::from_slice(&answers).to_device(model.device());
        let b = step.micro_batches.next().unwrap().unwrap();
        let mut found = Vec::new();
        let watched = |out: &Output| {
            let loss = b.loss(out);
            let grad = Tensor::run_backward(&[&loss.sum], &[&out.hidden], true, false).remove(0);
            found.push(grad.abs().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float));
            loss
        };
        model.learn(&ClosureBatch::new(b.tokens(), watched), b.items(), LayerReplay::None).unwrap();
        let found = found.remove(0);
        assert_eq!(found.size(), answers.size(), "{name}");
        let prompts: Tensor = 1.0 - &answers;
        let of_prompts = (&found * &prompts).max().double_value(&[]);
        let least_of_answers = (&found + &prompts * 1e9).min().double_value(&[]);
        assert!(least_of_answers > 0.0, "{name}: a token of an answer has no gradient");
        assert_eq!(of_prompts == 0.0, name != "orpo with prompts", "{name}: {of_prompts:e}");
    }
}

#[test]
fn cached_log_probabilities_equal_the_reference_and_are_never_stale() {
    let kept = tempfile::tempdir().unwrap();
    let mut files = Files::new(&preference_rows(6));
    files.cache = TokenCache::new(&CacheChoice::Folder(kept.path().into())).unwrap();
    let of = |reference| MethodSpec::Dpo(dpo::DpoSpec { reference, ..Default::default() });
    let (live, cached) = (of(ReferenceChoice::Live), of(ReferenceChoice::Cached));
    let model = model();
    let outcome = |files: &Files, spec: &MethodSpec| {
        let mut method = files.method(spec, &model, 4, 256);
        let means = learn(&model, &mut *method, LayerReplay::None).0;
        (means, take_gradients(&model), method.validate(&model).unwrap().unwrap())
    };
    let names = || {
        let names = std::fs::read_dir(kept.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|n| n.ends_with(".logprobs")).collect::<Vec<_>>()
    };
    let online = outcome(&files, &live);
    assert!(names().is_empty());
    for round in ["computed", "read"] {
        let (means, gradients, valid) = outcome(&files, &cached);
        assert_eq!(names().len(), 1, "training and validation rows are the same rows here");
        for (key, value) in &online.0 {
            near(&format!("{round}: {key}"), means[key], *value, 1e-5);
        }
        for (key, gradient) in &online.1 {
            assert_close(&format!("{round}: gradient of {key}"), &gradients[key], gradient, 1e-4);
        }
        for (key, value) in &online.2 {
            near(&format!("{round}: validation {key}"), valid[key], *value, 1e-5);
        }
    }
    // A valid file with wrong numbers changes the result: so the cache is really read. A truncated file is not used.
    let path = kept.path().join(&names()[0]);
    let whole = std::fs::read(&path).unwrap();
    let zeros = Tensor::zeros([12], (Kind::Double, tch::Device::Cpu));
    ft::nn::weights::save(&path, [("log_probs", &zeros)]).unwrap();
    assert!(outcome(&files, &cached).0["rewards/chosen"].abs() > 5.0);
    std::fs::write(&path, &whole[..whole.len() - 8]).unwrap();
    near("after damage", outcome(&files, &cached).0["loss"], online.0["loss"], 1e-5);
    assert_eq!(std::fs::read(&path).unwrap(), whole, "the damaged file was not rewritten");
    // Other rows have a cache file of their own.
    let mut others = Files::new(&preference_rows(5));
    others.cache = files.cache.clone();
    outcome(&others, &cached);
    assert_eq!(names().len(), 2);
}

#[test]
fn a_fully_trained_model_is_compared_with_a_copy_of_itself() {
    let files = Files::new(&preference_rows(4));
    let model = whole(&fixture("tiny-llama"), Kind::Float);
    let spec = MethodSpec::Dpo(dpo::DpoSpec::default());
    let mut method = files.method(&spec, &model, 4, 2048);
    let before = learn(&model, &mut *method, LayerReplay::None).0;
    near("loss of a model that is its reference", before["loss"], std::f64::consts::LN_2, 1e-6);
    let mut optimiser = Optimiser::new(model.params(), &OptimSection::default(), 0).unwrap();
    optimiser.step(1e-3).unwrap();
    optimiser.zero_gradients();
    let after = method.validate(&model).unwrap().unwrap();
    assert!(after["loss"] < 0.6 && after["rewards/accuracies"] == 1.0, "{after:?}");
}

#[test]
fn rows_without_a_learning_signal_are_refused() {
    let error = |rows: &[Value], spec: &MethodSpec, cut: usize| {
        let files = Files::new(rows);
        let ground = DataContext { on_overflow: Overflow::Truncate, max_len: cut, ..files.ground(2, 512) };
        let found = spec.rows(&ground).and_then(|rows| rows.method(&model()).map(drop));
        found.unwrap_err().to_string()
    };
    let dpo = MethodSpec::Dpo(dpo::DpoSpec::default());
    let said = |answer: &str| serde_json::json!([{"role": "assistant", "content": answer}]);
    let pair = |a: &str, b: &str| serde_json::json!({"prompt": [{"role": "user", "content": "hello"}], "chosen": said(a), "rejected": said(b)});
    let same = error(&[pair("yes", "yes")], &dpo, 256);
    assert!(same.contains("rows.jsonl:1"), "{same}");
    let long = "a long answer that goes on and on until it is cut, ".repeat(8);
    let cut = error(&[pair(&format!("{long} yes"), &format!("{long} no"))], &dpo, 40);
    assert!(cut.contains("rows.jsonl:1") && cut.contains("batch.max_len"), "{cut}");
    let alone = error(&[pair("yes", "no"), pair("of course", "never")], &MethodSpec::Kto(Default::default()), 256);
    assert!(alone.contains("same prompt") && alone.contains("apo_zero"), "{alone}");
}

#[test]
fn kto_weights_that_do_not_balance_the_labels_are_reported() {
    let spec = kto::KtoSpec::default();
    assert_eq!(spec.weight_advice(50, 50), None);
    assert!(spec.weight_advice(90, 10).unwrap().contains("undesirable_weight: 9.00"));
    assert!(spec.weight_advice(10, 90).unwrap().contains("desirable_weight: 9.00"));
    assert_eq!(kto::KtoSpec { undesirable_weight: 9.0, ..spec.clone() }.weight_advice(90, 10), None);
    assert!(spec.weight_advice(10, 0).unwrap().contains("bad"));
}

// --------------------------------------------------------------------------------------------- through the real binary

#[test]
fn a_run_started_from_an_adapter_uses_it_as_start_and_reference() {
    let space = crate::support::workspace::Workspace::new();
    let sft = ["train", "recipes/lora-medical.yaml", "--set", "run.steps=3", "--set", "run.samples=0"];
    space.ft(&sft);
    let from = "adapter.lora.from=adapters/lora-medical";
    let sets = [
        from,
        "run.steps=4",
        "run.samples=0",
        "run.eval_every=2",
        "model.dtype=f32",
        "batch.tokens=512",
        "batch.max_len=256",
    ];
    let dpo = |out: &str, more: &[&str]| {
        let out = format!("run.out={out}");
        let mut arguments = vec!["train", "recipes/dpo-medical.yaml", "--set", &out];
        arguments.extend(sets.iter().chain(more).flat_map(|s| ["--set", s]));
        space.command(&arguments).output().unwrap()
    };
    // With a learning rate of zero the result equals the initial adapter, and the loss stays at ln 2, its value while
    // model and reference are equal.
    let still = dpo("still", &["optim.lr=0"]);
    assert!(still.status.success(), "{}", String::from_utf8_lossy(&still.stderr));
    assert_eq!(space.weights("still"), space.weights("adapters/lora-medical"));
    let loss = |out: &str| space.steps(out).iter().filter_map(|l| l["loss"].as_f64()).collect::<Vec<_>>();
    for loss in loss("still") {
        near("loss of an adapter that is its reference", loss, std::f64::consts::LN_2, 1e-6);
    }
    for (out, reference) in [("live", "live"), ("cached", "cached")] {
        let choice = format!("method.dpo.reference={reference}");
        let done = dpo(out, &["optim.lr=1e-3", &choice, "data.cache=cache"]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let (live, cached) = (loss("live"), loss("cached"));
    near("first loss", live[0], std::f64::consts::LN_2, 1e-6);
    assert!((live[3] - live[0]).abs() > 1e-3, "{live:?}");
    live.iter().zip(&cached).for_each(|(a, b)| near("live and cached", *b, *a, 1e-4));
    let other = dpo("other", &["adapter.lora.alpha=16"]);
    let said = stderr(&other);
    assert!(other.status.code() == Some(1) && said.contains("alpha: 32") && said.contains("adapter.lora"), "{said}");
}

#[test]
fn kto_caches_the_reference_of_mismatched_answers_too() {
    let kept = tempfile::tempdir().unwrap();
    let model = model();
    // Negated, so that the model gives mismatched answers a higher probability than its base does.
    tch::no_grad(|| {
        for p in model.params().iter().filter(|p| p.name.contains("lora_B")) {
            let _ = p.tensor.shallow_clone().neg_();
        }
    });
    let outcome = |files: &Files, reference| {
        let spec = MethodSpec::Kto(kto::KtoSpec { reference, ..Default::default() });
        let mut method = files.method(&spec, &model, 4, 256);
        let means = learn(&model, &mut *method, LayerReplay::None).0;
        (means, take_gradients(&model), method.validate(&model).unwrap().unwrap())
    };
    // A reference point (`kl`) below zero counts as zero, so only rows where it is above zero show whether it is right.
    let rows = (3..12).map(|n| {
        let mut files = Files::new(&preference_rows(n));
        files.cache = TokenCache::new(&CacheChoice::Folder(kept.path().into())).unwrap();
        let live = outcome(&files, ReferenceChoice::Live);
        (files, live)
    });
    let above = |(_, live): &(Files, (BTreeMap<&str, f64>, _, _))| live.0["kl"] > 1e-3;
    let (files, live) = rows.into_iter().find(above).expect("rows with a reference point above zero");
    for round in ["computed", "read"] {
        let cached = outcome(&files, ReferenceChoice::Cached);
        let files = std::fs::read_dir(kept.path()).unwrap().flatten();
        let files = files.filter(|e| e.path().extension().is_some_and(|e| e == "logprobs")).count();
        assert_eq!(files, 2, "{round}: one file for the rows, one for prompts with other rows' answers");
        live.0.iter().for_each(|(key, value)| near(&format!("{round}: {key}"), cached.0[key], *value, 1e-5));
        live.2.iter().for_each(|(key, value)| near(&format!("{round}: validation {key}"), cached.2[key], *value, 1e-5));
        for (key, gradient) in &live.1 {
            assert_close(&format!("{round}: gradient of {key}"), &cached.1[key], gradient, 1e-4);
        }
    }
}
