//! `ft merge experts.yaml`: makes a model with experts of dense models.

use super::{MergeArgs, beside_file, check_out_folder, no_folder};
use crate::cli::shared::stdout::print_json;
use ft::convert::merge::experts::{ExpertMerge, ExpertMergeReport, RouterReport};
use ft::error::Result;
use ft::recipe::merge_file::ExpertMergeFile;
use ft::report;
use std::path::{Path, PathBuf};

/// Makes a model with experts.
pub(super) fn run(args: &MergeArgs, file: ExpertMergeFile) -> Result<()> {
    for (name, given) in
        [("--sweep", args.sweep.is_some()), ("--rows", args.rows.is_some()), ("--page", args.page.is_some())]
    {
        if given {
            return Err(beside_file(args, name).hint("it belongs to merges of adapters or of whole models"));
        }
    }
    if args.out.is_none() && !args.dry_run {
        return Err(no_folder(args, "give --out DIR, or --dry-run for the routers alone"));
    }
    let folders: Vec<PathBuf> = file.experts.iter().chain(&file.shared).map(|expert| expert.model.clone()).collect();
    check_out_folder(args, args.out.as_deref(), &file.base, &folders)?;
    ft::models::device("cpu")?; // its allocator reuses the memory of blocks
    let merge = ExpertMerge::open(file, args.seed.unwrap_or_default())?;
    if args.seed.is_some() && !merge.is_random() {
        return Err(beside_file(args, "--seed").hint("neither gates nor noise are random"));
    }
    merge.notes().iter().for_each(report::warn);
    let Some(out) = args.out.as_deref() else {
        let routers = merge.routers()?;
        tell(&routers);
        return if args.json { print_json(&routers) } else { Ok(()) };
    };
    let done = merge.write(out, args.shard_bytes())?;
    tell(&done.routers);
    show(&done, out);
    if args.json { print_json(&done) } else { Ok(()) }
}

/// Tells how well the routers tell the experts apart.
fn tell(routers: &[RouterReport]) {
    let number = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.2}"));
    let mut rows =
        vec![["layer", "largest cosine of two experts", "condition of the router"].map(String::from).to_vec()];
    rows.extend(routers.iter().map(|r| vec![r.layer.to_string(), number(r.largest_cosine), number(r.condition)]));
    report::info(report::table(&rows));
}

/// Tells what was written.
fn show(done: &ExpertMergeReport, out: &Path) {
    let size: u64 = done.files.values().map(|file| file.bytes).sum();
    report::info(format!(
        "{}: {} with {} experts in {} layers, {} weights in {} tensors, {} in {} files; read back and compared",
        out.display(),
        done.architecture,
        done.experts.len(),
        done.layers,
        report::count(done.parameters as u64),
        done.tensors,
        report::bytes(size),
        done.files.len()
    ));
    done.notes.iter().for_each(report::warn);
    for line in &done.compatibility {
        report::info(format!("  {line}"));
    }
}
