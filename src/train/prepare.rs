//! Prepares a run up to its first step: reads and tokenises the data, counts the steps, loads the model.

use crate::adapters::{AdapterSpec, LoraPlan, LoraSpec, file};
use crate::convert::student::{KeptLayers, StudentCut, cut_student_if_missing};
use crate::convert::{stop_tokens, template};
use crate::data::{
    BatchPlan, ChatTokenizer, Dataset, EncodeOptions, Example, Overflow, SourceList, SourceSpec, Supervise, TokenCache,
};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::machine;
use crate::methods::contract::Method;
use crate::methods::parts::{ModelParts, TRAINED_ADAPTER};
use crate::methods::rows::{DataContext, MethodRows, SplitStatistics};
use crate::models::new_config::{self, VocabularyInfo};
use crate::models::{self, Config, LoadOptions, Model, Storage, dtype};
use crate::nn::{AdapterPlan, Param};
use crate::recipe::{CutChoice, CutLayers, Master, ModelConfig, ModelInit, Plan, Recipe};
use crate::report;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::{Device, Kind};

/// A run that is ready to start; the model is not loaded yet.
pub struct Prepared {
    pub plan: Plan,
    pub tokenizer: Rc<ChatTokenizer>,
    pub rows: Box<dyn MethodRows>,
    /// Optimiser steps of the run.
    pub total_steps: u64,
    pub device: Device,
    /// How frozen weights are held in memory.
    pub storage: Storage,
    /// Reason for the number format of the arithmetic, for people.
    why: &'static str,
}

/// Reads and tokenises the data and counts the steps. The returned plan has its number formats and its date filled in.
/// Makes the model first if the recipe cuts it out of a larger one. Fails if there is nothing to train.
pub fn prepare(plan: &Plan) -> Result<Prepared> {
    if let Some(threads) = plan.recipe.run.threads {
        tch::set_num_threads(threads as i32);
    }
    let device = models::device(&plan.recipe.model.device)?;
    ensure_cut_model(plan)?;
    let (mut plan, why) = choose_formats(plan, device)?;
    dtype::warn_of_slow_products(plan.recipe.model.dtype, device)?;
    let tokenizer = tokenizer(&plan)?;
    // Templates may print the date: it is recorded, so that a run that is resumed or repeated later trains on the same
    // tokens.
    plan.recipe.data.date = tokenizer.date().map(|date| date.to_string()).or(plan.recipe.data.date);
    let (plan, recipe) = (&plan, &plan.recipe);
    let cache = TokenCache::new(&recipe.data.cache)?;
    let rows = recipe.method.rows(&data_context(plan, tokenizer.clone(), &cache))?;
    let storage = storage(recipe, device)?;
    let total = recipe.run.steps.unwrap_or_else(|| rows.steps_for(recipe.run.epochs));
    if total == 0 {
        return Err(Error::user("run.epochs: the run would have no steps").hint("set run.epochs above 0 or run.steps"));
    }
    Ok(Prepared { plan: plan.clone(), tokenizer, rows, total_steps: total, device, storage, why })
}

/// Resolves `dtype: auto` of the model and its teachers for the device. Returns the plan and the reason for the model's
/// format.
pub fn choose_formats(plan: &Plan, device: Device) -> Result<(Plan, &'static str)> {
    let mut plan = plan.clone();
    let model = &plan.recipe.model;
    let there = |folder: &&Path| model.init == ModelInit::Pretrained && folder.join("config.json").exists();
    // A student that does not exist yet gets the format of its teacher.
    let teacher = plan.recipe.method.teachers().first().map(|t| t.path.as_path());
    let folder = Some(model.path.as_path()).filter(there).or(teacher.filter(there));
    let chosen = model.dtype.choose(device, folder)?;
    plan.recipe.model.dtype = chosen.dtype;
    for teacher in plan.recipe.method.teachers_mut() {
        if let Some(dtype) = &mut teacher.dtype {
            *dtype = dtype.choose(device, Some(&teacher.path))?.dtype;
        }
    }
    Ok((plan, chosen.why))
}

/// Decides how frozen weights are held if the recipe leaves it open.
///
/// On the CPU, copies in the arithmetic's format save a few per cent of a step's time, because weights need not be
/// widened. They are made if they take less than half of the free memory. The choice has no effect on the numbers of
/// the run.
fn storage(recipe: &Recipe, device: Device) -> Result<Storage> {
    let model = &recipe.model;
    if model.storage != Storage::Auto || device != Device::Cpu || model.init != ModelInit::Pretrained {
        return Ok(model.storage);
    }
    let (_, numbers) = dtype::stored_kind_and_count(&model.path)?;
    let copies = numbers * model.dtype.kind().elt_size_in_bytes() as u64;
    Ok(if 2 * copies < machine::SystemMemory::read().free { Storage::Copy } else { Storage::Auto })
}

/// Returns the number format of the result of full fine-tuning: that of the base's files, or for a model with random
/// initial weights that of the arithmetic.
pub fn result_kind(plan: &Plan, model: &Model) -> Result<Kind> {
    match plan.recipe.model.init {
        ModelInit::Pretrained => dtype::stored_kind(&plan.recipe.model.path),
        ModelInit::Random => Ok(model.kind()),
    }
}

/// Makes the model that the recipe cuts out of a larger one (`model.cut`), unless it exists.
pub fn ensure_cut_model(plan: &Plan) -> Result<()> {
    let recipe = &plan.recipe;
    let Some(section) = &recipe.model.cut else { return Ok(()) };
    let layers = match (&section.layers, section.choose) {
        (None, _) => KeptLayers::All,
        (Some(CutLayers::List(list)), _) => KeptLayers::List(list.clone()),
        (Some(CutLayers::Count(n)), CutChoice::Even) => KeptLayers::Even(*n),
        (Some(CutLayers::Count(n)), CutChoice::Angular) => KeptLayers::Angular(*n),
    };
    let cut = StudentCut { layers, mlp: section.mlp, heads: section.heads };
    let texts = || -> Result<Vec<Vec<u32>>> {
        let tokenizer = ChatTokenizer::load_with(&section.from, &recipe.data.rendering()?)?;
        let options = EncodeOptions {
            supervise: Supervise::All,
            max_len: recipe.batch.max_len,
            on_overflow: Overflow::Truncate,
            overflow_tolerance: 0.0,
        };
        let sources =
            recipe.data.train.0.iter().map(|s| SourceSpec { rows: Some(section.rows), weight: None, ..s.clone() });
        let rows = Dataset::<Example>::open(&SourceList(sources.collect()), &tokenizer, &options, &TokenCache::off())?;
        rows.iter().take(section.rows).map(|e| Ok(e?.ids)).collect()
    };
    let device = models::device(&recipe.model.device)?;
    if let Some(made) = cut_student_if_missing(&section.from, &cut, texts, &recipe.model.path, device)? {
        report::info(format!(
            "{}: {} of {} layers ({} of {} parameters) cut out of {}",
            recipe.model.path.display(),
            made.kept_layers.len(),
            made.layers_before,
            report::count(made.parameters),
            report::count(made.parameters_before),
            section.from.display(),
        ));
    }
    Ok(())
}

/// Loads the base's tokenizer with the recipe's chat template, and warns about tokens without an embedding and about a
/// stop token that generation_config.json lacks.
pub fn tokenizer(plan: &Plan) -> Result<Rc<ChatTokenizer>> {
    let recipe = &plan.recipe;
    let mut tokenizer = ChatTokenizer::load_with(&recipe.model.path, &recipe.data.rendering()?)?;
    tokenizer.fix_date();
    let tokenizer = Rc::new(match recipe.model.init {
        ModelInit::Pretrained => tokenizer,
        ModelInit::Random => tokenizer.without_embedding_limit(),
    });
    let unknown = tokenizer.without_embedding();
    if let [(id, token), ..] = &unknown[..] {
        report::warn_once(format!(
            "{}: the tokenizer has {} more than the model has embeddings for: `{token}` (id {id}){}; a row that uses one is \
             refused",
            recipe.model.path.display(),
            match unknown.len() {
                1 => "a token".to_string(),
                n => format!("{n} tokens"),
            },
            if unknown.len() > 1 { ", …" } else { "" }
        ));
    }
    if let Some(id) = tokenizer.undeclared_stop().filter(|_| recipe.method.generates_text()) {
        report::warn(format!(
            "{}: the chat template ends turns with `{}`, but generation_config.json does not list it as a stop \
             token, so other programs would continue past it. The result's own file will list it (eos_token_id {id})",
            recipe.model.path.display(),
            tokenizer.token(id).unwrap_or_default(),
        ));
    }
    Ok(tokenizer)
}

/// Writes the chat template and the stop token that the model was trained with into the result's folder, if those in
/// the base's files differ.
pub fn write_chat_format(plan: &Plan, folder: &Path) -> Result<()> {
    let recipe = &plan.recipe;
    let tokenizer = ChatTokenizer::load(&recipe.model.path, recipe.data.template.as_deref())?;
    let taught: Vec<u32> = tokenizer.undeclared_stop().filter(|_| recipe.method.generates_text()).into_iter().collect();
    let template = tokenizer.template().map(|t| t.source());
    if let Some(text) = template.filter(|_| recipe.data.template.is_some()) {
        template::write_template(folder, text)?;
    }
    stop_tokens::write_stop_tokens(folder, &recipe.model.path, &taught, template.as_slice())
}

/// Collects the settings that a method needs to open the recipe's rows.
pub fn data_context<'a>(plan: &'a Plan, tokenizer: Rc<ChatTokenizer>, cache: &'a TokenCache) -> DataContext<'a> {
    let recipe = &plan.recipe;
    DataContext {
        tokenizer,
        model: &recipe.model.path,
        train: &recipe.data.train,
        valid: recipe.data.valid.as_ref(),
        max_len: recipe.batch.max_len,
        on_overflow: recipe.data.on_overflow,
        overflow_tolerance: recipe.data.overflow_tolerance,
        cache,
        batch: BatchPlan {
            tokens: recipe.batch.tokens,
            accumulate: recipe.batch.accumulate,
            examples: recipe.batch.examples,
        },
        shuffle: recipe.data.shuffle,
        seed: recipe.run.seed,
        adapter: recipe.adapter.as_ref(),
    }
}

impl Prepared {
    /// Builds the run's model on the CPU with its weights left in their files. It has all shapes, so that needs can be
    /// predicted before the run allocates memory.
    pub fn sketch(&self) -> Result<Model> {
        self.load(Device::Cpu, Storage::File, false)
    }

    /// Loads the base with a new adapter; without an adapter, all weights become trainable float32 masters.
    pub fn load_model(&self) -> Result<Model> {
        self.load(self.device, self.storage, true)
    }

    fn load(&self, device: Device, storage: Storage, train_base: bool) -> Result<Model> {
        let recipe = &self.plan.recipe;
        let _loading = report::spinner(&format!("loading {}", recipe.model.path.display()));
        // Initial adapter weights come from libtorch's generator.
        tch::manual_seed(recipe.run.seed as i64);
        let plan = recipe.adapter.as_ref().map(AdapterSpec::plan).transpose()?;
        let ModelParts { heads, extra_adapters: beside, .. } = recipe.method.parts(recipe.adapter.as_ref())?;
        let files = beside.iter().map(|b| b.folder.as_deref().map(file::read).transpose());
        let files = files.collect::<Result<Vec<_>>>()?;
        let others = beside.iter().zip(&files).map(|(b, read)| match (&b.folder, read) {
            (Some(folder), Some(read)) => {
                LoraPlan::of_file(&b.spec, &folder.join(file::CONFIG)).map(|plan| plan.with_base_weights(&read.tensors))
            }
            _ => LoraPlan::new(&b.spec),
        });
        let others = others.collect::<Result<Vec<_>>>()?;
        let mut adapters: Vec<(String, &dyn AdapterPlan)> =
            plan.iter().map(|p| (TRAINED_ADAPTER.to_string(), &**p)).collect();
        adapters.extend(beside.iter().zip(&others).map(|(b, p)| (b.name.to_string(), p as &dyn AdapterPlan)));
        let load = LoadOptions {
            device,
            kind: recipe.model.dtype.kind(),
            storage,
            train_base: train_base && plan.is_none(),
            adapters,
            heads,
        };
        let model = match recipe.model.init {
            ModelInit::Pretrained => Model::load(&recipe.model.path, load)?,
            ModelInit::Random => Model::initialise(self.fresh_config()?, &recipe.model.path, recipe.run.seed, load)?,
        };
        for (b, file) in beside.iter().zip(&files) {
            if let (Some(file), Some(folder), Some(id)) = (file, &b.folder, model.adapter_id(b.name)) {
                file::load_into(model.params().adapter(id), &file.tensors, folder)?;
            }
            if !b.trained {
                model.freeze_adapter(b.name);
            }
        }
        if let Some(AdapterSpec::Lora(spec)) = &recipe.adapter
            && let (Some(folder), Some(id)) = (&spec.from, model.adapter_id(TRAINED_ADAPTER))
        {
            file::init_from_adapter(model.params().adapter(id), spec, folder)?;
        }
        if recipe.optim.master == Master::StochasticRounding {
            model.use_bf16_masters();
        }
        let config = model.config();
        let longest = recipe.batch.max_len as i64;
        if let Some(limit) = config.max_position_embeddings.filter(|limit| longest > *limit) {
            report::warn_once(format!("batch.max_len is {longest}, but the model was made for {limit} positions"));
        }
        Ok(model)
    }

    /// Reads the shape of a model with random initial weights from the recipe or from a config.json.
    fn fresh_config(&self) -> Result<Config> {
        let none = ModelConfig::Keys(Default::default());
        let (given, file) = match self.plan.recipe.model.config.as_ref().unwrap_or(&none) {
            ModelConfig::File(file) => (fsutil::read_json(file)?, file.clone()),
            ModelConfig::Keys(keys) => (keys.clone(), PathBuf::from("model.config")),
        };
        let t = &self.tokenizer;
        let vocabulary = VocabularyInfo { size: t.vocab_size() as i64, bos: t.bos(), eos: t.eos(), pad: t.pad() };
        new_config::config(&given, vocabulary, &file)
    }

    /// Returns the recipe and the hashes of its data, as a checkpoint stores them. A run resumes only from a checkpoint
    /// with equal values. Settings that have no effect on the weights (such as `run.out`) are left out, and data and
    /// adapters are identified by their content, not by their path.
    pub fn origin(&self) -> Result<Value> {
        let mut recipe = serde_json::to_value(&self.plan.recipe).map_err(|e| Error::bug(e.to_string()))?;
        if let Some(run) = recipe["run"].as_object_mut() {
            ["out", "keep", "save_every"].iter().for_each(|k| drop(run.remove(*k)));
        }
        // How frozen weights are held has no effect on the numbers.
        recipe["model"].as_object_mut().map(|model| model.remove("storage"));
        // Where token ids are cached has no effect on them.
        recipe["data"].as_object_mut().map(|data| data.remove("cache"));
        // An adapter to continue from is identified by its content, too.
        if let Some(AdapterSpec::Lora(LoraSpec { from: Some(folder), .. })) = &self.plan.recipe.adapter {
            recipe["adapter"]["lora"]["from"] = json!(fsutil::sha256(&folder.join(file::TENSORS))?);
        }
        let mut data = serde_json::Map::new();
        for (name, rows) in [("train", Some(self.rows.train())), ("valid", self.rows.valid())] {
            let path = take_paths(&mut recipe["data"][name]);
            if let Some(SplitStatistics { summary, .. }) = rows {
                let file = json!({ "path": path, "rows": summary.rows, "sha256": summary.sha256 });
                data.insert(name.into(), file);
            }
        }
        Ok(json!({ "recipe": recipe, "data": data }))
    }

    /// Reports model, trained parameters, number format and number of steps.
    pub fn announce(&self, model: &Model) {
        let count = |p: &Param| p.tensor.numel() as u64;
        let trained: u64 = model.params().trainable().map(count).sum();
        let all: u64 = model.params().base().map(count).sum();
        report::info(format!(
            "{}: {} parameters, {} trained ({:.2} %) on {:?}",
            match self.plan.recipe.model.init {
                ModelInit::Pretrained => model.folder().display().to_string(),
                ModelInit::Random => format!("{} with random weights", model.config().model_type),
            },
            report::count(all),
            report::count(trained),
            100.0 * trained as f64 / all as f64,
            self.device,
        ));
        let (stored, bytes) = model.storage_summary();
        let held = match self.plan.recipe.adapter {
            Some(_) if stored != model.kind() => {
                format!("; frozen weights stay in {} ({})", dtype::kind_name(stored), report::bytes(bytes))
            }
            _ => String::new(),
        };
        report::info(format!("arithmetic in {} ({}){held}", dtype::kind_name(model.kind()), self.why));
        let dropouts = model.config().dropouts();
        if !dropouts.is_empty() {
            report::info(format!("config.json asks for dropout ({}); ft trains without it", dropouts.join(", ")));
        }
        let run = &self.plan.recipe.run;
        report::info(format!("{} steps, seed {}, out {}", self.total_steps, run.seed, run.out.display()));
    }

    /// Creates the method over the prepared rows. Also returns the tokenizer, which samples need.
    pub fn into_method(self, model: &Model) -> Result<(Box<dyn Method>, Rc<ChatTokenizer>)> {
        Ok((self.rows.method(model)?, self.tokenizer))
    }
}

/// Removes and returns the path of a source, or the paths of a list of sources.
fn take_paths(sources: &mut Value) -> Value {
    match sources {
        Value::Array(list) => list.iter_mut().map(take_paths).collect(),
        Value::Object(source) => source.remove("path").unwrap_or_default(),
        _ => Value::Null,
    }
}
