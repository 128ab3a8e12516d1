//! The reference model: the model as it was before training, and the log-probabilities it gives to answers.
//!
//! Invariant: its numbers never change within a run. Log-probabilities from the disk are used only if everything they
//! depend on is the same: a file's name is the hash of the base's content, the number format, the device, and each
//! sequence as it is packed (so of data, tokenizer, template and lengths). Computes no loss.

use super::fixed::Split;
use super::pairs::PackedAnswers;
use super::parts::{ExtraAdapter, ModelParts};
use super::rows::DataContext;
use crate::adapters::{AdapterSpec, file};
use crate::data::batch::pack;
use crate::data::cache::TokenCache;
use crate::data::dataset::{Dataset, DatasetItem};
use crate::data::encode::Example;
use crate::error::Result;
use crate::fsutil::hex;
use crate::models::{Heads, LoadOptions, Model, content_hash};
use crate::native::upload_slice;
use crate::nn::{Weights, weights};
use crate::report;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};
use tch::{Device, Kind, Tensor};

/// Where the reference's log-probabilities come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceChoice {
    /// Computed in each step: by the base with the adapter off; in full fine-tuning by a frozen copy of the base, held
    /// in `model.dtype`.
    #[default]
    Live,
    /// Computed once before the first step and stored on disk: each step is faster, and no copy is held.
    Cached,
}

/// The name of the frozen copy of the adapter that a run started from.
const INITIAL_ADAPTER: &str = "reference";

/// Returns what the reference needs in addition to the trained weights. For a new adapter: nothing, because it is
/// switched off. For an adapter that continues another one: a frozen copy of that one. In full fine-tuning: a copy of
/// the base, unless the log-probabilities are cached.
pub fn parts(adapter: Option<&AdapterSpec>, choice: ReferenceChoice) -> Result<ModelParts> {
    let Some(adapter) = adapter else {
        return Ok(ModelParts { base_copies: u64::from(choice == ReferenceChoice::Live), ..ModelParts::default() });
    };
    let Some(folder) = adapter.continues() else { return Ok(ModelParts::default()) };
    let (spec, _) = file::read_config(&folder.join(file::CONFIG))?;
    let begun = ExtraAdapter { name: INITIAL_ADAPTER, spec, folder: Some(folder.into()), trained: false };
    Ok(ModelParts { extra_adapters: vec![begun], ..ModelParts::default() })
}

/// The model as it was before training.
pub enum ReferenceModel {
    /// The base. What is trained is an adapter, which can be switched off.
    Base,
    /// The adapter that the training started from, kept frozen on the same base.
    InitialAdapter,
    /// A copy that is never trained.
    FrozenCopy(Box<Model>),
}

impl ReferenceModel {
    /// Returns the reference of a model that has not been trained yet. If an adapter is trained, this is the base, or
    /// the adapter it started from; if the whole model is trained, a copy read from the same directory.
    pub fn of(model: &Model) -> Result<Self> {
        if model.adapter_id(INITIAL_ADAPTER).is_some() {
            return Ok(Self::InitialAdapter);
        }
        if model.active_adapter().is_some() {
            return Ok(Self::Base);
        }
        report::info("every weight is trained: a second copy of the base is held in memory as the reference model");
        let (heads, vocabulary) = (Heads::Tokens, model.vocabulary());
        let (device, kind, storage) = (model.device(), model.kind(), model.storage());
        let load = LoadOptions { device, kind, storage, train_base: None, adapters: Vec::new(), vocabulary, heads };
        let copy = Model::load(model.folder(), load)?;
        copy.set_mlp_tile(model.mlp_tile());
        Ok(Self::FrozenCopy(Box::new(copy)))
    }

    /// Calls `f` with the reference of `model`.
    pub fn with<R>(&self, model: &Model, f: impl FnOnce(&Model) -> R) -> R {
        match self {
            Self::Base => model.with_adapter(None, f),
            Self::InitialAdapter => model.with_adapter(Some(INITIAL_ADAPTER), f),
            Self::FrozenCopy(copy) => f(copy),
        }
    }

    /// Computes the log-probability of each answer of a packed row, as [`super::pairs::AnswerSpans::scores`] does,
    /// without gradient.
    pub fn log_probs(&self, model: &Model, answers: &PackedAnswers) -> Result<Tensor> {
        self.with(model, |m| m.infer(&answers.tokens, |out| answers.spans.scores(out).log_probs))
    }
}

/// Part of the hash in a file's name; to be changed whenever the numbers are computed or stored in another way.
const VERSION: &str = "reference 1";
/// The name of the only tensor in a file.
const NAME: &str = "log_probs";

/// How a recipe gets its reference log-probabilities: live or cached, and what a cache file depends on besides the
/// rows and the base.
#[derive(Debug, Clone)]
pub struct ReferenceSettings {
    choice: ReferenceChoice,
    /// The folder of the adapter that the run starts from.
    from: Option<PathBuf>,
    cache: TokenCache,
    /// Tokens in a packed row.
    budget: usize,
}

impl ReferenceSettings {
    /// Creates the settings of a recipe that chose `choice`.
    pub fn new(choice: ReferenceChoice, ground: &DataContext) -> Self {
        let from = ground.adapter.and_then(|adapter| adapter.continues()).map(Path::to_path_buf);
        Self { choice, from, cache: ground.cache.clone(), budget: ground.batch.tokens }
    }
}

/// A request to score sequences by the reference: `width` sequences for each row, or fewer.
pub struct ReferenceRequest<'a> {
    /// The split that the rows belong to.
    pub split: Split,
    /// Which kind of sequences these are, if the same rows have several kinds.
    pub name: &'static str,
    /// Number of sequences of each row.
    pub width: usize,
    /// Number of tokens in the sequences of each row.
    pub lengths: Vec<u32>,
    /// Bytes that change whenever the sequences change; they are part of the file's hash.
    pub content: Vec<u8>,
    /// Returns the sequences of a row, given its index.
    pub sequences: Box<dyn Fn(usize) -> Result<Vec<Example>> + 'a>,
}

/// The name of the sequences that a row itself consists of.
const ROWS: &str = "rows";

impl<'a> ReferenceRequest<'a> {
    /// Requests all sequences of a data set.
    pub fn all_rows<T: DatasetItem>(split: Split, rows: &'a Dataset<T>) -> Self {
        Self {
            split,
            name: ROWS,
            width: T::SEQUENCES,
            lengths: rows.lengths().to_vec(),
            content: rows.hashes().iter().flat_map(|h| h.to_le_bytes()).collect(),
            sequences: Box::new(|i| Ok(rows.get(i)?.to_examples())),
        }
    }
}

/// Gives the reference's log-probabilities, computed in each step or read from the cache.
pub enum ReferenceScorer {
    /// Computed in each step.
    Live(ReferenceModel),
    /// Read from the cache, or computed before the first step.
    Cached {
        /// What the cached numbers depend on.
        settings: ReferenceSettings,
        /// The log-probabilities known so far, by split and name of the answer's side.
        known: BTreeMap<(Split, &'static str), CachedLogProbs>,
    },
}

impl ReferenceScorer {
    /// Creates the scorer. A cached one has no numbers until `prepare` was called.
    pub fn new(keep: &ReferenceSettings, model: &Model) -> Result<Self> {
        Ok(match keep.choice {
            ReferenceChoice::Live => Self::Live(ReferenceModel::of(model)?),
            ReferenceChoice::Cached => Self::Cached { settings: keep.clone(), known: BTreeMap::new() },
        })
    }

    /// Loads the log-probabilities of all sequences that will be needed, or computes and stores them. Must be called
    /// while the model still equals its reference. Does nothing if they are computed live.
    pub fn prepare<'a>(&mut self, model: &Model, asked: impl IntoIterator<Item = ReferenceRequest<'a>>) -> Result<()> {
        let Self::Cached { settings: keep, known } = self else { return Ok(()) };
        let folders: Vec<&Path> = [Some(model.folder()), keep.from.as_deref()].into_iter().flatten().collect();
        let base = content_hash::hash(&folders)?;
        for asked in asked {
            known.insert((asked.split, asked.name), keep.load_or_compute(&asked, &base, model)?);
        }
        Ok(())
    }

    /// Returns the log-probability of each answer of a packed row: (N) float64, all sequences of `items` in their
    /// order.
    pub fn log_probs(&self, model: &Model, answers: &PackedAnswers, split: Split, items: &[usize]) -> Result<Tensor> {
        self.log_probs_of(ROWS, model, answers, split, items)
    }

    /// Returns the same for sequences requested under another name.
    pub fn log_probs_of(
        &self,
        name: &'static str,
        model: &Model,
        answers: &PackedAnswers,
        split: Split,
        items: &[usize],
    ) -> Result<Tensor> {
        match self {
            Self::Live(reference) => reference.log_probs(model, answers),
            Self::Cached { known, .. } => Ok(known[&(split, name)].of(items, model.device())),
        }
    }
}

/// Log-probabilities of all sequences of a request.
pub struct CachedLogProbs {
    /// `width` numbers for each row; 0 where a row has fewer sequences.
    values: Vec<f64>,
    width: usize,
}

impl CachedLogProbs {
    /// Returns the log-probabilities of these rows, in their order: (rows * width) float64.
    fn of(&self, rows: &[usize], device: Device) -> Tensor {
        let values: Vec<f64> =
            rows.iter().flat_map(|r| &self.values[r * self.width..(r + 1) * self.width]).copied().collect();
        upload_slice(&values, device)
    }
}

impl ReferenceSettings {
    fn load_or_compute(&self, asked: &ReferenceRequest, base: &str, model: &Model) -> Result<CachedLogProbs> {
        let path = self.path(asked, base, model);
        let (rows, width) = (asked.lengths.len(), asked.width);
        if let Some(path) = &path
            && let Some(values) = read(path, rows * width)
        {
            report::info(format!("reference log-probabilities of {rows} rows read from {}", path.display()));
            return Ok(CachedLogProbs { values, width });
        }
        let began = Instant::now();
        let values = compute(asked, model, &ReferenceModel::of(model)?, self.budget)?;
        let took = report::duration(began.elapsed());
        let place = match &path {
            Some(path) => {
                weights::save(path, [(NAME, &Tensor::from_slice(&values))])?;
                format!(" and stored in {}", path.display())
            }
            None => ", kept for this run only because data.cache is off".into(),
        };
        report::info(format!("reference log-probabilities of {rows} rows computed in {took}{place}"));
        Ok(CachedLogProbs { values, width })
    }

    fn path(&self, asked: &ReferenceRequest, base: &str, model: &Model) -> Option<PathBuf> {
        let folder = self.cache.folder_for(u64::MAX)?;
        let mut hash = Sha256::new();
        let ReferenceRequest { name, width, .. } = asked;
        hash.update(format!("{VERSION}\n{base}\n{:?}\n{:?}\n{name} {width}\n", model.kind(), model.device()));
        if let Some(format) = model.storage().quantisation() {
            hash.update(format!("{:?}\n", format.linear));
            format.embeddings.iter().for_each(|tables| hash.update(format!("tables {}\n", tables.name())));
        }
        if let Some(rows) = model.vocabulary() {
            hash.update(format!("{}\n", rows.identity()));
        }
        hash.update(&asked.content);
        asked.lengths.iter().for_each(|length| hash.update(length.to_le_bytes()));
        Some(folder.join(format!("{}.logprobs", hex(&hash.finalize()))))
    }
}

/// Returns the numbers of a file, or `None` if it is missing or damaged; they are then computed again.
fn read(path: &Path, expected: usize) -> Option<Vec<f64>> {
    let tensor = Weights::open_file(path).ok()?.get(NAME)?;
    let whole = tensor.kind() == Kind::Double && tensor.size() == [expected as i64];
    let values = whole.then(|| Vec::<f64>::try_from(&tensor).ok()).flatten();
    let values = values.filter(|v| v.iter().all(|x| x.is_finite()))?;
    // The cache deletes files that no run used for a month: mark this one as used.
    if let Ok(file) = File::options().append(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
    Some(values)
}

fn compute(asked: &ReferenceRequest, model: &Model, reference: &ReferenceModel, budget: usize) -> Result<Vec<f64>> {
    let ReferenceRequest { lengths, width, .. } = asked;
    // Rows of similar length come together: a packed row then wastes little of its budget, and attention less.
    let mut order: Vec<u32> = (0..lengths.len() as u32).filter(|i| lengths[*i as usize] > 0).collect();
    order.sort_by_key(|i| std::cmp::Reverse(lengths[*i as usize]));
    let mut values = vec![0.0; lengths.len() * width];
    let bar = report::bar(order.len() as u64, "reference");
    for row in pack(lengths, &order, budget) {
        let sequences = row.iter().map(|i| (asked.sequences)(*i)).collect::<Result<Vec<_>>>()?.concat();
        let answers = PackedAnswers::pack(&sequences, model.device());
        let found: Vec<f64> = reference.log_probs(model, &answers)?.try_into()?;
        for (found, i) in found.chunks(*width).zip(&row) {
            values[i * width..(i + 1) * width].copy_from_slice(found);
        }
        bar.inc(row.len() as u64);
    }
    bar.finish_and_clear();
    Ok(values)
}
