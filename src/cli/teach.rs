//! `ft teach`: stores the teachers' predictions or answers, so that distillation can run without the teachers.

use super::shared::answer_file::AnswerFile;
use super::shared::interrupt::stop_on_signal;
use clap::Args;
use ft::error::{Error, Result};
use ft::recipe::plan::Plan;
use ft::train::teach;
use ft::{fsutil, recipe, report};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Store the predictions of a recipe's teachers, so that students train without running them
///
/// For each token that is trained on, the most likely tokens with their log-probabilities and the probability of all
/// others are stored; training reads them from method.distill.cache. With --generate, the teacher answers the rows'
/// prompts instead, as set in method.distill.generate, and the answers are a data set. To continue an interrupted
/// command, run it again.
#[derive(Args)]
pub struct TeachArgs {
    /// The recipe file; its method must be distill
    recipe: PathBuf,
    /// Set a key by its dotted path, such as optim.lr=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Number of most likely tokens stored for each position [default: 64]
    #[arg(long, value_name = "K", conflicts_with = "generate", value_parser = clap::value_parser!(i64).range(1..))]
    top: Option<i64>,
    /// Let the teacher answer the rows' prompts
    #[arg(long, requires = "out")]
    generate: bool,
    /// Folder to write [default: method.distill.cache]; with --generate, the file to write
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Number of most likely tokens stored for each position without --top.
const DEFAULT_TOP: i64 = 64;

/// Number of prompts answered together. Ctrl-C is handled between two such blocks.
const PROMPTS_PER_BLOCK: usize = 16;

/// Runs `ft teach`.
pub fn run(args: &TeachArgs) -> Result<()> {
    let plan = recipe::plan::load(&args.recipe, &args.sets)?;
    if let Some(out) = args.out.as_ref().filter(|_| args.generate) {
        return generate(&plan, out, args.json);
    }
    let (folder, made) = teach::teach(&plan, args.top.unwrap_or(DEFAULT_TOP), args.out.as_deref(), &stop_on_signal())?;
    if args.json {
        println!("{}", json!({ "folder": folder, "made": made }));
        return Ok(());
    }
    report::info(format!(
        "{}: {} rows, {} trained tokens, the {} most likely tokens stored for each; {} parts were already stored",
        folder.display(),
        made.items,
        made.tokens,
        made.k,
        made.kept
    ));
    Ok(())
}

/// Path of the file that records how the answers in `out` were made.
fn origin_file(out: &Path) -> PathBuf {
    out.with_extension("origin.json")
}

/// Writes the teacher's answers to `out`, and how they were made to the file next to it.
fn generate(plan: &Plan, out: &Path, as_json: bool) -> Result<()> {
    let stop = stop_on_signal();
    let mut writer = teach::answer_writer(plan)?;
    let mut origin = writer.origin()?;
    let mut file = AnswerFile::open(out, &origin, 1)?;
    let prompts = writer.prompts();
    if file.prompts_done() > 0 {
        report::info(format!("{} of {prompts} prompts are answered already; continuing", file.prompts_done()));
    }
    let bar = report::bar(prompts as u64, "prompts").starting_at(file.prompts_done() as u64);
    while file.prompts_done() < prompts {
        if stop.load(Ordering::Relaxed) {
            return Err(file.interrupted(prompts));
        }
        let to = prompts.min(file.prompts_done() + PROMPTS_PER_BLOCK);
        let rows = match writer.write(file.prompts_done()..to) {
            Ok(rows) => rows,
            Err(e) => {
                file.discard_empty();
                return Err(e);
            }
        };
        rows.into_iter().try_for_each(|row| file.push(&[row.unwrap_or(Value::Null)]))?;
        bar.set_position(to as u64);
    }
    bar.finish_and_clear();
    // Checked before the file is written, so that an earlier file of answers is not replaced by an empty one.
    if file.kept()? == 0 {
        return Err(Error::user(format!("{}: none of the answers to {prompts} prompts can be used", out.display()))
            .hint("in method.distill.generate, raise max_new_tokens, lower least, or raise answers")
            .hint(format!("then delete {} and run the command again", file.partial().display())));
    }
    let kept = file.finish()?;
    origin["ft"] = json!(env!("CARGO_PKG_VERSION"));
    origin["kept"] = json!(kept);
    fsutil::write_json(&origin_file(out), &origin)?;
    if as_json {
        println!("{}", json!({ "file": out, "prompts": prompts, "kept": kept }));
        return Ok(());
    }
    report::info(format!(
        "{}: {kept} answers to {prompts} prompts; {} prompts have no usable answer",
        out.display(),
        prompts - kept
    ));
    Ok(())
}
