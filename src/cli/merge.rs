//! `ft merge`: folds adapters into a base model, or combines several adapters into one.

use clap::{Args, ValueEnum};
use ft::convert::merged;
use ft::convert::verify::report::ExportReport;
use ft::error::{Error, Result};
use ft::report;
use std::path::PathBuf;
use tch::Kind;

/// Merge adapters into a base model, or several adapters into one
///
/// Sums are computed in float32 and rounded once. The written files are read back and compared with the adapted model
/// in memory before they are moved into place; export_report.json in the folder has the numbers.
#[derive(Args)]
pub struct MergeArgs {
    /// Hugging Face directory of the base
    base: PathBuf,
    /// Adapter directories; `=WEIGHT` multiplies an adapter's update (default 1, may be negative)
    #[arg(required = true, value_name = "ADAPTER[=WEIGHT]")]
    adapters: Vec<String>,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number format of the merged weights; `base`: the format that each weight has in the base
    #[arg(long, value_enum, default_value_t = MergeDtypeArg::Base)]
    dtype: MergeDtypeArg,
    /// Write a whole model, or one adapter with the effect of all together
    #[arg(long = "as", value_enum, default_value_t = MergeOutputArg::Model)]
    form: MergeOutputArg,
    /// Split weights into files of at most GB gigabytes (10^9 bytes)
    #[arg(long, value_name = "GB", default_value_t = 5.0)]
    shard_size: f64,
    /// Replace DIR if it exists
    #[arg(long)]
    force: bool,
    /// Write the report as JSON to stdout
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MergeDtypeArg {
    Bf16,
    F32,
    Base,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MergeOutputArg {
    Model,
    Adapter,
}

/// Runs `ft merge`.
pub fn run(args: &MergeArgs) -> Result<()> {
    check_out_folder(args)?;
    if args.shard_size.is_nan() || args.shard_size <= 0.0 {
        return Err(
            Error::user(format!("--shard-size: {} is not a size", args.shard_size)).hint("gigabytes, e.g. 5 or 0.5")
        );
    }
    if args.form == MergeOutputArg::Adapter && args.dtype != MergeDtypeArg::Base {
        return Err(Error::user("--dtype cannot be combined with --as adapter")
            .hint("leave out --dtype: adapters are written in float32, as PEFT writes them"));
    }
    let parts = args.adapters.iter().map(|text| merged::parse_part(text)).collect::<Result<Vec<_>>>()?;
    for part in &parts {
        warn_other_base(args, part);
    }
    let spinner = report::spinner("merging and checking");
    let done = match args.form {
        MergeOutputArg::Adapter => merged::merge_adapters(&args.base, &parts, &args.out),
        MergeOutputArg::Model => {
            let dtype = match args.dtype {
                MergeDtypeArg::Bf16 => Some(Kind::BFloat16),
                MergeDtypeArg::F32 => Some(Kind::Float),
                MergeDtypeArg::Base => None,
            };
            merged::merge_into_model(&args.base, &parts, &args.out, dtype, (args.shard_size * 1e9) as u64)
        }
    };
    spinner.finish_and_clear();
    let done = done?;
    show(&done, args);
    if args.json {
        let text = serde_json::to_string_pretty(&done).map_err(|e| Error::bug(format!("report: {e}")))?;
        println!("{text}");
    }
    Ok(())
}

/// Fails if --out must not be replaced: it exists and --force is missing, it contains an input, or it is neither empty
/// nor a model or adapter directory.
fn check_out_folder(args: &MergeArgs) -> Result<()> {
    let refuse = |what: &str, hint: &str| Err(Error::user(format!("--out {}: {what}", args.out.display())).hint(hint));
    let Ok(out) = args.out.canonicalize() else { return Ok(()) };
    let folders = args.adapters.iter().map(|a| PathBuf::from(merged::split_weight(a).0)).chain([args.base.clone()]);
    if folders.filter_map(|f| f.canonicalize().ok()).any(|f| f.starts_with(&out)) {
        return refuse("contains the base or an adapter that is merged", "choose another folder");
    }
    if !args.force {
        return refuse("already exists", "choose another folder, or replace this one with --force");
    }
    let made = ["config.json", "adapter_config.json"].iter().any(|f| out.join(f).exists());
    let empty = out.read_dir().is_ok_and(|mut items| items.next().is_none());
    if !made && !empty {
        return refuse(
            "is not a model or adapter directory, and --force replaces nothing else",
            "remove it yourself, or choose another folder",
        );
    }
    Ok(())
}

/// Warns if the adapter names a base whose folder has another name. This is no error: the same base may have been
/// moved.
fn warn_other_base(args: &MergeArgs, part: &ft::adapters::merge::WeightedAdapter) {
    let last = |p: &std::path::Path| p.file_name().map(|n| n.to_string_lossy().to_lowercase());
    let Some(named) = part.file.base.as_deref().filter(|b| !b.is_empty()) else { return };
    let given = ft::fsutil::absolute(&args.base);
    if last(std::path::Path::new(named)) != last(&given) {
        report::warn(format!(
            "{}: was trained on `{named}`; merging into {}",
            part.folder.display(),
            args.base.display()
        ));
    }
}

fn show(done: &ExportReport, args: &MergeArgs) {
    let d = &done.difference;
    let size: u64 = done.files.values().map(|f| f.bytes).sum();
    report::info(format!(
        "{}: {} tensors, {} in {} files",
        args.out.display(),
        done.tensors,
        report::bytes(size),
        done.files.len()
    ));
    report::info(format!(
        "checked on {} positions in {}: logits differ by {:.1e} of the largest, mean KL {:.1e}, top-1 agreement {:.1} %",
        done.positions,
        done.computed_in,
        d.relative,
        d.mean_kl,
        100.0 * d.top1_agreement
    ));
    done.notes.iter().for_each(report::warn);
    for line in &done.compatibility {
        report::info(format!("  {line}"));
    }
}
