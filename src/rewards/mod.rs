//! Scores answers: rewards from verifiable rules, user commands, servers and reward models, combined by weights.
//!
//! Invariant: for every answer, every source returns a finite number, or [`ABSTAINED`] if it cannot judge that answer;
//! anything else is an error that names the answer's row. A source never sees the reward of another one. The training
//! methods that use the rewards are elsewhere.

mod command;
mod http;
pub mod json;
pub mod model;
pub mod program;
pub mod source;
pub mod spec;
mod text_rules;

use crate::data::chat::ChatTokenizer;
use crate::data::dataset::PromptSet;
pub use spec::RewardSourceSpec;

use crate::error::{Context, Error, Result};
use crate::models::Model;
use crate::report;
use source::{ABSTAINED, RewardInput, RewardSource};

/// A source with its name in the metrics and its weight in the sum.
struct WeightedSource {
    name: String,
    weight: f64,
    reward: Box<dyn RewardSource>,
}

/// All sources of rewards of a recipe, with their weights.
pub struct RewardSources {
    sources: Vec<WeightedSource>,
    /// Whether the warning was printed that every source abstained for an answer.
    abstention_warned: bool,
}

impl RewardSources {
    /// Opens every source. `key` is the path of the list in the recipe, for errors.
    ///
    /// Errors: an empty list, an entry without a kind or with several, duplicate names, only zero weights, a source
    /// that cannot be opened.
    pub fn open(specs: &[RewardSourceSpec], key: &str) -> Result<Self> {
        if specs.is_empty() {
            return Err(Error::user(format!("{key}: no reward is given"))
                .hint("write a list, such as `rewards: [ { exact: { column: answer } } ]`"));
        }
        let mut sources: Vec<WeightedSource> = Vec::new();
        for (i, spec) in specs.iter().enumerate() {
            let at = format!("{key}[{i}]");
            let models = specs[..i].iter().filter(|s| s.model.is_some()).count();
            let source = open_source(spec, models).context(|| &at)?;
            if sources.iter().any(|s| s.name == source.name) {
                return Err(Error::user(format!("{at}: another reward is named `{}` already", source.name))
                    .hint("give one of them a `name`"));
            }
            sources.push(source);
        }
        if sources.iter().all(|s| s.weight == 0.0) {
            return Err(Error::user(format!("{key}: every weight is 0, so every answer would get the same reward")));
        }
        Ok(Self { sources, abstention_warned: false })
    }

    /// Combines sources made by the caller: (name, weight, source).
    pub fn from_sources(sources: Vec<(String, f64, Box<dyn RewardSource>)>) -> Self {
        let source = |(name, weight, reward)| WeightedSource { name, weight, reward };
        Self { sources: sources.into_iter().map(source).collect(), abstention_warned: false }
    }

    /// Returns the names of the sources, in the order of the recipe.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(|s| s.name.as_str())
    }

    /// Fails if a row lacks a column that a source reads.
    pub fn check(&self, prompts: &PromptSet) -> Result<()> {
        self.sources.iter().try_for_each(|s| s.reward.check(prompts).context(|| format!("reward `{}`", s.name)))
    }

    /// Fails if a source reads token ids with another tokenizer than `tokenizer`.
    pub fn check_tokenizer(&self, tokenizer: &ChatTokenizer) -> Result<()> {
        self.sources
            .iter()
            .try_for_each(|s| s.reward.check_tokenizer(tokenizer).context(|| format!("reward `{}`", s.name)))
    }

    /// Returns the unweighted rewards: for each answer one per source, some of them [`ABSTAINED`].
    ///
    /// Errors: a source fails, or returns a number that is not finite. Warns once if all sources abstained for an
    /// answer.
    pub fn score(&mut self, model: &Model, answers: &[RewardInput]) -> Result<Vec<Vec<f64>>> {
        let mut rows = vec![Vec::with_capacity(self.sources.len()); answers.len()];
        if answers.is_empty() {
            return Ok(rows);
        }
        for WeightedSource { name, reward, .. } in &mut self.sources {
            let numbers = reward.score(model, answers).context(|| format!("reward `{name}`"))?;
            if numbers.len() != answers.len() {
                return Err(Error::bug(format!(
                    "reward `{name}`: {} numbers, {} answers",
                    numbers.len(),
                    answers.len()
                )));
            }
            for ((row, number), answer) in rows.iter_mut().zip(numbers).zip(answers) {
                if !number.is_finite() && number.to_bits() != ABSTAINED.to_bits() {
                    return Err(Error::user(format!(
                        "reward `{name}`: {number} for an answer to {}; a reward must be a finite number",
                        answer.prompt.place()
                    ))
                    .hint(format!("the answer begins: {}", crate::fsutil::excerpt(answer.answer))));
                }
                row.push(number);
            }
        }
        let silent = rows.iter().position(|row| !row.is_empty() && row.iter().all(|r| r.is_nan()));
        if let (Some(i), false) = (silent, self.abstention_warned) {
            self.abstention_warned = true;
            report::warn(format!(
                "every reward abstained for an answer to {}; such answers count as 0",
                answers[i].prompt.place()
            ));
        }
        Ok(rows)
    }

    /// Returns the weighted sum of one answer's rewards, without those of sources that abstained.
    pub fn weighted_sum(&self, rewards: &[f64]) -> f64 {
        self.sources.iter().zip(rewards).filter(|(_, r)| !r.is_nan()).map(|(s, r)| s.weight * r).sum()
    }
}

/// Opens one source. `models` is the number of reward models before it in the list.
fn open_source(spec: &RewardSourceSpec, models: usize) -> Result<WeightedSource> {
    let kinds = spec.kinds();
    let [kind] = kinds.as_slice() else {
        let found = if kinds.is_empty() { "none".into() } else { kinds.join(" and ") };
        return Err(Error::user(format!("a reward has one kind, found {found}"))
            .hint("known: exact, overlap, regex, json_schema, length, command, http, model; give each its own entry of the list"));
    };
    if !spec.weight.is_finite() {
        return Err(Error::user(format!("weight must be a number, found {}", spec.weight)));
    }
    let name = spec.name.clone().unwrap_or_else(|| kind.to_string());
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '/') {
        return Err(Error::user(format!("name {name:?}: expected a name without spaces and slashes")));
    }
    let reward: Box<dyn RewardSource> = match spec.clone() {
        RewardSourceSpec { exact: Some(spec), .. } => Box::new(text_rules::ExactReward::new(spec)),
        RewardSourceSpec { overlap: Some(spec), .. } => Box::new(text_rules::OverlapReward::new(spec)),
        RewardSourceSpec { regex: Some(spec), .. } => Box::new(text_rules::RegexReward::new(spec)?),
        RewardSourceSpec { json_schema: Some(spec), .. } => Box::new(json::SchemaReward::open(spec)?),
        RewardSourceSpec { length: Some(spec), .. } => Box::new(text_rules::LengthReward::new(spec)?),
        RewardSourceSpec { command: Some(spec), .. } => Box::new(command::CommandReward::new(spec)?),
        RewardSourceSpec { http: Some(spec), .. } => Box::new(http::HttpReward::new(spec)?),
        RewardSourceSpec { model: Some(spec), .. } => Box::new(model::ModelReward::new(spec, models)?),
        _ => return Err(Error::bug(format!("no reward of kind {kind}"))),
    };
    Ok(WeightedSource { name, weight: spec.weight, reward })
}
