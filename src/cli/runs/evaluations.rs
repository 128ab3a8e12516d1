//! `ft runs history`, `compare` and `seeds`: what the evaluations of several runs say together.

use crate::cli::shared::stdout::{print, print_json};
use crate::cli::shared::suite;
use clap::Args;
use console::style;
use ft::characters::printable;
use ft::error::{Error, Result};
use ft::eval::comparison::{Evaluated, join};
use ft::eval::history::index::{self, EvaluationEntry};
use ft::eval::history::page;
use ft::eval::history::seeds::{MetricSpread, spreads};
use ft::eval::history::series::{MetricSeries, SeriesFilter, day, series};
use ft::eval::report::{EvaluationReport, PAGE};
use ft::eval::results::SuiteResults;
use ft::fsutil;
use ft::report;
use ft::runs::diff::diff;
use ft::runs::folder::{self, RunFolder};
use ft::runs::number::number;
use ft::runs::terminal::sparkline;
use ft::stats::students_t::Spread;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Width of a sparkline in characters.
const SPARK: usize = 24;

/// Show metrics of evaluations over their dates, and whether a level changed
///
/// Every results.json below the folder is read once; evaluations.jsonl in the folder keeps what is needed of it, and may be removed. A
/// change is one that Pettitt's test shows from five evaluations of the same questions on, corrected for all metrics (Holm).
#[derive(Args)]
pub struct HistoryArgs {
    /// The folder; searched five levels deep
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Only this task
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// This metric [default: the main one of each task]
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// The model of this name [default: the last one of each evaluation, which is the tuned one]
    #[arg(long, value_name = "NAME")]
    subject: Option<String>,
    /// Write a page with pictures
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// Read all results again
    #[arg(long)]
    rebuild: bool,
    /// Print a JSON list
    #[arg(long)]
    json: bool,
}

/// Compare the results of evaluated runs on the same items
///
/// Of each run or evaluation its last model is taken, which is the tuned one; the first run is the baseline. The numbers and tests are
/// those of `ft eval-report`. `ft runs diff` compares settings and data.
#[derive(Args)]
pub struct CompareArgs {
    /// Runs with `run.evaluate`, or folders of evaluations
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Write report.html and report.md into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Show mean and spread of metrics over runs of one recipe that differ in their seed
///
/// Of each run the last model of its evaluation is taken. Intervals of means are Student's t over runs: they say how much another seed
/// may change, not how much other items may. Settings other than seeds in which the runs differ are told.
#[derive(Args)]
pub struct SeedsArgs {
    /// Runs with `run.evaluate`, or folders of evaluations
    #[arg(required = true, num_args = 1.., value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `ft runs history`.
pub fn history(args: &HistoryArgs) -> Result<()> {
    let entries = index::update(&args.folder, args.rebuild)?;
    if entries.is_empty() {
        return Err(Error::user(format!(
            "{}: no results of evaluations in this folder or below it",
            args.folder.display()
        ))
        .hint("`ft eval SUITE --out DIR` writes them, and a run with `run.evaluate`"));
    }
    let filter =
        SeriesFilter { task: args.task.as_deref(), metric: args.metric.as_deref(), subject: args.subject.as_deref() };
    let found = series(&entries, &filter);
    if found.is_empty() {
        return Err(nothing_fits(&entries));
    }
    if let Some(file) = &args.page {
        let page = page::render(&args.folder.display().to_string(), &found);
        fsutil::write_atomic(file, |out| out.write_all(page.as_bytes()))?;
        report::info(format!("the page: {}", file.display()));
    }
    match args.json {
        true => print_json(&found),
        false => print(&printable(&(found.iter().map(shown).collect::<Vec<_>>().join("\n\n") + "\n"))),
    }
}

/// Says what there is, if nothing fits the names that were given.
fn nothing_fits(entries: &[EvaluationEntry]) -> Error {
    let unique = |names: Vec<&str>| {
        let set: std::collections::BTreeSet<&str> = names.into_iter().collect();
        set.into_iter().collect::<Vec<_>>().join(", ")
    };
    let tasks = || entries.iter().flat_map(|entry| &entry.tasks);
    Error::user("no evaluation has a value with these names").hint(format!(
        "tasks: {}; metrics: {}; models: {}",
        unique(tasks().map(|task| task.name.as_str()).collect()),
        unique(tasks().flat_map(|task| task.metrics.iter().map(|metric| metric.name.as_str())).collect()),
        unique(entries.iter().flat_map(|entry| entry.subjects.iter().map(|s| s.name.as_str())).collect()),
    ))
}

fn shown(series: &MetricSeries) -> String {
    let head = format!(
        "{}  {}  {}\n{}, {} items{}{}: {}",
        style(&series.task).bold(),
        series.metric,
        sparkline(&series.values(), SPARK),
        series.suite,
        report::count(series.items as u64),
        if series.direction.note().is_empty() { "" } else { ", " },
        series.direction.note(),
        series.drift()
    );
    let mut rows = vec![["date", "evaluation", "model", "value"].map(String::from).to_vec()];
    rows.extend(series.points.iter().map(|point| {
        vec![
            point.evaluated.get(..16).unwrap_or(day(&point.evaluated)).replace('T', " "),
            point.folder.display().to_string(),
            point.subject.clone(),
            suite::estimate(Some(point.estimate)),
        ]
    }));
    format!("{head}\n{}", report::table(&rows))
}

/// Runs `ft runs compare`.
pub fn compare(args: &CompareArgs) -> Result<()> {
    let evaluated = args.runs.iter().map(|run| last_model(run)).collect::<Result<Vec<_>>>()?;
    let found = EvaluationReport::of(join(evaluated)?, &[])?;
    if found.results.subjects.len() < 2 {
        return Err(Error::user("all of these are the same model with the same answers").hint("name different runs"));
    }
    if let Some(out) = &args.out {
        fsutil::create_dir_all(out)?;
        found.write(out)?;
        report::info(format!("the report as a page: {}", out.join(PAGE).display()));
    }
    match args.json {
        true => print_json(&suite::as_json(&found)),
        false => print(&(suite::summary(&found) + "\n")),
    }
}

/// Reads the results of the last model of a run, which gets the run's name.
fn last_model(run: &Path) -> Result<Evaluated> {
    let file = index::results_of(run)?;
    let mut results: SuiteResults = fsutil::read_json(&file)?;
    results.keep_last();
    let name = fsutil::absolute(run).file_name().map(|name| name.to_string_lossy().into_owned());
    if let (Some(subject), Some(name)) = (results.subjects.first_mut(), name) {
        subject.name = name;
    }
    Ok(Evaluated { place: run.display().to_string(), results })
}

/// Runs `ft runs seeds`.
pub fn seeds(args: &SeedsArgs) -> Result<()> {
    let entries = args.runs.iter().map(|run| index::read(run)).collect::<Result<Vec<_>>>()?;
    let found = spreads(&entries)?;
    let other = other_settings(&args.runs)?;
    if !other.is_empty() {
        report::warn(format!(
            "the runs differ in more than their seed: {}; the spread is that of all of these",
            other.join(", ")
        ));
    }
    match args.json {
        true => print_json(&json!({ "runs": args.runs, "other_settings": other, "metrics": found })),
        false => print(&printable(&(report::table(&spread_table(&found)) + "\n"))),
    }
}

/// Returns the settings, without seeds, in which runs differ from the first; none of folders that are no runs.
fn other_settings(runs: &[PathBuf]) -> Result<Vec<String>> {
    let runs: Vec<&PathBuf> = runs.iter().filter(|run| folder::is_run(run)).collect();
    let [first, others @ ..] = &runs[..] else { return Ok(Vec::new()) };
    let first = RunFolder::open(first)?;
    let mut found: Vec<String> = Vec::new();
    for run in others {
        for difference in diff(&first, &RunFolder::open(run)?) {
            let seed = difference.item.rsplit('.').next().is_some_and(|key| key.ends_with("seed"));
            if difference.group == "settings" && !seed && !found.contains(&difference.item) {
                found.push(difference.item);
            }
        }
    }
    Ok(found)
}

fn spread_table(found: &[MetricSpread]) -> Vec<Vec<String>> {
    let titles = [
        "task",
        "metric",
        "runs",
        "mean (95 % of runs)",
        "sd",
        "smallest to largest",
        "less its first model (95 % of runs)",
    ];
    let mut rows = vec![titles.map(String::from).to_vec()];
    let mean = |spread: &Spread| {
        number(spread.mean)
            + &spread.interval.map_or(String::new(), |[a, b]| format!("  ({} to {})", number(a), number(b)))
    };
    for (i, spread) in found.iter().enumerate() {
        let again = i > 0 && found[i - 1].task == spread.task;
        rows.push(vec![
            if again { String::new() } else { spread.task.clone() },
            spread.metric.clone(),
            spread.value.count.to_string(),
            mean(&spread.value),
            spread.value.deviation.map_or("-".into(), number),
            format!("{} to {}", number(spread.value.min), number(spread.value.max)),
            spread.change.as_ref().map_or("-".into(), mean),
        ]);
    }
    rows
}
