//! The report of an import.

use crate::recipe::lm_eval_file::LmEvalTask;
use serde::Serialize;

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NoteStatus {
    /// The suite says the same.
    Mapped,
    /// The suite says nearly the same.
    Approximated,
    /// The suite does not have it.
    Refused,
    /// It does not change what a task asks or how it is scored.
    Unused,
}

impl NoteStatus {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mapped => "mapped",
            Self::Approximated => "approximated",
            Self::Refused => "refused",
            Self::Unused => "unused",
        }
    }
}

/// What became of a key of a task file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImportNote {
    /// The task.
    pub task: String,
    /// The key.
    pub key: String,
    /// File and line of the key; the file alone for a key that is not there.
    pub place: String,
    /// What became of it.
    pub status: NoteStatus,
    /// In words.
    pub note: String,
}

/// The notes of one task.
pub struct TaskNotes<'a> {
    task: &'a LmEvalTask,
    name: String,
    /// Whether the task cannot be imported.
    pub failed: bool,
    notes: Vec<ImportNote>,
}

impl<'a> TaskNotes<'a> {
    /// Starts the notes of a task with this name.
    pub fn new(task: &'a LmEvalTask, name: &str) -> Self {
        Self { task, name: name.into(), failed: false, notes: Vec::new() }
    }

    /// Notes what became of a key. The first part of a dotted key is looked for in the file.
    pub fn add(&mut self, status: NoteStatus, key: &str, note: impl Into<String>) {
        let first = key.split('.').next().unwrap_or(key);
        let place = match self.task.keys.iter().find(|known| known.name == first) {
            Some(known) => known.place.to_string(),
            None => self.task.path.display().to_string(),
        };
        self.notes.push(ImportNote { task: self.name.clone(), key: key.into(), place, status, note: note.into() });
    }

    /// Notes that a key is in the suite as it is.
    pub fn mapped(&mut self, key: &str, note: impl Into<String>) {
        self.add(NoteStatus::Mapped, key, note);
    }

    /// Notes that a key is nearly in the suite.
    pub fn approximated(&mut self, key: &str, note: impl Into<String>) {
        self.add(NoteStatus::Approximated, key, note);
    }

    /// Notes that a part of a task is left out.
    pub fn refused_part(&mut self, key: &str, note: impl Into<String>) {
        self.add(NoteStatus::Refused, key, note);
    }

    /// Notes that a task cannot be imported because of a key.
    pub fn refused(&mut self, key: &str, note: impl Into<String>) {
        self.failed = true;
        self.add(NoteStatus::Refused, key, note);
    }

    /// Returns all notes in the order of the file's keys.
    pub fn into_notes(self) -> Vec<ImportNote> {
        self.notes
    }
}
