//! Models: a decoder family, its parameters and the adapters on it; learning and inference on packed rows.
//!
//! The trunk is run layer by layer from here, so that replay, chunked heads and adapter switching are written once
//! for all families and methods.

pub mod config;
mod limits;
mod llama;
pub mod loss;
pub mod open;

pub use config::Config;
pub use loss::{Loss, Metrics, Output};
pub use open::{device, open};

use crate::error::{Error, Result};
use crate::native;
use crate::nn::{Attach, Builder, Built, Cache, Linear, ParamStore, Pass, Switches, Tokens, Weights};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// A family of decoder-only models: four short methods and its output head.
pub trait Decoder {
    /// Number of layers.
    fn depth(&self) -> usize;
    /// (T) token ids -> (T, D)
    fn embed(&self, ids: &Tensor) -> Tensor;
    /// Layer `i`: (T, D) -> (T, D)
    fn layer(&self, i: usize, x: &Tensor, pass: &mut Pass) -> Tensor;
    /// What comes between the last layer and the head: (T, D) -> (T, D)
    fn finish(&self, x: &Tensor) -> Tensor;
    /// The output head: (…, D) -> (…, V)
    fn head(&self) -> &Rc<Linear>;
}

/// A row of the table of families.
pub struct Family {
    /// `model_type` values of config.json that this family serves.
    pub names: &'static [&'static str],
    pub build: fn(&Config, &Builder) -> Result<Box<dyn Decoder>>,
}

/// Every supported family.
pub const FAMILIES: &[Family] = &[llama::FAMILY];

/// Which layers are recomputed in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    None,
    All,
}

/// How a model is loaded.
pub struct Load<'a> {
    pub device: Device,
    /// The dtype of frozen weights and of the arithmetic.
    pub kind: Kind,
    /// Train the base's own weights.
    pub train_base: bool,
    /// Adapters by name, attached in order.
    pub adapters: Vec<(String, &'a dyn Attach)>,
}

/// A decoder with its parameters and adapters.
pub struct Model {
    decoder: Box<dyn Decoder>,
    store: ParamStore,
    switches: Rc<Switches>,
    adapters: Vec<String>,
    config: Config,
    folder: PathBuf,
    device: Device,
    kind: Kind,
}

impl Model {
    /// Loads a Hugging Face model directory. The first adapter, if any, is switched on.
    pub fn load(folder: &Path, load: Load) -> Result<Self> {
        let config = Config::read(folder)?;
        let family = FAMILIES.iter().find(|f| f.names.contains(&config.model_type.as_str())).ok_or_else(|| {
            let known: Vec<&str> = FAMILIES.iter().flat_map(|f| f.names.iter().copied()).collect();
            Error::user(format!("{}: model_type `{}` is not supported", config.file().display(), config.model_type))
                .hint(format!("supported: {}", known.join(", ")))
        })?;
        if load.train_base && !load.adapters.is_empty() {
            return Err(Error::bug("adapters attach to a frozen base: train_base and adapters exclude each other"));
        }
        let weights = Weights::open(folder)?;
        let (names, attach): (Vec<String>, Vec<&dyn Attach>) = load.adapters.into_iter().unzip();
        let builder = Builder::new(&weights, load.device, load.kind, load.train_base, attach);
        if config.tie_word_embeddings {
            builder.tie_head();
        }
        let decoder = (family.build)(&config, &builder)?;
        let Built { store, switches, unused } = builder.finish()?;
        // Old checkpoints carry rotary buffers that no model needs, and some tied ones a copy of the head.
        let needless =
            |n: &str| n.ends_with("rotary_emb.inv_freq") || (config.tie_word_embeddings && n == "lm_head.weight");
        let extra: Vec<&String> = unused.iter().filter(|n| !needless(n)).collect();
        if !extra.is_empty() {
            let shown: Vec<String> = extra.iter().take(10).map(|n| format!("`{n}`")).collect();
            return Err(Error::user(format!(
                "{}: {} tensors that a {} model does not have: {}",
                folder.display(),
                extra.len(),
                config.model_type,
                shown.join(", ")
            ))
            .hint("is model_type in config.json right? An adapter directory goes to --adapter, not to --model"));
        }
        switches.active.set((!names.is_empty()).then_some(0));
        Ok(Self {
            decoder,
            store,
            switches,
            adapters: names,
            config,
            folder: folder.into(),
            device: load.device,
            kind: load.kind,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The directory it was loaded from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn device(&self) -> Device {
        self.device
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn params(&self) -> &ParamStore {
        &self.store
    }

    pub fn depth(&self) -> usize {
        self.decoder.depth()
    }

    /// Number of an adapter by name.
    pub fn adapter_id(&self, name: &str) -> Option<usize> {
        self.adapters.iter().position(|n| n == name)
    }

    /// The adapter that is switched on.
    pub fn active(&self) -> Option<&str> {
        self.switches.active.get().map(|i| self.adapters[i].as_str())
    }

    /// Runs `f` with the named adapter, or with the bare base for `None`; the switch goes back on any way out.
    pub fn with<R>(&self, adapter: Option<&str>, f: impl FnOnce(&Self) -> R) -> R {
        let id = adapter.map(|name| self.adapter_id(name).unwrap_or_else(|| panic!("no adapter `{name}`")));
        let _back = Restore { cell: &self.switches.active, value: self.switches.active.replace(id) };
        f(self)
    }

    /// The longest sequence that can be computed: within a sliding window attention is plain causal attention, beyond
    /// it the window would have to be applied, which is not built.
    pub fn context_limit(&self) -> Option<i64> {
        self.config.sliding_window
    }

    /// Refuses a row that would be computed wrongly or fail inside libtorch; segment s continues `past[s]` tokens.
    fn check(&self, tokens: &Tokens, past: &[i64]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::bug("a packed row without tokens"));
        }
        let vocabulary = self.config.vocab_size;
        if i64::from(tokens.largest) >= vocabulary {
            return Err(Error::user(format!(
                "token id {}: {} has a vocabulary of {vocabulary}",
                tokens.largest,
                self.folder.display()
            ))
            .hint("the tokenizer belongs to another model, or has tokens that were never added to this one"));
        }
        let longest =
            tokens.segments.lengths.iter().zip(past.iter().chain(std::iter::repeat(&0))).map(|(n, p)| n + p).max();
        match (longest, self.context_limit()) {
            (Some(n), Some(limit)) if n > limit => Err(Error::user(format!(
                "a sequence of {n} tokens: {} attends through a sliding window of {limit}, which ft does not compute",
                self.folder.display()
            ))
            .hint(format!(
                "keep sequences within {limit} tokens: batch.max_len when training, fewer new tokens when generating"
            ))),
            _ => Ok(()),
        }
    }

    fn trunk(&self, tokens: &Tokens, cache: Option<&mut Cache>) -> Tensor {
        let mut pass = Pass::new(tokens, cache);
        let mut x = self.decoder.embed(&tokens.ids); // (T, D)
        for i in 0..self.decoder.depth() {
            x = self.decoder.layer(i, &x, &mut pass);
        }
        x
    }

    fn output(&self, x: Tensor) -> Output {
        Output::new(self.decoder.finish(&x), self.decoder.head().clone())
    }

    /// Runs a packed row without gradient.
    pub fn infer<R>(&self, tokens: &Tokens, f: impl FnOnce(&Output) -> R) -> Result<R> {
        self.check(tokens, &[])?;
        let _no_grad = tch::no_grad_guard();
        Ok(f(&self.output(self.trunk(tokens, None))))
    }

    /// Runs a packed row that continues the cache's sequences (segment s continues slot s), without gradient.
    pub fn extend<R>(&self, tokens: &Tokens, cache: &mut Cache, f: impl FnOnce(&Output) -> R) -> Result<R> {
        self.check(tokens, &cache.lengths)?;
        let _no_grad = tch::no_grad_guard();
        let x = self.trunk(tokens, Some(cache));
        cache.advance(&tokens.segments.lengths);
        Ok(f(&self.output(x)))
    }

    /// An empty cache for `slots` sequences.
    pub fn cache(&self, slots: usize) -> Cache {
        Cache::new(self.depth(), slots)
    }

    /// Adds the gradient of `loss.sum / items` to the trainable parameters.
    pub fn learn(
        &self,
        tokens: &Tokens,
        items: f64,
        replay: Replay,
        loss: impl FnOnce(&Output) -> Loss,
    ) -> Result<Metrics> {
        self.check(tokens, &[])?;
        let _back = Restore { cell: &self.switches.train, value: self.switches.train.replace(true) };
        match replay {
            Replay::None => self.learn_plain(tokens, items, loss),
            Replay::All => self.learn_replayed(tokens, items, loss),
        }
    }

    fn learn_plain(&self, tokens: &Tokens, items: f64, loss: impl FnOnce(&Output) -> Loss) -> Result<Metrics> {
        let Loss { sum, metrics } = loss(&self.output(self.trunk(tokens, None)));
        native::backward(&[&sum], &[&seed(&sum, items)])?;
        Ok(metrics)
    }

    /// Keeps each layer's input only, and runs the layer again in the backward (Chen et al. 2016, arXiv 1604.06174).
    /// Dropout sees the generator state of the first run.
    fn learn_replayed(&self, tokens: &Tokens, items: f64, loss: impl FnOnce(&Output) -> Loss) -> Result<Metrics> {
        let mut pass = Pass::new(tokens, None);
        let mut inputs = Vec::with_capacity(self.depth());
        let top = {
            let _no_grad = tch::no_grad_guard();
            let mut x = self.decoder.embed(&tokens.ids);
            for i in 0..self.depth() {
                inputs.push((x.shallow_clone(), native::rng_state(self.device)?));
                x = self.decoder.layer(i, &x, &mut pass);
            }
            x.detach().set_requires_grad(true)
        };
        let Loss { sum, metrics } = loss(&self.output(top.shallow_clone()));
        native::backward(&[&sum], &[&seed(&sum, items)])?;
        drop(sum);
        let after = native::rng_state(self.device)?;
        let mut g = top.grad();
        while let Some((x, rng)) = inputs.pop() {
            native::set_rng_state(self.device, &rng)?;
            let x = x.detach().set_requires_grad(true);
            let y = self.decoder.layer(inputs.len(), &x, &mut pass);
            native::backward(&[&y], &[&g])?;
            g = x.grad();
        }
        native::set_rng_state(self.device, &after)?;
        let embedded = self.decoder.embed(&tokens.ids);
        if embedded.requires_grad() {
            native::backward(&[&embedded], &[&g])?;
        }
        Ok(metrics)
    }
}

/// The gradient of `sum / items` with respect to `sum`.
fn seed(sum: &Tensor, items: f64) -> Tensor {
    sum.full_like(1.0 / items)
}

/// Puts a switch back when it goes out of scope, panics included.
struct Restore<'a, T: Copy> {
    cell: &'a std::cell::Cell<T>,
    value: T,
}

impl<T: Copy> Drop for Restore<'_, T> {
    fn drop(&mut self) {
        self.cell.set(self.value);
    }
}
