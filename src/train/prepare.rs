//! Everything before the first step: data read and tokenised, the steps counted, the model loaded.

use super::optim;
use crate::adapters::AdapterSpec;
use crate::data::{self, BatchPlan, ChatTokenizer, Dataset, EncodeOptions, Loader, Summary};
use crate::error::{Error, Result};
use crate::methods::{Method, MethodSpec, sft::Sft};
use crate::models::{self, Load, Model};
use crate::nn::{Attach, Param};
use crate::recipe::{Dtype, Plan};
use crate::report;
use serde_json::json;
use tch::{Device, Kind};

/// The name of the adapter that a recipe trains.
pub const ADAPTER: &str = "default";

/// A run that is ready to begin.
pub struct Prepared {
    pub plan: Plan,
    pub tokenizer: ChatTokenizer,
    pub method: Sft,
    pub train: Summary,
    pub valid: Option<Summary>,
    pub optim: optim::Settings,
    pub device: Device,
    /// Optimiser steps of the run.
    pub total: u64,
    /// What the run is made of; a checkpoint made of something else is not resumed.
    pub origin: serde_json::Value,
}

/// Reads and tokenises the data and counts the steps.
pub fn prepare(plan: &Plan) -> Result<Prepared> {
    let recipe = &plan.recipe;
    if let Some(threads) = recipe.run.threads {
        tch::set_num_threads(threads as i32);
    }
    let device = models::device(&recipe.model.device)?;
    let tokenizer = ChatTokenizer::load(&recipe.model.path, recipe.data.template.as_deref())?;
    let (train, valid) = datasets(plan, &tokenizer)?;
    let (train_summary, valid_summary) = (train.summary.clone(), valid.as_ref().map(|v| v.summary.clone()));
    for summary in [Some(&train_summary), valid_summary.as_ref()].into_iter().flatten() {
        report::info(summary.line());
        summary.warnings().iter().for_each(report::warn);
    }
    let lengths = train.examples.iter().map(|e| e.ids.len()).collect();
    let batch = BatchPlan { tokens: recipe.batch.tokens, accumulate: recipe.batch.accumulate, examples: recipe.batch.examples };
    let loader = Loader::new(lengths, batch, recipe.data.shuffle, recipe.run.seed)?;
    let method = match &recipe.method {
        MethodSpec::Sft(_) => Sft::new(train, valid, loader, recipe.batch.tokens),
    };
    let total = recipe.run.steps.unwrap_or_else(|| method.steps_for(recipe.run.epochs));
    if total == 0 {
        return Err(Error::user("run.epochs: no step to do").hint("set run.epochs above 0 or run.steps"));
    }
    let o = &recipe.optim;
    let optim = optim::Settings {
        betas: (o.betas[0], o.betas[1]),
        eps: o.eps,
        weight_decay: o.weight_decay,
        decay_norms: o.decay_norms,
    };
    let origin = json!({
        "recipe": serde_json::to_value(recipe).map_err(|e| Error::bug(e.to_string()))?,
        "train": train_summary.sha256,
        "valid": valid_summary.as_ref().map(|s| s.sha256.clone()),
    });
    Ok(Prepared {
        plan: plan.clone(),
        tokenizer,
        method,
        train: train_summary,
        valid: valid_summary,
        optim,
        device,
        total,
        origin,
    })
}

/// The training and validation rows as examples.
pub fn datasets(plan: &Plan, tokenizer: &ChatTokenizer) -> Result<(Dataset, Option<Dataset>)> {
    let recipe = &plan.recipe;
    let MethodSpec::Sft(sft) = &recipe.method;
    let options = EncodeOptions {
        supervise: sft.supervise,
        max_len: recipe.batch.max_len,
        on_overflow: recipe.data.on_overflow,
        overflow_tolerance: recipe.data.overflow_tolerance,
    };
    let load = |s: &data::SourceSpec| data::load(&s.path, s.format, s.rows, tokenizer, &options);
    Ok((load(&recipe.data.train)?, recipe.data.valid.as_ref().map(load).transpose()?))
}

/// The dtype of frozen weights and of the arithmetic.
pub fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
    }
}

impl Prepared {
    /// Loads the base with a fresh adapter, or with all its weights trained.
    pub fn load_model(&self) -> Result<Model> {
        let recipe = &self.plan.recipe;
        // Adapters draw their first weights from libtorch's generator.
        tch::manual_seed(recipe.run.seed as i64);
        let plan = recipe.adapter.as_ref().map(AdapterSpec::plan).transpose()?;
        let adapters = plan.iter().map(|p| (ADAPTER.to_string(), &**p as &dyn Attach)).collect();
        let model = Model::load(
            &recipe.model.path,
            Load { device: self.device, kind: kind(recipe.model.dtype), train_base: plan.is_none(), adapters },
        )?;
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
        report::info(format!("{} steps, seed {}, out {}", self.total, self.plan.recipe.run.seed, self.plan.recipe.run.out.display()));
    }
}
