//! A model: a decoder with its parameters, heads and adapters, run on packed rows.
//!
//! A family provides embedding, layers, final norm and output head. [`Model`] runs them layer by layer. The layers
//! without output head are called the trunk. Running it is in `inference`, training in `learning`.

use super::activations::ExposedLayers;
use super::checkpoint::{SCORE, refuse_quantised, weights};
use super::dtype::Storage;
use super::family::{Config, Decoder, MoreNumbers};
use super::noise::EmbeddingNoise;
use super::router_terms::RouterTerms;
use super::trained_part::TrainedPart;
use super::vocabulary::VocabularyRows;
use crate::error::{Error, Result};
use crate::nn::{
    AdapterPlan, AdapterSwitches, Attention, BuildResult, Cell as RecurrentCell, InitialWeights, Linear, ModelBuilder,
    ModelSizes, ParamStore, RecurrenceOptions, VirtualPlace, VirtualTokens, WeightSource,
};
use std::cell::{Cell, RefCell};
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
    pub(super) score: Option<Rc<Linear>>,
    pub(super) store: ParamStore,
    pub(super) switches: Rc<AdapterSwitches>,
    /// The virtual tokens of each adapter, by its number.
    pub(super) virtual_tokens: Vec<Option<VirtualTokens>>,
    /// The names of its adapters.
    pub(super) adapters: Rc<[String]>,
    pub(super) config: Config,
    pub(super) folder: PathBuf,
    device: Device,
    pub(super) kind: Kind,
    pub(super) storage: Storage,
    vocabulary: Option<VocabularyRows>,
    pub(super) noise: Cell<Option<EmbeddingNoise>>,
    pub(super) loss_scale: RefCell<Option<Tensor>>,
    pub(super) router_terms: Cell<RouterTerms>,
    mlp_tile: Cell<Option<i64>>,
    /// Inputs of layers that run again are kept in the host's memory.
    offload: Cell<bool>,
    /// Results of norms and activations are kept for the backward.
    keeps_inputs: Cell<bool>,
    /// Passes whose operations are always the same are recorded.
    pub(super) records_passes: Cell<bool>,
    /// How recurrent layers compute gradients.
    pub(super) recurrence: RefCell<RecurrenceOptions>,
    exposed: RefCell<Rc<ExposedLayers>>,
}

impl Model {
    /// Loads a Hugging Face model directory. The first adapter, if any, is active. Fails if tensors are missing, have
    /// wrong shapes or are left over, and for a reward model that is loaded as a language model.
    pub fn load(folder: &Path, load: LoadOptions) -> Result<Self> {
        let mut config = Config::read(folder)?;
        let mut weights = weights(folder, &config)?;
        let quantised_tables = load.storage.quantisation().is_some_and(|format| format.embeddings.is_some());
        if let Some(vocabulary) = load.vocabulary {
            if quantised_tables {
                return Err(Error::user(format!(
                    "{}: an adapter brings rows of new tokens, and quantised embeddings cannot get any",
                    folder.display()
                ))
                .hint("leave out quantize_embeddings (--quantize-embeddings)"));
            }
            vocabulary.apply(&mut config, &mut weights, load.heads != Heads::Score)?;
        }
        if load.heads == Heads::Tokens && weights.shape(SCORE).is_some() {
            return Err(not_a_language_model(folder, None));
        }
        if load.train_base.is_some() {
            let hint = "train an adapter over them, or train the model in its original number format";
            refuse_quantised(&weights, "they cannot be trained", hint)?;
        }
        if load.storage.quantisation().is_some() {
            let hint = "leave out model.quantize (--quantize): they are used as they are stored";
            refuse_quantised(&weights, "they cannot be quantised once more", hint)?;
        }
        Self::build(config, folder, WeightSource::Disk(&weights), load)
    }

    /// Builds an untrained model with random weights, which depend on the seed alone. `folder` is where its tokenizer
    /// is.
    pub fn initialise(config: Config, folder: &Path, seed: u64, load: LoadOptions) -> Result<Self> {
        if let Some(format) = config.stored {
            return Err(Error::user(format!(
                "{}: it says that weights are stored in {}; new ones are not quantised",
                config.file().display(),
                format.describe()
            ))
            .hint("remove `quantization_config`"));
        }
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
            .outline(storage == Storage::Outline)
            .quantise(storage.quantisation());
        if config.tie_word_embeddings {
            builder.tie_head();
        }
        if load.heads == Heads::Score {
            builder.omit_head();
        }
        let decoder = config.family().build(&config, &builder)?;
        let score =
            (load.heads != Heads::Tokens).then(|| Rc::new((builder.root() / "score").score_head(config.hidden_size)));
        let virtual_tokens = builder.attach_virtual_tokens(sizes(&config), config.family().embedding)?;
        let of_keys = |tokens: &VirtualTokens| tokens.place == VirtualPlace::KeysAndValues;
        let tunes_prefix = virtual_tokens.iter().flatten().any(of_keys);
        if decoder.recurrence().is_some() && tunes_prefix {
            return Err(config
                .refuse("prefix tuning gives attention keys and values, and recurrent layers have none")
                .hint("adapt linear layers, or tune a prompt"));
        }
        if config.has_latent_attention() && tunes_prefix {
            return Err(config
                .refuse(format!(
                    "prefix tuning trains keys and values, which a {} model makes of one vector",
                    config.model_type
                ))
                .hint("use prompt_tuning, p_tuning or lora"));
        }
        if config.has_layer_inputs() && virtual_tokens.iter().any(Option::is_some) {
            return Err(config
                .refuse(format!(
                    "virtual tokens have no rows in the table that the layers of a {} model read",
                    config.model_type
                ))
                .hint("use lora or another kind of adapter of modules"));
        }
        let BuildResult { mut store, switches, unused } = builder.finish()?;
        if load.train_base.is_some_and(|part| part.layer_sampling().is_some()) {
            store.train_in_turn();
        }
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
        let model = Self {
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
            router_terms: Cell::default(),
            mlp_tile: Cell::default(),
            offload: Cell::default(),
            records_passes: Cell::default(),
            keeps_inputs: Cell::default(),
            recurrence: RefCell::default(),
            exposed: RefCell::default(),
        };
        if storage.quantisation().is_some_and(|format| format.embeddings.is_some()) {
            model.require_untouched_tables()?;
        }
        Ok(model)
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

    /// Returns all its parameters, those of adapters included.
    pub fn params(&self) -> &ParamStore {
        &self.store
    }

    /// Returns the number of layers.
    pub fn depth(&self) -> usize {
        self.decoder.depth()
    }

    /// Returns the settings of the attention of each layer that has one.
    pub fn attentions(&self) -> impl Iterator<Item = Attention> {
        (0..self.depth()).filter_map(|i| self.decoder.attention(i))
    }

    /// Returns the recurrence of the layers; `None` if they are not recurrent.
    pub fn recurrence(&self) -> Option<RecurrentCell> {
        self.decoder.recurrence()
    }

    /// Returns the numbers per token that layers have beside those that every decoder has.
    pub fn more_numbers(&self) -> MoreNumbers {
        self.decoder.more_numbers()
    }

    /// Returns true if logits are the products of the output head's weight alone: without a bias, an adapter of the head, a factor or a bound.
    pub fn has_plain_head(&self) -> bool {
        self.decoder.head().plain_weight().is_some()
    }

    /// Returns true if the MLP of each layer multiplies its inner activations by those of a gate.
    pub fn has_gates(&self) -> bool {
        self.decoder.has_gates()
    }

    /// Returns the sizes that virtual tokens depend on.
    pub fn sizes(&self) -> ModelSizes {
        sizes(&self.config)
    }

    /// Returns which heads the model has: whether it can generate text, and whether it can score.
    pub fn heads(&self) -> Heads {
        match (&self.score, self.decoder.head().outputs() == 0) {
            (None, _) => Heads::Tokens,
            (Some(_), true) => Heads::Score,
            (Some(_), false) => Heads::Both,
        }
    }

    /// Sets which layers' activations `learn` and `infer` pass to their closures (`Output::activations`), from now on.
    pub fn expose(&self, look: ExposedLayers) {
        self.exposed.replace(Rc::new(look));
    }

    pub(super) fn exposed_layers(&self) -> Rc<ExposedLayers> {
        self.exposed.borrow().clone()
    }

    /// Sets the noise on embeddings for the next calls of `learn`; `None`: no noise.
    pub fn set_embedding_noise(&self, noise: Option<EmbeddingNoise>) {
        self.noise.set(noise);
    }

    /// Sets the number of tokens of a packed row of which a layer computes its MLP at a time; `None`: all of them. In training
    /// the backward computes each tile again, so that what is inside an MLP never exists for the whole row.
    pub fn set_mlp_tile(&self, tokens: Option<i64>) {
        self.mlp_tile.set(tokens);
    }

    /// Returns the number of tokens of which a layer computes its MLP at a time.
    pub fn mlp_tile(&self) -> Option<i64> {
        self.mlp_tile.get()
    }

    /// Keeps the inputs of layers that run again in the backward in the host's memory, on a GPU.
    pub fn set_offload(&self, offload: bool) {
        self.offload.set(offload);
    }

    /// Returns true if these inputs are kept in the host's memory.
    pub fn offloads(&self) -> bool {
        self.offload.get()
    }

    /// Keeps the results of norms and activations for the backward in `learn`, where no layer runs again, instead of computing them
    /// once more.
    pub fn set_keeps_inputs(&self, keeps: bool) {
        self.keeps_inputs.set(keeps);
    }

    /// Returns true if results of norms and activations are kept for the backward.
    pub(super) fn keeps_inputs(&self) -> bool {
        self.keeps_inputs.get()
    }

    /// Converts trained parameters from float32 to bfloat16. This saves memory, for an optimiser that rounds its
    /// updates stochastically.
    pub fn use_bf16_masters(&self) {
        let _no_grad = tch::no_grad_guard();
        for p in self.store.trainable() {
            p.tensor.shallow_clone().set_data(&p.tensor.detach().to_kind(Kind::BFloat16));
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
