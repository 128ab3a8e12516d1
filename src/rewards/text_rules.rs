//! Rewards by rules over the answer's text: exact match, words in common, regular expression, length.

use super::source::{RewardInput, RewardSource};
use super::spec::{ExactSpec, LengthSpec, LengthUnit, OverlapSpec, RegexSpec};
use crate::data::dataset::{PromptRow, PromptSet};
use crate::error::{Error, Result};
use crate::fsutil::excerpt;
use crate::models::Model;
use crate::text_metrics::words::FScore;
use fancy_regex::Regex;
use serde_json::Value;

/// Returns the texts of a column to compare an answer with: one, or several if it is a list.
fn expected_texts(prompt: &PromptRow, column: &str) -> Result<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        other => crate::json::long_number(other).map(String::from),
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

/// Fails if a row lacks the column, or has no text, number or list of them in it.
fn check_column(prompts: &PromptSet, column: &str) -> Result<()> {
    prompts.rows.iter().try_for_each(|row| expected_texts(row, column).map(drop))
}

fn one_or_zero(yes: bool) -> f64 {
    if yes { 1.0 } else { 0.0 }
}

/// Reward by exact match: 1 if the answer is the text of a column, else 0.
pub(super) struct ExactReward(ExactSpec);

impl ExactReward {
    pub fn new(spec: ExactSpec) -> Self {
        Self(spec)
    }

    fn normalized(&self, text: &str) -> String {
        let text = text.trim();
        if self.0.ignore_case { text.to_lowercase() } else { text.to_string() }
    }

    /// Returns the part of the answer to compare: what follows the last marker, if there is a marker.
    fn compared<'a>(&self, answer: &'a str) -> Option<&'a str> {
        match &self.0.after {
            Some(marker) => answer.rsplit_once(marker.as_str()).map(|(_, said)| said),
            None => Some(answer),
        }
    }

    fn reward_of(&self, answer: &RewardInput) -> Result<f64> {
        let right = expected_texts(answer.prompt, &self.0.column)?;
        let Some(said) = self.compared(answer.answer).map(|said| self.normalized(said)) else { return Ok(0.0) };
        Ok(one_or_zero(right.iter().any(|right| self.normalized(right) == said)))
    }
}

impl RewardSource for ExactReward {
    fn check(&self, prompts: &PromptSet) -> Result<()> {
        check_column(prompts, &self.0.column)
    }

    fn score(&mut self, _: &Model, answers: &[RewardInput]) -> Result<Vec<f64>> {
        answers.iter().map(|answer| self.reward_of(answer)).collect()
    }
}

/// Reward by words in common: F1 of the words of answer and column.
pub(super) struct OverlapReward(OverlapSpec);

impl OverlapReward {
    pub fn new(spec: OverlapSpec) -> Self {
        Self(spec)
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

impl RewardSource for OverlapReward {
    fn check(&self, prompts: &PromptSet) -> Result<()> {
        check_column(prompts, &self.0.column)
    }

    fn score(&mut self, _: &Model, answers: &[RewardInput]) -> Result<Vec<f64>> {
        let one = |a: &RewardInput| {
            let said = words(a.answer);
            let right = expected_texts(a.prompt, &self.0.column)?;
            Ok(right.iter().map(|r| FScore::of_ngrams(&said, &words(r), 1).f1).fold(0.0, f64::max))
        };
        answers.iter().map(one).collect()
    }
}

/// Reward by a regular expression: 1 if it matches and, with a column, captures the text of that column; else 0.
pub(super) struct RegexReward {
    regex: Regex,
    column: Option<String>,
}

impl RegexReward {
    /// Compiles the pattern. Fails if it is not valid.
    pub fn new(spec: RegexSpec) -> Result<Self> {
        let regex = Regex::new(&spec.pattern).map_err(|e| {
            Error::user(format!("pattern {:?} is not a regular expression: {e}", spec.pattern))
                .hint("in YAML, single quotes keep backslashes unchanged: pattern: '\\d+'")
        })?;
        Ok(Self { regex, column: spec.column })
    }

    fn reward_of(&self, answer: &RewardInput) -> Result<f64> {
        let too_long = |e: fancy_regex::Error| {
            Error::user(format!("an answer to {}: {e}", answer.prompt.place()))
                .hint("simplify the pattern: nested repetitions take too long on some texts")
                .hint(format!("the answer begins: {}", excerpt(answer.answer)))
        };
        let found = self.regex.captures(answer.answer).map_err(too_long)?;
        let (Some(found), Some(column)) = (&found, &self.column) else { return Ok(one_or_zero(found.is_some())) };
        let said = found.get(1).or_else(|| found.get(0)).map_or("", |m| m.as_str()).trim();
        Ok(one_or_zero(expected_texts(answer.prompt, column)?.iter().any(|right| right.trim() == said)))
    }
}

impl RewardSource for RegexReward {
    fn check(&self, prompts: &PromptSet) -> Result<()> {
        self.column.as_ref().map_or(Ok(()), |column| check_column(prompts, column))
    }

    fn score(&mut self, _: &Model, answers: &[RewardInput]) -> Result<Vec<f64>> {
        answers.iter().map(|answer| self.reward_of(answer)).collect()
    }
}

/// Reward by length: 1 from `min` to `max`, falling linearly to 0 over `falloff` outside.
#[derive(Debug)]
pub(super) struct LengthReward(LengthSpec);

impl LengthReward {
    /// Fails if neither `min` nor `max` is given, or if `min` is above `max`.
    pub fn new(spec: LengthSpec) -> Result<Self> {
        match (spec.min, spec.max) {
            (None, None) => Err(Error::user("length: neither min nor max is given: every length would get 1")
                .hint("give `min`, `max`, or both (equal: a target) with `falloff`")),
            (Some(min), Some(max)) if min > max => {
                Err(Error::user(format!("length: min {min} is above max {max}")).hint("swap them"))
            }
            _ => Ok(Self(spec)),
        }
    }

    fn reward_of(&self, length: usize) -> f64 {
        let low = self.0.min.map_or(0, |min| min.saturating_sub(length));
        let outside = low + self.0.max.map_or(0, |max| length.saturating_sub(max));
        if outside == 0 { 1.0 } else { (1.0 - outside as f64 / self.0.falloff.max(1) as f64).max(0.0) }
    }
}

impl RewardSource for LengthReward {
    fn score(&mut self, _: &Model, answers: &[RewardInput]) -> Result<Vec<f64>> {
        let length = |a: &RewardInput| match self.0.unit {
            LengthUnit::Tokens => a.tokens,
            LengthUnit::Characters => a.answer.chars().count(),
        };
        Ok(answers.iter().map(|a| self.reward_of(length(a))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_common_are_counted_as_often_as_both_have_them() {
        let f1 = |a: &str, b: &str| FScore::of_ngrams(&words(a), &words(b), 1).f1;
        assert_eq!(f1("Diseases of the blood.", "diseases of the BLOOD"), 1.0);
        assert_eq!(f1("the the the the", "the end"), 2.0 / 6.0);
        assert_eq!(f1("", "the end"), 0.0);
        assert_eq!(f1("x", "y"), 0.0);
    }

    #[test]
    fn length_falls_off_outside_its_range() {
        let spec = LengthSpec { min: Some(4), max: Some(6), falloff: 4, ..Default::default() };
        let length = LengthReward::new(spec).unwrap();
        assert_eq!([0, 2, 4, 6, 7, 10, 99].map(|n| length.reward_of(n)), [0.0, 0.5, 1.0, 1.0, 0.75, 0.0, 0.0]);
        let hard = LengthReward::new(LengthSpec { max: Some(6), ..Default::default() }).unwrap();
        assert_eq!([0, 6, 7].map(|n| hard.reward_of(n)), [1.0, 1.0, 0.0]);
        assert!(LengthReward::new(LengthSpec::default()).is_err());
        assert!(LengthReward::new(LengthSpec { min: Some(3), max: Some(2), ..Default::default() }).is_err());
    }
}
