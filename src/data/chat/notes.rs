//! Notes on what tokenisation did to rows that the user should know about, counted by kind.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Something that happened to a row, which is not an error but is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowNote {
    /// The template leaves out the row's tool definitions.
    ToolsLeftOut,
    /// The template leaves out tool calls of an assistant turn that also has text.
    CallsLeftOut,
    /// The template leaves out the reasoning of an answer that is trained on.
    ReasoningLeftOut,
    /// The template prints a list of content parts as Python code.
    PartsPrinted,
    /// The answer is trained on after the prompt of generation, because the template renders the conversation
    /// differently once it is answered.
    AsGenerated,
    /// The prompt opens a thought, but the row has no reasoning: an empty thought is trained on.
    EmptyThought,
}

impl RowNote {
    /// Describes, in a sentence for the user, what happened to this many rows.
    pub fn describe(self, rows: usize) -> String {
        let (n, s) = (rows, if rows == 1 { "" } else { "s" });
        match self {
            RowNote::ToolsLeftOut => {
                format!("{n} row{s} with `tools`: the chat template leaves them out, so training does not see them")
            }
            RowNote::CallsLeftOut => {
                format!("{n} row{s} with both text and tool calls: the chat template leaves the calls out")
            }
            RowNote::ReasoningLeftOut => {
                format!("{n} row{s} with reasoning: the chat template leaves it out, so training does not see it")
            }
            RowNote::PartsPrinted => format!(
                "{n} row{s} with content in parts: the chat template prints the list as Python code; write the content as text"
            ),
            RowNote::AsGenerated => format!(
                "{n} row{s} with answers that become examples of their own, each after the prompt of generation: the \
                 chat template renders the conversation differently once it is answered"
            ),
            RowNote::EmptyThought => format!(
                "{n} row{s} without reasoning, although the chat template's prompt opens a thought: an empty one is \
                 trained on"
            ),
        }
    }
}

/// For each note, the number of rows it applies to and the line of the first one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteCounts(BTreeMap<RowNote, (usize, usize)>);

impl NoteCounts {
    /// Adds the notes of one row; a note that occurs twice in a row counts once.
    pub fn add(&mut self, notes: &[RowNote], line: usize) {
        for (i, note) in notes.iter().enumerate() {
            if !notes[..i].contains(note) {
                self.0.entry(*note).or_insert((0, line)).0 += 1;
            }
        }
    }

    /// Returns each note with its number of rows and its first line.
    pub fn iter(&self) -> impl Iterator<Item = (RowNote, usize, usize)> + '_ {
        self.0.iter().map(|(note, (rows, line))| (*note, *rows, *line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_counts_once_and_the_first_line_is_kept() {
        let mut notes = NoteCounts::default();
        notes.add(&[RowNote::ToolsLeftOut, RowNote::ToolsLeftOut, RowNote::EmptyThought], 7);
        notes.add(&[RowNote::ToolsLeftOut], 9);
        let found: Vec<_> = notes.iter().collect();
        assert_eq!(found, [(RowNote::ToolsLeftOut, 2, 7), (RowNote::EmptyThought, 1, 7)]);
    }
}
