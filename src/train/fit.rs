//! Memory first: a run that will not fit is refused before it starts, and `--fit` makes one that does.
//!
//! What `fit` changes never changes the mathematics of a step: the tokens of one packed row where a step is so many
//! examples, and how many layers are replayed.

use super::check::free_memory;
use super::memory::{self, Needs};
use super::{Prepared, prepare};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::recipe::{Plan, ReplayChoice};
use crate::report;

/// The share of free memory that a chosen plan may need: predictions are within 15 %.
const SHARE: f64 = 0.87;

/// What the run needs under `plan`, which may have another row length or replay; `model` is its sketch.
fn needs(prepared: &Prepared, model: &Model, plan: &Plan) -> Needs {
    let row = prepared.rows.longest_row().min(plan.recipe.batch.tokens);
    let supervised = (row as f64 * prepared.rows.train().summary.supervised_share()).ceil() as u64;
    memory::predict(prepared, plan, model, row as u64, supervised)
}

/// Refuses a run that needs more memory than there is, before any of it is taken.
pub(super) fn refuse(prepared: &Prepared) -> Result<()> {
    let needs = needs(prepared, &prepared.sketch()?, &prepared.plan);
    match free_memory(prepared.device) {
        Some(free) if free < needs.memory => Err(Error::user(format!(
            "about {} of memory are needed ({} weights, {} training, {} activations), {} are free",
            report::bytes(needs.memory),
            report::bytes(needs.weights),
            report::bytes(needs.training),
            report::bytes(needs.activations),
            report::bytes(free)
        ))
        .hint("let --fit choose batch.tokens and run.replay; or lower batch.tokens, set run.replay: all, or model.storage: file")),
        _ => Ok(()),
    }
}

/// The plan with the longest packed rows and the fewest replayed layers that fit into `memory` bytes, or into what is
/// free; and what was chosen, in words.
pub fn fit(plan: &Plan, memory: Option<u64>) -> Result<(Plan, String)> {
    let prepared = prepare::prepare(plan)?;
    let model = prepared.sketch()?;
    let free = memory.or_else(|| free_memory(prepared.device)).ok_or_else(|| {
        Error::user("--fit: the system does not tell how much memory is free").hint("give it: --fit=8GB")
    })?;
    let room = (free as f64 * SHARE) as u64;
    let with = |tokens: usize, replay: ReplayChoice| {
        let change = |plan: &Plan| {
            let mut changed = plan.clone();
            (changed.recipe.batch.tokens, changed.recipe.run.replay) = (tokens, replay);
            changed
        };
        (change(plan), needs(&prepared, &model, &change(&prepared.plan)))
    };
    // Shorter rows cost less than replay, down to where products become small.
    let (asked, longest) = (plan.recipe.batch.tokens, plan.recipe.batch.max_len);
    let mut tokens = vec![asked];
    if plan.recipe.batch.examples.is_some() {
        tokens.extend(std::iter::successors(Some(asked / 2), |n| Some(n / 2)).take_while(|n| *n >= longest.max(1024)));
    }
    let shortest = *tokens.last().unwrap_or(&asked);
    let depth = model.depth();
    let plain = tokens.iter().map(|&n| (n, ReplayChoice::None));
    let replayed = (1..depth).map(|n| (shortest, ReplayChoice::Layers(n))).chain([(shortest, ReplayChoice::All)]);
    let mut least = u64::MAX;
    for (tokens, replay) in plain.chain(replayed) {
        let (changed, needs) = with(tokens, replay);
        least = least.min(needs.memory);
        if needs.memory <= room {
            let layers = match replay {
                ReplayChoice::None => "no layer replayed".to_string(),
                ReplayChoice::Layers(n) => format!("{n} of {depth} layers replayed"),
                ReplayChoice::All => "every layer replayed".to_string(),
            };
            let said = format!(
                "--fit: rows of at most {tokens} tokens, {layers}: about {} of {} free",
                report::bytes(needs.memory),
                report::bytes(free)
            );
            return Ok((changed, said));
        }
    }
    Err(Error::user(format!(
        "--fit: at least {} are needed, of {} free {} may be planned with",
        report::bytes(least),
        report::bytes(free),
        report::bytes(room)
    ))
    .hint("train an adapter instead of all weights, choose optim.kind: adamw8 or adafactor, or lower batch.max_len"))
}

/// A size as a person writes it: `8GB`, `512MB`, or bytes.
pub fn size(text: &str) -> Result<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let unit = match text[split..].trim().to_ascii_lowercase().trim_end_matches('b') {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        _ => f64::NAN,
    };
    let bytes = text[..split].parse::<f64>().unwrap_or(f64::NAN) * unit;
    if (1.0..1e18).contains(&bytes) {
        return Ok(bytes as u64);
    }
    Err(Error::user(format!("`{text}` is no size")).hint("such as 8GB or 512MB"))
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(
            (size("8GB").unwrap(), size("0.5 g").unwrap(), size("123").unwrap()),
            (8_000_000_000, 500_000_000, 123)
        );
        assert!(["", "GB", "8TBB", "-1", "nan"].iter().all(|t| size(t).is_err()));
    }
}
