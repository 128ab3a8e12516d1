//! `ft data canaries`: puts canaries among training rows.

use clap::Args;
use ft::data::rows::{RowPurpose, detect_format};
use ft::data::source;
use ft::error::{Error, Result};
use ft::eval::planted_canaries::{draw, plant};
use ft::report;
use serde_json::Value;
use std::path::PathBuf;

#[derive(Args)]
pub struct CanariesArgs {
    /// The training rows: text, prompt_completion, alpaca or messages.
    file: PathBuf,
    /// File of training rows with canaries to write (JSON Lines).
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// File that lists the canaries, for the evaluation (JSON Lines). It has the secrets.
    #[arg(long, value_name = "FILE")]
    list: PathBuf,
    /// Form of a canary: # is a random digit, @ a random small letter, {number} the number of the canary.
    #[arg(long, value_name = "TEXT", default_value = "The code of archive {number} is ######.")]
    pattern: String,
    /// What a canary answers; needed unless the rows are plain text.
    #[arg(long, value_name = "TEXT", default_value = "")]
    prompt: String,
    /// Number of different canaries.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    canaries: u32,
    /// How many rows a canary is: the first number for the first, and so on, again from the first.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    copies: Vec<u32>,
    /// Seed of secrets and places.
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

/// Runs `ft data canaries`.
pub fn run(args: &CanariesArgs) -> Result<()> {
    super::convert::check_jsonl_outputs(&args.file, &[&args.out, &args.list])?;
    if args.out == args.list {
        return Err(Error::user("--out and --list name the same file"));
    }
    let copies: Vec<usize> = args.copies.iter().map(|n| *n as usize).collect();
    let canaries = draw(&args.pattern, &args.prompt, args.canaries as usize, &copies, args.seed)?;
    let (mut rows, mut format) = (Vec::new(), None);
    for file in source::files(&args.file)? {
        source::for_each_chunk(&file, None, |chunk| {
            for raw in chunk {
                let columns = raw.columns(&file)?;
                if format.is_none() {
                    format = Some(detect_format(&columns, RowPurpose::Answers, &file)?);
                }
                rows.push(Value::Object(columns));
            }
            Ok(())
        })?;
    }
    let format = format.ok_or_else(|| source::no_rows_error(&args.file))?;
    let before = rows.len();
    let planted = plant(rows, &canaries, format, args.seed)?;
    source::write_each(&args.out, |put| planted.iter().try_for_each(put))?;
    let listed = canaries.iter().map(|canary| serde_json::to_value(canary).map_err(|e| Error::bug(e.to_string())));
    let listed = listed.collect::<Result<Vec<Value>>>()?;
    source::write_each(&args.list, |put| listed.iter().try_for_each(put))?;
    report::info(format!(
        "{}: {} rows and {} of {} canaries; {} lists them",
        args.out.display(),
        report::count(before as u64),
        report::count((planted.len() - before) as u64),
        canaries.len(),
        args.list.display()
    ));
    Ok(())
}
