//! `ft adapter extract`: a LoRA from a model and its base.

use super::{SizeArgs, percent, refuse_existing};
use crate::cli::merge::show;
use crate::cli::shared::interrupt::end_without_remains;
use crate::cli::shared::stdout::print_json;
use clap::{Args, ValueEnum};
use ft::convert::adapter::extract::{self, OtherChanges};
use ft::error::Result;
use ft::report;
use std::path::PathBuf;

/// Write the difference of a fine-tuned model from its base as a LoRA
///
/// Matrices are compared one at a time. The report says how much of the change the LoRA holds, and how far the base with the
/// LoRA is from the fine-tuned model.
#[derive(Args)]
pub struct ExtractArgs {
    /// Hugging Face directory of the base
    base: PathBuf,
    /// Directory of the model that was trained from it
    tuned: PathBuf,
    #[command(flatten)]
    size: SizeArgs,
    /// What becomes of changed norms, biases, embeddings and output heads, which no LoRA holds
    #[arg(long, value_enum, default_value_t = OthersArg::Save)]
    others: OthersArg,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OthersArg {
    /// Their modules are saved in full with the adapter
    Save,
    /// They are listed, and nothing is written
    Refuse,
}

/// Runs `ft adapter extract`.
pub fn run(args: &ExtractArgs) -> Result<()> {
    end_without_remains()?;
    refuse_existing(&args.out)?;
    let others = match args.others {
        OthersArg::Save => OtherChanges::Save,
        OthersArg::Refuse => OtherChanges::Refuse,
    };
    let done = extract::extract(&args.base, &args.tuned, args.size.truncation()?, others, &args.out)?;
    show(&done.export, &args.out, false);
    report::info(format!(
        "{} linear layers changed; the LoRA holds {} of the energy of their changes",
        done.modules.len(),
        percent(done.energy_kept)
    ));
    if !done.saved_in_full.is_empty() {
        report::info(format!("{} other tensors changed and are saved in full", done.saved_in_full.len()));
    }
    report::info(format!(
        "from the tuned model: mean KL {:.1e}, top-1 agreement {:.1} %; the base alone: {:.1e}, {:.1} %",
        done.from_tuned.mean_kl,
        100.0 * done.from_tuned.top1_agreement,
        done.base_from_tuned.mean_kl,
        100.0 * done.base_from_tuned.top1_agreement
    ));
    if args.json { print_json(&done) } else { Ok(()) }
}
