//! Opens the prompts and the sources of rewards of a method that samples its answers.

use super::held_out::HeldOutPrompts;
use super::prompts::{PromptData, PromptRows};
use super::reward_models::check_reward_models;
use super::sampler::RolloutSampler;
use super::spec::SamplingSpec;
use crate::data::dataset::PromptSet;
use crate::error::Result;
use crate::methods::contract::Method;
use crate::methods::rows::{DataContext, MethodRows};
use crate::models::Model;
use crate::rewards::{RewardSourceSpec, RewardSources};
use std::cell::RefCell;
use std::rc::Rc;

/// The samplers of a run: for training prompts, and for validation prompts if there are any.
pub type Samplers = (RolloutSampler, Option<HeldOutPrompts>);

/// How often a method samples and trains.
#[derive(Debug, Clone, Copy)]
pub struct RolloutPace {
    /// Number of answers to each prompt.
    pub answers: usize,
    /// Number of optimiser steps per round of sampling.
    pub steps: u64,
}

/// Reads the prompts and opens the sources of rewards; `key` is the method's key in the recipe. `make` builds the
/// method once the model is loaded. An error if a source cannot read a row: this is found before the model is loaded.
pub fn open(
    ground: &DataContext,
    key: &str,
    rewards: &[RewardSourceSpec],
    sampling: &SamplingSpec,
    pace: RolloutPace,
    make: impl FnOnce(&Model, Samplers, PromptData) -> Result<Box<dyn Method>> + 'static,
) -> Result<Box<dyn MethodRows>> {
    let key = format!("{key}.rewards");
    check_reward_models(rewards, &key)?;
    let rewards = Rc::new(RefCell::new(RewardSources::open(rewards, &key)?));
    let (judge, spec) = (rewards.clone(), sampling.clone());
    let rows = PromptRows::open(ground, sampling, pace.answers, pace.steps, move |model, data| {
        let sampler = |prompts: &Rc<PromptSet>| {
            RolloutSampler::new(prompts.clone(), data.tokenizer.clone(), rewards.clone(), spec.clone(), data.seed)
        };
        let train = sampler(&data.train)?;
        let held_out = data.valid.as_ref().map(sampler).transpose()?.map(HeldOutPrompts::new);
        make(model, (train, held_out), data)
    })?;
    let prompts = [Some(&rows.prompted().train), rows.prompted().valid.as_ref()];
    prompts.into_iter().flatten().try_for_each(|prompts| judge.borrow().check(prompts))?;
    Ok(Box::new(rows))
}
