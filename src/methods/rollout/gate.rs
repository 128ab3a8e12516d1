//! Which reward models may judge: those whose report card keeps its limits; and where they stand in the model.

use crate::adapters::{AdapterSpec, file};
use crate::error::{Error, Result};
use crate::methods::reference::{self, ReferenceChoice};
use crate::methods::reward::card::{self, Card, Limits};
use crate::methods::{Beside, Parts};
use crate::models::Heads;
use crate::report;
use crate::rewards::spec::RewardModelSpec;
use crate::rewards::{RewardSpec, model::adapter_name};

/// Refuses a reward model without a report card or below its limits, unless it is forced; `key` is the list's place in
/// the recipe.
pub fn gate(rewards: &[RewardSpec], key: &str) -> Result<()> {
    for (i, spec) in rewards.iter().enumerate() {
        if let Some(model) = &spec.model {
            admit(model, &format!("{key}.{i}.model"))?;
        }
    }
    Ok(())
}

fn admit(spec: &RewardModelSpec, key: &str) -> Result<()> {
    let path = spec.path.display();
    let wrong = match Card::read(&spec.path)? {
        None => vec![format!("there is no {}: nothing is known of how well it judges", card::FILE)],
        Some(card) => card.problems(&Limits::default()),
    };
    if wrong.is_empty() {
        return Ok(());
    }
    if spec.force {
        wrong.iter().for_each(|w| report::warn(format!("{path}: {w} ({key}.force)")));
        return Ok(());
    }
    Err(Error::user(format!("{path}: not a reward to learn from:\n  {}", wrong.join("\n  ")))
        .hint("what is learnt from a reward model is no better than it is: look at its report.html, and train it on more pairs")
        .hint(format!("to use it all the same, set `force: true` in {key}")))
}

/// What a model is made of whose answers these rewards judge, beside its reference where that is asked: reward models that
/// are adapters over its base stand beside the trained one. A base that is trained whole bears no adapter; they get a base
/// of their own then.
pub fn parts(rewards: &[RewardSpec], adapter: Option<&AdapterSpec>, referred: bool) -> Result<Parts> {
    let mut parts = match referred {
        true => reference::parts(adapter, ReferenceChoice::Live)?,
        false => Parts::default(),
    };
    for (place, spec) in rewards.iter().filter_map(|r| r.model.as_ref()).enumerate() {
        if adapter.is_some() && spec.beside() {
            let file = file::read(&spec.path)?;
            if !file.spec.scores() {
                return Err(Error::user(format!("{}: an adapter without a scalar head", spec.path.display()))
                    .hint("a reward model's adapter is trained with method: reward"));
            }
            let name = adapter_name(place)?;
            parts.heads = Heads::Both;
            parts.beside.push(Beside { name, spec: file.spec, folder: Some(spec.path.clone()), trained: false });
        }
    }
    Ok(parts)
}
