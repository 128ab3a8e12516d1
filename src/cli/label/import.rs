//! `ft label import`: adds existing answers, and votes on them, to a project.

use crate::cli::data::scrub::{ScrubRuleArgs, report_lines};
use clap::{Args, ValueEnum};
use ft::error::{Error, Result};
use ft::label::project::import::file::read;
use ft::label::project::import::insert::{ImportCounts, import};
use ft::label::project::import::row::{LabelImportFormat, LabelImportOptions};
use ft::label::store::Store;
use ft::report;
use serde_json::json;
use std::path::PathBuf;

/// Add existing answers: from data files, or from exports of Argilla and Label Studio with their votes.
#[derive(Args)]
pub struct LabelImportArgs {
    /// The project.
    project: String,
    /// Files to read: .jsonl, .json, .csv, .tsv, .parquet, .arrow/.ipc/.feather.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Layout of the files; auto detects it.
    #[arg(long, value_enum, default_value = "auto")]
    format: LabelFormatArg,
    /// Source of the answers that do not name theirs.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Column or field with the prompt, if it is not found by its name.
    #[arg(long, value_name = "FIELD")]
    prompt: Option<String>,
    /// Column or field with an answer, if it is not found by its name; may be given several times.
    #[arg(long, value_name = "FIELD")]
    answer: Vec<String>,
    /// Argilla: name of the question that asks which answer is better.
    #[arg(long, value_name = "NAME")]
    question: Option<String>,
    /// Replace personal data with pseudonyms before anything is stored.
    #[arg(long)]
    scrub: bool,
    #[command(flatten)]
    scrubbing: ScrubRuleArgs,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum LabelFormatArg {
    Auto,
    Rows,
    Argilla,
    LabelStudio,
}

/// Runs `ft label import`.
pub fn run(args: &LabelImportArgs) -> Result<()> {
    if args.scrubbing.any_given() && !args.scrub {
        return Err(Error::user("--kinds, --keep, --names and --key-file need --scrub").hint("add --scrub"));
    }
    let store = Store::open(&args.project)?;
    let options = LabelImportOptions {
        format: match args.format {
            LabelFormatArg::Auto => LabelImportFormat::Auto,
            LabelFormatArg::Rows => LabelImportFormat::Rows,
            LabelFormatArg::Argilla => LabelImportFormat::Argilla,
            LabelFormatArg::LabelStudio => LabelImportFormat::LabelStudio,
        },
        source: args.source.clone(),
        prompt: args.prompt.clone(),
        answers: args.answer.clone(),
        question: args.question.clone(),
    };
    let overlap = store.settings()?.overlap;
    // Read all files before adding anything, so that a bad file adds no part.
    let mut items = Vec::new();
    for path in &args.files {
        items.extend(read(path, &options)?);
    }
    if args.scrub {
        let mut scrubber = args.scrubbing.scrubber()?;
        items.iter_mut().try_for_each(|item| item.scrub(&mut scrubber))?;
        report_lines(scrubber.report()).iter().for_each(report::info);
    }
    let ImportCounts { rows, prompts, candidates, pairs, votes } = import(&store, &items, overlap)?;
    if args.json {
        let place = store.location();
        println!(
            "{}",
            json!({ "project": place, "rows": rows, "prompts": prompts, "candidates": candidates, "pairs": pairs, "votes": votes })
        );
        return Ok(());
    }
    let n = |n: usize| report::count(n as u64);
    report::info(format!(
        "{}: {} rows: {} new prompts, {} new answers, {} new pairs, {} new votes",
        store.location(),
        n(rows),
        n(prompts),
        n(candidates),
        n(pairs),
        n(votes)
    ));
    Ok(())
}
