//! `ft data split`: splits the rows of a file into training and validation rows.

use clap::Args;
use ft::data::source;
use ft::error::{Error, Result};
use ft::fsutil::write_atomic;
use ft::json;
use ft::{report, rng};
use rand::RngExt;
use std::cell::Cell;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
pub struct SplitArgs {
    /// A .jsonl, .json, .csv, .tsv, .parquet or .arrow/.ipc/.feather file.
    file: PathBuf,
    /// Share of the rows for validation.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    valid: f64,
    /// Seed of the split.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// File of training rows to write (JSON Lines).
    #[arg(long, value_name = "FILE")]
    train_out: PathBuf,
    /// File of validation rows to write (JSON Lines).
    #[arg(long, value_name = "FILE")]
    valid_out: PathBuf,
}

/// Runs `ft data split`. Whether a row is for training or validation depends on its content and the seed only:
/// duplicates are never in both files, and adding rows to the input does not move the others.
pub fn run(args: SplitArgs) -> Result<()> {
    if !(args.valid > 0.0 && args.valid < 1.0) {
        return Err(Error::user(format!("--valid {}: expected a share between 0 and 1", args.valid)));
    }
    let outs = [&args.train_out, &args.valid_out];
    super::convert::check_jsonl_outputs(&args.file, &outs)?;
    let counts = [Cell::new(0u64), Cell::new(0u64)];
    let write = |side: usize| -> Result<()> {
        let mut failed = None;
        write_atomic(outs[side], |out| {
            let read = source::for_each_chunk(&args.file, None, |chunk| {
                for raw in chunk {
                    let row = json::to_text(&serde_json::Value::Object(raw.columns(&args.file)?));
                    let valid = rng::stream(args.seed, &format!("split {row}"), 0).random::<f64>() < args.valid;
                    if usize::from(valid) == side {
                        writeln!(out, "{row}").map_err(|e| ft::fsutil::io_error("writing", outs[side], e))?;
                        counts[side].set(counts[side].get() + 1);
                    }
                }
                Ok(())
            });
            read.map(drop).map_err(|e| {
                failed = Some(e);
                std::io::Error::other("rows cannot be read")
            })
        })
        .map_err(|e| failed.take().unwrap_or(e))
    };
    write(1)?;
    write(0)?;
    for (out, count) in outs.iter().zip(&counts) {
        report::info(format!("{}: {} rows", out.display(), report::count(count.get())));
    }
    Ok(())
}
