//! Losses of merges on held-out rows. Nothing is written: the merged adapter is exchanged in one loaded model.

use super::rows::EvalRow;
use super::run::mean_loss;
use crate::adapters::merging::combine::{are_low_rank, combine, in_full};
use crate::adapters::merging::plan::{MergeForm, MergePlan};
use crate::adapters::merging::reduce::as_lora;
use crate::adapters::merging::{MergedWeights, WeightedAdapter};
use crate::adapters::{AdapterFile, file};
use crate::data::chat::ChatTokenizer;
use crate::data::encode::Example;
use crate::error::{Error, Result};
use crate::merging::Truncation;
use crate::models::{self, Config, Dtype, Heads, LoadOptions, Model, Storage, VocabularyRows};
use crate::nn::Weights;
use std::path::Path;
use tch::{Device, Kind};

/// A base in memory with the merge of some adapters, whose weights can be exchanged.
pub struct LoadedMerge<'a> {
    plan: &'a MergePlan,
    form: MergeForm,
    weights: Weights,
    /// Weights that embedding and output head share.
    shared: Vec<&'static str>,
    model: Model,
}

impl<'a> LoadedMerge<'a> {
    /// Loads the base with the merge of `parts` by `plan`, in the number format that suits the machine. `form`: what will be
    /// written. Fails for a plan whose ranks depend on the weights.
    pub fn open(base: &Path, parts: &[WeightedAdapter], plan: &'a MergePlan, form: MergeForm) -> Result<Self> {
        if matches!(plan.truncation, Some(Truncation::Energy(_))) {
            return Err(Error::user(
                "--energy cannot be combined with --sweep or greedy_soup: ranks would depend on the weights",
            )
            .hint("search with --rank, and merge with --energy and the weights found"));
        }
        let config = Config::read(base)?;
        let weights = models::weights(base, &config)?;
        let shared = config.tied_weights();
        let first = merged(&weights, &shared, parts, plan, form)?;
        let kind = Dtype::Auto.choose(Device::Cpu, Some(base))?.dtype.kind();
        let merge = Self { plan, form, model: load(base, &first, kind)?, weights, shared };
        merge.fill(&first)?;
        Ok(merge)
    }

    /// Returns the merge with the present weights of `parts` as an adapter, whose shapes do not depend on the weights.
    pub fn adapter(&self, parts: &[WeightedAdapter]) -> Result<AdapterFile> {
        merged(&self.weights, &self.shared, parts, self.plan, self.form)
    }

    /// Returns what the adapters change, with their present weights.
    pub fn changes(&self, parts: &[WeightedAdapter]) -> Result<MergedWeights<'_>> {
        MergedWeights::planned(&self.weights, &self.shared, parts, self.plan.clone())
    }

    /// Gives the model the merge with the present weights of `parts`.
    pub fn set(&self, parts: &[WeightedAdapter]) -> Result<()> {
        self.fill(&self.adapter(parts)?)
    }

    fn fill(&self, made: &AdapterFile) -> Result<()> {
        file::load_into(self.model.params().adapter(0), &made.tensors, Path::new("the merged adapter"))
    }

    /// Returns the model, in which the merged adapter is switched on; it is adapter 0.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the mean loss of the merge over the rows' supervised tokens, and their number.
    pub fn loss(&self, rows: &[EvalRow]) -> Result<(f64, usize)> {
        mean_loss(&self.model, &examples(rows))
    }

    /// Does the same for the base alone.
    pub fn base_loss(&self, rows: &[EvalRow]) -> Result<(f64, usize)> {
        self.model.with_adapter(None, |model| mean_loss(model, &examples(rows)))
    }
}

/// Reads the rows that losses are measured on, at most `limit`, as the base's tokenizer encodes them.
pub fn read_rows(base: &Path, rows: &Path, limit: Option<usize>) -> Result<Vec<EvalRow>> {
    EvalRow::read(rows, limit, &ChatTokenizer::load(base, None)?)
}

/// The losses of merges on the same rows.
pub struct MergeLosses<'a> {
    merge: LoadedMerge<'a>,
    rows: Vec<EvalRow>,
    /// Loss of the base alone.
    pub base_loss: f64,
    /// Number of supervised tokens.
    pub tokens: usize,
}

impl<'a> MergeLosses<'a> {
    /// Loads the base with the merge of `parts` by `plan`, and the rows of a file, the first `limit` of them. `form`: what
    /// will be written. Fails for a plan whose ranks depend on the weights.
    pub fn open(
        base: &Path,
        parts: &[WeightedAdapter],
        plan: &'a MergePlan,
        form: MergeForm,
        rows: &Path,
        limit: Option<usize>,
    ) -> Result<Self> {
        let rows = read_rows(base, rows, limit)?;
        let merge = LoadedMerge::open(base, parts, plan, form)?;
        let (base_loss, tokens) = merge.base_loss(&rows)?;
        Ok(Self { merge, rows, base_loss, tokens })
    }

    /// Gives the adapters these weights, and returns the loss of their merge: the mean over the rows' supervised tokens.
    pub fn of(&self, parts: &mut [WeightedAdapter], weights: &[f64]) -> Result<f64> {
        parts.iter_mut().zip(weights).for_each(|(part, weight)| part.weights = (*weight).into());
        self.merge.set(parts)?;
        Ok(self.merge.loss(&self.rows)?.0)
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }
}

fn examples(rows: &[EvalRow]) -> Vec<&Example> {
    rows.iter().flat_map(|row| &row.examples).collect()
}

/// Returns the merge with the present weights as an adapter, whose shapes do not depend on the weights.
fn merged(
    base: &Weights,
    shared: &[&str],
    parts: &[WeightedAdapter],
    plan: &MergePlan,
    form: MergeForm,
) -> Result<AdapterFile> {
    if plan.is_sum() && are_low_rank(base, parts)? {
        return combine(base, parts);
    }
    let merge = MergedWeights::planned(base, shared, parts, plan.clone())?;
    match !plan.is_sum() && (form == MergeForm::Adapter || plan.gives_products()) {
        true => Ok(as_lora(&merge, parts, || ())?.0),
        false => in_full(base, &merge),
    }
}

/// Loads the base with an adapter, which is switched on.
fn load(base: &Path, adapter: &AdapterFile, kind: Kind) -> Result<Model> {
    let plan = adapter.spec.plan_from(Some(&adapter.tensors))?;
    let adapters = vec![("merged".to_string(), &*plan)];
    let rows = VocabularyRows::of_adapters(&Config::read(base)?, &[(adapter, base)])?;
    let options = LoadOptions {
        device: Device::Cpu,
        kind,
        storage: Storage::Auto,
        train_base: None,
        adapters,
        vocabulary: rows.as_ref(),
        heads: Heads::Tokens,
    };
    Model::load(base, options)
}
