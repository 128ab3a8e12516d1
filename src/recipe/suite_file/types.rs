//! What a suite is: its tasks, and how each is asked and scored.

use super::probe_types::{ExposureTask, ExtractionTask, MembershipTask, PairsTask, SwappedTerms};
use super::scorers::AnswerScorers;
use crate::data::rows::RowTemplate;
use crate::data::source::RowColumns;
use crate::recipe::gate::Gate;
use crate::rng;
use rand::seq::SliceRandom;
use std::collections::HashSet;
use std::path::PathBuf;

/// An evaluation suite.
#[derive(Debug, Clone, PartialEq)]
pub struct SuiteFile {
    /// What reports call it.
    pub title: Option<String>,
    /// The tasks, each with a name of its own.
    pub tasks: Vec<SuiteTask>,
    /// Conditions on results.
    pub gates: Vec<Gate>,
}

/// Items of a file that a model is asked, and how its answers are scored.
#[derive(Debug, Clone, PartialEq)]
pub struct SuiteTask {
    /// Its name.
    pub name: String,
    /// The file of rows.
    pub data: PathBuf,
    /// The lists inside a row of the file whose items are the rows, from the outside in; empty: the row itself.
    pub rows: Vec<String>,
    /// Only rows for which this is true.
    pub only: Option<RowTemplate>,
    /// Columns that are computed from those of the file, in order.
    pub columns: Vec<(String, RowTemplate)>,
    /// Only some of the rows.
    pub limit: Option<RowLimit>,
    /// The category of a row, for tables by category.
    pub category: Option<RowTemplate>,
    /// The group of a row, for what groups get.
    pub group: Option<RowTemplate>,
    /// Terms that take each other's place: each row is asked once for each.
    pub swap: Option<SwappedTerms>,
    /// The favourable answer, for what groups get.
    pub positive: Option<String>,
    /// Whether it measures what the model could do before it was tuned.
    pub forgetting: bool,
    /// The text that is asked; `None`: the row is a conversation (kind `generate`), or the kind needs none.
    pub prompt: Option<RowTemplate>,
    /// The expected answer, or a list of several that are right. Kind `choice` has its own.
    pub answer: Option<RowTemplate>,
    /// What stands between a prompt and its answer in plain text.
    pub separator: String,
    /// Answered examples before the prompt.
    pub few_shot: Option<FewShot>,
    /// Whether the chat template is used; `None`: if the model has one.
    pub chat: Option<bool>,
    /// The system prompt; in plain text, what everything begins with.
    pub system: Option<RowTemplate>,
    /// The metric that comparisons use; `None`: the first.
    pub main: Option<String>,
    /// How it is asked and scored.
    pub kind: TaskKind,
}

impl SuiteTask {
    /// The default of `separator`, that of lm-evaluation-harness.
    pub const SEPARATOR: &'static str = " ";
}

/// How many rows of a file are asked, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLimit {
    /// At most this many.
    pub rows: usize,
    /// Draws them; `None`: the first ones.
    pub seed: Option<u64>,
}

impl RowLimit {
    /// Returns how many rows are enough to read; `None`: all, of which some are drawn.
    pub fn first(limit: Option<Self>) -> Option<usize> {
        limit.filter(|limit| limit.seed.is_none()).map(|limit| limit.rows)
    }

    /// Keeps the rows that are asked, in the order of the file. Fewer rows of the same seed are a part of more.
    pub fn keep<T>(limit: Option<Self>, rows: Vec<T>) -> Vec<T> {
        let Some(Self { rows: wanted, seed: Some(seed) }) = limit else { return rows };
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.shuffle(&mut rng::stream(seed, "rows of a task", 0));
        let drawn: HashSet<usize> = order.into_iter().take(wanted).collect();
        rows.into_iter().enumerate().filter(|(i, _)| drawn.contains(i)).map(|(_, row)| row).collect()
    }
}

/// How a task is asked and scored.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskKind {
    /// The most likely of several choices is the answer.
    Choice(ChoiceTask),
    /// The model writes an answer.
    Generate(GenerateTask),
    /// How likely the model finds a text.
    Perplexity(PerplexityTask),
    /// How likely the model finds the one right continuation, and whether it would write it (LAMBADA).
    Cloze,
    /// Which of two texts the model finds more likely, and by how much.
    Pairs(PairsTask),
    /// Whether the model continues training rows word for word.
    Extraction(ExtractionTask),
    /// Whether the loss tells rows that were trained on from others.
    Membership(MembershipTask),
    /// How far canaries were memorised.
    Exposure(ExposureTask),
}

impl TaskKind {
    /// The names in files.
    pub const NAMES: [&'static str; 8] =
        ["choice", "generate", "perplexity", "cloze", "pairs", "extraction", "membership", "exposure"];

    /// Returns the name in files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Choice(_) => "choice",
            Self::Generate(_) => "generate",
            Self::Perplexity(_) => "perplexity",
            Self::Cloze => "cloze",
            Self::Pairs(_) => "pairs",
            Self::Extraction(_) => "extraction",
            Self::Membership(_) => "membership",
            Self::Exposure(_) => "exposure",
        }
    }
}

/// Answered examples that stand before a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct FewShot {
    /// How many.
    pub rows: usize,
    /// The file that they are taken from; `None`: that of the task, without the row that is asked.
    pub data: Option<PathBuf>,
    /// Examples are drawn anew for each row under this seed; `None`: the first ones of the file.
    pub seed: Option<u64>,
    /// Rows that are given in the suite, in place of a file.
    pub examples: Option<Vec<RowColumns>>,
    /// Examples of a row are those with the same value of this; `None`: all.
    pub group: Option<RowTemplate>,
    /// How they are drawn.
    pub draw: FewShotDraw,
    /// How they are written.
    pub form: FewShotForm,
    /// What stands between two examples in text.
    pub separator: String,
    /// The prompt of an example, if it is not that of the task.
    pub prompt: Option<RowTemplate>,
    /// The answer of an example, if it is not that of the task.
    pub answer: Option<RowTemplate>,
}

impl FewShot {
    /// The default of `separator`, that of lm-evaluation-harness.
    pub const SEPARATOR: &'static str = "\n\n";
}

/// How examples are drawn under a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FewShotDraw {
    /// Those of a row depend on nothing but the seed and its number.
    #[default]
    ByRow,
    /// As lm-evaluation-harness does, whose draws for a row depend on the rows before it.
    LmEval,
    /// The same for its tasks that name no split for examples: one more is drawn than is used.
    LmEvalSpare,
}

impl FewShotDraw {
    /// All by their names.
    pub const ALL: [(&'static str, Self); 3] =
        [("by_row", Self::ByRow), ("lm_eval", Self::LmEval), ("lm_eval_spare", Self::LmEvalSpare)];

    /// Returns the one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, found)| found)
    }
}

/// How examples are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FewShotForm {
    /// As one text with the prompt, which is one turn of a chat.
    #[default]
    Text,
    /// Each as a turn of the user and a turn of the assistant; in plain text the same as `Text`.
    Turns,
}

/// Choices among which the most likely one is the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ChoiceTask {
    /// The choices.
    pub choices: ChoiceTexts,
    /// The right one: its number from 0, its text, its letter, or a list of these.
    pub answer: RowTemplate,
    /// What rows with the same value are together: one question, for `question_em`.
    pub question: Option<RowTemplate>,
    /// What the choices say, a list, for `text_f1` and `text_em`; `None`: the choices themselves.
    pub texts: Option<RowTemplate>,
    /// If there is one, the choices are prompts, and the likelihood of this text after each is compared (WinoGrande).
    pub continuation: Option<RowTemplate>,
    /// Whether the model is to answer with the letter of a choice; its text is shown by the prompt, from the variable `shown`.
    pub letters: bool,
    /// Each question is asked a second time with the choices in an order drawn under this seed.
    pub shuffle: Option<u64>,
    /// What is computed.
    pub metrics: Vec<ChoiceMetric>,
}

/// The choices of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum ChoiceTexts {
    /// A template for each.
    Each(Vec<RowTemplate>),
    /// An expression whose value is the list.
    List(RowTemplate),
}

/// A metric of choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceMetric {
    /// Share of rows whose right choice is the most likely.
    Accuracy,
    /// The same by the log-likelihood divided by the number of characters.
    PerCharacter,
    /// The same by the log-likelihood divided by the number of UTF-8 bytes.
    PerByte,
    /// The same by the log-likelihood less that without a prompt.
    MutualInformation,
    /// Mean squared distance of the choices' probabilities from the right answer (Brier 1950), 0 to 2.
    Brier,
    /// Expected calibration error of the chosen choice's probability, 10 bins of equal width (Guo et al. 2017).
    Calibration,
    /// Mean probability, among the choices, of the right ones together (MC2 of TruthfulQA, Lin et al. 2022).
    RightMass,
    /// F1 of the second choice as the class that is looked for (GLUE: MRPC, QQP).
    F1,
    /// Mean of F1 over the numbers of the choices as classes.
    MacroF1,
    /// Matthews' correlation of the numbers of the choices as classes (GLUE: CoLA).
    Matthews,
    /// Share of questions all of whose rows are right (SuperGLUE: exact match of MultiRC).
    QuestionExactMatch,
    /// F1 of the words of the chosen choice's text with those of the right ones, as SQuAD compares them (SuperGLUE: ReCoRD).
    TextF1,
    /// Share of rows whose chosen text is a right one, as SQuAD compares them.
    TextExactMatch,
}

impl ChoiceMetric {
    /// All metrics by their names; those of lm-evaluation-harness where it has them.
    pub const ALL: [(&'static str, Self); 13] = [
        ("acc", Self::Accuracy),
        ("acc_norm", Self::PerCharacter),
        ("acc_bytes", Self::PerByte),
        ("acc_mutual_info", Self::MutualInformation),
        ("brier_score", Self::Brier),
        ("ece", Self::Calibration),
        ("right_mass", Self::RightMass),
        ("f1", Self::F1),
        ("macro_f1", Self::MacroF1),
        ("mcc", Self::Matthews),
        ("question_em", Self::QuestionExactMatch),
        ("text_f1", Self::TextF1),
        ("text_em", Self::TextExactMatch),
    ];

    /// Returns the metric of this name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, metric)| metric)
    }

    /// Returns its name.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, metric)| *metric == self).map_or("", |(name, _)| name)
    }
}

/// Metrics that compare written answers with expected ones: their names, and how items make their value. `eval::suite` computes
/// them.
pub const GENERATE_METRICS: [(&str, AnswerScore); 23] = [
    ("exact_match", AnswerScore::Mean),
    ("f1", AnswerScore::Mean),
    ("squad_em", AnswerScore::Mean),
    ("HasAns_f1", AnswerScore::Joint),
    ("HasAns_exact", AnswerScore::Joint),
    ("NoAns_f1", AnswerScore::Joint),
    ("NoAns_exact", AnswerScore::Joint),
    ("rouge1", AnswerScore::Mean),
    ("rouge2", AnswerScore::Mean),
    ("rougeL", AnswerScore::Mean),
    ("rougeLsum", AnswerScore::Mean),
    ("bleu", AnswerScore::Joint),
    ("chrf", AnswerScore::Joint),
    ("chrf++", AnswerScore::Joint),
    ("ter", AnswerScore::Joint),
    ("edit_distance", AnswerScore::Mean),
    ("number", AnswerScore::Mean),
    ("macro_f1", AnswerScore::Joint),
    ("weighted_f1", AnswerScore::Joint),
    ("mcc", AnswerScore::Joint),
    ("balanced_accuracy", AnswerScore::Joint),
    ("pearson", AnswerScore::Joint),
    ("spearman", AnswerScore::Joint),
];

/// How the items of a task make the value of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerScore {
    /// Each item has a value, and the mean is taken.
    Mean,
    /// All items together have one value.
    Joint,
}

/// Answers that the model writes.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateTask {
    /// Names out of [`GENERATE_METRICS`], or of other scorers.
    pub metrics: Vec<String>,
    /// Most tokens of an answer; `None`: 256, or for conversations the longest expected answer and 16 more.
    pub max_new_tokens: Option<usize>,
    /// Texts that end an answer; `None`: the separator of examples in plain text, none in a chat.
    pub stop: Option<Vec<String>>,
    /// What is taken of an answer, in order.
    pub extract: Vec<AnswerFilter>,
    /// What exact match ignores.
    pub normalise: Vec<Normaliser>,
    /// Regular expressions whose matches exact match ignores.
    pub ignore: Vec<String>,
    /// Several sampled answers; `None`: one, greedily.
    pub samples: Option<AnswerSampling>,
    /// Settings of metrics that need some.
    pub scorers: AnswerScorers,
}

/// Takes a part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerFilter {
    /// What a regular expression finds.
    Regex(RegexFilter),
    /// In small letters.
    Lowercase,
    /// In capitals.
    Uppercase,
    /// Without whitespace around it.
    Strip,
    /// Another text for each of some.
    Map(AnswerMap),
    /// The letter of a choice.
    Letter(LetterFilter),
    /// The tags of pairs `('word', 'TAG')`, with a space between them.
    Tags,
}

/// Replaces whole answers.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerMap {
    /// Answers, and what takes their place.
    pub texts: Vec<(String, String)>,
    /// What takes the place of all others; `None`: they stay.
    pub otherwise: Option<String>,
}

/// Takes what a regular expression finds.
#[derive(Debug, Clone, PartialEq)]
pub struct RegexFilter {
    /// The expression. If it has groups, the first one that is not empty is taken.
    pub pattern: String,
    /// Which of its matches, from 0; negative numbers count from the last, -1.
    pub pick: i64,
    /// The answer if nothing is found.
    pub otherwise: String,
}

impl RegexFilter {
    /// The default of `otherwise`, that of lm-evaluation-harness.
    pub const OTHERWISE: &'static str = "[invalid]";

    /// Returns the filter that takes the first match.
    pub fn first(pattern: impl Into<String>) -> Self {
        Self { pattern: pattern.into(), pick: 0, otherwise: Self::OTHERWISE.into() }
    }
}

/// Takes the letter of a choice, as `(A)`: what a regular expression finds, else the choice whose text stands in the answer, else a
/// letter behind a colon.
#[derive(Debug, Clone, PartialEq)]
pub struct LetterFilter {
    /// The choices of a row, a list.
    pub choices: RowTemplate,
    /// The expression that is tried first, which match is taken, and the answer if nothing is found.
    pub regex: RegexFilter,
    /// Whether case does not count where texts of choices are looked for.
    pub ignore_case: bool,
    /// Whether punctuation does not count there.
    pub ignore_punctuation: bool,
    /// Regular expressions whose matches do not count there.
    pub ignore: Vec<String>,
}

/// What exact match ignores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normaliser {
    /// Capital letters.
    Case,
    /// ASCII punctuation.
    Punctuation,
    /// Digits.
    Numbers,
    /// Whitespace around the text.
    Whitespace,
}

impl Normaliser {
    /// All by their names.
    pub const ALL: [(&'static str, Self); 4] = [
        ("case", Self::Case),
        ("punctuation", Self::Punctuation),
        ("numbers", Self::Numbers),
        ("whitespace", Self::Whitespace),
    ];

    /// Returns the one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, found)| found)
    }
}

/// Several answers to each prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerSampling {
    /// How many.
    pub answers: usize,
    /// The sampling temperature.
    pub temperature: f64,
    /// Answers are sampled from the most likely tokens with this share of the probability.
    pub top_p: f64,
    /// Random seed.
    pub seed: u64,
    /// Whether the most frequent one is scored (self-consistency, Wang et al. 2022); otherwise scores are means.
    pub vote: bool,
}

/// How likely a model finds a text.
#[derive(Debug, Clone, PartialEq)]
pub struct PerplexityTask {
    /// The text of a row.
    pub text: RowTemplate,
    /// Most tokens that the model sees; `None`: its context.
    pub window: Option<usize>,
    /// Tokens that each window predicts; `None`: all of it, so that windows do not overlap.
    pub stride: Option<usize>,
    /// What the likelihood is divided by.
    pub per: Vec<PerplexityUnit>,
}

/// What the likelihood of a text is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PerplexityUnit {
    /// Tokens, which differ between models.
    Token,
    /// Words: pieces between runs of whitespace.
    Word,
    /// UTF-8 bytes.
    Byte,
}

impl PerplexityUnit {
    /// All by their names.
    pub const ALL: [(&'static str, Self); 3] = [("token", Self::Token), ("word", Self::Word), ("byte", Self::Byte)];

    /// Returns the one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, found)| found)
    }
}
