//! `ft teach`: what teachers say, written down for students.

use super::train::signals;
use clap::Args;
use ft::error::Result;
use ft::train::teach;
use ft::{recipe, report};
use std::path::PathBuf;

/// Store what a recipe's teachers say, so that students learn without running them
///
/// For each supervised token of the recipe's rows the most likely tokens and the mass of the others are kept. Training
/// then reads them from method.distill.cache. A broken-off call goes on where it stopped.
#[derive(Args)]
pub struct TeachArgs {
    /// A recipe with the method distill
    recipe: PathBuf,
    /// Set a key by its dotted path
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Tokens kept of each distribution
    #[arg(long, value_name = "K", default_value_t = 64)]
    top: i64,
    /// Folder to write [default: method.distill.cache]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &TeachArgs) -> Result<()> {
    let plan = recipe::load(&args.recipe, &args.sets)?;
    let (folder, made) = teach::teach(&plan, args.top, args.out.as_deref(), &signals())?;
    if args.json {
        println!("{}", serde_json::json!({ "folder": folder, "made": made }));
        return Ok(());
    }
    report::info(format!(
        "{}: {} rows, {} supervised tokens, {} of each kept; {} parts were there already",
        folder.display(),
        made.items,
        made.tokens,
        made.k,
        made.kept
    ));
    Ok(())
}
