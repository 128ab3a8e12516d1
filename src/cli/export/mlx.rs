//! `ft export --to mlx`: a LoRA or DoRA as an adapter of mlx-lm.

use super::{ExportArgs, merged_into_adapter, refuse_gguf_options, row};
use crate::cli::shared::stdout::print_json;
use ft::convert::merge::inputs::{is_adapter, named_base, read_part};
use ft::convert::mlx::adapter_export::{MlxAdapterOptions, MlxAdapterSummary, export_adapter};
use ft::error::{Error, Result};
use ft::report;

/// Writes the directory and tells what was written.
pub(super) fn run(args: &ExportArgs) -> Result<()> {
    refuse_gguf_options(args, "mlx-lm")?;
    if !is_adapter(&args.source) {
        let what = format!("{}: a model, and --to mlx writes adapters", args.source.display());
        return Err(
            Error::user(what).hint("mlx_lm.convert makes a model of a Hugging Face directory: write one with --to hf")
        );
    }
    if args.adapter.is_some() {
        return Err(merged_into_adapter(args, "hf"));
    }
    let given = [("--type", args.format.is_some()), ("--shard-size", args.shard_size.is_some())];
    if let Some((name, _)) = given.iter().find(|(_, given)| *given) {
        return Err(Error::user(format!("{name}: an adapter of mlx-lm is one file in float32")).hint("leave it out"));
    }
    let part = read_part(&args.source, 1.0)?;
    let base = match &args.base {
        Some(base) => base.clone(),
        None => named_base(std::slice::from_ref(&part)).map_err(|e| e.hint("or with --base DIR"))?,
    };
    let summary = export_adapter(&MlxAdapterOptions { base: &base, out: &args.out, force: args.force }, &part)?;
    if args.json { print_json(&summary) } else { print(&summary) }
}

fn print(s: &MlxAdapterSummary) -> Result<()> {
    let mut rows = vec![
        row("folder", s.out.display().to_string()),
        row("base", s.base.display().to_string()),
        row("architecture", s.architecture.clone()),
        row("kind", format!("{}, rank {}, scale {}", s.fine_tune_type, s.rank, s.scale)),
        row("modules", s.keys.join(", ")),
        row("weights", s.weights.to_string()),
    ];
    if s.padded > 0 {
        rows.push(row("filled up", format!("{}: their rank is lower, and zeros fill the rest", s.padded)));
    }
    if s.rescaled > 0 {
        rows.push(row("rescaled", format!("{}: their scale is another one, which is in their B", s.rescaled)));
    }
    rows.push(row("size", report::bytes(s.bytes)));
    println!("{}", report::table(&rows));
    report::info(format!(
        "\nnext: mlx_lm.generate --model {} --adapter-path {} --prompt TEXT",
        s.base.display(),
        s.out.display()
    ));
    Ok(())
}
