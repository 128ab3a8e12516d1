//! `ft init`: writes a first recipe for a model and a data file, with the reasons for its values as comments.

mod draft;

use clap::Args;
use draft::{RecipeDraft, SizedRun};
use ft::data::cache::{CacheChoice, WORTH_KEEPING};
use ft::data::inspect::survey_file;
use ft::data::rows::{RowFormat, SourceSpec};
use ft::data::source;
use ft::error::{Error, Result};
use ft::models::family::Config;
use ft::recipe;
use ft::recipe::plan::Plan;
use ft::train::check::{self, PlanCheck};
use ft::train::fit;
use ft::{fsutil, report};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Write a first recipe for a model and a data file
///
/// The recipe is made for the rows: their format decides the method, their lengths the size of a batch, and the free
/// memory whether layers are recomputed. Comments in it say what was detected and what else could be chosen. A file
/// that exists is not overwritten.
#[derive(Args)]
pub struct InitArgs {
    /// Hugging Face model directory, or GGUF file
    model: PathBuf,
    /// Training rows: a .jsonl, .json, .csv, .tsv, .parquet or .arrow/.ipc/.feather file, a folder of such files, or a quoted
    /// pattern
    data: PathBuf,
    /// Rows for validation (ft data split makes them)
    #[arg(long, value_name = "FILE")]
    valid: Option<PathBuf>,
    /// Chat template (Jinja) for a model without one: a file, or the name of one of the model's templates
    #[arg(long, value_name = "FILE|NAME")]
    template: Option<PathBuf>,
    /// The recipe to write
    #[arg(long, value_name = "FILE", default_value = "recipe.yaml")]
    out: PathBuf,
    /// Folder for the run's results [default: runs/ and the recipe's name]
    #[arg(long, value_name = "DIR")]
    run_out: Option<PathBuf>,
    /// Print what was detected as JSON
    #[arg(long)]
    json: bool,
}

/// Number of tokens of a packed row if no example is longer. More tokens make matrix products only slightly faster.
const TOKENS_PER_ROW: usize = 2048;

/// Longest example in tokens if the model's config.json gives no limit.
const UNLIMITED: usize = 1 << 15;

/// Runs `ft init`. Fails if the recipe exists, if the rows cannot be read, or if they only have prompts.
pub fn run(args: &InitArgs) -> Result<()> {
    refuse_existing(&args.out)?;
    let format = common_format(&args.data)?;
    let config = Config::read(&args.model)?;
    let limit = config.max_position_embeddings.map_or(UNLIMITED, |n| n as usize);
    let stem = args.out.file_stem().unwrap_or_default();
    let mut draft = RecipeDraft {
        file: args.out.clone(),
        model: args.model.clone(),
        method: draft::method(format)?,
        train: args.data.clone(),
        valid: args.valid.clone(),
        template: args.template.clone(),
        run_out: args.run_out.clone().unwrap_or_else(|| Path::new("runs").join(stem)),
        max_len: limit,
        tokens: limit,
        ..RecipeDraft::default()
    };
    // The first check measures the rows. It accepts every length, because the final one is not yet known.
    let checker = DraftChecker::new(&args.data)?;
    let measured = checker.check(&draft).map(|(_, check)| check).map_err(|e| match (&args.template, format) {
        (None, RowFormat::Messages | RowFormat::Sharegpt | RowFormat::Alpaca | RowFormat::Preference) => {
            e.hint("--template FILE sets data.template in the recipe")
        }
        _ => e,
    })?;
    draft.fit_to_rows(&measured.train, limit, TOKENS_PER_ROW);
    let (adapter, adapter_check) = checker.check(&draft)?;
    draft.lr = adapter.recipe.optim.lr;
    let (full, full_check) = checker.check(&RecipeDraft { full: true, lr: None, ..draft.clone() })?;
    let fitted = shrink_to_memory(&adapter, &adapter_check)?;
    (draft.tokens, draft.replay) = (fitted.recipe.batch.tokens, fitted.recipe.run.replay);
    let text = draft.text(&[
        draft.header(&config, &measured.train),
        draft::memory_comment(&SizedRun::of(&adapter, &adapter_check), &SizedRun::of(&full, &full_check)),
    ]);
    // The text is written by hand, with comments; reading it back shows that it is a recipe.
    let plan = recipe::plan::parse(&args.out.display().to_string(), &text, &[])
        .map_err(|e| Error::bug(format!("ft init wrote an invalid recipe: {}", e.message())))?;
    write_new(&args.out, &text)?;
    if args.json {
        println!(
            "{}",
            json!({
                "recipe": args.out, "format": measured.train.format.name(), "method": plan.method(),
                "examples": measured.train.examples, "tokens": measured.train.lengths, "steps": adapter_check.steps,
                "memory": { "adapter": adapter_check.needs.memory, "full": full_check.needs.memory,
                    "free": adapter_check.memory_free },
            })
        );
        return Ok(());
    }
    report::info(format!(
        "{}: {} on {} examples ({}), {} steps",
        args.out.display(),
        plan.method(),
        report::count(measured.train.examples as u64),
        measured.train.format.name(),
        report::count(adapter_check.steps),
    ));
    report::info(format!("next: ft check {0}, then ft train {0}", args.out.display()));
    Ok(())
}

/// Checks drafts for the same rows, which are tokenised only for the first one.
struct DraftChecker {
    /// Holds the tokens of rows that are too few for the user's cache.
    tokens: Option<TempDir>,
}

impl DraftChecker {
    fn new(data: &Path) -> Result<Self> {
        let bytes = |file: &PathBuf| file.metadata().map_or(0, |m| m.len());
        let few = source::files(data)?.iter().map(bytes).sum::<u64>() < WORTH_KEEPING;
        let folder = || tempfile::tempdir().map_err(|e| fsutil::io_error("making", &std::env::temp_dir(), e));
        Ok(Self { tokens: few.then(folder).transpose()? })
    }

    /// Returns the draft's plan and what the check found.
    fn check(&self, draft: &RecipeDraft) -> Result<(Plan, PlanCheck)> {
        let mut plan = draft.plan()?;
        if let Some(folder) = &self.tokens {
            plan.recipe.data.cache = CacheChoice::Folder(folder.path().into());
        }
        let check = check::check(&plan, false)?;
        Ok((plan, check))
    }
}

/// Fails if the recipe exists already.
fn refuse_existing(out: &Path) -> Result<()> {
    match out.symlink_metadata() {
        Ok(_) => Err(Error::user(format!("{}: exists already and is not overwritten", out.display()))
            .hint("name another file: --out FILE")),
        Err(_) => Ok(()),
    }
}

/// Writes a file that must not exist.
fn write_new(out: &Path, text: &str) -> Result<()> {
    if let Some(folder) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
        fsutil::create_dir_all(folder)?;
    }
    let mut options = fsutil::no_follow_options();
    let written = options.write(true).create_new(true).open(out).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| fsutil::io_error("writing", out, e))
}

/// Detects the format of the rows. Fails if a row cannot be read, or if files need different methods.
fn common_format(data: &Path) -> Result<RowFormat> {
    let spec = SourceSpec::file(data, RowFormat::Auto);
    let mut formats: Vec<(PathBuf, RowFormat)> = Vec::new();
    for file in source::files(data)? {
        let survey = survey_file(&file, &spec, 0)?;
        if let Some(first) = survey.bad_rows.first() {
            return Err(Error::user(format!(
                "{}: {} of {} rows cannot be read: {first}",
                file.display(),
                survey.bad,
                survey.rows
            ))
            .hint(format!("ft data inspect {} lists them", file.display())));
        }
        formats.push((file, survey.format));
    }
    let (first, format) = formats.first().cloned().ok_or_else(|| source::no_rows_error(data))?;
    let other = formats.iter().find(|(_, other)| draft::method(*other).ok() != draft::method(format).ok());
    match other {
        Some((file, other)) => Err(Error::user(format!(
            "{} has rows of the format {}, {} of the format {}; one method cannot train on both",
            first.display(),
            format.name(),
            file.display(),
            other.name()
        ))
        .hint("name the files of one format")),
        None => Ok(format),
    }
}

/// Returns the plan, with shorter packed rows or recomputed layers if it would not fit into the free memory. If nothing
/// fits, warns and returns the plan with every layer recomputed: the recipe may be meant for another machine.
fn shrink_to_memory(plan: &Plan, check: &PlanCheck) -> Result<Plan> {
    if check.memory_free.is_none_or(|free| check.needs.memory <= free) {
        return Ok(plan.clone());
    }
    match fit::fit(plan, None) {
        Ok((fitted, said)) => {
            report::info(said);
            Ok(fitted)
        }
        Err(e) => {
            report::warn(format!("{}; the recipe needs more memory than this machine has free", e.message()));
            let mut plan = plan.clone();
            plan.recipe.run.replay = recipe::sections::ReplayChoice::All;
            Ok(plan)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_tokenised_once() {
        let model = tempfile::tempdir().unwrap();
        for folder in ["tests/fixtures/tiny-llama", "tests/fixtures/tiny-tokenizer"] {
            for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                std::fs::copy(&file, model.path().join(file.file_name().unwrap())).unwrap();
            }
        }
        let mut draft = RecipeDraft {
            model: model.path().into(),
            train: "datasets/chat.jsonl".into(),
            run_out: model.path().join("run"),
            max_len: 256,
            ..Default::default()
        };
        let checker = DraftChecker::new(&draft.train).unwrap();
        let tokenised = |draft: &RecipeDraft| checker.check(draft).unwrap().1.train.tokenised_rows;
        assert!(tokenised(&draft) > 10);
        draft.fit_to_rows(&checker.check(&draft).unwrap().1.train, 256, 1024);
        assert_eq!(tokenised(&draft), 0);
        assert_eq!(tokenised(&RecipeDraft { full: true, ..draft.clone() }), 0);
    }
}
