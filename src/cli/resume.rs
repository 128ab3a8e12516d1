//! `ft resume`: continues a run from its folder, or repeats a part of it and compares (`--verify`).

use super::shared::interrupt::stop_on_signal;
use super::shared::suite;
use super::shared::training::{evaluate, print_summary, software};
use clap::Args;
use ft::error::{Error, Result};
use ft::recipe::plan::Plan;
use ft::train::run;
use ft::train::start::StartMode;
use ft::train::verify::{self, RunVerification};
use ft::{fsutil, report};
use std::path::PathBuf;

/// Continue a run from its last checkpoint
#[derive(Args)]
pub struct ResumeArgs {
    /// The run's folder
    run: PathBuf,
    /// Instead of continuing, repeat K steps from an earlier checkpoint and compare them with the run's records, bit
    /// for bit; without K, the steps between the last two checkpoints. Changes nothing on disk
    #[arg(long, value_name = "K", num_args = 0..=1)]
    verify: Option<Option<u64>>,
    /// Print the summary or the verdict as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `ft resume`. With --verify, fails if the repeated steps differ from the records.
pub fn run(args: &ResumeArgs) -> Result<()> {
    let file = args.run.join("plan.json");
    if !file.exists() {
        return Err(Error::user(format!("{}: not a run folder: plan.json is missing", args.run.display()))
            .hint("give the folder that the recipe names in run.out; to start a run: ft train RECIPE"));
    }
    let mut plan = Plan::read(&file)?;
    let here = fsutil::absolute(&args.run);
    if plan.recipe.run.out != here {
        report::info(format!("the run was started in {} and continues in this folder", plan.recipe.run.out.display()));
        plan.recipe.run.out = here;
    }
    match args.verify {
        None => {
            let suite = suite::of_plan(&plan)?;
            print_summary(&run::run(&plan, StartMode::Resume, &software(), None, stop_on_signal())?, args.json)?;
            evaluate(&plan, suite)
        }
        Some(steps) => print_verdict(&verify::verify(&plan, steps)?, args),
    }
}

fn print_verdict(v: &RunVerification, args: &ResumeArgs) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string(v).expect("a verdict is JSON"));
    }
    let tensors = match v.checkpoints_compared.as_slice() {
        [] => "tensors not compared, as the replay reached no checkpoint".to_string(),
        steps => format!(
            "weights, optimiser and generator at step {}",
            steps.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
        ),
    };
    let from = if v.from == 0 { "the start".to_string() } else { format!("the checkpoint of step {}", v.from) };
    if let (Some(step), Some(difference)) = (v.step, &v.difference) {
        return Err(Error::user(format!(
            "{}: the replay from {from} differs at step {step}: {difference}",
            args.run.display()
        ))
        .hint(
            "equal bits are guaranteed only on a CPU, with the same binary, libtorch, machine type and number of \
             threads (run.threads)",
        ));
    }
    if !args.json {
        println!(
            "same: steps {} to {} from {from}; compared: metrics of {} steps, {tensors}",
            v.from + 1,
            v.to,
            v.steps_compared
        );
    }
    Ok(())
}
