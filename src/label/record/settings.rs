//! Defines the settings of a project: what annotators are asked, and how.

use serde::{Deserialize, Serialize};

/// Settings of a project: what annotators are asked, and how. Written when the project is created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectSettings {
    /// Title shown above every task.
    pub title: String,
    /// Guidelines that say what makes an answer better, as Markdown.
    pub guidelines: String,
    /// Criteria by which each answer is rated, in addition to the choice.
    pub criteria: Vec<Criterion>,
    /// Whether annotators who choose an answer may say how much better it is (1 to 3).
    pub strength: bool,
    /// Whether annotators may write an answer that is better than both.
    pub edit: bool,
    /// How many people judge a pair, unless the selection of the pair says otherwise.
    pub overlap: i64,
    /// Seconds without a sign of activity after which a task is given to somebody else.
    pub lease: i64,
    /// Random seed of the project: for sides, repeats and the selection of pairs.
    pub seed: u64,
}

impl Default for ProjectSettings {
    fn default() -> Self {
        Self {
            title: "Which answer is better?".into(),
            guidelines: String::new(),
            criteria: Vec::new(),
            strength: false,
            edit: true,
            overlap: 1,
            lease: 300,
            seed: 7,
        }
    }
}

/// A criterion by which each answer is rated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Criterion {
    /// Name of the criterion.
    pub name: String,
    /// The best rating; the worst is 1.
    pub best: i64,
}
