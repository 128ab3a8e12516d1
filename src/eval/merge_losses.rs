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
use crate::models::{self, Config, Heads, LoadOptions, Model, Storage, VocabularyRows};
use crate::nn::Weights;
use std::path::Path;
use tch::{Device, Kind};

/// A base with the merge of some adapters, whose weights can be exchanged, and the rows that its loss is measured on.
pub struct MergeLosses<'a> {
    plan: &'a MergePlan,
    form: MergeForm,
    weights: Weights,
    /// Weights that embedding and output head share.
    shared: Vec<&'static str>,
    model: Model,
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
        if matches!(plan.truncation, Some(Truncation::Energy(_))) {
            return Err(Error::user(
                "--energy cannot be combined with --sweep or greedy_soup: ranks would depend on the weights",
            )
            .hint("search with --rank, and merge with --energy and the weights found"));
        }
        let config = Config::read(base)?;
        let tokenizer = ChatTokenizer::load(base, None)?;
        let rows = EvalRow::read(rows, limit, &tokenizer)?;
        let weights = models::weights(base, &config)?;
        let shared = config.tied_weights();
        let first = merged(&weights, &shared, parts, plan, form)?;
        let model = load(base, &first)?;
        let (base_loss, tokens) = model.with_adapter(None, |model| mean_loss(model, &examples(&rows)))?;
        Ok(Self { plan, form, weights, shared, model, rows, base_loss, tokens })
    }

    /// Gives the adapters these weights, and returns the loss of their merge: the mean over the rows' supervised tokens.
    pub fn of(&self, parts: &mut [WeightedAdapter], weights: &[f64]) -> Result<f64> {
        parts.iter_mut().zip(weights).for_each(|(part, weight)| part.weight = *weight);
        let made = merged(&self.weights, &self.shared, parts, self.plan, self.form)?;
        file::load_into(self.model.params().adapter(0), &made.tensors, Path::new("the merged adapter"))?;
        Ok(mean_loss(&self.model, &examples(&self.rows))?.0)
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
fn load(base: &Path, adapter: &AdapterFile) -> Result<Model> {
    let plan = adapter.spec.plan_from(Some(&adapter.tensors))?;
    let adapters = vec![("merged".to_string(), &*plan)];
    let rows = VocabularyRows::of_adapters(&Config::read(base)?, &[(adapter, base)])?;
    let options = LoadOptions {
        device: Device::Cpu,
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: None,
        adapters,
        vocabulary: rows.as_ref(),
        heads: Heads::Tokens,
    };
    Model::load(base, options)
}
