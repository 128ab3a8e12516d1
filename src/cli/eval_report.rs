//! `ft eval-report`: compares evaluated models and writes the report.

use super::shared::stdout::{print, print_json};
use super::shared::suite::refuse_failed;
use clap::Args;
use ft::data::rows::{RowFormat, read_rows};
use ft::error::{Error, Result};
use ft::eval::comparison::{Evaluated, join};
use ft::eval::report::{EvaluationReport, MARKDOWN, PAGE};
use ft::fsutil::{create_dir_all, read_json};
use ft::recipe::gate::Gate;
use ft::report;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Name of the file of results in the folder of an evaluation.
const RESULTS: &str = "results.json";

/// Compare evaluated models and write report.html and report.md
///
/// The first model of the first results is the baseline; all others are compared with it on the same items: paired differences with 95 %
/// bootstrap intervals, McNemar's test or one of random signs, corrected for all comparisons (Holm), and the smallest difference that
/// so many items show. The exit code is 1 if a gate does not hold.
#[derive(Args)]
pub struct EvalReportArgs {
    /// Results of evaluations of the same suite on the same items: folders with results.json, or such files
    #[arg(required = true, value_name = "RESULTS")]
    results: Vec<PathBuf>,
    /// Folder for report.html and report.md [default: that of the first results]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A condition on a metric of a task: "icd10.exact_match >= baseline - 0.02", "wiki.loss <= 1.5", "x.f1 > 0.98 * baseline"
    #[arg(long = "gate", value_name = "GATE")]
    gates: Vec<String>,
    /// Gates have to hold with certainty: the whole 95 % interval, not only the value
    #[arg(long, requires = "gates")]
    certain: bool,
    /// Training rows: adds n-gram models of them as rules without a model, and the items that overlap with them
    #[arg(long, value_name = "FILE")]
    train: Option<PathBuf>,
    /// Print the comparison as one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `ft eval-report`. Fails if the results are of different questions, or if a gate does not hold.
pub fn run(args: &EvalReportArgs) -> Result<()> {
    let gates = args.gates.iter().map(|text| read_gate(text)).collect::<Result<Vec<Gate>>>()?;
    let files: Vec<PathBuf> = args.results.iter().map(|path| results_file(path)).collect();
    let evaluated = files.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?;
    let mut found = EvaluationReport::of(join(evaluated)?, &gates)?;
    if let Some(path) = &args.train {
        let (_, rows) = read_rows(path, RowFormat::Auto, None)?;
        found.add_training_rows(&rows.into_iter().map(|row| row.record.into_texts().join("\n")).collect::<Vec<_>>());
    }
    let out = args.out.clone().unwrap_or_else(|| files[0].parent().unwrap_or(Path::new(".")).to_path_buf());
    let out = if out.as_os_str().is_empty() { PathBuf::from(".") } else { out };
    create_dir_all(&out)?;
    found.write(&out)?;
    match args.json {
        true => print_json(&json!({
            "title": found.title(),
            "verdicts": found.verdicts(),
            "subjects": found.results.subjects,
            "comparison": found.comparison,
            "gates": found.gates,
            "forgetting": found.forgetting,
            "groups": found.groups,
            "rules": found.results.tasks.iter().zip(&found.rules).map(|(task, rules)| json!({ "task": task.name, "rules": rules })).collect::<Vec<_>>(),
            "page": out.join(PAGE),
            "markdown": out.join(MARKDOWN),
        }))?,
        false => print(&(report::for_stdout(&found.summary()).into_owned() + "\n"))?,
    }
    report::info(format!("the report as a page: {}", out.join(PAGE).display()));
    refuse_failed(&found.gates, args.certain)
}

fn read_gate(text: &str) -> Result<Gate> {
    Gate::parse(text).map_err(|mistake| {
        Error::user(format!("--gate \"{text}\", column {}: {}", mistake.column, mistake.message)).hint(mistake.hint)
    })
}

/// Returns the file of results in a folder, or the file itself.
fn results_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(RESULTS) } else { path.to_path_buf() }
}

fn read(file: &Path) -> Result<Evaluated> {
    let results = read_json(file);
    let results = results.map_err(|e| e.hint("such a file is written by an evaluation of a suite"))?;
    Ok(Evaluated { place: file.display().to_string(), results })
}
