//! What a recipe says about rewards: a list of sources, each with its weight.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A source of rewards; exactly one of the kinds is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardSpec {
    /// 1 where the answer is what a column says, else 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<ExactSpec>,
    /// How many words answer and column share: their F1, from 0 to 1 (Rajpurkar et al. 2016, arXiv 1606.05250).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<OverlapSpec>,
    /// 1 where a regular expression matches the answer, or where what it captures is what a column says; else 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<RegexSpec>,
    /// 1 where the answer is JSON that fits a schema, else 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_schema: Option<JsonSchemaSpec>,
    /// 1 where the answer is as long as asked, less outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<LengthSpec>,
    /// What a command says: it is started for each batch of answers, reads a JSON object a line and writes a number a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandSpec>,
    /// What a server says to a POST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSpec>,
    /// What a reward model says: the score at the answer's last token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<RewardModelSpec>,
    /// What its number is multiplied by in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// Its name in the metrics, `rewards/NAME/mean`; left out, its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Exact match, after spaces at both ends are taken off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExactSpec {
    /// The column with the right answer (a list: any of them). Rows that end in an answer have it as `answer`.
    pub column: String,
    /// Take upper and lower case as the same.
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

/// Words in common, case and punctuation aside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OverlapSpec {
    /// The column with the right answer (a list: the one that fits best). Rows that end in an answer have it as `answer`.
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
    /// What is looked for anywhere in the answer; `^` and `$` tie it to the ends.
    #[schemars(extend("format" = "regex"))]
    pub pattern: String,
    /// Compare what the first group captures (the whole match where there is no group) with this column; left out, a match is enough.
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
    /// What an answer gets that is JSON but does not fit.
    #[serde(default)]
    pub parsed: f64,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LengthUnit {
    /// Tokens, without the one that ends the answer.
    #[default]
    Tokens,
    /// Characters.
    Characters,
}

/// A length to keep to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LengthSpec {
    /// What is counted.
    pub unit: LengthUnit,
    /// The shortest length that gets 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<usize>,
    /// The longest length that gets 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<usize>,
    /// How far outside the reward has fallen to 0, in a straight line; 0: at once.
    pub falloff: usize,
}

/// A command that judges answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandSpec {
    /// The program and its arguments; no shell reads them. It is given `{"prompt", "completion", "columns"}` a line, and prints a number for it, or `null` to abstain.
    #[schemars(length(min = 1))]
    pub run: Vec<String>,
    /// Seconds that a batch may take.
    #[serde(default = "minute")]
    #[schemars(range(min = 0.001))]
    pub timeout: f64,
}

/// A server that judges answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpSpec {
    /// Where to POST `{"query", "prompts", "completions", "columns"}`, each a list; the reply is `{"rewards": [number, …]}`, where null abstains.
    #[schemars(regex(pattern = r"^http://"))]
    pub url: String,
    /// Seconds that a request may take.
    #[serde(default = "minute")]
    #[schemars(range(min = 0.001))]
    pub timeout: f64,
    /// How often a request that fails is made again.
    #[serde(default = "two")]
    pub retries: u32,
}

/// A reward model that `ft` or another tool trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardModelSpec {
    /// Its directory: an adapter over the same base (then there is one base in memory), or a whole model.
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// The base of an adapter that was trained on another one than the policy's; it is a second base in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub base: Option<PathBuf>,
    /// Use it even where its report card is missing or below the limits.
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
    crate::data::prompts::ANSWER.into()
}

impl RewardSpec {
    /// A source of which no kind is given yet.
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

    /// The kinds that are given.
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
