//! `ft label`: makes preference data; one file for each command.

mod annotator;
mod candidates;
mod export;
mod import;
mod judge;
mod new;
mod pairs;
mod report;
mod serve;
mod tui;

use clap::{Subcommand, ValueEnum};
use ft::error::Result;
use ft::label::project::votes::JudgeFilter;
use ft::label::record::annotator::AnnotatorKind;
use ft::label::results::verdict::Aggregation;

// In the order in which a project needs them.
#[derive(Subcommand)]
pub enum LabelCommand {
    New(new::NewArgs),
    Candidates(candidates::CandidatesArgs),
    Import(import::LabelImportArgs),
    Pairs(pairs::PairsArgs),
    Annotator(annotator::AnnotatorArgs),
    Serve(serve::ServeArgs),
    Tui(tui::TuiArgs),
    Judge(judge::JudgeArgs),
    Report(report::ReportArgs),
    Export(export::ExportArgs),
}

impl LabelCommand {
    /// Returns true if the command runs until a person ends it.
    pub fn waits_for_people(&self) -> bool {
        matches!(self, LabelCommand::Serve(_) | LabelCommand::Tui(_))
    }
}

/// Runs `ft label …`.
pub fn run(verb: LabelCommand) -> Result<()> {
    match verb {
        LabelCommand::New(args) => new::run(&args),
        LabelCommand::Candidates(args) => candidates::run(&args),
        LabelCommand::Import(args) => import::run(&args),
        LabelCommand::Pairs(args) => pairs::run(&args),
        LabelCommand::Annotator(args) => annotator::run(&args),
        LabelCommand::Serve(args) => serve::run(&args),
        LabelCommand::Tui(args) => tui::run(&args),
        LabelCommand::Judge(args) => judge::run(&args),
        LabelCommand::Report(args) => report::run(&args),
        LabelCommand::Export(args) => export::run(&args),
    }
}

/// Returns the name of the account at the terminal ($USER), else `me`.
fn account_name() -> String {
    std::env::var("USER").ok().filter(|name| !name.trim().is_empty()).unwrap_or_else(|| "me".into())
}

/// How votes become verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AggregationArg {
    /// The choice with the most votes; if two have equally many, a tie.
    Majority,
    /// The most probable choice, given each judge's estimated errors (Dawid and Skene).
    DawidSkene,
}

impl From<AggregationArg> for Aggregation {
    fn from(by: AggregationArg) -> Self {
        match by {
            AggregationArg::Majority => Aggregation::Majority,
            AggregationArg::DawidSkene => Aggregation::DawidSkene,
        }
    }
}

/// Reads the value of `--votes`: people, machines, all, or names.
fn parse_judges(who: &[String]) -> JudgeFilter {
    match who {
        [one] if one == "people" => JudgeFilter::Kind(AnnotatorKind::Person),
        [one] if one == "machines" => JudgeFilter::Machines,
        [one] if one == "all" => JudgeFilter::All,
        names => JudgeFilter::Named(names.to_vec()),
    }
}
