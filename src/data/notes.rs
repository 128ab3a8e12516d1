//! What happened to rows on their way to tokens that their author should know of, counted by kind.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Something that is no error and is not silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// The template writes nothing of the row's tool definitions.
    ToolsLeftOut,
    /// The template writes nothing of the calls beside an assistant's text.
    CallsLeftOut,
    /// The template writes nothing of the reasoning of a learnt answer.
    ReasoningLeftOut,
    /// The template prints a list of content parts as Python writes it.
    PartsPrinted,
    /// The answer is learnt after the prompt that generation writes, because the template writes the conversation
    /// otherwise once it is answered.
    AsGenerated,
    /// The prompt opens a thought that the row does not have: an empty one is learnt.
    EmptyThought,
}

impl Note {
    /// What happened to so many rows.
    pub fn words(self, rows: usize) -> String {
        let (n, s) = (rows, if rows == 1 { "" } else { "s" });
        match self {
            Note::ToolsLeftOut => {
                format!("{n} row{s} with `tools`: the chat template leaves them out, so they are learnt without")
            }
            Note::CallsLeftOut => {
                format!("{n} row{s} with tool calls beside text: the chat template leaves the calls out")
            }
            Note::ReasoningLeftOut => {
                format!("{n} row{s} with reasoning: the chat template leaves it out, so answers are learnt without")
            }
            Note::PartsPrinted => format!(
                "{n} row{s} with content in parts: the chat template prints the list as Python code; write the content as text"
            ),
            Note::AsGenerated => format!(
                "{n} row{s} with answers that are learnt each in an example of its own, after the prompt that generation \
                 writes: the chat template writes the conversation otherwise once it is answered"
            ),
            Note::EmptyThought => format!(
                "{n} row{s} without reasoning, while the chat template's prompt opens it: an empty thought is learnt"
            ),
        }
    }
}

/// How many rows each note is about, and the first line that it is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes(BTreeMap<Note, (usize, usize)>);

impl Notes {
    /// Counts the notes of one row.
    pub fn add(&mut self, notes: &[Note], line: usize) {
        for (i, note) in notes.iter().enumerate() {
            if !notes[..i].contains(note) {
                self.0.entry(*note).or_insert((0, line)).0 += 1;
            }
        }
    }

    /// Each note with its rows and first line.
    pub fn iter(&self) -> impl Iterator<Item = (Note, usize, usize)> + '_ {
        self.0.iter().map(|(note, (rows, line))| (*note, *rows, *line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_counts_once_and_the_first_line_is_kept() {
        let mut notes = Notes::default();
        notes.add(&[Note::ToolsLeftOut, Note::ToolsLeftOut, Note::EmptyThought], 7);
        notes.add(&[Note::ToolsLeftOut], 9);
        let found: Vec<_> = notes.iter().collect();
        assert_eq!(found, [(Note::ToolsLeftOut, 2, 7), (Note::EmptyThought, 1, 7)]);
    }
}
