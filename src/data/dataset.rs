//! A file of rows as examples: read, mapped, tokenised in threads, and fitted to the longest length allowed.
//!
//! Invariant: what is left out, cut or split is counted in the summary; nothing disappears without a number.

use super::example::{self, Encoded, Example};
use super::record::{self, Place, Row};
use super::source::{self, RawRow};
use super::tokenizer::ChatTokenizer;
use super::{Overflow, RowFormat, Supervise};
use crate::error::{Error, Result};
use crate::report;
use rayon::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How rows become examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EncodeOptions {
    pub supervise: Supervise,
    /// The longest example, in tokens.
    pub max_len: usize,
    pub on_overflow: Overflow,
    /// With `Overflow::Error`, the share of too long examples that is dropped before it is an error.
    pub overflow_tolerance: f64,
}

/// Examples of a file, and what happened on the way.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub examples: Vec<Example>,
    pub summary: Summary,
}

/// What was read and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
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
    pub examples: usize,
    /// Examples longer than `max_len`, before the policy.
    pub too_long: usize,
    pub dropped: usize,
    pub truncated: usize,
    pub split: usize,
    /// Answers whose first token would have merged with the prompt; encoded in two pieces.
    pub split_boundaries: usize,
    pub tokens: usize,
    pub supervised_tokens: usize,
    /// Lengths of the examples before the policy.
    pub lengths: Quantiles,
    /// Where the longest one stands.
    pub longest_line: usize,
}

impl Summary {
    /// The share of tokens that is learnt.
    pub fn supervised_share(&self) -> f64 {
        self.supervised_tokens as f64 / self.tokens.max(1) as f64
    }

    /// One line for the person at the terminal.
    pub fn line(&self) -> String {
        let mut parts = vec![
            format!("{}: {} {} rows", self.path.display(), report::count(self.rows as u64), self.format.name()),
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
        parts.join(", ")
    }

    /// What the user should look at, if anything.
    pub fn warnings(&self) -> Vec<String> {
        let path = self.path.display();
        let mut found = Vec::new();
        if self.dropped > 0 {
            found.push(format!(
                "{path}: {} examples left out as too long (the longest has {} tokens, line {})",
                self.dropped, self.lengths.max, self.longest_line
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
    pub fn of(lengths: &[usize]) -> Self {
        let mut sorted = lengths.to_vec();
        sorted.sort_unstable();
        let at = |share: f64| {
            sorted.get((share * sorted.len().saturating_sub(1) as f64).round() as usize).copied().unwrap_or_default()
        };
        Self { min: at(0.0), p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

/// The rows of a file as records, before any tokenisation, and the format that was found.
pub fn read_rows(path: &Path, format: RowFormat, rows: Option<usize>) -> Result<(RowFormat, Vec<Row>)> {
    let mut found = Found::new(path, format);
    let mut all = Vec::new();
    source::for_each_chunk(path, rows, |chunk| {
        all.extend(found.rows(chunk)?);
        Ok(())
    })?;
    Ok((found.format, all))
}

/// The examples of a file.
pub fn load(
    path: &Path,
    format: RowFormat,
    rows: Option<usize>,
    tokenizer: &ChatTokenizer,
    options: &EncodeOptions,
) -> Result<Dataset> {
    let (sha256, lines) = source::fingerprint(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bar = match (lines, rows) {
        (None, None) => report::spinner(&format!("{name}: rows")),
        (lines, rows) => {
            report::bar(lines.unwrap_or(usize::MAX).min(rows.unwrap_or(usize::MAX)) as u64, &format!("{name}: rows"))
        }
    };
    let mut found = Found::new(path, format);
    let mut examples = Vec::new();
    let mut split_boundaries = 0;
    let passage = source::for_each_chunk(path, rows, |chunk| {
        let records = found.rows(chunk)?;
        let encoded: Vec<Result<Encoded>> = records
            .par_iter()
            .map(|row| {
                bar.inc(1);
                example::encode_row(row, path, tokenizer, options.supervise)
            })
            .collect();
        for row in encoded {
            let row = row?;
            split_boundaries += row.split_boundaries;
            examples.extend(row.examples);
        }
        Ok(())
    });
    bar.finish_and_clear();
    let passage = passage?;
    let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
    let longest_line = examples.iter().max_by_key(|e| e.ids.len()).map_or(0, |e| e.line);
    let mut summary = Summary {
        path: path.to_path_buf(),
        sha256,
        format: found.format,
        rows: passage.rows,
        blank_lines: passage.blank,
        unused_columns: found.unused,
        examples: 0,
        too_long: lengths.iter().filter(|n| **n > options.max_len).count(),
        dropped: 0,
        truncated: 0,
        split: 0,
        split_boundaries,
        tokens: 0,
        supervised_tokens: 0,
        lengths: Quantiles::of(&lengths),
        longest_line,
    };
    let examples = fit(examples, options, &mut summary)?;
    summary.examples = examples.len();
    summary.tokens = examples.iter().map(|e| e.ids.len()).sum();
    summary.supervised_tokens = examples.iter().map(Example::targets).sum();
    Ok(Dataset { examples, summary })
}

/// The format of a file, fixed by its first row, and its columns that nobody reads.
struct Found<'a> {
    path: &'a Path,
    format: RowFormat,
    unused: Vec<String>,
    begun: bool,
}

impl<'a> Found<'a> {
    fn new(path: &'a Path, format: RowFormat) -> Self {
        Self { path, format, unused: Vec::new(), begun: false }
    }

    /// The records of a chunk; of several bad rows the first is reported.
    fn rows(&mut self, chunk: Vec<RawRow>) -> Result<Vec<Row>> {
        let path = self.path;
        let parsed: Vec<Result<(usize, record::Columns)>> = chunk
            .into_par_iter()
            .map(|raw| {
                let line = raw.line;
                raw.columns(path).map(|columns| (line, columns))
            })
            .collect();
        let parsed = parsed.into_iter().collect::<Result<Vec<_>>>()?;
        if let (false, Some((_, columns))) = (self.begun, parsed.first()) {
            if self.format == RowFormat::Auto {
                self.format = record::detect(columns, path)?;
            }
            self.unused = record::unused(columns, self.format);
            self.begun = true;
        }
        let format = self.format;
        let read =
            |(line, columns)| record::read(columns, format, Place { path, line }).map(|record| Row { line, record });
        let rows: Vec<Result<Row>> = parsed.into_par_iter().map(read).collect();
        rows.into_iter().collect()
    }
}

/// Applies the policy for examples over `max_len`.
fn fit(examples: Vec<Example>, options: &EncodeOptions, summary: &mut Summary) -> Result<Vec<Example>> {
    let max = options.max_len;
    if summary.too_long == 0 {
        return Ok(examples);
    }
    let share = summary.too_long as f64 / examples.len().max(1) as f64;
    if options.on_overflow == Overflow::Error && share > options.overflow_tolerance {
        let lines: Vec<String> = examples
            .iter()
            .filter(|e| e.ids.len() > max)
            .take(5)
            .map(|e| format!("{} ({} tokens)", e.line, e.ids.len()))
            .collect();
        let more = if summary.too_long > lines.len() { ", …" } else { "" };
        return Err(Error::user(format!(
            "{}: {} of {} examples ({:.1} %) are longer than batch.max_len {max}: lines {}{more}",
            summary.path.display(),
            summary.too_long,
            examples.len(),
            100.0 * share,
            lines.join(", "),
        ))
        .hint(format!(
            "set batch.max_len to {} to keep them all ({} for 99 %)",
            summary.lengths.max, summary.lengths.p99
        ))
        .hint("or say what happens to them with data.on_overflow: drop, truncate or split"));
    }
    let mut kept = Vec::with_capacity(examples.len());
    for example in examples {
        if example.ids.len() <= max {
            kept.push(example);
            continue;
        }
        match options.on_overflow {
            Overflow::Error | Overflow::Drop => summary.dropped += 1,
            Overflow::Truncate => {
                keep_learnt(cut(&example, 0, max), &mut kept, &mut summary.truncated, &mut summary.dropped)
            }
            Overflow::Split => {
                let before = kept.len();
                let mut pieces = 0;
                for from in (0..example.ids.len()).step_by(max) {
                    keep_learnt(cut(&example, from, max), &mut kept, &mut pieces, &mut 0);
                }
                let any = kept.len() > before;
                summary.split += usize::from(any);
                summary.dropped += usize::from(!any);
            }
        }
    }
    if kept.is_empty() {
        return Err(Error::user(format!(
            "{}: every example is longer than batch.max_len {max}; nothing is left",
            summary.path.display()
        ))
        .hint(format!("set batch.max_len to {} or more", summary.lengths.p50)));
    }
    Ok(kept)
}

fn cut(example: &Example, from: usize, max: usize) -> Example {
    let range = from..example.ids.len().min(from + max);
    let mut supervised = example.supervised[range.clone()].to_vec();
    supervised[0] = false;
    Example { ids: example.ids[range].to_vec(), supervised, line: example.line }
}

/// A piece without a learnt token is of no use.
fn keep_learnt(piece: Example, kept: &mut Vec<Example>, done: &mut usize, dropped: &mut usize) {
    if piece.targets() > 0 {
        kept.push(piece);
        *done += 1;
    } else {
        *dropped += 1;
    }
}
