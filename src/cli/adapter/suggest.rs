//! `ft adapter suggest`: which layers are worth adapting.

use crate::cli::shared::stdout::{print, print_json};
use clap::Args;
use ft::error::{Error, Result};
use ft::train::suggest::{self, ModuleAdvice, SuggestOptions, Suggestion};
use ft::{fsutil, models, recipe, report};
use indexmap::IndexMap;
use std::io::Write;
use std::path::PathBuf;

/// Measure on a recipe's rows which layers are worth adapting, and suggest a rank for each
///
/// Nothing is trained. The rows of a few optimiser steps run forward and backward; from their gradients follows how fast
/// each layer could lower the loss, and in how many directions. The suggested ranks cost no more parameters than the
/// recipe's adapter on all linear layers.
#[derive(Args)]
pub struct SuggestArgs {
    /// The recipe file
    recipe: PathBuf,
    /// Set a key by its dotted path, such as batch.examples=16
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Optimiser steps in each of the three parts of the measurement
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Spend as many parameters as this rank in every linear layer would [default: the recipe's]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(i64).range(1..))]
    rank: Option<i64>,
    /// The largest rank of a layer
    #[arg(long, value_name = "R", default_value_t = 32, value_parser = clap::value_parser!(i64).range(1..=256))]
    largest: i64,
    /// Write the recipe with the suggested ranks, every default filled in
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `ft adapter suggest`.
pub fn run(args: &SuggestArgs) -> Result<()> {
    let mut plan = recipe::plan::load(&args.recipe, &args.sets)?;
    let options = SuggestOptions { steps: args.steps as usize, rank: args.rank, largest: args.largest };
    if let Some(out) = args.out.as_deref().filter(|out| out.exists()) {
        return Err(Error::user(format!("{}: the file exists", out.display())).hint("choose another name for --out"));
    }
    let found = suggest::suggest(&plan, options)?;
    if args.json {
        print_json(&found)?
    } else {
        print(&text(&found))?
    }
    plan.recipe.adapter = Some(found.adapter);
    match &args.out {
        Some(out) => {
            let yaml = plan.to_yaml()?;
            fsutil::write_atomic(out, |file| file.write_all(yaml.as_bytes()))?;
            report::info(format!("recipe with these ranks written: train it with ft train {}", out.display()));
        }
        None => report::info("write a recipe with these ranks: --out FILE"),
    }
    Ok(())
}

/// Returns the suggestion as tables by kind of module and by layer, and in one sentence.
fn text(found: &Suggestion) -> String {
    let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_string();
    let layer = |module: &str| models::layer_number(module).map_or("-".into(), |n| n.to_string());
    let percent = |x: f64| format!("{:.0} %", 100.0 * x);
    let [parameters, uniform] = found.parameters.map(|n| report::count(n as u64));
    format!(
        "{}\n\n{}\n\n\
         share: of the decrease of the loss, to first order, that all linear layers could give\n\
         agreement: cosine between the gradients of two sets of rows; near 0 the rows agree on nothing\n\n\
         rank {} in every layer, {uniform} parameters, reaches {} of the share; the suggested ranks, {parameters} \
         parameters, reach {}\n",
        table("module", found, last),
        table("layer", found, layer),
        found.uniform_rank,
        percent(found.reached[1]),
        percent(found.reached[0]),
    )
}

/// Returns a table with one row for each group of modules.
fn table(what: &str, found: &Suggestion, group: impl Fn(&str) -> String) -> String {
    let mut groups: IndexMap<String, Vec<&ModuleAdvice>> = IndexMap::new();
    found.modules.iter().for_each(|m| groups.entry(group(&m.module)).or_default().push(m));
    let mut rows = vec![[what, "share", "", "agreement", "mean rank", "parameters"].map(String::from).to_vec()];
    let largest = groups.values().map(|list| list.iter().map(|m| m.share).sum::<f64>()).fold(0.0, f64::max);
    for (name, list) in &groups {
        let count = list.len() as f64;
        let sum = |of: fn(&ModuleAdvice) -> f64| list.iter().map(|m| of(m)).sum::<f64>();
        let share = sum(|m| m.share);
        let bar = if largest > 0.0 { (20.0 * share / largest).round() as usize } else { 0 };
        rows.push(vec![
            name.clone(),
            format!("{:.1} %", 100.0 * share),
            "#".repeat(bar),
            format!("{:.2}", sum(|m| m.agreement) / count),
            format!("{:.1}", sum(|m| m.rank as f64) / count),
            report::count(list.iter().map(|m| m.parameters as u64).sum()),
        ]);
    }
    report::table(&rows)
}
