//! Loads the model under test with its adapter, and computes losses, gradients and logits for the checks.

use super::input::{SelftestInput, usable_rows};
use super::rounding::Rounding;
use crate::adapters::{AdapterSpec, LoraSpec, file};
use crate::error::{Error, Result};
use crate::models::{Heads, LayerReplay, LoadOptions, Loss, Metrics, MicroBatch, Model, Output, Storage};
use crate::nn::{Param, Tokens};
use crate::rng;
use rand::RngExt;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

const ADAPTER: &str = "adapter";

/// A packed row with the function that computes its loss.
struct RowWithLoss<'a> {
    row: &'a PackedTestRow,
    loss: fn(&PackedTestRow, &Output) -> Loss,
}

impl MicroBatch for RowWithLoss<'_> {
    fn tokens(&self) -> &Tokens {
        &self.row.tokens
    }
    fn items(&self) -> f64 {
        self.row.items
    }
    fn loss(&self, out: &Output) -> Loss {
        (self.loss)(self.row, out)
    }
}

impl MicroBatch for PackedTestRow {
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

/// A packed row with the positions and ids of its trained tokens.
pub struct PackedTestRow {
    pub tokens: Tokens,
    pub at: Tensor,
    pub targets: Tensor,
    pub items: f64,
}

impl PackedTestRow {
    /// Packs sequences into one row. The first third of each is its prompt, which is not trained on.
    pub fn pack(sequences: &[&[u32]], device: Device) -> Self {
        let (mut at, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
        for s in sequences {
            for t in (s.len() / 3).max(1)..s.len() {
                at.push(start + t as i64 - 1);
                targets.push(i64::from(s[t]));
            }
            start += s.len() as i64;
        }
        Self {
            tokens: Tokens::pack(sequences, device),
            items: at.len() as f64,
            at: Tensor::from_slice(&at).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
        }
    }

    /// Returns the cross-entropy as training computes it, over chunks of rows.
    pub fn loss(&self, out: &Output) -> Loss {
        self.sum(out.log_probs(&self.at, &self.targets).log_probs)
    }

    /// Returns the cross-entropy by its formula, over full logits and in float64: in float32, libtorch's softmax over a
    /// large vocabulary is less exact than the chunked one and would not do as a reference.
    pub fn plain_loss(&self, out: &Output) -> Loss {
        let all = out.logits(&self.at).log_softmax(-1, Kind::Double);
        self.sum(all.gather(-1, &self.targets.unsqueeze(-1), false).squeeze_dim(-1))
    }

    fn sum(&self, log_probs: Tensor) -> Loss {
        let sum = -log_probs.sum(log_probs.kind());
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.items);
        Loss { sum, metrics }
    }
}

/// Mean loss and gradients by name of one optimiser step.
pub struct StepGradients {
    pub loss: f64,
    pub gradients: BTreeMap<String, Tensor>,
}

/// The model under test with its adapter, and the rows to compute on.
pub struct TestModel {
    pub model: Model,
    pub base: PathBuf,
    pub spec: AdapterSpec,
    pub rows: Vec<Vec<u32>>,
}

impl TestModel {
    /// Loads the model to compute in `kind`, with its adapter or a random one. `dropout` applies while training.
    pub fn load(subject: &SelftestInput, kind: Kind, dropout: f64) -> Result<Self> {
        Self::load_held(subject, kind, dropout, Storage::Auto)
    }

    /// Loads the model with all weights copied to `kind`, so that an update can be merged into them as exactly as
    /// `kind` allows.
    pub fn load_copied(subject: &SelftestInput, kind: Kind) -> Result<Self> {
        Self::load_held(subject, kind, 0.0, Storage::Copy)
    }

    fn load_held(subject: &SelftestInput, kind: Kind, dropout: f64, storage: Storage) -> Result<Self> {
        let file = subject.adapter.as_deref().map(file::read).transpose()?;
        let random = || AdapterSpec::Lora(LoraSpec { rank: 8, alpha: 16.0, ..LoraSpec::default() });
        let mut spec = file.as_ref().map_or_else(random, |file| file.spec.clone());
        spec.set_dropout(dropout);
        let plan = match (&file, &subject.adapter) {
            (Some(file), Some(folder)) => spec.plan_of_file(&folder.join(file::CONFIG), &file.tensors)?,
            _ => spec.plan()?,
        };
        let adapters = vec![(ADAPTER.to_string(), &*plan)];
        let model = Model::load(
            &subject.model,
            LoadOptions {
                device: subject.device,
                kind,
                storage,
                train_base: None,
                adapters,
                vocabulary: None,
                heads: Heads::Tokens,
            },
        )?;
        match (&file, &subject.adapter) {
            (Some(file), Some(folder)) => file::load_into(model.params().adapter(0), &file.tensors, folder)?,
            _ => fill_with_noise(&model),
        }
        if let Some(name) = model.params().first_non_finite() {
            return Err(Error::user(format!(
                "{}: `{name}` has NaN or infinite values, so nothing it computes can be right",
                subject.model.display()
            ))
            .hint(
                "the file is damaged or the training run was not stable: fetch it again, or use an earlier checkpoint",
            ));
        }
        let rows = usable_rows(subject, longest_row(&model), model.config().vocab_size)?;
        Ok(Self { model, base: subject.model.clone(), spec, rows })
    }

    /// Returns the logits of the rows from a model without adapter.
    pub fn base_logits(subject: &SelftestInput) -> Result<Tensor> {
        let load = LoadOptions {
            device: subject.device,
            kind: subject.kind,
            storage: Storage::Auto,
            train_base: None,
            adapters: Vec::new(),
            vocabulary: None,
            heads: Heads::Tokens,
        };
        let model = Model::load(&subject.model, load)?;
        let rows = usable_rows(subject, longest_row(&model), model.config().vocab_size)?;
        logits(&model, &Tokens::pack(&rows, model.device()))
    }

    /// Returns what determines the model's rounding errors.
    pub fn rounding(&self) -> Rounding {
        Rounding { kind: self.model.kind(), depth: self.model.depth(), device: self.model.device() }
    }

    /// Packs the rows with these indices into one.
    pub fn pack(&self, which: &[usize]) -> PackedTestRow {
        let sequences: Vec<&[u32]> = which.iter().map(|&i| self.rows[i].as_slice()).collect();
        PackedTestRow::pack(&sequences, self.model.device())
    }

    /// Returns the indices of all rows.
    pub fn all_rows(&self) -> Vec<usize> {
        (0..self.rows.len()).collect()
    }

    /// Returns loss and gradients of one optimiser step over micro-batches, each a list of row indices.
    pub fn step(&self, batches: &[Vec<usize>], replay: LayerReplay) -> Result<StepGradients> {
        let rows: Vec<PackedTestRow> = batches.iter().map(|b| self.pack(b)).collect();
        self.step_of(&rows, rows.iter().map(|r| r.items).sum(), replay, PackedTestRow::loss)
    }

    /// Returns loss and gradients with a given number of items to divide by and a given loss.
    pub fn step_of(
        &self,
        rows: &[PackedTestRow],
        items: f64,
        replay: LayerReplay,
        loss: fn(&PackedTestRow, &Output) -> Loss,
    ) -> Result<StepGradients> {
        let mut metrics = Metrics::default();
        for row in rows {
            metrics.merge(self.model.learn(&RowWithLoss { row, loss }, items, replay)?);
        }
        Ok(StepGradients { loss: metrics.means()["loss"], gradients: self.take_gradients() })
    }

    /// Returns loss and gradients of one step over all rows in one batch.
    pub fn whole_step(&self) -> Result<StepGradients> {
        self.step(&[self.all_rows()], LayerReplay::None)
    }

    /// Returns the mean loss of the packed row, computed without gradient.
    pub fn loss(&self, row: &PackedTestRow) -> Result<f64> {
        let sum = |out: &Output| out.log_probs(&row.at, &row.targets).log_probs.sum(Kind::Double).double_value(&[]);
        Ok(-self.model.infer(&row.tokens, sum)? / row.items)
    }

    /// Returns the logits (T, V) of all rows, packed into one.
    pub fn logits(&self) -> Result<Tensor> {
        logits(&self.model, &Tokens::pack(&self.rows, self.model.device()))
    }

    /// Returns copies of the adapter's tensors, by name.
    pub fn adapter(&self) -> BTreeMap<String, Tensor> {
        self.model.params().adapter(0).map(|p| (p.name.clone(), p.tensor.detach().copy())).collect()
    }

    fn take_gradients(&self) -> BTreeMap<String, Tensor> {
        let take = |p: &Param| {
            let gradient = p.tensor.grad();
            let copy = if gradient.defined() { gradient.copy() } else { p.tensor.detach().zeros_like() };
            if gradient.defined() {
                p.tensor.shallow_clone().zero_grad();
            }
            (p.name.clone(), copy)
        };
        self.model.params().trainable().map(take).collect()
    }
}

/// Returns the logits of every position: (T, V) float32.
pub fn logits(model: &Model, tokens: &Tokens) -> Result<Tensor> {
    let all = Tensor::arange(tokens.len() as i64, (Kind::Int64, model.device()));
    model.infer(tokens, |out| out.logits(&all))
}

/// Returns the longest row, in tokens, that the model allows.
fn longest_row(model: &Model) -> i64 {
    model.longest_sequence().unwrap_or(i64::MAX)
}

/// Fills an adapter's tensors with noise, large enough to have an effect on the output. A tensor's values depend on its
/// name only.
fn fill_with_noise(model: &Model) {
    let _no_grad = tch::no_grad_guard();
    for p in model.params().adapter(0) {
        let shape = p.tensor.size();
        let size = match p.name.ends_with("lora_A.weight") {
            true => (shape[1] as f64).powf(-0.5),
            false => 0.05,
        };
        let noise = noise(&shape, &p.name).to_device(p.tensor.device()) * size;
        p.tensor.shallow_clone().copy_(&noise);
    }
}

/// Returns uniform random numbers in (-1, 1) that depend on the name only.
pub fn noise(shape: &[i64], name: &str) -> Tensor {
    let mut chance = rng::stream(0, name, 0);
    let numbers: Vec<f32> = (0..shape.iter().product::<i64>()).map(|_| chance.random_range(-1.0..1.0)).collect();
    Tensor::from_slice(&numbers).view(shape)
}

/// Creates a temporary folder; it is removed when the value is dropped.
pub fn temporary_folder() -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("ft-selftest-")
        .tempdir()
        .map_err(|e| crate::fsutil::io_error("creating a folder in", &std::env::temp_dir(), e))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::path::Path;

    pub fn subject(kind: Kind) -> SelftestInput {
        let mut chance = crate::rng::stream(0, "selftest", 0);
        let row = |n: &usize| (0..*n).map(|_| chance.random_range(0..512)).collect();
        let rows = [23, 5, 17, 2, 31, 11].iter().map(row).collect();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama");
        SelftestInput { model, adapter: None, device: Device::Cpu, kind, rows }
    }

    /// A tiny model for tests of single checks. Whole runs are tested in tests/it/selftest.rs, in a process of their
    /// own: libtorch's random generator is shared by all tests of a process.
    pub fn tiny(kind: Kind, dropout: f64) -> TestModel {
        tch::set_num_threads(1);
        TestModel::load(&subject(kind), kind, dropout).unwrap()
    }
}
