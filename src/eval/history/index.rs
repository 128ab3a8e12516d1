//! What is kept of each evaluation below a folder.

use crate::error::{Error, Result};
use crate::eval::results::{MetricInfo, Subject, SuiteResults, TaskResults};
use crate::fsutil::{hex, io_error, read_json, read_to_string, write_atomic};
use crate::report;
use crate::stats::bootstrap::Estimate;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of the file of an evaluation's results.
pub const RESULTS: &str = "results.json";
/// Name of the index in the folder whose evaluations it has.
pub const INDEX: &str = "evaluations.jsonl";
/// Folders that are searched below the given one.
const DEPTH: usize = 5;

/// What is kept of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationEntry {
    /// The folder of its results, relative to that of the index.
    pub folder: PathBuf,
    /// Bytes of the file of results, and when it was written (nanoseconds since 1970): a file that changed is read again.
    pub bytes: u64,
    /// See `bytes`.
    pub modified: u64,
    /// When the evaluation ended (RFC 3339); of results that do not say it, when the file was written.
    pub evaluated: String,
    /// The suite's file as named.
    pub suite: String,
    /// What the suite calls itself.
    pub title: Option<String>,
    /// The models.
    pub subjects: Vec<Subject>,
    /// The tasks.
    pub tasks: Vec<TaskEntry>,
}

/// What is kept of one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskEntry {
    /// Its name.
    pub name: String,
    /// A hash of what was asked: kind, prompts, expected answers and choices. Only values of the same questions can be compared.
    pub questions: String,
    /// Number of items.
    pub items: usize,
    /// Name of the main metric.
    pub main_metric: String,
    /// The metrics.
    pub metrics: Vec<MetricInfo>,
    /// Value and interval of each metric, for each model.
    pub estimates: Vec<BTreeMap<String, Estimate>>,
}

impl EvaluationEntry {
    /// Returns what is kept of results that were read from a folder.
    pub fn of(folder: PathBuf, results: &SuiteResults, file: &std::fs::Metadata) -> Self {
        let modified = file.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let nanoseconds = modified.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        Self {
            folder,
            bytes: file.len(),
            modified: nanoseconds,
            evaluated: results.evaluated.clone().unwrap_or_else(|| written_at(modified)),
            suite: results.suite.clone(),
            title: results.title.clone(),
            subjects: results.subjects.clone(),
            tasks: results.tasks.iter().map(TaskEntry::of).collect(),
        }
    }

    /// Returns the number of the model that a name means: of this name, or without one the last, which is the tuned one.
    pub fn subject(&self, name: Option<&str>) -> Option<usize> {
        match name {
            Some(name) => self.subjects.iter().position(|subject| subject.name == name),
            None => self.subjects.len().checked_sub(1),
        }
    }

    /// Returns the point in time at which it ended, if its date can be read.
    pub fn time(&self) -> Option<jiff::Timestamp> {
        self.evaluated.parse().ok()
    }
}

fn written_at(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map_or_else(|_| String::new(), |t| t.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string())
}

impl TaskEntry {
    fn of(task: &TaskResults) -> Self {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(&task.kind);
        for item in &task.items {
            add(&item.prompt);
            item.expected.iter().chain(&item.choices).for_each(|text| add(text));
        }
        Self {
            name: task.name.clone(),
            questions: hex(&hash.finalize()[..8]),
            items: task.items.len(),
            main_metric: task.main_metric.clone(),
            metrics: task.metrics.clone(),
            estimates: task.results.iter().map(|found| found.estimates.clone()).collect(),
        }
    }
}

/// Reads one evaluation: a folder with results, or the folder of a run that was evaluated.
pub fn read(folder: &Path) -> Result<EvaluationEntry> {
    let file = results_of(folder)?;
    let data = std::fs::metadata(&file).map_err(|e| io_error("reading", &file, e))?;
    Ok(EvaluationEntry::of(folder.to_path_buf(), &read_json(&file)?, &data))
}

/// Returns the file of results of an evaluation's folder, or of a run that was evaluated.
pub fn results_of(folder: &Path) -> Result<PathBuf> {
    let places = [folder.join(RESULTS), folder.join("evaluation").join(RESULTS)];
    places.into_iter().find(|file| file.is_file()).ok_or_else(|| {
        Error::user(format!("{}: no results of an evaluation", folder.display()))
            .hint("`ft eval SUITE --out DIR` writes them, and a run with `run.evaluate`; name such a folder")
    })
}

/// Reads the index of a folder and brings it up to date: evaluations that are new or changed are read, those that are gone are left out.
/// With `again`, all are read. Returns the entries by date, and whether the file could be written (its reason if not).
///
/// Errors: the folder cannot be searched. Results that cannot be read are left out with a warning.
pub fn update(folder: &Path, again: bool) -> Result<Vec<EvaluationEntry>> {
    let path = folder.join(INDEX);
    let known = if again { Vec::new() } else { read_index(&path) };
    let mut entries = Vec::new();
    for file in find(folder)? {
        let data = std::fs::metadata(&file).map_err(|e| io_error("reading", &file, e))?;
        let own = file.parent().unwrap_or(folder);
        let relative = own.strip_prefix(folder).unwrap_or(own).to_path_buf();
        let modified = data.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
        let same = |entry: &&EvaluationEntry| {
            entry.folder == relative && entry.bytes == data.len() && u128::from(entry.modified) == modified
        };
        match known.iter().find(same) {
            Some(entry) => entries.push(entry.clone()),
            None => match read_json::<SuiteResults>(&file) {
                Ok(results) => entries.push(EvaluationEntry::of(relative, &results, &data)),
                Err(e) => report::warn(format!("left out: {}", e.message())),
            },
        }
    }
    entries.sort_by(|a, b| a.time().cmp(&b.time()).then_with(|| a.folder.cmp(&b.folder)));
    let mut sorted_known = known;
    sorted_known.sort_by(|a, b| a.time().cmp(&b.time()).then_with(|| a.folder.cmp(&b.folder)));
    if sorted_known != entries {
        let written = write_atomic(&path, |out| {
            for entry in &entries {
                serde_json::to_writer(&mut *out, entry)?;
                writeln!(out)?;
            }
            Ok(())
        });
        // Results are shown also from a folder that cannot be written.
        if let Err(e) = written {
            report::warn(format!("the index is not kept: {}", e.message()));
        }
    }
    Ok(entries)
}

/// Reads the lines of an index that are entries; one of another version is made again.
fn read_index(path: &Path) -> Vec<EvaluationEntry> {
    let text = if path.is_file() { read_to_string(path).unwrap_or_default() } else { String::new() };
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Finds files of results in a folder and below, in the order of their paths. Hidden folders and `target` are not searched.
fn find(folder: &Path) -> Result<Vec<PathBuf>> {
    fn walk(folder: &Path, depth: usize, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir() {
                if depth > 0 && !name.starts_with('.') && name != "target" {
                    // A folder that cannot be read is ignored.
                    let _ = walk(&entry.path(), depth - 1, into);
                }
            } else if name == RESULTS {
                into.push(entry.path());
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(folder, DEPTH, &mut found).map_err(|e| io_error("reading folder", folder, e))?;
    found.sort();
    Ok(found)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::eval::comparison::tests::{metric, results, task};

    /// Writes results of a task with two models, of which the second one has `right` of 40 items right.
    pub fn write(folder: &Path, date: &str, right: usize) {
        let scores = |right: usize| (0..40).map(|i| f64::from(u8::from(i < right))).collect::<Vec<f64>>();
        let mut made = results(vec![task("arc", metric("acc"), &[scores(20), scores(right)])]);
        made.evaluated = Some(date.into());
        std::fs::create_dir_all(folder).unwrap();
        crate::fsutil::write_json(&folder.join(RESULTS), &made).unwrap();
    }

    #[test]
    fn the_index_is_kept_and_follows_the_folders() {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("b/evaluation"), "2026-03-02T10:00:00+01:00", 30);
        write(&root.path().join("a"), "2026-03-01T10:00:00+01:00", 25);
        std::fs::create_dir_all(root.path().join(".hidden")).unwrap();
        std::fs::write(root.path().join(".hidden/results.json"), "{}").unwrap();
        let first = update(root.path(), false).unwrap();
        let folders: Vec<&Path> = first.iter().map(|entry| entry.folder.as_path()).collect();
        assert_eq!(folders, [Path::new("a"), Path::new("b/evaluation")], "by date");
        assert_eq!(first[1].tasks[0].estimates[1]["acc"].value, 0.75);
        assert_eq!(first[0].tasks[0].questions, first[1].tasks[0].questions);
        assert_eq!(
            (first[0].subject(None), first[0].subject(Some("base")), first[0].subject(Some("x"))),
            (Some(1), Some(0), None)
        );
        // What is in the index is not read again: a value that is changed in it stays until it is rebuilt.
        let path = root.path().join(INDEX);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"value\":0.75", "\"value\":0.5") + "nonsense\n").unwrap();
        assert_eq!(update(root.path(), false).unwrap()[1].tasks[0].estimates[1]["acc"].value, 0.5);
        assert_eq!(update(root.path(), true).unwrap(), first);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        // Changed and removed results.
        write(&root.path().join("a"), "2026-03-05T10:00:00+01:00", 26);
        std::fs::remove_dir_all(root.path().join("b")).unwrap();
        let now = update(root.path(), false).unwrap();
        assert_eq!((now.len(), now[0].tasks[0].estimates[1]["acc"].value), (1, 0.65));
        assert_eq!(read(&root.path().join("a")).unwrap().tasks, now[0].tasks);
        assert!(read(root.path()).unwrap_err().to_string().contains("no results of an evaluation"));
    }
}
