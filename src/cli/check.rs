//! `ft check`: reads a recipe and its data as training would, and reports lengths, loss masks, memory and disk.

use super::shared::training::fit_plan;
use clap::Args;
use ft::error::{Error, Result};
use ft::train::check::{self, PlanCheck};
use ft::{recipe, report};
use std::io::IsTerminal;
use std::path::PathBuf;

#[derive(Args)]
pub struct CheckArgs {
    /// The recipe file
    recipe: PathBuf,
    /// Set a key by its dotted path, such as optim.lr=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Choose batch.tokens, run.replay, run.mlp_tile and run.offload so that the run fits into the free memory, or into
    /// SIZE (such as 8GB)
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true)]
    fit: Option<Option<String>>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `ft check`. Fails if the recipe would not run as it is, with all problems that were found.
pub fn run(args: CheckArgs) -> Result<()> {
    let plan = fit_plan(recipe::plan::load(&args.recipe, &args.sets)?, &args.fit)?;
    let check = check::check(&plan, std::io::stdout().is_terminal() && !args.json)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&check).expect("a check is JSON")),
        false => print(&check),
    }
    match check.problems.as_slice() {
        [] => Ok(()),
        problems => Err(Error::user(problems.join("\n       "))),
    }
}

fn print(c: &PlanCheck) {
    for (i, preview) in c.previews.iter().enumerate() {
        println!("row {} as the model sees it (trained tokens are green, or between « and »):\n{preview}\n", i + 1);
    }
    println!("lengths in tokens:\n{}", c.histogram);
    let s = &c.train;
    println!("too long {}, dropped {}, truncated {}, split {}", s.too_long, s.dropped, s.truncated, s.split);
    let overlap = c.overlap.as_ref().map_or(0, |o| o.rows);
    println!("duplicates {} in training rows, {overlap} validation rows also in training", c.duplicates.superfluous);
    let n = report::count;
    let active = if c.active < c.parameters { format!(" ({} for each token)", n(c.active)) } else { String::new() };
    println!(
        "parameters {}{active}, of which trained {} ({:.2} %)",
        n(c.parameters),
        n(c.trained),
        100.0 * c.trained as f64 / c.parameters as f64
    );
    if let Some(added) = &c.vocabulary {
        println!("{}", added.describe());
    }
    if !c.adapted.is_empty() {
        println!("adapted: {}", c.adapted.iter().map(|(m, k)| format!("{k} {m}")).collect::<Vec<_>>().join(", "));
    }
    if c.virtual_tokens > 0 {
        println!("adapted: {} virtual tokens before every sequence", c.virtual_tokens);
    }
    println!("{} steps, packed rows of at most {} tokens", n(c.steps), n(c.longest_row as u64));
    let free = |f: Option<u64>| f.map_or("unknown".into(), report::bytes);
    println!(
        "memory about {} (weights {}, training {}, activations {}{}); free {}",
        report::bytes(c.needs.memory),
        report::bytes(c.needs.weights),
        report::bytes(c.needs.training),
        report::bytes(c.needs.activations),
        if c.needs.buffers > 0 {
            format!(", buffers of products {}", report::bytes(c.needs.buffers))
        } else {
            String::new()
        },
        free(c.memory_free)
    );
    if c.needs.keeps_inputs {
        println!("results of norms and activations are kept for the backward, for which there is memory");
    }
    if c.needs.host > 0 {
        println!("page-locked memory of the host about {}", report::bytes(c.needs.host));
    }
    println!("disk about {}; free {}", report::bytes(c.needs.disk), free(c.disk_free));
    if c.problems.is_empty() {
        println!("ok: start the run with ft train");
    }
}
