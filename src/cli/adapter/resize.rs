//! `ft adapter resize`: a LoRA of another rank.

use super::{SizeArgs, info, percent, refuse_existing};
use crate::cli::shared::interrupt::end_without_remains;
use crate::cli::shared::stdout::{print, print_json};
use clap::Args;
use ft::convert::adapter::resize;
use ft::error::Result;
use ft::report;
use std::path::PathBuf;

/// Write a LoRA with other ranks: the largest singular values of every change
#[derive(Args)]
pub struct ResizeArgs {
    /// The adapter's directory
    adapter: PathBuf,
    #[command(flatten)]
    size: SizeArgs,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `ft adapter resize`.
pub fn run(args: &ResizeArgs) -> Result<()> {
    end_without_remains()?;
    refuse_existing(&args.out)?;
    let done = resize::resize(&args.adapter, args.size.truncation()?, &args.out)?;
    if args.json {
        return print_json(&done);
    }
    print(&info::text(&done.adapter))?;
    let [before, after] = done.parameters.map(report::count);
    report::info(format!("{before} -> {after} parameters; {} of the energy is kept", percent(done.energy_kept)));
    Ok(())
}
