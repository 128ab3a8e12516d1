//! `ft merge mergekit.yaml`: merges whole models.

use super::{MergeArgs, beside_file, check_out_folder, no_folder};
use crate::cli::shared::stdout::print_json;
use ft::convert::merge::models::{ModelMerge, ModelMergeReport};
use ft::convert::merge::page;
use ft::convert::merge::report::MergeReport;
use ft::error::Result;
use ft::recipe::merge_file::ModelMergeFile;
use ft::report;
use std::path::Path;

/// Runs a merge of whole models.
pub(super) fn run(args: &MergeArgs, file: ModelMergeFile) -> Result<()> {
    if args.sweep.is_some() {
        return Err(beside_file(args, "--sweep").hint("weights of whole models are not searched"));
    }
    if args.rows.is_some() {
        return Err(beside_file(args, "--rows").hint("only greedy_soup of adapters chooses by rows"));
    }
    if args.seed.is_some() && !file.method.is_random() {
        return Err(beside_file(args, "--seed").hint(format!("nothing in `{}` is random", file.method.name())));
    }
    if args.out.is_none() && !args.dry_run {
        return Err(no_folder(args, "give --out DIR, or --dry-run for the report alone"));
    }
    check_out_folder(args, args.out.as_deref(), &file.models[0], &file.models[1..])?;
    ft::models::device("cpu")?; // its allocator reuses the memory of blocks
    let merge = ModelMerge::open(file, args.seed.unwrap_or_default())?;
    merge.notes().iter().for_each(report::warn);
    let Some(out) = args.out.as_deref() else {
        let found = merge.report()?;
        tell(&found);
        if let Some(path) = &args.page {
            page::write(&found, None, path)?;
        }
        return if args.json { print_json(&found) } else { Ok(()) };
    };
    let done = merge.write(out, args.shard_bytes())?;
    tell(&done.merge);
    show(&done, out);
    if args.json { print_json(&done) } else { Ok(()) }
}

/// Tells how far the models agree, if several were merged.
fn tell(found: &MergeReport) {
    match (&found.reference, found.weights.is_empty()) {
        (Some(reference), false) => report::info(format!(
            "{}; norms are those of the differences from {reference}\n{}",
            found.method,
            found.table()
        )),
        _ => {
            report::info(format!("{}: every tensor comes from one model, so there is nothing to compare", found.method))
        }
    }
}

/// Tells what was written.
fn show(done: &ModelMergeReport, out: &Path) {
    let size: u64 = done.files.values().map(|file| file.bytes).sum();
    report::info(format!(
        "{}: {} layers, {} weights in {} tensors, {} in {} files; read back and compared",
        out.display(),
        done.layers,
        report::count(done.parameters as u64),
        done.tensors,
        report::bytes(size),
        done.files.len()
    ));
    if !done.merge.weights.is_empty() {
        report::info(format!("the report as a page: {}", out.join(page::PAGE).display()));
    }
    done.notes.iter().for_each(report::warn);
    for line in &done.compatibility {
        report::info(format!("  {line}"));
    }
}
