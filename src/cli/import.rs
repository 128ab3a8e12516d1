//! `ft import`: converts a GGUF file; arguments, progress bar and summary.

use clap::{Args, ValueEnum};
use ft::convert::gguf_import::{GgufImportOptions, GgufImportSummary, import};
use ft::error::{Error, Result};
use ft::nn::safetensors::Dtype;
use ft::report;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Convert a GGUF file to a Hugging Face model directory.
///
/// Reads every family that ft trains, in F32, F16, BF16, Q4_0 to Q8_0 and the K-quants, and rebuilds the tokenizer from the
/// vocabulary inside the file.
#[derive(Args)]
pub struct ImportArgs {
    /// The GGUF file.
    #[arg(value_name = "FILE.gguf")]
    file: PathBuf,
    /// The model directory to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number format of the written weights.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: ImportDtypeArg,
    /// Replace DIR if it is a model directory already.
    #[arg(long)]
    force: bool,
    /// Use this pre-tokenizer instead of the one that the file names. Names are llama.cpp's: gpt-2, smollm, llama-bpe,
    /// ….
    #[arg(long, value_name = "NAME")]
    pre_tokenizer: Option<String>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ImportDtypeArg {
    Bf16,
    F32,
    F16,
}

/// Runs `ft import`. Ctrl-C stops it and leaves nothing behind.
pub fn run(args: &ImportArgs) -> Result<()> {
    if args.file.extension().is_some_and(|e| e == "yaml" || e == "yml") {
        return Err(Error::user(format!("{} is no GGUF file", args.file.display())).hint(
            "a task file of lm-evaluation-harness is imported with `ft eval-import`, a merge is made with `ft merge`",
        ));
    }
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stopped.clone()).map_err(|e| Error::bug(format!("signal handler: {e}")))?;
    }
    let options = GgufImportOptions {
        file: &args.file,
        out: &args.out,
        dtype: match args.dtype {
            ImportDtypeArg::Bf16 => Dtype::BF16,
            ImportDtypeArg::F32 => Dtype::F32,
            ImportDtypeArg::F16 => Dtype::F16,
        },
        force: args.force,
        pre_tokenizer: args.pre_tokenizer.as_deref(),
    };
    let bar = report::bar(0, "tensors");
    let summary = import(&options, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if stopped.load(Ordering::Relaxed) {
            return Err(Error::interrupted("import stopped; nothing was written"));
        }
        Ok(())
    });
    bar.finish_and_clear();
    let summary = summary?;
    for warning in &summary.warnings {
        report::warn(warning);
    }
    if args.json {
        let text = serde_json::to_string(&summary).map_err(|e| Error::bug(format!("summary: {e}")))?;
        println!("{text}");
    } else {
        print(&summary);
    }
    Ok(())
}

fn print(s: &GgufImportSummary) {
    let kinds: Vec<String> = s.tensors.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let row = |what: &str, value: String| vec![what.to_string(), value];
    let mut rows = vec![row("model", s.out.display().to_string())];
    rows.extend(s.name.iter().map(|n| row("name", n.clone())));
    rows.push(row("architecture", s.architecture.clone()));
    rows.push(row("parameters", report::count(s.parameters)));
    rows.push(row("tensors", kinds.join(", ")));
    rows.push(row("written", format!("{} in {}", report::bytes(s.bytes), s.dtype)));
    rows.push(row("vocabulary", format!("{} tokens", report::count(s.vocabulary))));
    rows.push(row("chat template", if s.chat_template { "yes".into() } else { "none in the file".into() }));
    rows.push(row("license", s.license.clone().unwrap_or_else(|| "not stated in the file".into())));
    println!("{}", report::table(&rows));
    let chat = if s.chat_template { " --chat" } else { "" };
    report::info(format!("\nnext: ft generate --model {}{chat} --prompt \"…\"", s.out.display()));
}
