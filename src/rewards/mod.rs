//! Rewards: numbers for answers, from rules that can be verified, commands, servers and reward models.
//!
//! Invariant: every answer gets from every source a finite number, or [`ABSTAINED`] from one that has nothing to say of
//! it, or there is an error that names its row; a source never sees the reward of another. Knows no method: what is made of the numbers is theirs.

mod command;
mod http;
mod json;
pub mod model;
pub mod program;
mod rules;
pub mod spec;

pub use spec::RewardSpec;

use crate::data::{ChatTokenizer, PromptRow, Prompts};
use crate::error::{Context, Error, Result};
use crate::models::Model;
use crate::report;
use serde_json::Value;

/// An answer to judge.
#[derive(Debug, Clone, Copy)]
pub struct Scored<'a> {
    pub prompt: &'a PromptRow,
    /// The answer's text, without what ended it.
    pub answer: &'a str,
    /// Prompt and answer, with the stop token where one ended it.
    pub ids: &'a [u32],
    /// Tokens of the answer, without the stop token.
    pub tokens: usize,
}

/// The reward of a source that has nothing to say of an answer: it counts neither in the sum nor in the source's means,
/// as in TRL. It is a NaN of its own, because one that was computed is an error.
pub const ABSTAINED: f64 = f64::from_bits(0x7ff8_0000_0ab5_7a19);

/// A source of rewards.
pub trait Reward {
    /// Whether every row has what the source reads; looked at before the first step.
    fn check(&self, _prompts: &Prompts) -> Result<()> {
        Ok(())
    }
    /// Whether the tokens of answers mean to it what they mean to the policy.
    fn check_tokenizer(&self, _tokenizer: &ChatTokenizer) -> Result<()> {
        Ok(())
    }
    /// A number for each answer, or [`ABSTAINED`]. `model` is the one being trained: a reward model may be an adapter on it.
    fn score(&mut self, model: &Model, answers: &[Scored]) -> Result<Vec<f64>>;
}

struct Source {
    name: String,
    weight: f64,
    reward: Box<dyn Reward>,
}

/// All sources of a recipe, with their weights.
pub struct Rewards {
    sources: Vec<Source>,
    /// Whether it was said that no source had anything to say of an answer.
    told: bool,
}

impl Rewards {
    /// Opens every source; `key` is where the list stands in the recipe, for errors.
    ///
    /// Errors: an empty list, an entry of no kind or of several, two of one name, whatever a source cannot open.
    pub fn open(specs: &[RewardSpec], key: &str) -> Result<Self> {
        if specs.is_empty() {
            return Err(Error::user(format!("{key}: no reward is given"))
                .hint("write a list, such as `rewards: [ { exact: { column: answer } } ]`"));
        }
        let mut sources: Vec<Source> = Vec::new();
        for (i, spec) in specs.iter().enumerate() {
            let at = format!("{key}[{i}]");
            let models = specs[..i].iter().filter(|s| s.model.is_some()).count();
            let source = open(spec, models).context(|| &at)?;
            if sources.iter().any(|s| s.name == source.name) {
                return Err(Error::user(format!("{at}: another reward is called `{}` already", source.name))
                    .hint("give one of them a `name`"));
            }
            sources.push(source);
        }
        if sources.iter().all(|s| s.weight == 0.0) {
            return Err(Error::user(format!("{key}: every weight is 0, so that every answer is worth the same")));
        }
        Ok(Self { sources, told: false })
    }

    /// Sources of one's own: names, weights, judges.
    pub fn of(sources: Vec<(String, f64, Box<dyn Reward>)>) -> Self {
        let source = |(name, weight, reward)| Source { name, weight, reward };
        Self { sources: sources.into_iter().map(source).collect(), told: false }
    }

    /// The sources' names, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(|s| s.name.as_str())
    }

    /// Whether every row has what the sources read.
    pub fn check(&self, prompts: &Prompts) -> Result<()> {
        self.sources.iter().try_for_each(|s| s.reward.check(prompts).context(|| format!("reward `{}`", s.name)))
    }

    /// Whether every source reads tokens as `tokenizer` does.
    pub fn check_tokenizer(&self, tokenizer: &ChatTokenizer) -> Result<()> {
        self.sources
            .iter()
            .try_for_each(|s| s.reward.check_tokenizer(tokenizer).context(|| format!("reward `{}`", s.name)))
    }

    /// The rewards of each answer, raw, one a source.
    pub fn score(&mut self, model: &Model, answers: &[Scored]) -> Result<Vec<Vec<f64>>> {
        let mut rows = vec![Vec::with_capacity(self.sources.len()); answers.len()];
        if answers.is_empty() {
            return Ok(rows);
        }
        for Source { name, reward, .. } in &mut self.sources {
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
                    .hint(format!("the answer begins: {}", crate::fsutil::shortened(answer.answer))));
                }
                row.push(number);
            }
        }
        let silent = rows.iter().position(|row| !row.is_empty() && row.iter().all(|r| r.is_nan()));
        if let (Some(i), false) = (silent, self.told) {
            self.told = true;
            report::warn(format!(
                "every reward abstained for an answer to {}; such answers count as 0",
                answers[i].prompt.place()
            ));
        }
        Ok(rows)
    }

    /// The weighted sum of an answer's rewards, of those that are numbers.
    pub fn total(&self, rewards: &[f64]) -> f64 {
        self.sources.iter().zip(rewards).filter(|(_, r)| !r.is_nan()).map(|(s, r)| s.weight * r).sum()
    }
}

/// `models` reward models stand before it in the list.
fn open(spec: &RewardSpec, models: usize) -> Result<Source> {
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
        return Err(Error::user(format!("name {name:?}: expected a word without spaces and slashes")));
    }
    let reward: Box<dyn Reward> = match spec.clone() {
        RewardSpec { exact: Some(spec), .. } => Box::new(rules::Exact::new(spec)),
        RewardSpec { overlap: Some(spec), .. } => Box::new(rules::Overlap::new(spec)),
        RewardSpec { regex: Some(spec), .. } => Box::new(rules::Pattern::new(spec)?),
        RewardSpec { json_schema: Some(spec), .. } => Box::new(json::Schema::open(spec)?),
        RewardSpec { length: Some(spec), .. } => Box::new(rules::Length::new(spec)?),
        RewardSpec { command: Some(spec), .. } => Box::new(command::Judge::new(spec)?),
        RewardSpec { http: Some(spec), .. } => Box::new(http::Server::new(spec)?),
        RewardSpec { model: Some(spec), .. } => Box::new(model::Judge::new(spec, models)?),
        _ => return Err(Error::bug(format!("no reward of kind {kind}"))),
    };
    Ok(Source { name, weight: spec.weight, reward })
}

/// What a column says, as texts to compare with: one, or any of a list.
fn expected(prompt: &PromptRow, column: &str) -> Result<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        other => crate::data::json::digits(other).map(String::from),
    };
    let wrong = |what: &str| {
        let error = Error::user(format!("{}: column `{column}` is {what}", prompt.place()));
        error.hint("expected text, a number, or a list of them to compare answers with")
    };
    let found = prompt.columns.get(column).ok_or_else(|| {
        let names: Vec<String> = prompt.columns.keys().map(|k| format!("`{k}`")).collect();
        Error::user(format!("{}: no column `{column}`; found {}", prompt.place(), names.join(", ")))
            .hint("name the column of the right answer with `column`, or use rows that end in an answer")
    })?;
    let texts = match found {
        Value::Array(list) if list.is_empty() => return Err(wrong("an empty list")),
        Value::Array(list) => list.iter().map(text).collect::<Option<Vec<_>>>(),
        one => text(one).map(|t| vec![t]),
    };
    texts.ok_or_else(|| wrong("neither text nor a number"))
}

/// Whether every row has such a column.
fn check_column(prompts: &Prompts, column: &str) -> Result<()> {
    prompts.rows.iter().try_for_each(|row| expected(row, column).map(drop))
}
