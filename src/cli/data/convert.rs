//! `ft data convert`: writes the rows of files in another format.

use super::ReadArgs;
use clap::{Args, ValueEnum};
use ft::data::rows::{RowPurpose, RowReader, SourceSpec, TargetFormat, convert_record};
use ft::data::source;
use ft::error::{Context, Error, Result};
use ft::fsutil::write_atomic;
use ft::json;
use ft::report;
use rayon::prelude::*;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct ConvertArgs {
    /// A data file, a folder of data files, or a quoted pattern such as 'data/*.jsonl'.
    file: PathBuf,
    /// The format to write.
    #[arg(long, value_enum)]
    to: ConvertTargetArg,
    /// File to write (JSON Lines).
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Leave out rows that cannot be read or converted, and report their number.
    #[arg(long)]
    drop_bad: bool,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum ConvertTargetArg {
    /// Column `messages`; of pairs the chosen answer, of labelled answers only the good ones.
    Messages,
    /// Columns `prompt`, `completion` (the last answer of a conversation).
    PromptCompletion,
    /// Columns `prompt`, `chosen`, `rejected`, `margin`.
    Preference,
    /// Columns `prompt`, `completion`, `label`; a pair becomes two rows.
    Unpaired,
    /// Column `prompt` only.
    Prompt,
}

impl From<ConvertTargetArg> for TargetFormat {
    fn from(to: ConvertTargetArg) -> Self {
        match to {
            ConvertTargetArg::Messages => TargetFormat::Messages,
            ConvertTargetArg::PromptCompletion => TargetFormat::PromptCompletion,
            ConvertTargetArg::Preference => TargetFormat::Preference,
            ConvertTargetArg::Unpaired => TargetFormat::Unpaired,
            ConvertTargetArg::Prompt => TargetFormat::Prompt,
        }
    }
}

/// Fails if an output file is the input file or has an ending other than .jsonl or .ndjson.
pub fn check_jsonl_outputs(file: &Path, outs: &[&PathBuf]) -> Result<()> {
    for out in outs {
        if out.extension().is_none_or(|e| e != "jsonl" && e != "ndjson") {
            return Err(Error::user(format!("{}: rows are written as JSON Lines", out.display()))
                .hint("give a name that ends in .jsonl"));
        }
        check_not_input(file, out)?;
    }
    Ok(())
}

/// Fails if the output file is the input file.
pub fn check_not_input(file: &Path, out: &Path) -> Result<()> {
    match out.canonicalize().is_ok_and(|o| file.canonicalize().is_ok_and(|f| f == o)) {
        true => Err(Error::user(format!("{}: is also the input file", out.display()))),
        false => Ok(()),
    }
}

/// Numbers of rows read, written and left out.
#[derive(Default)]
struct ConvertCounts {
    read: u64,
    written: u64,
    left_out: u64,
    bad: u64,
}

/// Runs `ft data convert`.
pub fn run(args: ConvertArgs) -> Result<()> {
    check_jsonl_outputs(&args.file, &[&args.out])?;
    let spec = args.read.source(&args.file);
    let files = source::files(&args.file)?;
    let mut counts = ConvertCounts::default();
    let mut failed = None;
    let written = write_atomic(&args.out, |out| {
        let mut left = spec.rows.unwrap_or(usize::MAX);
        for file in &files {
            match convert_file(file, &spec, left, &args, out, &mut counts) {
                Ok(rows) => left -= rows,
                Err(e) => {
                    failed = Some(e);
                    return Err(std::io::Error::other("rows cannot be converted"));
                }
            }
            if left == 0 {
                break;
            }
        }
        Ok(())
    });
    if let Some(e) = failed {
        return Err(e.hint("leave out rows that cannot be read or converted with --drop-bad"));
    }
    written?;
    let n = report::count;
    report::info(format!("{}: {} rows written, {} read", args.out.display(), n(counts.written), n(counts.read)));
    if counts.left_out > 0 {
        report::info(format!(
            "{} rows left out: labelled as bad, or without an answer to train on",
            n(counts.left_out)
        ));
    }
    if counts.bad > 0 {
        report::warn(format!("{} bad rows left out", n(counts.bad)));
    }
    Ok(())
}

/// Converts at most `limit` rows of one file and returns how many it read.
fn convert_file(
    file: &Path,
    spec: &SourceSpec,
    limit: usize,
    args: &ConvertArgs,
    out: &mut impl Write,
    counts: &mut ConvertCounts,
) -> Result<usize> {
    let target = TargetFormat::from(args.to);
    // The target needs answers, and pairs and labelled answers have answers too: read whatever format is detected.
    let want = if target.purpose() == RowPurpose::Answers { RowPurpose::Anything } else { target.purpose() };
    let reading = RowReader::of(file, spec, want)?;
    report::info(format!("{}: {}", file.display(), reading.format.name()));
    let passage = source::for_each_selected_chunk(reading.wanted(), file, Some(limit), |chunk| {
        let made = |raw: source::RawRow| {
            let line = raw.line;
            let place = || format!("{}:{line}", file.display());
            let rows = reading.row(raw, file).and_then(|row| convert_record(&row.record, target).context(place))?;
            Ok(rows.iter().map(|row| json::to_text(row) + "\n").collect::<Vec<_>>())
        };
        let rows: Vec<Result<Vec<String>>> = chunk.into_par_iter().map(made).collect();
        for row in rows {
            counts.read += 1;
            match row {
                Ok(lines) => {
                    counts.left_out += u64::from(lines.is_empty());
                    counts.written += lines.len() as u64;
                    let write = lines.iter().try_for_each(|line| out.write_all(line.as_bytes()));
                    write.map_err(|e| ft::fsutil::io_error("writing", &args.out, e))?;
                }
                Err(e) if args.drop_bad => {
                    counts.bad += 1;
                    if counts.bad <= 20 {
                        report::warn(e.message());
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    })?;
    Ok(passage.rows)
}
