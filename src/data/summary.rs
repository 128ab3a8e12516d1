//! What was read, and what became of it, in numbers and in words.

use super::RowFormat;
use super::notes::{Note, Notes};
use crate::report;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What was read of one file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileSummary {
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// The format that was read (never `auto`).
    pub format: RowFormat,
    pub rows: usize,
    /// Empty lines passed over.
    pub blank_lines: usize,
    /// Columns that the format does not read.
    pub unused_columns: Vec<String>,
    /// Rows whose token ids were made now, and not found in the cache.
    pub tokenised_rows: usize,
}

/// A source of a mix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Share {
    pub path: PathBuf,
    pub weight: f64,
    pub examples: usize,
    /// Examples of it in one epoch; above `examples`, some come more than once.
    pub per_epoch: usize,
}

/// Something that happened to some rows, and the first of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Noted {
    pub note: Note,
    pub rows: usize,
    pub path: PathBuf,
    pub line: usize,
}

/// Adds the notes of rows of a file, `before` lines into it, to those of all.
pub(super) fn gather(notes: &Notes, path: &Path, before: usize, all: &mut Vec<Noted>) {
    for (note, rows, line) in notes.iter() {
        match all.iter_mut().find(|n| n.note == note) {
            Some(noted) => noted.rows += rows,
            None => all.push(Noted { note, rows, path: path.to_path_buf(), line: before + line }),
        }
    }
}

/// All that was read, and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The file, or the first of several.
    pub path: PathBuf,
    /// SHA-256 of the file; of several, of the list of theirs.
    pub sha256: String,
    /// SHA-256 of the token ids of all items and of what of them is learnt.
    pub tokens_sha256: String,
    /// The format of the first file.
    pub format: RowFormat,
    pub rows: usize,
    /// Empty lines passed over.
    pub blank_lines: usize,
    /// Columns that the format does not read, of any file.
    pub unused_columns: Vec<String>,
    pub examples: usize,
    /// Examples longer than `max_len`, before the policy.
    pub too_long: usize,
    pub dropped: usize,
    pub truncated: usize,
    pub split: usize,
    /// Answers whose first token would have merged with the prompt; encoded in two pieces.
    pub split_boundaries: usize,
    /// What happened to rows that their author should know of.
    pub notes: Vec<Noted>,
    pub tokens: usize,
    pub supervised_tokens: usize,
    /// Lengths of the examples before the policy (of a pair, of its longer side).
    pub lengths: Quantiles,
    /// Where the longest one stands: its line, and its file.
    pub longest_line: usize,
    pub longest_file: PathBuf,
    pub files: Vec<FileSummary>,
    /// The sources, where they have weights.
    pub mix: Vec<Share>,
    /// Rows whose token ids were made now, and the time it took.
    pub tokenised_rows: usize,
    pub seconds: f64,
}

impl Summary {
    /// The share of tokens that is learnt.
    pub fn supervised_share(&self) -> f64 {
        self.supervised_tokens as f64 / self.tokens.max(1) as f64
    }

    /// The file, or how many there are.
    pub fn name(&self) -> String {
        match self.files.len() {
            0 | 1 => self.path.display().to_string(),
            n => format!("{} and {} more files", self.path.display(), n - 1),
        }
    }

    /// One line for the person at the terminal.
    pub fn line(&self) -> String {
        let mut formats: Vec<&str> = self.files.iter().map(|f| f.format.name()).collect();
        formats.dedup();
        let mut parts = vec![
            format!("{}: {} {} rows", self.name(), report::count(self.rows as u64), formats.join(" and ")),
            format!("{} examples", report::count(self.examples as u64)),
            format!("{} tokens, {:.1} % learnt", report::count(self.tokens as u64), 100.0 * self.supervised_share()),
        ];
        for (n, what) in [
            (self.dropped, "dropped"),
            (self.truncated, "truncated"),
            (self.split, "split"),
            (self.blank_lines, "empty lines"),
        ] {
            if n > 0 {
                parts.push(format!("{} {what}", report::count(n as u64)));
            }
        }
        parts.extend(self.pace());
        parts.join(", ")
    }

    /// How fast rows became tokens, where it took a while, or that they were there already.
    fn pace(&self) -> Option<String> {
        match self.tokenised_rows {
            0 => Some("token ids from the cache".into()),
            n if self.seconds >= 1.0 => {
                let kept = self.rows - n.min(self.rows);
                let kept =
                    if kept > 0 { format!(" ({} from the cache)", report::count(kept as u64)) } else { String::new() };
                Some(format!("{} rows/s{kept}", report::count((n as f64 / self.seconds) as u64)))
            }
            _ => None,
        }
    }

    /// One line a source of a mix: how much of an epoch it makes.
    pub fn mix_lines(&self) -> Vec<String> {
        let total: usize = self.mix.iter().map(|s| s.per_epoch).sum();
        let line = |s: &Share| {
            let times = s.per_epoch as f64 / s.examples.max(1) as f64;
            format!(
                "  {:.1} % of an epoch, {} of {} examples ({}): {}",
                100.0 * s.per_epoch as f64 / total.max(1) as f64,
                report::count(s.per_epoch as u64),
                report::count(s.examples as u64),
                if times > 1.0 { format!("each {times:.2} times") } else { format!("{:.0} %", 100.0 * times) },
                s.path.display()
            )
        };
        self.mix.iter().map(line).collect()
    }

    /// What the user should look at, if anything.
    pub fn warnings(&self) -> Vec<String> {
        let path = self.name();
        let mut found = Vec::new();
        if self.dropped > 0 {
            let at = match self.files.len() {
                0 | 1 => format!("line {}", self.longest_line),
                _ => format!("{}:{}", self.longest_file.display(), self.longest_line),
            };
            found.push(format!(
                "{path}: {} examples left out as too long (the longest has {} tokens, {at})",
                self.dropped, self.lengths.max
            ));
        }
        if self.truncated > 0 {
            found.push(format!(
                "{path}: {} examples cut off: they lose the end of their answer and its stop token",
                self.truncated
            ));
        }
        if self.split_boundaries > 0 {
            found.push(format!(
                "{path}: {} answers begin with a character that would merge with the end of the prompt; they are encoded apart, as in generation",
                self.split_boundaries
            ));
        }
        let noted = |n: &Noted| format!("{} (the first: {}:{})", n.note.words(n.rows), n.path.display(), n.line);
        found.extend(self.notes.iter().map(noted));
        found
    }
}

/// Lengths in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Quantiles {
    pub min: usize,
    pub p50: usize,
    pub p90: usize,
    pub p99: usize,
    pub max: usize,
}

impl Quantiles {
    pub fn of(lengths: &[u32]) -> Self {
        let mut sorted = lengths.to_vec();
        sorted.sort_unstable();
        let at = |share: f64| {
            let i = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
            sorted.get(i).copied().unwrap_or_default() as usize
        };
        Self { min: at(0.0), p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}
