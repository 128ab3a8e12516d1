//! Defines what the assignment answers: the next task of an annotator, or why a request is refused.

use crate::label::record::lease::Lease;

/// What an annotator is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextTask {
    /// Judge this task.
    Task {
        /// The task.
        lease: Lease,
        /// Whether the annotator did not hold it before.
        fresh: bool,
    },
    /// Wait: all remaining tasks are held by other people and may become free again.
    Wait,
    /// Nothing is left to judge.
    Done,
}

/// Why a vote or an undo is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskRefusal {
    /// The task is not held by this person: never assigned to them, or already judged.
    NotYours,
    /// The lease ran out, and others have judged the task meanwhile.
    Taken,
    /// There is no vote to undo.
    NothingGiven,
}

/// Progress of one person and of the whole project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelProgress {
    /// Votes of this person that were not undone.
    pub mine: usize,
    /// Judgements given in the whole project.
    pub given: i64,
    /// Judgements wanted in the whole project.
    pub wanted: i64,
}
