//! `ft data`: inspects, converts, splits and scrubs data files before training, and manages the token cache.

mod cache;
mod canaries;
mod convert;
mod inspect;
pub mod scrub;
mod split;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use ft::data::rows::{RowFormat, SourceSpec};
use ft::error::Result;

#[derive(Args)]
pub struct DataArgs {
    #[command(subcommand)]
    verb: DataCommand,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Show a file's format, its first rows as ft reads them, and every bad row with line and key.
    Inspect(inspect::InspectArgs),
    /// Write the rows of a file in another format.
    Convert(convert::ConvertArgs),
    /// Split the rows of a file into training and validation rows; duplicates stay together.
    Split(split::SplitArgs),
    /// Replace personal data in the texts of rows with pseudonyms.
    Scrub(scrub::ScrubArgs),
    /// Put canaries among training rows, to measure what a model memorises (docs/responsible-use.md).
    Canaries(canaries::CanariesArgs),
    /// Show the cache of token ids, and remove unused entries.
    Cache(cache::CacheArgs),
}

/// Options that say how the rows of a file are read.
#[derive(Args)]
struct ReadArgs {
    /// Format of the rows; auto detects it from the columns of the first row.
    #[arg(long, value_parser = format_parser(), default_value = "auto", hide_possible_values = false)]
    format: RowFormat,
    /// Read the column THEIRS as OURS, e.g. `prompt=question`; may be given several times.
    #[arg(long, value_name = "OURS=THEIRS", value_parser = parse_column_mapping)]
    column: Vec<(String, String)>,
    /// Read only the first N rows.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rows: Option<u64>,
}

impl ReadArgs {
    fn source(&self, path: &std::path::Path) -> SourceSpec {
        SourceSpec {
            columns: self.column.iter().cloned().collect(),
            rows: self.rows.map(|n| n as usize),
            ..SourceSpec::file(path, self.format)
        }
    }
}

fn format_parser() -> impl TypedValueParser<Value = RowFormat> {
    let names = std::iter::once(RowFormat::Auto).chain(RowFormat::KNOWN).map(RowFormat::name);
    PossibleValuesParser::new(names).map(|name| RowFormat::from_name(&name).unwrap_or_default())
}

/// Parses OURS=THEIRS.
fn parse_column_mapping(text: &str) -> Result<(String, String), String> {
    let (ours, theirs) = text.split_once('=').ok_or("expected OURS=THEIRS, such as prompt=question")?;
    Ok((ours.to_string(), theirs.to_string()))
}

/// Runs `ft data …`.
pub fn run(args: DataArgs) -> Result<()> {
    match args.verb {
        DataCommand::Inspect(args) => inspect::run(args),
        DataCommand::Convert(args) => convert::run(args),
        DataCommand::Split(args) => split::run(args),
        DataCommand::Scrub(args) => scrub::run(args),
        DataCommand::Canaries(args) => canaries::run(&args),
        DataCommand::Cache(args) => cache::run(args),
    }
}
