//! Everything before the first step: data read and tokenised, the steps counted, the model loaded.

use crate::adapters::AdapterSpec;
use crate::data::{self, BatchPlan, ChatTokenizer, Dataset, EncodeOptions, Loader};
use crate::error::{Error, Result};
use crate::methods::{MethodSpec, sft::Sft};
use crate::models::{self, Load, Model};
use crate::nn::{Attach, Param};
use crate::recipe::{Dtype, Master, Plan};
use crate::report;
use serde_json::{Value, json};
use tch::{Device, Kind};

/// The name of the adapter that a recipe trains.
pub const ADAPTER: &str = "default";

/// A run that is ready to begin.
pub struct Prepared {
    pub plan: Plan,
    pub tokenizer: ChatTokenizer,
    pub train: Dataset,
    pub valid: Option<Dataset>,
    pub loader: Loader,
    /// Optimiser steps of the run.
    pub total: u64,
    pub device: Device,
}

/// Reads and tokenises the data and counts the steps.
pub fn prepare(plan: &Plan) -> Result<Prepared> {
    let recipe = &plan.recipe;
    if let Some(threads) = recipe.run.threads {
        tch::set_num_threads(threads as i32);
    }
    let device = models::device(&recipe.model.device)?;
    let tokenizer = ChatTokenizer::load(&recipe.model.path, recipe.data.template.as_deref())?;
    if let Some(id) = tokenizer.unwritten_stop() {
        report::warn(format!(
            "{}: the chat template ends turns with `{}`, but generation_config.json does not stop there; ft does, other \
             programs will talk on until {id} is added to eos_token_id",
            recipe.model.path.display(),
            tokenizer.token(id).unwrap_or_default(),
        ));
    }
    let MethodSpec::Sft(sft) = &recipe.method;
    let options = EncodeOptions {
        supervise: sft.supervise,
        max_len: recipe.batch.max_len,
        on_overflow: recipe.data.on_overflow,
        overflow_tolerance: recipe.data.overflow_tolerance,
    };
    let load = |s: &data::SourceSpec| -> Result<Dataset> {
        let rows = data::load(&s.path, s.format, s.rows, &tokenizer, &options)?;
        report::info(rows.summary.line());
        rows.summary.warnings().iter().for_each(report::warn);
        Ok(rows)
    };
    let (train, valid) = (load(&recipe.data.train)?, recipe.data.valid.as_ref().map(load).transpose()?);
    let lengths = train.examples.iter().map(|e| e.ids.len()).collect();
    let batch =
        BatchPlan { tokens: recipe.batch.tokens, accumulate: recipe.batch.accumulate, examples: recipe.batch.examples };
    let loader = Loader::new(lengths, batch, recipe.data.shuffle, recipe.run.seed)?;
    let total = recipe.run.steps.unwrap_or_else(|| loader.steps_for(recipe.run.epochs));
    if total == 0 {
        return Err(Error::user("run.epochs: no step to do").hint("set run.epochs above 0 or run.steps"));
    }
    Ok(Prepared { plan: plan.clone(), tokenizer, train, valid, loader, total, device })
}

/// The dtype of frozen weights and of the arithmetic.
pub fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
    }
}

impl Prepared {
    /// Loads the base with a fresh adapter. Without one, `train_base` makes float32 masters of all weights.
    pub fn load_model(&self, train_base: bool) -> Result<Model> {
        let recipe = &self.plan.recipe;
        // Adapters draw their first weights from libtorch's generator.
        tch::manual_seed(recipe.run.seed as i64);
        let plan = recipe.adapter.as_ref().map(AdapterSpec::plan).transpose()?;
        let adapters = plan.iter().map(|p| (ADAPTER.to_string(), &**p as &dyn Attach)).collect();
        let load = Load {
            device: self.device,
            kind: kind(recipe.model.dtype),
            train_base: train_base && plan.is_none(),
            adapters,
        };
        let model = Model::load(&recipe.model.path, load)?;
        if recipe.optim.master == Master::StochasticRounding {
            model.narrow_masters();
        }
        let config = model.config();
        if (self.tokenizer.vocab_size() as i64) > config.vocab_size {
            return Err(Error::user(format!(
                "{}: the tokenizer has {} ids, the model {} embeddings",
                recipe.model.path.display(),
                self.tokenizer.vocab_size(),
                config.vocab_size
            ))
            .hint("tokenizer files and weights are of two different models"));
        }
        let longest = recipe.batch.max_len as i64;
        if let Some(limit) = config.max_position_embeddings.filter(|limit| longest > *limit) {
            report::warn(format!("batch.max_len is {longest}, the model was made for {limit} positions"));
        }
        Ok(model)
    }

    /// What the run is made of; a checkpoint made of something else is not resumed. Where the result goes and how
    /// much is kept does not change it, and data is known by its content, not by its path.
    pub fn origin(&self) -> Result<Value> {
        let mut recipe = serde_json::to_value(&self.plan.recipe).map_err(|e| Error::bug(e.to_string()))?;
        if let Some(run) = recipe["run"].as_object_mut() {
            ["out", "keep", "save_every"].iter().for_each(|k| drop(run.remove(*k)));
        }
        let mut data = serde_json::Map::new();
        for (name, rows) in [("train", Some(&self.train)), ("valid", self.valid.as_ref())] {
            let path = recipe["data"][name].as_object_mut().and_then(|source| source.remove("path"));
            if let Some(Dataset { summary, .. }) = rows {
                let file = json!({ "path": path, "rows": summary.rows, "sha256": summary.sha256 });
                data.insert(name.into(), file);
            }
        }
        Ok(json!({ "recipe": recipe, "data": data }))
    }

    /// Tells what is about to happen.
    pub fn announce(&self, model: &Model) {
        let count = |p: &Param| p.tensor.numel() as u64;
        let trained: u64 = model.params().trainable().map(count).sum();
        let all: u64 = model.params().base().map(count).sum();
        report::info(format!(
            "{}: {} parameters, {} trained ({:.2} %), {:?} on {:?}",
            model.folder().display(),
            report::count(all),
            report::count(trained),
            100.0 * trained as f64 / all as f64,
            self.plan.recipe.model.dtype,
            self.device,
        ));
        let run = &self.plan.recipe.run;
        report::info(format!("{} steps, seed {}, out {}", self.total, run.seed, run.out.display()));
    }

    /// The method over the prepared rows, and the tokenizer for samples.
    pub fn into_method(self) -> (Sft, ChatTokenizer) {
        let MethodSpec::Sft(_) = &self.plan.recipe.method;
        (Sft::new(self.train, self.valid, self.loader, self.plan.recipe.batch.tokens), self.tokenizer)
    }
}
