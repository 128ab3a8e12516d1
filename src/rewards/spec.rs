//! The `rewards` section of a recipe: a list of sources, each with its settings and its weight.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A source of rewards. Exactly one kind must be given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardSourceSpec {
    /// 1 if the answer equals the text of a column, else 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<ExactSpec>,
    /// F1 of the words that answer and column share, from 0 to 1 (Rajpurkar et al. 2016, arXiv 1606.05250).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<OverlapSpec>,
    /// 1 if a regular expression matches the answer and, with `column`, captures the text of that column; else 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<RegexSpec>,
    /// 1 if the answer is JSON that fits a schema, else 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_schema: Option<JsonSchemaSpec>,
    /// 1 if the length of the answer is from `min` to `max`, less outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<LengthSpec>,
    /// The number that a command prints: it is started for each batch of answers, reads one JSON object per line and writes one number per line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandSpec>,
    /// The number that a server returns to a POST request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSpec>,
    /// The score that a reward model gives at the answer's last token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<RewardModelSpec>,
    /// Factor of this reward in the weighted sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// Name in the metrics, `rewards/NAME/mean`. By default, the kind, such as `exact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Exact match, after whitespace at both ends is removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExactSpec {
    /// The column with the right answer; of a list, any item may match. Rows that end in an answer have it as `answer`.
    pub column: String,
    /// Ignore upper and lower case.
    pub ignore_case: bool,
    /// Compare only what follows the last occurrence of this text; an answer without it gets 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

impl Default for ExactSpec {
    fn default() -> Self {
        Self { column: answer(), ignore_case: false, after: None }
    }
}

/// Words in common, ignoring case and punctuation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OverlapSpec {
    /// The column with the right answer; of a list, the item that fits best counts. Rows that end in an answer have it as `answer`.
    pub column: String,
}

impl Default for OverlapSpec {
    fn default() -> Self {
        Self { column: answer() }
    }
}

/// A regular expression.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegexSpec {
    /// The pattern, searched anywhere in the answer; `^` and `$` anchor it to the ends.
    #[schemars(extend("format" = "regex"))]
    pub pattern: String,
    /// The column that the text of the first group (of the whole match if there is no group) must equal. Without it, a match is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
}

/// JSON that fits a schema.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonSchemaSpec {
    /// The file with the schema (JSON Schema, drafts 4 to 2020-12).
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// Reward of an answer that is JSON but does not fit the schema.
    #[serde(default)]
    pub parsed: f64,
}

/// The unit of a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LengthUnit {
    /// Tokens, without the stop token.
    #[default]
    Tokens,
    /// Characters.
    Characters,
}

/// A range of lengths.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LengthSpec {
    /// The unit of `min`, `max` and `falloff`.
    pub unit: LengthUnit,
    /// The shortest length that gets 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<usize>,
    /// The longest length that gets 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<usize>,
    /// Distance outside the range at which the reward, falling linearly, reaches 0; 0: it is 0 everywhere outside.
    pub falloff: usize,
}

/// A command that judges answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandSpec {
    /// The program and its arguments, started without a shell. It reads `{"prompt", "completion", "columns"}` from each line and prints a number, or `null` to abstain.
    #[schemars(length(min = 1))]
    pub run: Vec<String>,
    /// Seconds allowed for a batch.
    #[serde(default = "minute")]
    #[schemars(range(min = 0.001))]
    pub timeout: f64,
}

/// A server that judges answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpSpec {
    /// Address that gets a POST of `{"query", "prompts", "completions", "columns"}`, each a list. It must return `{"rewards": [number, …]}`, where null abstains.
    #[schemars(regex(pattern = r"^http://"))]
    pub url: String,
    /// Seconds allowed for a request.
    #[serde(default = "minute")]
    #[schemars(range(min = 0.001))]
    pub timeout: f64,
    /// How often a failed request is repeated.
    #[serde(default = "two")]
    pub retries: u32,
}

/// A reward model that `ft` or another tool trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardModelSpec {
    /// Directory of the reward model: an adapter over the policy's base (one base in memory serves both), or a whole model.
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// Base of an adapter that was trained on another base than the policy's; it is loaded as a second base in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub base: Option<PathBuf>,
    /// Use it even if its report card is missing or below the limits.
    #[serde(default)]
    pub force: bool,
}

fn one() -> f64 {
    1.0
}
fn two() -> u32 {
    2
}
fn minute() -> f64 {
    60.0
}
fn answer() -> String {
    crate::data::dataset::ANSWER_COLUMN.into()
}

impl RewardSourceSpec {
    /// Returns an entry without a kind, of weight 1.
    pub fn empty() -> Self {
        Self {
            exact: None,
            overlap: None,
            regex: None,
            json_schema: None,
            length: None,
            command: None,
            http: None,
            model: None,
            weight: one(),
            name: None,
        }
    }

    /// Returns the names of the kinds that are given.
    pub fn kinds(&self) -> Vec<&'static str> {
        let given = [
            ("exact", self.exact.is_some()),
            ("overlap", self.overlap.is_some()),
            ("regex", self.regex.is_some()),
            ("json_schema", self.json_schema.is_some()),
            ("length", self.length.is_some()),
            ("command", self.command.is_some()),
            ("http", self.http.is_some()),
            ("model", self.model.is_some()),
        ];
        given.into_iter().filter(|(_, there)| *there).map(|(kind, _)| kind).collect()
    }
}
