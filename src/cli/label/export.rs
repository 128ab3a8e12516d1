//! `ft label export`: writes verdicts as rows to train on.

use super::{AggregationArg, parse_judges};
use clap::{Args, ValueEnum};
use ft::data::source;
use ft::error::{Error, Result};
use ft::label::export::options::{LabelExportFormat, LabelExportOptions, MarginSource};
use ft::label::export::rows::export;
use ft::label::project::snapshot::Project;
use ft::label::project::votes::JudgeFilter;
use ft::label::results::bias::length_baseline;
use ft::label::results::verdict::aggregate;
use ft::label::store::Store;
use ft::report;
use serde_json::json;
use std::path::PathBuf;

/// Write the labels as rows for `method: reward`, `dpo`, `kto` and other tools
#[derive(Args)]
pub struct ExportArgs {
    /// The project.
    project: String,
    /// Format of the rows.
    #[arg(long, value_enum, default_value = "preference")]
    format: ExportFormatArg,
    /// File to write: .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// File for the rows of some prompts, for validation; no prompt is in both files.
    #[arg(long, value_name = "FILE")]
    valid_out: Option<PathBuf>,
    /// Share of the prompts for validation.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, requires = "valid_out")]
    valid: f64,
    /// Whose votes count: people, machines, all, or names of judges.
    #[arg(long, value_name = "WHO,…", value_delimiter = ',', default_value = "people")]
    votes: Vec<String>,
    /// How votes become verdicts.
    #[arg(long, value_enum, default_value_t = AggregationArg::Majority)]
    aggregate: AggregationArg,
    /// Meaning of the column `margin`.
    #[arg(long, value_enum, default_value = "agreement")]
    margin: MarginArg,
    /// Leave out verdicts with a lower probability than this.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    min_confidence: f64,
    /// Keep ties; in preference rows, as two rows of margin 0, one in each order.
    #[arg(long)]
    ties: bool,
    /// Keep pairs whose answers are both bad (formats unpaired and ranked).
    #[arg(long)]
    both_bad: bool,
    /// Add the better answers that people wrote.
    #[arg(long)]
    edits: bool,
    /// Seed of the split into training and validation [default: the project's]
    #[arg(long)]
    seed: Option<u64>,
    /// Print the counts as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ExportFormatArg {
    /// Columns `prompt`, `chosen`, `rejected`, `margin`.
    Preference,
    /// Columns `prompt`, `completions` from best to worst, `scores`, `models`.
    Ranked,
    /// Columns `prompt`, `completion`, `label`.
    Unpaired,
    /// Records of Argilla.
    Argilla,
}

#[derive(Clone, Copy, ValueEnum)]
enum MarginArg {
    /// Leave out the column.
    None,
    /// The mean strength of the votes.
    Strength,
    /// How much more probable the chosen answer is than the rejected one.
    Agreement,
}

/// Runs `ft label export`.
pub fn run(args: &ExportArgs) -> Result<()> {
    for (name, share) in [("--valid", args.valid), ("--min-confidence", args.min_confidence)] {
        if !(0.0..1.0).contains(&share) {
            return Err(Error::user(format!("{name} {share}: expected a share from 0 to below 1")));
        }
    }
    if args.both_bad && matches!(args.format, ExportFormatArg::Preference | ExportFormatArg::Argilla) {
        return Err(Error::user("--both-bad: of two bad answers, none is preferred")
            .hint("keep them as two bad answers: --format unpaired --both-bad"));
    }
    if args.edits && !matches!(args.format, ExportFormatArg::Preference) {
        return Err(Error::user("--edits: edited answers become pairs").hint("use --format preference"));
    }
    let store = Store::open(&args.project)?;
    let project = Project::read(&store)?;
    let judges = parse_judges(&args.votes);
    let ballots = project.resolved_votes(&judges);
    let verdicts = aggregate(&ballots, args.aggregate.into());
    if verdicts.is_empty() {
        let who = args.votes.join(", ");
        let all = project.resolved_votes(&JudgeFilter::All);
        let mut names: Vec<&str> = all.iter().map(|b| b.annotator.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        return Err(Error::user(format!("{}: no votes by {who}", store.location())).hint(match names.is_empty() {
            true => "no pair has been judged yet: ft label serve PROJECT, or ft label judge PROJECT".into(),
            false => format!("there are votes by {}: give --votes all, machines, or names", names.join(", ")),
        }));
    }
    let wanted = LabelExportOptions {
        format: match args.format {
            ExportFormatArg::Preference => LabelExportFormat::Preference,
            ExportFormatArg::Ranked => LabelExportFormat::Ranked,
            ExportFormatArg::Unpaired => LabelExportFormat::Unpaired,
            ExportFormatArg::Argilla => LabelExportFormat::Argilla,
        },
        margin: match args.margin {
            MarginArg::None => MarginSource::None,
            MarginArg::Strength => MarginSource::Strength,
            MarginArg::Agreement => MarginSource::Agreement,
        },
        confidence: args.min_confidence,
        ties: args.ties,
        both_bad: args.both_bad,
        edits: args.edits,
        valid: if args.valid_out.is_some() { args.valid } else { 0.0 },
        seed: args.seed.unwrap_or(project.settings.seed),
    };
    let found = export(&project, &ballots, &verdicts, &wanted);
    if found.train.is_empty() {
        return Err(Error::user(format!(
            "{}: no row to write: of {} pairs, {} are ties, {} both bad, {} below --min-confidence{}",
            store.location(),
            found.pairs,
            found.ties,
            found.both_bad,
            found.unsure,
            if found.valid.is_empty() { "" } else { ", and the rest is for validation" },
        ))
        .hint("keep ties with --ties, lower --min-confidence, or judge more pairs"));
    }
    source::write_for_owner(&args.out, &found.train)?;
    if let Some(path) = &args.valid_out {
        source::write_for_owner(path, &found.valid)?;
    }
    let baseline = length_baseline(&project, &verdicts);
    if args.json {
        let counts = json!({ "train": found.train.len(), "valid": found.valid.len(), "left_out": found });
        println!("{}", json!({ "project": store.location(), "rows": counts, "length": baseline }));
        return Ok(());
    }
    let n = |n: usize| report::count(n as u64);
    report::info(format!(
        "{}: {} rows{} of {} judged pairs; left out: {} ties, {} both bad, {} below --min-confidence, {} contradicted",
        args.out.display(),
        n(found.train.len()),
        args.valid_out.as_ref().map_or(String::new(), |p| format!(", {}: {}", p.display(), n(found.valid.len()))),
        n(found.pairs),
        n(found.ties),
        n(found.both_bad),
        n(found.unsure),
        n(found.contradicted),
    ));
    if let Some(length) = baseline {
        let (longer, shorter) = (100.0 * length.longer.share, 100.0 * length.shorter.share);
        report::info(format!("length alone: longer wins {longer:.1} %, shorter wins {shorter:.1} %"));
    }
    Ok(())
}
