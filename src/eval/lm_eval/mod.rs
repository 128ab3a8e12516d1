//! Imports task files of lm-evaluation-harness (0.4) as a suite, and says what became of every key.
//!
//! `recipe::lm_eval_file` reads the files. `task` turns one into tasks of a suite, `kinds` by its kind: `fields` decides what `doc_to_text` and the
//! like name, `examples` what stands before a prompt, `scoring` what is made of answers; `patterns` translates Python's regular expressions.
//! `notes` has the report, `written` the YAML. What needs Python is refused by the name of the function.

mod examples;
mod fields;
mod kinds;
mod notes;
mod patterns;
mod scoring;
mod task;
mod written;

pub use notes::{ImportNote, NoteStatus};

use crate::data::rows::RowTemplate;
use crate::error::{Error, Result};
use crate::recipe::lm_eval_file::{self, LmEvalTask, TaskValue};
use crate::recipe::suite_file::{self, SuiteFile};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use task::TaskConversion;

/// Most refusals in one error.
const MOST_TOLD: usize = 30;

/// A local file with the rows of a split.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitFile {
    /// The name of the split; `None`: the one that is evaluated.
    pub split: Option<String>,
    /// The file, a folder or a pattern; `{task}`, `{dataset_name}` and `{split}` in it are replaced.
    pub path: String,
}

/// What is imported, and what the user adds to it.
#[derive(Debug, Clone, Default)]
pub struct TaskImport {
    /// Task files, or files of groups.
    pub files: Vec<PathBuf>,
    /// The rows of splits.
    pub data: Vec<SplitFile>,
    /// Where in the file the rows are, as `rows` of a suite.
    pub rows: Option<String>,
    /// Which rows are asked, as `where` of a suite.
    pub only: Option<String>,
    /// Columns that templates of the tasks name and the files do not have.
    pub columns: Vec<(String, String)>,
    /// Keys of the task files that are set, `KEY=VALUE`.
    pub sets: Vec<String>,
    /// Number of examples; `None`: that of the task files.
    pub shots: Option<usize>,
}

/// An imported suite.
#[derive(Debug, Clone, Serialize)]
pub struct ImportedSuite {
    /// The suite as YAML.
    #[serde(skip)]
    pub text: String,
    /// The suite as it is read.
    #[serde(skip)]
    pub suite: SuiteFile,
    /// The names of its tasks.
    pub tasks: Vec<String>,
    /// The names of tasks that could not be imported.
    pub left_out: Vec<String>,
    /// What became of every key.
    pub notes: Vec<ImportNote>,
}

/// Imports tasks. `name` is what messages call the suite.
///
/// Errors: a file cannot be read or is no task file, a row cannot be read, or no task can be imported; then the error has all that was
/// refused.
pub fn import(settings: &TaskImport, name: &Path) -> Result<ImportedSuite> {
    let columns = settings.columns.iter().map(|(name, text)| Ok((name.clone(), compiled("--column", text)?)));
    let columns: Vec<(String, RowTemplate)> = columns.collect::<Result<_>>()?;
    let only = settings.only.as_ref().map(|text| compiled("--where", text)).transpose()?;
    let mut tasks: Vec<LmEvalTask> = Vec::new();
    for file in &settings.files {
        tasks.extend(lm_eval_file::read_all(file, &settings.sets)?);
    }
    check_data(settings, &tasks)?;
    let (mut drafts, mut notes, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for task in &tasks {
        let conversion = TaskConversion::open(task, settings, &columns, only.as_ref());
        let (name, converted, own) = conversion.run()?;
        notes.extend(own);
        match converted {
            Some(converted) => drafts.extend(converted),
            None => left_out.push(name),
        }
    }
    if drafts.is_empty() {
        return Err(refused(&notes));
    }
    let text = written::suite(settings, &drafts);
    let suite = suite_file::parse(&name.display().to_string(), &text)?;
    let tasks = suite.tasks.iter().map(|task| task.name.clone()).collect();
    Ok(ImportedSuite { text, suite, tasks, left_out, notes })
}

/// Checks that every file of --data is one that a task may need.
fn check_data(settings: &TaskImport, tasks: &[LmEvalTask]) -> Result<()> {
    const KEYS: [&str; 4] = ["test_split", "validation_split", "training_split", "fewshot_split"];
    let of_task = |task: &LmEvalTask| {
        let shots = task.get("fewshot_config").and_then(|key| key.value.get("split")).and_then(TaskValue::text);
        KEYS.map(|key| task.text(key)).into_iter().chain([shots]).flatten().map(String::from).collect::<Vec<_>>()
    };
    let known: BTreeSet<String> = tasks.iter().flat_map(of_task).collect();
    let mut given = BTreeSet::new();
    for file in &settings.data {
        let name = file.split.clone();
        if let Some(unknown) = name.as_ref().filter(|name| !known.contains(*name)) {
            let known = known.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Error::user(format!("--data {unknown}={}: no task has a split `{unknown}`", file.path))
                .hint(format!("there are {known}")));
        }
        if !given.insert(name) {
            return Err(Error::user(format!("--data names the file of a split twice, the second is {}", file.path))
                .hint("several files are a folder or a pattern: --data 'test=DIR/*.jsonl'"));
        }
    }
    Ok(())
}

fn compiled(argument: &str, text: &str) -> Result<RowTemplate> {
    RowTemplate::compile(text).map_err(|fault| {
        Error::user(format!("{argument} \"{text}\": {fault}"))
            .hint("a template is text with `{{ column }}` in it (Jinja)")
    })
}

/// Makes one error of all refusals.
fn refused(notes: &[ImportNote]) -> Error {
    let told = notes.iter().filter(|note| note.status == NoteStatus::Refused);
    let mut lines: Vec<String> = Vec::new();
    // Tasks of a group often have the same mistake in a file that they include.
    for line in told.map(|note| format!("{}: `{}`: {}", note.place, note.key, note.note)) {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if lines.len() > MOST_TOLD {
        let more = lines.split_off(MOST_TOLD).len();
        lines.push(format!("{more} more of other tasks"));
    }
    Error::user(lines.join("\nerror: ")).hint("nothing was written; docs/evaluation.md says what can be imported")
}
