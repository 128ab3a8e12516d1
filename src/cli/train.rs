//! `ft train`: trains a model from a recipe.

use super::shared::interrupt::stop_on_signal;
use super::shared::suite;
use super::shared::training::{evaluate, fit_plan, print_summary, software};
use clap::Args;
use ft::error::Result;
use ft::recipe;
use ft::train::run;
use ft::train::start::StartMode;
use std::path::PathBuf;

#[derive(Args)]
pub struct TrainArgs {
    /// The recipe file
    recipe: PathBuf,
    /// Set a key by its dotted path, such as optim.lr=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Continue from the last checkpoint in run.out
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Delete the files of an earlier run in run.out
    #[arg(long)]
    overwrite: bool,
    /// Choose batch.tokens, run.replay, run.mlp_tile and run.offload so that the run fits into the free memory, or into
    /// SIZE (such as 8GB)
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, conflicts_with = "resume")]
    fit: Option<Option<String>>,
    /// Record the third step (operations, and the GPU's kernels, copies and waits) as a trace for ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `ft train`.
pub fn run(args: TrainArgs) -> Result<()> {
    let plan = fit_plan(recipe::plan::load(&args.recipe, &args.sets)?, &args.fit)?;
    let start = match (args.resume, args.overwrite) {
        (true, _) => StartMode::Resume,
        (_, true) => StartMode::Overwrite,
        _ => StartMode::Fresh,
    };
    let profile = args.profile.as_deref();
    let suite = suite::of_plan(&plan)?;
    print_summary(&run::run(&plan, start, &software(), profile, stop_on_signal())?, args.json)?;
    evaluate(&plan, suite)
}
