//! `ft import`: converts a GGUF file, or a quantised model or an adapter of mlx-lm; arguments, progress bar and summary.

use super::shared::interrupt::end_without_remains;
use super::shared::stdout::print_json;
use clap::{Args, ValueEnum};
use ft::convert::gguf_import::{GgufImportOptions, GgufImportSummary, import};
use ft::convert::mlx::adapter_import::{MlxImportOptions, import_adapter, is_mlx_adapter};
use ft::convert::mlx::model_import::{MlxModelImportOptions, import_model, is_mlx_model};
use ft::error::{Error, Result};
use ft::nn::safetensors::Dtype;
use ft::report;
use std::path::PathBuf;
use tch::Kind;

/// Convert a GGUF file or a quantised model of mlx-lm to a Hugging Face model directory, or an adapter of mlx-lm to PEFT's.
///
/// Reads the families that GGUF files and ft share (docs/import.md), in F32, F16, BF16, Q4_0 to Q8_0, K-quants, IQ4_NL and MXFP4,
/// and rebuilds the tokenizer from the vocabulary inside the file.
#[derive(Args)]
pub struct ImportArgs {
    /// The GGUF file, or the folder of a quantised model or an adapter of mlx-lm.
    #[arg(value_name = "FILE.gguf|DIR")]
    file: PathBuf,
    /// Of an adapter: the Hugging Face directory of its model.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// The directory to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number format of a model's written weights [default: bf16].
    #[arg(long, value_enum)]
    dtype: Option<ImportDtypeArg>,
    /// Replace DIR if it is a model or adapter directory already.
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
    end_without_remains()?;
    if args.file.extension().is_some_and(|e| e == "yaml" || e == "yml") {
        return Err(Error::user(format!("{} is no GGUF file", args.file.display())).hint(
            "a task file of lm-evaluation-harness is imported with `ft eval-import`, a merge is made with `ft merge`",
        ));
    }
    if is_mlx_adapter(&args.file) {
        return mlx_adapter(args);
    }
    if let Some(base) = &args.base {
        return Err(Error::user(format!("--base {}: {} is no adapter of mlx-lm", base.display(), args.file.display()))
            .hint("leave it out: a model needs no other one"));
    }
    if is_mlx_model(&args.file) {
        return mlx_model(args);
    }
    let options = GgufImportOptions {
        file: &args.file,
        out: &args.out,
        dtype: match args.dtype {
            None | Some(ImportDtypeArg::Bf16) => Dtype::BF16,
            Some(ImportDtypeArg::F32) => Dtype::F32,
            Some(ImportDtypeArg::F16) => Dtype::F16,
        },
        force: args.force,
        pre_tokenizer: args.pre_tokenizer.as_deref(),
    };
    let bar = report::bar(0, "tensors");
    let summary = import(&options, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
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

/// Makes a Hugging Face directory of a quantised model of mlx-lm.
fn mlx_model(args: &ImportArgs) -> Result<()> {
    if args.pre_tokenizer.is_some() {
        return Err(Error::user(format!("--pre-tokenizer: {} has its own tokenizer", args.file.display()))
            .hint("leave it out: only GGUF files name one"));
    }
    let kind = match args.dtype {
        None | Some(ImportDtypeArg::Bf16) => Kind::BFloat16,
        Some(ImportDtypeArg::F32) => Kind::Float,
        Some(ImportDtypeArg::F16) => Kind::Half,
    };
    let options = MlxModelImportOptions { model: &args.file, out: &args.out, kind, force: args.force };
    let s = import_model(&options)?;
    if args.json {
        return print_json(&s);
    }
    let row = |what: &str, value: String| vec![what.to_string(), value];
    let rows = vec![
        row("folder", s.out.display().to_string()),
        row("architecture", s.architecture.clone()),
        row("tensors", format!("{}, of which {} were in {} bits", s.tensors, s.dequantised, s.bits)),
    ];
    println!("{}", report::table(&rows));
    report::info(format!("\nnext: ft generate --model {}", s.out.display()));
    Ok(())
}

/// Makes a PEFT adapter of an adapter of mlx-lm.
fn mlx_adapter(args: &ImportArgs) -> Result<()> {
    let given = [("--dtype", args.dtype.is_some()), ("--pre-tokenizer", args.pre_tokenizer.is_some())];
    if let Some((name, _)) = given.iter().find(|(_, given)| *given) {
        return Err(Error::user(format!("{name}: {} is an adapter", args.file.display()))
            .hint("leave it out: adapters are written in float32, and have no tokenizer of their own"));
    }
    let Some(base) = &args.base else {
        return Err(Error::user(format!("{}: an adapter of mlx-lm, whose model is not named", args.file.display()))
            .hint("name its Hugging Face directory: ft import DIR --base MODEL --out OUT"));
    };
    let options = MlxImportOptions { adapter: &args.file, base, out: &args.out, force: args.force };
    let s = import_adapter(&options)?;
    if args.json {
        return print_json(&s);
    }
    let row = |what: &str, value: String| vec![what.to_string(), value];
    let rows = vec![
        row("adapter", s.out.display().to_string()),
        row("base", s.base.display().to_string()),
        row("kind", format!("{}, rank {}, alpha {}", s.kind, s.rank, s.alpha)),
        row("weights", s.weights.to_string()),
    ];
    println!("{}", report::table(&rows));
    report::info(format!("\nnext: ft generate --model {} --adapter {}", s.base.display(), s.out.display()));
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
