//! Compares predicted with free memory before a run: refuses a run that does not fit, and chooses settings for `--fit`.
//!
//! `--fit` changes only what leaves the mathematics of a step as it is: `run.replay`, and `batch.tokens` if the length
//! of a step is given in examples.

use super::memory::{self, ResourceEstimate, free_memory};
use super::prepare::{self, Prepared};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::recipe::plan::Plan;
use crate::recipe::sections::ReplayChoice;
use crate::report;

/// Share of the free memory that `--fit` plans with. Predictions are accurate to 15 %.
const SHARE: f64 = 0.87;

/// Predicts the bytes that the prepared run needs under `plan`, which may differ in row length and replay. `model` is
/// the sketch of the run's model.
fn needs(prepared: &Prepared, model: &Model, plan: &Plan) -> ResourceEstimate {
    let row = prepared.rows.longest_row().min(plan.recipe.batch.tokens);
    let supervised = (row as f64 * prepared.rows.train().summary.supervised_share()).ceil() as u64;
    memory::predict(prepared, plan, model, row as u64, supervised)
}

/// Fails if the run is predicted to need more memory than is free. Called before any of it is allocated.
pub fn refuse_if_too_large(prepared: &Prepared) -> Result<()> {
    let needs = needs(prepared, &prepared.sketch()?, &prepared.plan);
    match free_memory(prepared.device) {
        Some(free) if free < needs.memory => Err(Error::user(format!(
            "about {} of memory are needed ({} weights, {} training, {} activations), but only {} are free",
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

/// Returns the plan with the longest packed rows and the fewest replayed layers that fits into `memory` bytes (`None`:
/// into the free memory), and a sentence that says what was chosen. Fails if nothing fits.
pub fn fit(plan: &Plan, memory: Option<u64>) -> Result<(Plan, String)> {
    let prepared = prepare::prepare(plan)?;
    let model = prepared.sketch()?;
    let free = memory.or_else(|| free_memory(prepared.device)).ok_or_else(|| {
        Error::user("--fit: the system does not report how much memory is free").hint("give it: --fit=8GB")
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
    // Shorter rows cost less time than replay, until matrix products become too small: rows are halved first, then
    // layers are replayed.
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
        "--fit: at least {} of memory are needed; {} may be used ({} are free, a margin is kept)",
        report::bytes(least),
        report::bytes(room),
        report::bytes(free)
    ))
    .hint("train an adapter instead of all weights, choose optim.kind: adamw8 or adafactor, or lower batch.max_len"))
}

/// Parses a size such as `8GB`, `512MB` or `123` (bytes). Units are powers of 1000.
pub fn parse_size(text: &str) -> Result<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let unit = text[split..].trim().to_ascii_lowercase();
    let unit = match unit.strip_suffix('b').unwrap_or(&unit) {
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
    Err(Error::user(format!("`{text}` is not a size")).hint("write it as 8GB or 512MB"))
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(
            (parse_size("8GB").unwrap(), parse_size("0.5 g").unwrap(), parse_size("123").unwrap()),
            (8_000_000_000, 500_000_000, 123)
        );
        assert!(["", "GB", "8TBB", "8GBB", "8bb", "-1", "nan"].iter().all(|t| parse_size(t).is_err()));
    }
}
