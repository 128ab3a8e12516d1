//! `ft replay`: repeats a run from its own records and compares the results.

use super::shared::interrupt::stop_on_signal;
use super::shared::training::software;
use clap::Args;
use ft::error::{Error, Result};
use ft::report;
use ft::train::replay::{line, replay};
use std::path::PathBuf;

/// Repeat a run and compare the results bit for bit
///
/// First the base model, tokenizer, data, recipe, programs and machine are compared with the run's ft.lock. If any
/// differs, the differences are reported, each with what it can change, and nothing is trained.
#[derive(Args)]
pub struct ReplayArgs {
    /// The run folder
    run: PathBuf,
    /// Folder of the new run [default: the run folder's name with -replay appended]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Train even if something differs from ft.lock
    #[arg(long)]
    accept_drift: bool,
    /// Print the comparison as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `ft replay`. Fails if the results differ and no difference was accepted that may explain it.
pub fn run(args: &ReplayArgs) -> Result<()> {
    let beside = || {
        let run = ft::fsutil::absolute(&args.run);
        run.with_file_name(format!("{}-replay", run.file_name().unwrap_or_default().to_string_lossy()))
    };
    let out = args.out.clone().unwrap_or_else(beside);
    let done = replay(&args.run, &out, args.accept_drift, &software(), stop_on_signal())?;
    if args.json {
        println!("{}", serde_json::to_string(&done).expect("a comparison is JSON"));
    }
    for d in &done.drift {
        report::info(format!("difference accepted:\n{}", line(d)));
    }
    let files: Vec<String> = done
        .files
        .iter()
        .map(|(name, was, is)| {
            let short = |s: &Option<String>| s.as_deref().map_or("none", |s| &s[..s.len().min(16)]).to_string();
            format!("  {name}: {} then, {} now", short(was), short(is))
        })
        .collect();
    match done.equal {
        Some(true) => {
            report::info(format!("results are equal, bit for bit:\n{}", files.join("\n")));
            Ok(())
        }
        None => {
            report::info("the original run has no result to compare with");
            Ok(())
        }
        Some(false) if !done.drift.is_empty() => {
            report::info(format!("results differ, perhaps because of the differences above:\n{}", files.join("\n")));
            Ok(())
        }
        Some(false) => Err(Error::user(format!(
            "{}: results differ although nothing in ft.lock has changed:\n{}",
            args.run.display(),
            files.join("\n")
        ))
        .hint("on a GPU some sums have no fixed order; on a CPU this is a fault: compare the runs with ft runs diff")),
    }
}
