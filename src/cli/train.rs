//! `ft train`: trains a model from a recipe. Also holds what `ft resume` and `ft replay` share with it.

use clap::Args;
use ft::error::Result;
use ft::recipe::plan::Plan;
use ft::runs::facts::Software;
use ft::train::fit;
use ft::train::run;
use ft::train::start::StartMode;
use ft::train::summary::RunSummary;
use ft::{recipe, report, runtime};
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
    /// Continue from the last checkpoint in run.out
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Delete the files of an earlier run in run.out
    #[arg(long)]
    overwrite: bool,
    /// Choose batch.tokens and run.replay so that the run fits into the free memory, or into SIZE (such as 8GB)
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, conflicts_with = "resume")]
    fit: Option<Option<String>>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Returns the plan, changed to fit into memory if --fit is given, and reports the change.
pub(super) fn fit_plan(plan: Plan, fit: &Option<Option<String>>) -> Result<Plan> {
    let Some(size) = fit else { return Ok(plan) };
    let (plan, said) = fit::fit(&plan, size.as_deref().map(fit::parse_size).transpose()?)?;
    report::info(said);
    Ok(plan)
}

/// Runs `ft train`.
pub fn run(args: TrainArgs) -> Result<()> {
    let plan = fit_plan(recipe::plan::load(&args.recipe, &args.sets)?, &args.fit)?;
    let start = match (args.resume, args.overwrite) {
        (true, _) => StartMode::Resume,
        (_, true) => StartMode::Overwrite,
        _ => StartMode::Fresh,
    };
    print_summary(&run::run(&plan, start, &software(), stop_on_signal())?, args.json)
}

/// Reports how a run ended: as JSON on stdout or in one line on stderr.
pub(super) fn print_summary(summary: &RunSummary, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(summary).expect("a summary is JSON"));
        return Ok(());
    }
    let best =
        summary.best_value.map_or(String::new(), |v| format!(", best validation {} {v:.4}", summary.best_metric));
    report::info(format!(
        "{} steps, {} tokens in {}{best}, peak tensor memory {}",
        summary.steps,
        report::count(summary.tokens),
        report::duration(Duration::from_secs_f64(summary.seconds)),
        report::bytes(summary.memory),
    ));
    Ok(())
}

/// Returns the versions of ft and libtorch, which the run records.
pub(super) fn software() -> Software {
    let libtorch = runtime::get().libtorch.version.clone();
    Software { ft: env!("CARGO_PKG_VERSION").into(), libtorch: libtorch.unwrap_or("unknown".into()) }
}

/// Returns a flag that the first Ctrl-C or SIGTERM sets, so that the run saves and stops. The second ends the process
/// at once.
pub(super) fn stop_on_signal() -> Arc<AtomicBool> {
    runtime::survive_broken_pipes();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone());
        let _ = signal_hook::flag::register(signal, stop.clone());
    }
    stop
}
