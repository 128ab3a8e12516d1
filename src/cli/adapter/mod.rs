//! `ft adapter`: looks at adapters, at what they could be, and makes adapters from others.

mod diff;
mod extract;
mod info;
mod resize;
mod suggest;

use clap::{Args, Subcommand};
use ft::adapters::merging::WeightedAdapter;
use ft::convert::merge::inputs::named_base;
use ft::error::{Error, Result};
use ft::merging::Truncation;
use ft::report;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum AdapterCommand {
    Suggest(suggest::SuggestArgs),
    Info(info::InfoArgs),
    Diff(diff::DiffArgs),
    Resize(resize::ResizeArgs),
    Extract(extract::ExtractArgs),
}

impl AdapterCommand {
    /// Returns true if the command computes on the recipe's rows.
    pub fn runs_a_recipe(&self) -> bool {
        matches!(self, Self::Suggest(_))
    }
}

/// Runs `ft adapter …`.
pub fn run(verb: AdapterCommand) -> Result<()> {
    match verb {
        AdapterCommand::Suggest(args) => suggest::run(&args),
        AdapterCommand::Info(args) => info::run(&args),
        AdapterCommand::Diff(args) => diff::run(&args),
        AdapterCommand::Resize(args) => resize::run(&args),
        AdapterCommand::Extract(args) => extract::run(&args),
    }
}

/// The size of a new LoRA.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct SizeArgs {
    /// Largest rank of every product
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(i64).range(1..=65536))]
    rank: Option<i64>,
    /// Choose ranks that keep this share of the energy of every change, such as 0.99
    #[arg(long, value_name = "SHARE")]
    energy: Option<f64>,
}

impl SizeArgs {
    fn truncation(&self) -> Result<Truncation> {
        match (self.rank, self.energy) {
            (Some(rank), _) => Ok(Truncation::Rank(rank)),
            (_, Some(share)) if share > 0.0 && share <= 1.0 => Ok(Truncation::Energy(share)),
            (_, share) => {
                Err(Error::user(format!("--energy: {} is no share of the energy", share.unwrap_or_default()))
                    .hint("above 0 and at most 1, e.g. 0.99"))
            }
        }
    }
}

/// Fails if the folder to write exists.
fn refuse_existing(out: &Path) -> Result<()> {
    match out.exists() {
        true => Err(Error::user(format!("--out {}: already exists", out.display())).hint("choose another folder")),
        false => Ok(()),
    }
}

/// Returns the base that these adapters name, if it can be used, and tells that its weights are looked at.
fn base_nearby(adapters: &[&Path]) -> Result<Option<PathBuf>> {
    let parts = adapters.iter().map(|folder| WeightedAdapter::read(folder, 1.0)).collect::<Result<Vec<_>>>()?;
    let base = named_base(&parts).ok();
    if let Some(base) = &base {
        report::info(format!("changes over {}, which {} names", base.display(), adapters[0].display()));
    }
    Ok(base)
}

/// Formats a share as a percentage.
fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Formats a number that may be unknown.
fn or_dash(number: Option<f64>, format: impl Fn(f64) -> String) -> String {
    number.map_or("-".into(), format)
}
