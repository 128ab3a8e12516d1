//! Prepares a run up to its first step: reads and tokenises the data, counts the steps, loads the model.
//!
//! formats chooses number formats, arithmetic how exactly they are computed with, cuda_graphs checks that passes can be
//! recorded, student cuts the model out of a larger one, rows loads the tokenizer and says how rows are read,
//! vocabulary adds new tokens, model loads the base with its adapters, eva finds initial
//! values that depend on the rows.

mod arithmetic;
pub mod cuda_graphs;
mod eva;
pub mod formats;
mod model;
pub mod rows;
pub mod student;
pub mod vocabulary;

use super::average;
use crate::data::cache::TokenCache;
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::methods::contract::Method;
use crate::methods::rows::MethodRows;
use crate::models::{self, Model, Storage, VocabularyRows, dtype};
use crate::recipe::plan::Plan;
use crate::recipe::sections::{ModelInit, RunSection};
use model::ModelPlacement;
use std::rc::Rc;
use tch::Device;
use vocabulary::AddedVocabulary;

/// A run that is ready to start; the model is not loaded yet.
pub struct Prepared {
    /// The settings, with number formats and date filled in.
    pub plan: Plan,
    /// The base's tokenizer with the recipe's chat template and new tokens.
    pub tokenizer: Rc<ChatTokenizer>,
    /// The new tokens and their rows, if the recipe adds some.
    pub vocabulary: Option<AddedVocabulary>,
    /// The rows as the method reads them.
    pub rows: Box<dyn MethodRows>,
    /// Optimiser steps of the run.
    pub total_steps: u64,
    /// Device of the model.
    pub device: Device,
    /// How frozen weights are held in memory.
    pub storage: Storage,
    /// Reason for the number format of the arithmetic, for people.
    pub why: &'static str,
}

/// Reads and tokenises the data and counts the steps. The returned plan has its number formats and its date filled in.
/// Makes the model first if the recipe cuts it out of a larger one. Fails if there is nothing to train.
pub fn prepare(plan: &Plan) -> Result<Prepared> {
    if let Some(threads) = plan.recipe.run.threads {
        tch::set_num_threads(threads as i32);
    }
    let device = models::device(&plan.recipe.model.device)?;
    arithmetic::apply(&plan.recipe.run, device)?;
    refuse_needless_offload(&plan.recipe.run, device)?;
    student::ensure_cut_model(plan)?;
    let (mut plan, why) = formats::choose_formats(plan, device)?;
    // Recorded in the plan: on another machine the numbers could rank two matrices the other way round.
    if plan.recipe.model.init == ModelInit::Pretrained {
        plan.recipe.model.trained = plan.recipe.model.trained.resolve(&plan.recipe.model.path, device)?;
    }
    dtype::warn_of_slow_products(plan.recipe.model.dtype, device)?;
    let (tokenizer, added) = rows::load_tokenizer(&mut plan)?;
    let vocabulary = vocabulary::add(&mut plan.recipe, &tokenizer, added)?;
    // Templates may print the date: it is recorded, so that a run that is resumed or repeated later trains on the same
    // tokens.
    plan.recipe.data.date = tokenizer.date().map(|date| date.to_string()).or(plan.recipe.data.date);
    let (plan, recipe) = (&plan, &plan.recipe);
    let cache = TokenCache::new(&recipe.data.cache)?;
    let rows = recipe.method.rows(&rows::data_context(plan, tokenizer.clone(), &cache))?;
    let storage = formats::storage(recipe, device)?;
    let total = recipe.run.steps.unwrap_or_else(|| rows.steps_for(recipe.run.epochs));
    if total == 0 {
        return Err(Error::user("run.epochs: the run would have no steps").hint("set run.epochs above 0 or run.steps"));
    }
    average::check_length(&recipe.run, total)?;
    Ok(Prepared { plan: plan.clone(), tokenizer, vocabulary, rows, total_steps: total, device, storage, why })
}

/// Fails if the run would keep in the host's memory what is there already.
fn refuse_needless_offload(run: &RunSection, device: Device) -> Result<()> {
    if run.offload && !device.is_cuda() {
        return Err(Error::user(
            "run.offload: the run computes on the CPU, so the inputs of layers are in its memory already",
        )
        .hint("remove it; on a machine with a GPU, see what keeps ft from using it: ft doctor"));
    }
    Ok(())
}

impl Prepared {
    /// Builds the run's model on the CPU with its weights left in their files. It has all shapes, so that needs can be
    /// predicted before the run allocates memory.
    pub fn sketch(&self) -> Result<Model> {
        let placement =
            ModelPlacement { device: Device::Cpu, storage: Storage::Outline, train_base: false, shapes_only: true };
        let model = model::load(&self.plan.recipe, &self.tokenizer, self.vocabulary_rows(), placement)?;
        if self.plan.recipe.model.quantize_embeddings.is_some() {
            model.require_untouched_tables()?;
        }
        Ok(model)
    }

    /// Returns the rows of new tokens.
    fn vocabulary_rows(&self) -> Option<&VocabularyRows> {
        self.vocabulary.as_ref().map(|added| &added.rows)
    }

    /// Loads the base with a new adapter; without an adapter, all weights become trainable float32 masters.
    pub fn load_model(&self) -> Result<Model> {
        let placement =
            ModelPlacement { device: self.device, storage: self.storage, train_base: true, shapes_only: false };
        let eva = eva::initial_factors(self)?;
        let model = model::load(&self.plan.recipe, &self.tokenizer, self.vocabulary_rows(), placement)?;
        eva::set_factors(&model, &eva);
        cuda_graphs::check(&self.plan.recipe, &model, self.device)?;
        Ok(model)
    }

    /// Distributes the ranks of a run that begins with EVA, if its recipe asks for it (`eva_rho`). This runs the base over
    /// the first rows, so it is done for runs alone.
    pub fn distribute_ranks(mut self) -> Result<Self> {
        self.plan = eva::distribute_ranks(&self)?;
        Ok(self)
    }

    /// Creates the method over the prepared rows. Also returns the tokenizer, which samples need.
    pub fn into_method(self, model: &Model) -> Result<(Box<dyn Method>, Rc<ChatTokenizer>)> {
        Ok((self.rows.method(model)?, self.tokenizer))
    }
}
