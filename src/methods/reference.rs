//! The reference: the model as it was before it began to learn, and what it says of answers.
//!
//! Invariant: its numbers never change within a run, and log-probabilities from the disk are used only where everything
//! they depend on is the same: a file's name is the hash of the base's content, the number format, the device, and
//! each sequence as it is packed (so of data, tokenizer, template and lengths). Knows no loss.

use super::pairs::Answers;
use super::{Beside, Parts};
use crate::adapters::{AdapterSpec, file};
use crate::data::{Cache, Dataset, Item, pack};
use crate::error::Result;
use crate::fsutil::{hex, io_error, sha256};
use crate::models::{Heads, Load, Model};
use crate::nn::{Weights, weights};
use crate::report;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
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
        let heads = Heads::Tokens;
        let (device, kind) = (model.device(), model.kind());
        let load = Load { device, kind, train_base: false, adapters: Vec::new(), heads };
        Ok(Self::Copy(Box::new(Model::load(model.folder(), load)?)))
    }

    /// Log-probabilities of a row's answers, as [`super::pairs::Spans::scores`] gives them, without gradient.
    pub fn log_probs(&self, model: &Model, answers: &Answers) -> Result<Tensor> {
        let score = |m: &Model| m.infer(&answers.tokens, |out| answers.spans.scores(out).log_probs);
        match self {
            Self::Base => model.with(None, score),
            Self::Begun => model.with(Some(BEGUN), score),
            Self::Copy(copy) => score(copy),
        }
    }
}

/// Changes with the way the numbers are computed and stored.
const VERSION: &str = "reference 1";
/// The one tensor of a file.
const NAME: &str = "log_probs";

/// Log-probabilities of all sequences of some rows.
pub struct Known {
    /// `width` to a row.
    values: Vec<f64>,
    width: usize,
}

impl Known {
    /// Those of some rows, in their order (rows * width), float64.
    pub fn of(&self, rows: &[usize]) -> Tensor {
        let values: Vec<f64> =
            rows.iter().flat_map(|r| &self.values[r * self.width..(r + 1) * self.width]).copied().collect();
        Tensor::from_slice(&values)
    }
}

/// What cached log-probabilities depend on beside the rows, and where they are kept.
pub struct Keep<'a> {
    /// A hash of the content of the base and of the adapter that the run goes on from.
    model: String,
    cache: &'a Cache,
    /// Tokens in a packed row.
    budget: usize,
}

impl<'a> Keep<'a> {
    /// `from`: the folder of the adapter that the run goes on from.
    pub fn new(model: &Model, from: Option<&Path>, cache: &'a Cache, budget: usize) -> Result<Self> {
        let folders = [Some(model.folder()), from].into_iter().flatten().map(content);
        Ok(Self { model: folders.collect::<Result<Vec<_>>>()?.join(" "), cache, budget })
    }

    /// The reference's log-probabilities of all rows: from the disk where they were computed before, else computed now
    /// and kept there.
    pub fn known<T: Item>(&self, rows: &Dataset<T>, model: &Model) -> Result<Known> {
        let path = self.path(rows, model);
        let width = T::WIDTH;
        if let Some(path) = &path
            && let Some(values) = read(path, rows.len() * width)
        {
            report::info(format!("reference log-probabilities of {} rows: {}", rows.len(), path.display()));
            return Ok(Known { values, width });
        }
        let began = Instant::now();
        let values = compute(rows, model, &Reference::of(model)?, self.budget)?;
        let took = report::duration(began.elapsed());
        match &path {
            Some(path) => {
                weights::save(path, [(NAME, &Tensor::from_slice(&values))])?;
                report::info(format!(
                    "reference log-probabilities of {} rows computed in {took}: {}",
                    rows.len(),
                    path.display()
                ));
            }
            None => report::info(format!(
                "reference log-probabilities of {} rows computed in {took}, for this run only (data.cache is off)",
                rows.len()
            )),
        }
        Ok(Known { values, width })
    }

    fn path<T: Item>(&self, rows: &Dataset<T>, model: &Model) -> Option<PathBuf> {
        let folder = self.cache.folder_for(u64::MAX)?;
        let mut hash = Sha256::new();
        hash.update(format!("{VERSION}\n{}\n{:?}\n{:?}\n{}\n", self.model, model.kind(), model.device(), T::WIDTH));
        for (content, length) in rows.hashes().iter().zip(rows.lengths()) {
            hash.update(content.to_le_bytes());
            hash.update(length.to_le_bytes());
        }
        Some(folder.join(format!("{}.logprobs", hex(&hash.finalize()))))
    }
}

/// A hash of everything that a directory of a model or an adapter computes with.
fn content(folder: &Path) -> Result<String> {
    let entries = std::fs::read_dir(folder).map_err(|e| io_error("reading", folder, e))?;
    let mut names: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|n| {
        n == "config.json" || n == file::CONFIG || n.ends_with(".safetensors") || n.ends_with(".safetensors.index.json")
    });
    names.sort();
    let spinner = report::spinner(&format!("hashing {}", folder.display()));
    let sums = names.iter().map(|n| Ok(format!("{n} {}\n", sha256(&folder.join(n))?)));
    let sums = sums.collect::<Result<String>>();
    spinner.finish_and_clear();
    Ok(hex(&Sha256::digest(sums?)))
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

fn compute<T: Item>(rows: &Dataset<T>, model: &Model, reference: &Reference, budget: usize) -> Result<Vec<f64>> {
    // Rows of like length together: a packed row then wastes little of its budget, and attention less.
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    order.sort_by_key(|i| std::cmp::Reverse(rows.lengths()[*i as usize]));
    let mut values = vec![0.0; rows.len() * T::WIDTH];
    let bar = report::bar(rows.len() as u64, "reference");
    for row in pack(rows.lengths(), &order, budget) {
        let items = row.iter().map(|i| rows.get(*i)).collect::<Result<Vec<_>>>()?;
        let sequences: Vec<_> = items.iter().flat_map(Item::shown).collect();
        let answers = Answers::pack(&sequences, model.device());
        let found: Vec<f64> = reference.log_probs(model, &answers)?.try_into()?;
        for (found, i) in found.chunks(T::WIDTH).zip(&row) {
            values[i * T::WIDTH..(i + 1) * T::WIDTH].copy_from_slice(found);
        }
        bar.inc(row.len() as u64);
    }
    bar.finish_and_clear();
    Ok(values)
}
