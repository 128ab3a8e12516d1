//! The reference: the model as it was before it began to learn, and what it says of answers.
//!
//! Invariant: its numbers never change within a run, and log-probabilities from the disk are used only where everything
//! they depend on is the same: a file's name is the hash of the base's content, the number format, the device, and
//! each sequence as it is packed (so of data, tokenizer, template and lengths). Knows no loss.

use super::pairs::Answers;
use super::{Beside, Ground, Parts, Split};
use crate::adapters::{AdapterSpec, file};
use crate::data::{Cache, Dataset, Example, Item, pack};
use crate::error::Result;
use crate::fsutil::hex;
use crate::models::{Heads, Load, Model, content};
use crate::nn::{Weights, weights};
use crate::report;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};
use tch::{Kind, Tensor};

/// Where the reference's log-probabilities come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceChoice {
    /// Computed beside each step: by the base with the adapter off; in full fine-tuning by a frozen copy of the base, held in `model.dtype`.
    #[default]
    Live,
    /// Computed once before the first step and kept on the disk: each step is faster, and no copy is held.
    Cached,
}

/// The name of the frozen adapter that a run began with.
const BEGUN: &str = "reference";

/// What stands beside the trained weights for a reference: nothing for a new adapter, which is switched off; a frozen copy
/// of the adapter that another one goes on from; a copy of the base in full fine-tuning, where it is not cached.
pub fn parts(adapter: Option<&AdapterSpec>, choice: ReferenceChoice) -> Result<Parts> {
    let Some(AdapterSpec::Lora(spec)) = adapter else {
        return Ok(Parts { copy: choice == ReferenceChoice::Live, ..Parts::default() });
    };
    let Some(folder) = &spec.from else { return Ok(Parts::default()) };
    let (spec, _) = file::read_config(&folder.join(file::CONFIG))?;
    let begun = Beside { name: BEGUN, spec, folder: Some(folder.clone()), trained: false };
    Ok(Parts { beside: vec![begun], ..Parts::default() })
}

/// The model as it was.
pub enum Reference {
    /// The base: what is trained is an adapter, which can be switched off.
    Base,
    /// The adapter that the trained one went on from, frozen beside it.
    Begun,
    /// A copy that is never trained.
    Copy(Box<Model>),
}

impl Reference {
    /// The reference of a model that is about to learn: of an adapter its base or what it went on from, of a whole model a copy read from the
    /// same directory.
    pub fn of(model: &Model) -> Result<Self> {
        if model.adapter_id(BEGUN).is_some() {
            return Ok(Self::Begun);
        }
        if model.active().is_some() {
            return Ok(Self::Base);
        }
        report::info("every weight is trained, so the reference is a second copy of the base in memory");
        let heads = Heads::Tokens;
        let (device, kind) = (model.device(), model.kind());
        let load = Load { device, kind, storage: model.storage(), train_base: false, adapters: Vec::new(), heads };
        Ok(Self::Copy(Box::new(Model::load(model.folder(), load)?)))
    }

    /// Runs `f` with the reference of `model`.
    pub fn with<R>(&self, model: &Model, f: impl FnOnce(&Model) -> R) -> R {
        match self {
            Self::Base => model.with(None, f),
            Self::Begun => model.with(Some(BEGUN), f),
            Self::Copy(copy) => f(copy),
        }
    }

    /// Log-probabilities of a row's answers, as [`super::pairs::Spans::scores`] gives them, without gradient.
    pub fn log_probs(&self, model: &Model, answers: &Answers) -> Result<Tensor> {
        self.with(model, |m| m.infer(&answers.tokens, |out| answers.spans.scores(out).log_probs))
    }
}

/// Changes with the way the numbers are computed and stored.
const VERSION: &str = "reference 1";
/// The one tensor of a file.
const NAME: &str = "log_probs";

/// Where a recipe's cached log-probabilities are kept, and what they depend on beside the rows and the base.
#[derive(Debug, Clone)]
pub struct Keep {
    choice: ReferenceChoice,
    /// The folder of the adapter that the run goes on from.
    from: Option<PathBuf>,
    cache: Cache,
    /// Tokens in a packed row.
    budget: usize,
}

impl Keep {
    pub fn new(choice: ReferenceChoice, ground: &Ground) -> Self {
        let from = ground.adapter.and_then(|AdapterSpec::Lora(lora)| lora.from.clone());
        Self { choice, from, cache: ground.cache.clone(), budget: ground.batch.tokens }
    }
}

/// The sequences of some rows that the reference is asked about, `width` to a row; a row may have fewer.
pub struct Asked<'a> {
    pub split: Split,
    /// What they are, beside other sequences of the same rows.
    pub name: &'static str,
    pub width: usize,
    /// Tokens of each row's sequences.
    pub lengths: Vec<u32>,
    /// Everything that the sequences depend on.
    pub content: Vec<u8>,
    pub sequences: Box<dyn Fn(usize) -> Result<Vec<Example>> + 'a>,
}

/// The name of the sequences that a row is made of.
const ROWS: &str = "rows";

impl<'a> Asked<'a> {
    /// All sequences of a data set.
    pub fn rows<T: Item>(split: Split, rows: &'a Dataset<T>) -> Self {
        Self {
            split,
            name: ROWS,
            width: T::WIDTH,
            lengths: rows.lengths().to_vec(),
            content: rows.hashes().iter().flat_map(|h| h.to_le_bytes()).collect(),
            sequences: Box::new(|i| Ok(rows.get(i)?.shown())),
        }
    }
}

/// What the reference says, asked beside each step or known from before.
pub enum Source {
    Live(Reference),
    Cached { keep: Keep, known: BTreeMap<(Split, &'static str), Known> },
}

impl Source {
    /// A cached one knows nothing until `begin`.
    pub fn new(keep: &Keep, model: &Model) -> Result<Self> {
        Ok(match keep.choice {
            ReferenceChoice::Live => Self::Live(Reference::of(model)?),
            ReferenceChoice::Cached => Self::Cached { keep: keep.clone(), known: BTreeMap::new() },
        })
    }

    /// What a cached one will be asked, while the model is still the reference: read from the disk where it was computed
    /// before, else computed now and kept there.
    pub fn begin<'a>(&mut self, model: &Model, asked: impl IntoIterator<Item = Asked<'a>>) -> Result<()> {
        let Self::Cached { keep, known } = self else { return Ok(()) };
        let folders: Vec<&Path> = [Some(model.folder()), keep.from.as_deref()].into_iter().flatten().collect();
        let base = content::hash(&folders)?;
        for asked in asked {
            known.insert((asked.split, asked.name), keep.known(&asked, &base, model)?);
        }
        Ok(())
    }

    /// Log-probabilities (N) of a packed row's answers, float64: all sequences of `items`, in their order.
    pub fn log_probs(&self, model: &Model, answers: &Answers, split: Split, items: &[usize]) -> Result<Tensor> {
        self.log_probs_of(ROWS, model, answers, split, items)
    }

    /// The same of sequences with another name.
    pub fn log_probs_of(
        &self,
        name: &'static str,
        model: &Model,
        answers: &Answers,
        split: Split,
        items: &[usize],
    ) -> Result<Tensor> {
        match self {
            Self::Live(reference) => reference.log_probs(model, answers),
            Self::Cached { known, .. } => Ok(known[&(split, name)].of(items).to_device(model.device())),
        }
    }
}

/// Log-probabilities of all sequences of some rows.
pub struct Known {
    /// `width` to a row; 0 where a row has fewer.
    values: Vec<f64>,
    width: usize,
}

impl Known {
    /// Those of some rows, in their order (rows * width), float64.
    fn of(&self, rows: &[usize]) -> Tensor {
        let values: Vec<f64> =
            rows.iter().flat_map(|r| &self.values[r * self.width..(r + 1) * self.width]).copied().collect();
        Tensor::from_slice(&values)
    }
}

impl Keep {
    fn known(&self, asked: &Asked, base: &str, model: &Model) -> Result<Known> {
        let path = self.path(asked, base, model);
        let (rows, width) = (asked.lengths.len(), asked.width);
        if let Some(path) = &path
            && let Some(values) = read(path, rows * width)
        {
            report::info(format!("reference log-probabilities of {rows} rows: {}", path.display()));
            return Ok(Known { values, width });
        }
        let began = Instant::now();
        let values = compute(asked, model, &Reference::of(model)?, self.budget)?;
        let took = report::duration(began.elapsed());
        let place = match &path {
            Some(path) => {
                weights::save(path, [(NAME, &Tensor::from_slice(&values))])?;
                format!(": {}", path.display())
            }
            None => ", for this run only (data.cache is off)".into(),
        };
        report::info(format!("reference log-probabilities of {rows} rows computed in {took}{place}"));
        Ok(Known { values, width })
    }

    fn path(&self, asked: &Asked, base: &str, model: &Model) -> Option<PathBuf> {
        let folder = self.cache.folder_for(u64::MAX)?;
        let mut hash = Sha256::new();
        let Asked { name, width, .. } = asked;
        hash.update(format!("{VERSION}\n{base}\n{:?}\n{:?}\n{name} {width}\n", model.kind(), model.device()));
        hash.update(&asked.content);
        asked.lengths.iter().for_each(|length| hash.update(length.to_le_bytes()));
        Some(folder.join(format!("{}.logprobs", hex(&hash.finalize()))))
    }
}

/// A file's numbers, where it is whole; anything else is computed again.
fn read(path: &Path, expected: usize) -> Option<Vec<f64>> {
    let tensor = Weights::open_file(path).ok()?.get(NAME)?;
    let whole = tensor.kind() == Kind::Double && tensor.size() == [expected as i64];
    let values = whole.then(|| Vec::<f64>::try_from(&tensor).ok()).flatten();
    let values = values.filter(|v| v.iter().all(|x| x.is_finite()))?;
    // Its time says that it was used.
    if let Ok(file) = File::options().append(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
    Some(values)
}

fn compute(asked: &Asked, model: &Model, reference: &Reference, budget: usize) -> Result<Vec<f64>> {
    let Asked { lengths, width, .. } = asked;
    // Rows of like length together: a packed row then wastes little of its budget, and attention less.
    let mut order: Vec<u32> = (0..lengths.len() as u32).filter(|i| lengths[*i as usize] > 0).collect();
    order.sort_by_key(|i| std::cmp::Reverse(lengths[*i as usize]));
    let mut values = vec![0.0; lengths.len() * width];
    let bar = report::bar(order.len() as u64, "reference");
    for row in pack(lengths, &order, budget) {
        let sequences = row.iter().map(|i| (asked.sequences)(*i)).collect::<Result<Vec<_>>>()?.concat();
        let answers = Answers::pack(&sequences, model.device());
        let found: Vec<f64> = reference.log_probs(model, &answers)?.try_into()?;
        for (found, i) in found.chunks(*width).zip(&row) {
            values[i * width..(i + 1) * width].copy_from_slice(found);
        }
        bar.inc(row.len() as u64);
    }
    bar.finish_and_clear();
    Ok(values)
}
