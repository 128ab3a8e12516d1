//! `ft replay`: a run done again from its own records.

use super::train::{signals, software};
use clap::Args;
use ft::error::{Error, Result};
use ft::report;
use ft::train::replay::{line, replay};
use std::path::PathBuf;

/// Check what a run was made of (ft.lock), train it again, and compare the results bit for bit
///
/// Where base, tokenizer, data, recipe, programs or machine are not as they were, the differences are told with what
/// each can change, and nothing is trained.
#[derive(Args)]
pub struct ReplayArgs {
    /// The run folder
    run: PathBuf,
    /// Where the new run goes [default: the run folder's name with -replay]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Train all the same where something is not as it was
    #[arg(long)]
    accept_drift: bool,
    /// Print the comparison as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ReplayArgs) -> Result<()> {
    let beside = || {
        let run = ft::fsutil::absolute(&args.run);
        run.with_file_name(format!("{}-replay", run.file_name().unwrap_or_default().to_string_lossy()))
    };
    let out = args.out.clone().unwrap_or_else(beside);
    let done = replay(&args.run, &out, args.accept_drift, &software(), signals())?;
    if args.json {
        println!("{}", serde_json::to_string(&done).expect("a comparison is JSON"));
    }
    for d in &done.drift {
        report::info(format!("accepted:\n{}", line(d)));
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
            report::info(format!("the same result, bit for bit:\n{}", files.join("\n")));
            Ok(())
        }
        None => {
            report::info("the recorded run has no result to compare with");
            Ok(())
        }
        Some(false) if !done.drift.is_empty() => {
            report::info(format!("another result, as the differences above explain:\n{}", files.join("\n")));
            Ok(())
        }
        Some(false) => Err(Error::user(format!(
            "{}: everything is as it was, and the result is another:\n{}",
            args.run.display(),
            files.join("\n")
        ))
        .hint("on a GPU some sums have no fixed order; on a CPU this should not be: compare with ft runs diff")),
    }
}
