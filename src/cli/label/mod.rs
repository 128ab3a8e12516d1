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
use ft::label::aggregate::Aggregation;
use ft::label::ballot::Judges;
use ft::label::record::Kind;

// In the order in which a project needs them.
#[derive(Subcommand)]
pub enum Label {
    New(new::NewArgs),
    Candidates(candidates::CandidatesArgs),
    Import(import::ImportArgs),
    Pairs(pairs::PairsArgs),
    Annotator(annotator::AnnotatorArgs),
    Serve(serve::ServeArgs),
    Tui(tui::TuiArgs),
    Judge(judge::JudgeArgs),
    Report(report::ReportArgs),
    Export(export::ExportArgs),
}

impl Label {
    /// Returns true if the command runs until a person ends it.
    pub fn waits(&self) -> bool {
        matches!(self, Label::Serve(_) | Label::Tui(_))
    }
}

/// Runs `ft label …`.
pub fn run(verb: Label) -> Result<()> {
    match verb {
        Label::New(args) => new::run(&args),
        Label::Candidates(args) => candidates::run(&args),
        Label::Import(args) => import::run(&args),
        Label::Pairs(args) => pairs::run(&args),
        Label::Annotator(args) => annotator::run(&args),
        Label::Serve(args) => serve::run(&args),
        Label::Tui(args) => tui::run(&args),
        Label::Judge(args) => judge::run(&args),
        Label::Report(args) => report::run(&args),
        Label::Export(args) => export::run(&args),
    }
}

/// Returns the name of the account at the terminal ($USER), else `me`.
fn user() -> String {
    std::env::var("USER").ok().filter(|name| !name.trim().is_empty()).unwrap_or_else(|| "me".into())
}

/// How votes become verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// The choice with the most votes; if two have equally many, a tie.
    Majority,
    /// The most probable choice, given each judge's estimated errors (Dawid and Skene).
    DawidSkene,
}

impl From<By> for Aggregation {
    fn from(by: By) -> Self {
        match by {
            By::Majority => Aggregation::Majority,
            By::DawidSkene => Aggregation::DawidSkene,
        }
    }
}

/// Reads the value of `--votes`: people, machines, all, or names.
fn judges(who: &[String]) -> Judges {
    match who {
        [one] if one == "people" => Judges::Kind(Kind::Person),
        [one] if one == "machines" => Judges::Machines,
        [one] if one == "all" => Judges::All,
        names => Judges::Named(names.to_vec()),
    }
}
