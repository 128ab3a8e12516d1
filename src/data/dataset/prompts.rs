//! Prompts for generation, each with all columns of its row, which rewards compare an answer with.
//!
//! Prompts are few and short compared with the answers generated for them, so they are kept in memory. Invariant: a
//! prompt is never cut. A prompt that leaves no room for an answer is an error, or is dropped and counted.

use super::options::Overflow;
use super::shares::source_mix;
use super::summary::{DatasetSummary, FileSummary, LengthQuantiles, NoteSummary, add_notes, summarise_files};
use crate::data::batch::SourceMix;
use crate::data::chat::{ChatTokenizer, NoteCounts, RowNote};
use crate::data::encode::{RenderedPrompt, render_prompt};
use crate::data::rows::{
    Record, RecordRow, RowFormat, RowPurpose, RowReader, SourceList, SourceSpec, TargetFormat, convert_record,
    read_record,
};
use crate::data::source::{self, ColumnSelection, RowColumns, RowPlace};
use crate::error::{Context, Error, Result};
use crate::fsutil::hex;
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// The column in which the reference answer of a row is offered to rewards.
pub const ANSWER_COLUMN: &str = "answer";

/// A prompt with all columns of its row.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRow {
    /// Token ids up to the answer, as in generation.
    pub ids: Vec<u32>,
    /// The prompt as text, including what the template adds.
    pub text: String,
    /// All columns of the row. If the row has an answer (messages that end in an assistant turn, `output` or
    /// `completion`), the answer is also in the column `answer`, unless the row has its own column of that name.
    pub columns: RowColumns,
    /// The format of the row (never `auto`).
    pub format: RowFormat,
    /// The file of the row.
    pub path: Arc<PathBuf>,
    /// Line in its file, from 1.
    pub line: usize,
}

impl PromptRow {
    /// Returns file and line, as errors name them.
    pub fn place(&self) -> RowPlace<'_> {
        RowPlace { path: &self.path, line: self.line }
    }

    /// Returns the prompt as a row of format `prompt` (text or messages), whatever the format of its row.
    pub fn prompt_row(&self) -> Result<Value> {
        let record = read_record(self.columns.clone(), self.format, self.place())?;
        let rows = convert_record(&record, TargetFormat::Prompt)?;
        rows.into_iter().next().ok_or_else(|| Error::bug(format!("{}: the row has no prompt", self.place())))
    }
}

/// The prompts of some sources, in their order.
#[derive(Debug, Clone)]
pub struct PromptSet {
    /// The prompts, in the order of the sources.
    pub rows: Vec<PromptRow>,
    /// How often each source occurs in an epoch.
    pub mix: SourceMix,
    /// How the sources were read and tokenised.
    pub summary: DatasetSummary,
}

/// How long a prompt may be, and what happens to longer ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PromptLimits {
    /// Maximum length of a prompt in tokens: the maximum of prompt and answer together, minus the longest answer.
    pub longest: usize,
    /// What happens to longer prompts.
    pub on_overflow: Overflow,
    /// With `Overflow::Error`, the share of too long prompts up to which they are dropped; more of them are an error.
    pub tolerance: f64,
}

impl PromptSet {
    /// Reads all rows of all sources.
    ///
    /// Errors: a row that has no prompt or cannot be read (with file and line), too many prompts that are too long, an
    /// `on_overflow` that would cut prompts.
    pub fn open(sources: &SourceList, tokenizer: &ChatTokenizer, room: PromptLimits) -> Result<Self> {
        let began = Instant::now();
        let (mut rows, mut files, mut counts, mut noted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for source in &sources.0 {
            let before = rows.len();
            let mut left = source.rows.unwrap_or(usize::MAX);
            for path in source::files(&source.path)? {
                if left > 0 {
                    left -= read(path, source, left, tokenizer, &mut rows, &mut files, &mut noted)?;
                }
            }
            counts.push(rows.len() - before);
        }
        let mut summary = summarise_files(files, began.elapsed().as_secs_f64());
        let kept = apply_limits(rows, &mut counts, room, &mut summary)?;
        let mut tokens = Sha256::new();
        for row in &kept {
            tokens.update((row.ids.len() as u64).to_le_bytes());
            row.ids.iter().for_each(|id| tokens.update(id.to_le_bytes()));
        }
        summary.tokens_sha256 = hex(&tokens.finalize());
        summary.notes = noted;
        summary.examples = kept.len();
        summary.tokens = kept.iter().map(|r| r.ids.len()).sum();
        let mix = source_mix(sources, counts, kept.len(), "prompt", &mut summary)?;
        Ok(Self { rows: kept, mix, summary })
    }

    /// Returns the number of prompts.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns true if there are no prompts.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Adds at most `limit` rows of a file. Returns the number of rows read.
fn read(
    path: PathBuf,
    source: &SourceSpec,
    limit: usize,
    tokenizer: &ChatTokenizer,
    rows: &mut Vec<PromptRow>,
    files: &mut Vec<FileSummary>,
    noted: &mut Vec<NoteSummary>,
) -> Result<usize> {
    let reading = RowReader::of(&path, source, RowPurpose::Prompts)?;
    let path = Arc::new(path);
    let one = |raw: source::RawRow| -> Result<(PromptRow, Vec<RowNote>)> {
        let (line, columns) = reading.columns(raw, &path)?;
        let place = RowPlace { path: &path, line };
        let row = RecordRow { line, record: read_record(columns.clone(), reading.format, place)? };
        let RenderedPrompt { text, ids, notes } = render_prompt(&row, &path, tokenizer)?;
        tokenizer.check_embedded(&ids).context(|| place)?;
        let columns = with_answer(columns, &row.record);
        Ok((PromptRow { ids, text, columns, format: reading.format, path: path.clone(), line }, notes))
    };
    let mut seen = NoteCounts::default();
    let before = rows.len();
    // Rewards may read any column, so all are read; columns that cannot be decoded are ignored.
    let passage = source::for_each_selected_chunk(ColumnSelection::Readable, &path, Some(limit), |chunk| {
        let read: Vec<Result<_>> = chunk.into_par_iter().map(one).collect();
        for row in read {
            let (row, notes) = row?;
            seen.add(&notes, row.line);
            rows.push(row);
        }
        Ok(())
    })?;
    add_notes(&seen, &path, 0, noted);
    files.push(FileSummary {
        path: path.to_path_buf(),
        sha256: source::layout(&path, |_| ())?.sha256,
        format: reading.format,
        rows: passage.rows,
        blank_lines: passage.blank,
        // Rewards may read any column.
        unused_columns: Vec::new(),
        tokenised_rows: rows.len() - before,
    });
    Ok(passage.rows)
}

/// Adds the answer of the row to its columns, as column [`ANSWER_COLUMN`].
fn with_answer(mut columns: RowColumns, record: &Record) -> RowColumns {
    let answer = match record {
        Record::Messages(talk) => talk.messages.last().filter(|m| m.role == "assistant").map(|m| m.content.clone()),
        Record::Alpaca(task) => Some(task.output.clone()),
        Record::PromptCompletion { completion, .. } => Some(completion.clone()),
        _ => None,
    };
    if let Some(answer) = answer.filter(|_| columns.get(ANSWER_COLUMN).is_none_or(Value::is_null)) {
        columns.insert(ANSWER_COLUMN.into(), Value::String(answer));
    }
    columns
}

/// Drops the prompts that are too long, if `on_overflow` says so. `counts` are the rows of each source; they are
/// reduced to those that are left.
fn apply_limits(
    rows: Vec<PromptRow>,
    counts: &mut [usize],
    room: PromptLimits,
    summary: &mut DatasetSummary,
) -> Result<Vec<PromptRow>> {
    let lengths: Vec<u32> = rows.iter().map(|r| r.ids.len() as u32).collect();
    summary.lengths = LengthQuantiles::of(&lengths);
    if let Some(top) = rows.iter().max_by_key(|r| (r.ids.len(), std::cmp::Reverse(r.line))) {
        (summary.longest_file, summary.longest_line) = (top.path.to_path_buf(), top.line);
    }
    let long = |r: &&PromptRow| r.ids.len() > room.longest;
    let too_long: Vec<&PromptRow> = rows.iter().filter(long).collect();
    summary.too_long = too_long.len();
    let Some(first) = too_long.first() else { return Ok(rows) };
    let share = too_long.len() as f64 / rows.len() as f64;
    let what = format!(
        "{}: {} of {} prompts ({:.1} %) have more than {} tokens, which leaves no room for an answer: {} ({} tokens){}",
        summary.name(),
        too_long.len(),
        rows.len(),
        100.0 * share,
        room.longest,
        first.place(),
        first.ids.len(),
        if too_long.len() > 1 { ", …" } else { "" }
    );
    let raise = format!(
        "raise batch.max_len (the longest prompt has {} tokens), or ask for shorter answers",
        summary.lengths.max
    );
    match room.on_overflow {
        Overflow::Truncate | Overflow::Split => {
            return Err(Error::user(format!("{what}; a prompt is never cut"))
                .hint(raise)
                .hint("or leave such rows out with data.on_overflow: drop"));
        }
        Overflow::Error if share > room.tolerance => {
            return Err(Error::user(what).hint(raise).hint("or leave such rows out with data.on_overflow: drop"));
        }
        Overflow::Error | Overflow::Drop => {}
    }
    summary.dropped = too_long.len();
    if summary.dropped == rows.len() {
        return Err(Error::user(what).hint(raise));
    }
    let (mut kept, mut all) = (Vec::new(), rows.into_iter());
    for count in counts.iter_mut() {
        let before = kept.len();
        kept.extend(all.by_ref().take(*count).filter(|r| r.ids.len() <= room.longest));
        *count = kept.len() - before;
    }
    Ok(kept)
}
