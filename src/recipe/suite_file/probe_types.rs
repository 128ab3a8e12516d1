//! Tasks that ask what a model prefers and remembers: pairs of texts, training rows, members of the training data, canaries. And
//! what answers are searched for.

use crate::data::rows::RowTemplate;
use crate::scrub::PersonalDataKind;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Pairs of texts of which a model should prefer neither (kind `pairs`).
#[derive(Debug, Clone, PartialEq)]
pub struct PairsTask {
    /// What both texts follow; `None`: nothing.
    pub context: Option<RowTemplate>,
    /// The first text, the stereotypical one in published data.
    pub first: RowTemplate,
    /// The second text.
    pub second: RowTemplate,
    /// A text without sense in this place (StereoSet), which says how well the model knows the language.
    pub unrelated: Option<RowTemplate>,
    /// What a pair is about: scores are means over these of means over pairs (StereoSet's targets).
    pub term: Option<RowTemplate>,
    /// Whether the log-likelihood of a text is divided by its tokens.
    pub per_token: bool,
}

impl PairsTask {
    /// Metrics that need no unrelated text.
    pub const METRICS: [&'static str; 3] = ["absolute_difference", "difference", "prefers_first"];
    /// Further ones of pairs with an unrelated text.
    pub const WITH_UNRELATED: [&'static str; 3] = ["lm_score", "stereotype_score", "icat"];
    /// Those whose best value lies in the middle.
    pub const NEUTRAL: [(&'static str, f64); 3] =
        [("difference", 0.0), ("prefers_first", 0.5), ("stereotype_score", 0.5)];

    /// Returns the names of its metrics.
    pub fn metrics(&self) -> impl Iterator<Item = &'static str> {
        let more: &[&str] = if self.unrelated.is_some() { &Self::WITH_UNRELATED } else { &[] };
        Self::METRICS.iter().chain(more).copied()
    }
}

/// Training rows that a model may be able to continue word for word (kind `extraction`).
#[derive(Debug, Clone, PartialEq)]
pub struct ExtractionTask {
    /// The text of a row; `None`: the tokens that the row has in training.
    pub text: Option<RowTemplate>,
    /// Tokens that are given; of a row with an answer, those of the answer besides the whole prompt. `None`: 50, and 0 of an answer.
    pub prefix: Option<usize>,
    /// Tokens that have to follow; rows with fewer are left out. `None`: 50, and of an answer all.
    pub continuation: Option<usize>,
    /// Whether the rows were not trained on, so that continuing them is no harm.
    pub held_out: bool,
}

impl ExtractionTask {
    /// Tokens of a prefix and of a continuation (Carlini et al. 2023).
    pub const TOKENS: usize = 50;
}

/// Rows that were trained on beside rows that were not (kind `membership`).
#[derive(Debug, Clone, PartialEq)]
pub struct MembershipTask {
    /// The file of rows that were not trained on.
    pub others: PathBuf,
    /// The text of a row; `None`: the tokens that the row has in training.
    pub text: Option<RowTemplate>,
}

impl MembershipTask {
    /// The metrics.
    pub const METRICS: [&'static str; 4] = ["auc_loss", "tpr_loss", "auc_ratio", "tpr_ratio"];
}

/// Canaries among texts that they could have been (kind `exposure`).
#[derive(Debug, Clone, PartialEq)]
pub struct ExposureTask {
    /// The form of the answer: `#` stands for a digit and `@` for a small letter.
    pub pattern: RowTemplate,
    /// How many other texts of the same form a canary is compared with.
    pub others: usize,
    /// The random seed of these.
    pub seed: u64,
}

impl ExposureTask {
    /// The metrics.
    pub const METRICS: [&'static str; 2] = ["exposure", "exposure_fitted"];
    /// The default of `others`.
    pub const OTHERS: usize = 500;
}

/// What answers are searched for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ContentSettings {
    /// A lexicon of sentiment: lines with a word, a tab and its valence. Needed by `sentiment`.
    pub lexicon: Option<PathBuf>,
    /// A list of words and phrases, one a line. Needed by `listed_words`.
    pub words: Option<PathBuf>,
    /// Kinds of personal data that `personal_data` counts.
    pub personal_data: Vec<PersonalDataKind>,
}

/// Terms of several groups that take each other's place in a template: name of a group -> its terms, equally many for each.
pub type SwappedTerms = BTreeMap<String, Vec<String>>;
