//! Defines annotators: people, reward models, language models and commands that compare answers.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// The kind of an annotator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnnotatorKind {
    /// Somebody who judges in a browser or a terminal.
    Person,
    /// A reward model.
    Reward,
    /// A language model with a rubric.
    Judge,
    /// A program of the user.
    Command,
}

impl AnnotatorKind {
    /// All kinds.
    pub const ALL: [AnnotatorKind; 4] =
        [AnnotatorKind::Person, AnnotatorKind::Reward, AnnotatorKind::Judge, AnnotatorKind::Command];

    /// Returns the name under which the kind is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Reward => "reward",
            Self::Judge => "judge",
            Self::Command => "command",
        }
    }

    /// Returns the kind with this name; `None` if there is none.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }
}

impl fmt::Display for AnnotatorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A person or a machine that judges pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Annotator {
    /// Id in the store.
    pub id: i64,
    /// Name, unique in the project.
    pub name: String,
    /// Kind of the annotator.
    pub kind: AnnotatorKind,
    /// SHA-256 of the person's token, hexadecimal; `None` if the annotator cannot sign in.
    pub token_hash: Option<String>,
    /// For a machine its model, rubric, order, …; `admin: true` for a person who may see everybody's votes.
    pub detail: Value,
}

impl Annotator {
    /// Returns true if this person may see everybody's votes.
    pub fn is_admin(&self) -> bool {
        self.detail.get("admin").and_then(Value::as_bool).unwrap_or(false)
    }
}
