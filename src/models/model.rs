//! A model: a decoder with its parameters, heads and adapters, run on packed rows.
//!
//! A family provides embedding, layers, final norm and output head. [`Model`] runs them layer by layer. The layers
//! without output head are called the trunk. Training is in `learning`.

use super::activations::{Activations, ExposedLayers};
use super::checkpoint::{SCORE, weights};
use super::dtype::Storage;
use super::family::{Config, Decoder};
use super::loss::Output;
use super::noise::EmbeddingNoise;
use super::trained_part::TrainedPart;
use super::vocabulary::VocabularyRows;
use crate::error::{Error, Result};
use crate::nn::virtual_tokens::PROMPT_EMBEDDINGS;
use crate::nn::{
    AdapterPlan, AdapterSwitches, BuildResult, CacheLayout, DecodingGuard, InitialWeights, KvCache, Linear,
    ModelBuilder, ModelSizes, Param, ParamStore, QuantisedParam, Tokens, VirtualTokens, WeightSource,
};
use crate::report;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// The heads that a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Heads {
    /// The output head: a language model.
    #[default]
    Tokens,
    /// A scalar head and no output head: a reward model.
    Score,
    /// Both: a policy that shares its base with reward or value adapters.
    Both,
}

/// How a model is loaded.
pub struct LoadOptions<'a> {
    /// The device to compute on.
    pub device: Device,
    /// The number format to compute in.
    pub kind: Kind,
    /// How frozen weights are stored.
    pub storage: Storage,
    /// Which of the base's own weights are trained, `None`: none of them; excludes adapters.
    pub train_base: Option<&'a TrainedPart>,
    /// Adapters by name; attached in order, and the first one is active.
    pub adapters: Vec<(String, &'a dyn AdapterPlan)>,
    /// Rows of new tokens, in addition to those in the base's files.
    pub vocabulary: Option<&'a VocabularyRows>,
    /// The heads that the model gets.
    pub heads: Heads,
}

/// A decoder with its parameters, heads and adapters.
pub struct Model {
    pub(super) decoder: Box<dyn Decoder>,
    score: Option<Rc<Linear>>,
    pub(super) store: ParamStore,
    pub(super) switches: Rc<AdapterSwitches>,
    /// The virtual tokens of each adapter, by its number.
    pub(super) virtual_tokens: Vec<Option<VirtualTokens>>,
    adapters: Rc<[String]>,
    config: Config,
    folder: PathBuf,
    device: Device,
    kind: Kind,
    storage: Storage,
    vocabulary: Option<VocabularyRows>,
    pub(super) noise: Cell<Option<EmbeddingNoise>>,
    pub(super) loss_scale: RefCell<Option<Tensor>>,
    exposed: RefCell<Rc<ExposedLayers>>,
}

impl Model {
    /// Loads a Hugging Face model directory. The first adapter, if any, is active. Fails if tensors are missing, have
    /// wrong shapes or are left over, and for a reward model that is loaded as a language model.
    pub fn load(folder: &Path, load: LoadOptions) -> Result<Self> {
        let mut config = Config::read(folder)?;
        let mut weights = weights(folder, &config)?;
        if let Some(vocabulary) = load.vocabulary {
            vocabulary.apply(&mut config, &mut weights, load.heads != Heads::Score)?;
        }
        if load.heads == Heads::Tokens && weights.shape(SCORE).is_some() {
            return Err(not_a_language_model(folder, None));
        }
        Self::build(config, folder, WeightSource::Disk(&weights), load)
    }

    /// Builds an untrained model with random weights, which depend on the seed alone. `folder` is where its tokenizer
    /// is.
    pub fn initialise(config: Config, folder: &Path, seed: u64, load: LoadOptions) -> Result<Self> {
        let initial = InitialWeights { seed, std: config.initializer_range, map_param: config.family().map_param };
        Self::build(config, folder, WeightSource::Random(&initial), load)
    }

    fn build(config: Config, folder: &Path, source: WeightSource, load: LoadOptions) -> Result<Self> {
        if load.train_base.is_some() && !load.adapters.is_empty() {
            return Err(Error::bug("adapters attach to a frozen base: train_base and adapters exclude each other"));
        }
        let (names, attach): (Vec<String>, Vec<&dyn AdapterPlan>) = load.adapters.into_iter().unzip();
        let (device, kind, storage) = (load.device, load.kind, load.storage);
        let hold = move |own: Kind| storage.keeps_kind(own, kind, device);
        let read = matches!(&source, WeightSource::Disk(weights) if storage.reads_into_memory(weights.total_bytes()));
        let trained = load.train_base.map(|part| part.selector(config.num_hidden_layers as usize)).transpose()?;
        let builder = ModelBuilder::new(source, device, kind, trained, attach)
            .keep_dtype_if(hold)
            .read_into_memory(read)
            .quantise(storage.quantisation());
        if config.tie_word_embeddings {
            builder.tie_head();
        }
        if load.heads == Heads::Score {
            builder.omit_head();
        }
        let decoder = (config.family().build)(&config, &builder)?;
        let score =
            (load.heads != Heads::Tokens).then(|| Rc::new((builder.root() / "score").score_head(config.hidden_size)));
        let virtual_tokens = builder.attach_virtual_tokens(sizes(&config), config.family().embedding)?;
        let BuildResult { store, switches, unused } = builder.finish()?;
        load.train_base.map_or(Ok(()), |part| part.check(store.base()))?;
        if !unused.is_empty() {
            let shown: Vec<String> = unused.iter().take(10).map(|n| format!("`{n}`")).collect();
            return Err(Error::user(format!(
                "{}: {} tensors that a {} model does not have: {}",
                folder.display(),
                unused.len(),
                config.model_type,
                shown.join(", ")
            ))
            .hint("is model_type in config.json right? An adapter directory goes to --adapter, not to --model"));
        }
        switches.active.set((!names.is_empty()).then_some(0));
        Ok(Self {
            decoder,
            score,
            store,
            switches,
            virtual_tokens,
            adapters: names.into(),
            config,
            folder: folder.into(),
            device: load.device,
            kind: load.kind,
            storage: load.storage,
            vocabulary: load.vocabulary.cloned(),
            noise: Cell::new(None),
            loss_scale: RefCell::default(),
            exposed: RefCell::default(),
        })
    }

    /// Returns its config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the directory that the model was loaded from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the device that it computes on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Returns the number format that the model computes in.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the rows of new tokens that the model was loaded with, to load another copy of it.
    pub fn vocabulary(&self) -> Option<&VocabularyRows> {
        self.vocabulary.as_ref()
    }

    /// Returns the setting for how frozen weights are stored.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Returns the number format of the base's largest parameter that is not quantised, and the bytes of all the base's
    /// parameters.
    pub fn storage_summary(&self) -> (Kind, u64) {
        self.storage_summary_by(self.storage, |p| p.tensor.kind())
    }

    /// Returns what [`Model::storage_summary`] would return if this model were loaded on `device` with `storage`. This
    /// model itself must have been loaded with its weights as they are in their files.
    pub fn storage_summary_as(&self, storage: Storage, device: Device) -> (Kind, u64) {
        self.storage_summary_by(storage, |p| match p.tensor.kind() {
            own if p.tensor.dim() >= 2 && storage.keeps_kind(own, self.kind, device) => own,
            _ => self.kind,
        })
    }

    fn storage_summary_by(&self, storage: Storage, kind: impl Fn(&Param) -> Kind) -> (Kind, u64) {
        let quantised = |p: &Param| storage.quantisation().and_then(|format| p.quantised_bytes(format));
        let plain = |p: &Param| (p.tensor.numel() * kind(p).elt_size_in_bytes()) as u64;
        let widest = self.store.base().filter(|p| quantised(p).is_none()).max_by_key(|p| p.tensor.numel());
        let bytes = self.store.base().map(|p| quantised(p).unwrap_or_else(|| plain(p))).sum();
        (widest.map_or(self.kind, &kind), bytes)
    }

    /// Returns the number of parameters in quantised layers, and their bytes; both are 0 if none is quantised.
    pub fn quantised_summary(&self) -> (u64, u64) {
        let weights = self.store.base().filter_map(|p| match &p.quantised {
            QuantisedParam::Done(weight) => Some((weight.count(), weight.bytes())),
            _ => None,
        });
        weights.fold((0, 0), |(count, bytes), (n, b)| (count + n, bytes + b))
    }

    /// Describes for people how the linear layers are quantised; `None` if they are not.
    pub fn describe_quantisation(&self) -> Option<String> {
        let format = self.storage.quantisation()?.describe();
        let (numbers, bytes) = self.quantised_summary();
        let each = bytes as f64 / numbers.max(1) as f64;
        let (numbers, bytes) = (report::count(numbers), report::bytes(bytes));
        Some(format!("linear layers quantised to {format}: {numbers} parameters in {bytes} ({each:.3} bytes each)"))
    }

    /// Returns all its parameters, those of adapters included.
    pub fn params(&self) -> &ParamStore {
        &self.store
    }

    /// Returns the number of layers.
    pub fn depth(&self) -> usize {
        self.decoder.depth()
    }

    /// Returns the sizes that virtual tokens depend on.
    pub fn sizes(&self) -> ModelSizes {
        sizes(&self.config)
    }

    /// Returns the tensors of an adapter's file, by name: its parameters, or the virtual tokens that it computes from
    /// them.
    pub fn adapter_tensors(&self, id: usize) -> BTreeMap<String, Tensor> {
        match &self.virtual_tokens[id] {
            Some(tokens) => {
                BTreeMap::from([(PROMPT_EMBEDDINGS.to_string(), tch::no_grad(|| tokens.encode()).detach())])
            }
            None => self.store.adapter(id).map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect(),
        }
    }

    /// Returns the number of the adapter called `name`, or `None`.
    pub fn adapter_id(&self, name: &str) -> Option<usize> {
        self.adapters.iter().position(|n| n == name)
    }

    /// Stops the training of an adapter: its parameters require no gradient and are hidden from optimisers. Panics
    /// for an unknown name.
    pub fn freeze_adapter(&self, adapter: &str) {
        let id = self.adapter_id(adapter).unwrap_or_else(|| panic!("no adapter `{adapter}`"));
        self.store.adapter(id).for_each(|p| drop(p.tensor.shallow_clone().set_requires_grad(false)));
    }

    /// Returns which heads the model has: whether it can generate text, and whether it can score.
    pub fn heads(&self) -> Heads {
        match (&self.score, self.decoder.head().outputs() == 0) {
            (None, _) => Heads::Tokens,
            (Some(_), true) => Heads::Score,
            (Some(_), false) => Heads::Both,
        }
    }

    /// Returns the name of the active adapter; `None`: the bare base.
    pub fn active_adapter(&self) -> Option<&str> {
        self.switches.active.get().map(|i| self.adapters[i].as_str())
    }

    /// Runs `f` with the named adapter active, or with the bare base for `None`. The previous adapter is active again
    /// afterwards, after a panic too. Panics for an unknown name.
    pub fn with_adapter<R>(&self, adapter: Option<&str>, f: impl FnOnce(&Self) -> R) -> R {
        let id = adapter.map(|name| self.adapter_id(name).unwrap_or_else(|| panic!("no adapter `{name}`")));
        let _back = RestoreOnDrop { cell: &self.switches.active, value: self.switches.active.replace(id) };
        f(self)
    }

    /// Returns the length of the longest sequence that can be computed, if there is a limit: the number of position
    /// embeddings, or the sliding window, within which attention equals plain causal attention; less the virtual tokens
    /// of the active adapter.
    pub fn context_limit(&self) -> Option<i64> {
        Some((self.position_limit()? - self.virtual_tokens()).max(0))
    }

    /// Returns the length of the longest sequence that the model was made for: its context limit, or the positions that
    /// config.json names if they are fewer.
    pub fn longest_sequence(&self) -> Option<i64> {
        let made_for = self.config.max_position_embeddings.map(|n| (n - self.virtual_tokens()).max(0));
        [self.context_limit(), made_for].into_iter().flatten().min()
    }

    /// Returns the largest number of positions that can be computed.
    fn position_limit(&self) -> Option<i64> {
        [self.config.sliding_window, self.decoder.longest()].into_iter().flatten().min()
    }

    /// Fails for a row that would be computed wrongly or fail inside libtorch: empty, with ids outside the
    /// vocabulary, or with too long a sequence. Segment s continues `past[s]` tokens, virtual ones included.
    pub(super) fn check(&self, tokens: &Tokens, past: &[i64]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::bug("a packed row without tokens"));
        }
        let vocabulary = self.config.vocab_size;
        if i64::from(tokens.largest_id) >= vocabulary {
            return Err(Error::user(format!(
                "token id {} is out of range: {} has a vocabulary of {vocabulary}",
                tokens.largest_id,
                self.folder.display()
            ))
            .hint("the tokenizer belongs to another model, or has tokens that were not added to this model"));
        }
        let added = |n: i64, past: i64| if past == 0 && n > 0 { self.virtual_tokens() } else { 0 };
        let positions = tokens.segments.lengths.iter().zip(past.iter().chain(std::iter::repeat(&0)));
        let longest = positions.map(|(n, p)| n + p + added(*n, *p)).max();
        let included = if self.virtual_tokens() > 0 { ", virtual ones included" } else { "" };
        match (longest, self.position_limit()) {
            (Some(n), Some(limit)) if n > limit => Err(Error::user(match self.decoder.longest() {
                Some(end) if end == limit => {
                    format!("a sequence of {n} tokens{included}: {} has positions for {limit}", self.folder.display())
                }
                _ => format!(
                    "a sequence of {n} tokens{included}: {} attends through a sliding window of {limit}, which ft does not compute",
                    self.folder.display()
                ),
            })
            .hint(format!(
                "keep sequences within {} tokens: batch.max_len when training, fewer new tokens when generating",
                limit - self.virtual_tokens()
            ))),
            _ => Ok(()),
        }
    }

    /// Sets which layers' activations `learn` and `infer` pass to their closures (`Output::activations`), from now on.
    pub fn expose(&self, look: ExposedLayers) {
        self.exposed.replace(Rc::new(look));
    }

    pub(super) fn exposed_layers(&self) -> Rc<ExposedLayers> {
        self.exposed.borrow().clone()
    }

    /// Runs all layers. Returns the last one's output (T, D), and the requested activations.
    pub(super) fn trunk(&self, tokens: &Tokens) -> (Tensor, Activations) {
        let (look, mut inside) = (self.exposed_layers(), Activations::default());
        let row = self.whole_row(tokens);
        let mut pass = row.pass(None).capture_attention(&look.attention);
        let mut x = self.embed(&row); // (T', D)
        for i in 0..self.depth() {
            x = self.decoder.layer(i, &x, &mut pass);
            inside.record(&look, i, &x, &mut pass);
        }
        (pass.real_rows(&x), inside)
    }

    /// Returns the input of each layer and the output of the last: (T, D) each, float32. Without gradient.
    pub fn hidden_states(&self, tokens: &Tokens) -> Result<Vec<Tensor>> {
        let mut states = Vec::with_capacity(self.depth() + 1);
        let _ = self.layers(tokens, &(0..self.depth()).collect::<Vec<_>>(), |x| states.push(x.to_kind(Kind::Float)))?;
        Ok(states)
    }

    /// Returns the logits (T, V) of the model with only these layers, in this order. Without gradient.
    pub fn logits_of_layers(&self, tokens: &Tokens, layers: &[usize]) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let x = self.layers(tokens, layers, |_| ())?;
        Ok(self.decoder.head().forward(&self.decoder.finish(&x)))
    }

    fn layers(&self, tokens: &Tokens, layers: &[usize], mut see: impl FnMut(&Tensor)) -> Result<Tensor> {
        self.check(tokens, &[])?;
        let _no_grad = tch::no_grad_guard();
        let row = self.whole_row(tokens);
        let mut pass = row.pass(None);
        let mut x = self.embed(&row);
        for &i in layers {
            see(&pass.real_rows(&x));
            x = self.decoder.layer(i, &x, &mut pass);
        }
        let x = pass.real_rows(&x);
        see(&x);
        Ok(x)
    }

    /// Sets the noise on embeddings for the next calls of `learn`; `None`: no noise.
    pub fn set_embedding_noise(&self, noise: Option<EmbeddingNoise>) {
        self.noise.set(noise);
    }

    /// Converts trained parameters from float32 to bfloat16. This saves memory, for an optimiser that rounds its
    /// updates stochastically.
    pub fn use_bf16_masters(&self) {
        let _no_grad = tch::no_grad_guard();
        for p in self.store.trainable() {
            p.tensor.shallow_clone().set_data(&p.tensor.detach().to_kind(Kind::BFloat16));
        }
    }

    pub(super) fn output(&self, x: Tensor, inside: Rc<Activations>) -> Output {
        let (head, score) = (self.decoder.head().clone(), self.score.clone());
        Output::new(self.decoder.finish(&x), head, score, self.adapters.clone(), inside)
    }

    /// Runs a packed row without gradient and returns what `f` makes of the output.
    pub fn infer<R>(&self, tokens: &Tokens, f: impl FnOnce(&Output) -> R) -> Result<R> {
        self.check(tokens, &[])?;
        let _no_grad = tch::no_grad_guard();
        let (x, inside) = self.trunk(tokens);
        Ok(f(&self.output(x, inside.into())))
    }

    /// Runs a packed row that continues the cache's last sequences, one segment each, and adds it to the cache.
    /// Without gradient. Returns what `f` makes of the output.
    pub fn extend<R>(&self, tokens: &Tokens, cache: &mut KvCache, f: impl FnOnce(&Output) -> R) -> Result<R> {
        self.check(tokens, cache.last(tokens.segments.count()))?;
        let (_no_grad, _decoding) = (tch::no_grad_guard(), DecodingGuard::begin());
        let row = self.layer_row(tokens, cache.last(tokens.segments.count()));
        let mut pass = row.pass(Some(&mut *cache));
        let mut x = self.embed(&row);
        for i in 0..self.depth() {
            x = self.decoder.layer(i, &x, &mut pass);
        }
        let x = pass.real_rows(&x);
        cache.advance(row.lengths());
        Ok(f(&self.output(x, Rc::default())))
    }

    /// Runs one more token of every sequence of the cache: ids (S) int64 on the model's device, all of the vocabulary
    /// -> logits (S, V) float32. Without gradient; the host neither reads nor writes the device.
    pub fn next_logits(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        cache.reserve(&vec![1; cache.lengths.len()]);
        let tokens = Tokens::one_each(ids.shallow_clone(), cache.next_positions(), cache.step_bounds());
        self.extend(&tokens, cache, Output::all_logits)
    }

    /// Returns an empty cache for `sequences` sequences.
    pub fn cache(&self, sequences: usize) -> KvCache {
        KvCache::new(self.cache_layout(), sequences)
    }

    /// Returns the sizes that the layout of the model's cache depends on.
    pub fn cache_layout(&self) -> CacheLayout {
        CacheLayout {
            depth: self.depth(),
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            device: self.device,
        }
    }
}

/// Returns the sizes that virtual tokens depend on.
fn sizes(config: &Config) -> ModelSizes {
    ModelSizes {
        width: config.hidden_size,
        depth: config.num_hidden_layers,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    }
}

/// Returns the error for a reward model where a language model is needed.
pub(super) fn not_a_language_model(base: &Path, adapter: Option<&Path>) -> Error {
    let what = adapter.unwrap_or(base).display();
    let adapter = adapter.map_or(String::new(), |folder| format!(" --adapter {}", folder.display()));
    Error::user(format!("{what}: this is a reward model: it scores answers and generates no text")).hint(format!(
        "score the answers or pairs of a file: ft score --model {}{adapter} --input FILE --out FILE",
        base.display()
    ))
}

/// Restores a cell's previous value when dropped, after a panic too.
pub(super) struct RestoreOnDrop<'a, T: Copy> {
    pub(super) cell: &'a Cell<T>,
    pub(super) value: T,
}

impl<T: Copy> Drop for RestoreOnDrop<'_, T> {
    fn drop(&mut self) {
        self.cell.set(self.value);
    }
}
