//! `ft export --to mlx`: a model for mlx-lm, or a LoRA or DoRA as one of its adapters.

use super::hf::{self, shard_bytes};
use super::{
    ExportArgs, merged_adapter, merged_into_adapter, print_readers, refuse_gguf_options, row, tell, with_progress,
};
use ft::convert::hf_export::HfFormat;
use ft::convert::merge::inputs::{is_adapter, named_base, read_part};
use ft::convert::mlx::adapter_export::{MlxAdapterOptions, MlxAdapterSummary, export_adapter};
use ft::convert::mlx::model_export::{MlxFormat, MlxModelOptions, export};
use ft::error::{Error, Result};
use ft::report;

/// Writes the directory and tells what was written.
pub(super) fn run(args: &ExportArgs) -> Result<()> {
    refuse_gguf_options(args, "mlx-lm")?;
    if !is_adapter(&args.source) {
        return model(args);
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
    tell(args, &summary, print)
}

fn model(args: &ExportArgs) -> Result<()> {
    let named = |name: &str| {
        MlxFormat::named(name).ok_or_else(|| {
            Error::user(format!("--type {name}: a model for mlx-lm has no such format"))
                .hint(format!("one of: {}", MlxFormat::NAMES.join(", ")))
        })
    };
    let format = args.format.as_deref().map(named).transpose()?.unwrap_or(MlxFormat::Plain(HfFormat::Own));
    let (adapter, shard_bytes) = (merged_adapter(args)?, shard_bytes(args)?);
    let (model, out, force) = (&args.source, &args.out, args.force);
    let options = MlxModelOptions { model, adapter, out, format, shard_bytes, force };
    let summary = with_progress(|progress| export(options, progress))?;
    summary.notes.iter().for_each(report::warn);
    tell(args, &summary, |s| {
        hf::print_table(s);
        report::info(format!("\nnext: mlx_lm.generate --model {} --prompt TEXT", s.out.display()));
        Ok(())
    })
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
    print_readers(&s.compatibility);
    report::info(format!(
        "\nnext: mlx_lm.generate --model {} --adapter-path {} --prompt TEXT",
        s.base.display(),
        s.out.display()
    ));
    Ok(())
}
