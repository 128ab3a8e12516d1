//! `ft eval SUITE`: runs the tasks of a suite.

use super::EvalArgs;
use crate::cli::shared::named_adapters::{AdaptedModel, AdapterArg};
use crate::cli::shared::suite::{CACHE, as_json, concluded, refuse_failed, summary};
use ft::error::{Error, Result};
use ft::eval::results::Subject;
use ft::eval::suite::cache::AnswerCache;
use ft::eval::suite::{SuiteBaseline, SuiteSubject, run_suite, write_results};
use ft::generate::answering_adapter::AnsweringAdapter;
use ft::models::content_hash;
use ft::recipe::suite_file;
use ft::{fsutil, report};
use std::path::{Path, PathBuf};

/// Runs the tasks of a suite, writes results and report, and prints them. Fails if a gate does not hold.
pub fn run(args: &EvalArgs, path: &Path) -> Result<()> {
    let suite = suite_file::read(path)?;
    let alone = args.model.adapters().iter().all(|adapter| adapter.name.is_none());
    if let Some(gate) = suite.gates.iter().find(|gate| gate.bound.is_relative() && alone) {
        return Err(Error::user(format!("{}: the gate `{}` needs a baseline", path.display(), gate.text))
            .hint("name what is compared with the base: --adapter NAME=DIR"));
    }
    let (mut cache, _lock) = match &args.out {
        Some(out) => {
            fsutil::create_dir_all(out)?;
            let lock = fsutil::lock_folder(out)?;
            (AnswerCache::open(&out.join(CACHE))?, lock)
        }
        None => (AnswerCache::in_memory(), None),
    };
    if cache.len() > 0 {
        report::info(format!("{} answers are known already", report::count(cache.len() as u64)));
    }
    let adapted = args.model.open_adapted(&args.template, &args.quantize)?;
    let subjects = subjects(args, &adapted)?;
    let mut results =
        run_suite(&adapted.model, (&suite, &path.display().to_string()), &subjects, SuiteBaseline::First, &mut cache)?;
    results.evaluated = Some(ft::runs::facts::now());
    if let Some(out) = &args.out {
        write_results(out, &results)?;
    }
    let found = concluded(results, &suite.gates, args.out.as_deref())?;
    match args.json {
        true => println!("{}", as_json(&found)),
        false => println!("{}", summary(&found)),
    }
    refuse_failed(&found.gates, false)
}

/// Returns what is evaluated: the base and the named adapters, or the model as it was opened.
fn subjects<'a>(args: &EvalArgs, adapted: &'a AdaptedModel) -> Result<Vec<SuiteSubject<'a>>> {
    let (base, given) = (&args.model.model, args.model.adapters());
    let last = |path: &Path| {
        let name = fsutil::absolute(path).file_name().map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_else(|| path.display().to_string())
    };
    let subject = |name: String, adapter: Option<&PathBuf>, answering, number| {
        let folders: Vec<&Path> = std::iter::once(base.as_path()).chain(adapter.map(PathBuf::as_path)).collect();
        // Answers are kept between evaluations only in a file.
        let hash = if args.out.is_some() { content_hash::hash(&folders)? } else { format!("{folders:?}") };
        let (kind, storage, device) = (adapted.model.kind(), adapted.model.storage(), adapted.model.device());
        Ok(SuiteSubject {
            info: Subject {
                name,
                model: base.display().to_string(),
                adapter: adapter.map(|a| a.display().to_string()),
            },
            adapter: answering,
            tokenizer: adapted.tokenizer_of(number),
            identity: format!("{hash} {kind:?} {storage:?} {device:?}"),
        })
    };
    if adapted.named.is_empty() {
        let adapter = given.first().map(|AdapterArg { folder, .. }| folder);
        let name = last(adapter.unwrap_or(base));
        return Ok(vec![subject(name, adapter, AnsweringAdapter::Active, None)?]);
    }
    let base_alone = subject("base".into(), None, AnsweringAdapter::Chosen(None), None);
    let named = adapted.named.iter().zip(given).enumerate().map(|(number, (named, AdapterArg { folder, .. }))| {
        subject(named.name.clone(), Some(folder), AnsweringAdapter::Chosen(Some(number)), Some(number))
    });
    std::iter::once(base_alone).chain(named).collect()
}
