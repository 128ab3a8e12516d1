//! `ft export`: writes a model or an adapter in the format of another program; arguments, progress bar and summaries.

mod hf;
mod mlx;
mod runtime;

use super::shared::interrupt::end_without_remains;
use super::shared::stdout::print_json;
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use ft::adapters::merging::WeightedAdapter;
use ft::convert::gguf_export::adapter::{GgufAdapterSummary, export_adapter};
use ft::convert::gguf_export::{FORMATS, FileFormat, GgufExportOptions, GgufExportSummary, export};
use ft::convert::merge::inputs::{is_adapter, named_base, other_base, read_part};
use ft::convert::onnx_export::{self, OnnxExportOptions, OnnxExportSummary, Precision};
use ft::convert::runtime::RuntimeChoice;
use ft::convert::verify::compatibility::Compatibility;
use ft::error::{Error, Result};
use ft::gguf::split::SplitLimits;
use ft::report;
use ft::train::fit::parse_size;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Write a model as GGUF for llama.cpp, a folder for ONNX Runtime or mlx-lm or a Hugging Face directory, or a LoRA as an adapter of
/// llama.cpp or mlx-lm
///
/// An adapter given with --adapter is merged into the model in full precision first. What was written is read back and compared with
/// the model, and the token ids of a GGUF file with those of its tokenizer, before it is moved into place. Beside each export is said
/// which other programs read it.
#[derive(Args, Clone)]
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
    /// The format to write [with --for: the one that the program reads]
    #[arg(long, value_enum, required_unless_present = "runtime")]
    to: Option<ExportFormatArg>,
    /// Write what this program reads: an adapter as it is, as a plain LoRA or in the program's own format, if it reads one of these;
    /// otherwise the model, with the adapter merged into it
    #[arg(long = "for", value_name = "PROGRAM", value_enum)]
    runtime: Option<RuntimeArg>,
    /// The file to write, or the folder in which a GGUF file gets the name that the format's specification asks for; of
    /// ONNX, hf and mlx the folder to write
    #[arg(long, value_name = "PATH", default_value = ".")]
    out: PathBuf,
    /// Number format of matrices: f32, f16, int8 for ONNX; f32, bf16, f16, fp8, nf4 for hf; f32, bf16, f16, 4bit, 8bit for mlx; the
    /// others for GGUF [default: that of the model; of an adapter and for ONNX: f32]
    #[arg(
        long = "type",
        value_name = "TYPE",
        ignore_case = true,
        value_parser = PossibleValuesParser::new(FORMATS.iter().map(|format| format.name).chain(["int8", "fp8", "nf4", "4bit", "8bit"]))
    )]
    format: Option<String>,
    /// Write GGUF as several files of at most this size (such as 2GB), called NAME-00001-of-00003.gguf
    #[arg(long, value_name = "SIZE")]
    split_size: Option<String>,
    /// Write GGUF as several files of at most N tensors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    split_tensors: Option<u32>,
    /// Rows to measure an importance matrix with: rounding errors then count by the size of the inputs that they are multiplied with
    #[arg(long, value_name = "ROWS")]
    imatrix: Option<PathBuf>,
    /// Also write a Modelfile for Ollama beside the file: its template, stop words and settings
    #[arg(long)]
    modelfile: bool,
    /// Split weights into files of at most GB gigabytes (10^9 bytes), for hf and mlx [default: 5]
    #[arg(long, value_name = "GB")]
    shard_size: Option<f64>,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    /// What --for chose.
    #[arg(skip)]
    choice: Option<RuntimeChoice>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormatArg {
    /// One file, or several, for llama.cpp and the programs that use it
    Gguf,
    /// A folder for ONNX Runtime
    Onnx,
    /// A Hugging Face directory for transformers and the programs that read its layouts
    Hf,
    /// A model for mlx-lm, on Apple's processors, or a LoRA or DoRA as one of its adapters
    Mlx,
}

/// The programs that --for knows.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RuntimeArg {
    /// PEFT, with transformers: adapters
    Peft,
    /// vLLM
    Vllm,
    /// Text Generation Inference
    Tgi,
    /// SGLang
    Sglang,
    /// TensorRT-LLM, with its PyTorch backend
    TensorrtLlm,
    /// llama.cpp and the programs that use it
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// mlx-lm, on Apple's processors
    Mlx,
    /// ONNX Runtime
    OnnxRuntime,
}

/// Runs `ft export`. Ctrl-C stops it and leaves nothing behind.
pub fn run(args: &ExportArgs) -> Result<()> {
    end_without_remains()?;
    match args.runtime {
        Some(runtime) => runtime::run(args, runtime),
        None => run_format(args),
    }
}

/// Writes the format that `--to` names.
fn run_format(args: &ExportArgs) -> Result<()> {
    let to = args.to.ok_or_else(|| Error::bug("ft export without a format"))?;
    if args.shard_size.is_some() && !matches!(to, ExportFormatArg::Hf | ExportFormatArg::Mlx) {
        return Err(Error::user("--shard-size: only --to hf and --to mlx write weights in several files of this size")
            .hint("leave it out; --split-size divides a GGUF file"));
    }
    match to {
        ExportFormatArg::Hf => hf::run(args),
        ExportFormatArg::Mlx => mlx::run(args),
        ExportFormatArg::Gguf if is_adapter(&args.source) => gguf_adapter(args),
        ExportFormatArg::Gguf => gguf(args),
        ExportFormatArg::Onnx => onnx(args),
    }
}

/// Returns the options of a GGUF file.
fn gguf_options<'a>(
    args: &'a ExportArgs,
    model: &'a Path,
    adapter: Option<WeightedAdapter>,
) -> Result<GgufExportOptions<'a>> {
    let named = |name: &str| {
        FileFormat::named(name).ok_or_else(|| {
            Error::user(format!("--type {name}: GGUF has no such format")).hint("q8_0 is its format of 8 bits")
        })
    };
    let format = args.format.as_deref().map(named).transpose()?;
    let bytes = args.split_size.as_deref().map(|size| parse_size(size).map_err(|e| e.context("--split-size")));
    let split = SplitLimits { bytes: bytes.transpose()?, tensors: args.split_tensors.map(|n| n as usize) };
    if split.are_set() && args.modelfile {
        return Err(Error::user("--modelfile: Ollama reads a model in one file only")
            .hint("leave --split-size and --split-tensors out"));
    }
    let (out, force, modelfile) = (&args.out, args.force, args.modelfile);
    Ok(GgufExportOptions { model, adapter, out, format, split, imatrix: args.imatrix.as_deref(), force, modelfile })
}

/// Fails if several files are asked for where there is one.
fn refuse_split(args: &ExportArgs, of: &str) -> Result<()> {
    match args.split_size.is_some() || args.split_tensors.is_some() {
        true => {
            Err(Error::user(format!("--split-size, --split-tensors: only a model in GGUF is divided so, not {of}"))
                .hint("leave them out"))
        }
        false => Ok(()),
    }
}

fn gguf_adapter(args: &ExportArgs) -> Result<()> {
    if args.adapter.is_some() {
        return Err(merged_into_adapter(args, "gguf"));
    }
    if args.modelfile {
        return Err(Error::user("--modelfile: an adapter alone has no template of its own")
            .hint("merge it: ft export MODEL --adapter ADAPTER --to gguf --modelfile"));
    }
    if args.imatrix.is_some() {
        return Err(Error::user("--imatrix: an adapter alone is not rounded to fewer bits")
            .hint("merge it: ft export MODEL --adapter ADAPTER --to gguf --type q4_k_m --imatrix ROWS"));
    }
    refuse_split(args, "adapters")?;
    let part = read_part(&args.source, 1.0)?;
    let base = match &args.base {
        Some(base) => base.clone(),
        None => named_base(std::slice::from_ref(&part)).map_err(|e| e.hint("or with --base DIR"))?,
    };
    let summary = export_adapter(&gguf_options(args, &base, None)?, &part)?;
    tell(args, &summary, print_adapter)
}

fn merged_into_adapter(args: &ExportArgs, to: &str) -> Error {
    Error::user(format!("{}: an adapter, into which no other is merged", args.source.display()))
        .hint(format!("name the model first: ft export MODEL --adapter ADAPTER --to {to}"))
}

fn gguf(args: &ExportArgs) -> Result<()> {
    let options = gguf_options(args, &args.source, merged_adapter(args)?)?;
    let summary = with_progress(|progress| export(&options, progress))?;
    summary.notes.iter().for_each(report::warn);
    tell(args, &summary, print)
}

fn onnx(args: &ExportArgs) -> Result<()> {
    if is_adapter(&args.source) {
        return Err(Error::user(format!("{}: an adapter, which ONNX has no form for", args.source.display()))
            .hint("merge it: ft export MODEL --adapter ADAPTER --to onnx"));
    }
    refuse_gguf_options(args, "ONNX exports")?;
    let name = args.format.as_deref().unwrap_or("f32");
    let precision = Precision::named(name).ok_or_else(|| {
        Error::user(format!("--type {name}: an ONNX export has no such format"))
            .hint(format!("one of: {}", Precision::NAMES.join(", ")))
    })?;
    let (adapter, force) = (merged_adapter(args)?, args.force);
    let options = OnnxExportOptions { model: &args.source, adapter, out: &args.out, precision, force };
    let summary = with_progress(|progress| onnx_export::export(&options, progress))?;
    summary.notes.iter().for_each(report::warn);
    tell(args, &summary, print_onnx)
}

/// Fails for options that only a GGUF file has.
fn refuse_gguf_options(args: &ExportArgs, others: &str) -> Result<()> {
    if args.modelfile {
        return Err(Error::user("--modelfile: Ollama reads GGUF files only").hint("write one: --to gguf --modelfile"));
    }
    if args.imatrix.is_some() {
        return Err(Error::user(format!("--imatrix: formats of {others} do not regard it"))
            .hint("leave it out, or write --to gguf"));
    }
    refuse_split(args, others)
}

/// Reads the adapter that is merged into the model; warns if it was trained over another.
fn merged_adapter(args: &ExportArgs) -> Result<Option<WeightedAdapter>> {
    if let Some(base) = &args.base {
        return Err(Error::user(format!("--base {}: {} is no adapter", base.display(), args.source.display()))
            .hint("--base is the model of an adapter that is exported alone"));
    }
    let adapter = args.adapter.as_deref().map(|folder| read_part(folder, 1.0)).transpose()?;
    if let Some(warning) = adapter.as_ref().and_then(|part| other_base(&args.source, part)) {
        report::warn(warning);
    }
    Ok(adapter)
}

/// Runs an export under a progress bar.
fn with_progress<T>(export: impl FnOnce(&mut dyn FnMut(u64, u64) -> Result<()>) -> Result<T>) -> Result<T> {
    let bar = report::bar(0, "tensors");
    let summary = export(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        Ok(())
    });
    bar.finish_and_clear();
    summary
}

/// Prints a summary, as JSON or for people, with what --for chose.
fn tell<S: Serialize>(args: &ExportArgs, summary: &S, print: impl FnOnce(&S) -> Result<()>) -> Result<()> {
    #[derive(Serialize)]
    struct Chosen<'a, S> {
        #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
        choice: &'a Option<RuntimeChoice>,
        #[serde(flatten)]
        summary: &'a S,
    }
    if args.json {
        return print_json(&Chosen { choice: &args.choice, summary });
    }
    if let Some(choice) = &args.choice {
        report::info(&choice.why);
    }
    print(summary)
}

/// Prints which programs read what was written.
fn print_readers(compatibility: &[Compatibility]) {
    compatibility.iter().for_each(|line| report::info(format!("  {line}")));
}

fn row(what: &str, value: String) -> Vec<String> {
    vec![what.to_string(), value]
}

/// Says how far the numbers of each format are from the model's.
fn rounded(errors: &BTreeMap<String, f64>) -> String {
    let errors: Vec<String> =
        errors.iter().filter(|(_, error)| **error > 0.0).map(|(kind, error)| format!("{kind} {error:.1e}")).collect();
    if errors.is_empty() { "exact".into() } else { format!("relative error {}", errors.join(", ")) }
}

fn print(s: &GgufExportSummary) -> Result<()> {
    let kinds: Vec<String> = s.tensors.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let rounded = rounded(&s.read_back.relative_error);
    let mut rows = vec![row("file", s.out.display().to_string())];
    rows.extend((s.files.len() > 1).then(|| row("parts", format!("{}; programs are given the first", s.files.len()))));
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
    print_readers(&s.compatibility);
    report::info(format!("\nnext: llama-cli -m {}", s.out.display()));
    if let Some(file) = &s.modelfile {
        report::info(format!("or:   ollama create NAME -f {}", file.display()));
    }
    Ok(())
}

fn print_onnx(s: &OnnxExportSummary) -> Result<()> {
    let kinds: Vec<String> = s.tensors.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let (template, rounded) =
        (if s.chat_template { "yes" } else { "the model has none" }, rounded(&s.read_back.relative_error));
    let rows = vec![
        row("folder", s.out.display().to_string()),
        row("architecture", s.architecture.clone()),
        row("graph", format!("{} operators of opset {}", report::count(s.operators as u64), s.opset)),
        row("parameters", report::count(s.parameters)),
        row("tensors", kinds.join(", ")),
        row("size", report::bytes(s.bytes)),
        row("tokenizer", if s.tokenizer { "yes".into() } else { "the model has none".into() }),
        row("chat template", template.into()),
        row("read back", format!("{} tensors: {rounded}", s.read_back.tensors)),
    ];
    println!("{}", report::table(&rows));
    print_readers(&s.compatibility);
    report::info(format!("\nnext: pip install onnxruntime-genai, and og.Model(\"{}\") in Python", s.out.display()));
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
    print_readers(&s.compatibility);
    report::info(format!("\nnext: llama-cli -m BASE.gguf --lora {}", s.out.display()));
    Ok(())
}
