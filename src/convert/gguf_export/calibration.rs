//! Measures an importance matrix: the mean square of each input of each linear layer, over rows of calibration.
//!
//! The inputs are seen by an adapter that records and changes nothing; an adapter that is merged into the model computes its layers
//! behind it.

use crate::adapters::file::load_into;
use crate::adapters::merging::WeightedAdapter;
use crate::data::chat::ChatTokenizer;
use crate::data::encode::{Supervise, encode_row};
use crate::data::rows::{RowFormat, read_rows};
use crate::data::source::RowPlace;
use crate::error::{Context, Error, Result};
use crate::models::{Config, Heads, LoadOptions, Model, Storage, VocabularyRows};
use crate::nn::{Adapter, AdapterPlan, AdapterSite, Dense, LayerKind, RegisterParam, Tokens};
use crate::report;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Tokens that are run at a time: the context with which importance matrices are measured in llama.cpp.
const WINDOW: usize = 512;

/// The importance of the inputs of each linear layer.
pub struct ImportanceMatrix {
    /// The mean square of each input, by the layer's name.
    columns: BTreeMap<String, Vec<f32>>,
    /// The file of rows.
    pub rows: PathBuf,
    /// Number of runs of at most 512 tokens.
    pub windows: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Layers whose inputs are 0 throughout, or that saw no token: experts that were never chosen.
    pub unseen: Vec<String>,
}

impl ImportanceMatrix {
    /// Returns the importance of the columns of a tensor of the model; `None` for one that was not seen.
    pub fn of(&self, tensor: &str) -> Option<&[f32]> {
        Some(self.columns.get(tensor.strip_suffix(".weight")?)?)
    }

    /// Returns the number of layers that were seen.
    pub fn layers(&self) -> usize {
        self.columns.len()
    }
}

/// Runs the rows of a file through a model with an adapter and measures the inputs of its layers. Stops if `go_on` fails.
pub fn measure(
    model: &Path,
    adapter: Option<&WeightedAdapter>,
    tokenizer: &ChatTokenizer,
    rows: &Path,
    mut go_on: impl FnMut() -> Result<()>,
) -> Result<ImportanceMatrix> {
    let texts = token_ids(rows, tokenizer)?;
    let windows: Vec<&[u32]> = texts.iter().flat_map(|ids| ids.chunks(WINDOW)).collect();
    let tokens = windows.iter().map(|ids| ids.len()).sum();
    if tokens == 0 {
        return Err(Error::user(format!("{}: no tokens to measure importance with", rows.display()))
            .hint("name a file with rows like those that the model will see: texts or conversations"));
    }
    let config = Config::read(model)?;
    let inner = adapter.map(|part| part.file.plan(&part.folder)).transpose()?;
    let recorder = InputRecorder { inner: inner.as_deref(), sums: Rc::default() };
    let files: Vec<_> = adapter.map(|part| (&part.file, part.folder.as_path())).into_iter().collect();
    let vocabulary = VocabularyRows::of_adapters(&config, &files)?;
    let load = LoadOptions {
        device: Device::Cpu,
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: None,
        adapters: vec![("recorder".into(), &recorder as &dyn AdapterPlan)],
        vocabulary: vocabulary.as_ref(),
        heads: Heads::Tokens,
    };
    let loaded = Model::load(model, load)?;
    if let Some(part) = adapter {
        load_into(loaded.params().adapter(0), &part.file.tensors, &part.folder)?;
    }
    let bar = report::bar(windows.len() as u64, "pieces of text for importance");
    for ids in &windows {
        go_on()?;
        loaded.hidden_states(&Tokens::pack(&[ids], Device::Cpu))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    drop(loaded);
    let (mut columns, mut unseen) = (BTreeMap::new(), Vec::new());
    for (name, sum) in recorder.sums.take() {
        let mean = sum.squares / sum.tokens.max(1) as f64;
        let mean = Vec::<f32>::try_from(mean.to_kind(Kind::Float)).map_err(|e| Error::bug(format!("{name}: {e}")))?;
        match mean.iter().any(|x| *x > 0.0) {
            true => drop(columns.insert(name, mean)),
            false => unseen.push(name),
        }
    }
    Ok(ImportanceMatrix { columns, rows: rows.into(), windows: windows.len(), tokens, unseen })
}

/// Returns the token ids of the rows of a file, as they are in training.
fn token_ids(rows: &Path, tokenizer: &ChatTokenizer) -> Result<Vec<Vec<u32>>> {
    let mut all = Vec::new();
    for row in &read_rows(rows, RowFormat::Auto, None)?.1 {
        let place = || RowPlace { path: rows, line: row.line };
        for example in encode_row(row, rows, tokenizer, Supervise::Assistant)?.examples {
            tokenizer.check_embedded(&example.ids).context(place)?;
            all.push(example.ids);
        }
    }
    Ok(all)
}

/// The sum of the squares of a layer's inputs: (in) float64, and how many there were.
struct InputSquares {
    squares: Tensor,
    tokens: i64,
}

type Sums = Rc<RefCell<BTreeMap<String, InputSquares>>>;

/// Attaches a recording adapter to every linear layer, before the model's own adapter.
struct InputRecorder<'a> {
    inner: Option<&'a dyn AdapterPlan>,
    sums: Sums,
}

struct RecordingAdapter {
    inner: Option<Box<dyn Adapter>>,
    name: String,
    sums: Sums,
}

impl AdapterPlan for InputRecorder<'_> {
    fn attach(&self, site: &AdapterSite, register: &mut RegisterParam) -> Result<Option<Box<dyn Adapter>>> {
        let inner = self.inner.map_or(Ok(None), |plan| plan.attach(site, register))?;
        if site.layer != LayerKind::Linear {
            return Ok(inner);
        }
        let squares = Tensor::zeros([site.weight.shape()[1]], (Kind::Double, Device::Cpu));
        self.sums.borrow_mut().insert(site.name.into(), InputSquares { squares, tokens: 0 });
        Ok(Some(Box::new(RecordingAdapter { inner, name: site.name.into(), sums: self.sums.clone() })))
    }

    fn trains_in_full(&self, name: &str, layer: LayerKind) -> bool {
        self.inner.is_some_and(|plan| plan.trains_in_full(name, layer))
    }

    fn check(&self) -> Result<()> {
        self.inner.map_or(Ok(()), |plan| plan.check())
    }

    fn register_shared(&self, register: &mut RegisterParam) -> Result<()> {
        self.inner.map_or(Ok(()), |plan| plan.register_shared(register))
    }
}

impl Adapter for RecordingAdapter {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        let inputs = x.size()[x.dim() - 1];
        let rows = x.detach().reshape([-1, inputs]);
        if let Some(sum) = self.sums.borrow_mut().get_mut(&self.name) {
            sum.squares += rows.square().sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
            sum.tokens += rows.size()[0];
        }
        match &self.inner {
            Some(adapter) => adapter.forward(x, base, train),
            None => base.forward(x),
        }
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        self.inner.as_ref().map_or_else(|| weight.shallow_clone(), |adapter| adapter.merged(weight))
    }

    fn merged_bias(&self, bias: &Tensor) -> Tensor {
        self.inner.as_ref().map_or_else(|| bias.shallow_clone(), |adapter| adapter.merged_bias(bias))
    }

    fn adds_bias(&self) -> bool {
        self.inner.as_ref().is_some_and(|adapter| adapter.adds_bias())
    }
}
