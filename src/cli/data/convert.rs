//! `ft data convert`: the rows of files in another format.

use super::ReadArgs;
use clap::{Args, ValueEnum};
use ft::data::convert::{Target, convert};
use ft::data::rows::Reading;
use ft::data::{SourceSpec, Want, json, source};
use ft::error::{Context, Error, Result};
use ft::fsutil::write_atomic;
use ft::report;
use rayon::prelude::*;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct ConvertArgs {
    /// A file of rows, a folder of such files, or a pattern in quotes.
    file: PathBuf,
    /// The format to write.
    #[arg(long, value_enum)]
    to: To,
    /// Where the rows go (JSON Lines).
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Leave out rows that cannot be read or converted, and say how many.
    #[arg(long)]
    drop_bad: bool,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    /// `messages`; of a pair the chosen answer, of judged answers the good ones.
    Messages,
    /// `prompt`, `completion`: the last answer of a conversation.
    PromptCompletion,
    /// `prompt`, `chosen`, `rejected`, `margin`.
    Preference,
    /// `prompt`, `completion`, `label`; a pair becomes two rows.
    Unpaired,
    /// `prompt` alone.
    Prompt,
}

impl From<To> for Target {
    fn from(to: To) -> Self {
        match to {
            To::Messages => Target::Messages,
            To::PromptCompletion => Target::PromptCompletion,
            To::Preference => Target::Preference,
            To::Unpaired => Target::Unpaired,
            To::Prompt => Target::Prompt,
        }
    }
}

/// Refuses to write over what is read, or under a name that says something else.
pub fn check_out(file: &Path, outs: &[&PathBuf]) -> Result<()> {
    for out in outs {
        if out.extension().is_none_or(|e| e != "jsonl" && e != "ndjson") {
            return Err(Error::user(format!("{}: rows are written as JSON Lines", out.display()))
                .hint("give a name that ends in .jsonl"));
        }
        not_the_input(file, out)?;
    }
    Ok(())
}

/// Refuses to write over what is read.
pub fn not_the_input(file: &Path, out: &Path) -> Result<()> {
    match out.canonicalize().is_ok_and(|o| file.canonicalize().is_ok_and(|f| f == o)) {
        true => Err(Error::user(format!("{}: is the file that is read", out.display()))),
        false => Ok(()),
    }
}

/// Counts of what became of rows.
#[derive(Default)]
struct Counts {
    read: u64,
    written: u64,
    left_out: u64,
    bad: u64,
}

/// Runs `ft data convert`.
pub fn run(args: ConvertArgs) -> Result<()> {
    check_out(&args.file, &[&args.out])?;
    let spec = args.read.source(&args.file);
    let files = source::files(&args.file)?;
    let mut counts = Counts::default();
    let mut failed = None;
    let written = write_atomic(&args.out, |out| {
        let mut left = spec.rows.unwrap_or(usize::MAX);
        for file in &files {
            match one_file(file, &spec, left, &args, out, &mut counts) {
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
        return Err(e.hint("--drop-bad leaves rows out that cannot be read or converted"));
    }
    written?;
    let n = report::count;
    report::info(format!("{}: {} rows of {} read", args.out.display(), n(counts.written), n(counts.read)));
    if counts.left_out > 0 {
        report::info(format!("{} rows left out: a bad verdict, or no answer that is learnt", n(counts.left_out)));
    }
    if counts.bad > 0 {
        report::warn(format!("{} bad rows left out", n(counts.bad)));
    }
    Ok(())
}

fn one_file(
    file: &Path,
    spec: &SourceSpec,
    limit: usize,
    args: &ConvertArgs,
    out: &mut impl Write,
    counts: &mut Counts,
) -> Result<usize> {
    let target = Target::from(args.to);
    // Pairs and judged answers hold answers too; whatever the row says most clearly is read.
    let want = if target.want() == Want::Answers { Want::Anything } else { target.want() };
    let reading = Reading::of(file, spec, want)?;
    report::info(format!("{}: {}", file.display(), reading.format.name()));
    let passage = source::for_each_chunk_of(reading.wanted(), file, Some(limit), |chunk| {
        let made = |raw: source::RawRow| {
            let line = raw.line;
            let place = || format!("{}:{line}", file.display());
            let rows = reading.row(raw, file).and_then(|row| convert(&row.record, target).context(place))?;
            Ok(rows.iter().map(|row| json::text(row) + "\n").collect::<Vec<_>>())
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
