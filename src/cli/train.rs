//! `ft train`: a recipe, carried out.

use clap::Args;
use ft::error::Result;
use ft::recipe::Plan;
use ft::runs::Software;
use ft::{recipe, report, runtime, train};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

#[derive(Args)]
pub struct TrainArgs {
    /// The recipe file
    recipe: PathBuf,
    /// Set a key by its dotted path, such as optim.lr=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Go on from the last checkpoint in run.out
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Throw away what an earlier run left in run.out
    #[arg(long)]
    overwrite: bool,
    /// Choose batch.tokens and run.replay for the memory that is free, or for SIZE (such as 8GB)
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, conflicts_with = "resume")]
    fit: Option<Option<String>>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// The plan that fits, where one is asked for.
pub(super) fn fitted(plan: Plan, fit: &Option<Option<String>>) -> Result<Plan> {
    let Some(size) = fit else { return Ok(plan) };
    let (plan, said) = train::fit::fit(&plan, size.as_deref().map(train::fit::size).transpose()?)?;
    report::info(said);
    Ok(plan)
}

pub fn run(args: TrainArgs) -> Result<()> {
    let plan = fitted(recipe::load(&args.recipe, &args.sets)?, &args.fit)?;
    let start = match (args.resume, args.overwrite) {
        (true, _) => train::Start::Resume,
        (_, true) => train::Start::Overwrite,
        _ => train::Start::Fresh,
    };
    finish(&train::run(&plan, start, &software(), signals())?, args.json)
}

/// Says how a run ended.
pub(super) fn finish(summary: &train::Summary, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(summary).expect("a summary is JSON"));
        return Ok(());
    }
    let best =
        summary.best_value.map_or(String::new(), |v| format!(", best validation {} {v:.4}", summary.best_metric));
    report::info(format!(
        "{} steps, {} tokens in {}{best}, peak {} of tensors",
        summary.steps,
        report::count(summary.tokens),
        report::duration(Duration::from_secs_f64(summary.seconds)),
        report::bytes(summary.memory),
    ));
    Ok(())
}

/// The programs that are about to compute.
pub(super) fn software() -> Software {
    let libtorch = runtime::get().libtorch.version.clone();
    Software { ft: env!("CARGO_PKG_VERSION").into(), libtorch: libtorch.unwrap_or("unknown".into()) }
}

/// Raised by the first Ctrl-C or SIGTERM; a second one ends the process at once.
pub(super) fn signals() -> Arc<AtomicBool> {
    runtime::survive_broken_pipes();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone());
        let _ = signal_hook::flag::register(signal, stop.clone());
    }
    stop
}
