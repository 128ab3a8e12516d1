//! What scores written answers beside comparison with expected ones: programs, sandboxes, reward models and judges.

use super::probe_types::ContentSettings;
use super::types::GenerateTask;
use crate::data::rows::RowTemplate;
use crate::rewards::spec::{CommandSpec, HttpSpec, RewardModelSpec};
use crate::sandbox::{Isolation, Limits};
use std::path::PathBuf;

/// Metrics of written answers that need no expected answer, or read it as something else than text. Beside these there is `pass@K`.
pub const SCORER_METRICS: [&str; 15] = [
    INSTRUCTIONS,
    TOOL_CALLS,
    JSON,
    JSON_EQUAL,
    SUPPORT,
    DISAGREEMENT,
    REWARD,
    WIN_RATE,
    SENTIMENT,
    LISTED_WORDS,
    REFUSAL,
    OVER_REFUSAL,
    PERSONAL_DATA,
    "pass@1",
    "pass@10",
];
/// Name of the metric of instructions that a program verifies.
pub const INSTRUCTIONS: &str = "instructions";
/// Name of the metric of tool calls.
pub const TOOL_CALLS: &str = "tool_calls";
/// Name of the metric of answers in JSON.
pub const JSON: &str = "json";
/// Name of the metric of answers whose JSON is that of an expected answer.
pub const JSON_EQUAL: &str = "json_equal";
/// Name of the metric of support by a context.
pub const SUPPORT: &str = "support";
/// Name of the metric of how far samples disagree.
pub const DISAGREEMENT: &str = "disagreement";
/// Name of the metric of rewards.
pub const REWARD: &str = "reward";
/// Name of the metric of comparisons of answers.
pub const WIN_RATE: &str = "win_rate";

/// Name of the metric of a lexicon's sentiment.
pub const SENTIMENT: &str = "sentiment";
/// Name of the metric of words of a list.
pub const LISTED_WORDS: &str = "listed_words";
/// Name of the metric of refusals where they are right.
pub const REFUSAL: &str = "refusal";
/// Name of the metric of refusals where they are wrong.
pub const OVER_REFUSAL: &str = "over_refusal";
/// Name of the metric of personal data that a prompt does not have.
pub const PERSONAL_DATA: &str = "personal_data";
/// Metrics of what answers are searched for.
pub const CONTENT_METRICS: [&str; 5] = [SENTIMENT, LISTED_WORDS, REFUSAL, OVER_REFUSAL, PERSONAL_DATA];

/// Settings of metrics that need some.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AnswerScorers {
    /// The JSON Schema of answers.
    pub schema: Option<SchemaSource>,
    /// The text that answers are to be supported by.
    pub context: Option<RowTemplate>,
    /// How programs in answers are run.
    pub code: Option<CodeTests>,
    /// What gives rewards.
    pub reward: Option<RewardBy>,
    /// How answers are compared in pairs.
    pub compare: Option<PairComparison>,
    /// What answers are searched for.
    pub content: ContentSettings,
}

/// Where a JSON Schema is.
#[derive(Debug, Clone, PartialEq)]
pub enum SchemaSource {
    /// In a file, for all rows.
    File(PathBuf),
    /// In a column: a map, or JSON as text.
    Column(RowTemplate),
}

/// Programs made of answers, which pass if they end without an error.
#[derive(Debug, Clone, PartialEq)]
pub struct CodeTests {
    /// The text of a program; the answer is in the variable `completion`.
    pub program: RowTemplate,
    /// The right completion; if there is one, the tests are tried with it first.
    pub reference: Option<RowTemplate>,
    /// The command that runs a program; `{file}` stands for its file.
    pub command: Vec<String>,
    /// Name of the file.
    pub file: String,
    /// How programs are isolated.
    pub isolation: Isolation,
    /// Limits of each program.
    pub limits: Limits,
}

/// What gives an answer a reward.
#[derive(Debug, Clone, PartialEq)]
pub enum RewardBy {
    /// A reward model.
    Model(RewardModelSpec),
    /// A program that reads `{"prompt", "completion", "columns"}` from each line and prints a number.
    Command(CommandSpec),
    /// A server.
    Server(HttpSpec),
}

/// How answers are compared in pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct PairComparison {
    /// What decides.
    pub judge: PairJudgeBy,
    /// What answers are compared with.
    pub against: Opponent,
    /// How difficult a row's prompt is for models in general, a number, for the win rate at equal length; `None`: not known.
    pub difficulty: Option<RowTemplate>,
}

/// What an answer is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Opponent {
    /// The answer of the first model.
    #[default]
    Baseline,
    /// The expected answer.
    Expected,
}

/// What decides which of two answers is better.
#[derive(Debug, Clone, PartialEq)]
pub enum PairJudgeBy {
    /// The reward of the task; a difference up to `margin` is a tie.
    Reward {
        /// The difference.
        margin: f64,
    },
    /// A language model with a rubric, as in `ft label judge`.
    Model {
        /// Its directory.
        path: PathBuf,
        /// An adapter on it.
        adapter: Option<PathBuf>,
        /// A file with the criteria; `None`: the built-in ones.
        rubric: Option<PathBuf>,
        /// Tokens of reasons that it may write first.
        reasoning: usize,
    },
    /// A program, as in `ft label judge`.
    Command(CommandSpec),
}

/// Returns K of a metric `pass@K`.
pub fn attempts(metric: &str) -> Option<usize> {
    let digits = metric.strip_prefix("pass@")?;
    let plain = !digits.is_empty() && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

/// Returns true for a metric of this module, and those of programs.
pub fn is_scorer(metric: &str) -> bool {
    SCORER_METRICS.contains(&metric) || attempts(metric).is_some()
}

/// Returns true if a metric compares with the expected answer.
pub fn needs_answer(metric: &str) -> bool {
    !is_scorer(metric) || [TOOL_CALLS, JSON_EQUAL].contains(&metric)
}

impl GenerateTask {
    /// Returns true if a metric or a comparison reads the expected answer.
    pub fn needs_answer(&self) -> bool {
        let compared = self.scorers.compare.as_ref().is_some_and(|compare| compare.against == Opponent::Expected);
        compared || self.metrics.iter().any(|metric| needs_answer(metric))
    }

    /// Returns true if answers are compared with those of the first model.
    pub fn compares_with_baseline(&self) -> bool {
        self.scorers.compare.as_ref().is_some_and(|compare| compare.against == Opponent::Baseline)
    }

    /// Returns the names of the numbers that a metric gives, the main one first; others than comparisons with expected answers give several.
    pub fn numbers_of(&self, metric: &str) -> Vec<String> {
        let names: &[&str] = match metric {
            // The names of lm-evaluation-harness.
            INSTRUCTIONS => {
                &["prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc"]
            }
            TOOL_CALLS => &["tool_calls", "tool_names", "tool_calls_f1"],
            JSON if self.scorers.schema.is_some() => &["json_schema", "json"],
            SUPPORT => &["support_words", "support_numbers", "support_names"],
            DISAGREEMENT => &["disagreement", "answer_entropy"],
            WIN_RATE
                if matches!(&self.scorers.compare, Some(PairComparison { judge: PairJudgeBy::Reward { .. }, .. })) =>
            {
                &["win_rate", "win_rate_length_controlled", "ties"]
            }
            WIN_RATE => &["win_rate", "win_rate_length_controlled", "ties", "inconsistent"],
            other => &[other],
        };
        names.iter().map(|name| name.to_string()).collect()
    }
}
