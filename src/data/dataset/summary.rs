//! Summarises how sources were read and tokenised, in numbers and in sentences for the user.

use crate::data::chat::{NoteCounts, RowNote};
use crate::data::rows::RowFormat;
use crate::fsutil::hex;
use crate::report;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// How one file was read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileSummary {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// The format of the rows (never `auto`).
    pub format: RowFormat,
    /// Number of rows.
    pub rows: usize,
    /// Empty lines that were skipped.
    pub blank_lines: usize,
    /// Columns that the format does not read.
    pub unused_columns: Vec<String>,
    /// Rows that were tokenised now instead of being found in the cache.
    pub tokenised_rows: usize,
}

/// How often one source of a mix occurs in an epoch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceShare {
    /// The path of the source, as the recipe gives it.
    pub path: PathBuf,
    /// The weight of the source.
    pub weight: f64,
    /// Number of different examples that the source has.
    pub examples: usize,
    /// Number of its examples in one epoch; if above `examples`, some occur more than once.
    pub per_epoch: usize,
}

/// A note, the number of rows it applies to, and the place of the first one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NoteSummary {
    /// The note.
    pub note: RowNote,
    /// Number of rows it applies to.
    pub rows: usize,
    /// The file of the first of them.
    pub path: PathBuf,
    /// The line of the first of them, from 1.
    pub line: usize,
}

/// Adds the notes on a part of a file, which begins after `before` lines, to those of all files.
pub(super) fn add_notes(notes: &NoteCounts, path: &Path, before: usize, all: &mut Vec<NoteSummary>) {
    for (note, rows, line) in notes.iter() {
        match all.iter_mut().find(|n| n.note == note) {
            Some(noted) => noted.rows += rows,
            None => all.push(NoteSummary { note, rows, path: path.to_path_buf(), line: before + line }),
        }
    }
}

/// How all sources of a data set were read and tokenised.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetSummary {
    /// The file, or the first of several.
    pub path: PathBuf,
    /// SHA-256 of the file; of several files, of the list of their hashes.
    pub sha256: String,
    /// SHA-256 of the token ids of all items and of their marks (which tokens are trained on).
    pub tokens_sha256: String,
    /// The format of the first file.
    pub format: RowFormat,
    /// Number of rows in all files.
    pub rows: usize,
    /// Empty lines that were skipped.
    pub blank_lines: usize,
    /// Columns of any file that its format does not read.
    pub unused_columns: Vec<String>,
    /// Number of examples after `on_overflow` was applied.
    pub examples: usize,
    /// Examples longer than `max_len`, before `on_overflow` was applied.
    pub too_long: usize,
    /// Examples that `on_overflow` dropped.
    pub dropped: usize,
    /// Examples that `on_overflow` truncated.
    pub truncated: usize,
    /// Examples that `on_overflow` split into several.
    pub split: usize,
    /// Answers that were encoded apart from the prompt, because a token would have covered the boundary.
    pub split_boundaries: usize,
    /// What happened to rows that the user should know about.
    pub notes: Vec<NoteSummary>,
    /// Number of tokens of all examples.
    pub tokens: usize,
    /// Number of tokens that are trained on.
    pub supervised_tokens: usize,
    /// Lengths of the examples before `on_overflow` was applied (of a pair: of its longer sequence).
    pub lengths: LengthQuantiles,
    /// Line of the longest example in its file, from 1.
    pub longest_line: usize,
    /// File of the longest example.
    pub longest_file: PathBuf,
    /// How each file was read.
    pub files: Vec<FileSummary>,
    /// The share of each source, if sources have weights.
    pub mix: Vec<SourceShare>,
    /// Rows that were tokenised now instead of being found in the cache.
    pub tokenised_rows: usize,
    /// Time in seconds that reading and tokenising took.
    pub seconds: f64,
}

impl DatasetSummary {
    /// Returns the share of tokens that are trained on.
    pub fn supervised_share(&self) -> f64 {
        self.supervised_tokens as f64 / self.tokens.max(1) as f64
    }

    /// Returns the path of the file, or of the first one with the number of the others.
    pub fn name(&self) -> String {
        match self.files.len() {
            0 | 1 => self.path.display().to_string(),
            n => format!("{} and {} more files", self.path.display(), n - 1),
        }
    }

    /// Returns one line for the terminal.
    pub fn line(&self) -> String {
        let mut formats: Vec<&str> = self.files.iter().map(|f| f.format.name()).collect();
        formats.dedup();
        let mut parts = vec![
            format!("{}: {} rows ({})", self.name(), report::count(self.rows as u64), formats.join(" and ")),
            format!("{} examples", report::count(self.examples as u64)),
            format!(
                "{} tokens ({:.1} % trained on)",
                report::count(self.tokens as u64),
                100.0 * self.supervised_share()
            ),
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
        parts.extend(self.throughput());
        parts.join(", ")
    }

    /// Returns the speed of tokenisation, if it took at least a second, or says that all tokens came from the cache.
    fn throughput(&self) -> Option<String> {
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

    /// Returns one line per source of a mix: its share of an epoch.
    pub fn mix_lines(&self) -> Vec<String> {
        let total: usize = self.mix.iter().map(|s| s.per_epoch).sum();
        let line = |s: &SourceShare| {
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

    /// Returns warnings for the user: dropped, truncated and separately encoded examples, and notes on rows.
    pub fn warnings(&self) -> Vec<String> {
        let path = self.name();
        let mut found = Vec::new();
        if self.dropped > 0 {
            let at = match self.files.len() {
                0 | 1 => format!("line {}", self.longest_line),
                _ => format!("{}:{}", self.longest_file.display(), self.longest_line),
            };
            found.push(format!(
                "{path}: {} examples left out because they are too long (the longest has {} tokens, {at})",
                self.dropped, self.lengths.max
            ));
        }
        if self.truncated > 0 {
            found.push(format!(
                "{path}: {} examples truncated: they lose the end of their answer and its stop token",
                self.truncated
            ));
        }
        if self.split_boundaries > 0 {
            found.push(format!(
                "{path}: {} answers begin with characters that would be in one token with the end of the prompt; \
                 they are encoded apart, as in generation",
                self.split_boundaries
            ));
        }
        let noted =
            |n: &NoteSummary| format!("{} (the first: {}:{})", n.note.describe(n.rows), n.path.display(), n.line);
        found.extend(self.notes.iter().map(noted));
        found
    }
}

/// Quantiles of lengths in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct LengthQuantiles {
    /// The smallest length.
    pub min: usize,
    /// The median.
    pub p50: usize,
    /// The 90th percentile.
    pub p90: usize,
    /// The 99th percentile.
    pub p99: usize,
    /// The largest length.
    pub max: usize,
}

impl LengthQuantiles {
    /// Computes the quantiles; all are 0 for no lengths.
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

/// Sums up files that were read; the counts of examples and tokens are filled in later.
pub(super) fn summarise_files(files: Vec<FileSummary>, seconds: f64) -> DatasetSummary {
    let sum = |f: fn(&FileSummary) -> usize| files.iter().map(f).sum();
    let mut unused: Vec<String> = Vec::new();
    for name in files.iter().flat_map(|f| &f.unused_columns) {
        if !unused.contains(name) {
            unused.push(name.clone());
        }
    }
    let sha256 = match files.as_slice() {
        [one] => one.sha256.clone(),
        several => hex(&Sha256::digest(several.iter().map(|f| format!("{}\n", f.sha256)).collect::<String>())),
    };
    DatasetSummary {
        path: files.first().map(|f| f.path.clone()).unwrap_or_default(),
        sha256,
        tokens_sha256: String::new(),
        format: files.first().map(|f| f.format).unwrap_or_default(),
        rows: sum(|f| f.rows),
        blank_lines: sum(|f| f.blank_lines),
        unused_columns: unused,
        examples: 0,
        too_long: 0,
        dropped: 0,
        truncated: 0,
        split: 0,
        split_boundaries: 0,
        notes: Vec::new(),
        tokens: 0,
        supervised_tokens: 0,
        lengths: LengthQuantiles::default(),
        longest_line: 0,
        longest_file: PathBuf::new(),
        tokenised_rows: sum(|f| f.tokenised_rows),
        mix: Vec::new(),
        seconds,
        files,
    }
}
