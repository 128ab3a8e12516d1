//! `ft resume`: a run taken up where it stands, from its own folder; or a part of it done once more and compared.

use super::train::{finish, signals, software};
use clap::Args;
use ft::error::{Error, Result};
use ft::recipe::Plan;
use ft::train::verify::{self, Verdict};
use ft::{fsutil, report, train};
use std::path::PathBuf;

/// Go on with a run from its last checkpoint
#[derive(Args)]
pub struct ResumeArgs {
    /// The run's folder
    run: PathBuf,
    /// Replay K steps from an earlier checkpoint and compare them with the record, bit for bit; without K, those
    /// between the last two checkpoints. Changes nothing
    #[arg(long, value_name = "K", num_args = 0..=1)]
    verify: Option<Option<u64>>,
    /// Print the summary or the verdict as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ResumeArgs) -> Result<()> {
    let file = args.run.join("plan.json");
    if !file.exists() {
        return Err(Error::user(format!("{}: there is no run: plan.json is missing", args.run.display()))
            .hint("ft resume takes the folder that a recipe calls run.out; ft train RECIPE starts a run"));
    }
    let mut plan = Plan::read(&file)?;
    let here = fsutil::absolute(&args.run);
    if plan.recipe.run.out != here {
        report::info(format!("the run was made in {} and goes on here", plan.recipe.run.out.display()));
        plan.recipe.run.out = here;
    }
    match args.verify {
        None => finish(&train::run(&plan, train::Start::Resume, &software(), signals())?, args.json),
        Some(steps) => tell(&verify::verify(&plan, steps)?, args),
    }
}

fn tell(v: &Verdict, args: &ResumeArgs) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string(v).expect("a verdict is JSON"));
    }
    let tensors = match v.checkpoints_compared.as_slice() {
        [] => "no checkpoint was passed, so tensors were not compared".to_string(),
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
        .hint("bits are promised on the CPU, for the same binary, libtorch, machine type and number of threads (run.threads)"));
    }
    if !args.json {
        println!(
            "same: steps {} to {} from {from}; compared: numbers of {} steps, {tensors}",
            v.from + 1,
            v.to,
            v.steps_compared
        );
    }
    Ok(())
}
