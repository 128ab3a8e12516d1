//! `ft label import`: answers, and judgements, that exist.

use crate::cli::data::scrub::{ScrubOptions, said};
use clap::{Args, ValueEnum};
use ft::error::{Error, Result};
use ft::label::Store;
use ft::label::import::{Format, Imported, Options, import, read};
use ft::report;
use serde_json::json;
use std::path::PathBuf;

/// Add answers that exist: files of rows, exports of Argilla and Label Studio with their judgements.
#[derive(Args)]
pub struct ImportArgs {
    /// The project.
    project: String,
    /// Files: .jsonl, .json, .csv, .parquet, .arrow/.ipc/.feather.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Whose layout the files have; left out, it is found out.
    #[arg(long, value_enum, default_value = "auto")]
    format: Layout,
    /// Who wrote answers that do not say it themselves.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// The column or field with the prompt, where its name does not say it.
    #[arg(long, value_name = "FIELD")]
    prompt: Option<String>,
    /// The columns or fields with the answers, where their names do not say it; once for each.
    #[arg(long, value_name = "FIELD")]
    answer: Vec<String>,
    /// Argilla: the question whose replies say which answer is better.
    #[arg(long, value_name = "NAME")]
    question: Option<String>,
    /// Replace personal data by pseudonyms before anything is kept.
    #[arg(long)]
    scrub: bool,
    #[command(flatten)]
    scrubbing: ScrubOptions,
    /// Print what was added as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Layout {
    Auto,
    Rows,
    Argilla,
    LabelStudio,
}

/// Runs `ft label import`.
pub fn run(args: &ImportArgs) -> Result<()> {
    if args.scrubbing.given() && !args.scrub {
        return Err(Error::user("what is looked for has no effect without --scrub").hint("add --scrub"));
    }
    let store = Store::open(&args.project)?;
    let options = Options {
        format: match args.format {
            Layout::Auto => Format::Auto,
            Layout::Rows => Format::Rows,
            Layout::Argilla => Format::Argilla,
            Layout::LabelStudio => Format::LabelStudio,
        },
        source: args.source.clone(),
        prompt: args.prompt.clone(),
        answers: args.answer.clone(),
        question: args.question.clone(),
    };
    let overlap = store.settings()?.overlap;
    // All files are read before anything is added.
    let mut items = Vec::new();
    for path in &args.files {
        items.extend(read(path, &options)?);
    }
    if args.scrub {
        let mut scrubber = args.scrubbing.scrubber()?;
        items.iter_mut().try_for_each(|item| item.scrub(&mut scrubber))?;
        said(scrubber.report()).iter().for_each(report::info);
    }
    let Imported { rows, prompts, candidates, pairs, votes } = import(&store, &items, overlap)?;
    if args.json {
        let place = store.place();
        println!(
            "{}",
            json!({ "project": place, "rows": rows, "prompts": prompts, "candidates": candidates, "pairs": pairs, "votes": votes })
        );
        return Ok(());
    }
    let n = |n: usize| report::count(n as u64);
    report::info(format!(
        "{}: {} rows: {} new prompts, {} new answers, {} new pairs, {} new votes",
        store.place(),
        n(rows),
        n(prompts),
        n(candidates),
        n(pairs),
        n(votes)
    ));
    Ok(())
}
