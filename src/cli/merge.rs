//! `ft merge`: folds adapters into a base model, combines several adapters into one, or merges whole models.

mod experts;
mod models;
mod soup;
mod sweep;

use super::shared::interrupt::end_without_remains;
use super::shared::stdout::print_json;
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use ft::adapters::merging::WeightedAdapter;
use ft::adapters::merging::plan::{
    METHODS, MergeDtype, MergeForm, MergePlan, MergeSettings, NamedMethod, SettingsMistake,
};
use ft::convert::folder::destination::Destination;
use ft::convert::merge::adapters::PreparedMerge;
use ft::convert::merge::inputs::{is_adapter, named_base, other_base, parse_part, read_part, split_weight};
use ft::convert::merge::page;
use ft::convert::verify::report::ExportReport;
use ft::error::{Error, Result};
use ft::merging::MajoritySign;
use ft::recipe::merge_file::{self, AdapterMergeFile, MergeFile, SweepBy, SweepSettings};
use ft::report;
use serde_json::json;
use soup::ChosenSoup;
use std::path::{Path, PathBuf};
use tch::Kind;

/// Merge adapters into a base model, several adapters into one, or whole models
///
/// Changes of weights are merged in float32 and rounded once; by default they are added up. A report says how far the
/// adapters agree, by layer, before anything is written. The written files are read back and compared with the adapted model
/// in memory before they are moved into place; export_report.json in the folder has the numbers, and merge.html shows them.
///
/// Whole models are merged as a file says that mergekit reads, too, and dense models are made into one with experts as a file of
/// mergekit-moe says: `ft merge mergekit.yaml --out DIR`.
#[derive(Args)]
pub struct MergeArgs {
    /// Hugging Face directory of the base, or a YAML file that describes the merge (ours, or mergekit's). Left out, the base
    /// is the one that the adapters name
    #[arg(value_name = "BASE|FILE.yaml")]
    base: PathBuf,
    /// Adapter directories; `=WEIGHT` multiplies an adapter's update (default 1, may be negative)
    #[arg(value_name = "ADAPTER[=WEIGHT]")]
    adapters: Vec<String>,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How changes are merged
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(METHODS.map(|m| m.name)))]
    method: Option<String>,
    /// The share of entries of each change that is kept: one number for all adapters, or one for each
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',')]
    density: Vec<f64>,
    /// How ties and dare_ties elect the sign of an entry [default: total]
    #[arg(long, value_name = "HOW", value_parser = PossibleValuesParser::new(MajoritySign::NAMES))]
    majority_sign: Option<String>,
    /// Reduce the merged changes to this rank [default of an adapter that is not a sum: the largest of the adapters]
    #[arg(long, value_name = "R", conflicts_with = "energy")]
    rank: Option<i64>,
    /// Reduce the merged changes to the ranks that keep this share of their energy
    #[arg(long, value_name = "SHARE")]
    energy: Option<f64>,
    /// Write the changes in common directions before they are merged (KnOTS)
    #[arg(long)]
    knots: bool,
    /// Seed of the random entries of dare_linear, dare_ties, della and della_linear, of random gates and noise of experts, and of
    /// the order of rows if weights are trained [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Search the weights with the smallest loss on these rows, and merge with them
    #[arg(long, value_name = "FILE")]
    sweep: Option<PathBuf>,
    /// What has a weight of its own: each adapter, or each adapter in each layer, in each module, or in each component
    /// `b a` of a LoRA. Weights of adapters are tried on a grid; the others are trained, and the rows should be a hundred or
    /// more [default: adapter]
    #[arg(long, value_name = "WHAT", requires = "sweep", value_parser = PossibleValuesParser::new(SweepBy::NAMES))]
    sweep_by: Option<String>,
    /// Number of steps that train weights [default: 60]
    #[arg(long, value_name = "N", requires = "sweep", value_parser = clap::value_parser!(u32).range(1..))]
    sweep_steps: Option<u32>,
    /// Search on the first N rows
    #[arg(long, value_name = "N", requires = "sweep", value_parser = clap::value_parser!(u32).range(1..))]
    sweep_rows: Option<u32>,
    /// Choose the adapters of greedy_soup by the loss on these rows
    #[arg(long, value_name = "FILE")]
    rows: Option<PathBuf>,
    /// Only report how far the adapters agree
    #[arg(long, conflicts_with_all = ["out", "force"])]
    dry_run: bool,
    /// Write the page of a dry run
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    page: Option<PathBuf>,
    /// Number format of the merged weights; `base`, the default: the format that each weight has in the base
    #[arg(long, value_enum)]
    dtype: Option<MergeDtypeArg>,
    /// Write a whole model (the default), or one adapter with the effect of all together
    #[arg(long = "as", value_enum)]
    form: Option<MergeOutputArg>,
    /// Split the weights of a model into files of at most GB gigabytes (10^9 bytes) [default: 5]
    #[arg(long, value_name = "GB")]
    shard_size: Option<f64>,
    /// Replace a model or adapter directory at DIR
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

impl MergeArgs {
    /// Returns what has a weight of its own in the search.
    fn sweep_by(&self) -> SweepBy {
        self.sweep_by.as_deref().and_then(SweepBy::named).unwrap_or_default()
    }

    /// Returns the size that a file of weights has at most, in bytes.
    fn shard_bytes(&self) -> u64 {
        (self.shard_size.unwrap_or(5.0) * 1e9) as u64
    }
}

/// What is to be merged and written, from arguments or from a file.
struct MergeJob {
    base: PathBuf,
    parts: Vec<WeightedAdapter>,
    plan: MergePlan,
    form: MergeForm,
    dtype: MergeDtype,
    out: Option<PathBuf>,
    sweep: Option<SweepSettings>,
}

/// Runs `ft merge`.
pub fn run(args: &MergeArgs) -> Result<()> {
    end_without_remains()?;
    if let Some(size) = args.shard_size.filter(|size| size.is_nan() || *size <= 0.0) {
        return Err(Error::user(format!("--shard-size: {size} is not a size")).hint("gigabytes, e.g. 5 or 0.5"));
    }
    let is_file = args.base.extension().is_some_and(|e| e == "yaml" || e == "yml") && !args.base.is_dir();
    let mut job = match is_file {
        false => job_of_arguments(args)?,
        true => match file_of(args)? {
            MergeFile::Models(file) => return models::run(args, file),
            MergeFile::Experts(file) => return experts::run(args, file),
            MergeFile::Adapters(file) => job_of_file(args, file)?,
        },
    };
    if job.form == MergeForm::Adapter && args.shard_size.is_some() {
        return Err(Error::user("--shard-size: an adapter is one file").hint("leave it out"));
    }
    for warning in job.parts.iter().filter_map(|part| other_base(&job.base, part)) {
        report::warn(warning);
    }
    let sweeps = job.sweep.is_some();
    let soup = soup::cook(&mut job, args.rows.as_deref(), sweeps)?;
    let search = job.sweep.take().map(|settings| sweep::search_weights(&mut job, &settings)).transpose()?;
    let mut merge = PreparedMerge::new(&job.base, &job.parts, job.plan.clone(), job.form)?;
    let picture = search.as_ref().map(|found| found.picture(&job.parts));
    merge.search = picture.or_else(|| soup.as_ref().map(ChosenSoup::picture));
    let trials = search.as_ref().map(|found| ("sweep", found.json()));
    let trials = trials.or_else(|| soup.as_ref().map(|chosen| ("soup", json!(chosen.soup))));
    let tells = job.parts.len() > 1 || !job.plan.is_sum() || soup.is_some() || args.dry_run;
    if tells {
        report::info(format!("{}\n{}", merge.report.method, merge.report.table()));
    }
    let kept = merge.report.total.energy_kept;
    if kept < 0.9 {
        report::warn(format!(
            "the adapter holds {:.0} % of the merged changes: --rank or --energy keeps more, and a model keeps all",
            100.0 * kept
        ));
    }
    let Some(out) = job.out.as_deref().filter(|_| !args.dry_run) else {
        if let Some(page) = &args.page {
            page::write(&merge.report, merge.search.as_ref(), page)?;
        }
        return match trials {
            Some((name, found)) if args.json => print_json(&json!({ "merge": merge.report, name: found })),
            _ if args.json => print_json(&merge.report),
            _ => Ok(()),
        };
    };
    let spinner = report::spinner("writing and checking");
    let done = match job.form {
        MergeForm::Adapter => merge.write_adapter(out),
        MergeForm::Model => {
            let dtype = match job.dtype {
                MergeDtype::Bf16 => Some(Kind::BFloat16),
                MergeDtype::F32 => Some(Kind::Float),
                MergeDtype::Base => None,
            };
            merge.write_model(out, dtype, args.shard_bytes())
        }
    };
    spinner.finish_and_clear();
    let done = done?;
    show(&done, out, tells);
    match trials {
        Some((name, found)) if args.json => print_json(&json!({ "export": done, name: found })),
        _ if args.json => print_json(&done),
        _ => Ok(()),
    }
}

/// Reads the file of a merge. Fails for arguments that belong into it.
fn file_of(args: &MergeArgs) -> Result<MergeFile> {
    let own = [
        ("adapters", !args.adapters.is_empty()),
        ("--method", args.method.is_some()),
        ("--density", !args.density.is_empty()),
        ("--majority-sign", args.majority_sign.is_some()),
        ("--rank", args.rank.is_some()),
        ("--energy", args.energy.is_some()),
        ("--knots", args.knots),
        ("--as", args.form.is_some()),
        ("--dtype", args.dtype.is_some()),
    ];
    match own.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(beside_file(args, name)),
        None => merge_file::read(&args.base),
    }
}

/// Returns the error for an argument that belongs into the file of a merge.
fn beside_file(args: &MergeArgs, name: &str) -> Error {
    Error::user(format!("{name} cannot be combined with {}", args.base.display())).hint("write it into the file")
}

/// Returns the error for a file that names no folder to write.
fn no_folder(args: &MergeArgs, hint: &str) -> Error {
    Error::user(format!("{}: no folder to write", args.base.display())).hint(hint)
}

/// Returns the job of the file of a merge of adapters.
fn job_of_file(args: &MergeArgs, file: AdapterMergeFile) -> Result<MergeJob> {
    if args.seed.is_some() {
        return Err(beside_file(args, "--seed"));
    }
    if args.sweep.is_some() && file.sweep.is_some() {
        return Err(beside_file(args, "--sweep").hint("its `sweep` says how weights are searched"));
    }
    if let Some((folder, weight)) = file.adapters.iter().find(|(_, weight)| args.sweep.is_some() && *weight != 1.0) {
        return Err(beside_file(args, "--sweep").hint(format!(
            "its adapter {} has the weight {weight}, and --sweep searches the weights",
            folder.display()
        )));
    }
    let sweep = match file.sweep {
        Some(sweep) => Some(sweep),
        None => sweep_of_arguments(args, &file.plan)?,
    };
    let out = args.out.clone().or(file.out);
    if out.is_none() && !args.dry_run {
        return Err(no_folder(args, "add `out: DIR` to the file, or give --out DIR"));
    }
    let folders: Vec<PathBuf> = file.adapters.iter().map(|(folder, _)| folder.clone()).collect();
    check_out_folder(args, out.as_deref(), &file.base, &folders)?;
    let read = |(folder, weight): &(PathBuf, f64)| read_part(folder, *weight);
    let parts = file.adapters.iter().map(read).collect::<Result<Vec<_>>>()?;
    Ok(MergeJob { base: file.base, parts, plan: file.plan, form: file.form, dtype: file.dtype, out, sweep })
}

/// Returns what --sweep and its settings say. Fails if they contradict the plan.
fn sweep_of_arguments(args: &MergeArgs, plan: &MergePlan) -> Result<Option<SweepSettings>> {
    let Some(rows) = args.sweep.clone() else { return Ok(None) };
    let whole = |n: Option<u32>| n.map(|n| n as usize);
    let (limit, steps) = (whole(args.sweep_rows), whole(args.sweep_steps));
    let settings = SweepSettings { rows, limit, by: args.sweep_by(), steps, seed: args.seed.unwrap_or_default() };
    match settings.mistake(plan) {
        Some(mistake) => Err(mistaken(&[mistake])),
        None => Ok(Some(settings)),
    }
}

/// Returns the error for settings that contradict each other.
fn mistaken(mistakes: &[SettingsMistake]) -> Error {
    let told = mistakes.iter().map(|m| format!("--{}: {}", m.key.replace('_', "-"), m.message));
    let error = Error::user(told.collect::<Vec<_>>().join("\nerror: "));
    mistakes.iter().fold(error, |error, m| error.hint(m.hint))
}

/// Returns the base, if the arguments name one, and the adapters: an adapter in the place of the base means that none is named.
fn named_inputs(args: &MergeArgs) -> (Option<PathBuf>, Vec<String>) {
    let first = args.base.to_string_lossy();
    match is_adapter(Path::new(split_weight(&first).0)) {
        true => (None, std::iter::once(first.into_owned()).chain(args.adapters.iter().cloned()).collect()),
        false => (Some(args.base.clone()), args.adapters.clone()),
    }
}

fn job_of_arguments(args: &MergeArgs) -> Result<MergeJob> {
    let (base, adapters) = named_inputs(args);
    if adapters.is_empty() {
        return Err(Error::user("no adapter to merge").hint("ft merge BASE ADAPTER[=WEIGHT] … --out DIR"));
    }
    if args.out.is_none() && !args.dry_run {
        return Err(Error::user("no folder to write").hint("--out DIR, or --dry-run for the report alone"));
    }
    if let Some(weighted) = adapters.iter().find(|a| args.sweep.is_some() && split_weight(a).1.is_some()) {
        return Err(Error::user(format!("{weighted}: a weight beside --sweep, which searches the weights"))
            .hint(format!("name the adapter alone: {}", split_weight(weighted).0)));
    }
    let folders: Vec<PathBuf> = adapters.iter().map(|a| PathBuf::from(split_weight(a).0)).collect();
    let read = || adapters.iter().map(|text| parse_part(text)).collect::<Result<Vec<_>>>();
    let base = match base {
        Some(base) => base,
        None => {
            let base = named_base(&read()?)?;
            report::info(format!("the base is {}, which {} names", base.display(), folders[0].display()));
            base
        }
    };
    check_out_folder(args, args.out.as_deref(), &base, &folders)?;
    let form = match args.form {
        Some(MergeOutputArg::Adapter) => MergeForm::Adapter,
        _ => MergeForm::Model,
    };
    let dtype = match args.dtype {
        Some(MergeDtypeArg::Bf16) => MergeDtype::Bf16,
        Some(MergeDtypeArg::F32) => MergeDtype::F32,
        _ => MergeDtype::Base,
    };
    if form == MergeForm::Adapter && dtype != MergeDtype::Base {
        return Err(Error::user("--dtype cannot be combined with --as adapter")
            .hint("leave out --dtype: adapters are written in float32, as PEFT writes them"));
    }
    let settings = MergeSettings {
        method: args.method.as_deref().and_then(NamedMethod::get).unwrap_or_default(),
        densities: args.density.clone(),
        majority_sign: args.majority_sign.as_deref().and_then(MajoritySign::named),
        rank: args.rank,
        energy: args.energy,
        knots: args.knots,
        // Of weights that are trained it determines the order of rows.
        seed: args.seed.filter(|_| !args.sweep_by().is_trained()),
    };
    let plan = settings.plan(adapters.len()).map_err(|mistakes| mistaken(&mistakes))?;
    let sweep = sweep_of_arguments(args, &plan)?;
    Ok(MergeJob { base, parts: read()?, plan, form, dtype, out: args.out.clone(), sweep })
}

/// Fails if `out` must not be replaced: it is not empty and --force is missing, it is no model or adapter directory, or it contains an
/// input.
fn check_out_folder(args: &MergeArgs, out: Option<&Path>, base: &Path, adapters: &[PathBuf]) -> Result<()> {
    let Some(out) = out else { return Ok(()) };
    let read: Vec<&Path> = adapters.iter().map(PathBuf::as_path).chain([base]).collect();
    let (kind, marks, example) =
        ("a model or adapter directory", &["config.json", "adapter_config.json"], "models/merged");
    Destination { out, kind, marks, others: &["model.onnx", "adapters.safetensors"], example }.check(args.force, &read)
}

/// Tells what was written. `page`: whether a page is in the folder.
pub(super) fn show(done: &ExportReport, out: &Path, page: bool) {
    let d = &done.difference;
    let size: u64 = done.files.values().map(|f| f.bytes).sum();
    report::info(format!(
        "{}: {} tensors, {} in {} files",
        out.display(),
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
    if page {
        report::info(format!("the report as a page: {}", out.join(page::PAGE).display()));
    }
    done.notes.iter().for_each(report::warn);
    for line in &done.compatibility {
        report::info(format!("  {line}"));
    }
}
