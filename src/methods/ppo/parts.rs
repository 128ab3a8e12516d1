//! Chooses the parts of the model that PPO needs, and checks that the values of its recipe section fit together.

use super::kl::KlEstimator;
use super::spec::{KlPlace, PpoSpec, ValueSpec};
use super::value::VALUE;
use crate::adapters::{AdapterSpec, LoraSpec, Targets};
use crate::error::{Error, Result};
use crate::methods::parts::{ExtraAdapter, ModelParts};
use crate::methods::rollout::reward_models;
use crate::models::Heads;
use crate::report;

/// The recipe's section of this method, for messages.
pub const KEYS: &str = "method.ppo";

/// Returns the parts of the model: a scalar head for the value function, and the adapters besides the policy's. An
/// error if the value function is to be an adapter on a base that is trained itself.
pub fn parts(spec: &PpoSpec, adapter: Option<&AdapterSpec>) -> Result<ModelParts> {
    let mut parts = reward_models::parts(&spec.rewards, adapter, true)?;
    (parts.heads, parts.sampled) = (Heads::Both, spec.sampling.sampled(spec.answers));
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
        (ValueSpec::Head(_), Some(_)) => {
            AdapterSpec::Lora(LoraSpec { targets: Targets::Names(Vec::new()), ..LoraSpec::default() })
        }
        (ValueSpec::Adapter(lora), Some(_)) => AdapterSpec::Lora((**lora).clone()),
    };
    value.add_scalar_head();
    parts.extra_adapters.push(ExtraAdapter { name: VALUE, spec: value, folder: None, trained: true });
    Ok(parts)
}

/// Returns an error if values of the section contradict each other.
pub fn check(spec: &PpoSpec) -> Result<()> {
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
