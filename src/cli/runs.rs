//! `ft runs`: lists, shows and compares run folders, and writes their report pages and model cards.

mod evaluations;

use super::shared::suite;
use clap::Subcommand;
use console::style;
use ft::error::{Error, Result};
use ft::eval::report::EvaluationReport;
use ft::fsutil;
use ft::report;
use ft::runs::diagnose::diagnose;
use ft::runs::diagnose::finding::DiagnosisInput;
use ft::runs::diff::diff;
use ft::runs::folder::{self, RunFolder};
use ft::runs::model_card;
use ft::runs::number::number;
use ft::runs::terminal::{page, state_style};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Subcommand)]
pub enum RunsCommand {
    /// List the runs in a folder and below, newest first
    List {
        /// The folder; searched three levels deep
        #[arg(default_value = ".")]
        folder: PathBuf,
        /// Print a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Show a run: metrics, curves, detected problems, sample answers
    Show {
        /// The run folder
        run: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Compare two runs: settings, data, programs, results
    Diff {
        /// The first run folder
        a: PathBuf,
        /// The second run folder
        b: PathBuf,
        /// Print a JSON list
        #[arg(long)]
        json: bool,
    },
    Compare(evaluations::CompareArgs),
    Seeds(evaluations::SeedsArgs),
    History(evaluations::HistoryArgs),
    /// Write a run's report page (report.html) again
    Report {
        /// The run folder
        run: PathBuf,
        /// File to write [default: report.html in the run folder]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Write the model card of a run's result (README.md) again, with evaluations that were added to its folder
    ///
    /// Evaluations are files named eval*.json, or in a folder eval/, with what `ft eval --json` prints. Text above the line that
    /// ft wrote is kept.
    Card {
        /// The run folder
        run: PathBuf,
    },
}

/// Runs `ft runs …`.
pub fn run(verb: RunsCommand) -> Result<()> {
    match verb {
        RunsCommand::List { folder, json } => list(&folder, json),
        RunsCommand::Show { run, json } => show(&run, json),
        RunsCommand::Diff { a, b, json } => compare(&a, &b, json),
        RunsCommand::Compare(args) => evaluations::compare(&args),
        RunsCommand::Seeds(args) => evaluations::seeds(&args),
        RunsCommand::History(args) => evaluations::history(&args),
        RunsCommand::Report { run, out } => {
            let out = out.unwrap_or_else(|| run.join(ft::runs::page::FILE));
            ft::runs::page::write_to(&RunFolder::open(&run)?, &out)?;
            println!("{}", out.display());
            Ok(())
        }
        RunsCommand::Card { run } => {
            println!("{}", model_card::write(&RunFolder::open(&run)?)?.display());
            Ok(())
        }
    }
}

fn list(folder: &Path, json: bool) -> Result<()> {
    let mut runs = Vec::new();
    for path in folder::find(folder)? {
        // A folder that cannot be read must not hide the others.
        match RunFolder::open(&path) {
            Ok(run) => runs.push((path, run)),
            Err(e) => report::warn(format!("{}: {}", path.display(), e.message())),
        }
    }
    if json {
        let all: Vec<Value> = runs.iter().map(|(path, run)| run_summary(path, run)).collect();
        return print(&json!(all));
    }
    if runs.is_empty() {
        return Err(Error::user(format!("{}: no run in this folder or below it", folder.display()))
            .hint("name another folder: ft runs list FOLDER"));
    }
    let head = ["run", "method", "adapter", "state", "steps", "best eval", "time", "began"]
        .map(|h| style(h).dim().to_string());
    let mut rows = vec![head.to_vec()];
    for (path, run) in &runs {
        let best = run.history.best().map_or("-".to_string(), |b| number(run.history.aim_value(b)));
        rows.push(vec![
            path.display().to_string(),
            run.plan.method().into(),
            run.adapter(),
            state_style(run.state).apply_to(run.state.name()).to_string(),
            format!("{}/{}", run.history.last_step(), run.total_steps()),
            best,
            report::duration(Duration::from_secs_f64(run.seconds())),
            run.began().map_or("-".into(), |t| t.chars().take(16).collect::<String>().replace('T', " ")),
        ]);
    }
    println!("{}", report::table(&rows));
    Ok(())
}

/// Returns the JSON object that describes a run in `--json` output.
fn run_summary(path: &Path, run: &RunFolder) -> Value {
    let h = &run.history;
    json!({
        "folder": path,
        "method": run.plan.method(),
        "adapter": run.plan.adapter(),
        "base": run.plan.recipe.model.path,
        "state": run.state,
        "message": run.last_words(),
        "steps": h.last_step(),
        "steps_planned": run.total_steps(),
        "loss": h.steps.last().map(|p| p.loss),
        "best_metric": h.aim.metric,
        "best_value": h.best().map(|b| h.aim_value(b)),
        "best_step": h.best().map(|b| b.step),
        "seconds": run.seconds(),
        "tokens_per_s": h.tokens_per_s(),
        "memory": h.memory(),
        "began": run.began(),
    })
}

fn show(path: &Path, json: bool) -> Result<()> {
    let run = RunFolder::open(path)?;
    let evaluation = evaluation(path)?;
    if !json {
        let width = console::Term::stdout().size_checked().map_or(100, |(_, columns)| columns as usize);
        print!("{}", page(&run, width));
        if let Some(found) = evaluation {
            println!("\nevaluation by {}\n{}", found.results.suite, suite::summary(&found));
        }
        return Ok(());
    }
    let mut value = run_summary(path, &run);
    let patient = DiagnosisInput { plan: &run.plan, facts: run.facts.as_ref(), history: &run.history };
    value["findings"] = json!(diagnose(patient));
    value["facts"] = json!(run.facts);
    value["recipe"] = json!(run.plan.recipe);
    value["resumed_at"] = json!(run.resumed_steps());
    value["samples"] = json!(run.samples);
    value["evaluation"] = json!(evaluation.as_ref().map(suite::as_json));
    print(&value)
}

/// Reads the results of `run.evaluate`, if there are any, and compares them.
fn evaluation(run: &Path) -> Result<Option<EvaluationReport>> {
    let file = run.join(suite::OF_RUN).join("results.json");
    match file.is_file() {
        true => EvaluationReport::of(fsutil::read_json(&file)?, &[]).map(Some),
        false => Ok(None),
    }
}

fn compare(a: &Path, b: &Path, json: bool) -> Result<()> {
    let (first, second) = (RunFolder::open(a)?, RunFolder::open(b)?);
    let found = diff(&first, &second);
    if json {
        return print(&json!(found));
    }
    if found.is_empty() {
        println!("no difference");
        return Ok(());
    }
    let mut rows = vec![vec![String::new(), a.display().to_string(), b.display().to_string()]];
    let mut group = "";
    for d in &found {
        if d.group != group {
            group = d.group;
            rows.push(vec![style(group).bold().to_string()]);
        }
        rows.push(vec![format!("  {}", d.item), d.a.clone(), d.b.clone()]);
    }
    println!("{}", report::table(&rows));
    Ok(())
}

fn print(value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::bug(format!("writing JSON: {e}")))?;
    println!("{text}");
    Ok(())
}
