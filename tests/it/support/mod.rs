//! Shared by the tests of models: fixtures, packed rows with a mask, and all comparisons of tensors.

pub mod command;
pub mod fake_cuda;
pub mod families;
pub mod files;
pub mod ggml;
pub mod gguf;
pub mod labeling;
pub mod laws;
pub mod needs;
pub mod resumed;
pub mod rows;
pub mod snapshot;
pub mod stored;
pub mod webdriver;
pub mod workspace;
use ft::models::{Heads, LoadOptions, Loss, Metrics, MicroBatch, Model, Output, Storage, TrainedPart};
use ft::nn::{AdapterPlan, Tokens, Weights};
use rand::RngExt;
use serde::Deserialize;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Returns the device on which models are tested: `FT_TEST_DEVICE` (cpu, cuda, cuda:N), or the CPU if it is not set.
pub fn device() -> Device {
    start();
    ft::models::device(&std::env::var("FT_TEST_DEVICE").unwrap_or("cpu".into())).unwrap()
}

/// Opens CUDA before the first test, if models are tested there: libtorch looks for its CUDA part once, at the first
/// question about it, and a test that only sets a seed asks. The loader calls the functions of this section before
/// `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static OPEN_CUDA: extern "C" fn() = open_cuda;

extern "C" fn open_cuda() {
    if std::env::var_os("FT_TEST_DEVICE").is_some() {
        start();
    }
}

/// Opens CUDA, if there is any, once.
fn start() {
    static STARTED: std::sync::Once = std::sync::Once::new();
    STARTED.call_once(|| {
        ft::runtime::start().unwrap();
    });
}

/// Returns the root of the repository: `FT_TEST_ROOT` if it is set, because the test binary can be carried to a machine
/// where the repository lies elsewhere (benches/gpu_check.py).
pub fn root() -> PathBuf {
    std::env::var_os("FT_TEST_ROOT").unwrap_or(env!("CARGO_MANIFEST_DIR").into()).into()
}

/// Returns the path of a file or folder of tests/fixtures.
pub fn fixture(path: impl AsRef<Path>) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

/// Reads a JSON file of tests/fixtures.
pub fn json<T: serde::de::DeserializeOwned>(path: impl AsRef<Path>) -> T {
    ft::fsutil::read_json(&fixture(path)).unwrap()
}

/// Reads all tensors of a safetensors file of tests/fixtures.
pub fn tensors(path: impl AsRef<Path>) -> BTreeMap<String, Tensor> {
    Weights::open_file(&fixture(path)).unwrap().all()
}

/// Makes a model directory with the config.json of fixture `name` and the weights of fixture `weights`.
pub fn with_weights(name: &str, weights: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (from, file) in [(name, "config.json"), (weights, "model.safetensors")] {
        std::fs::copy(fixture(from).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// Loads a model and limits libtorch to one thread: its products are tiny, and tests already run in parallel.
fn load(folder: &Path, load: LoadOptions) -> Model {
    tch::set_num_threads(1);
    Model::load(folder, load).unwrap()
}

/// Loads a frozen base without adapters.
pub fn frozen(folder: &Path, kind: Kind) -> Model {
    load(
        folder,
        LoadOptions {
            device: device(),
            kind,
            storage: Storage::Auto,
            train_base: None,
            adapters: Vec::new(),
            vocabulary: None,
            heads: Heads::Tokens,
        },
    )
}

/// Loads a model of which every weight is trained, in float32 or with float32 masters.
pub fn whole(folder: &Path, kind: Kind) -> Model {
    load(
        folder,
        LoadOptions {
            device: device(),
            kind,
            storage: Storage::Auto,
            train_base: Some(&TrainedPart::All),
            adapters: Vec::new(),
            vocabulary: None,
            heads: Heads::Tokens,
        },
    )
}

/// Loads a frozen base with one adapter named `a`.
pub fn adapted(folder: &Path, kind: Kind, adapter: &dyn AdapterPlan) -> Model {
    let adapters = vec![("a".to_string(), adapter)];
    load(
        folder,
        LoadOptions {
            device: device(),
            kind,
            storage: Storage::Auto,
            train_base: None,
            adapters,
            vocabulary: None,
            heads: Heads::Tokens,
        },
    )
}

/// A sequence of tokens; `mask[t]` is 1 if token t is trained on (predicted from the tokens before it).
#[derive(Debug, Clone, Deserialize)]
pub struct Sequence {
    pub ids: Vec<u32>,
    pub mask: Vec<u8>,
}

impl Sequence {
    /// Returns random ids; every token except the first is trained on.
    pub fn random(length: usize, vocabulary: u32, seed: u64) -> Self {
        let mut rng = ft::rng::stream(seed, "tests: sequence", length as u64);
        let ids = (0..length).map(|_| rng.random_range(0..vocabulary)).collect();
        Self { ids, mask: (0..length).map(|t| u8::from(t > 0)).collect() }
    }

    pub fn items(&self) -> f64 {
        self.mask.iter().map(|m| f64::from(*m)).sum()
    }
}

/// A packed row, and the positions and ids of its trained tokens.
pub struct Row {
    pub tokens: Tokens,
    pub at: Tensor,
    pub targets: Tensor,
    pub items: f64,
}

impl Row {
    pub fn pack(sequences: &[Sequence]) -> Self {
        let (mut at, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
        for s in sequences {
            for t in (1..s.ids.len()).filter(|&t| s.mask[t] == 1) {
                at.push(start + t as i64 - 1);
                targets.push(i64::from(s.ids[t]));
            }
            start += s.ids.len() as i64;
        }
        let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
        Self {
            tokens: Tokens::pack(&ids, device()),
            items: at.len() as f64,
            at: Tensor::from_slice(&at).to_device(device()),
            targets: Tensor::from_slice(&targets).to_device(device()),
        }
    }

    /// Returns the row with another loss.
    pub fn with(&self, loss: impl Fn(&Self, &Output) -> Loss) -> ClosureBatch<'_, impl FnMut(&Output) -> Loss> {
        ClosureBatch::new(&self.tokens, move |out| loss(self, out))
    }

    /// Computes the cross-entropy of the trained tokens.
    pub fn loss(&self, out: &Output) -> Loss {
        cross_entropy(out.log_probs(&self.at, &self.targets).log_probs, self.items)
    }

    /// Computes the same by the plain formula, from all logits.
    pub fn plain_loss(&self, out: &Output) -> Loss {
        let all = out.logits(&self.at).log_softmax(-1, Kind::Float);
        cross_entropy(all.gather(-1, &self.targets.unsqueeze(-1), false).squeeze_dim(-1), self.items)
    }
}

impl MicroBatch for Row {
    fn tokens(&self) -> &Tokens {
        &self.tokens
    }
    fn items(&self) -> f64 {
        self.items
    }
    fn loss(&self, out: &Output) -> Loss {
        self.loss(out)
    }
}

/// A packed row with a loss that a closure computes.
pub struct ClosureBatch<'a, F> {
    tokens: &'a Tokens,
    loss: RefCell<F>,
}

impl<'a, F: FnMut(&Output) -> Loss> ClosureBatch<'a, F> {
    pub fn new(tokens: &'a Tokens, loss: F) -> Self {
        Self { tokens, loss: RefCell::new(loss) }
    }
}

impl<F: FnMut(&Output) -> Loss> MicroBatch for ClosureBatch<'_, F> {
    fn tokens(&self) -> &Tokens {
        self.tokens
    }
    fn items(&self) -> f64 {
        1.0
    }
    fn loss(&self, out: &Output) -> Loss {
        (self.loss.borrow_mut())(out)
    }
}

fn cross_entropy(log_probs: Tensor, items: f64) -> Loss {
    let sum = -log_probs.sum(Kind::Float);
    let mut metrics = Metrics::default();
    metrics.add("loss", &sum, items);
    Loss { sum, metrics }
}

/// Writes tensors to a safetensors file.
pub fn save_tensors(file: &Path, tensors: &BTreeMap<String, Tensor>) {
    ft::nn::weights::save(file, tensors.iter().map(|(name, t)| (name.as_str(), t))).unwrap();
}

/// Copies a fixture's config.json and weights to a temporary folder and applies `change` to the weights.
pub fn with_changed_weights(name: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> tempfile::TempDir {
    let folder = with_weights(name, name);
    let mut tensors = tensors(Path::new(name).join("model.safetensors"));
    change(&mut tensors);
    save_tensors(&folder.path().join("model.safetensors"), &tensors);
    folder
}

/// Returns rows 0, `stride`, 2 `stride`, … of a matrix, or a whole vector.
pub fn every(stride: i64, t: &Tensor) -> Tensor {
    if t.dim() == 2 { t.slice(0, 0, None, stride) } else { t.shallow_clone() }
}

/// Returns the gradients of the trainable parameters by name, zeros where there is none, and clears them in the model.
pub fn take_gradients(model: &Model) -> BTreeMap<String, Tensor> {
    let take = |p: &ft::nn::Param| {
        let grad = p.tensor.grad();
        let copy = if grad.defined() { grad.copy() } else { p.tensor.zeros_like() };
        if grad.defined() {
            p.tensor.shallow_clone().zero_grad();
        }
        (p.name.clone(), copy)
    };
    model.params().trainable().map(take).collect()
}

/// Fills an adapter's tensors with noise that changes the output, without using libtorch's random generator.
pub fn fill_adapter(model: &Model, size: f64) {
    let _no_grad = tch::no_grad_guard();
    for p in model.params().iter().filter(|p| p.adapter.is_some() && p.trainable()) {
        let whole = !p.name.contains("lora_");
        let noise = noise(&p.tensor.size(), &p.name).to_device(p.tensor.device()) * size;
        p.tensor.shallow_clone().copy_(&if whole { &p.tensor + noise } else { noise });
    }
}

/// Returns uniform random numbers in [-1, 1); the name is their seed.
pub fn noise(shape: &[i64], name: &str) -> Tensor {
    let mut rng = ft::rng::stream(0, name, 0);
    let numbers: Vec<f32> = (0..shape.iter().product::<i64>()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_slice(&numbers).view(shape)
}

/// Runs the calling test in a process of its own. libtorch has one random generator per process, and a test that needs
/// equal dropout masks cannot share it with tests on other threads.
pub fn alone(name: &str, test: impl FnOnce()) {
    const ALONE: &str = "FT_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    print!("{text}");
    assert!(text.contains("1 passed") && run.status.success(), "{text}\n{}", String::from_utf8_lossy(&run.stderr));
}

/// The difference between two tensors, computed in float64.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gap {
    /// Norm of the difference divided by the norm of the expected tensor.
    pub norm: f64,
    /// Largest absolute difference of two elements.
    pub absolute: f64,
    /// The same divided by the largest absolute value of the expected tensor.
    pub element: f64,
}

impl Gap {
    /// Compares two tensors; the result is NaN if one of them contains NaN.
    pub fn between(ours: &Tensor, theirs: &Tensor) -> Self {
        let wide = |t: &Tensor| t.detach().to_device(Device::Cpu).to_kind(Kind::Double);
        let (ours, theirs) = (wide(ours), wide(theirs));
        let difference = &ours - &theirs;
        let number = |t: Tensor| t.double_value(&[]);
        let over = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a / b };
        let (norm, largest) = (number(theirs.norm()), number(theirs.abs().max()));
        let absolute = number(difference.abs().max());
        Self { norm: over(number(difference.norm()), norm), absolute, element: over(absolute, largest) }
    }

    /// Keeps the larger of both gaps, for a summary over many tensors.
    pub fn widen(&mut self, other: Gap) {
        self.norm = self.norm.max(other.norm);
        self.absolute = self.absolute.max(other.absolute);
        self.element = self.element.max(other.element);
    }
}

/// Asserts that two tensors agree to `relative`, in norm and in the element that differs most.
#[track_caller]
pub fn assert_close(name: &str, ours: &Tensor, theirs: &Tensor, relative: f64) -> Gap {
    assert_eq!(ours.size(), theirs.size(), "{name}: shapes differ");
    let gap = Gap::between(ours, theirs);
    assert!(gap.norm <= relative && gap.element <= relative, "{name}: {gap:?}, allowed {relative:e} relative");
    gap
}

/// Asserts that no number of two tensors differs by more than `absolute`.
#[track_caller]
pub fn assert_within(name: &str, ours: &Tensor, theirs: &Tensor, absolute: f64) -> Gap {
    assert_eq!(ours.size(), theirs.size(), "{name}: shapes differ");
    let gap = Gap::between(ours, theirs);
    assert!(gap.absolute <= absolute, "{name}: {gap:?}, allowed {absolute:e} absolute");
    gap
}

/// Asserts that two tensors have the same dtype and equal numbers; NaN is not equal to NaN.
#[track_caller]
pub fn assert_same(name: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.kind(), theirs.kind(), "{name}: dtypes differ");
    assert!(ours.equal(theirs), "{name}: not the same numbers, {:?}", Gap::between(ours, theirs));
}

/// Asserts that two maps have the same names and that every tensor agrees to `relative`; returns the largest gap.
#[track_caller]
pub fn assert_all_close(ours: &BTreeMap<String, Tensor>, theirs: &BTreeMap<String, Tensor>, relative: f64) -> Gap {
    assert!(ours.keys().eq(theirs.keys()), "names differ: {:?} and {:?}", ours.keys(), theirs.keys());
    let mut worst = Gap::default();
    for (name, t) in ours {
        worst.widen(assert_close(name, t, &theirs[name], relative));
    }
    worst
}

/// Asserts that two numbers agree to `relative`.
#[track_caller]
pub fn assert_number(name: &str, ours: f64, theirs: f64, relative: f64) {
    let gap = (ours - theirs).abs() / theirs.abs().max(f64::MIN_POSITIVE);
    assert!(gap <= relative, "{name}: {ours} and {theirs}, {gap:e} apart, allowed {relative:e} relative");
}
