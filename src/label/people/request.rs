//! Defines what an annotator asks of the desk, and what the desk answers.

use super::screen::{ScreenTask, ScreenVote};
use super::task::{LabelProgress, TaskRefusal};
use crate::error::Error;

/// A request of an annotator to the desk.
#[derive(Debug, Clone, PartialEq)]
pub enum DeskRequest {
    /// Returns the task that the annotator holds, or assigns one.
    Next,
    /// Saves a vote and assigns the next task.
    Vote(ScreenVote),
    /// Undoes the last vote.
    Undo,
    /// Renews the lease: the annotator is still at work.
    Keep,
    /// Shortens the lease: the page was closed.
    Leave,
}

/// Response to a request: the annotator's next task and the progress.
#[derive(Debug, Clone, PartialEq)]
pub struct DeskResponse {
    /// `None` if there is nothing to do, now or at all.
    pub task: Option<ScreenTask>,
    /// Without a task: true if other people hold the remaining tasks, which may become free again.
    pub wait: bool,
    /// Progress of the annotator and of the project.
    pub progress: LabelProgress,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq)]
pub enum DeskError {
    /// The request is invalid; the text says what was expected.
    Invalid(String),
    /// The session does not allow it.
    Refused(TaskRefusal),
    /// Nothing was saved; the same request may be sent again.
    NotSaved(Error),
}

impl From<TaskRefusal> for DeskError {
    fn from(refusal: TaskRefusal) -> Self {
        Self::Refused(refusal)
    }
}
