//! Decides which reward models are accepted (their report card must keep its limits), and where they are in the model.

use crate::adapters::{AdapterSpec, file};
use crate::error::{Error, Result};
use crate::methods::parts::{ExtraAdapter, ModelParts};
use crate::methods::reference::{self, ReferenceChoice};
use crate::methods::reward::report_card::{self, ReportCard, ReportCardLimits};
use crate::models::{Heads, dtype};
use crate::report;
use crate::rewards::model::adapter_name;
use crate::rewards::spec::{RewardModelSpec, RewardSourceSpec};

/// Returns an error for a reward model without a report card or with one beyond its limits, unless the recipe forces
/// its use. `key` is the place of `rewards` in the recipe.
pub fn check_reward_models(rewards: &[RewardSourceSpec], key: &str) -> Result<()> {
    for (i, spec) in rewards.iter().enumerate() {
        if let Some(model) = &spec.model {
            admit(model, &format!("{key}.{i}.model"))?;
        }
    }
    Ok(())
}

fn admit(spec: &RewardModelSpec, key: &str) -> Result<()> {
    let path = spec.path.display();
    let wrong = match ReportCard::read(&spec.path)? {
        None => vec![format!("there is no {}, so it is unknown how well this model judges", report_card::FILE)],
        Some(card) => card.problems(&ReportCardLimits::default()),
    };
    if wrong.is_empty() {
        return Ok(());
    }
    if spec.force {
        wrong.iter().for_each(|w| report::warn(format!("{path}: {w} ({key}.force)")));
        return Ok(());
    }
    Err(Error::user(format!("{path}: not fit to train a policy with:\n  {}", wrong.join("\n  ")))
        .hint(
            "a policy cannot become better than its reward model: look at its report.html, and train it on more pairs",
        )
        .hint(format!("to use it anyway, set `force: true` in {key}")))
}

/// Returns the parts of a model whose answers these rewards judge, including its reference if `referred`. Reward
/// models that are adapters on the same base become further adapters next to the trained one. A base that is trained
/// as a whole carries no adapter; the reward models then load a base of their own.
pub fn parts(rewards: &[RewardSourceSpec], adapter: Option<&AdapterSpec>, referred: bool) -> Result<ModelParts> {
    let mut parts = match referred {
        true => reference::parts(adapter, ReferenceChoice::Live)?,
        false => ModelParts::default(),
    };
    for (place, spec) in rewards.iter().filter_map(|r| r.model.as_ref()).enumerate() {
        if adapter.is_some() && spec.shares_base() {
            let file = file::read(&spec.path)?;
            if !file.spec.has_scalar_head() {
                return Err(Error::user(format!("{}: this adapter has no scalar head", spec.path.display()))
                    .hint("an adapter for a reward model is trained with method: reward"));
            }
            let name = adapter_name(place)?;
            parts.heads = Heads::Both;
            parts.extra_adapters.push(ExtraAdapter {
                name,
                spec: file.spec,
                folder: Some(spec.path.clone()),
                trained: false,
            });
            continue;
        }
        // Any other reward model is loaded with a base of its own.
        let base = if spec.is_adapter() { spec.base.as_deref() } else { Some(spec.path.as_path()) };
        match base {
            Some(folder) => parts.other_models.push((dtype::stored_kind_and_count(folder)?.1, None)),
            None => parts.base_copies += 1,
        }
    }
    Ok(parts)
}
