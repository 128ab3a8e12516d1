//! Reads all records of a project at one moment. Knows no SQL.

use crate::error::Result;
use crate::label::record::annotator::Annotator;
use crate::label::record::answer::{Candidate, CandidatePair, StoredPrompt};
use crate::label::record::settings::ProjectSettings;
use crate::label::record::vote::Vote;
use crate::label::store::Store;
use std::collections::HashMap;

/// All records of a project.
#[derive(Debug, Clone, Default)]
pub struct Project {
    /// Settings of the project.
    pub settings: ProjectSettings,
    /// The prompts.
    pub prompts: Vec<StoredPrompt>,
    /// The answers to the prompts.
    pub candidates: Vec<Candidate>,
    /// The pairs of answers, hidden repeats included.
    pub pairs: Vec<CandidatePair>,
    /// The annotators.
    pub annotators: Vec<Annotator>,
    /// May contain undone votes; they never count.
    pub votes: Vec<Vote>,
}

impl Project {
    /// Reads all records from the store.
    pub fn read(store: &Store) -> Result<Self> {
        Ok(Self {
            settings: store.settings()?,
            prompts: store.prompts()?,
            candidates: store.candidates()?,
            pairs: store.pairs()?,
            annotators: store.annotators()?,
            votes: store.votes()?,
        })
    }

    /// Returns the candidates by their ids.
    pub fn candidates_by_id(&self) -> HashMap<i64, &Candidate> {
        self.candidates.iter().map(|c| (c.id, c)).collect()
    }

    /// Returns the prompts by their ids.
    pub fn prompts_by_id(&self) -> HashMap<i64, &StoredPrompt> {
        self.prompts.iter().map(|p| (p.id, p)).collect()
    }
}
