//! `ft export`: writes a model or an adapter in the format of another program; arguments, progress bar and summary.

use super::shared::stdout::print_json;
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use ft::convert::gguf_export::adapter::{GgufAdapterSummary, export_adapter};
use ft::convert::gguf_export::{FORMATS, FileFormat, GgufExportOptions, GgufExportSummary, export};
use ft::convert::merge::inputs::{is_adapter, named_base, other_base, read_part};
use ft::error::{Error, Result};
use ft::report;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Write a model as a GGUF file for llama.cpp, or a LoRA as a GGUF adapter
///
/// An adapter given with --adapter is merged into the model in full precision first. The file is read back and compared with
/// the model, and token ids with those of its tokenizer, before it is moved into place.
#[derive(Args)]
pub struct ExportArgs {
    /// The model, or an adapter alone
    #[arg(value_name = "DIR")]
    source: PathBuf,
    /// Merge this adapter into the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The base of an adapter that is exported alone [default: the one that the adapter names]
    #[arg(long, value_name = "DIR", conflicts_with = "adapter")]
    base: Option<PathBuf>,
    /// The format to write
    #[arg(long, value_enum)]
    to: ExportFormatArg,
    /// The file to write, or the folder in which it gets the name that the format's specification asks for
    #[arg(long, value_name = "FILE", default_value = ".")]
    out: PathBuf,
    /// Number format of matrices [default: that of the model; of an adapter: f32]
    #[arg(
        long = "type",
        value_name = "TYPE",
        ignore_case = true,
        value_parser = PossibleValuesParser::new(FORMATS.map(|format| format.name))
    )]
    format: Option<String>,
    /// Rows to measure an importance matrix with: rounding errors then count by the size of the inputs that they are multiplied with
    #[arg(long, value_name = "ROWS")]
    imatrix: Option<PathBuf>,
    /// Also write a Modelfile for Ollama beside the file: its template, stop words and settings
    #[arg(long)]
    modelfile: bool,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ExportFormatArg {
    Gguf,
}

/// Runs `ft export`. Ctrl-C stops it and leaves nothing behind.
pub fn run(args: &ExportArgs) -> Result<()> {
    let ExportFormatArg::Gguf = args.to;
    let format = args.format.as_deref().and_then(FileFormat::named);
    let options = |model, adapter| GgufExportOptions {
        model,
        adapter,
        out: &args.out,
        format,
        imatrix: args.imatrix.as_deref(),
        force: args.force,
        modelfile: args.modelfile,
    };
    if is_adapter(&args.source) {
        if args.adapter.is_some() {
            return Err(Error::user(format!("{}: an adapter, into which no other is merged", args.source.display()))
                .hint("name the model first: ft export MODEL --adapter ADAPTER --to gguf"));
        }
        if args.modelfile {
            return Err(Error::user("--modelfile: an adapter alone has no template of its own")
                .hint("merge it: ft export MODEL --adapter ADAPTER --to gguf --modelfile"));
        }
        if args.imatrix.is_some() {
            return Err(Error::user("--imatrix: an adapter alone is not rounded to fewer bits")
                .hint("merge it: ft export MODEL --adapter ADAPTER --to gguf --type q4_k_m --imatrix ROWS"));
        }
        let part = read_part(&args.source, 1.0)?;
        let base = match &args.base {
            Some(base) => base.clone(),
            None => named_base(std::slice::from_ref(&part)).map_err(|e| e.hint("or with --base DIR"))?,
        };
        let summary = export_adapter(&options(&base, None), &part)?;
        return if args.json { print_json(&summary) } else { print_adapter(&summary) };
    }
    if let Some(base) = &args.base {
        return Err(Error::user(format!("--base {}: {} is no adapter", base.display(), args.source.display()))
            .hint("--base is the model of an adapter that is exported alone"));
    }
    let adapter = args.adapter.as_deref().map(|folder| read_part(folder, 1.0)).transpose()?;
    if let Some(warning) = adapter.as_ref().and_then(|part| other_base(&args.source, part)) {
        report::warn(warning);
    }
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stopped.clone()).map_err(|e| Error::bug(format!("signal handler: {e}")))?;
    }
    let bar = report::bar(0, "tensors");
    let summary = export(&options(&args.source, adapter), |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if stopped.load(Ordering::Relaxed) {
            return Err(Error::interrupted("export stopped; nothing was written"));
        }
        Ok(())
    });
    bar.finish_and_clear();
    let summary = summary?;
    for note in &summary.notes {
        report::warn(note);
    }
    if args.json { print_json(&summary) } else { print(&summary) }
}

fn row(what: &str, value: String) -> Vec<String> {
    vec![what.to_string(), value]
}

fn print(s: &GgufExportSummary) -> Result<()> {
    let kinds: Vec<String> = s.tensors.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let errors: Vec<String> = s
        .read_back
        .relative_error
        .iter()
        .filter(|(_, error)| **error > 0.0)
        .map(|(kind, error)| format!("{kind} {error:.1e}"))
        .collect();
    let rounded = if errors.is_empty() { "exact".into() } else { format!("relative error {}", errors.join(", ")) };
    let mut rows = vec![row("file", s.out.display().to_string())];
    rows.push(row("architecture", s.architecture.clone()));
    rows.push(row("parameters", report::count(s.parameters)));
    rows.push(row("tensors", kinds.join(", ")));
    rows.push(row("size", report::bytes(s.bytes)));
    rows.extend(
        s.calibration_tokens.map(|n| row("importance", format!("measured with {} tokens", report::count(n as u64)))),
    );
    rows.push(row("tokenizer", format!("{}, pre-tokenizer {}", s.tokenizer[0], s.tokenizer[1])));
    rows.push(row("chat template", if s.chat_template { "yes".into() } else { "the model has none".into() }));
    rows.push(row(
        "read back",
        format!("{} tensors: {rounded}; ids of {} texts: equal", s.read_back.tensors, s.read_back.texts),
    ));
    println!("{}", report::table(&rows));
    report::info(format!("\nnext: llama-cli -m {}", s.out.display()));
    if let Some(file) = &s.modelfile {
        report::info(format!("or:   ollama create NAME -f {}", file.display()));
    }
    Ok(())
}

fn print_adapter(s: &GgufAdapterSummary) -> Result<()> {
    let mut rows = vec![row("file", s.out.display().to_string())];
    rows.push(row("base", s.base.display().to_string()));
    rows.push(row("architecture", s.architecture.clone()));
    rows.push(row("weights", format!("{} in {}, alpha {}", s.weights, s.format, s.alpha)));
    if s.rescaled > 0 {
        rows.push(row("rescaled", format!("{}: their scale is not alpha / rank", s.rescaled)));
    }
    rows.push(row("size", report::bytes(s.bytes)));
    println!("{}", report::table(&rows));
    report::info(format!("\nnext: llama-cli -m BASE.gguf --lora {}", s.out.display()));
    Ok(())
}
