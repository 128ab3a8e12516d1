//! Loads the base of a run with its adapters.

use crate::adapters::{AdapterFile, file};
use crate::data::chat::ChatTokenizer;
use crate::error::Result;
use crate::fsutil;
use crate::methods::parts::{ExtraAdapter, ModelParts, TRAINED_ADAPTER};
use crate::models::new_config::{self, VocabularyInfo};
use crate::models::{Config, LoadOptions, Model, Storage, VocabularyRows};
use crate::nn::AdapterPlan;
use crate::recipe::optim::Master;
use crate::recipe::sections::{ModelConfig, ModelInit, Recipe};
use crate::report;
use std::path::PathBuf;
use tch::Device;

/// How the base is held in memory.
pub struct ModelPlacement {
    /// Device of the model.
    pub device: Device,
    /// How frozen weights are held.
    pub storage: Storage,
    /// True if, without an adapter, the weights that the recipe trains become float32 masters.
    pub train_base: bool,
    /// True if only the shapes matter: initial values that depend on the weights are not computed.
    pub shapes_only: bool,
}

/// Loads the base of a recipe with the adapters that the recipe trains and its method needs.
/// `vocabulary` has the rows of new tokens.
pub fn load(
    recipe: &Recipe,
    tokenizer: &ChatTokenizer,
    vocabulary: Option<&VocabularyRows>,
    placement: ModelPlacement,
) -> Result<Model> {
    let _loading = report::spinner(&format!("loading {}", recipe.model.path.display()));
    // Initial adapter weights come from libtorch's generator.
    tch::manual_seed(recipe.run.seed as i64);
    let mut adapter = recipe.adapter.clone();
    if let Some(adapter) = &mut adapter {
        adapter.start_from_text(&|text| tokenizer.encode_plain(text))?;
    }
    let mut plan = adapter.as_ref().map(|adapter| adapter.plan()).transpose()?;
    let ModelParts { heads, extra_adapters, .. } = recipe.method.parts(recipe.adapter.as_ref())?;
    let files = extra_adapters.iter().map(|extra| extra.folder.as_deref().map(file::read).transpose());
    let files = files.collect::<Result<Vec<_>>>()?;
    let extra_plans = extra_adapters.iter().zip(&files).map(|(extra, file)| extra_plan(extra, file.as_ref()));
    let mut extra_plans = extra_plans.collect::<Result<Vec<_>>>()?;
    if placement.shapes_only {
        plan.iter_mut().chain(&mut extra_plans).for_each(|plan| plan.skip_initial_values());
    }
    let mut adapters: Vec<(String, &dyn AdapterPlan)> =
        plan.iter().map(|p| (TRAINED_ADAPTER.to_string(), &**p)).collect();
    adapters.extend(extra_adapters.iter().zip(&extra_plans).map(|(e, p)| (e.name.to_string(), &**p)));
    let continued = recipe.adapter.as_ref().and_then(|adapter| adapter.continues());
    let continued = continued.map(|folder| file::read(folder).map(|file| (file, folder))).transpose()?;
    let continued_rows = match &continued {
        Some((file, folder)) => VocabularyRows::of_adapters(&Config::read(&recipe.model.path)?, &[(file, *folder)])?,
        None => None,
    };
    let options = LoadOptions {
        device: placement.device,
        kind: recipe.model.dtype.kind(),
        storage: placement.storage,
        train_base: (placement.train_base && plan.is_none()).then_some(&recipe.model.trained),
        adapters,
        vocabulary: vocabulary.or(continued_rows.as_ref()),
        heads,
    };
    let model = match recipe.model.init {
        ModelInit::Pretrained => Model::load(&recipe.model.path, options)?,
        ModelInit::Random => {
            Model::initialise(fresh_config(recipe, tokenizer)?, &recipe.model.path, recipe.run.seed, options)?
        }
    };
    for (extra, file) in extra_adapters.iter().zip(&files) {
        if let (Some(file), Some(folder), Some(id)) = (file, &extra.folder, model.adapter_id(extra.name)) {
            file::load_into(model.params().adapter(id), &file.tensors, folder)?;
        }
        if !extra.trained {
            model.freeze_adapter(extra.name);
        }
    }
    if let (Some(adapter), Some(id)) = (&recipe.adapter, model.adapter_id(TRAINED_ADAPTER)) {
        adapter.initialise(&mut model.params().adapter(id))?;
    }
    if recipe.optim.master == Master::StochasticRounding {
        model.use_bf16_masters();
    }
    model.set_mlp_tile(recipe.run.mlp_tile.map(|tokens| tokens as i64));
    model.set_offload(recipe.run.offload);
    model.set_records_passes(recipe.run.cuda_graphs);
    warn_of_too_few_positions(recipe, &model);
    Ok(model)
}

/// Returns the plan of an adapter that the method needs in addition to the trained one: as its file says, or as its
/// settings say if it has no file.
fn extra_plan(extra: &ExtraAdapter, file: Option<&AdapterFile>) -> Result<Box<dyn AdapterPlan>> {
    match (&extra.folder, file) {
        (Some(folder), Some(file)) => extra.spec.plan_of_file(&folder.join(file::CONFIG), &file.tensors),
        _ => extra.spec.plan(),
    }
}

fn warn_of_too_few_positions(recipe: &Recipe, model: &Model) {
    let (longest, virtual_tokens) = (recipe.batch.max_len as i64, model.virtual_tokens());
    if let Some(limit) = model.config().max_position_embeddings.filter(|limit| longest + virtual_tokens > *limit) {
        let before =
            if virtual_tokens > 0 { format!(", after {virtual_tokens} virtual tokens") } else { String::new() };
        report::warn_once(format!("batch.max_len is {longest}{before}, but the model was made for {limit} positions"));
    }
}

/// Reads the shape of a model with random initial weights from the recipe or from a config.json.
fn fresh_config(recipe: &Recipe, tokenizer: &ChatTokenizer) -> Result<Config> {
    let none = ModelConfig::Keys(Default::default());
    let (given, file) = match recipe.model.config.as_ref().unwrap_or(&none) {
        ModelConfig::File(file) => (fsutil::read_json(file)?, file.clone()),
        ModelConfig::Keys(keys) => (keys.clone(), PathBuf::from("model.config")),
    };
    let t = tokenizer;
    let vocabulary = VocabularyInfo { size: t.vocab_size() as i64, bos: t.bos(), eos: t.eos(), pad: t.pad() };
    new_config::config(&given, vocabulary, &file)
}
