//! What is read before the model is there: prompts and rewards; and what the model is made of.

use super::kl::Estimator;
use super::spec::{KlPlace, PpoSpec, ValueSpec};
use super::{KEYS, Ppo, VALUE};
use crate::adapters::spec::Targets;
use crate::adapters::{AdapterSpec, LoraSpec};
use crate::data::prompts::Room;
use crate::data::quality::{Duplicates, Overlap};
use crate::data::{ChatTokenizer, Example, PromptRow, Prompts, Sources};
use crate::error::{Error, Result};
use crate::methods::rollout::Rollout;
use crate::methods::{Beside, Ground, Method, Parts, Rows, Side};
use crate::models::{Heads, Load, Model};
use crate::report;
use crate::rewards::Rewards;
use std::collections::HashMap;
use std::rc::Rc;

/// What the model is made of: a scalar head for the value function, and the adapters beside the policy's.
pub fn parts(spec: &PpoSpec, adapter: Option<&AdapterSpec>) -> Result<Parts> {
    let heads = Heads::Both;
    let value = match (&spec.value, adapter) {
        (ValueSpec::Head(_), None) => return Ok(Parts { heads, beside: Vec::new() }),
        (ValueSpec::Adapter(_), None) => {
            return Err(Error::user(format!(
                "{KEYS}.value.adapter: an adapter needs a base that is frozen, and without `adapter:` the base is trained"
            ))
            .hint("train an adapter (adapter: { lora: {} }), or use value: { head: {} }"));
        }
        // Nothing but the head: no layer answers to an empty list.
        (ValueSpec::Head(_), Some(_)) => LoraSpec { targets: Targets::Names(Vec::new()), ..LoraSpec::default() },
        (ValueSpec::Adapter(lora), Some(_)) => lora.clone(),
    };
    let mut value = value;
    if !value.modules_to_save.iter().any(|m| m == "score") {
        value.modules_to_save.push("score".into());
    }
    Ok(Parts { heads, beside: vec![Beside { name: VALUE, spec: value, folder: None, trained: true }] })
}

/// The rows of a run.
pub fn rows(spec: &PpoSpec, ground: &Ground) -> Result<Box<dyn Rows>> {
    check(spec)?;
    let room = Room {
        longest: spec.sampling.longest_prompt(ground.max_len)?,
        on_overflow: ground.on_overflow,
        tolerance: ground.overflow_tolerance,
    };
    if ground.max_len > ground.batch.tokens {
        return Err(Error::user(format!(
            "batch.max_len {}: a packed row holds batch.tokens = {} tokens, and no answer is cut",
            ground.max_len, ground.batch.tokens
        ))
        .hint("raise batch.tokens or lower batch.max_len"));
    }
    let open = |sources: &Sources| -> Result<Split> {
        let prompts = Prompts::open(sources, &ground.tokenizer, room)?;
        report::info(prompts.summary.line());
        prompts.summary.warnings().iter().for_each(report::warn);
        // The rewards look at every row now, before the model is loaded.
        Rewards::open(&spec.rewards, &format!("{KEYS}.rewards"))?.check(&prompts)?;
        let lengths = prompts.rows.iter().map(|r| r.ids.len() as u32).collect();
        Ok(Split { prompts: Rc::new(prompts), lengths })
    };
    Ok(Box::new(PpoRows {
        spec: spec.clone(),
        tokenizer: ground.tokenizer.clone(),
        train: open(ground.train)?,
        valid: ground.valid.map(open).transpose()?,
        budget: ground.batch.tokens,
        shuffle: ground.shuffle,
        seed: ground.seed,
        whole: ground.adapter.is_none(),
    }))
}

/// What the section says must make sense together.
fn check(spec: &PpoSpec) -> Result<()> {
    let prompts = spec.sampling.prompts;
    if spec.mini_batches > prompts {
        return Err(Error::user(format!(
            "{KEYS}.mini_batches: {} of the {prompts} answers of an iteration would leave some empty",
            spec.mini_batches
        ))
        .hint("raise sampling.prompts or lower mini_batches"));
    }
    if spec.kl.target.is_some() && spec.kl.coef == 0.0 {
        return Err(Error::user(format!("{KEYS}.kl.coef: 0 stays 0, however far the divergence is from kl.target"))
            .hint("begin with a small one, such as 0.05"));
    }
    if spec.kl.place == KlPlace::Reward && spec.kl.estimator == Estimator::K2 {
        report::warn(format!("{KEYS}.kl.estimator: k2 is biased; in the reward, k1 or k3 hold the policy where it should be"));
    }
    Ok(())
}

/// Optimiser steps in so many epochs over `prompts` prompts.
pub fn steps(spec: &PpoSpec, prompts: usize, epochs: f64) -> u64 {
    let iterations = (epochs * prompts as f64 / spec.sampling.prompts as f64 - 1e-9).ceil() as u64;
    iterations * (spec.epochs * spec.mini_batches) as u64
}

struct Split {
    prompts: Rc<Prompts>,
    lengths: Vec<u32>,
}

impl Split {
    fn side(&self) -> Side<'_> {
        Side { summary: &self.prompts.summary, lengths: &self.lengths }
    }
}

struct PpoRows {
    spec: PpoSpec,
    tokenizer: Rc<ChatTokenizer>,
    train: Split,
    valid: Option<Split>,
    budget: usize,
    shuffle: bool,
    seed: u64,
    /// The base itself is trained.
    whole: bool,
}

impl PpoRows {
    fn rollout(&self, split: &Split) -> Result<Rollout> {
        let rewards = Rewards::open(&self.spec.rewards, &format!("{KEYS}.rewards"))?;
        let (prompts, tokenizer) = (split.prompts.clone(), self.tokenizer.clone());
        Rollout::new(prompts, tokenizer, rewards, self.spec.sampling.clone(), self.seed)
    }
}

impl Rows for PpoRows {
    fn train(&self) -> Side<'_> {
        self.train.side()
    }

    fn valid(&self) -> Option<Side<'_>> {
        self.valid.as_ref().map(Split::side)
    }

    /// Prompts and the longest answers to them, as far as a row has room.
    fn longest_row(&self) -> usize {
        let longest = self.train.lengths.iter().max().map_or(0, |n| *n as usize) + self.spec.sampling.max_new_tokens;
        (longest * self.spec.sampling.prompts.div_ceil(self.spec.mini_batches)).min(self.budget)
    }

    fn steps_for(&self, epochs: f64) -> u64 {
        steps(&self.spec, self.train.prompts.len(), epochs)
    }

    fn duplicates(&self) -> Duplicates {
        let mut groups: HashMap<&[u32], Vec<&PromptRow>> = HashMap::new();
        for row in &self.train.prompts.rows {
            groups.entry(&row.ids).or_default().push(row);
        }
        let mut groups: Vec<Vec<&PromptRow>> = groups.into_values().filter(|g| g.len() > 1).collect();
        groups.sort_by(|a, b| (&a[0].path, a[0].line).cmp(&(&b[0].path, b[0].line)));
        Duplicates {
            groups: groups.len(),
            superfluous: groups.iter().map(|g| g.len() - 1).sum(),
            first: groups.iter().take(100).map(|g| g.iter().take(5).map(|r| r.place().to_string()).collect()).collect(),
        }
    }

    fn overlap(&self) -> Option<Overlap> {
        let valid = self.valid.as_ref()?;
        let known: HashMap<&[u32], &PromptRow> = self.train.prompts.rows.iter().map(|r| (&r.ids[..], r)).collect();
        let same = valid.prompts.rows.iter().filter_map(|v| known.get(&v.ids[..]).map(|t| (t.place(), v.place())));
        let same: Vec<(String, String)> = same.map(|(t, v)| (t.to_string(), v.to_string())).collect();
        Some(Overlap { rows: same.len(), first: same.into_iter().take(100).collect() })
    }

    /// Prompts as generation is given them; no token is learnt before there is an answer.
    fn shown(&self, most: usize) -> Result<Vec<Example>> {
        let example = |r: &PromptRow| Example { ids: r.ids.clone(), supervised: vec![false; r.ids.len()], line: r.line };
        Ok(self.train.prompts.rows.iter().take(most).map(example).collect())
    }

    fn method(self: Box<Self>, model: &Model) -> Result<Box<dyn Method>> {
        // A base that is trained whole leaves the reference's weights behind: they are kept once more, frozen.
        let reference = match self.whole {
            true => Some(Model::load(
                model.folder(),
                Load {
                    device: model.device(),
                    kind: model.kind(),
                    train_base: false,
                    adapters: Vec::new(),
                    heads: Heads::Tokens,
                },
            )?),
            false => None,
        };
        let train = self.rollout(&self.train)?;
        let valid = self.valid.as_ref().map(|v| self.rollout(v)).transpose()?;
        Ok(Box::new(Ppo::new(self.spec.clone(), train, valid, reference, (self.budget, self.shuffle, self.seed))))
    }
}
