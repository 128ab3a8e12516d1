//! Compares predicted with free memory before a run: refuses a run that does not fit, and chooses settings for `--fit`.
//!
//! `--fit` changes only what leaves the mathematics of a step as it is: `run.replay`, `run.mlp_tile`, `run.offload`, and
//! `batch.tokens` if the length of a step is given in examples.

use super::memory::{self, ResourceEstimate, SHARE, free_memory};
use super::prepare::{self, Prepared, cuda_graphs};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::recipe::optim::Master;
use crate::recipe::plan::Plan;
use crate::recipe::sections::ReplayChoice;
use crate::report;
use tch::Device;

/// Predicts the bytes that the prepared run needs under `plan`, which may differ in row length and in what is recomputed. `model` is
/// the sketch of the run's model.
fn needs(prepared: &Prepared, model: &Model, plan: &Plan, free: Option<u64>) -> ResourceEstimate {
    let row = prepared.rows.longest_row().min(plan.recipe.batch.tokens);
    let supervised = (row as f64 * prepared.rows.train().summary.supervised_share()).ceil() as u64;
    memory::predict(prepared, plan, model, (row as u64, supervised), free)
}

/// Returns the bytes that a run may take: those that are free, or fewer if it has a limit; `None` if neither is known.
pub fn usable_memory(plan: &Plan, device: Device) -> Option<u64> {
    free_memory(device).into_iter().chain(plan.memory_limit).min()
}

/// Returns what the run is predicted to need. Fails if that is more memory than is free. Called before any of it is allocated.
pub fn refuse_if_too_large(prepared: &Prepared) -> Result<ResourceEstimate> {
    let free = usable_memory(&prepared.plan, prepared.device);
    let needs = needs(prepared, &prepared.sketch()?, &prepared.plan, free);
    match free {
        Some(free) if free < needs.memory => Err(Error::user(format!(
            "about {} of memory are needed ({} weights, {} training, {} activations), but only {} are free",
            report::bytes(needs.memory),
            report::bytes(needs.weights),
            report::bytes(needs.training),
            report::bytes(needs.activations),
            report::bytes(free)
        ))
        .hint(if cuda_graphs::records_passes(&prepared.plan.recipe) {
            "set run.cuda_graphs: false, or lower batch.tokens"
        } else {
            "let --fit choose batch.tokens, run.replay, run.mlp_tile and run.offload; or lower batch.tokens, set run.replay: all, or model.storage: file"
        })),
        _ => Ok(()),
    }?;
    match free_memory(Device::Cpu) {
        Some(free) if free < needs.host => Err(Error::user(format!(
            "run.offload: about {} of the host's memory are needed, but only {} are free",
            report::bytes(needs.host),
            report::bytes(free)
        ))
        .hint("lower batch.tokens, or set run.offload: false")),
        _ => Ok(needs),
    }
}

/// Returns the plan with the longest packed rows and the fewest recomputed operations that fits into `memory` bytes (`None`:
/// into the free memory), and a sentence that says what was chosen. Fails if nothing fits.
pub fn fit(plan: &Plan, memory: Option<u64>) -> Result<(Plan, String)> {
    let prepared = prepare::prepare(plan)?;
    let model = prepared.sketch()?;
    let free = memory.or_else(|| free_memory(prepared.device)).ok_or_else(|| {
        Error::user("--fit: the system does not report how much memory is free").hint("give it: --fit=8GB")
    })?;
    let room = (free as f64 * SHARE) as u64;
    let host = free_memory(Device::Cpu).map_or(u64::MAX, |free| (free as f64 * SHARE) as u64);
    let with = |tokens: usize, recomputed: Recomputed| {
        let change = |plan: &Plan| {
            let mut changed = Plan { memory_limit: memory, ..plan.clone() };
            (changed.recipe.batch.tokens, changed.recipe.run.replay) = (tokens, recomputed.replay);
            (changed.recipe.run.mlp_tile, changed.recipe.run.offload) = (recomputed.mlp_tile, recomputed.offload);
            changed
        };
        (change(plan), needs(&prepared, &model, &change(&prepared.plan), Some(free)))
    };
    // Shorter rows cost less time than what is recomputed, until matrix products become too small: rows are halved first, then
    // activations are recomputed.
    let (asked, longest) = (plan.recipe.batch.tokens, plan.recipe.batch.max_len);
    let mut tokens = vec![asked];
    if plan.recipe.batch.examples.is_some() {
        tokens.extend(std::iter::successors(Some(asked / 2), |n| Some(n / 2)).take_while(|n| *n >= longest.max(1024)));
    }
    let shortest = *tokens.last().unwrap_or(&asked);
    let row = prepared.rows.longest_row().min(shortest);
    let choices = Recomputed::choices(plan, &model, row, prepared.device);
    let plain = tokens.iter().map(|&n| (n, choices[0]));
    let mut least = u64::MAX;
    for (tokens, recomputed) in plain.chain(choices[1..].iter().map(|choice| (shortest, *choice))) {
        let (changed, needs) = with(tokens, recomputed);
        least = least.min(needs.memory);
        if needs.memory <= room && needs.host <= host {
            let said = format!(
                "--fit: rows of at most {tokens} tokens, {}: about {} of {} free",
                recomputed.describe(model.depth()),
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
    .hint(if cuda_graphs::records_passes(&plan.recipe) {
        "set run.cuda_graphs: false, whose passes keep all activations; or lower batch.max_len"
    } else {
        "train an adapter instead of all weights, choose optim.kind: adamw8 or adafactor, or lower batch.max_len"
    }))
}

/// What the backward pass computes again to save memory.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Recomputed {
    replay: ReplayChoice,
    mlp_tile: Option<usize>,
    /// The inputs of these layers are kept in the host's memory.
    offload: bool,
}

/// Tokens of which `--fit` has an MLP computed at a time: enough for fast products.
const TILE: usize = 2048;

impl Recomputed {
    /// Returns everything that can be recomputed, what costs the fewest operations first; nothing at all is the first. On a GPU
    /// the last ones also keep what they can in the host's memory: how long that takes depends on the machine. A packed row has
    /// `row` tokens.
    fn choices(plan: &Plan, model: &Model, row: usize, device: Device) -> Vec<Self> {
        let (c, depth) = (model.config(), model.depth());
        let given = plan.recipe.run.mlp_tile;
        let tiles = match given {
            Some(_) => vec![given],
            None if row > TILE && plan.recipe.optim.master == Master::F32 => vec![None, Some(TILE)],
            None => vec![None],
        };
        // Products of a token, in one layer: those with weights, and those of queries, keys and values, of which a token sees
        // half on average.
        let width: i64 = (0..depth).map(|i| c.feed_forward(i).1).sum::<i64>() / depth as i64;
        let of_mlp = c.hidden_size * width * if model.has_gates() { 3 } else { 2 };
        let longest = row.min(plan.recipe.batch.max_len) as i64;
        let seen: i64 =
            model.attentions().map(|a| (longest / 2).min(a.window.unwrap_or(longest))).sum::<i64>() / depth as i64;
        let (queries, keys) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let of_attention = 2 * c.hidden_size * (queries + keys) + 2 * seen * queries;
        let cost = |choice: &Self| {
            let layers = match choice.replay {
                ReplayChoice::None => 0,
                ReplayChoice::Layers(n) => n,
                ReplayChoice::All => depth,
            };
            let tiled = if choice.mlp_tile.is_some() { depth } else { 0 };
            layers as i64 * (of_attention + of_mlp) + tiled as i64 * of_mlp
        };
        let offload = plan.recipe.run.offload;
        let with = |replay, mlp_tile| Self { replay, mlp_tile, offload: offload && replay != ReplayChoice::None };
        let replays =
            [ReplayChoice::None].into_iter().chain((1..depth).map(ReplayChoice::Layers)).chain([ReplayChoice::All]);
        let mut choices: Vec<Self> =
            replays.flat_map(|replay| tiles.iter().map(move |&mlp_tile| with(replay, mlp_tile))).collect();
        choices.sort_by_key(cost);
        if device.is_cuda() && !offload {
            let whole = choices.iter().filter(|choice| choice.replay == ReplayChoice::All);
            let offloaded: Vec<Self> = whole.map(|choice| Self { offload: true, ..*choice }).collect();
            choices.extend(offloaded);
        }
        if cuda_graphs::records_passes(&plan.recipe) {
            choices.retain(|choice| choice.replay == ReplayChoice::None);
        }
        choices
    }

    fn describe(self, depth: usize) -> String {
        let layers = match self.replay {
            ReplayChoice::None => "no layer replayed".to_string(),
            ReplayChoice::Layers(n) => format!("{n} of {depth} layers replayed"),
            ReplayChoice::All => "every layer replayed".to_string(),
        };
        let tiles = self.mlp_tile.map_or_else(String::new, |tile| format!(", MLPs in tiles of {tile} tokens"));
        let place = if self.offload { ", their inputs in the host's memory" } else { "" };
        format!("{layers}{tiles}{place}")
    }
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
