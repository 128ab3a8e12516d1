//! `ft eval-import`: makes a suite of task files of lm-evaluation-harness.

use super::shared::stdout::{print, print_json};
use clap::Args;
use ft::error::{Error, Result};
use ft::eval::lm_eval::{ImportedSuite, NoteStatus, SplitFile, TaskImport, import};
use ft::eval::results::ItemInfo;
use ft::eval::suite::preview;
use ft::{characters, fsutil, report};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Import task files of lm-evaluation-harness as a suite
///
/// Writes a suite (docs/evaluation.md) with the prompts and scores of the tasks, and tells of every key whether it was mapped, approximated
/// or refused, with its line. Rows are read from local files. Python functions in a task file are not run: what they compute is given with
/// --column, --where and --set. A task that needs one that is not given is left out; if none is left, the exit code is 1.
#[derive(Args)]
pub struct EvalImportArgs {
    /// Task files, or files of groups, whose tasks are looked for in the same folder
    #[arg(required = true, value_name = "TASK.yaml")]
    tasks: Vec<PathBuf>,
    /// The suite to write
    #[arg(long, value_name = "SUITE.yaml")]
    out: PathBuf,
    /// The rows of a split; without SPLIT, of the one that is evaluated. {task}, {dataset_name} and {split} in FILE are replaced
    #[arg(long, value_name = "[SPLIT=]FILE")]
    data: Vec<String>,
    /// Where the rows are in a JSON file, from the outside in: data.paragraphs.qas
    #[arg(long, value_name = "NAMES")]
    rows: Option<String>,
    /// Ask only rows for which this is true: "{{ subject == 'anatomy' }}"
    #[arg(long = "where", value_name = "TEMPLATE")]
    only: Option<String>,
    /// A column that templates of the tasks use and a Python function would compute: 'query={{ title }}: {{ text }}'
    #[arg(long = "column", value_name = "NAME=TEMPLATE", value_parser = parse_column)]
    columns: Vec<(String, String)>,
    /// Set a key of the task files; an empty value removes it
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Answered examples before each prompt [default: those of the task files]
    #[arg(long, value_name = "N")]
    few_shot: Option<usize>,
    /// Replace SUITE.yaml if it is there already
    #[arg(long)]
    force: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

fn parse_column(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, template)) if !name.is_empty() => Ok((name.into(), template.into())),
        _ => Err("expected NAME=TEMPLATE".into()),
    }
}

/// Runs `ft eval-import`.
pub fn run(args: &EvalImportArgs) -> Result<()> {
    if args.out.exists() && !args.force {
        return Err(Error::user(format!("{} is there already", args.out.display())).hint("--force replaces it"));
    }
    let found = import(&args.settings(), &args.out)?;
    let first = found.suite.tasks.iter().map(|task| Ok(preview(task, 1)?.into_iter().next()));
    let first = first.collect::<Result<Vec<Option<ItemInfo>>>>()?;
    if let Some(folder) = args.out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fsutil::create_dir_all(folder)?;
    }
    fsutil::write_atomic(&args.out, |w| w.write_all(found.text.as_bytes()))?;
    for name in &found.left_out {
        report::warn(format!("task `{name}` is left out: the report says why"));
    }
    match args.json {
        true => print_json(&json!({
            "out": args.out,
            "tasks": found.tasks,
            "left_out": found.left_out,
            "notes": found.notes,
            "first_items": first,
        }))?,
        false => print(&report::for_stdout(&told(&found, &first)))?,
    }
    report::info(format!("\nnext: ft eval {} --model DIR", args.out.display()));
    Ok(())
}

/// Returns the report as text.
fn told(found: &ImportedSuite, first: &[Option<ItemInfo>]) -> String {
    let mut text = String::new();
    for status in [NoteStatus::Refused, NoteStatus::Approximated, NoteStatus::Mapped, NoteStatus::Unused] {
        let notes = found.notes.iter().filter(|note| note.status == status);
        let rows: Vec<Vec<String>> = notes
            .map(|note| [note.place.as_str(), &note.key, &note.note].map(|part| characters::printable(part)).to_vec())
            .collect();
        if !rows.is_empty() {
            text += &format!("{}\n{}\n\n", status.name(), report::table(&rows));
        }
    }
    for (name, item) in found.tasks.iter().zip(first) {
        let Some(item) = item else { continue };
        let prompt = characters::printable(&item.prompt);
        text +=
            &format!("the first prompt of `{name}`, expected: {}\n", characters::printable(&item.expected.join(" | ")));
        text += &prompt.lines().map(|line| format!("  | {line}\n")).collect::<String>();
    }
    text
}

impl EvalImportArgs {
    fn settings(&self) -> TaskImport {
        let file = |text: &String| match text.split_once('=') {
            Some((split, path)) => SplitFile { split: Some(split.into()), path: path.into() },
            None => SplitFile { split: None, path: text.clone() },
        };
        TaskImport {
            files: self.tasks.clone(),
            data: self.data.iter().map(file).collect(),
            rows: self.rows.clone(),
            only: self.only.clone(),
            columns: self.columns.clone(),
            sets: self.sets.clone(),
            shots: self.few_shot,
        }
    }
}
