//! What is read before the model is loaded: prompts and rewards; and the parts of the model.

use super::spec::{KlPlace, PpoSpec, ValueSpec};
use super::{KEYS, Ppo, VALUE, kl::KlEstimator};
use crate::adapters::spec::Targets;
use crate::adapters::{AdapterSpec, LoraSpec};
use crate::data::dataset::PromptSet;
use crate::error::{Error, Result};
use crate::methods::reference::ReferenceModel;
use crate::methods::rollout::{self, HeldOutPrompts, PromptRows, RolloutSampler};
use crate::methods::{DataContext, ExtraAdapter, MethodRows, ModelParts};
use crate::models::Heads;
use crate::report;
use crate::rewards::RewardSources;
use std::cell::RefCell;
use std::rc::Rc;

/// Returns the parts of the model: a scalar head for the value function, and the adapters besides the policy's. An
/// error if the value function is to be an adapter on a base that is trained itself.
pub fn parts(spec: &PpoSpec, adapter: Option<&AdapterSpec>) -> Result<ModelParts> {
    let mut parts = rollout::parts(&spec.rewards, adapter, true)?;
    parts.heads = Heads::Both;
    let mut value = match (&spec.value, adapter) {
        (ValueSpec::Head(_), None) => return Ok(parts),
        (ValueSpec::Adapter(_), None) => {
            return Err(Error::user(format!(
                "{KEYS}.value.adapter: an adapter needs a base that is frozen, but without `adapter:` the base is \
                 trained"
            ))
            .hint("train an adapter (adapter: { lora: {} }), or use value: { head: {} }"));
        }
        // Only the head is needed: with an empty list of targets, no layer gets an adapter.
        (ValueSpec::Head(_), Some(_)) => LoraSpec { targets: Targets::Names(Vec::new()), ..LoraSpec::default() },
        (ValueSpec::Adapter(lora), Some(_)) => (**lora).clone(),
    };
    if !value.modules_to_save.iter().any(|m| m == "score") {
        value.modules_to_save.push("score".into());
    }
    parts.extra_adapters.push(ExtraAdapter { name: VALUE, spec: value, folder: None, trained: true });
    Ok(parts)
}

/// Reads the prompts and opens the sources of rewards.
pub fn rows(spec: &PpoSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    check(spec)?;
    rollout::check_reward_models(&spec.rewards, &format!("{KEYS}.rewards"))?;
    let rewards = Rc::new(RefCell::new(RewardSources::open(&spec.rewards, &format!("{KEYS}.rewards"))?));
    let (own, judge) = (spec.clone(), rewards.clone());
    let rows = PromptRows::open(ground, &spec.sampling, spec.answers, spec.steps(), move |model, prompted| {
        let over = |prompts: &Rc<PromptSet>| {
            let (tokenizer, sampling) = (prompted.tokenizer.clone(), own.sampling.clone());
            RolloutSampler::new(prompts.clone(), tokenizer, rewards.clone(), sampling, prompted.seed)
        };
        let train = over(&prompted.train)?;
        let held_out = prompted.valid.as_ref().map(over).transpose()?.map(HeldOutPrompts::new);
        Ok(Box::new(Ppo::new(own, train, held_out, ReferenceModel::of(model)?, prompted)))
    })?;
    // Rows that a reward cannot read are found before the model is loaded.
    [Some(&rows.prompted().train), rows.prompted().valid.as_ref()]
        .into_iter()
        .flatten()
        .try_for_each(|prompts| judge.borrow().check(prompts))?;
    Ok(Box::new(rows))
}

/// Returns an error if values of the section contradict each other.
fn check(spec: &PpoSpec) -> Result<()> {
    let drawn = spec.sampling.prompts * spec.answers;
    if spec.mini_batches > drawn {
        return Err(Error::user(format!(
            "{KEYS}.mini_batches: {} mini-batches for {drawn} answers per iteration would leave some empty",
            spec.mini_batches
        ))
        .hint("raise drawn.prompts or lower mini_batches"));
    }
    if spec.kl.target.is_some() && spec.kl.coef == 0.0 {
        return Err(Error::user(format!("{KEYS}.kl.coef: a coefficient of 0 stays 0, so kl.target has no effect"))
            .hint("start with a small value such as 0.05"));
    }
    if spec.kl.place == KlPlace::Reward && spec.kl.estimator == KlEstimator::K2 {
        report::warn(format!("{KEYS}.kl.estimator: k2 is biased; in the reward, use k1 or k3"));
    }
    Ok(())
}
