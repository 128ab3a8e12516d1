//! `ft export --for`: what a program reads.

use super::{ExportArgs, ExportFormatArg, RuntimeArg, print_readers, refuse_gguf_options, row, run_format};
use crate::cli::shared::stdout::print_json;
use ft::convert::merge::inputs::{is_adapter, named_directory, other_base, read_part};
use ft::convert::runtime::{
    AdapterFolderSummary, RuntimeAdapterOptions, RuntimeForm, choose, choose_model, write_adapter,
};
use ft::convert::verify::compatibility::{Runtime, RuntimeFormat};
use ft::error::{Error, Result};
use ft::report;
use std::path::PathBuf;

impl RuntimeArg {
    fn runtime(self) -> Runtime {
        match self {
            Self::Peft => Runtime::Peft,
            Self::Vllm => Runtime::Vllm,
            Self::Tgi => Runtime::Tgi,
            Self::Sglang => Runtime::SgLang,
            Self::TensorrtLlm => Runtime::TensorRtLlm,
            Self::LlamaCpp => Runtime::LlamaCpp,
            Self::Mlx => Runtime::Mlx,
            Self::OnnxRuntime => Runtime::OnnxRuntime,
        }
    }
}

/// Chooses what to write and writes it.
pub(super) fn run(args: &ExportArgs, program: RuntimeArg) -> Result<()> {
    let runtime = program.runtime();
    let own = match runtime.format() {
        RuntimeFormat::Hf => ExportFormatArg::Hf,
        RuntimeFormat::Gguf => ExportFormatArg::Gguf,
        RuntimeFormat::Mlx => ExportFormatArg::Mlx,
        RuntimeFormat::Onnx => ExportFormatArg::Onnx,
    };
    if args.to.is_some_and(|to| to != own) {
        return Err(Error::user(format!("--to contradicts --for {}, which reads another format", runtime.name()))
            .hint("leave --to out: --for writes the format that the program reads"));
    }
    let format_args = ExportArgs { to: Some(own), ..args.clone() };
    let adapter = if is_adapter(&args.source) { Some(&args.source) } else { args.adapter.as_ref() };
    let Some(adapter) = adapter else {
        let choice = Some(choose_model(runtime, &args.source)?);
        return run_format(&ExportArgs { choice, ..format_args });
    };
    if is_adapter(&args.source) && args.adapter.is_some() {
        return Err(super::merged_into_adapter(args, "hf"));
    }
    let part = read_part(adapter, 1.0)?;
    let base = match &args.base {
        Some(base) => base.clone(),
        None if is_adapter(&args.source) => {
            named_directory(std::slice::from_ref(&part)).map_err(|e| e.hint("or with --base DIR"))?
        }
        None => args.source.clone(),
    };
    let whole = args.to.is_some() && !is_adapter(&args.source) || asks_for_model(args);
    let choice = choose(runtime, &base, &part)?;
    let form = if whole { RuntimeForm::Model } else { choice.form };
    match form {
        RuntimeForm::Adapter | RuntimeForm::PlainLora => {
            refuse_gguf_options(args, "adapters")?;
            if let Some(warning) = other_base(&base, &part) {
                report::warn(warning);
            }
            let options = RuntimeAdapterOptions { runtime, base: &base, out: &args.out, force: args.force };
            let summary = write_adapter(&options, &part)?;
            if args.json { print_json(&summary) } else { print(&summary) }
        }
        RuntimeForm::OwnAdapter => {
            let (source, base, adapter) = (adapter.clone(), Some(base), None);
            run_format(&ExportArgs { source, base, adapter, choice: Some(choice), ..format_args })
        }
        RuntimeForm::Model => {
            let why = match whole && choice.form != RuntimeForm::Model {
                true => "merged into a whole model, as the other options ask".into(),
                false => choice.why.clone(),
            };
            let choice = ft::convert::runtime::RuntimeChoice { form, why, ..choice };
            let (source, adapter): (PathBuf, _) = (base, Some(adapter.clone()));
            run_format(&ExportArgs { source, adapter, base: None, choice: Some(choice), ..format_args })
        }
    }
}

/// Returns true if an option is given that only a whole model has.
fn asks_for_model(args: &ExportArgs) -> bool {
    args.format.is_some()
        || args.shard_size.is_some()
        || args.imatrix.is_some()
        || args.modelfile
        || args.split_size.is_some()
        || args.split_tensors.is_some()
}

fn print(s: &AdapterFolderSummary) -> Result<()> {
    report::info(&s.choice.why);
    let form = match s.choice.form {
        RuntimeForm::PlainLora => "a plain LoRA with the same changes",
        _ => "as it is",
    };
    let rows = vec![
        row("folder", s.out.display().to_string()),
        row("base", s.base.display().to_string()),
        row("adapter", format!("{}, {form}", s.description)),
        row("read back", format!("{} tensors: exact", s.tensors)),
    ];
    println!("{}", report::table(&rows));
    print_readers(&s.compatibility);
    Ok(())
}
