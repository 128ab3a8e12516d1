//! `ft teach`: what teachers say, written down for students.

use super::answers::Answers;
use super::train::signals;
use clap::Args;
use ft::error::{Error, Result};
use ft::recipe::Plan;
use ft::train::teach;
use ft::{fsutil, recipe, report};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Store what a recipe's teachers say, so that students learn without running them
///
/// For each supervised token of the recipe's rows the most likely tokens and the mass of the others are kept. Training
/// then reads them from method.distill.cache. With --generate the teacher answers the rows' prompts instead, as
/// method.distill.generate says, and its answers are a data set. A broken-off call goes on where it stopped.
#[derive(Args)]
pub struct TeachArgs {
    /// A recipe with the method distill
    recipe: PathBuf,
    /// Set a key by its dotted path
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Tokens kept of each distribution [default: 64]
    #[arg(long, value_name = "K", conflicts_with = "generate", value_parser = clap::value_parser!(i64).range(1..))]
    top: Option<i64>,
    /// Let the teacher write answers to the rows' prompts
    #[arg(long, requires = "out")]
    generate: bool,
    /// Folder to write [default: method.distill.cache]; with --generate, a file of rows
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

/// Tokens kept of each distribution where nobody says.
const TOP: i64 = 64;

/// Prompts that are answered together; a signal is heard between them.
const BLOCK: usize = 16;

pub fn run(args: &TeachArgs) -> Result<()> {
    let plan = recipe::load(&args.recipe, &args.sets)?;
    if let Some(out) = args.out.as_ref().filter(|_| args.generate) {
        return generate(&plan, out, args.json);
    }
    let (folder, made) = teach::teach(&plan, args.top.unwrap_or(TOP), args.out.as_deref(), &signals())?;
    if args.json {
        println!("{}", json!({ "folder": folder, "made": made }));
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

/// Where a file of answers comes from, beside it.
fn origin_file(out: &Path) -> PathBuf {
    out.with_extension("origin.json")
}

/// Writes the teacher's answers, and where they come from beside them.
fn generate(plan: &Plan, out: &Path, as_json: bool) -> Result<()> {
    let stop = signals();
    let mut writer = teach::writer(plan)?;
    let mut origin = writer.origin()?;
    let mut file = Answers::open(out, &origin, 1)?;
    let prompts = writer.prompts();
    if file.done() > 0 {
        report::info(format!("{} of {prompts} prompts are answered; going on", file.done()));
    }
    let bar = report::bar(prompts as u64, "prompts").after(file.done() as u64);
    while file.done() < prompts {
        if stop.load(Ordering::Relaxed) {
            return Err(file.interrupt(prompts));
        }
        let to = prompts.min(file.done() + BLOCK);
        let rows = writer.write(file.done()..to)?;
        rows.into_iter().try_for_each(|row| file.push(&[row.unwrap_or(Value::Null)]))?;
        bar.set_position(to as u64);
    }
    bar.finish_and_clear();
    let kept = file.finish()?;
    if kept == 0 {
        return Err(Error::user(format!("{}: no answer of {prompts} was good enough", out.display()))
            .hint("raise max_new_tokens, lower least, or ask for more answers in method.distill.generate"));
    }
    origin["ft"] = json!(env!("CARGO_PKG_VERSION"));
    origin["kept"] = json!(kept);
    fsutil::write_json(&origin_file(out), &origin)?;
    if as_json {
        println!("{}", json!({ "file": out, "prompts": prompts, "kept": kept }));
        return Ok(());
    }
    report::info(format!("{}: {kept} answers to {prompts} prompts; {} thrown away", out.display(), prompts - kept));
    Ok(())
}
