//! `ft export --to hf`: a Hugging Face directory in another number format.

use super::{ExportArgs, merged_adapter, print_readers, refuse_gguf_options, rounded, row, tell, with_progress};
use ft::convert::hf_export::{HfExportOptions, HfExportSummary, HfFormat, export};
use ft::convert::merge::inputs::is_adapter;
use ft::error::{Error, Result};
use ft::nn::safetensors::SHARD_BYTES;
use ft::report;

/// Writes the directory and tells what was written.
pub(super) fn run(args: &ExportArgs) -> Result<()> {
    if is_adapter(&args.source) {
        return Err(Error::user(format!(
            "{}: an adapter, which is a Hugging Face directory already",
            args.source.display()
        ))
        .hint("merge it into its model: ft export MODEL --adapter ADAPTER --to hf"));
    }
    refuse_gguf_options(args, "Hugging Face directories")?;
    let named = |name: &str| {
        HfFormat::named(name).ok_or_else(|| {
            Error::user(format!("--type {name}: transformers has no such format"))
                .hint(format!("one of: {}", HfFormat::NAMES.join(", ")))
        })
    };
    let format = args.format.as_deref().map(named).transpose()?.unwrap_or(HfFormat::Own);
    let shard_bytes = shard_bytes(args)?;
    let (adapter, force) = (merged_adapter(args)?, args.force);
    let reader = args.choice.as_ref().map(|choice| choice.runtime);
    let options = HfExportOptions { model: &args.source, adapter, out: &args.out, format, shard_bytes, reader, force };
    let summary = with_progress(|progress| export(&options, progress))?;
    summary.notes.iter().for_each(report::warn);
    tell(args, &summary, print)
}

/// Returns the largest size of a weight file.
pub(super) fn shard_bytes(args: &ExportArgs) -> Result<u64> {
    match args.shard_size {
        None => Ok(SHARD_BYTES),
        Some(size) if size > 0.0 && size.is_finite() => Ok((size * 1e9) as u64),
        Some(size) => Err(Error::user(format!("--shard-size: {size} is not a size")).hint("gigabytes, e.g. 5 or 0.5")),
    }
}

fn print(s: &HfExportSummary) -> Result<()> {
    print_table(s);
    report::info(format!("\nnext: ft generate --model {}", s.out.display()));
    Ok(())
}

/// Prints what was written, and which programs read it.
pub(super) fn print_table(s: &HfExportSummary) {
    let kinds: Vec<String> = s.tensors.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let files = if s.files.len() == 1 { "1 file".into() } else { format!("{} files", s.files.len()) };
    let yes = |has: bool| if has { "yes".into() } else { "the model has none".to_string() };
    let rows = vec![
        row("folder", s.out.display().to_string()),
        row("architecture", s.architecture.clone()),
        row("parameters", report::count(s.parameters)),
        row("tensors", kinds.join(", ")),
        row("size", format!("{} in {files}", report::bytes(s.bytes))),
        row("tokenizer", yes(s.tokenizer)),
        row("chat template", yes(s.chat_template)),
        row("read back", format!("{} tensors: {}", s.read_back.tensors, rounded(&s.read_back.relative_error))),
    ];
    println!("{}", report::table(&rows));
    print_readers(&s.compatibility);
}
